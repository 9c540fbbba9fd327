"""The one loop over triggers, and what it is made of."""

from gifthorse.search.cost import CostController
from gifthorse.search.init import PatchInit
from gifthorse.search.loop import Search
from gifthorse.search.objective import QUICK, Objective, RandomAffine, SearchConfig
from gifthorse.search.parametrizations.bounded import BoundedChange
from gifthorse.search.parametrizations.masks import MaskPattern, Parametrization, SignedPixels
from gifthorse.search.parametrizations.one_variable import OneVariable
from gifthorse.search.run import finish, found
from gifthorse.search.schedulers import Exhaustive, Scheduler, SuccessiveHalving

__all__ = [
    "QUICK",
    "BoundedChange",
    "CostController",
    "Exhaustive",
    "MaskPattern",
    "Objective",
    "OneVariable",
    "Parametrization",
    "PatchInit",
    "RandomAffine",
    "Scheduler",
    "Search",
    "SearchConfig",
    "SignedPixels",
    "SuccessiveHalving",
    "finish",
    "found",
]
