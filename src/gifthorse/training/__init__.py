"""The one loop over weights, and plain training with it."""

from gifthorse.training.company import (
    Company,
    Dice,
    Memory,
    Stateful,
)
from gifthorse.training.descent import (
    Player,
    Signed,
    Together,
    descend,
    settled,
    still,
    tune,
    worst_change,
)
from gifthorse.training.fitting import (
    BatchLoss,
    Mirroring,
    Mix,
    Recipe,
    charged,
    cross_entropy,
    evaluate,
    fast_bf16,
    fit,
    flippable,
    predict,
    usual_loss,
)

__all__ = [
    "BatchLoss",
    "Company",
    "Dice",
    "Memory",
    "Mirroring",
    "Mix",
    "Player",
    "Recipe",
    "Signed",
    "Stateful",
    "Together",
    "charged",
    "cross_entropy",
    "descend",
    "evaluate",
    "fast_bf16",
    "fit",
    "flippable",
    "predict",
    "settled",
    "still",
    "tune",
    "usual_loss",
    "worst_change",
]
