"""Trigger inversion: from a model and clean images back to the smallest trigger."""

from gifthorse.inversion.neural_cleanse import NeuralCleanse
from gifthorse.inversion.pixel import PixelBackdoor
from gifthorse.types import Inverter

INVERTERS: dict[str, Inverter] = {
    "neural_cleanse": NeuralCleanse(),
    "pixel": PixelBackdoor(),
}

__all__ = ["INVERTERS", "NeuralCleanse", "PixelBackdoor"]
