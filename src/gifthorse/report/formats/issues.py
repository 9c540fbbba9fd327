"""What a gate is told of a result: what speaks against the model, and what was left open."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias
from urllib.parse import quote

from gifthorse.core.types import Goal, Severity
from gifthorse.report.json import CheckEntry, FindingEntry, ScanResult, plain
from gifthorse.report.words import RULES, certainty, goal_label, printable

Level: TypeAlias = Literal["error", "warning", "note"]

LEVELS: Mapping[Severity, Level] = MappingProxyType(
    {"CRITICAL": "error", "HIGH": "error", "MEDIUM": "warning", "LOW": "note", "INFO": "note"}
)
OPEN = ("INCONCLUSIVE", "NOT SCANNED", "ERROR")
GRAVITY: tuple[Severity, ...] = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFO")
MESSAGE_LIMIT = 1000  # characters; a file's author chooses how long its names are
PATH_LIMIT = 300


@dataclass(frozen=True)
class Issue:
    """Something that speaks against a model, or that kept it from being judged.

    Attributes:
        rule: Stable code; empty for what has none.
        severity: CRITICAL to LOW.
        message: One printable sentence.
        goal: What the backdoor does, where it is known.
        where: The goal in words, with the classes' names.
        detector: Who found it; empty for a check of the file or of the images.
    """

    rule: str
    severity: Severity
    message: str
    goal: Goal | None = None
    where: str = ""
    detector: str = ""

    @property
    def level(self) -> Level:
        """The severity as most formats have it."""
        return LEVELS[self.severity]

    @property
    def title(self) -> str:
        """The rule with its name."""
        return f"{self.rule} {RULES.get(self.rule, '')}".strip()

    def fingerprint(self, result: ScanResult) -> str:
        """Return what is the same in every scan of these bytes: 32 hexadecimal digits."""
        goal = self.goal.tag if self.goal else ""
        return hashlib.sha256(
            "\0".join((result.target.sha256, self.rule, goal)).encode("utf-8", "replace")
        ).hexdigest()[:32]


def issues(result: ScanResult) -> tuple[Issue, ...]:
    """Return what speaks against a model, the gravest first, each goal of a rule once.

    A verdict of BACKDOORED or SUSPICIOUS has one at least.
    """
    found = [i for i in _all(result) if not _of_the_scan(i)]
    best: dict[tuple[str, Goal | None], Issue] = {}
    for issue in sorted(found, key=lambda i: GRAVITY.index(i.severity)):
        best.setdefault((issue.rule, issue.goal), issue)
    told = tuple(i for i in best.values() if i.severity != "INFO")
    if told or result.verdict.label not in ("BACKDOORED", "SUSPICIOUS"):
        return told
    first = next(iter(best.values()), Issue("BD010", "INFO", ""))
    reason = printable(result.verdict.reason, MESSAGE_LIMIT)
    return (replace(first, severity="MEDIUM", message=reason),)


def doubts(result: ScanResult) -> tuple[Issue, ...]:
    """Return what kept a model from being judged, the gravest first; none if nothing did."""
    found = [i for i in _all(result) if _of_the_scan(i) and i.severity not in ("LOW", "INFO")]
    if not found and (result.partial or result.verdict.label in OPEN):
        reason = Issue("", "HIGH", printable(result.verdict.reason, MESSAGE_LIMIT))
        found = [reason] if reason.message not in {i.message for i in issues(result)} else []
    return tuple(sorted(set(found), key=lambda i: GRAVITY.index(i.severity)))


def _of_the_scan(issue: Issue) -> bool:
    return issue.rule.startswith("IN")


def _all(result: ScanResult) -> Iterator[Issue]:
    for finding in result.findings:
        yield _issue(result, finding)
    for check in result.checks:
        yield _issue(result, check)


def _issue(result: ScanResult, entry: FindingEntry | CheckEntry) -> Issue:
    message, rule = printable(entry.message, MESSAGE_LIMIT), printable(entry.rule, 20)
    if isinstance(entry, CheckEntry):
        return Issue(rule, entry.severity, message)
    where = goal_label(names(result), entry.goal) if entry.goal else ""
    return Issue(rule, entry.severity, message, entry.goal, where, printable(entry.detector, 60))


def names(result: ScanResult) -> Sequence[str]:
    """Return the names of the classes by number."""
    return result.data.class_names if result.data else ()


def model_name(result: ScanResult) -> str:
    """Return the printable path of the model."""
    return printable(result.target.path, PATH_LIMIT) or "a model in memory"


def likely(result: ScanResult) -> str:
    """Return the calibrated probability with its interval, or why there is none."""
    return certainty(result.verdict) if result.detectors else ""


def lead(result: ScanResult) -> Issue | None:
    """Return the gravest of what is to be told, None of a model that nothing is to be told of."""
    return next(iter((*issues(result), *doubts(result))), None)


def place(result: ScanResult) -> str:
    """Return the path of the model, from the working folder if it lies in it."""
    path = str(plain(result.target.path)) or "unnamed"
    if os.path.isabs(path):
        inside = Path(path).is_relative_to(Path.cwd())
        return Path(os.path.relpath(path) if inside else path).as_posix()
    return path.replace(os.sep, "/").removeprefix("./")


def address(result: ScanResult) -> str:
    """Return the path as the address of a file."""
    path = place(result)
    return f"file://{quote(path)}" if os.path.isabs(path) else quote(path)
