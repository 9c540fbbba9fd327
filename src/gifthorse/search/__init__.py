"""The one loop over triggers, and what it is made of."""

from gifthorse.search.bounded import Bounded
from gifthorse.search.costs import Adaptive
from gifthorse.search.forms import Form, MaskPattern, SignedPixels
from gifthorse.search.loop import Search
from gifthorse.search.one_variable import OneVariable
from gifthorse.search.probe import Probe
from gifthorse.search.problem import Pace, Problem, Turning
from gifthorse.search.running import hunted
from gifthorse.search.turns import Exhaustive, Halving, Turns

__all__ = [
    "Adaptive",
    "Bounded",
    "Exhaustive",
    "Form",
    "Halving",
    "MaskPattern",
    "OneVariable",
    "Pace",
    "Probe",
    "Problem",
    "Search",
    "SignedPixels",
    "Turning",
    "Turns",
    "hunted",
]
