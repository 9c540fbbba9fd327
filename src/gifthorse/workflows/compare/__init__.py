"""Triggers of several methods side by side: size, success, robustness, the loss around them."""

from __future__ import annotations

from gifthorse.workflows.compare.comparison import Compared, compare, search, survey
from gifthorse.workflows.compare.inverting import FIGURES, METHODS, ComparisonConfig, inverters
from gifthorse.workflows.compare.showing import make, table, write

__all__ = [
    "FIGURES",
    "METHODS",
    "Compared",
    "ComparisonConfig",
    "compare",
    "inverters",
    "make",
    "search",
    "survey",
    "table",
    "write",
]
