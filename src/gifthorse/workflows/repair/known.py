"""What is known before a repair: the true trigger of a test model, or what a scan found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from gifthorse.core.errors import UsageError
from gifthorse.core.files import parse_json, read_file
from gifthorse.core.options import describe, vary
from gifthorse.core.types import Goal, Label, Origin, Remedy, Severity, Trigger
from gifthorse.report.json import FileVerdict, TriggerEntry
from gifthorse.triggers.packing import unpacked
from gifthorse.triggers.storage import open_claims

R = TypeVar("R", bound=Remedy)
MOST = 64 << 20  # bytes of a result of a scan
READ = "2"  # form of results
GRAVE = ("CRITICAL", "HIGH", "MEDIUM")


@dataclass(frozen=True, eq=False)
class Truth:
    """The true trigger of a test model, to see how well a repair did."""

    trigger: Trigger
    goal: Goal


def open_truth(path: Path) -> Truth:
    """Read the true trigger of a test model, and what it does.

    Raises:
        UsageError: If the file is no trigger that `gifthorse attack` wrote.
    """
    trigger, claims = open_claims(path)
    try:
        goal = parse_json(claims["gifthorse"])["goal"]
        return Truth(trigger, Goal(int(goal["target"]), goal["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} does not say which class its trigger is for") from error


@dataclass(frozen=True)
class _FoundTrigger:
    severity: Severity
    goal: Goal | None
    trigger: TriggerEntry | None


@dataclass(frozen=True)
class _ScanRead:
    """What is read of the JSON result of a scan."""

    schema_version: Literal["2"]
    target: Origin
    verdict: FileVerdict
    findings: tuple[_FoundTrigger, ...]


@dataclass(frozen=True)
class Scanned:
    """What an earlier scan of the same file found.

    Attributes:
        path: The JSON result.
        model: The file that was scanned, as it was named then.
        sha256: Digest of its bytes.
        label: The verdict on it.
        goals: Of all findings.
        classes: Targets that stood out, sorted; none unless it was at least suspicious.
        triggers: The triggers of these that were recovered, packed.
        shown: All triggers of the result, packed, that of the gravest finding first.
    """

    path: Path
    model: str
    sha256: str
    label: Label
    goals: tuple[Goal, ...] = ()
    classes: tuple[int, ...] = ()
    triggers: tuple[str, ...] = field(default=(), repr=False)
    shown: tuple[str, ...] = field(default=(), repr=False)

    def check(self, origin: Origin, classes: int) -> None:
        """Refuse a model that is not the one that was scanned, and classes that it has not.

        Raises:
            UsageError: If it is another file, the file has changed, or the result was.
        """
        goals = [*self.goals, *(goal for _, goal in self.recovered)]
        named = [n for goal in goals for n in (goal.target, goal.source) if n is not None]
        wrong = next((n for n in named if not 0 <= n < classes), None)
        if wrong is not None:
            raise UsageError(
                f"{self.path} names class {wrong}, but the model has classes 0 to {classes - 1}: "
                "scan it again, and give the new result to --scan"
            )
        if origin.sha256 != self.sha256:
            raise UsageError(
                f"{self.path} is the result of a scan of {self.model} (sha256 {self.sha256[:12]}), "
                f"but {origin.path} is another file, or was changed since (sha256 "
                f"{origin.sha256[:12]}): scan it, and give the new result to --scan"
            )

    @property
    def recovered(self) -> tuple[tuple[Trigger, Goal], ...]:
        """The triggers, with what they do.

        Raises:
            BadOption: If one is damaged.
        """
        return tuple(unpacked(text) for text in self.triggers)

    def inform(self, remedy: R) -> R:
        """Return a remedy that needs not search again; one that needs no trigger as it is.

        Raises:
            UsageError: If the remedy unlearns triggers and the scan found none.
        """
        if not needs_triggers(remedy):
            return remedy
        if self.triggers:
            return vary(remedy, {"triggers": self.triggers})
        if self.classes:
            return vary(remedy, {"classes": self.classes})
        raise UsageError(
            f"{self.path} says {self.label}, so there is no trigger to unlearn: leave --scan away "
            "to search for one again, or take a --method that needs none, such as fine_pruning"
        )


def needs_triggers(remedy: Remedy) -> bool:
    """Whether a remedy starts from recovered triggers, which it can also be given."""
    return "triggers" in options_of(remedy)


def open_scan(path: Path) -> Scanned:
    """Read what `gifthorse scan -o json=PATH` wrote.

    Raises:
        UsageError: If the file is something else, or not there.
    """
    content = read_file(path, MOST)
    try:
        data = parse_json(content)
        written = data.get("schema_version", READ) if isinstance(data, dict) else READ
        if written != READ:
            raise UsageError(
                f"{path} was written by an {'older' if written == '1' else 'other'} gifthorse (its "
                f"form is {written!r:.20}, {READ!r} is read): scan the model again"
            )
        result = TypeAdapter(_ScanRead).validate_python(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is no result of a scan (other fields, or no JSON): make one with gifthorse "
            "scan MODEL --images DIR -o json=PATH"
        ) from error
    label, target = result.verdict.label, result.target
    grave = [f for f in result.findings if f.severity in GRAVE and f.goal is not None]
    if label not in ("BACKDOORED", "SUSPICIOUS"):
        grave = []
    classes = sorted({f.goal.target for f in grave if f.goal is not None})
    packed = (_packed(findings) for findings in (grave, result.findings))
    goals = tuple(f.goal for f in result.findings if f.goal is not None)
    return Scanned(path, target.path, target.sha256, label, goals, tuple(classes), *packed)


def _packed(findings: Iterable[_FoundTrigger]) -> tuple[str, ...]:
    return tuple(f.trigger.packed for f in findings if f.trigger and f.trigger.packed)


def open_known(path: Path) -> Truth:
    """Read a trigger and its goal: what `gifthorse attack` wrote, or the result of a scan.

    Of a scan's triggers it is that of the gravest finding.

    Raises:
        UsageError: If the file holds no trigger.
        BadOption: If the trigger is damaged.
    """
    if path.suffix != ".json":
        return open_truth(path)
    shown = open_scan(path).shown
    if not shown:
        raise UsageError(
            f"{path} is the result of a scan that recovered no trigger, or none of a kind that can "
            "be kept: take another scan, or the NAME.trigger.safetensors of a test model"
        )
    return Truth(*unpacked(shown[0]))


def options_of(remedy: Remedy) -> dict[str, Any]:
    """Return the options of a remedy; none of one that is no dataclass."""
    return describe(remedy) if is_dataclass(remedy) else {}
