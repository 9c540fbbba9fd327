"""Figures about subjects, triggers and attacks; none of them is a verdict."""

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
from gifthorse.analysis.separation import Separation, separation, separation_curve
from gifthorse.analysis.sheet import Sheet, contact_sheet, write_sheet
from gifthorse.analysis.transfer import Outcome, Transfer

__all__ = [
    "TABLE_5",
    "Landscape",
    "Objective",
    "Outcome",
    "Separation",
    "Sheet",
    "Transfer",
    "align_asr",
    "align_size",
    "contact_sheet",
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
    "separation",
    "separation_curve",
    "success_over_size",
    "top_k",
    "write_sheet",
]
