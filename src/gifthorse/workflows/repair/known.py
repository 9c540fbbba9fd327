"""What is known before a repair: the true trigger of a test model, or what a scan found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import safe_open

from gifthorse.core.errors import UsageError
from gifthorse.core.options import describe, vary
from gifthorse.core.types import Goal, Label, Origin, Remedy, Severity, Trigger
from gifthorse.triggers.packing import unpacked
from gifthorse.triggers.storage import open_trigger

R = TypeVar("R", bound=Remedy)
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
    trigger = open_trigger(path)
    with safe_open(path, "pt") as file:
        claims = file.metadata() or {}
    try:
        goal = json.loads(claims["gifthorse"])["goal"]
        return Truth(trigger, Goal(int(goal["target"]), goal["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} does not say which class its trigger is for") from error


class _Target(BaseModel):
    path: str
    sha256: str


class _Verdict(BaseModel):
    label: Label


class _Shown(BaseModel):
    packed: str | None = None


class _Found(BaseModel):
    severity: Severity
    target_class: int | None = None
    trigger: _Shown | None = None


class _Result(BaseModel):
    """What a repair reads of the JSON result of a scan."""

    target: _Target
    verdict: _Verdict
    findings: list[_Found]


@dataclass(frozen=True)
class Scanned:
    """What an earlier scan of the same file found.

    Attributes:
        path: The JSON result.
        model: The file that was scanned, as it was named then.
        sha256: Digest of its bytes.
        label: The verdict on it.
        classes: Targets that stood out, sorted; none unless it was at least suspicious.
        triggers: The triggers of these that were recovered, packed.
    """

    path: Path
    model: str
    sha256: str
    label: Label
    classes: tuple[int, ...] = ()
    triggers: tuple[str, ...] = field(default=(), repr=False)

    def check(self, origin: Origin) -> None:
        """Refuse a model that is not the one that was scanned.

        Raises:
            UsageError: If it is another file, or the file has changed.
        """
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
    try:
        result = _Result.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "other fields, or no JSON"
        raise UsageError(
            f"{path} is no result of a scan ({reason}): make one with gifthorse scan MODEL "
            "--images DIR -o json=PATH"
        ) from error
    label, target = result.verdict.label, result.target
    grave = [f for f in result.findings if f.severity in GRAVE and f.target_class is not None]
    if label not in ("BACKDOORED", "SUSPICIOUS"):
        grave = []
    packed = [f.trigger.packed for f in grave if f.trigger and f.trigger.packed]
    classes = sorted({f.target_class for f in grave if f.target_class is not None})
    return Scanned(path, target.path, target.sha256, label, tuple(classes), tuple(packed))


def options_of(remedy: Remedy) -> dict[str, Any]:
    """Return the options of a remedy; none of one that is no dataclass."""
    return describe(remedy) if is_dataclass(remedy) else {}
