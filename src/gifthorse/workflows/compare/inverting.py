"""Which methods search which triggers, and how far each came with what work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadImages, BadOption, UnknownMethod
from gifthorse.core.options import describe, suggestion, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Goal, Inversion, Inverter, Progress, Samples, Subject
from gifthorse.data.samples import Subset, whole
from gifthorse.inversion import INVERTERS
from gifthorse.search import Exhaustive, finish

FIGURES = ("sizes", "success", "robustness", "landscape", "histogram", "curves")
METHODS = ("pixel_clip", "neural_cleanse_baseline", "uap")


@dataclass(frozen=True)
class ComparisonConfig:
    """Which methods are compared, on which goals, in which respects.

    Attributes:
        goals: What triggers are searched for.
        methods: Names of inverters; figures hold the first against the second.
        figures: Which comparisons are made and drawn, of `FIGURES`.
        options: Changes of options by dotted name, for all methods that have them; a name led by
            a method's, such as `uap.eps`, is for that method alone.
        rounds: Most rounds that any method gets; None leaves it to the methods.
        seed: Seed of the split, of every search and of every landscape.
        detail: For how many goals, from the first on, single triggers are looked at closely:
            landscape, success over size, and a figure of their robustness.
        points: Grid points a side of a landscape, odd; it costs their square of forward passes
            over all search images, for each method.
    """

    goals: tuple[Goal, ...] = ()
    methods: tuple[str, ...] = METHODS
    figures: tuple[str, ...] = FIGURES
    options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    seed: int = 0
    detail: int = 1
    points: int = 15


@dataclass(frozen=True, eq=False)
class Inverted:
    """What a method found.

    Attributes:
        inversion: The search at its end.
        best: One candidate a goal.
        runs: For each goal, image-steps and size of the best trigger whenever it changed.
        spent: Image-steps and seconds of each goal, `(2, A)`; they add up to those of the search.
        stopped: Why the run stopped it; empty if it came to its end.
    """

    inversion: Inversion
    best: tuple[Candidate, ...]
    runs: list[list[tuple[float, float]]]
    spent: Tensor
    stopped: str


def inverters(comparison: ComparisonConfig) -> dict[str, Inverter]:
    """Return the methods of a comparison with its options.

    Raises:
        UnknownMethod: If a method or a figure is unknown.
        BadOption: If no method has an option, or a value does not fit.
    """
    for kind, given, known in (
        ("inverter", comparison.methods, INVERTERS),
        ("figure", comparison.figures, FIGURES),
    ):
        for name in given:
            if name not in known:
                raise UnknownMethod.among(kind, name, known)
    _check_numbers(comparison)
    able = {name: set(describe(INVERTERS[name])) for name in comparison.methods}
    changes: dict[str, dict[str, Any]] = {name: {} for name in able}
    for option, value in comparison.options.items():
        head, _, rest = option.partition(".")
        alone = head in able and rest != ""
        some = [head] if alone else [name for name in able if option in able[name]]
        for name in some:
            changes[name][rest if alone else option] = value
        if not some:
            hint = suggestion(option, set().union(*able.values()))
            more = f": {hint}" if hint else ""
            raise BadOption(f"none of {', '.join(able)} has an option {option}{more}")
    varied = {name: vary(INVERTERS[name], changed) for name, changed in changes.items()}
    return {name: _capped(method, comparison.rounds) for name, method in varied.items()}


def _check_numbers(comparison: ComparisonConfig) -> None:
    if comparison.rounds is not None and comparison.rounds < 1:
        raise BadOption(f"rounds must be 1 or more; got {comparison.rounds}")
    if comparison.points < 3 or comparison.points % 2 == 0:
        raise BadOption(
            "points of a landscape must be odd, so that the trigger is one of them, and 3 or more; "
            f"got {comparison.points}"
        )


def _capped(method: Inverter, rounds: int | None) -> Inverter:
    own = describe(method).get("config.rounds")
    return (
        method
        if rounds is None or own is None
        else vary(method, {"config.rounds": min(rounds, own)})
    )


def seeded(comparison: ComparisonConfig) -> Generator:
    """Return a generator; every part of a comparison has one like it, whatever else is compared."""
    return Generator().manual_seed(comparison.seed)


def check(classes: int, parts: Sequence[Subset], goals: Sequence[Goal]) -> None:
    """Refuse goals that there are no classes or no images for."""
    if not goals:
        raise BadOption("there is nothing to compare: give at least one goal")
    labels = [whole(part)[1] for part in parts]
    for goal in goals:
        for k in (goal.target, goal.source):
            if k is not None and not 0 <= k < classes:
                raise BadOption(f"there is no class {k}: the model has classes 0 to {classes - 1}")
        if goal.source == goal.target:
            raise BadOption(f"a trigger from class {goal.source} must lead to another class")
        counts = [int(goal.applies_to(y).sum()) for y in labels]
        if not all(counts):
            who = "other classes" if goal.source is None else f"class {goal.source}"
            raise BadImages(
                f"too few clean images of {who} to reach class {goal.target} from: there are "
                f"{sum(counts)}, and it takes two or more, some to search with and some to judge by"
            )


def invert(
    name: str,
    method: Inverter,
    subject: Subject,
    search: Samples,
    comparison: ComparisonConfig,
    run: Run,
) -> Inverted:
    """Search all goals in one batch until they settle or the run is over.

    What a round costs is shared by the goals that moved in it.
    """
    inversion = method(subject, search, comparison.goals, seeded(comparison))
    meter = _Shares(inversion, len(comparison.goals))
    longest = getattr(getattr(method, "config", None), "rounds", 0)
    stopped = finish(
        inversion, Exhaustive(), run, rounds=comparison.rounds, longest=longest, watch=meter
    )
    runs, spent = meter.runs, meter.spent
    best = inversion.best
    for trail, candidate, steps in zip(runs, best, spent[0].tolist(), strict=True):
        if candidate.feasible and (not trail or trail[-1][0] < steps):
            trail.append((steps, candidate.size))  # the end of the run
    return Inverted(inversion, best, runs, spent, stopped)


class _Shares:
    """What each goal cost so far, and how its trigger shrank over that.

    Attributes:
        spent: Image-steps and seconds of every goal, `(2, A)`.
        runs: Image-steps and size wherever the size changed, by goal.
    """

    def __init__(self, inversion: Inversion, arms: int) -> None:
        self._hunt, self._clock = inversion, time.monotonic()
        self._total, self._before = self._so_far(), inversion.progress
        self.spent = (self._total / arms)[:, None].repeat(1, arms)
        self.runs: list[list[tuple[float, float]]] = [[] for _ in range(arms)]

    def __call__(self, progress: Progress) -> None:
        """Share what a round cost among the goals that moved in it."""
        moved, now = (progress.rounds > self._before.rounds).double().cpu(), self._so_far()
        self.spent += (now - self._total)[:, None] * moved / moved.sum().clamp(min=1)
        # A bounded change may be as large as the image, so its size alone does not say it is there.
        there = getattr(self._hunt, "feasible", progress.size != self._before.size)
        for arm, size in enumerate(progress.size.tolist()):
            trail = self.runs[arm]
            if there[arm] and (not trail or trail[-1][1] != size):
                trail.append((self.spent[0, arm].item(), size))
        self._total, self._before = now, progress

    def _so_far(self) -> Tensor:
        seconds = time.monotonic() - self._clock
        return torch.tensor([self._hunt.image_steps, seconds], dtype=torch.float64)
