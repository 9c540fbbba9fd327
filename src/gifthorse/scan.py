"""Scan a subject: self-checks, detectors, one report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Generator

from gifthorse.detection import DETECTORS
from gifthorse.detection.calibration import Calibration, shipped
from gifthorse.errors import UnreadableModel, UnsafeModel
from gifthorse.intake import Received
from gifthorse.tensors import spawn
from gifthorse.types import (
    Confidence,
    Detector,
    Finding,
    Label,
    Origin,
    Progress,
    Report,
    Run,
    Severity,
    Verdict,
)

log = logging.getLogger("gifthorse")

NOT_COVERED = (
    "class-pair triggers (only images of one class are attacked)",
    "all-to-all maps (every class becomes another one)",
    "triggers that move, warp, filter or differ from image to image",
    "blended triggers that cover the whole image",
    "backdoors built to evade trigger inversion",
)
GRAVITY = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFO")
RANK: tuple[Label, ...] = ("NO BACKDOOR FOUND", "INCONCLUSIVE", "SUSPICIOUS", "BACKDOORED")


def scan(
    received: Received,
    detectors: Mapping[str, Detector],
    rng: Generator,
    run: Run,
    *,
    watch: Callable[[str], Progress | None] = lambda name: None,
) -> Report:
    """Run the detectors, unless the self-checks already say that no verdict is possible.

    Args:
        received: Subject, clean images and self-checks.
        detectors: What to run, by name.
        rng: Source of all randomness.
        run: What the report says about the run.
        watch: Gives the progress callback of a detector, by name.
    """
    subject, checks = received.subject, list(received.checks)
    if subject.classes < 3 and not _blocked(checks):
        words = "With fewer than three classes no class can stand out from the others."
        checks.append(Finding("IN004", "HIGH", 0.0, words))
    # A calibration holds for the detector it was made with, not for one with other options.
    bags = {n: bag for n, bag in shipped().items() if detectors.get(n) == DETECTORS[n]}
    verdicts: list[Verdict] = []
    if not _blocked(checks):
        for name, detector in detectors.items():
            log.debug("running %s", name)
            verdict = detector(subject, received.samples, spawn(rng), progress=watch(name))
            verdicts.append(_tempered(replace(verdict, method=name), bags))
    label, reason = _sum_up(verdicts, checks)
    return Report(
        label=label,
        reason=reason,
        origin=subject.origin,
        intake=received.intake,
        verdicts=tuple(verdicts),
        checks=tuple(checks),
        not_covered=NOT_COVERED,
        next_steps=_next(label),
        confidence=_confidence(verdicts, label, bags),
        run=run,
    )


def refused(origin: Origin, error: UnreadableModel, run: Run) -> Report:
    """Return the report on a file that was not opened."""
    grave: Severity = "CRITICAL" if isinstance(error, UnsafeModel) else "HIGH"
    checks = (Finding(error.rule, grave, 0.0, str(error)),) if error.rule else ()
    return Report("NOT SCANNED", str(error), origin, None, (), checks, (), (), None, run)


def _blocked(checks: Sequence[Finding]) -> bool:
    return any(c.severity in ("HIGH", "CRITICAL") for c in checks)


def _tempered(verdict: Verdict, bags: Mapping[str, Calibration]) -> Verdict:
    """Without calibration a verdict is at most SUSPICIOUS."""
    if verdict.label == "BACKDOORED" and verdict.method not in bags:
        return replace(verdict, label="SUSPICIOUS")
    return verdict


def _sum_up(verdicts: Sequence[Verdict], checks: Sequence[Finding]) -> tuple[Label, str]:
    stop = next((c for c in checks if c.severity in ("HIGH", "CRITICAL")), None)
    if stop is not None:
        return "INCONCLUSIVE", stop.message
    if not verdicts:
        return "INCONCLUSIVE", "No detector ran."
    worst = max(verdicts, key=lambda v: (RANK.index(v.label), v.score))
    if worst.label == "NO BACKDOOR FOUND":
        return worst.label, (
            "No class has a trigger that stands out from the others. That is not a proof: see "
            "what was not looked for."
        )
    grave = sorted(worst.findings, key=lambda f: GRAVITY.index(f.severity))
    return worst.label, grave[0].message if grave else "The detector gave no reason."


def _confidence(
    verdicts: Sequence[Verdict], label: Label, bags: Mapping[str, Calibration]
) -> Confidence | None:
    """Return the calibrated probability behind the leading verdict, or None."""
    known = [v for v in verdicts if v.method in bags and v.label == label]
    if not known or label not in RANK or label == "INCONCLUSIVE":
        return None
    best = max(known, key=lambda v: v.score)
    return bags[best.method].confidence(best.score)


def _next(label: Label) -> tuple[str, ...]:
    if label in ("BACKDOORED", "SUSPICIOUS"):
        return (
            "Do not deploy this file. Ask where it came from and compare its hash.",
            "Look at the trigger: if real images show it, the model may just have learned it.",
            "Scan again with another --seed and with more clean images.",
        )
    if label == "NO BACKDOOR FOUND":
        return ("Read what was not looked for, and keep watching the model in use.",)
    return ("Fix what the reason names and scan again; this file has no verdict yet.",)
