"""Look a downloaded image classifier in the mouth: find backdoors before you deploy it."""

__version__ = "0.1.0"
