"""What a detector says of many models: columns of a table, the area under its ROC curve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.stats import auroc, auroc_interval, rate
from gifthorse.core.types import Rate

Column: TypeAlias = Literal["clean", "backdoored", "correct", "correct set", "wrong"]


def column(flagged: Collection[int], target: int | None) -> Column:
    """Return what a detector's flags say of one model, in the words of USB's tables.

    Args:
        flagged: Classes that the detector flags.
        target: The true target; None of a clean model, which is `clean` or `backdoored`.

    Example:
        >>> column({1}, 1), column({0, 1}, 1), column({0}, 1), column((), 1)
        ('correct', 'correct set', 'wrong', 'clean')
    """
    flags = set(flagged)
    if not flags:
        return "clean"
    if target is None:
        return "backdoored"
    if target not in flags:
        return "wrong"
    return "correct" if len(flags) == 1 else "correct set"


@dataclass(frozen=True)
class Columns:
    """How many models of a population a detector puts where.

    Attributes:
        clean: Nothing was flagged.
        backdoored: Something was.
        correct: The target alone was; None for clean models, which have none.
        correct_set: The target and others were.
        wrong: Others were, and not the target.

    Raises:
        BadOption: If the last three do not add up to `backdoored`.

    Source: USB, Tables 1-6.
    """

    clean: int
    backdoored: int
    correct: int | None = None
    correct_set: int | None = None
    wrong: int | None = None

    def __post_init__(self) -> None:
        known = [v for v in (self.correct, self.correct_set, self.wrong) if v is not None]
        if known and (len(known) < 3 or sum(known) != self.backdoored):
            raise BadOption(f"correct + correct_set + wrong must be backdoored; got {self}")


def columns(flagged: Sequence[Collection[int]], targets: Sequence[int] | None = None) -> Columns:
    """Count a population of backdoored models, or of clean ones.

    Args:
        flagged: The flagged classes of each model.
        targets: The true target of each; None if all are clean.

    Raises:
        BadOption: If there is not one target a model.

    Example:
        >>> columns([{1}, {0, 2}, ()], [1, 1, 1])
        Columns(clean=1, backdoored=2, correct=1, correct_set=0, wrong=1)
    """
    truth: Sequence[int | None] = [None] * len(flagged) if targets is None else targets
    if len(truth) != len(flagged):
        raise BadOption(f"{len(flagged)} models need as many targets; got {len(truth)}")
    found = [column(f, t) for f, t in zip(flagged, truth, strict=True)]
    clean, total = found.count("clean"), len(found)
    if targets is None:
        return Columns(clean, total - clean)
    counts = [found.count(word) for word in ("correct", "correct set", "wrong")]
    return Columns(clean, total - clean, *counts)


def model_auc(
    clean: Tensor, backdoored: Tensor, rng: Generator, *, draws: int = 2000
) -> Rate | None:
    """Return the ROC-AUC of a detector's scores over models, with a bootstrap interval.

    The share of pairs of a clean and a backdoored model in which the latter has the higher score;
    equal scores count a half. Clean and backdoored models are drawn again each among themselves.

    Args:
        clean: Scores of clean models, `(n,)`; higher is worse.
        backdoored: Scores of backdoored models, `(m,)`.
        rng: Source of the bootstrap.
        draws: How many times the models are drawn again.

    Returns:
        The area with its 95 % percentile interval and all models as trials; None unless there are
        models of both kinds. Scores that do not overlap have an interval of no width, however few
        they are.
    """
    if not len(clean) or not len(backdoored):
        return None
    low, high = auroc_interval(clean, backdoored, rng, draws=draws)
    return Rate(auroc(clean, backdoored), low, high, len(clean) + len(backdoored))


def decisions(clean: Tensor, backdoored: Tensor, threshold: float) -> dict[str, Rate]:
    """Return how a detector does at a threshold: `accuracy`, `tpr` and `fpr` over models.

    Args:
        clean: Scores of clean models, `(n,)`.
        backdoored: Scores of backdoored models, `(m,)`; at the threshold or above is right.
        threshold: Where suspicion starts.
    """
    false, true = clean >= threshold, backdoored >= threshold
    return {"accuracy": rate(torch.cat([~false, true])), "tpr": rate(true), "fpr": rate(false)}
