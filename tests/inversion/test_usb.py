"""USB from a perturbation that was made on another model: the same start, none of the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.toys import SIDE, band_images, bands
from torch import Generator, Tensor

from gifthorse.core.errors import ShapeMismatch, UsageError
from gifthorse.core.types import Goal, Trigger
from gifthorse.inversion import USB, DeepFoolUAP
from gifthorse.inversion.usb import _From
from gifthorse.search import MaskPattern, Search
from gifthorse.search.start import Swept
from gifthorse.triggers import Additive, Patch
from gifthorse.triggers.changes import open_changes

GOALS = (Goal(2), Goal(0, 1))
SHAPE = band_images().shape
CHANNELS = SHAPE[0]


def changes(seed: int = 0, side: int = SIDE) -> Tensor:
    drawn = torch.rand(len(GOALS), CHANNELS, side, side, generator=Generator().manual_seed(seed))
    return 2 * drawn - 1


def written(path: Path, **methods: list[Trigger]) -> Path:
    """A file as `compare-triggers` writes it."""
    parts = {}
    for name, triggers in methods.items():
        for goal, trigger in zip(GOALS, triggers, strict=False):
            for part, tensor in zip(("pattern", "strength"), trigger.render(), strict=True):
                parts[f"{name}.{goal.tag}.{part}"] = tensor.contiguous()
    save_file(parts, path)
    return path


def additive(of: Tensor) -> list[Trigger]:
    return [Additive(delta) for delta in of]


def patches() -> list[Trigger]:
    return [Patch(torch.rand(SHAPE), torch.rand(1, *SHAPE[1:])) for _ in GOALS]


def test_changes_come_back_as_they_were_whatever_else_the_file_has(tmp_path: Path) -> None:
    v = changes()
    path = written(tmp_path / "t.safetensors", neural_cleanse=patches(), deepfool=additive(v))
    assert torch.allclose(open_changes(path, GOALS, SHAPE), v, atol=1e-6)
    assert torch.allclose(open_changes(path, GOALS[1:], SHAPE), v[1:], atol=1e-6)


def test_the_search_starts_from_the_file_and_spares_the_sweep(tmp_path: Path) -> None:
    v = changes()
    path = written(tmp_path / "t.safetensors", deepfool=additive(v))
    subject, images = bands(2), band_images()
    found = USB(uap=str(path))(subject, images, GOALS, Generator().manual_seed(0))
    assert isinstance(found, Search)
    pool, target = torch.zeros(1, *SHAPE), torch.tensor([2, 0])
    form, rng = MaskPattern(), Generator()
    free = tuple(torch.zeros(len(GOALS), *part) for part in ((1, *SHAPE[1:]), SHAPE))
    wanted = form.decode(_From(v, "signed")(subject.net, pool, target, form, free, rng))
    for mine, given in zip(found.decoded(torch.arange(2)), wanted, strict=True):
        assert torch.allclose(mine, given, atol=1e-5)
    own = USB(DeepFoolUAP(max_pass=1))(subject, images, GOALS, Generator().manual_seed(0))
    assert isinstance(own, Swept)
    for _ in own.start():
        pass
    assert found.image_steps < own.image_steps


def test_a_file_that_cannot_be_meant_is_named(tmp_path: Path) -> None:
    v, path = changes(), tmp_path / "t.safetensors"
    for methods, words in (
        ({"neural_cleanse": patches()}, "no change of images"),
        ({"deepfool": additive(v[:1])}, "goal 1-to-0 no change of images, as gifthorse compare"),
        ({"deepfool": additive(v), "uap": additive(v)}, "changes by deepfool, uap: write one"),
    ):
        with pytest.raises(UsageError, match=words):
            open_changes(written(path, **methods), GOALS, SHAPE)
    with pytest.raises(ShapeMismatch, match=r"shape \(1, 4, 4\), the model takes"):
        open_changes(written(path, deepfool=additive(changes(side=4))), GOALS, SHAPE)
    with pytest.raises(UsageError):
        USB(uap=str(tmp_path / "gone"))(bands(2), band_images(), GOALS[:1], Generator())
