"""Scan a subject: self-checks, detectors, one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from torch import Generator

from gifthorse.core.errors import GifthorseError, Halted, UnreadableModel, UnsafeModel
from gifthorse.core.pacing import paced
from gifthorse.core.run import GRACE, Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Detector,
    Finding,
    Label,
    Origin,
    Report,
    Severity,
    Subject,
    Verdict,
)
from gifthorse.detection import DETECTORS, FEW_CLASSES, GRADIENT_FREE, UMD, Inspector, KArmScan
from gifthorse.detection.calibrations import Calibrations, shipped
from gifthorse.detection.inspector import winners
from gifthorse.workflows.answer import (
    NO_GRADIENT,
    Said,
    answer,
    asked,
    blocked,
    mutual,
    seconding,
    stopped,
    tempered,
    whole,
)
from gifthorse.workflows.prepare import Prepared

PAIRS = "class-pair triggers (only images of one class are attacked)"
MAPS = "all-to-all maps (every class becomes another one)"
NOT_COVERED = (
    PAIRS,
    MAPS,
    "triggers that move, or differ from image to image",
    "smooth warps of the whole image",
    "filters that change the colors of the whole image",
    "blended or faint triggers that cover the whole image",
    "backdoors built to evade trigger inversion",
)
# What of it a detector looks for, if it comes to its end.
FAMILIES = {
    "umd": MAPS,
    "warp": NOT_COVERED[3],
    "color_filter": NOT_COVERED[4],
    "blend": NOT_COVERED[5],
}
NO_TRIGGER = "triggers of any kind: without images none can be searched"
TRIGGER = "Look at the trigger: if real images show it, the model may just have learned it."


def detect(
    prepared: Prepared,
    detectors: Mapping[str, Detector],
    rng: Generator,
    run: Run,
    *,
    beside: Mapping[str, Detector] | None = None,
    second: Mapping[str, Detector] | None = None,
    calibrations: Calibrations | None = None,
    store: Callable[[str], Path | None] = lambda name: None,
) -> Report:
    """Run the detectors, unless the self-checks already say that no verdict is possible.

    Without usable gradients only those run that need none. A detector whose time has run out before
    it starts does not run, and one that fails keeps the others from nothing; the report says so.
    One that was to be asked beside them or in doubt, and was not, is no gap.

    Args:
        prepared: Subject, clean images and self-checks.
        detectors: What to run, by name.
        rng: Source of all randomness.
        run: What limits all of them together.
        beside: What runs after those unless they found a backdoor, and counts, if it searches no
            trigger, for the class that one of them leads with alone.
        second: Others to run as well if those leave doubt: a suspicion that was not confirmed, no
            verdict, or nothing found at a probability of `DOUBT` or more.
        calibrations: What makes scores probabilities; None for what comes with the package.
        store: Gives the file that keeps the state of a detector, by name.

    Returns:
        The report but for its record of the run.
    """
    checks, near, late = _checks(prepared), beside or {}, second or {}
    known = _holding(detectors := {**detectors, **near, **late}, calibrations)
    order = _Order({} if blocked(checks) else detectors, frozenset(near), frozenset(late))
    said = _said(prepared, order, checks, known, rng, run, store)
    if prepared.blind and len(order.detectors) > 1:
        said = replace(said, verdicts=mutual(said.verdicts))
    found = answer(said, checks, known, prepared.subject)
    missed = tuple(m for m in said.missed.values() if m not in checks)
    cut = bool(said.missed) or any(map(stopped, said.verdicts))
    return Report(
        label=found.label,
        reason=found.reason,
        origin=prepared.subject.origin,
        preparation=prepared.preparation,
        verdicts=found.verdicts,
        checks=(*checks, *found.findings, *missed),
        not_covered=(
            *((NO_TRIGGER,) if prepared.blind else ()),
            *_not_covered(prepared.subject, said.verdicts, said.missed),
        ),
        next_steps=_next(found.label, cut, shown=_shown(found.verdicts)),
        confidence=found.confidence,
        families=found.families,
    )


@dataclass(frozen=True)
class _Order:
    """The detectors in their order, and the names of those that join others, or doubt."""

    detectors: Mapping[str, Detector]
    near: frozenset[str]
    late: frozenset[str]


def _said(
    prepared: Prepared,
    order: _Order,
    checks: Sequence[Finding],
    known: Calibrations,
    rng: Generator,
    run: Run,
    store: Callable[[str], Path | None],
) -> Said:
    """Run what is to run; return what came of it."""
    verdicts, missed, failed = list[Verdict](), dict[str, Finding](), list[Exception]()
    bags, classes, confirmed = known.detectors, prepared.subject.classes, set[str]()
    for name, detector in order.detectors.items():
        own, stream = run.part(store(name)), spawn(rng)
        why = _hindered(name, own, checks, classes)
        near, late = name in order.near, name in order.late
        if not asked(verdicts, bags, why, near=near, late=late):
            continue
        found = why or _tried(detector, prepared, stream, own)
        if not isinstance(found, Verdict):
            missed[name] = _failure(name, found)
            failed += [found] if isinstance(found, Exception) else []
            continue
        found = _among_peers(replace(found, method=name), detector, prepared)
        confirmed |= {name} if found.label == "BACKDOORED" else set()
        found = tempered(found, bags, classes)
        verdicts += seconding(found, verdicts) if near or late else [found]
    return Said(tuple(verdicts), frozenset(confirmed), missed, tuple(failed))


def _holding(detectors: Mapping[str, Detector], given: Calibrations | None) -> Calibrations:
    """Return the calibrations that hold: of detectors as they were, not with other options."""
    known = shipped() if given is None else given
    same = {name for name, detector in detectors.items() if detector == DETECTORS.get(name)}
    return Calibrations(
        {name: bag for name, bag in known.detectors.items() if name in same},
        tuple(fusion for fusion in known.together if same.issuperset(fusion.detectors)),
    )


def _failure(name: str, error: BaseException | Finding) -> Finding:
    if isinstance(error, Finding):
        return error
    if isinstance(error, Halted):
        return Finding("IN003", "HIGH", 0.0, f"{name} was not finished: {error}.")
    return Finding("IN007", "HIGH", 0.0, f"{name} failed: {type(error).__name__}: {error}")


def _tried(
    detector: Detector, prepared: Prepared, rng: Generator, run: Run
) -> Verdict | Exception | Halted:
    """Return what a detector says, or what it fails by, since others may still find something.

    Raises:
        GifthorseError: If it has said itself what is wrong.
    """
    try:
        with paced(lambda kept: run.overtime(GRACE)):
            return detector(prepared.subject, prepared.samples, rng, run)
    except Halted as halt:
        return halt
    except GifthorseError:
        raise
    except Exception as error:
        return error


def refused(origin: Origin, error: UnreadableModel) -> Report:
    """Return the report on a file that was not opened."""
    grave: Severity = "CRITICAL" if isinstance(error, UnsafeModel) else "HIGH"
    checks = (Finding(error.rule, grave, 0.0, str(error)),) if error.rule else ()
    return Report("NOT SCANNED", str(error), origin, None, (), checks, (), (), None)


def unprepared(origin: Origin, halt: Halted) -> Report:
    """Return the report on a model whose images could not be looked at in the time there was."""
    words = f"The net was not searched: {halt} while it was checked on the images."
    why = Finding("IN003", "HIGH", 0.0, words)
    return Report(
        "INCONCLUSIVE", words, origin, None, (), (why,), (), _next("INCONCLUSIVE", True), None
    )


def _checks(prepared: Prepared) -> list[Finding]:
    """Return the self-checks, and whether there are classes enough to compare."""
    checks = list(prepared.checks)
    if prepared.subject.classes < 3 and not blocked(checks) and not prepared.blind:
        words = (
            "With two classes none can stand out from others: what turns single images is all that "
            "was tried, which is not calibrated, so that finding nothing is no answer."
        )
        checks.append(Finding("IN004", "MEDIUM", 0.0, words))
    return checks


def _hindered(name: str, own: Run, checks: Sequence[Finding], classes: int) -> Finding | None:
    """Return why a detector cannot run: a limit is reached, no gradient, too few classes."""
    if classes < 3 and name not in FEW_CLASSES:
        words = f"{name} compares classes with each other and needs three or more."
        return Finding("IN004", "HIGH", 0.0, words)
    if own.stop_reason:
        return Finding("IN003", "HIGH", 0.0, f"{name} did not run: {own.stop_reason}.")
    blind = next((c for c in checks if c.rule == NO_GRADIENT), None)
    return None if name in GRADIENT_FREE else blind


def _among_peers(verdict: Verdict, detector: Detector, prepared: Prepared) -> Verdict:
    """Return a verdict that does not rest on outputs that never win, where most are such.

    A head that was made wider than its task has outputs that nothing comes out as. What does win
    stands out from those, whatever a detector measures, unless it leaves them out or compares
    nothing.
    """
    compared = not isinstance(detector, Inspector | KArmScan | UMD) and not prepared.blind
    if not compared or verdict.label == "INCONCLUSIVE":
        return verdict
    dead = int((~winners(prepared.subject, prepared.samples, Run())).sum())
    if 2 * dead <= prepared.subject.classes:
        return verdict
    words = (
        f"{dead} of {prepared.subject.classes} outputs never win on the clean images, and "
        f"{verdict.method} compares with them, too: give images of more classes, or take a "
        "detector that recovers triggers."
    )
    why = Finding("IN002", "HIGH", float(dead), words)
    return replace(verdict, label="INCONCLUSIVE", findings=(why, *verdict.findings))


def _not_covered(
    subject: Subject, verdicts: Sequence[Verdict], missed: Iterable[str]
) -> tuple[str, ...]:
    """Return what was not looked for, given what was searched."""
    searched = {goal for v in verdicts for goal in v.coverage}
    targets = {goal.target for goal in searched}
    lines = list(NOT_COVERED)
    pairs, of = sum(g.source is not None for g in searched), subject.classes * (subject.classes - 1)
    if pairs:
        lines[lines.index(PAIRS)] = f"{PAIRS}: {pairs:,} of {of:,} pairs were searched"
    if pairs == of:
        lines.pop(0)
    seen = {FAMILIES.get(v.method) for v in verdicts if whole(v, subject.classes)}
    if pairs < of:  # the screening may have left out the pairs that the trigger turns
        seen -= {MAPS}
    lines = [line for line in lines if line not in seen]
    if targets < set(range(subject.classes)):
        some = f"target classes other than {listed(targets)}"
        lines.insert(0, some if targets else "all target classes: none was searched")
    lines += [f"what {name} looks for: it did not run" for name in missed]
    cut = [v.method for v in verdicts if stopped(v)]
    lines += [f"what {name} finds in more rounds: a limit stopped it" for name in cut]
    return tuple(lines)


def listed(numbers: Iterable[int]) -> str:
    """Return numbers in words, three or more in a row as a range.

    Example:
        >>> listed({7, 8, 9, 0, 1, 4})
        '0, 1, 4, 7-9'
    """
    parts: list[str] = []
    for _, row in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in row]
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run)
    return ", ".join(parts)


def _shown(verdicts: Sequence[Verdict]) -> bool:
    """Return whether a finding that speaks against the model comes with a trigger to look at."""
    grave = [f for v in verdicts for f in v.findings if f.severity != "INFO"]
    return any(f.confirmation is not None or "mask" in f.evidence for f in grave)


def _next(label: Label, cut: bool, *, shown: bool = False) -> tuple[str, ...]:
    if label in ("BACKDOORED", "SUSPICIOUS"):
        return (
            "Do not deploy this file. Ask where it came from and compare its hash.",
            *((TRIGGER,) if shown else ()),
            "Scan again with another --seed and with more clean images.",
        )
    if label == "NO BACKDOOR FOUND":
        return ("Read what was not looked for, and keep watching the model in use.",)
    if cut:
        return ("Scan again with a higher limit: this file has no verdict yet.",)
    return ("Fix what the reason names and scan again; this file has no verdict yet.",)
