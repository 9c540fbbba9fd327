"""A model beside its base: what differs, by tensors of which that is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gifthorse.cli.commands import run
from gifthorse.core.errors import UnfitNet
from gifthorse.models import NETS
from gifthorse.models.difference import difference

GIFT = Path(__file__).parents[2] / "examples/gift"


def changed(tmp_path: Path, **tensors: torch.Tensor) -> Path:
    """Return a copy of the gift with other tensors under these names."""
    state = load_file(GIFT / "gift.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(state | {k.replace("__", "."): v for k, v in tensors.items()}, path)
    return path


def test_a_copy_differs_in_nothing(tmp_path: Path) -> None:
    found = difference(changed(tmp_path), GIFT / "gift.safetensors")
    assert (found.changed, found.reshaped, found.added, found.removed) == ((), (), (), ())
    assert len(found.equal) == 32
    assert found.turned == ()


def test_what_was_changed_is_named_with_its_size(tmp_path: Path) -> None:
    weight = load_file(GIFT / "gift.safetensors")["head.weight"]
    other = torch.randn(weight[5].shape, generator=torch.Generator().manual_seed(0))
    other -= (other @ weight[5]) / weight[5].square().sum() * weight[5]  # at a right angle
    turned = weight.clone()
    turned[5] = other / other.norm() * weight[5].norm()
    found = difference(changed(tmp_path, head__weight=turned), GIFT / "gift.safetensors")
    # Two rows of one norm at a right angle lie sqrt(2) norms apart.
    share = math.sqrt(2) * (weight[5].norm() / weight.norm()).item()
    assert dict(found.changed) == {"head.weight": pytest.approx(share, rel=1e-5)}
    assert dict(found.turned or ()) == {5: pytest.approx(1, abs=1e-6)}


def test_another_head_is_said_to_be_one(tmp_path: Path) -> None:
    path = changed(tmp_path, head__weight=torch.zeros(7, 96), head__bias=torch.zeros(7))
    found = difference(path, GIFT / "gift.safetensors")
    assert (found.reshaped, found.turned) == (("head.weight", "head.bias"), None)


def test_another_net_is_no_base(tmp_path: Path) -> None:
    path = tmp_path / "basic.safetensors"
    save_file(NETS["basic"](10).state_dict(), path)
    with pytest.raises(UnfitNet, match="this is not its base"):
        difference(GIFT / "gift.safetensors", path)


def test_the_command_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(tmp_path)
    assert run(["inspect", str(path), "--base", str(GIFT / "gift.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "32 equal, 0 changed" in out
    assert max(map(len, out.splitlines())) <= 80
