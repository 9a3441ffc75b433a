"""Runner plugin: models from files on this machine."""
