"""Trigger inversion: from a model and clean images back to the smallest trigger."""

from dataclasses import replace

from gifthorse.core.types import Inverter
from gifthorse.inversion.abs import ABS
from gifthorse.inversion.blend import Blend
from gifthorse.inversion.carve import Carve
from gifthorse.inversion.color_filter import FilterInversion
from gifthorse.inversion.cw_l0 import CWL0
from gifthorse.inversion.deep_inspect import DeepInspect
from gifthorse.inversion.deepfool import DeepFoolUAP
from gifthorse.inversion.neural_cleanse import NeuralCleanse
from gifthorse.inversion.pixel import PixelBackdoor
from gifthorse.inversion.tabor import Tabor
from gifthorse.inversion.uap import UAP
from gifthorse.inversion.usb import USB
from gifthorse.inversion.warp import WarpInversion
from gifthorse.search import QUICK, PatchInit, SearchConfig

INVERTERS: dict[str, Inverter] = {
    "abs": ABS(),
    "blend": Blend(),
    "carve": Carve(),
    "color_filter": FilterInversion(),
    "cw_l0": CWL0(),
    "deep_inspect": DeepInspect(),
    "deepfool": DeepFoolUAP(),
    # The released GTSRB example; the baseline that PixelBackdoor compares with; TrojanZoo's.
    "neural_cleanse": NeuralCleanse(),
    "neural_cleanse_baseline": NeuralCleanse(
        warmup=0,
        patience=10,
        up=1.5,
        jitter=0.01,
        config=SearchConfig(success_threshold=0.9, rounds=1000),
    ),
    "neural_cleanse_zoo": NeuralCleanse(
        warmup=0,
        patience=10,
        up=1.5,
        config=SearchConfig(
            batch=96,
            success_threshold=0.99,
            steps=521,  # a pass over CIFAR-10's training set
            min_steps=521,
            rounds=10,
            schedule="cosine",
        ),
    ),
    "pixel": PixelBackdoor(),
    "pixel_clip": PixelBackdoor(mode="clip"),
    "tabor": Tabor(),
    "uap": UAP(),
    "usb": USB(),
    "warp": WarpInversion(),
}

# The published objectives on a schedule for scanning: the cost starts higher and moves sooner, a
# round is two steps of 16 images of at most 100, the net runs in bfloat16 where that is fast, and a
# trigger is tested only when it is 5 % smaller. They start from probed patches, since a random
# start may never meet a small trigger. Pixels heed failed tests: truncated, they fail more often
# than the batches before them, and an arm may hover below the bar until it settles, large. Masks
# lose nothing by being cut, and do not. docs/experiments.md has what that costs and gains.
PIXEL_QUICK = PixelBackdoor(
    initial=0.02, patience=3, config=replace(QUICK, failed_test_patience=5), probe=PatchInit()
)

__all__ = [
    "ABS",
    "CWL0",
    "INVERTERS",
    "PIXEL_QUICK",
    "QUICK",
    "UAP",
    "USB",
    "Blend",
    "Carve",
    "DeepFoolUAP",
    "DeepInspect",
    "FilterInversion",
    "NeuralCleanse",
    "PixelBackdoor",
    "Tabor",
    "WarpInversion",
]
