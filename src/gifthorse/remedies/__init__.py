"""Remedies: safer classifiers, by other weights or by inputs that are reformed first."""

from gifthorse.remedies.clp import CLP
from gifthorse.remedies.down_up import DownUp
from gifthorse.remedies.fine_pruning import FinePruning
from gifthorse.remedies.fine_tuning import FineTuning
from gifthorse.remedies.projection import Projection
from gifthorse.remedies.smoothing import Smoothing
from gifthorse.types import Remedy

REMEDIES: dict[str, Remedy] = {
    "clp": CLP(),
    "down_up": DownUp(),
    "fine_pruning": FinePruning(),
    "fine_tuning": FineTuning(),
    "projection": Projection(),
    "smoothing": Smoothing(),
}

__all__ = [
    "CLP",
    "REMEDIES",
    "DownUp",
    "FinePruning",
    "FineTuning",
    "Projection",
    "Smoothing",
]
