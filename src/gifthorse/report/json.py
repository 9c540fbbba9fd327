"""The JSON result of a scan: our own records, with small pictures inside, and its JSON Schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from torch import Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.types import (
    Arm,
    Confidence,
    Confirmation,
    FamilyChance,
    Finding,
    Goal,
    Label,
    Origin,
    Preparation,
    Report,
    RunRecord,
    Severity,
)
from gifthorse.report.facts import (
    Footprint,
    Lead,
    SizeComparison,
    arm_of,
    array,
    compared,
    footprint,
    leads,
    scalars,
)
from gifthorse.report.pictures import png
from gifthorse.report.status import exit_code, incomplete

SCHEMA_VERSION: Final = "2"
TEXT_LIMIT = 2000  # characters of a file's own claim
CLAIMS_LIMIT = 100  # how many of its claims are kept

T = TypeVar("T")


@dataclass(frozen=True)
class FileVerdict:
    """The verdict on the file; without `confidence` it is uncalibrated.

    `families` has the probability of each family of triggers, where several detectors were read
    together; likeliest first.
    """

    label: Label
    reason: str
    confidence: Confidence | None
    not_covered: tuple[str, ...]
    next_steps: tuple[str, ...]
    families: tuple[FamilyChance, ...] = ()


@dataclass(frozen=True)
class CheckEntry:
    """A finding that is not a detector's: sanity, file safety."""

    rule: str
    severity: Severity
    score: float
    message: str


@dataclass(frozen=True)
class TriggerEntry:
    """The recovered trigger.

    Attributes:
        footprint: Where it sits.
        image: The pattern under its mask as RGBA: a PNG data URI, one PNG pixel for a pixel.
        mask: The mask alone, the same way.
        packed: The trigger itself, which `repair --scan` and `analyze --trigger` take: base64 of
            deflated (zlib) safetensors, whose metadata name its kind and its goal.
    """

    footprint: Footprint
    image: str | None
    mask: str | None
    packed: str | None


@dataclass(frozen=True)
class FindingEntry:
    """What a detector found; the gravest comes first.

    Attributes:
        id: `F1`, `F2` ...
        detector: Registry name of the detector.
        rule: Stable code, e.g. `BD001`.
        severity: CRITICAL to INFO.
        score: The statistic behind it; the detector has its threshold.
        message: One sentence in words.
        goal: What the backdoor does; null for a finding on the model as a whole.
        arm: The goal's row in the detector's table.
        comparison: Its size beside those of the others.
        confirmation: The trigger on unseen images, beside shuffled ones and none.
        trigger: The recovered trigger.
        evidence: Further figures by name.
    """

    id: str
    detector: str
    rule: str
    severity: Severity
    score: float
    message: str
    goal: Goal | None
    arm: Arm | None
    comparison: SizeComparison | None
    confirmation: Confirmation | None
    trigger: TriggerEntry | None
    evidence: Mapping[str, float]


@dataclass(frozen=True)
class DetectorEntry:
    """What a detector says; its fields are those of a `Verdict`; `arms` say what was searched."""

    method: str
    label: Label
    score: float
    threshold: float
    seconds: float
    image_steps: float
    statistics: Mapping[str, float]
    settings: Mapping[str, str]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class ScanResult:
    """The result of one scan. Numbers are finite or null.

    Attributes:
        schema_version: Which form this is.
        tool: Name and version of the program that made it.
        run: Command, seed, device, time and versions.
        target: The file; its `metadata` are its own claims and not to be trusted.
        data: Clean images, normalization and accuracy; null if the scan never got that far.
        checks: Findings that are not a detector's: sanity, file safety.
        verdict: The verdict on the file.
        findings: What the detectors found, the gravest first.
        detectors: What each of them says, with its table of goals.
        partial: Whether something was left unexamined.
        exit_code: The exit status that `gifthorse scan` has by default.
    """

    schema_version: Literal["2"]
    tool: Mapping[Literal["name", "version"], str]
    run: RunRecord
    target: Origin
    data: Preparation | None
    checks: tuple[CheckEntry, ...]
    verdict: FileVerdict
    findings: tuple[FindingEntry, ...]
    detectors: tuple[DetectorEntry, ...]
    partial: bool
    exit_code: int


# 1. Writing -----------------------------------------------------------------------------------


def write(report: Report) -> str:
    """Return the report as JSON text in ASCII, so that no character acts on a terminal."""
    return encoded(collect(report), indent=2)


def collect(report: Report) -> ScanResult:
    """Return what is written of a report."""
    claims = list(report.origin.metadata.items())[:CLAIMS_LIMIT]
    kept = {key[:TEXT_LIMIT]: value[:TEXT_LIMIT] for key, value in claims}
    return ScanResult(
        schema_version=SCHEMA_VERSION,
        tool={"name": "gifthorse", "version": report.run.versions.get("gifthorse", "")},
        run=report.run,
        target=replace(report.origin, metadata=kept),
        data=report.preparation,
        checks=tuple(_like(CheckEntry, check) for check in report.checks),
        verdict=_like(FileVerdict, report),
        findings=tuple(_finding(place, lead) for place, lead in enumerate(leads(report), 1)),
        detectors=tuple(_like(DetectorEntry, verdict) for verdict in report.verdicts),
        partial=incomplete(report),
        exit_code=exit_code(report),
    )


def _like(kind: type[T], source: object, **more: object) -> T:
    """Return an entry with the fields of the same name of a record, and with others."""
    names = {f.name for f in fields(kind)} - more.keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(source, name) for name in names}, **more)


def _finding(place: int, lead: Lead) -> FindingEntry:
    finding, verdict = lead.finding, lead.verdict
    return _like(
        FindingEntry,
        finding,
        id=f"F{place}",
        detector=verdict.method,
        arm=arm_of(verdict, finding.goal),
        comparison=compared(verdict, finding.goal),
        trigger=_trigger(finding),
        evidence=scalars(finding.evidence),
    )


def _trigger(finding: Finding) -> TriggerEntry | None:
    spot, kept = footprint(finding.evidence), finding.evidence.get("packed")
    if spot is None:
        return None
    pattern, mask = array(finding.evidence, "pattern"), array(finding.evidence, "mask")
    return TriggerEntry(
        footprint=spot,
        image=png(pattern, mask) if pattern is not None else None,
        mask=png(mask) if mask is not None else None,
        packed=bytes(kept.tolist()).decode("ascii") if isinstance(kept, Tensor) else None,
    )


def encoded(value: object, *, indent: int = 1) -> str:
    r"""Return records, mappings, lists, tensors and numbers as JSON text in ASCII.

    Tensors become lists and records tables; what is not finite becomes null, and lone surrogates,
    as in undecodable file names, which UTF-8 cannot hold, a question mark.

    Example:
        >>> print(encoded({"size": math.inf, "goal": Goal(14)}, indent=0).replace("\n", ""))
        {"size": null,"goal": {"target": 14,"source": null}}
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write a value to a file as `encoded` puts it, whole or not at all.

    Raises:
        UsageError: If the file cannot be written.
    """
    with atomic(path) as file:
        file.write(encoded(value).encode())


def plain(value: object) -> Any:
    """Return what JSON can hold of a value, as `encoded` writes it."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | Path):
        return str(value).encode("utf-8", "replace").decode("utf-8")
    return value


# 2. Schema ------------------------------------------------------------------------------------


class _Written(GenerateJsonSchema):
    """A schema of what is written: every field is there, no other, and any number may be null."""

    def float_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().float_schema(schema), "type": ["number", "null"]}

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        return {**super().dataclass_schema(schema), "additionalProperties": False}

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True


def schema_text() -> str:
    """Return the JSON Schema of a result, as it is published in `docs/report.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **TypeAdapter(ScanResult).json_schema(mode="serialization", schema_generator=_Written),
        "title": f"gifthorse scan result, version {SCHEMA_VERSION}",
    }
    return json.dumps(schema, indent=2) + "\n"
