"""Ways of stamping a trigger on an image."""

from gifthorse.triggers.patch import Additive, Patch, Wandering, paint, scatter, square, wandering

__all__ = ["Additive", "Patch", "Wandering", "paint", "scatter", "square", "wandering"]
