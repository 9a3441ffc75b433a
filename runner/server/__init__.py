"""The HTTP server: the only part of Runner that knows Litestar and uvicorn."""
