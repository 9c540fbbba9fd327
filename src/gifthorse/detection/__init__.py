"""Detectors: is this model backdoored?"""

from dataclasses import replace

from gifthorse.core.types import Detector
from gifthorse.detection.dltnd import DLTND
from gifthorse.detection.free_eagle import FreeEagle
from gifthorse.detection.gangsweep import GangSweep
from gifthorse.detection.inspector import Inspector
from gifthorse.detection.k_arm import KArmScan
from gifthorse.detection.latent_shift import LatentShift
from gifthorse.detection.mm_bd import MMBD
from gifthorse.detection.neuron_inspect import NeuronInspect
from gifthorse.detection.transferability import Transferability
from gifthorse.detection.umd import UMD
from gifthorse.detection.weight_signature import WeightSignature
from gifthorse.inversion import (
    ABS,
    PIXEL_QUICK,
    QUICK,
    USB,
    Blend,
    Carve,
    DeepInspect,
    FilterInversion,
    NeuralCleanse,
    PixelBackdoor,
    Tabor,
    WarpInversion,
)
from gifthorse.search import PatchInit, SearchConfig, SuccessiveHalving
from gifthorse.search.k_arm import KArm

# K-Arm's own controller, and no stop but the scheduler's.
_K_ARM = NeuralCleanse(
    warmup=2, patience=5, up=1.5, fall=1.0, config=SearchConfig(success_threshold=0.99)
)
_K_ARM_PIXEL = PixelBackdoor(config=SearchConfig(success_threshold=0.99))

# One image an arm: rounds of two steps, none of which is spent on a change that is settled.
_SINGLE = replace(QUICK, min_steps=2, patience=15, min_rounds=30, rounds=80)

# Ten images of one class an arm, all of them in a step, and fewer rounds: pairs are many.
_PAIR = replace(PIXEL_QUICK.config, max_images=10, batch=10, min_steps=2, min_rounds=30, patience=8)

DETECTORS: dict[str, Detector] = {
    "abs": Inspector(ABS(), every=False),
    "blend": Inspector(Blend(), every=False),
    "carve": Inspector(Carve(probe=PatchInit())),
    "color_filter": Inspector(FilterInversion(), every=False),
    "deep_inspect": Inspector(DeepInspect()),
    "dltnd": DLTND(),
    "free_eagle": FreeEagle(),
    "gangsweep": GangSweep(),
    "k_arm": KArmScan(
        replace(_K_ARM, probe=PatchInit()),
        replace(_K_ARM, square=50 / 224, one_color=True),
    ),
    # The penalty of pixels falls a little in every round, so that gains do not tell when to stop.
    "k_arm_pixel": KArmScan(_K_ARM_PIXEL, _K_ARM_PIXEL, KArm(gains=1000)),
    "latent_shift": LatentShift(),
    "mm_bd": MMBD(),
    # Of ten classes with Gamma distributed margins this flags 1 % of nets, the paper's 0.05 20 %.
    "mm_bd_quick": MMBD(starts=4, steps=40, significance=1e-5),
    "neural_cleanse": Inspector(NeuralCleanse()),
    "neural_cleanse_quick": Inspector(
        NeuralCleanse(warmup=0, initial=0.01, patience=3, up=1.5, config=QUICK, probe=PatchInit())
    ),
    "neuron_inspect": NeuronInspect(),
    "pixel": Inspector(PixelBackdoor()),
    "pixel_halving": Inspector(PIXEL_QUICK, scheduler=SuccessiveHalving(first=30, second=45)),
    "pixel_quick": Inspector(PIXEL_QUICK),
    "tabor": Inspector(Tabor()),
    "transferability": Transferability(
        NeuralCleanse(warmup=0, initial=0.01, patience=3, up=1.5, config=_SINGLE)
    ),
    "umd": UMD(replace(PIXEL_QUICK, config=_PAIR)),
    "usb": Inspector(USB()),
    # A sixteenth of the side is the most that still is the same image.
    "warp": Inspector(WarpInversion(), every=False, diffuse=1 / 16),
    "weight_signature": WeightSignature(),
}

# What --preset runs, in this order; thorough adds what is not calibrated, cheapest first, but what
# accuses clean nets of the tuning half (docs/evidence.md).
PRESETS: dict[str, tuple[str, ...]] = {
    "quick": ("pixel_quick",),
    "standard": ("pixel_quick",),
    "thorough": (
        "weight_signature",
        "pixel_quick",
        "neural_cleanse_quick",
        "blend",
        "warp",
        "k_arm",
        "umd",
        "usb",
    ),
}
# What it runs as well, in seconds, unless those found a backdoor: it counts for the class that they
# lead with alone.
BESIDE: dict[str, tuple[str, ...]] = {"standard": ("mm_bd_quick",), "thorough": ("mm_bd_quick",)}
# What needs no images.
DATA_FREE = ("weight_signature", "free_eagle", "mm_bd_quick")
# What searches nothing, and is run beside a preset where a calibration reads it together with that.
STATISTICS = (*DATA_FREE, "latent_shift")
# And where they leave doubt: the other calibrated detector, which looks for small masks where
# pixels are many.
SECOND: dict[str, tuple[str, ...]] = {"standard": ("neural_cleanse_quick",)}
# What compares no class with others, and so can judge two.
FEW_CLASSES = frozenset({"transferability"})
# What needs no gradient of the net.
GRADIENT_FREE = frozenset({"weight_signature"})

__all__ = [
    "BESIDE",
    "DATA_FREE",
    "DETECTORS",
    "DLTND",
    "FEW_CLASSES",
    "GRADIENT_FREE",
    "MMBD",
    "PRESETS",
    "SECOND",
    "STATISTICS",
    "UMD",
    "FreeEagle",
    "GangSweep",
    "Inspector",
    "KArmScan",
    "LatentShift",
    "NeuronInspect",
    "Transferability",
    "WeightSignature",
]
