"""Search triggers with one half of the images, judge them by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from gifthorse.core.options import describe
from gifthorse.core.run import Run
from gifthorse.core.types import Inverter, Samples, Subject
from gifthorse.data.samples import split
from gifthorse.workflows.compare.inverting import (
    ComparisonConfig,
    Inverted,
    check,
    invert,
    inverters,
    seeded,
)
from gifthorse.workflows.compare.judging import Judge, Row, View


@dataclass(frozen=True, eq=False)
class Compared:
    """What came of a comparison.

    Attributes:
        record: Plain data that JSON can hold; the same for the same seed, but for `seconds`.
        triggers: Pattern `(C, H, W)` and strength `(1, H, W)` of every trigger found, by
            `METHOD.SOURCE-to-TARGET.pattern` and `.strength`.
        views: What makes the landscapes that are asked for and not there yet, by row.
    """

    record: dict[str, Any]
    triggers: dict[str, Tensor]
    views: Mapping[int, View] = field(default_factory=dict)


def compare(
    subject: Subject,
    clean: Samples,
    comparison: ComparisonConfig,
    run: Run,
    *,
    names: Sequence[str] = (),
) -> Compared:
    """Search triggers with one half of the clean images, judge them by the other, look around.

    It is `search` and, once that is done, `survey`.

    Args:
        subject: The classifier.
        clean: Clean images with labels.
        comparison: What to compare.
        run: Watches, and may stop the searches.
        names: Class names for the figures.
    """
    return survey(search(subject, clean, comparison, run, names=names), run)


def search(
    subject: Subject,
    clean: Samples,
    comparison: ComparisonConfig,
    run: Run,
    *,
    names: Sequence[str] = (),
) -> Compared:
    """Search triggers with one half of the clean images and judge them by the other.

    Landscapes, which cost far more than all else, are left to `survey`. A run that is over stops
    the search at hand; methods that have not begun are left out.

    Args:
        subject: The classifier.
        clean: Clean images with labels.
        comparison: What to compare.
        run: Watches, and may stop the searches.
        names: Class names for the figures.

    Raises:
        UnknownMethod: If a method or a figure is unknown.
        BadOption: If an option or a class does not exist, or there is no goal.
        BadImages: If a goal has too few clean images.

    Source: Tao et al., PixelBackdoor, CVPR 2022, secs. 5.2 and 5.3, appendices E, F and I.
    """
    methods = inverters(comparison)
    used, unseen = split(clean, 0.5, seeded(comparison))
    check(subject.classes, (used, unseen), comparison.goals)
    inverted: dict[str, Inverted] = {}
    for name, method in methods.items():
        if not inverted or not run.stop_reason:
            inverted[name] = invert(name, method, subject, used, comparison, run)
    rows: list[Row] = []
    views: list[View | None] = []
    triggers: dict[str, Tensor] = {}
    judge = Judge(subject, used, unseen, comparison)
    for number, goal in enumerate(comparison.goals):
        found = {n: i.best[number].trigger for n, i in inverted.items() if i.best[number].feasible}
        views += judge.views(number, inverted)
        rows += judge.rows(number, found, inverted)
        for name, trigger in found.items():
            for part, tensor in zip(("pattern", "strength"), trigger.render(), strict=True):
                triggers[f"{name}.{goal.tag}.{part}"] = tensor.cpu().contiguous()
    record = {
        "subject": {"sha256": subject.origin.sha256, "arch": subject.origin.arch},
        "classes": [names[k] if k < len(names) else str(k) for k in range(subject.classes)],
        "images": {"search": len(used), "unseen": len(unseen)},
        **_asked(comparison, methods, inverted),
        "rows": rows,
        "seconds": {n: i.spent[1].tolist() for n, i in inverted.items()},
    }
    return Compared(record, triggers, {n: view for n, view in enumerate(views) if view is not None})


def _asked(
    comparison: ComparisonConfig,
    methods: Mapping[str, Inverter],
    inverted: Mapping[str, Inverted],
) -> dict[str, Any]:
    """Return what was asked for, and what of it was not done."""
    return {
        "seed": comparison.seed,
        "rounds": comparison.rounds,
        "figures": list(comparison.figures),
        "detail": comparison.detail,
        "methods": {n: {k: str(v) for k, v in describe(methods[n]).items()} for n in inverted},
        "goals": [asdict(goal) for goal in comparison.goals],
        "stopped": {n: i.stopped for n, i in inverted.items() if i.stopped},
        "missed": [n for n in methods if n not in inverted],
    }


def survey(compared: Compared, run: Run) -> Compared:
    """Return a comparison with the landscapes that it was asked for.

    Args:
        compared: What `search` returned; it stays as it was.
        run: Told of every landscape; none is begun once it is over.
    """
    rows = list(compared.record["rows"])
    for done, (number, view) in enumerate(compared.views.items()):
        if run.stop_reason:
            break
        run.report(done, len(compared.views), f"landscape of {rows[number]['method']}")
        rows[number] = rows[number] | {"landscape": view()}
    return Compared(compared.record | {"rows": rows}, compared.triggers)
