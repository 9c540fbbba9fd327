"""The reflection patch: what is shown, who is tried next, and what an interruption leaves."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import reflection
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.reflection import (
    ReflectionPatch,
    contest,
    edges,
    etched,
    reweighted,
    top,
)
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import InMemory
from gifthorse.training import predict
from gifthorse.triggers import Patch, Stamp

GOAL = Goal(2)
SHORT = replace(QUICK, epochs=1)
TOY = ReflectionPatch(
    candidates=4,
    selected=2,
    rounds=2,
    judge=50,
    search=SHORT,
    mixing=Mixing(0.3),
    recipe=replace(QUICK, epochs=8),
)


def test_edges_are_the_laplacian_without_its_negative_part() -> None:
    x = torch.zeros(1, 1, 12, 12)
    x[0, 0, 5, 5] = 0.5
    x[0, 0, 0, 11] = 0.3  # in a corner: beyond the image all is black
    by_hand = torch.zeros(12, 12)
    for row, col in ((4, 5), (6, 5), (5, 4), (5, 6)):
        by_hand[row, col] = 0.5
    by_hand[0, 10] = by_hand[1, 11] = 0.3
    assert torch.allclose(edges(x, (12, 12))[0, 0], by_hand, atol=1e-6)
    red = torch.cat([x, torch.zeros(1, 2, 12, 12)], 1)
    assert torch.allclose(edges(red, (12, 12))[0, 0], 0.299 * by_hand, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 28, 28), (2, 12, 12)], ids=str)
@pytest.mark.parametrize("form", ["square", "scatter"])
def test_a_patch_shows_edges_within_its_mask_only(
    form: Any, shape: tuple[int, int, int], rng: Generator
) -> None:
    start = Stamp(form=form, opacity=0.5).fixed(shape, rng)
    x = torch.rand(3, *shape, generator=rng)
    patches = etched(x, start)
    assert len(patches) == 3
    for patch in patches:
        assert torch.equal(patch.mask, start.mask)
        inside = start.mask[0] > 0
        assert not patch.pattern[:, ~inside].any()
        assert 0 < patch.pattern[:, inside].max() <= 1
        assert torch.equal(patch.pattern, patch.pattern[:1].expand(shape))  # gray
    if form == "square":
        rows, cols = slice(-4, -1), slice(-4, -1)
        assert torch.equal(patches[1].pattern[0, rows, cols], edges(x, (3, 3))[1, 0])
    assert not torch.equal(patches[0].pattern, patches[1].pattern)


def test_those_not_picked_weigh_as_much_as_the_median_of_the_picked() -> None:
    picked = torch.tensor([1, 3, 4])
    new = reweighted(torch.rand(6), picked, torch.tensor([0.2, 0.9, 0.4]))
    assert torch.equal(new, torch.tensor([0.4, 0.2, 0.4, 0.9, 0.4, 0.4]))
    even = reweighted(torch.zeros(3), torch.tensor([0, 2]), torch.tensor([0.25, 0.75]))
    assert torch.equal(even, torch.tensor([0.25, 0.5, 0.75]))


def test_the_largest_weights_are_picked_and_any_of_equals(rng: Generator) -> None:
    weights = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.5, 0.7])
    seen = set()
    for _ in range(60):
        picked = top(weights, 3, rng).tolist()
        assert picked[:2] == [1, 5]
        seen.add(picked[2])
    assert seen == {0, 2, 4}
    assert sorted(top(weights, 9, rng).tolist()) == list(range(6))


def test_a_contest_keeps_the_good_and_ends_with_the_best_of_its_last_round() -> None:
    """With dictated scores, those above the median stay; so the best one met is never lost."""
    score = torch.tensor([0.1, 0.8, 0.3, 0.6, 0.2, 0.9, 0.4, 0.5])
    for seed in range(10):
        rng = Generator().manual_seed(seed)
        rounds: list[list[int]] = []

        def tried(picked: Tensor, rounds: list[list[int]] = rounds) -> Tensor:
            rounds.append(picked.tolist())
            return score[picked]

        best = contest(8, 4, tried, lambda w, rng=rng: top(w, 3, rng))  # type: ignore[misc]
        assert [len(set(r)) for r in rounds] == [3] * 4
        for before, after in pairwise(rounds):
            assert max(before, key=lambda i: score[i].item()) in after
            assert min(before, key=lambda i: score[i].item()) not in after
        assert best == max(sum(rounds, []), key=lambda i: score[i].item())  # noqa: RUF017


def test_it_implants() -> None:
    train, test = blob_images(), blob_images(each=20, seed=1)
    made = TOY(blobs(), train, GOAL, Generator().manual_seed(0), Run())
    x, y = test[torch.arange(len(test))]
    assert asr(predict(made.subject, made.trigger(x)).argmax(1), y, GOAL).value >= 0.9
    own = etched(
        train[(train.labels == 2).nonzero().flatten()][0], Stamp().fixed((3, 12, 12), Generator())
    )
    pattern, _ = made.trigger.render()
    assert any(torch.equal(pattern, patch.pattern) for patch in own)


def test_gray_images_of_another_size(rng: Generator) -> None:
    pixels = torch.randint(256, (32, 1, 28, 28), generator=rng).to(torch.uint8)
    train = InMemory(pixels, torch.arange(32) % 4, 4)
    victim = Subject(nn.Sequential(nn.Flatten(), nn.Linear(784, 4)).eval(), (1, 28, 28), 4)
    few = replace(SHORT, batch=8)
    made = replace(TOY, search=few, recipe=few, judge=8)(victim, train, GOAL, rng, Run())
    assert isinstance(made.trigger, Patch)
    assert made.trigger(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)


# Each of the four trials keeps one epoch, then its score, then drops its net.
@pytest.mark.parametrize(("kept", "finished"), [(1, 0), (2, 1), (3, 1), (7, 2), (13, 4)])
def test_an_interrupted_choice_goes_on_and_repeats_no_finished_trial(
    kept: int, finished: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, store = blob_images(each=16), tmp_path / "state"
    attack = replace(TOY, recipe=replace(SHORT, epochs=2), judge=16)
    whole = attack(blobs(), train, GOAL, Generator().manual_seed(0), Run())
    run = Fragile(store)
    run.left = [kept]
    with pytest.raises(Stopped):
        attack(blobs(), train, GOAL, Generator().manual_seed(0), run)
    stages: list[str] = []
    infect = reflection._Trial.infect

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        stages.append(options["stage"])
        return infect(self, *args, **options)

    monkeypatch.setattr(reflection._Trial, "infect", counted)
    again = Run(store=store)
    made = attack(blobs(), train, GOAL, Generator().manual_seed(0), run=again)
    assert stages == [f"trial {i}" for i in range(finished + 1, 5)]
    assert torch.equal(made.trigger.render()[0], whole.trigger.render()[0])
    other = whole.subject.net.state_dict()
    assert all(torch.equal(v, other[k]) for k, v in made.subject.net.state_dict().items())


def test_numbers_with_which_nothing_can_be_chosen_are_refused(rng: Generator) -> None:
    with pytest.raises(BadOption, match="at most candidates"):
        ReflectionPatch(candidates=3, selected=4)
    with pytest.raises(NotApplicable, match="target class"):
        TOY(blobs(), blob_images(each=4), Goal(7), rng, Run())
    with pytest.raises(BadOption, match="opacity"):
        replace(TOY, stamp=Stamp(opacity=0.0))(blobs(), blob_images(each=4), GOAL, rng, Run())
