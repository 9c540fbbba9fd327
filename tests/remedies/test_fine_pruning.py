"""Fine-pruning on nets whose dormant filters are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.models import build
from gifthorse.remedies import FinePruning
from gifthorse.remedies.fine_pruning import activity, last_filters
from gifthorse.training import Recipe, predict

CLEAN = blob_images(each=20)
TUNE = replace(QUICK, epochs=2, batch=20, lr=0.02)
NONE = replace(TUNE, epochs=0)
EXACT = FinePruning(tolerance=1.0, recipe=NONE)  # the ratio whatever it costs


class Four(nn.Module):
    """Four pixels of rising brightness; the brightest alone tells two classes apart.

    The first convolution passes the pixels on, the second one doubles them; with a skip, they live
    on beside it.
    """

    def __init__(self, skip: bool, norm: bool) -> None:
        super().__init__()
        self.skip = skip
        self.first, self.last = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
            self.last.weight.copy_(2 * torch.eye(4).view(4, 4, 1, 1))
            assert self.last.bias is not None
            self.last.bias.fill_(0.1)
            weight = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0]]) + 0.01
            self.head.weight.copy_(weight)
            bar = 0.75 * (2 + skip) + 0.1  # halfway between 250 and 130
            self.head.bias.copy_(torch.tensor([-bar, bar]))

    def forward(self, x: Tensor) -> Tensor:
        inside: Tensor = self.first(x)
        out = torch.relu(self.norm(self.last(inside)))
        return self.head((out + inside * self.skip).flatten(1))  # type: ignore[no-any-return]


def four(skip: bool = False, norm: bool = False) -> tuple[Subject, InMemory]:
    labels = torch.arange(2).repeat(50)
    bright = torch.where(labels == 0, 250, 130)
    rest = torch.tensor([25, 50, 75]).expand(100, 3)
    images = torch.cat([rest, bright[:, None]], 1).to(torch.uint8).view(100, 4, 1, 1)
    return Subject(Four(skip, norm).eval(), (4, 1, 1), 2), InMemory(images, labels, 2)


def prune(remedy: FinePruning, subject: Subject, clean: InMemory) -> Subject:
    return remedy(subject, clean, Generator().manual_seed(0), Run())


def gone(subject: Subject) -> Tensor:
    """Which filters of the last convolution and channels of its norm are all zero."""
    layers = [subject.net.get_submodule(name) for name in last_filters(subject)]
    parts = [p.detach() for layer in layers for p in layer.parameters()]
    return torch.stack(
        [(p.flatten(1) if p.ndim > 1 else p[:, None]).eq(0).all(1) for p in parts]
    ).all(0)


def right(subject: Subject, clean: InMemory) -> float:
    x, y = whole(clean)
    return (predict(subject, x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("norm", [False, True])
def test_activity_is_the_mean_output_behind_norm_and_relu(norm: bool) -> None:
    subject, clean = four(norm=norm)
    if norm:
        layer = subject.net.get_submodule("norm")
        assert isinstance(layer, nn.BatchNorm2d)
        nn.init.constant_(layer.bias, -0.5)
    names = last_filters(subject)
    assert names == (["last", "norm"] if norm else ["last"])
    raw = 2 * torch.tensor([25, 50, 75, 190]).double() / 255 + 0.1
    wanted = (raw - 0.5).clamp(min=0) if norm else raw  # 250 and 130 both stay above 0
    assert torch.allclose(activity(subject, clean, names[-1]), wanted, atol=1e-4)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_the_least_active_go_and_their_number_is_rounded_down(norm: bool, ratio: float) -> None:
    subject, clean = four(norm=norm)
    made = prune(replace(EXACT, ratio=ratio), subject, clean)
    count = int(ratio * 4)
    assert gone(made).tolist() == [True] * count + [False] * (4 - count)
    before, after = (s.net.get_submodule("last").weight for s in (subject, made))
    assert torch.equal(before[count:], after[count:])  # type: ignore[index]


def test_what_a_tolerance_bears_goes_and_no_more() -> None:
    """The three dim pixels can go; without the bright one half of the images come out wrong."""
    subject, clean = four()
    for tolerance, count in ((0.0, 3), (0.04, 3), (0.6, 4)):
        made = prune(replace(EXACT, ratio=1.0, tolerance=tolerance), subject, clean)
        assert int(gone(made).sum()) == count
    coarse = prune(replace(EXACT, ratio=1.0, tolerance=0.0, step=0.5), subject, clean)
    assert int(gone(coarse).sum()) == 2
    assert int(gone(prune(replace(EXACT, ratio=0.5, tolerance=0.0), subject, clean)).sum()) == 2


@pytest.mark.parametrize("skip", [False, True])
def test_a_skip_keeps_the_channels_alive(skip: bool) -> None:
    """All four filters gone, what the skip carries still tells the classes apart when tuned."""
    subject, clean = four(skip)
    recipe = Recipe(epochs=60, batch=20, lr=0.2, pad=0, flip=False, bf16=False, part="classifier")
    made = prune(FinePruning(ratio=1.0, tolerance=1.0, recipe=recipe), subject, clean)
    assert gone(made).all()
    assert right(subject, clean) == 1.0
    assert right(made, clean) == (1.0 if skip else 0.5)


def test_the_last_convolution_is_the_one_that_runs_last() -> None:
    subject = Subject(build("resnet20", 10, 3).eval(), (3, 32, 32), 10)
    assert last_filters(subject) == ["layer3.2.conv2", "layer3.2.bn2"]


def test_nothing_pruned_and_nothing_tuned_is_the_same_net() -> None:
    subject, (x, _) = blobs(), whole(CLEAN)
    made = prune(replace(EXACT, ratio=0.0), subject, CLEAN)
    assert torch.allclose(predict(made, x), predict(subject, x), atol=1e-5)


@pytest.mark.parametrize("part", ["full", "classifier"])
def test_silenced_filters_stay_silent_while_the_rest_is_tuned(part: str) -> None:
    recipes = [vary(r, {"part": part}) for r in (NONE, TUNE)]
    before, after = (prune(replace(EXACT, recipe=r), blobs(), CLEAN) for r in recipes)
    assert torch.equal(gone(before), gone(after))
    assert int(gone(after).sum()) == 30  # of 32
    assert list(after.net.state_dict()) == list(blobs().net.state_dict())
    layer = last_filters(after)[-1]
    seen: list[Tensor] = []
    handle = after.net.get_submodule(layer).register_forward_hook(lambda *a: seen.append(a[2]))
    after(torch.rand(4, 3, 12, 12))
    handle.remove()
    assert (seen[0][:, gone(after)] == 0).all()
    assert (seen[0][:, ~gone(after)] != 0).any()


def test_tuning_is_that_of_the_pruned_net() -> None:
    """Filters that are gone get no gradient: a huge weight behind one does no harm."""
    (subject, clean), (wild, _) = four(), four()
    head = wild.net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight[:, 0] = 1e3
    recipe = Recipe(epochs=2, batch=20, lr=0.01, pad=0, flip=False, bf16=False)
    remedy = FinePruning(ratio=0.25, tolerance=1.0, recipe=recipe)
    tame, other = (prune(remedy, s, clean).net.get_submodule("last") for s in (subject, wild))
    assert torch.equal(tame.weight, other.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten()),
    ],
    ids=["no convolution", "one that makes the logits"],
)
def test_a_net_without_a_convolution_is_refused(net: nn.Module) -> None:
    _, clean = four()
    with pytest.raises(NotApplicable, match="no convolution before"):
        FinePruning()(Subject(net.eval(), (4, 1, 1), 2), clean, Generator(), Run())
