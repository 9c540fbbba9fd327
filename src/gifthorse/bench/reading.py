"""What a verdict says, beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gifthorse.bench.outcome import Found
from gifthorse.core.metrics import changed_size, column, mask_overlap, mask_size
from gifthorse.core.types import Arm, Finding, Verdict
from gifthorse.detection.statistics import aiv, degenerate


def found(verdict: Verdict, target: int | None, true: Tensor | None) -> Found:
    """Return what a detector found.

    Args:
        verdict: What it said.
        target: The true target; None of a clean model.
        true: The true mask, `(H, W)`; None of a trigger without one.
    """
    return _beside(_read(verdict, target), verdict, target, true)


def _read(verdict: Verdict, target: int | None) -> Found:
    """Return what a verdict says, and how far the true target's size, or any, stands out."""
    known = verdict.label in ("BACKDOORED", "SUSPICIOUS")
    worse = [f.goal for f in verdict.findings if f.goal is not None and f.severity != "INFO"]
    flagged = frozenset(goal.target for goal in worse) if known else frozenset[int]()
    sizes = _sizes(verdict.arms)
    out = Found(
        verdict.label,
        verdict.score,
        verdict.threshold,
        flagged,
        None if verdict.label == "INCONCLUSIVE" else column(flagged, target),
        size=sizes.get(target) if target is not None else _mean(list(sizes.values())),
    )
    if len(sizes) < 3 or (target is not None and target not in sizes):
        return out
    values = torch.tensor(list(sizes.values()), dtype=torch.float64)
    index = [aiv(values), aiv(values, middle="lower")]
    at = slice(None) if target is None else list(sizes).index(target)
    usual, lower = (float(v[at].max()) for v in index)
    return replace(out, aiv=usual, aiv_lower=lower, degenerate=degenerate(values))


def _sizes(arms: Sequence[Arm]) -> dict[int, float]:
    """Return the smallest size for each target; from some class, if pairs were searched."""
    out: dict[int, float] = {}
    for arm in arms:
        out[arm.goal.target] = min(arm.size, out.get(arm.goal.target, math.inf))
    return out


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _beside(out: Found, verdict: Verdict, target: int | None, true: Tensor | None) -> Found:
    """Return what was found beside the true trigger, if the verdict shows one for its target."""
    shown: list[Finding] = [
        f for f in verdict.findings if f.goal is not None and f.goal.target == target
    ]
    if not shown:
        return out
    first = shown[0]
    parts = [first.evidence.get(name) for name in ("mask", "before", "after")]
    if first.confirmation is not None:
        out = replace(out, recovered=first.confirmation.asr)
    if isinstance(parts[1], Tensor) and isinstance(parts[2], Tensor) and len(parts[1]):
        pixels, size = changed_size(parts[1], parts[2])
        out = replace(out, pixels=pixels, change=size)
    if not isinstance(parts[0], Tensor):
        return out
    mask = parts[0].amax(0) if parts[0].ndim == 3 else parts[0]
    out = replace(out, mln=mask_size(mask))
    if true is None or true.shape != mask.shape:
        return out
    overlap = {mode: mask_overlap(mask, true, mode) for mode in ("topk", "half", "zoo")}
    return replace(out, overlap=overlap)
