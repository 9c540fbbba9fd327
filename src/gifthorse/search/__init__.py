"""The one loop over triggers, and what it is made of."""

from gifthorse.search.cost import Adaptive
from gifthorse.search.init import Probe
from gifthorse.search.loop import Search
from gifthorse.search.objective import Pace, Problem, Turning
from gifthorse.search.parametrizations.bounded import Bounded
from gifthorse.search.parametrizations.masks import Form, MaskPattern, SignedPixels
from gifthorse.search.parametrizations.one_variable import OneVariable
from gifthorse.search.run import finish, found
from gifthorse.search.schedulers import Exhaustive, Halving, Turns

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
    "finish",
    "found",
]
