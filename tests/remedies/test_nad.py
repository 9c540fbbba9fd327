"""NAD: attention maps by hand, where they are taken, and what the distillation adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.remedies.badnet import CLEAN, TUNING, benign, planted, right, same, state
from tests.toys import bands, blobs
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Subject
from gifthorse.data.samples import whole
from gifthorse.models import build
from gifthorse.remedies.nad import NAD, attention, outputs, stages
from gifthorse.training import fit

TOY = vary(NAD(), TUNING | {"epochs": 2, "recipe.epochs": 2})
LAYERS = ("net.2", "net.5", "net.6")


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# 1. Maps ------------------------------------------------------------------------------------------


def test_attention_by_hand() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, -1.0]]]])
    squares = torch.tensor([[5.0, 4.0, 0.0, 1.0]])
    assert torch.allclose(attention(maps), squares / 42**0.5)
    assert torch.allclose(attention(maps, 1.0), torch.tensor([[3.0, 2.0, 0.0, 1.0]]) / 14**0.5)


def test_attention_has_length_one_whatever_the_scale() -> None:
    maps = torch.randn(5, 7, 4, 3, generator=rng())
    assert torch.allclose(attention(maps).norm(dim=1), torch.ones(5))
    assert torch.allclose(attention(maps * 37), attention(maps))
    assert attention(maps.bfloat16()).dtype == torch.float32


def test_layers_are_the_last_ones_of_each_size() -> None:
    x, _ = CLEAN[torch.arange(1)]
    assert stages(blobs(), x) == LAYERS
    assert stages(blobs(), x.expand(4, -1, -1, -1)) == LAYERS


def test_the_stages_of_a_residual_net_are_its_stages() -> None:
    net = build("resnet20", 10, 3).eval()
    got = stages(Subject(net, (3, 32, 32), 10), torch.zeros(1, 3, 32, 32))
    with outputs(net, got) as seen, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in seen.values()] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert all("layer" in name for name in got), got
    assert not any(m._forward_hooks for m in net.modules())


# 2. The loss --------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """The maps of a net are what its modules make one after another."""
    student, teacher = planted().subject, blobs(3)
    batch = x, y = whole(CLEAN)
    method = NAD(weights=(3.0, 5.0))
    with torch.no_grad():
        got = method.loss(teacher, LAYERS[:2])(student, batch)
        expected = F.cross_entropy(student(x), y)
        for weight, depth in ((3.0, 3), (5.0, 6)):
            sides = []
            for subject in (student, teacher):
                inside: Tensor = subject.net.get_submodule("normalize")(x)
                for k in range(depth):
                    inside = subject.net.get_submodule(f"net.{k}")(inside)
                maps = (inside**2).sum(1).flatten(1)
                sides.append(maps / maps.norm(dim=1, keepdim=True))
            expected += weight * ((sides[0] - sides[1]) ** 2).mean()
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_that_is_its_teacher_has_only_the_cross_entropy() -> None:
    student, (x, y) = planted().subject, whole(CLEAN)
    with torch.no_grad():
        loss = NAD().loss(student, LAYERS)(student, (x, y))
    assert loss.item() == pytest.approx(F.cross_entropy(student(x), y).item(), abs=1e-6)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = blobs(1), blobs(2)
    NAD().loss(teacher, LAYERS)(student, whole(CLEAN)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in teacher.net.parameters())
    assert all(p.grad is not None for p in student.net.parameters())


# 3. The whole -------------------------------------------------------------------------------------


def test_without_weights_it_is_fine_tuning() -> None:
    made, draw = planted().subject, rng()
    got = vary(TOY, {"weights": (0.0, 0.0, 0.0)})(made, CLEAN, rng(), Run())
    spawn(draw)  # the teacher's
    tuned = fit(made, CLEAN, TOY.recipe, draw, Run())
    assert same(got, tuned)
    assert not same(TOY(made, CLEAN, rng(), Run()), tuned)


def apart(one: Subject, other: Subject) -> float:
    """How far the attention of two nets is apart, all layers together."""
    x, _ = whole(CLEAN)
    with torch.no_grad(), outputs(one.net, LAYERS) as mine, outputs(other.net, LAYERS) as theirs:
        one(x), other(x)
        return sum(F.mse_loss(attention(mine[k]), attention(theirs[k])).item() for k in LAYERS)


def test_distillation_brings_attention_near_the_teacher() -> None:
    made, teacher = planted().subject, benign()
    method = vary(TOY, {"weights": (50.0, 50.0, 50.0), "recipe.epochs": 5})
    tuned = fit(made, CLEAN, method.recipe, rng(), Run())
    taught = fit(made, CLEAN, method.recipe, rng(), Run(), loss=method.loss(teacher, LAYERS))
    assert apart(taught, teacher) < 0.5 * apart(tuned, teacher)
    assert right(taught) >= 0.95


def test_the_same_seed_gives_the_same_net_and_inputs_stay(tmp_path: Path) -> None:
    made, before, nets = planted().subject, state(planted().subject), []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        nets.append(TOY(made, CLEAN, rng(), Run()))
    assert same(*nets)
    assert all(torch.equal(v, before[k]) for k, v in made.net.state_dict().items())
    assert not any(m.training or m._forward_hooks for m in [*made.net.modules()])
    assert not any(m.training or m._forward_hooks for m in [*nets[0].net.modules()])
    kept = Run(store=tmp_path / "run")
    assert same(TOY(made, CLEAN, rng(), run=kept), nets[0])
    again = Run(store=tmp_path / "run")  # nothing is left to train
    assert same(TOY(made, CLEAN, rng(), run=again), nets[0])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadOption, match="1 layers and 3 weights"):
        NAD(layers=("a",))
    with pytest.raises(NotApplicable, match="no layer 'a'"):
        NAD(layers=("a",), weights=(1.0,))(planted().subject, CLEAN, rng(), Run())
    with pytest.raises(NotApplicable, match="no layer of the net gives maps"):
        stages(bands(), torch.zeros(1, 1, 18, 18))
