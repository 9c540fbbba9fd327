"""The one loop over weights, and plain training with it."""

from gifthorse.training.callbacks import (
    Company,
    Dice,
    HeldNorms,
    Memory,
    Stateful,
)
from gifthorse.training.fit import (
    BatchLoss,
    Mirroring,
    Mix,
    Recipe,
    charged,
    cross_entropy,
    evaluate,
    fit,
    flippable,
    predict,
    usual_loss,
)
from gifthorse.training.loop import (
    Player,
    Signed,
    Together,
    descend,
    settled,
    still,
    tune,
    worst_change,
)

__all__ = [
    "BatchLoss",
    "Company",
    "Dice",
    "HeldNorms",
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
    "fit",
    "flippable",
    "predict",
    "settled",
    "still",
    "tune",
    "usual_loss",
    "worst_change",
]
