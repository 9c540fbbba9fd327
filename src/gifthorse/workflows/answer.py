"""From the verdicts of all detectors to one answer: label, reason and probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gifthorse.core.types import (
    Confidence,
    FamilyChance,
    Finding,
    Goal,
    Label,
    Subject,
    Verdict,
)
from gifthorse.detection.calibration import Calibration
from gifthorse.detection.calibrations import Calibrations
from gifthorse.detection.fusion import ANY, Evidence, Fusion, evidence

NO_GRADIENT = "IN006"  # a finding that stops whatever searches by gradients
DOUBT = 0.2  # calibrated probability of a backdoor from which nothing found is no answer yet
SURE = 0.9  # probability of all detectors together from which a confirmed trigger is a backdoor
GRAVITY = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFO")
RANK: tuple[Label, ...] = ("NO BACKDOOR FOUND", "INCONCLUSIVE", "SUSPICIOUS", "BACKDOORED")


@dataclass(frozen=True)
class Said:
    """What came of the detectors of a scan.

    Attributes:
        verdicts: Those of the detectors that came to one, each as its own calibration allows.
        confirmed: The detectors whose trigger held on unseen images, whatever their calibration.
        missed: Why detectors came to none, by their names.
        failed: What detectors failed by.
    """

    verdicts: tuple[Verdict, ...]
    confirmed: frozenset[str] = frozenset()
    missed: Mapping[str, Finding] = field(default_factory=dict)
    failed: tuple[Exception, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What all verdicts come to.

    Attributes:
        label: The verdict on the file.
        reason: Why, in a sentence or two.
        verdicts: Those of the detectors; what all together do not bear out is no suspicion.
        confidence: The probability behind the label; None if there is none.
        families: The probability of each family that can be told from clean models.
        findings: What is no single detector's.
    """

    label: Label
    reason: str
    verdicts: tuple[Verdict, ...]
    confidence: Confidence | None
    families: tuple[FamilyChance, ...] = ()
    findings: tuple[Finding, ...] = ()


def answer(said: Said, checks: Sequence[Finding], known: Calibrations, subject: Subject) -> Answer:
    """Return what the verdicts of a scan come to.

    Where the verdicts of all detectors of a fusion are there, label and probability are those of
    all together: nothing is found below a half, and a confirmed trigger is a backdoor from `SURE`.

    Args:
        said: What came of the detectors.
        checks: The findings of the self-checks.
        known: The calibrations that hold; of fusions, the one that reads most counts.
        subject: The net.

    Raises:
        Exception: The first that a detector failed by, if none came to a verdict.
    """
    fusion = _reading(said.verdicts, known.together, subject)
    if fusion is None or blocked(checks):
        label, reason = _sum_up(said, checks)
        sure = _confidence(said.verdicts, label, known.detectors, subject.classes)
        return Answer(label, reason, said.verdicts, sure)
    rows = {v.method: evidence(v) for v in said.verdicts}
    sure = fusion.confidence(rows)
    weighed = tuple(_weighed(v, fusion, sure.value, said.confirmed) for v in said.verdicts)
    label, reason = _sum_up(replace(said, verdicts=weighed), checks)
    found: tuple[Finding, ...] = ()
    if sure.value >= 0.5 and RANK.index(label) < RANK.index("SUSPICIOUS"):
        found = (_adding_up(fusion, rows, sure.value),)
        label, reason = "SUSPICIOUS", found[0].message
    if label == "INCONCLUSIVE" or (label != "NO BACKDOOR FOUND") != (sure.value >= 0.5):
        return Answer(label, reason, weighed, None)
    return Answer(label, reason, weighed, sure, _families(fusion, rows), found)


def _reading(
    verdicts: Sequence[Verdict], together: Sequence[Fusion], subject: Subject
) -> Fusion | None:
    """Return what reads most of the verdicts, if all that it reads came to their end."""
    ended = {v.method for v in verdicts if v.label != "INCONCLUSIVE" and whole(v, subject.classes)}
    fitting = [
        fusion
        for fusion in together
        if ended.issuperset(fusion.detectors) and fusion.covers(subject.classes, subject.shape[1:])
    ]
    return max(fitting, key=lambda fusion: len(fusion.detectors), default=None)


def _weighed(verdict: Verdict, fusion: Fusion, chance: float, confirmed: frozenset[str]) -> Verdict:
    """Return a verdict that agrees with the probability of all detectors together."""
    if verdict.method not in fusion.detectors:
        return verdict
    if chance >= SURE and verdict.method in confirmed:
        return replace(verdict, label="BACKDOORED")
    if chance >= 0.5 or verdict.label not in ("BACKDOORED", "SUSPICIOUS"):
        return replace(verdict, label="SUSPICIOUS") if verdict.label == "BACKDOORED" else verdict
    words = f"All detectors together give a probability of {chance:.2f}: this is no suspicion."
    return _calmed(verdict, words)


def _adding_up(fusion: Fusion, rows: Mapping[str, Evidence], chance: float) -> Finding:
    """Return the finding on a model that no detector accuses, and all of them together do."""
    named = [target for name in fusion.detectors if (target := rows[name].target) is not None]
    lead = max(sorted(set(named)), key=named.count, default=None)
    where = "" if lead is None else f" Most of them lead with class {lead}."
    words = (
        f"No detector accuses the model by itself, but what {len(fusion.detectors)} of them "
        f"measure is more common among backdoored models: a probability of {chance:.2f}.{where}"
    )
    goal = None if lead is None else Goal(lead)
    return Finding("BD011", "MEDIUM", chance, words, goal)


def _families(fusion: Fusion, rows: Mapping[str, Evidence]) -> tuple[FamilyChance, ...]:
    """Return the probability of each family that can be told from clean models, likeliest first."""
    told = [
        FamilyChance(family, fusion.confidence(rows, family))
        for family, model in fusion.families.items()
        if family != ANY and model.tells
    ]
    return tuple(sorted(told, key=lambda row: -row.confidence.value))


def blocked(checks: Sequence[Finding]) -> bool:
    """Whether a self-check leaves no verdict possible."""
    return any(c.severity in ("HIGH", "CRITICAL") and c.rule != NO_GRADIENT for c in checks)


def stopped(verdict: Verdict) -> bool:
    """Whether a detector reached a limit before it was done."""
    return any(f.rule == "IN003" for f in verdict.findings)


def whole(verdict: Verdict, classes: int) -> bool:
    """Whether a detector searched all classes to its end: only such scans were calibrated."""
    return not stopped(verdict) and len({goal.target for goal in verdict.coverage}) == classes


def doubtful(verdict: Verdict, bags: Mapping[str, Calibration]) -> bool:
    """Whether a detector that came to its end left open what to think of the file."""
    if stopped(verdict) or verdict.label == "BACKDOORED":
        return False
    if verdict.label != "NO BACKDOOR FOUND":
        return True
    bag = bags.get(verdict.method)
    return bag is not None and bag.confidence(verdict.score).value >= DOUBT


def asked(
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
        return any(doubtful(v, bags) for v in verdicts)
    return not (near and any(stopped(v) or v.label == "BACKDOORED" for v in verdicts))


def seconding(verdict: Verdict, first: Sequence[Verdict]) -> list[Verdict]:
    """Return what a detector that was asked beside others adds: one verdict, or none.

    One that searches no trigger accuses clean nets too often to be believed alone. It counts for
    the class that a search leads with, where two independent kinds of evidence meet, and what it
    cannot judge is no gap, since it only joins in.
    """
    if verdict.arms or stopped(verdict):
        return [verdict]
    if verdict.label != "SUSPICIOUS":
        return [] if verdict.label == "INCONCLUSIVE" else [verdict]
    lead, *others = verdict.findings
    led = [v.method for v in first if v.arms and lead.goal in [f.goal for f in v.findings[:1]]]
    if led:
        words = f"{lead.message} It is the class that {led[0]} has the smallest trigger for, too."
        return [replace(verdict, findings=(replace(lead, message=words), *others))]
    return [_calmed(verdict, "No search leads to that class: alone, this is no suspicion.")]


def mutual(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return verdicts without any search: a suspicion counts where another one leads there, too."""

    def borne_out(verdict: Verdict) -> Verdict:
        if verdict.label != "SUSPICIOUS":
            return verdict
        lead, *rest = verdict.findings
        others = [
            v.method for v in verdicts if v is not verdict and v.findings[0].goal == lead.goal
        ]
        if not others:
            return _calmed(verdict, "No other test leads to that class: this is no suspicion.")
        words = f"{lead.message} {others[0]} leads to that class, too."
        return replace(verdict, findings=(replace(lead, message=words), *rest))

    return tuple(map(borne_out, verdicts))


def _calmed(verdict: Verdict, why: str) -> Verdict:
    """Return a verdict whose suspicion does not count, and say why."""
    lead, *others = verdict.findings
    lead = replace(lead, severity="LOW", message=f"{lead.message} {why}")
    return replace(verdict, label="NO BACKDOOR FOUND", findings=(lead, *others))


def tempered(verdict: Verdict, bags: Mapping[str, Calibration], classes: int) -> Verdict:
    """Return a verdict whose label agrees with its calibrated probability.

    Without calibration it is at most SUSPICIOUS, and so is one that a limit cut short or that left
    classes out, since whole scans were calibrated. With it, BACKDOORED takes a probability of a
    half or more, and nothing is found only below that.
    """
    if verdict.method not in bags or not whole(verdict, classes):
        return replace(verdict, label="SUSPICIOUS") if verdict.label == "BACKDOORED" else verdict
    likely = bags[verdict.method].confidence(verdict.score).value >= 0.5
    if verdict.label == ("NO BACKDOOR FOUND" if likely else "BACKDOORED"):
        return replace(verdict, label="SUSPICIOUS")
    return verdict


def _sum_up(said: Said, checks: Sequence[Finding]) -> tuple[Label, str]:
    """Return label and reason of all verdicts together.

    Raises:
        Exception: The first that a detector failed by, if none came to a verdict.
    """
    verdicts, missed, failed = said.verdicts, said.missed.values(), said.failed
    if failed and not verdicts:
        raise failed[0]
    stop = next((c for c in (*checks, *missed) if c.severity in ("HIGH", "CRITICAL")), None)
    if blocked(checks) or not verdicts:
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


def _confidence(
    verdicts: Sequence[Verdict], label: Label, bags: Mapping[str, Calibration], classes: int
) -> Confidence | None:
    """Return the calibrated probability behind the leading verdict, or None."""
    known = [v for v in verdicts if v.method in bags and v.label == label and whole(v, classes)]
    if not known or label not in RANK or label == "INCONCLUSIVE":
        return None
    # Scores of two detectors do not compare, probabilities do.
    return max((bags[v.method].confidence(v.score) for v in known), key=lambda c: c.value)
