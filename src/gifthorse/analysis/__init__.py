"""Comparisons of triggers and methods: pruning, robustness, loss landscapes, figures."""

from gifthorse.analysis.landscape import (
    Landscape,
    Objective,
    directions,
    landscape,
    local_minima,
    minima,
)
from gifthorse.analysis.pruning import (
    align_asr,
    align_size,
    grid,
    pixels,
    ranking,
    success_over_size,
    top_k,
)
from gifthorse.analysis.robustness import TABLE_5, enlarged, rescaled, robustness, rotated

__all__ = [
    "TABLE_5",
    "Landscape",
    "Objective",
    "align_asr",
    "align_size",
    "directions",
    "enlarged",
    "grid",
    "landscape",
    "local_minima",
    "minima",
    "pixels",
    "ranking",
    "rescaled",
    "robustness",
    "rotated",
    "success_over_size",
    "top_k",
]
