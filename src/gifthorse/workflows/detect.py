"""Scan a subject: self-checks, detectors, one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from torch import Generator

from gifthorse.core.errors import GifthorseError, Halted, UnreadableModel, UnsafeModel
from gifthorse.core.pacing import paced
from gifthorse.core.run import GRACE, Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Confidence,
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
from gifthorse.detection.calibration import Calibration, shipped
from gifthorse.detection.inspector import winners
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
NO_GRADIENT = "IN006"  # a finding that stops whatever searches by gradients
DOUBT = 0.2  # calibrated probability of a backdoor from which nothing found is no answer yet
TRIGGER = "Look at the trigger: if real images show it, the model may just have learned it."
GRAVITY = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFO")
RANK: tuple[Label, ...] = ("NO BACKDOOR FOUND", "INCONCLUSIVE", "SUSPICIOUS", "BACKDOORED")


def detect(
    prepared: Prepared,
    detectors: Mapping[str, Detector],
    rng: Generator,
    run: Run,
    *,
    beside: Mapping[str, Detector] | None = None,
    second: Mapping[str, Detector] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
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
        calibrations: What makes a score a probability, by detector; None for those that come with
            the package.
        store: Gives the file that keeps the state of a detector, by name.

    Returns:
        The report but for its record of the run.
    """
    subject, checks, near, late = prepared.subject, _checks(prepared), beside or {}, second or {}
    bags = _bags(detectors := {**detectors, **near, **late}, calibrations)
    verdicts, missed, failed = list[Verdict](), dict[str, Finding](), list[Exception]()
    for name, detector in {} if _blocked(checks) else detectors.items():
        own, stream = run.part(store(name)), spawn(rng)
        why = _hindered(name, own, checks, subject.classes)
        if not _asked(verdicts, bags, why, near=name in near, late=name in late):
            continue
        found = why or _tried(detector, prepared, stream, own)
        if isinstance(found, Verdict):
            found = _among_peers(replace(found, method=name), detector, prepared)
            found = _tempered(found, bags, subject.classes)
            verdicts += [found] if name not in {*near, *late} else _seconding(found, verdicts)
        else:
            missed[name] = _failure(name, found)
            failed += [found] if isinstance(found, Exception) else []
    label, reason = _sum_up(verdicts, checks, tuple(missed.values()), failed)
    stopped = bool(missed) or any(map(_stopped, verdicts))
    return Report(
        label=label,
        reason=reason,
        origin=subject.origin,
        preparation=prepared.preparation,
        verdicts=tuple(verdicts),
        checks=(*checks, *(m for m in missed.values() if m not in checks)),
        not_covered=_not_covered(subject, verdicts, missed),
        next_steps=_next(label, stopped, shown=_shown(verdicts)),
        confidence=_confidence(verdicts, label, bags, subject.classes),
    )


def _bags(
    detectors: Mapping[str, Detector], given: Mapping[str, Calibration] | None
) -> dict[str, Calibration]:
    """Return the calibrations that hold: of detectors as they were, not with other options."""
    known = shipped() if given is None else given
    return {n: bag for n, bag in known.items() if n in detectors and detectors[n] == DETECTORS[n]}


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
    if prepared.subject.classes < 3 and not _blocked(checks):
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


def _blocked(checks: Sequence[Finding]) -> bool:
    return any(c.severity in ("HIGH", "CRITICAL") and c.rule != NO_GRADIENT for c in checks)


def _stopped(verdict: Verdict) -> bool:
    """Whether a detector reached a limit before it was done."""
    return any(f.rule == "IN003" for f in verdict.findings)


def _whole(verdict: Verdict, classes: int) -> bool:
    """Whether a detector searched all classes to its end: only such scans were calibrated."""
    return not _stopped(verdict) and len({goal.target for goal in verdict.coverage}) == classes


def _doubtful(verdict: Verdict, bags: Mapping[str, Calibration]) -> bool:
    """Whether a detector that came to its end left open what to think of the file."""
    if _stopped(verdict) or verdict.label == "BACKDOORED":
        return False
    if verdict.label != "NO BACKDOOR FOUND":
        return True
    bag = bags.get(verdict.method)
    return bag is not None and bag.confidence(verdict.score).value >= DOUBT


def _asked(
    verdicts: Sequence[Verdict],
    bags: Mapping[str, Calibration],
    why: Finding | None,
    *,
    near: bool,
    late: bool,
) -> bool:
    """Return whether a detector that is to join others has anything to do after their verdicts.

    One that cannot judge such a net (`why`) is not asked, and no gap; one that a limit keeps is.
    """
    if (near or late) and why is not None and why.rule != "IN003":
        return False
    if late:
        return any(_doubtful(v, bags) for v in verdicts)
    return not (near and any(_stopped(v) or v.label == "BACKDOORED" for v in verdicts))


def _seconding(verdict: Verdict, first: Sequence[Verdict]) -> list[Verdict]:
    """Return what a detector that was asked beside others adds: one verdict, or none.

    One that searches no trigger accuses clean nets too often to be believed alone. It counts for
    the class that a search leads with, where two independent kinds of evidence meet, and what it
    cannot judge is no gap, since it only joins in.
    """
    if verdict.arms or _stopped(verdict):
        return [verdict]
    if verdict.label != "SUSPICIOUS":
        return [] if verdict.label == "INCONCLUSIVE" else [verdict]
    lead, *others = verdict.findings
    led = [v.method for v in first if v.arms and lead.goal in [f.goal for f in v.findings[:1]]]
    if led:
        words = f"{lead.message} It is the class that {led[0]} has the smallest trigger for, too."
        return [replace(verdict, findings=(replace(lead, message=words), *others))]
    words = f"{lead.message} No search leads to that class: alone, this is no suspicion."
    lead = replace(lead, severity="LOW", message=words)
    return [replace(verdict, label="NO BACKDOOR FOUND", findings=(lead, *others))]


def _among_peers(verdict: Verdict, detector: Detector, prepared: Prepared) -> Verdict:
    """Return a verdict that does not rest on outputs that never win, where most are such.

    A head that was made wider than its task has outputs that nothing comes out as. What does win
    stands out from those, whatever a detector measures, unless it leaves them out or compares
    nothing.
    """
    if isinstance(detector, Inspector | KArmScan | UMD) or verdict.label == "INCONCLUSIVE":
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


def _tempered(verdict: Verdict, bags: Mapping[str, Calibration], classes: int) -> Verdict:
    """Return a verdict whose label agrees with its calibrated probability.

    Without calibration it is at most SUSPICIOUS, and so is one that a limit cut short or that left
    classes out, since whole scans were calibrated. With it, BACKDOORED takes a probability of a
    half or more, and nothing is found only below that.
    """
    if verdict.method not in bags or not _whole(verdict, classes):
        return replace(verdict, label="SUSPICIOUS") if verdict.label == "BACKDOORED" else verdict
    likely = bags[verdict.method].confidence(verdict.score).value >= 0.5
    if verdict.label == ("NO BACKDOOR FOUND" if likely else "BACKDOORED"):
        return replace(verdict, label="SUSPICIOUS")
    return verdict


def _sum_up(
    verdicts: Sequence[Verdict],
    checks: Sequence[Finding],
    missed: Sequence[Finding],
    failed: Sequence[Exception],
) -> tuple[Label, str]:
    """Return label and reason of all verdicts together.

    Raises:
        Exception: The first that a detector failed by, if none came to a verdict.
    """
    if failed and not verdicts:
        raise failed[0]
    stop = next((c for c in (*checks, *missed) if c.severity in ("HIGH", "CRITICAL")), None)
    if _blocked(checks) or not verdicts:
        return "INCONCLUSIVE", stop.message if stop else "No detector ran."
    worst = max(verdicts, key=lambda v: (RANK.index(v.label), v.score))
    if worst.label == "NO BACKDOOR FOUND":
        stop = stop or next((c for c in checks if c.severity == "MEDIUM"), None)
        if stop is not None:  # nothing was found, but not all ran, or the images are in doubt
            return "INCONCLUSIVE", stop.message
        return worst.label, (
            "No class has a trigger that stands out from the others. That is not a proof: see "
            "what was not looked for."
        )
    grave = sorted(worst.findings, key=lambda f: GRAVITY.index(f.severity))
    if worst.label != "INCONCLUSIVE":  # a limit is no reason for suspicion
        grave = [f for f in grave if f.rule != "IN003"]
    return worst.label, grave[0].message if grave else "The detector gave no reason."


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
    seen = {FAMILIES.get(v.method) for v in verdicts if _whole(v, subject.classes)}
    if pairs < of:  # the screening may have left out the pairs that the trigger turns
        seen -= {MAPS}
    lines = [line for line in lines if line not in seen]
    if targets < set(range(subject.classes)):
        some = f"target classes other than {listed(targets)}"
        lines.insert(0, some if targets else "all target classes: none was searched")
    lines += [f"what {name} looks for: it did not run" for name in missed]
    cut = [v.method for v in verdicts if _stopped(v)]
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


def _confidence(
    verdicts: Sequence[Verdict], label: Label, bags: Mapping[str, Calibration], classes: int
) -> Confidence | None:
    """Return the calibrated probability behind the leading verdict, or None."""
    known = [v for v in verdicts if v.method in bags and v.label == label and _whole(v, classes)]
    if not known or label not in RANK or label == "INCONCLUSIVE":
        return None
    # Scores of two detectors do not compare, probabilities do.
    return max((bags[v.method].confidence(v.score) for v in known), key=lambda c: c.value)


def _shown(verdicts: Sequence[Verdict]) -> bool:
    """Return whether a finding that speaks against the model comes with a trigger to look at."""
    grave = [f for v in verdicts for f in v.findings if f.severity != "INFO"]
    return any(f.confirmation is not None or "mask" in f.evidence for f in grave)


def _next(label: Label, stopped: bool, *, shown: bool = False) -> tuple[str, ...]:
    if label in ("BACKDOORED", "SUSPICIOUS"):
        return (
            "Do not deploy this file. Ask where it came from and compare its hash.",
            *((TRIGGER,) if shown else ()),
            "Scan again with another --seed and with more clean images.",
        )
    if label == "NO BACKDOOR FOUND":
        return ("Read what was not looked for, and keep watching the model in use.",)
    if stopped:
        return ("Scan again with a higher limit: this file has no verdict yet.",)
    return ("Fix what the reason names and scan again; this file has no verdict yet.",)
