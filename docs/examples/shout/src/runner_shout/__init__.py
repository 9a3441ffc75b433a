"""A backend for Runner that says it louder."""
