"""Model files and nets: opened safely, inspected, made by name, normalized."""

from __future__ import annotations

from gifthorse.models.architectures import Guess, build, fill, guess
from gifthorse.models.inspection import Inspection
from gifthorse.models.load import Opened, save
from gifthorse.models.normalize import NORMALIZATIONS, Classifier, Normalize
from gifthorse.models.opening import inspect, load
from gifthorse.models.reading.isolation import sniff
from gifthorse.models.zoo import NETS

__all__ = [
    "NETS",
    "NORMALIZATIONS",
    "Classifier",
    "Guess",
    "Inspection",
    "Normalize",
    "Opened",
    "build",
    "fill",
    "guess",
    "inspect",
    "load",
    "save",
    "sniff",
]
