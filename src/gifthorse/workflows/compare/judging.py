"""How good a trigger is on images that no search has used, and what lies around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Generator

from gifthorse.analysis import (
    align_size,
    grid,
    landscape,
    local_minima,
    pixels,
    ranking,
    robustness,
    success_over_size,
    top_k,
)
from gifthorse.core.tensors import STEP, to_box
from gifthorse.core.types import Goal, Inversion, Rate, Samples, Subject, Trigger
from gifthorse.data.samples import whole
from gifthorse.search import BoundedChange, MaskPattern, OneVariable, Parametrization, Search
from gifthorse.search.parametrizations.masks import Parts, SignedPixels
from gifthorse.triggers import Additive, Patch
from gifthorse.workflows.compare.inverting import ComparisonConfig, Inverted, seeded

Row: TypeAlias = dict[str, Any]  # plain data: one goal, one method
View: TypeAlias = Callable[[], Row | None]  # makes a landscape, None where there is none

MEASURED: tuple[str, ...] = ("pixels", "asr", "smallest", "asr_at_smallest", "needed", "strengths")
MEASURED += ("by_source", "by_source_at_smallest", "robustness", "robustness_at_smallest")
MEASURED += ("by_size", "landscape")
WORKS = 0.5  # success on the search images from which on a trigger sets the size for the others
CHUNK = 512  # images in one forward


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures triggers on images that no search has used.

    Attributes:
        subject: The classifier.
        search: The images that the searches used; landscapes are over them.
        unseen: The others.
        comparison: What is asked.
    """

    subject: Subject
    search: Samples
    unseen: Samples
    comparison: ComparisonConfig

    def rows(
        self, number: int, found: Mapping[str, Trigger], inverted: Mapping[str, Inverted]
    ) -> list[Row]:
        """Return one row a method for a goal; what is not measured is None, as landscapes are."""
        goal = self.comparison.goals[number]
        success = {name: self._by_size(trigger, goal) for name, trigger in found.items()}
        works = [n for n in found if inverted[n].best[number].asr >= WORKS] or list(found)
        smallest = min((pixels(found[name]) for name in works), default=0)
        rows: list[Row] = []
        for name, inversion in inverted.items():
            best = inversion.best[number]
            row = {"method": name, "goal": number, **asdict(goal), "feasible": best.feasible}
            row |= {"size": best.size, "generation_asr": best.asr, "rounds": best.rounds}
            row |= {"image_steps": inversion.spent[0, number].item()}
            row |= {"curve": [list(point) for point in inversion.runs[number]]}
            row |= dict.fromkeys(MEASURED)
            if best.feasible:
                row |= self._measured(best.trigger, goal, smallest)
                row["asr"] = asdict(list(success[name].values())[-1])
                row["needed"] = {
                    other: _first(success[name], list(of.values())[-1].value)
                    for other, of in success.items()
                }
                if self._closely(number, "histogram"):
                    row["by_size"] = [[k, asdict(rate)] for k, rate in success[name].items()]
            rows.append(row)
        return rows

    def views(self, number: int, inverted: Mapping[str, Inverted]) -> list[View | None]:
        """Return what draws the landscape of each method for a goal, where one is asked for."""
        if not self._closely(number, "landscape"):
            return [None] * len(inverted)
        return [
            partial(self._landscape, i.inversion, number, best.trigger)
            if (best := i.best[number]).feasible
            else None
            for i in inverted.values()
        ]

    def _closely(self, number: int, figure: str) -> bool:
        return number < self.comparison.detail and figure in self.comparison.figures

    def _by_size(self, trigger: Trigger, goal: Goal) -> dict[int, Rate]:
        """Return success by pixels kept, at the sizes that `align_asr` tries; the last is whole."""
        strength = ranking(trigger)
        strong = max(1, int((strength > 0).sum()))
        sizes = [k for k in grid(strength.numel()) if k < strong] + [strong]
        rates = success_over_size(self.subject, trigger, goal, self.unseen, sizes, chunk=CHUNK)
        return dict(zip(sizes, rates, strict=True))

    def _measured(self, trigger: Trigger, goal: Goal, smallest: int) -> Row:
        """Return what is measured of one trigger by itself."""
        strength, figures_wanted = ranking(trigger).flatten(), self.comparison.figures
        bins = (strength[strength >= STEP - 1e-6] * 10).long().clamp(0, 9)
        cut = align_size(self.subject, trigger, goal, self.unseen, smallest)
        row = {
            "pixels": pixels(trigger),
            "smallest": smallest,
            "asr_at_smallest": asdict(cut),
            "strengths": bins.bincount(minlength=10).tolist(),
        }
        if "success" in figures_wanted:
            row["by_source"] = self._by_source(trigger, goal, len(strength))
            row["by_source_at_smallest"] = self._by_source(trigger, goal, smallest)
        if "robustness" in figures_wanted:
            row["robustness"] = self._robust(trigger, goal)
            row["robustness_at_smallest"] = self._robust(top_k(trigger, smallest), goal)
        return row

    def _by_source(self, trigger: Trigger, goal: Goal, size: int) -> Row:
        """Return success by class of the stamped images, of the strongest pixels."""
        labels = whole(self.unseen)[1]
        pairs = [Goal(goal.target, s) for s in labels[goal.applies_to(labels)].unique().tolist()]
        rates = (align_size(self.subject, trigger, pair, self.unseen, size) for pair in pairs)
        return {str(pair.source): asdict(rate) for pair, rate in zip(pairs, rates, strict=True)}

    def _robust(self, trigger: Trigger, goal: Goal) -> Row:
        rates = robustness(self.subject, trigger, goal, self.unseen, chunk=CHUNK)
        return {view: asdict(rate) for view, rate in rates.items()}

    def _landscape(self, inversion: Inversion, arm: int, trigger: Trigger) -> Row | None:
        """Return the surfaces around the stored trigger; None if it has no such variables."""
        origin = raw(inversion.form, trigger) if isinstance(inversion, Search) else None
        if not isinstance(inversion, Search) or origin is None:
            return None
        found = landscape(
            lambda variables: inversion.losses(arm, variables),
            origin,
            seeded(self.comparison),
            points=self.comparison.points,
            chunk=CHUNK
            // max(1, int(inversion.goals[arm].applies_to(whole(self.search)[1]).sum())),
        )
        return {
            "axis": found.axis.tolist(),
            "loss": found.loss.tolist(),
            "cross_entropy": found.cross_entropy.tolist(),
            "penalty": found.penalty.tolist(),
            "gap": found.gap,
            "local_minima": {
                "loss": local_minima(found.loss),
                "cross_entropy": local_minima(found.cross_entropy),
            },
        }


def _first(success: Mapping[int, Rate], reference: float) -> int | None:
    return next((k for k, rate in success.items() if rate.value >= reference), None)


def raw(form: Parametrization, trigger: Trigger) -> Parts | None:
    """Return variables of a form, without an arm dimension, that decode to a stored trigger.

    None for forms whose variables cannot be worked out from a trigger, as weights of a generator.

    Example:
        >>> import torch
        >>> raw(SignedPixels("clip"), Additive(torch.tensor([[[0.5, -0.25]]])))
        (tensor([[[0.5000, 0.0000]]]), tensor([[[0.0000, 0.2500]]]))
    """
    if isinstance(form, MaskPattern) and isinstance(trigger, Patch):
        return to_box(trigger.mask), to_box(trigger.pattern)
    if isinstance(form, BoundedChange) and isinstance(trigger, Additive):
        return (trigger.delta,)
    if isinstance(form, SignedPixels | OneVariable) and isinstance(trigger, Additive):
        signs = trigger.delta.relu(), (-trigger.delta).relu()
        return form.restart(signs, signs, Generator())
    return None
