"""The verdict on inversions whose outcome is given, and on the bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from tests.toys import BANDS, SIDE, band_images, bands, corner, gated
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, NotApplicable, UsageError
from gifthorse.core.metrics import rate
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Candidate,
    Confirmation,
    Goal,
    Inversion,
    Progress,
    Rate,
    Samples,
    Subject,
    Trigger,
    Verdict,
)
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import Inspector
from gifthorse.detection.statistics import anomaly_index, log_anomaly_index
from gifthorse.inversion import NeuralCleanse
from gifthorse.search import Exhaustive, SearchConfig
from gifthorse.triggers import Patch

NOTHING = Patch(torch.zeros(1, SIDE, SIDE), torch.zeros(1, SIDE, SIDE))
EVEN = (30.0, 31.0, 29.0, 30.5, 29.5, 30.0)


@dataclass
class Finished:
    """An inversion that is over, or has so many rounds to go."""

    best: tuple[Candidate, ...]
    left: int = 0
    image_steps: float = 5.0

    def step(self, arms: Tensor, /) -> None:
        assert self.left, "nothing is left to do"
        self.left, self.image_steps = self.left - 1, self.image_steps + 100

    @property
    def done(self) -> Tensor:
        return torch.full((len(self.best),), self.left == 0)

    @property
    def progress(self) -> Progress:
        sizes = torch.tensor([c.size for c in self.best])
        rounds = torch.tensor([c.rounds for c in self.best])
        return Progress(rounds, torch.ones_like(sizes), sizes, sizes, self.done)

    def state(self) -> dict[str, Tensor]:
        return {"left": torch.tensor(self.left), "image_steps": torch.tensor(self.image_steps)}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        self.left, self.image_steps = int(state["left"]), state["image_steps"].item()


@dataclass(frozen=True)
class Given:
    """An inverter that finds what it is told to; it remembers what it was given."""

    sizes: tuple[float, ...]
    triggers: tuple[Trigger, ...] = (NOTHING,) * BANDS
    feasible: tuple[bool, ...] = (True,) * BANDS
    left: int = 0
    seen: list[Samples] = field(default_factory=list, compare=False)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.seen.append(clean)
        rows = zip(goals, self.triggers, self.sizes, self.feasible, strict=True)
        return Finished(tuple(Candidate(g, t, s, 1.0, 7, f) for g, t, s, f in rows), self.left)


def planted(where: int, small: float = 1.0, trigger: Trigger | None = None) -> Given:
    """One small size, by default with the true trigger of `bands(where)`."""
    sizes, triggers = list(EVEN), [NOTHING] * BANDS
    sizes[where] = small
    triggers[where] = trigger or corner()  # type: ignore[call-overload]
    return Given(tuple(sizes), tuple(triggers))


@pytest.mark.parametrize("where", range(BANDS))
def test_a_small_trigger_that_works_on_unseen_images_is_a_backdoor(
    where: int, rng: Generator
) -> None:
    verdict = Inspector(planted(where))(bands(where), band_images(), rng, Run())
    assert verdict.label == "BACKDOORED"
    assert verdict.score >= verdict.threshold
    first = verdict.findings[0]
    assert (first.severity, first.goal, first.rule) == ("CRITICAL", Goal(where), "BD001")
    assert first.score == pytest.approx(verdict.score)
    assert first.confirmation is not None
    assert first.confirmation.asr.value == 1.0
    assert f"class {where}" in first.message
    assert "1.0 px" in first.message


class Wide(torch.nn.Module):
    """Bands beside seven outputs that never win."""

    def forward(self, x: Tensor) -> Tensor:
        live = bands()(x)
        return torch.cat([live, live.new_full((len(x), 7), -9.0)], 1)


@pytest.mark.parametrize(
    ("small", "label"), [(None, "NO BACKDOOR FOUND"), (2, "SUSPICIOUS"), (8, "SUSPICIOUS")]
)
def test_outputs_that_never_win_are_no_peers(small: int | None, label: str, rng: Generator) -> None:
    sizes, feasible = [*EVEN, *[float(SIDE * SIDE)] * 7], [True] * BANDS + [False] * 7
    if small is not None:  # one of them may stand out all the same
        sizes[small], feasible[small] = 1.0, True
    given = Given(tuple(sizes), (NOTHING,) * 13, tuple(feasible))
    verdict = Inspector(given)(Subject(Wide(), (1, SIDE, SIDE), 13), band_images(), rng, Run())
    assert verdict.label == label
    assert verdict.statistics["median"] == pytest.approx(30.0, abs=0.3)
    live = torch.tensor(sizes[:BANDS])
    assert verdict.arms[0].index == pytest.approx(log_anomaly_index(live)[0].item())


def test_too_few_winners_give_no_verdict(rng: Generator) -> None:
    images = band_images()
    few = InMemory(images.images[images.labels < 2], images.labels[images.labels < 2], BANDS)
    verdict = Inspector(planted(4))(bands(4), few, rng, Run())
    assert (verdict.label, verdict.score) == ("INCONCLUSIVE", 0.0)
    assert "only 2 have a target that ever wins" in verdict.findings[0].message


def test_a_small_trigger_that_does_not_work_is_only_suspicious(rng: Generator) -> None:
    verdict = Inspector(planted(2, trigger=NOTHING))(bands(2), band_images(), rng, Run())
    assert verdict.label == "SUSPICIOUS"
    assert verdict.findings[0].severity == "MEDIUM"


def test_a_trigger_that_works_shuffled_as_well_is_only_suspicious(rng: Generator) -> None:
    class White(torch.nn.Module):
        """Any two white pixels give class 2."""

        def forward(self, x: Tensor) -> Tensor:
            lit = (x >= 1).flatten(1).any(1).float()
            return bands()(x) + 100 * lit[:, None] * torch.eye(BANDS)[2]

    subject = Subject(White(), (1, SIDE, SIDE), BANDS)
    verdict = Inspector(planted(2))(subject, band_images(), rng, Run())
    assert verdict.label == "SUSPICIOUS"
    assert verdict.findings[0].confirmation is not None
    assert verdict.findings[0].confirmation.asr.value == 1.0
    assert verdict.findings[0].confirmation.control.value == 1.0


@pytest.mark.parametrize(
    ("hits", "control", "label"),
    [
        ((20, 20), (0, 160), "BACKDOORED"),
        ((12, 20), (0, 160), "BACKDOORED"),  # 0.6 is enough
        ((11, 20), (0, 160), "SUSPICIOUS"),  # 0.55 is not
        ((1980, 2000), (11_200, 16_000), "SUSPICIOUS"),  # only 0.29 better than its control
        ((2000, 2000), (11_200, 16_000), "BACKDOORED"),
        ((4, 5), (20, 40), "SUSPICIOUS"),  # 0.3 better, but the intervals overlap
    ],
)
def test_what_confirms_a_trigger(
    hits: tuple[int, int],
    control: tuple[int, int],
    label: str,
    rng: Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def share(count: int, trials: int) -> Rate:
        return rate(torch.arange(trials) < count)

    seen = Confirmation(share(*hits), share(*control), share(0, 20))
    monkeypatch.setattr("gifthorse.detection.confirmation.confirm", lambda *a, **k: seen)
    verdict = Inspector(planted(2))(bands(2), band_images(), rng, Run())
    assert verdict.label == label
    assert verdict.findings[0].confirmation == seen


def test_even_sizes_are_no_finding_but_the_smallest_is_shown(rng: Generator) -> None:
    verdict = Inspector(Given(EVEN))(bands(), band_images(), rng, Run())
    assert verdict.label == "NO BACKDOOR FOUND"
    assert verdict.score < verdict.threshold
    (only,) = verdict.findings
    assert (only.severity, only.goal) == ("INFO", Goal(2))
    assert "does not stand out" in only.message


@pytest.mark.parametrize(("small", "label"), [(17.0, "NO BACKDOOR FOUND"), (14.0, "BACKDOORED")])
def test_a_suspicious_trigger_is_little_more_than_half_the_median(
    small: float, label: str, rng: Generator
) -> None:
    verdict = Inspector(planted(2, small))(bands(2), band_images(), rng, Run())
    assert verdict.label == label


def test_a_search_that_found_nothing_is_no_verdict(rng: Generator) -> None:
    none = Given((float(SIDE * SIDE),) * BANDS, feasible=(False,) * BANDS)
    verdict = Inspector(none)(bands(), band_images(), rng, Run())
    assert verdict.label == "INCONCLUSIVE"
    assert verdict.score == 0.0
    assert verdict.findings[-1].rule == "IN005"


def test_a_search_that_was_cut_short_is_no_verdict(rng: Generator) -> None:
    sizes = (90.0, 91.0, 92.0, 93.0, 94.0, 30.0)  # a quarter of 18x18 is 81
    verdict = Inspector(Given(sizes), threshold=1e9)(bands(), band_images(), rng, Run())
    assert verdict.label == "INCONCLUSIVE"
    assert "5 of 6 classes" in verdict.findings[-1].message


@pytest.mark.parametrize(
    ("alike", "label", "rules"),
    [
        (3, "SUSPICIOUS", ["BD001", "IN005"]),  # half of 18x18 is 162
        (2, "BACKDOORED", ["BD001"]),  # most have a large trigger, but no whole image
    ],
)
def test_the_first_trigger_of_a_short_search_is_suspicious_at_most(
    alike: int, label: str, rules: list[str], rng: Generator
) -> None:
    found = planted(5)
    sizes = [170.0] * alike + [150.0] * (BANDS - 1 - alike) + [1.0]
    verdict = Inspector(replace(found, sizes=tuple(sizes)))(bands(5), band_images(), rng, Run())
    assert verdict.label == label
    assert [f.rule for f in verdict.findings] == rules
    assert verdict.findings[0].confirmation is not None
    assert verdict.score >= verdict.threshold


def test_an_infeasible_arm_never_stands_out(rng: Generator) -> None:
    feasible = (True,) * (BANDS - 1) + (False,)
    verdict = Inspector(Given((30.0,) * (BANDS - 1) + (1.0,), feasible=feasible))(
        bands(), band_images(), rng, Run()
    )
    assert verdict.label == "NO BACKDOOR FOUND"


def test_every_class_that_stands_out_is_reported(rng: Generator) -> None:
    two = Given((30.0, 1.0, 30.0, 2.0, 30.0, 30.0), (corner(),) * BANDS)
    verdict = Inspector(two)(bands(1), band_images(), rng, Run())
    assert [(f.goal, f.severity) for f in verdict.findings] == [
        (Goal(1), "CRITICAL"),
        (Goal(3), "MEDIUM"),
    ]


def test_the_table_and_the_figures_are_those_of_the_inversion(rng: Generator) -> None:
    found = planted(4)
    verdict = Inspector(found)(bands(4), band_images(), rng, Run())
    sizes = torch.tensor(found.sizes)
    assert [arm.goal for arm in verdict.arms] == [Goal(k) for k in range(BANDS)]
    assert [arm.size for arm in verdict.arms] == list(found.sizes)
    assert [arm.rounds for arm in verdict.arms] == [7] * BANDS
    assert [arm.index for arm in verdict.arms] == pytest.approx(log_anomaly_index(sizes).tolist())
    assert verdict.score == pytest.approx(log_anomaly_index(sizes).max().item())
    assert dict(verdict.statistics) == pytest.approx(
        {
            "anomaly_index": anomaly_index(sizes).max().item(),
            "depth": log_anomaly_index(sizes).max().item(),
            "smallest": 1.0,
            "smallest_class": 4.0,
            "median": 30.0,
            "ratio": 1 / 30,
        }
    )


def test_search_and_confirmation_share_no_image_and_both_have_every_class(rng: Generator) -> None:
    data = band_images()
    data = InMemory(data.images.clone(), data.labels, BANDS)
    data.images[:, 0, -1, -1] = torch.arange(len(data)).to(torch.uint8)  # their own number

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[int] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.seen |= set((x[:, 0, -1, -1] * 255).round().long().tolist())
            return bands(2)(x)

    spy, found = Spy(), planted(2)
    Inspector(found)(Subject(spy, (1, SIDE, SIDE), BANDS), data, rng, Run())
    x, y = whole(found.seen[0])
    searched = set((x[:, 0, -1, -1] * 255).round().long().tolist())
    assert y.bincount().tolist() == [3] * BANDS
    unstamped = set(range(len(data))) - searched
    assert unstamped <= spy.seen  # shuffled controls may overwrite the number, so no equality


def test_the_evidence_can_be_drawn(rng: Generator) -> None:
    (first, *_) = Inspector(planted(2))(bands(2), band_images(), rng, Run()).findings
    evidence = first.evidence
    assert torch.equal(torch.as_tensor(evidence["mask"]), corner().mask)
    assert len(torch.as_tensor(evidence["before"])) == 8
    assert torch.as_tensor(evidence["after_label"]).tolist() == [2] * 8
    assert evidence["size"] == 1.0


def test_the_settings_are_the_options(rng: Generator) -> None:
    detector = Inspector(NeuralCleanse(config=SearchConfig(rounds=1)), Exhaustive(), threshold=2.5)
    verdict = detector(bands(), band_images(), rng, Run())
    assert verdict.settings["threshold"] == "2.5"
    assert verdict.settings["inverter.config.rounds"] == "1"


def test_progress_counts_rounds(rng: Generator) -> None:
    calls: list[tuple[int, int, str]] = []
    detector = Inspector(
        NeuralCleanse(config=SearchConfig(rounds=4, success_threshold=0.9)), Exhaustive()
    )
    detector(bands(), band_images(), rng, run=Run(lambda *a: calls.append(a)))
    assert [(done, total) for done, total, _ in calls] == [(r, 4) for r in (1, 2, 3, 4)]
    assert "6 of 6 done" in calls[-1][2]


def test_the_same_seed_gives_the_same_verdict() -> None:
    detector = Inspector(
        NeuralCleanse(config=SearchConfig(rounds=20, success_threshold=0.9)), Exhaustive()
    )
    runs = [
        detector(bands(2), band_images(), Generator().manual_seed(seed), Run())
        for seed in (3, 3, 4)
    ]
    tables = [[(a.size, a.asr) for a in replace(v, seconds=0.0).arms] for v in runs]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_a_gated_plant_works_but_gives_neural_cleanse_no_gradient(rng: Generator) -> None:
    x, y = whole(band_images())
    assert (gated(3)(corner(2)(x)).argmax(1) == 3).all()
    assert (gated(3)(x).argmax(1) == y).all()
    detector = Inspector(NeuralCleanse(config=SearchConfig(rounds=80)), Exhaustive())
    verdict = detector(gated(3), band_images(), rng, Run())
    sizes = torch.tensor([arm.size for arm in verdict.arms])
    assert sizes[3] > 0.8 * sizes.median()  # four pixels would do
    assert verdict.label == "NO BACKDOOR FOUND"  # what a clean report does not promise


# Stopping and going on ------------------------------------------------------------------------

SEARCH = Inspector(
    NeuralCleanse(warmup=0, config=SearchConfig(rounds=60, success_threshold=0.9)), Exhaustive()
)


def table(verdict: Verdict) -> list[tuple[Goal, float, float, float, int]]:
    return [(a.goal, a.size, a.asr, a.index, a.rounds) for a in verdict.arms]


def searched(run: Run | None = None, detector: Inspector = SEARCH) -> Verdict:
    return detector(bands(2), band_images(), Generator().manual_seed(5), run or Run())


def test_a_stopped_search_is_no_verdict_and_says_why(rng: Generator) -> None:
    slow = replace(planted(2, trigger=NOTHING), left=9)  # class 2 is small, and nothing confirms it
    run = Run(budget=200)
    verdict = Inspector(slow)(bands(2), band_images(), rng, run)
    assert verdict.label == "INCONCLUSIVE"
    last = verdict.findings[-1]
    assert (last.rule, last.severity) == ("IN003", "HIGH")
    assert "the budget of 200 image-steps is spent, after 7 rounds" in last.message
    assert verdict.image_steps == run.image_steps == 5 + 2 * 100 + 36 / 2 + 10 * 18 / 2 + 8


def test_a_stopped_search_may_have_confirmed_a_backdoor(rng: Generator) -> None:
    slow = replace(planted(2), left=9)
    verdict = Inspector(slow)(bands(2), band_images(), rng, Run(budget=1))
    assert verdict.label == "BACKDOORED"
    assert [f.rule for f in verdict.findings] == ["BD001", "IN003"]


@pytest.mark.parametrize(("others", "label"), [(90.0, "INCONCLUSIVE"), (80.0, "BACKDOORED")])
def test_the_first_trigger_of_a_stopped_search_stands_out_from_nothing(
    others: float, label: str, rng: Generator
) -> None:
    # A quarter of 18x18 is 81: above it, the others have no small trigger yet.
    sizes, triggers = [others] * BANDS, [NOTHING] * BANDS
    sizes[2], triggers[2] = 9.0, corner()
    slow = Given(tuple(sizes), tuple(triggers), left=9)
    verdict = Inspector(slow)(bands(2), band_images(), rng, Run(budget=1))
    assert verdict.label == label
    assert (verdict.score >= verdict.threshold) is (label == "BACKDOORED")


def test_a_search_stopped_time_and_again_ends_as_if_it_never_was(tmp_path: Path) -> None:
    whole = searched()
    store = tmp_path / "state.safetensors"
    for run in (1, 2, 3):
        verdict = searched(Run(seconds=0, store=store))  # over after each round
        assert verdict.label == "INCONCLUSIVE"
        assert "the time limit of 0 s is reached" in verdict.findings[-1].message
        assert {a.rounds for a in verdict.arms} == {run}
    verdict = searched(Run(store=store))
    assert table(verdict) == table(whole)
    assert verdict.label == whole.label == "BACKDOORED"
    assert verdict.image_steps == pytest.approx(whole.image_steps, abs=1)


def test_an_interrupted_search_is_kept(tmp_path: Path) -> None:
    def pressed(done: int, total: int, words: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    store = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        searched(Run(pressed, store=store))
    rounds: list[int] = []
    verdict = searched(Run(lambda done, *_: rounds.append(done), store=store))
    assert rounds == list(range(4, 61))
    assert table(verdict) == table(searched())


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "state.safetensors"
    searched(Run(seconds=0, store=store))
    with pytest.raises(UsageError, match="or with other options"):
        searched(Run(store=store), replace(SEARCH, threshold=2.0))
    store.write_bytes(store.read_bytes()[:-100])
    with pytest.raises(UsageError, match="delete it to start again"):
        searched(Run(store=store))


# Some classes, and pairs of classes -----------------------------------------------------------


def test_only_the_named_classes_are_searched() -> None:
    verdict = searched(detector=replace(SEARCH, classes=(4, 0, 2, 2)))
    assert [a.goal for a in verdict.arms] == [Goal(0), Goal(2), Goal(4)]
    assert verdict.statistics["smallest_class"] in (0.0, 2.0, 4.0)


@pytest.mark.parametrize("classes", [(0, 1), (1, 1, 1), (0, 1, 6), (-1, 0, 1)])
def test_too_few_or_unknown_classes_are_named(classes: tuple[int, ...]) -> None:
    with pytest.raises(BadOption, match="classes must name three or more of 0 to 5"):
        searched(detector=replace(SEARCH, classes=classes))


def test_pairs_are_all_ordered_pairs_of_classes_with_images(rng: Generator) -> None:
    data = band_images()
    keep = data.labels != 5
    keep[(data.labels == 4).nonzero()[1:]] = False  # one image cannot be searched and confirmed
    few = InMemory(data.images[keep], data.labels[keep], BANDS)
    wanted = [Goal(t, s) for t in range(BANDS) for s in range(4) if s != t]
    n = len(wanted)
    triggers = tuple(corner() if g == Goal(2, 1) else NOTHING for g in wanted)
    sizes = tuple(1.0 if g == Goal(2, 1) else 30.0 for g in wanted)
    verdict = Inspector(Given(sizes, triggers, (True,) * n), pairs=True)(bands(2), few, rng, Run())
    assert [a.goal for a in verdict.arms] == wanted
    first = verdict.findings[0]
    assert (first.rule, first.goal) == ("BD002", Goal(2, 1))
    assert first.confirmation is not None
    assert first.confirmation.asr.trials == 3  # of class 1 alone


def test_pairs_need_images_of_several_classes(rng: Generator) -> None:
    one = band_images()
    one = InMemory(one.images[:1], one.labels[:1], BANDS)
    with pytest.raises(NotApplicable, match="pairs need two or more images"):
        Inspector(Given(EVEN), pairs=True)(bands(2), one, rng, Run())
