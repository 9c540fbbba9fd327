"""How numbers, names and verdicts are put into words; the same in every format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from gifthorse.core.text import visible
from gifthorse.core.types import Confidence, FamilyChance, Goal, Label, Rate, Report, Verdict

NAME_LIMIT = 40  # characters of a class name
CLAIM_LIMIT = 200  # characters of a metadata value; the file's author chooses its length

HEADLINES: Mapping[Label, str] = MappingProxyType(
    {
        "BACKDOORED": "A trigger that takes this model over was found and confirmed.",
        "SUSPICIOUS": "Something in this model stands out. Do not trust it before a review.",
        "NO BACKDOOR FOUND": "Nothing stood out in what was examined. This is no proof of absence.",
        "INCONCLUSIVE": "The scan could not tell.",
        "NOT SCANNED": "This file was not examined.",
        "ERROR": "The scan failed before it reached a verdict.",
    }
)

RULES: Mapping[str, str] = MappingProxyType(
    {
        "BD001": "patch, all classes to one",
        "BD002": "class pair",
        "BD003": "blended or pervasive trigger",
        "BD004": "warping trigger",
        "BD005": "filter or feature-space trigger",
        "BD006": "sample-specific trigger",
        "BD007": "all to all",
        "BD008": "weight outlier only",
        "BD009": "architecture add-on",
        "BD010": "margin of one class, no trigger recovered",
        "BD011": "evidence of several detectors",
        "DS001": "poisoned sample",
        "DS002": "trigger in input",
        "FS001": "code in pickle",
        "FS002": "code or objects in file",
        "FS003": "damaged file",
        "FS004": "resource bomb",
        "FS005": "non-finite weights",
        "FS006": "path escape",
        "FS007": "name or extension mismatch",
        "FS008": "polyglot file",
        "FS009": "file not understood",
        "FS010": "signature missing or not valid",
        "IN001": "poor clean accuracy",
        "IN002": "too few images",
        "IN003": "limit reached",
        "IN004": "unsupported net",
        "IN005": "search too short",
        "IN006": "no usable gradient",
        "IN007": "detector failed",
    }
)


def printable(text: str, limit: int | None = None) -> str:
    r"""Return `text` on one line without control, format and surrogate characters.

    Line breaks and tabs become spaces, lone surrogates the replacement character; escape codes
    lose their escape character and bidirectional marks vanish, so nothing acts on a terminal.

    Args:
        text: Anything, however hostile.
        limit: Most characters to return; the last one is then an ellipsis.

    Example:
        >>> printable("a\x1b[31mb\x00\nc")
        'a[31mb c'
        >>> printable("abcdef", limit=4)
        'abc…'
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(map(visible, text))


def figure(value: float) -> str:
    """Return a number with about three digits, `n/a` if it is not finite.

    Example:
        >>> [figure(v) for v in (8.6, 54.0, 1234.5, 0.163, 0.0, 4e-5, math.nan)]
        ['8.6', '54', '1,234', '0.16', '0', '4e-05', 'n/a']
    """
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    if abs(value) < 0.01:
        return f"{value:.0e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2
    return f"{value:,.{digits}f}".removesuffix(".0")


def percent(value: float) -> str:
    """Return a share as a percentage, one decimal at most.

    Example:
        >>> percent(1.0), percent(0.953), percent(math.nan)
        ('100 %', '95.3 %', 'n/a')
    """
    return f"{100 * value:.1f}".removesuffix(".0") + " %" if math.isfinite(value) else "n/a"


def interval(rate: Rate) -> str:
    """Return the interval of a share in whole percent.

    Example:
        >>> interval(Rate(1.0, 0.916, 1.0, 42))
        '[92, 100]'
    """
    if not (math.isfinite(rate.low) and math.isfinite(rate.high)):
        return "[n/a]"
    return f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def span(seconds: float) -> str:
    """Return a duration in words.

    Example:
        >>> span(0.25), span(22.4), span(312.0), span(7380.0)
        ('0.2 s', '22 s', '5 min 12 s', '2 h 3 min')
    """
    if not math.isfinite(seconds):
        return "n/a"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def effort(verdict: Verdict) -> str:
    """Return what a detector took: wall time, and image-steps if it counted them.

    Example:
        >>> effort(Verdict("pixel", 1.0, 3.0, "SUSPICIOUS", seconds=22.4, image_steps=41_000.5))
        '22 s, 41,000 image-steps'
    """
    steps = verdict.image_steps
    if not math.isfinite(steps) or steps <= 0:
        return span(verdict.seconds)
    return f"{span(verdict.seconds)}, {plural(round(steps), 'image-step')}"


def volume(count: int) -> str:
    """Return a number of bytes in decimal units.

    Example:
        >>> volume(512), volume(42_700_000)
        ('512 B', '42.7 MB')
    """
    size, units = float(min(count, 10**30)), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.1f}".removesuffix(".0") + f" {units[0]}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "class"), plural(43, "class"), plural(1200, "image")
        ('1 class', '43 classes', '1,200 images')
    """
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def class_names(report: Report) -> tuple[str, ...]:
    """Return the names of the classes by number, as far as the images name them."""
    return report.preparation.class_names if report.preparation else ()


def class_label(names: Sequence[str], number: int) -> str:
    """Return the number of a class with its name, if it has one.

    Example:
        >>> class_label(["go", "stop"], 1), class_label(["go", "stop"], 7)
        ('class 1 "stop"', 'class 7')
    """
    name = class_name(names, number)
    return f'class {number} "{name}"' if name else f"class {number}"


def class_name(names: Sequence[str], number: int) -> str:
    """Return the printable name of a class, empty if it has none or merely its number."""
    name = printable(names[number], NAME_LIMIT) if 0 <= number < len(names) else ""
    return "" if name == str(number) else name


def goal_label(names: Sequence[str], goal: Goal) -> str:
    """Return a goal in words: the target class, or `class 3 → class 14`."""
    target = class_label(names, goal.target)
    return target if goal.source is None else f"{class_label(names, goal.source)} → {target}"


class Rated(Protocol):
    """A verdict with its calibrated probability: a report, or what is written of one."""

    @property
    def label(self) -> Label:
        """The verdict in a word."""
        ...

    @property
    def confidence(self) -> Confidence | None:
        """The probability; None if it is uncalibrated."""
        ...


def trust_in(verdict: Rated) -> str:
    """Return what the calibrated probability is one of, so that a low one cannot be misread."""
    if verdict.confidence is None or verdict.label in ("BACKDOORED", "SUSPICIOUS"):
        return "confidence"
    return "probability of such a backdoor"


def certainty(verdict: Rated) -> str:
    """Return the confidence with its interval, or `uncalibrated`."""
    c = verdict.confidence
    return "uncalibrated" if c is None else f"{c.value:.2f} [{c.low:.2f}, {c.high:.2f}]"


def families(rows: Sequence[FamilyChance]) -> str:
    """Return the probability of each family of triggers, as they come."""
    each = (f"{printable(row.family, NAME_LIMIT)} {row.confidence.value:.2f}" for row in rows)
    return " · ".join(each)


def opened(report: Report) -> str:
    """Return the format of the file and what it can carry."""
    kinds = {"safetensors": "safetensors, no code", "pytorch": "pytorch, read as data only"}
    return kinds.get(report.origin.format, printable(report.origin.format, NAME_LIMIT))
