"""Trigger inversion: from a model and clean images back to the smallest trigger."""

from gifthorse.inversion.abs import ABS
from gifthorse.inversion.carve import Carve
from gifthorse.inversion.cw_l0 import CWL0
from gifthorse.inversion.deep_inspect import DeepInspect
from gifthorse.inversion.deepfool import DeepFoolUAP
from gifthorse.inversion.neural_cleanse import NeuralCleanse
from gifthorse.inversion.pixel import PixelBackdoor
from gifthorse.inversion.tabor import Tabor
from gifthorse.inversion.uap import UAP
from gifthorse.inversion.usb import USB
from gifthorse.search import Pace
from gifthorse.types import Inverter

INVERTERS: dict[str, Inverter] = {
    "abs": ABS(),
    "carve": Carve(),
    "cw_l0": CWL0(),
    "deep_inspect": DeepInspect(),
    "deepfool": DeepFoolUAP(),
    # The released GTSRB example; the baseline that PixelBackdoor compares with; TrojanZoo's.
    "neural_cleanse": NeuralCleanse(),
    "neural_cleanse_baseline": NeuralCleanse(
        settle=0, wait=10, up=1.5, jitter=0.01, pace=Pace(bar=0.9, rounds=1000)
    ),
    "neural_cleanse_zoo": NeuralCleanse(
        settle=0, wait=10, up=1.5, pace=Pace(batch=96, bar=0.99, rounds=10, schedule="cosine")
    ),
    "pixel": PixelBackdoor(),
    "pixel_clip": PixelBackdoor(mode="clip"),
    "tabor": Tabor(),
    "uap": UAP(),
    "usb": USB(),
}

__all__ = [
    "ABS",
    "CWL0",
    "INVERTERS",
    "UAP",
    "USB",
    "Carve",
    "DeepFoolUAP",
    "DeepInspect",
    "NeuralCleanse",
    "PixelBackdoor",
    "Tabor",
]
