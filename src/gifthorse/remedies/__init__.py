"""Remedies: safer classifiers, by other weights or by inputs that are reformed first."""

from gifthorse.core.types import Remedy
from gifthorse.inversion import PIXEL_QUICK, UAP, NeuralCleanse
from gifthorse.remedies.adversarial_retraining import AdversarialRetraining
from gifthorse.remedies.anp import ANP
from gifthorse.remedies.clp import CLP
from gifthorse.remedies.down_up import DownUp
from gifthorse.remedies.fine_pruning import FinePruning
from gifthorse.remedies.fine_tuning import FineTuning
from gifthorse.remedies.fst import FST
from gifthorse.remedies.ft_sam import FTSAM
from gifthorse.remedies.hardening import Hardening
from gifthorse.remedies.i_bau import IBAU
from gifthorse.remedies.nad import NAD
from gifthorse.remedies.projection import Projection
from gifthorse.remedies.smoothing import Smoothing
from gifthorse.remedies.unlearning import Unlearning
from gifthorse.search import SearchConfig
from gifthorse.training import Recipe

# The rows of PixelBackdoor's Table 7: with bounded changes, with masks found once and patched in as
# Neural Cleanse does, with masks and with pixels found anew as the net changes.
_MASKS = NeuralCleanse(
    warmup=0,
    patience=10,
    up=1.5,
    jitter=0.01,
    config=SearchConfig(success_threshold=0.99, rounds=500, bf16=True),
)
_CHANGES = UAP(
    eps=4 / 255, config=SearchConfig(success_threshold=0.0, rounds=500, rule="success", bf16=True)
)
_PATCHING = Recipe(epochs=1, lr=1e-3, decay=0.0, schedule="constant")

REMEDIES: dict[str, Remedy] = {
    "adversarial_retraining": AdversarialRetraining(),
    "anp": ANP(),
    "clp": CLP(),
    "down_up": DownUp(),
    "fine_pruning": FinePruning(),
    "fine_tuning": FineTuning(),
    "fst": FST(),
    "ft_sam": FTSAM(),
    "hardening_nc": Hardening(_MASKS, every=0, share=0.2, recipe=_PATCHING),
    "hardening_nc_iterative": Hardening(_MASKS),
    "hardening_pixel": Hardening(),
    "hardening_uap": Hardening(_CHANGES, largest=1.0),
    "i_bau": IBAU(),
    "nad": NAD(),
    "projection": Projection(),
    "smoothing": Smoothing(),
    "unlearning": Unlearning(),
    "unlearning_quick": Unlearning(PIXEL_QUICK),
}

__all__ = [
    "ANP",
    "CLP",
    "FST",
    "FTSAM",
    "IBAU",
    "NAD",
    "REMEDIES",
    "AdversarialRetraining",
    "DownUp",
    "FinePruning",
    "FineTuning",
    "Hardening",
    "Projection",
    "Smoothing",
    "Unlearning",
]
