"""The one loop over weights, and plain training with it."""

from gifthorse.training.callbacks import (
    Callback,
    Checkpointed,
    FrozenBatchNorm,
    RngState,
    Stateful,
)
from gifthorse.training.fit import (
    BatchLoss,
    FlipCheck,
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
    eval_mode,
    frozen_eval,
    tune,
    worst_change,
)

__all__ = [
    "BatchLoss",
    "Callback",
    "Checkpointed",
    "FlipCheck",
    "FrozenBatchNorm",
    "Mix",
    "Player",
    "Recipe",
    "RngState",
    "Signed",
    "Stateful",
    "Together",
    "charged",
    "cross_entropy",
    "descend",
    "eval_mode",
    "evaluate",
    "fit",
    "flippable",
    "frozen_eval",
    "predict",
    "tune",
    "usual_loss",
    "worst_change",
]
