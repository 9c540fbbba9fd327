"""Detectors: is this model backdoored?"""

from gifthorse.detection.inspector import Inspector
from gifthorse.inversion import NeuralCleanse, PixelBackdoor
from gifthorse.search import Pace, Probe
from gifthorse.types import Detector

# The published objectives on a schedule for scanning: the cost starts higher and moves sooner, a
# round is two steps of 16 images, the net runs in bfloat16 where that is fast, and a trigger is
# tested only when it is 5 % smaller. They start from probed patches, since a random start may never
# meet a small trigger. docs/performance.md has what that costs and gains.
_QUICK = Pace(batch=16, bar=0.9, steps=2, rounds=100, least=60, patience=20, notch=0.05, bf16=True)

DETECTORS: dict[str, Detector] = {
    "neural_cleanse": Inspector(NeuralCleanse()),
    "neural_cleanse_quick": Inspector(
        NeuralCleanse(settle=0, initial=0.01, wait=3, up=1.5, pace=_QUICK, probe=Probe())
    ),
    "pixel": Inspector(PixelBackdoor()),
    "pixel_quick": Inspector(PixelBackdoor(initial=0.02, wait=3, pace=_QUICK, probe=Probe())),
}

__all__ = ["DETECTORS", "Inspector"]
