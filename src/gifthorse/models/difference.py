"""What training made of a base model: tensors that differ, directions of classes that are new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifthorse.core.errors import UnfitNet
from gifthorse.models.opening import load

Key = TypeVar("Key", int, str)
TURNED = 0.1  # 1 - cosine of a class's direction to its old one, from which it counts as new


@dataclass(frozen=True)
class Difference:
    """A model beside the one that it was made from.

    Attributes:
        base: Path of the other model.
        sha256: Of its bytes.
        equal: Names of tensors that are the same number for number.
        changed: Names of those that are not, with the norm of the change as a share of the old
            norm; the largest first.
        reshaped: Names of those of another shape.
        added: Names that only the model has.
        removed: Names that only the base has.
        turned: Classes whose row of the last linear layer points elsewhere than in the base, with
            `1 - cosine`, the largest first; None if the two layers cannot be compared.
    """

    base: str
    sha256: str
    equal: tuple[str, ...]
    changed: tuple[tuple[str, float], ...]
    reshaped: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    turned: tuple[tuple[int, float], ...] | None


def difference(model: str | Path, base: str | Path, signer: Path | None = None) -> Difference:
    """Compare two models, both opened as a scan opens them.

    Args:
        model: File or folder of the model.
        base: File or folder of what it was trained from.
        signer: Public key of whoever must have signed the model, as of `load`.

    Raises:
        UnreadableModel: If one of them cannot be opened.
        UnfitNet: If they have no tensor of one name and shape in common.
    """
    mine, theirs = load(model, signer=signer), load(base)
    new, old = mine.net.state_dict(), theirs.net.state_dict()
    both = [name for name in new if name in old]
    alike = [name for name in both if new[name].shape == old[name].shape]
    if not alike:
        raise UnfitNet(
            f"{model} ({mine.origin.arch}) and {base} ({theirs.origin.arch}) have no tensor of one "
            "name and shape in common: this is not its base"
        )
    moved = {name: _moved(new[name], old[name]) for name in alike}
    return Difference(
        base=str(base),
        sha256=theirs.origin.sha256,
        equal=tuple(name for name, share in moved.items() if share == 0),
        changed=_largest({name: share for name, share in moved.items() if share}),
        reshaped=tuple(name for name in both if name not in moved),
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        turned=_turned(_head(mine.net), _head(theirs.net)),
    )


def _moved(new: Tensor, old: Tensor) -> float:
    """Return the norm of the change as a share of the old norm; 0 only for equal tensors."""
    if torch.equal(new, old):
        return 0.0
    a, b = new.double(), old.double()
    share: float = ((a - b).norm() / b.norm().clamp_min(1e-12)).item()
    return max(share, 1e-12)


def _head(net: nn.Module) -> Tensor | None:
    """Return the rows of the last linear layer, `(K, d)`; None if there is none."""
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return layers[-1].weight.detach().double() if layers else None


def _turned(new: Tensor | None, old: Tensor | None) -> tuple[tuple[int, float], ...] | None:
    if new is None or old is None or new.shape != old.shape:
        return None
    away = 1 - F.cosine_similarity(new, old)
    rows = {k: share for k, share in enumerate(away.tolist()) if share >= TURNED}
    return _largest(rows)


def _largest(values: Mapping[Key, float]) -> tuple[tuple[Key, float], ...]:
    return tuple(sorted(values.items(), key=lambda row: -row[1]))
