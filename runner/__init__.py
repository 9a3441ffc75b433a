"""Runner: run AI models on your own machine as easily as containers."""

__all__ = ["__version__"]

__version__ = "0.1.0"
