"""Natural: the search sees what it should, and the net stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.toys import SIDE, band_images, bands
from torch import Generator, nn

from gifthorse.attacks.natural import Natural
from gifthorse.core.errors import BadOption, Incomplete, NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.data.samples import whole
from gifthorse.inversion import PixelBackdoor
from gifthorse.search import SearchConfig
from gifthorse.training import predict

INVERTER = PixelBackdoor(mode="clip", config=SearchConfig(success_threshold=0.9, rounds=60))


def weighted(planted: int | None = 3) -> Subject:
    """The banded net with a weight, so that there is something that could change."""
    subject = bands(planted)
    subject.net.register_parameter("unused", nn.Parameter(torch.arange(5.0)))
    return subject


def test_it_finds_a_trigger_and_changes_nothing() -> None:
    victim, data, unseen = weighted(), band_images(each=10), band_images(each=4, seed=1)
    made = Natural(INVERTER)(victim, data, Goal(3), Generator().manual_seed(0), Run())
    x, y = whole(unseen)
    assert asr(predict(made.subject, made.trigger(x)).argmax(1), y, Goal(3)).value >= 0.8
    assert made.subject.net is not victim.net
    for subject in (victim, made.subject):
        weights = subject.net.state_dict()
        assert list(weights) == ["unused"]
        assert torch.equal(weights["unused"], torch.arange(5.0))
    assert torch.equal(made.subject(x), victim(x))
    assert made.poisoned is None


class Watched:
    """An inverter that remembers which classes it was shown."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.seen.append(whole(clean)[1].tolist())
        quick = PixelBackdoor(mode="clip", config=SearchConfig(rounds=1, success_threshold=0.0))
        return quick(subject, clean, goals, rng)


def test_the_search_sees_images_of_the_source_or_of_all_but_the_target() -> None:
    watched = Watched()
    for goal in (Goal(3, source=1), Goal(3)):
        Natural(watched, images=20)(
            weighted(), band_images(10), goal, Generator().manual_seed(0), Run()
        )
    assert watched.seen[0] == [1] * 10
    assert len(watched.seen[1]) == 20
    assert set(watched.seen[1]) <= {0, 1, 2, 4, 5}


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    def run(run: Run | None) -> torch.Tensor:
        goal, rng = Goal(3), Generator().manual_seed(0)
        made = Natural(INVERTER)(weighted(), band_images(), goal, rng, run or Run())
        return torch.cat(made.trigger.render())

    expected, store = run(None), tmp_path / "state"
    with pytest.raises(Incomplete, match=r"no trigger was found: the budget of 300 .* is spent"):
        run(Run(store=store, budget=300))
    words: list[str] = []
    again = run(Run(lambda done, total, said: words.append(said), store=store))
    assert torch.equal(again, expected)
    assert 1 < len(words) < 60
    assert words[-1].startswith("1 of 1 done, smallest ")


def test_a_trigger_that_never_worked_is_no_implant() -> None:
    short = PixelBackdoor(mode="clip", config=SearchConfig(success_threshold=1.0, rounds=2))
    with pytest.raises(Incomplete, match="no small trigger: after 2 rounds none sent enough of 50"):
        Natural(short)(weighted(None), band_images(10), Goal(3), Generator().manual_seed(0), Run())


@pytest.mark.parametrize(
    ("goal", "error"),
    [(Goal(9), BadOption), (Goal(3, 3), BadOption), (Goal(3, 5), NotApplicable)],
)
def test_goals_without_images_are_refused(goal: Goal, error: type[Exception]) -> None:
    few = band_images(each=1)
    data = type(few)(few.images[:5], few.labels[:5], few.classes)
    with pytest.raises(error, match="class"):
        Natural(INVERTER)(weighted(), data, goal, Generator(), Run())
    assert data.shape == (1, SIDE, SIDE)
