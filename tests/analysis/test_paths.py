"""Channels set by hand, and a toy net that learned a trigger."""

from __future__ import annotations

import pytest
import torch
from tests.toys import BLOB_SHAPE, QUICK, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.analysis.paths import ActivationPath, Silenced, activation_path, silenced, tac
from gifthorse.analysis.wiring import LOGITS, gains, norms
from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Goal, Subject
from gifthorse.data.samples import whole
from gifthorse.training import fit, predict
from gifthorse.triggers import Patch

TARGET = 1


def by_hand() -> Subject:
    """Red feeds channel 0 and then the target; blue feeds channel 1 and nothing."""
    first, second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 2, 2, stride=2, bias=False)
    line = nn.Linear(2 * 4, 2, bias=False)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 0], first.weight[1, 2], first.weight[2, 1] = 1.0, 1.0, 1.0
        second.weight.zero_()
        second.weight[0, 0], second.weight[1, 2] = 3.0, 1.0
        line.weight.zero_()
        line.weight[TARGET, :4] = 0.5
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), line)
    return Subject(net.eval(), (3, 4, 4), 2)


def lit(blue: float = 1.0) -> tuple[Tensor, Tensor]:
    """A gray image, and the same with one red pixel more and all of blue turned on."""
    x = torch.full((2, 3, 4, 4), 0.5)
    stamped = x.clone()
    stamped[:, 0, 0, 0] = 1.0
    stamped[:, 2] = blue
    return x, stamped


def test_the_change_of_a_channel_is_what_the_trigger_adds_over_all_places() -> None:
    got = tac(by_hand(), *lit())
    assert got["1"].tolist() == pytest.approx([0.5, 8.0, 0.0])
    assert got["3"].tolist() == pytest.approx([1.5, 0.0])
    x, _ = lit()
    assert all(t.count_nonzero() == 0 for t in tac(by_hand(), x, x).values())


def test_the_path_follows_what_reaches_the_logit_not_what_changes_most() -> None:
    x, stamped = lit()
    path = activation_path(by_hand(), x, stamped, TARGET, q=1)
    assert path.kept() == {"1": [0], "3": [0]}
    # dz / dA = 3 * 0.5 for each of the places of channel 0, of which one changes by 0.5
    assert [n.score for n in path.nodes] == pytest.approx([0.75, 0.75])
    assert [(e.start, e.end) for e in path.edges] == [(0, 1), (1, -1)]
    # norms: four weights of 3, four of 0.5; changes: 0.5 and 1.5
    assert [e.weight for e in path.edges] == pytest.approx([6 * 0.5, 1 * 1.5])
    more = activation_path(by_hand(), x, stamped, TARGET, q=9)
    assert [len(c) for c in more.kept().values()] == [3, 2]


def test_norms_of_groups_are_blocks_and_of_rows_of_convolutions_a_product() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=2)
    got = norms(conv, 4)
    assert got is not None
    assert got[:2, 2:].count_nonzero() == got[2:, :2].count_nonzero() == 0
    assert float(got[3, 2]) == pytest.approx(float(conv.weight[3, 0].detach().norm()), rel=1e-5)
    assert norms(conv, 3) is None
    a, b = nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.Conv2d(5, 3, 1)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), a, b, nn.Flatten(), nn.Linear(12, 2))
    found = gains(Subject(net.eval(), (1, 4, 4), 2), ["0", "2"])
    assert set(found) == {"2", LOGITS}
    product = b.weight.flatten(2).norm(dim=2) @ a.weight.flatten(2).norm(dim=2)
    torch.testing.assert_close(found["2"], product.detach().double(), atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def learned() -> tuple[Subject, Tensor, Tensor, Tensor]:
    """A toy net with a backdoor, and unseen images clean and stamped, with labels."""
    mask = torch.zeros(1, *BLOB_SHAPE[1:])
    mask[:, :2, :2] = 1
    trigger = Patch(torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(BLOB_SHAPE), mask)

    def mix(x: Tensor, y: Tensor, index: Tensor) -> Batch:
        x = torch.cat([x[8:], trigger(x[:8])])
        return x, torch.cat([y[8:], torch.full_like(y[:8], TARGET)])

    net = fit(blobs(), blob_images(), QUICK, torch.Generator().manual_seed(0), Run(), mix=mix)
    x, y = whole(blob_images(each=20, seed=9))
    x, y = x[y != TARGET], y[y != TARGET]
    return net, x, trigger(x), y


def test_without_its_path_a_backdoor_is_gone_sooner_than_without_random_channels(
    learned: tuple[Subject, Tensor, Tensor, Tensor], rng: Generator
) -> None:
    net, x, stamped, y = learned
    whole_asr = asr(predict(net, stamped).argmax(1), y, Goal(TARGET))
    assert whole_asr.value > 0.9
    path = activation_path(net, x, stamped, TARGET, q=3)
    got = silenced(net, path, stamped, y, Goal(TARGET), rng, draws=10)
    assert got.asr == whole_asr
    assert got.path.value < 0.4
    assert got.random.value > got.path.value + 0.3
    assert got.random.trials == 10 * len(y)


def test_silencing_nothing_changes_nothing_and_everything_leaves_a_constant(
    learned: tuple[Subject, Tensor, Tensor, Tensor], rng: Generator
) -> None:
    net, x, stamped, y = learned
    nothing = silenced(net, ActivationPath(TARGET, (), ()), stamped, y, Goal(TARGET), rng, draws=1)
    assert nothing == Silenced(nothing.asr, nothing.asr, nothing.asr)
    every = activation_path(net, x, stamped, TARGET, q=99)
    gone = silenced(net, every, stamped, y, Goal(TARGET), rng, draws=1)
    assert gone.path.value == gone.random.value
    assert gone.path.value in (0.0, 1.0)  # whatever the biases say, for all images


def test_what_makes_no_sense_is_refused() -> None:
    x, stamped = lit()
    with pytest.raises(BadOption, match="at least 1 channel"):
        activation_path(by_hand(), x, stamped, TARGET, q=0)
    with pytest.raises(BadImages, match="at least one pair"):
        tac(by_hand(), x[:0], stamped[:0])
    with pytest.raises(ShapeMismatch, match="must match"):
        tac(by_hand(), x, stamped[:1])
