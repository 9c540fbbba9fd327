"""Changes of whole images, one a goal, in the file that `gifthorse compare-triggers` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gifthorse.core.errors import ShapeMismatch, UsageError
from gifthorse.core.isolated.tensors import from_file
from gifthorse.core.types import Goal, Shape

HOW = "gifthorse compare-triggers MODEL --images DIR --method deepfool -o DIR"


def open_changes(path: Path, goals: Sequence[Goal], shape: Shape) -> Tensor:
    """Return the change of every goal, `(A, C, H, W)` in [-1, 1].

    Args:
        path: `triggers.safetensors` of a comparison: pattern and strength by method and goal.
        goals: Whose changes are wanted.
        shape: Of images, `(C, H, W)`.

    Raises:
        UsageError: If the file cannot be read, or has no change, or several, for a goal.
        ShapeMismatch: If changes are for images of another shape.
    """
    tensors, _ = from_file(path, "the changes")
    return torch.stack([_change(path, tensors, goal, shape) for goal in goals])


def _change(path: Path, tensors: Mapping[str, Tensor], goal: Goal, shape: Shape) -> Tensor:
    ends = f".{goal.tag}.pattern"
    named = {name: t for name, t in tensors.items() if name.endswith(ends)}
    found = {}
    for name, pattern in named.items():
        strength = tensors.get(f"{name.removesuffix('pattern')}strength")
        if strength is not None and _additive(pattern, strength):
            found[name.removesuffix(ends)] = 2 * pattern.float() - 1
    if len(found) != 1:
        several = f"changes by {', '.join(sorted(found))}: write one alone"
        has = several if found else "no change of images"
        raise UsageError(f"{path} has for goal {goal.tag} {has}, as {HOW} does")
    ((_, change),) = found.items()
    if change.shape != shape:
        raise ShapeMismatch(
            f"{path} is for images of shape {tuple(change.shape)}, the model takes {shape}: make "
            "the changes on a model of the same data"
        )
    return change


def _additive(pattern: Tensor, strength: Tensor) -> bool:
    """Whether a pattern is a change shown on middle gray, not colors under a mask."""
    if pattern.ndim != 3 or not bool(pattern.isfinite().all()):
        return False
    largest = (2 * pattern.float() - 1).abs().amax(0, keepdim=True)
    return strength.shape == largest.shape and torch.allclose(largest, strength.float(), atol=1e-4)
