"""The one loop over triggers, and what it is made of."""

from gifthorse.search.costs import Adaptive
from gifthorse.search.forms import Form, MaskPattern, SignedPixels
from gifthorse.search.loop import Pace, Search
from gifthorse.search.probe import Probe
from gifthorse.search.turns import Exhaustive, Halving, Turns

__all__ = [
    "Adaptive",
    "Exhaustive",
    "Form",
    "Halving",
    "MaskPattern",
    "Pace",
    "Probe",
    "Search",
    "SignedPixels",
    "Turns",
]
