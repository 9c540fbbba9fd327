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
from gifthorse.core.types import Candidate, Goal, Hunt, Inverter, Samples, Session, Subject
from gifthorse.data.samples import Subset, whole
from gifthorse.inversion import INVERTERS
from gifthorse.search import Exhaustive

FIGURES = ("sizes", "success", "robustness", "landscape", "histogram", "curves")
METHODS = ("pixel_clip", "neural_cleanse_baseline", "uap")


@dataclass(frozen=True)
class Comparison:
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
        points: Grid points a side of a landscape; it costs their square of forward passes over
            all search images, for each method.
    """

    goals: tuple[Goal, ...] = ()
    methods: tuple[str, ...] = METHODS
    figures: tuple[str, ...] = FIGURES
    options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    seed: int = 0
    detail: int = 1
    points: int = 51


@dataclass(frozen=True, eq=False)
class Inverted:
    """What a method found.

    Attributes:
        hunt: The search at its end.
        best: One candidate a goal.
        runs: For each goal, image-steps and size of the best trigger whenever it changed.
        spent: Image-steps and seconds of each goal, `(2, A)`; they add up to those of the search.
        stopped: Why the session stopped it; empty if it came to its end.
    """

    hunt: Hunt
    best: tuple[Candidate, ...]
    runs: list[list[tuple[float, float]]]
    spent: Tensor
    stopped: str


def inverters(comparison: Comparison) -> dict[str, Inverter]:
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
    if comparison.rounds is not None and comparison.rounds < 1:
        raise BadOption(f"rounds must be 1 or more; got {comparison.rounds}")
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


def _capped(method: Inverter, rounds: int | None) -> Inverter:
    own = describe(method).get("pace.rounds")
    return (
        method if rounds is None or own is None else vary(method, {"pace.rounds": min(rounds, own)})
    )


def seeded(comparison: Comparison) -> Generator:
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
        counts = [int(goal.meant(y).sum()) for y in labels]
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
    comparison: Comparison,
    session: Session,
) -> Inverted:
    """Search all goals in one batch until they settle or the session is over.

    What a round costs is shared by the goals that moved in it.
    """
    clock, stopped = time.monotonic(), ""
    hunt = method(subject, search, comparison.goals, seeded(comparison))

    def so_far() -> Tensor:
        return torch.tensor([hunt.image_steps, time.monotonic() - clock], dtype=torch.float64)

    arms, total, before = len(comparison.goals), so_far(), hunt.standing
    spent = (total / arms)[:, None].repeat(1, arms)
    session.spend(total[0].item())
    runs: list[list[tuple[float, float]]] = [[] for _ in comparison.goals]
    longest = getattr(getattr(method, "pace", None), "rounds", 0)
    for standing in Exhaustive()(hunt):
        moved, now = (standing.rounds > before.rounds).double().cpu(), so_far()
        spent += (now - total)[:, None] * moved / moved.sum().clamp(min=1)
        session.spend((now - total)[0].item())
        # A bounded change may be as large as the image, so its size alone does not say it is there.
        there = getattr(hunt, "feasible", standing.size != before.size)
        for arm, size in enumerate(standing.size.tolist()):
            if there[arm] and (not runs[arm] or runs[arm][-1][1] != size):
                runs[arm].append((spent[0, arm].item(), size))
        done, total, before = int(standing.rounds.max()), now, standing
        ready, least = int(hunt.settled.sum()), standing.size.min().item()
        words = f"{name}: {ready} of {arms} done, smallest {least:.0f} px"
        session.report(done, longest, words)
        stopped = session.over
        if stopped or (comparison.rounds is not None and done >= comparison.rounds):
            break
    best = hunt.best
    for run, candidate, steps in zip(runs, best, spent[0].tolist(), strict=True):
        if candidate.feasible and (not run or run[-1][0] < steps):
            run.append((steps, candidate.size))  # the end of the run
    return Inverted(hunt, best, runs, spent, stopped)
