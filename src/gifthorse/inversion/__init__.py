"""Trigger inversion: from a model and clean images back to the smallest trigger."""

from dataclasses import replace

from gifthorse.core.types import Inverter
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
from gifthorse.search import Pace, Probe

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

# The published objectives on a schedule for scanning: the cost starts higher and moves sooner, a
# round is two steps of 16 images of at most 100, the net runs in bfloat16 where that is fast, and a
# trigger is tested only when it is 5 % smaller. They start from probed patches, since a random
# start may never meet a small trigger. Pixels heed failed tests: truncated, they fail more often
# than the batches before them, and an arm may hover below the bar until it settles, large. Masks
# lose nothing by being cut, and do not. docs/performance.md has what that costs and gains.
QUICK = Pace(
    images=100,
    batch=16,
    bar=0.9,
    steps=2,
    rounds=100,
    least=60,
    patience=20,
    notch=0.05,
    bf16=True,
)
PIXEL_QUICK = PixelBackdoor(initial=0.02, wait=3, pace=replace(QUICK, heed=5), probe=Probe())

__all__ = [
    "ABS",
    "CWL0",
    "INVERTERS",
    "PIXEL_QUICK",
    "QUICK",
    "UAP",
    "USB",
    "Carve",
    "DeepFoolUAP",
    "DeepInspect",
    "NeuralCleanse",
    "PixelBackdoor",
    "Tabor",
]
