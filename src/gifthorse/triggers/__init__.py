"""Ways of stamping a trigger on an image."""

from gifthorse.triggers.learned import Learned
from gifthorse.triggers.patch import Additive, Patch, Wandering, paint, scatter, square, wandering
from gifthorse.triggers.stamp import Stamp

__all__ = [
    "Additive",
    "Learned",
    "Patch",
    "Stamp",
    "Wandering",
    "paint",
    "scatter",
    "square",
    "wandering",
]
