"""What detectors that recover triggers say about them, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gifthorse.core.stats import median
from gifthorse.core.types import Candidate, Confirmation, Goal
from gifthorse.detection.confirmation import Suspect


def named(goal: Goal) -> str:
    """Return a goal in words.

    Example:
        >>> named(Goal(3, source=1))
        'class 3 from 1'
    """
    return f"class {goal.target}" + (f" from {goal.source}" if goal.source is not None else "")


def rate(seen: Confirmation) -> str:
    """Return how often a trigger works, in words."""
    return f"{seen.asr.value:.0%} of {seen.asr.trials} unseen images"


@dataclass(frozen=True)
class Smaller:
    """A trigger beside those of all goals."""

    best: Sequence[Candidate]

    def __call__(self, suspect: Suspect, seen: Confirmation, works: bool, first: bool) -> str:
        """Return how small a trigger is beside the others, and whether it works."""
        found, k, size = suspect.found, named(suspect.found.goal), f"{suspect.found.size:.1f} px"
        rest = [c.size for c in self.best if c is not found]
        others = f"{median(torch.tensor(rest)).item():.0f}"
        if not suspect.stands_out:
            return (
                f"The smallest trigger is for {k}: {size} beside a median of {others}; it does not "
                "stand out."
            )
        if not works:
            return (
                f"{k.capitalize()} needs only {size} where others need {others} (median), but the "
                f"trigger works on {rate(seen)}, too few to confirm it."
            )
        if first:
            return (
                f"A trigger of {size} sends {rate(seen)} to class {found.goal.target}; the others "
                f"need {others} px (median)."
            )
        return (
            f"{k.capitalize()} is easy to reach too ({size}, {rate(seen)}): often a side effect of "
            "the same backdoor."
        )


def scored(suspect: Suspect, seen: Confirmation, works: bool, first: bool) -> str:
    """Return what the score of a class is, and how its trigger works."""
    stands = suspect.stands_out
    verb = "stands out" if stands else "has the highest score but does not stand out"
    return (
        f"Class {suspect.found.goal.target} {verb} (score {suspect.score:.2f}); a trigger of "
        f"{suspect.found.size:.1f} px sends {rate(seen)} there, a shuffled one "
        f"{seen.control.value:.0%}."
    )


@dataclass(frozen=True)
class Bounded:
    """The smallest trigger of a few goals, beside a bound on its size and its way back.

    Attributes:
        goals: How many goals were searched.
        bound: Pixels below which a trigger is a backdoor's.
        ratio: How much larger the trigger of the reversed pair is; infinite where nobody asked, NaN
            where it should be known and is not.
    """

    goals: int
    bound: float
    ratio: float

    def __call__(self, suspect: Suspect, seen: Confirmation, works: bool, first: bool) -> str:
        """Return how small the trigger is beside the bound, and whether it works."""
        goal, size = named(suspect.found.goal), f"{suspect.found.size:.1f} px"
        limit = f"below the bound of {self.bound:.1f} px"
        if works and not suspect.held:
            back = f"; the way back takes {self.ratio:.0f} times as much"
            back = back if math.isfinite(self.ratio) else ""
            return f"A trigger of {size} sends {rate(seen)} to {goal}, {limit}{back}."
        if suspect.stands_out:
            why = "too few to confirm it"
            if works:
                why = "most other goals have no trigger to compare it with"
            if math.isnan(self.ratio):
                why = "the way back could not be searched to compare"
            return f"{goal.capitalize()} needs only {size}, {limit}: {rate(seen)}, but {why}."
        survived = f"{self.goals} goal{'s were' if self.goals != 1 else ' was'} searched"
        if not suspect.found.feasible:
            return f"{survived}; no trigger was found for any."
        why = f"not {limit}"
        if suspect.found.size < self.bound:
            why = f"{limit}, but it does not stand out from the others"
        if math.isfinite(self.ratio):
            why = f"the way back takes only {self.ratio:.1f} times as much: classes close by nature"
        return f"{survived}; the smallest trigger, for {goal}, has {size}, {why}."


@dataclass(frozen=True)
class Linked:
    """A trigger of one class pair, or of several at once, beside those of all pairs."""

    best: Sequence[Candidate]

    def __call__(self, suspect: Suspect, seen: Confirmation, works: bool, first: bool) -> str:
        """Return what the trigger does, and how small it is."""
        size = f"{suspect.found.size:.1f} px"
        others = f"{median(torch.tensor([c.size for c in self.best])).item():.0f} (median)"
        names = listed_pairs(suspect.goals)
        if not suspect.stands_out:
            return f"The closest is {names}: {size} beside {others}; it does not stand out."
        if not suspect.also:
            verb = "turns" if works else "turns only"
            return (
                f"The pair {names} has a trigger of {size}, where pairs need {others}: it {verb} "
                f"{rate(seen)} of class {suspect.found.goal.source}."
            )
        several = len({goal.target for goal in suspect.goals}) > 1
        kind = "each to a class of its own" if several else "to one class"
        return (
            f"One trigger of {size} turns {len(suspect.goals)} classes, {kind} ({names}): "
            f"{rate(seen)}{'' if works else ', too few to confirm it'}."
        )


def listed_pairs(goals: Sequence[Goal], most: int = 12) -> str:
    """Return class pairs in words, by their sources.

    Example:
        >>> listed_pairs([Goal(3, source=2), Goal(2, source=1)])
        'class 1 -> class 2, class 2 -> class 3'
        >>> listed_pairs([Goal(0, source=s) for s in range(1, 9)], most=2)
        'class 1 -> class 0, class 2 -> class 0 and 6 more'
    """
    ordered = sorted(goals, key=lambda goal: goal.source or 0)
    words = [f"class {goal.source} -> class {goal.target}" for goal in ordered]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def transferred(suspect: Suspect, seen: Confirmation, works: bool, first: bool) -> str:
    """Return how far changes of single images reach, and whether the best works on new ones."""
    k, size = suspect.found.goal.target, f"{suspect.found.size:.1f} px"
    much = f"What turns one image into class {k} turns {suspect.score:.0%} of the others"
    if not suspect.stands_out:
        return f"{much}, not more than half: such changes belong to their images."
    if works:
        return f"{much}; one change of {size} works on {rate(seen)}."
    return f"{much}, but the best of these changes ({size}) works on {rate(seen)} only."
