"""The JSON result as pydantic models, from which its JSON Schema is made."""

from __future__ import annotations

import json
import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field

from gifthorse.core.types import Label, Severity

SCHEMA_VERSION: Final = "1"


def _encodable(value: str) -> str:
    """Replace lone surrogates, as in undecodable file names, which UTF-8 cannot hold."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _finite(value: float | None) -> float | None:
    """Turn NaN and the infinities into null."""
    return value if value is None or math.isfinite(value) else None


Words = Annotated[str, BeforeValidator(_encodable)]
Number = Annotated[float | None, BeforeValidator(_finite)]
Picture = Annotated[str | None, Field(description="PNG as a data URI, one PNG pixel for a pixel")]


class Tool(BaseModel, extra="forbid"):
    """The program that made the result."""

    name: Literal["gifthorse"]
    version: Words


class RunRecord(BaseModel, extra="forbid"):
    """How the result came about; `started` is ISO 8601, `duration_s` wall time in seconds."""

    started: Words
    duration_s: Number
    command: Words
    seed: int
    device: Words
    versions: dict[Words, Words]


class Share(BaseModel, extra="forbid"):
    """A share of trials with its 95 % binomial interval; all in [0, 1]."""

    value: Number
    interval: tuple[Number, Number]
    trials: int


class Normalization(BaseModel, extra="forbid"):
    """What pixels are turned into first: `(x * scale - mean) / std`; mean and std on 0-1."""

    name: Words
    mean: list[Number]
    std: list[Number]
    scale: Number
    bgr: bool


class NormalizationTried(BaseModel, extra="forbid"):
    """A candidate with its accuracy on the clean images and its mean top probability."""

    normalization: Normalization
    accuracy: Share
    confidence: Number
    chosen: bool


class NormalizationChoice(BaseModel, extra="forbid"):
    """The normalization used, why, and all candidates, best first."""

    used: Normalization
    how: Words
    candidates: list[NormalizationTried]


class Input(BaseModel, extra="forbid"):
    """What the net was fed: shape is (C, H, W)."""

    shape: tuple[int, int, int]
    normalize: NormalizationChoice


class Architecture(BaseModel, extra="forbid"):
    """The architecture and how it was found."""

    name: Words
    how: Words


class ClassName(BaseModel, extra="forbid"):
    """One class; its name is null if none was given."""

    index: int
    name: Words | None


class Target(BaseModel, extra="forbid"):
    """The file that was scanned; `claims` is its own metadata and not to be trusted."""

    path: Words
    sha256: Words
    bytes: int
    format: Words
    arch: Architecture
    tensors: int
    params: int
    dtypes: list[Words]
    notes: list[Words]
    claims: dict[Words, Words]
    classes: list[ClassName]
    input: Input | None


class Data(BaseModel, extra="forbid"):
    """The clean images."""

    source: Words
    sha256: Words
    images: int
    per_class: list[int]
    labels_from: Words
    notes: list[Words]


class Check(BaseModel, extra="forbid"):
    """A finding that is not a detector's: sanity, file safety."""

    rule: Words
    severity: Severity
    message: Words
    value: Number


class Sanity(BaseModel, extra="forbid"):
    """The model on the clean images, and what is odd about it, the images or the file."""

    clean_accuracy: Share | None
    checks: list[Check]


class VerdictOnFile(BaseModel, extra="forbid"):
    """The verdict on the file; `confidence` and `interval` are null if uncalibrated."""

    label: Label
    reason: Words
    confidence: Number
    interval: tuple[Number, Number] | None
    calibrated: bool
    calibration_id: Words | None
    not_covered: list[Words]
    next_steps: list[Words]


class Statistic(BaseModel, extra="forbid"):
    """The figure behind a finding beside the others of its kind; sizes in pixels."""

    score: Number
    threshold: Number
    size: Number
    median_of_others: Number
    others: int
    depth: Number
    size_ratio: Number


class Success(BaseModel, extra="forbid"):
    """How often the trigger works: in the search, on unseen images, and beside controls."""

    search: Number
    confirm: Share | None
    random_baseline: Share | None
    no_trigger: Share | None


class TriggerFound(BaseModel, extra="forbid"):
    """The recovered trigger; `bbox` is left, top, right, bottom, the last two exclusive."""

    mask_l1: Number
    mask_pixels: int
    mask_fraction: Number
    bbox: tuple[int, int, int, int] | None
    place: str
    image: Picture = Field(description="The pattern under its mask as RGBA, PNG data URI")
    mask: Picture
    packed: str | None = Field(
        description="The trigger itself, which `gifthorse repair --scan` unlearns: base64 of "
        "deflated (zlib) safetensors, whose metadata name its kind and its goal"
    )


class FindingFound(BaseModel, extra="forbid"):
    """What a detector found; `source_classes` is null where every other class is meant."""

    id: str
    detector: Words
    rule: Words
    severity: Severity
    kind: Literal["all_to_one", "pair", "model"]
    message: Words
    target_class: int | None
    source_classes: list[int] | None
    statistic: Statistic
    asr: Success
    trigger: TriggerFound | None
    evidence: dict[Words, Number]


class Row(BaseModel, extra="forbid"):
    """One goal in the table of a detector; `size` in pixels, `index` in robust deviations."""

    detector: Words
    target: int
    source: int | None
    size: Number
    index: Number
    asr: Number
    rounds: int
    status: Literal["found", "infeasible"]


class DetectorRun(BaseModel, extra="forbid"):
    """What one detector says; a score at or above the threshold speaks for a backdoor.

    `image_steps` counts images that went forward and back through the net; forward alone is a half.
    """

    name: Words
    label: Label
    score: Number
    threshold: Number
    seconds: Number
    image_steps: Number
    statistics: dict[Words, Number]
    params: dict[Words, Words]


class Skipped(BaseModel, extra="forbid"):
    """Something that was not examined."""

    what: Words
    why: Words


class Failure(BaseModel, extra="forbid"):
    """What went wrong."""

    code: Words
    message: Words
    where: Words


class Result(BaseModel, extra="forbid"):
    """The result of one scan. Numbers are finite or null."""

    schema_version: Literal["1"]
    tool: Tool
    run: RunRecord
    target: Target
    data: Data | None
    sanity: Sanity
    verdict: VerdictOnFile
    findings: list[FindingFound]
    per_class: list[Row]
    detectors: list[DetectorRun]
    skipped: list[Skipped]
    errors: list[Failure]
    partial: bool
    exit_code: int


def schema_text() -> str:
    """Return the JSON Schema of a result, as it is published in `docs/report.schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Result.model_json_schema(mode="serialization"),
        "title": f"gifthorse scan result, version {SCHEMA_VERSION}",
    }
    return json.dumps(schema, indent=2) + "\n"
