"""Triggers of several methods side by side: size, success, robustness, the loss around them."""

from __future__ import annotations

from gifthorse.comparing.comparison import Compared, compare
from gifthorse.comparing.inverting import FIGURES, METHODS, Comparison, inverters
from gifthorse.comparing.showing import make, table, write

__all__ = [
    "FIGURES",
    "METHODS",
    "Compared",
    "Comparison",
    "compare",
    "inverters",
    "make",
    "table",
    "write",
]
