"""The file that says what scores mean: one that comes with the package, or of one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from gifthorse.core.errors import UsageError
from gifthorse.core.files import parse_json, read_file
from gifthorse.detection.calibration import Calibration
from gifthorse.detection.fusion import ANY, FamilyModel, Fusion

MOST_BYTES, MOST_MODELS, MOST_DETECTORS = 2**24, 10_000, 50
Finite = Annotated[float, Field(ge=-1e9, le=1e9)]  # what a line can be fitted through
Count = Annotated[int, Field(ge=1, le=MOST_MODELS)]
Range = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


@dataclass(frozen=True)
class Calibrations:
    """What makes scores probabilities.

    Attributes:
        detectors: The calibration of each detector by itself, by its name.
        together: What reads the verdicts of several at once.
    """

    detectors: Mapping[str, Calibration] = field(default_factory=dict)
    together: Sequence[Fusion] = ()


@cache
def shipped() -> Calibrations:
    """Return the calibrations that come with the package."""
    path = files("gifthorse.detection").joinpath("calibration.json")
    return loaded(path.read_text(), str(path)) if path.is_file() else Calibrations()


def opened(path: Path) -> Calibrations:
    """Return the calibrations in a file that `gifthorse calibrate` wrote.

    Raises:
        UsageError: If there is no such file, or it is none.
    """
    return loaded(read_file(path, MOST_BYTES), str(path))


def loaded(text: str | bytes, where: str) -> Calibrations:
    """Return the calibrations that a JSON text holds.

    Args:
        text: What `dumped` returns.
        where: What to call it in an error.

    Raises:
        UsageError: If it is none.
    """
    try:
        file = _File.model_validate(parse_json(text))
    except ValueError as error:
        raise UsageError(
            f"{where} is no calibration, as gifthorse calibrate writes one: {str(error)[:300]}"
        ) from error
    return Calibrations(
        {
            name: Calibration(file.name, bag.clean, bag.backdoored, bag.lines)
            for name, bag in file.detectors.items()
        },
        tuple(fusion.made() for fusion in file.together),
    )


def dumped(
    name: str,
    bags: Mapping[str, Calibration],
    made: Mapping[str, object],
    together: Sequence[Fusion] = (),
) -> str:
    """Return calibrations as JSON, with how they were made."""
    detectors = {
        key: {"clean": bag.clean, "backdoored": bag.backdoored, "lines": bag.lines}
        for key, bag in bags.items()
    }
    file = {"name": name, "scale": "log1p", "made": dict(made), "detectors": detectors}
    return json.dumps(file | {"together": [asdict(fusion) for fusion in together]}) + "\n"


class _Bag(BaseModel):
    """One detector's part of a file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    clean: tuple[Finite, ...] = Field(min_length=1, max_length=MOST_MODELS)
    backdoored: tuple[Finite, ...] = Field(min_length=1, max_length=MOST_MODELS)
    lines: tuple[tuple[Finite, Finite], ...] = Field(min_length=1, max_length=MOST_MODELS)


class _FamilyModel(BaseModel):
    """One family's part of a fusion."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    clean: Count
    backdoored: Count
    lines: tuple[tuple[Finite, ...], ...] = Field(min_length=1, max_length=MOST_MODELS)
    auc: float = Field(ge=0, le=1)
    entropy: float = Field(ge=0, le=1e9)
    alarms: int = Field(ge=0, le=MOST_MODELS)
    found: int = Field(ge=0, le=MOST_MODELS)


class _Fusion(BaseModel):
    """Several detectors' part of a file."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=500)
    detectors: tuple[str, ...] = Field(min_length=1, max_length=MOST_DETECTORS)
    classes: Range
    sides: Range
    families: dict[Annotated[str, Field(max_length=100)], _FamilyModel] = Field(max_length=50)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted = 2 * len(self.detectors) + 2
        if any(len(line) != wanted for m in self.families.values() for line in m.lines):
            raise ValueError(f"{len(self.detectors)} detectors need lines of {wanted} numbers")
        if ANY not in self.families:
            raise ValueError(f"families lack {ANY}")
        return self

    def made(self) -> Fusion:
        """Return what it describes."""
        families = {name: FamilyModel(**dict(model)) for name, model in self.families.items()}
        return Fusion(self.name, self.detectors, self.classes, self.sides, families)


class _File(BaseModel):
    """A calibration file."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=500)
    scale: Literal["log1p"]  # of the scores under the lines; earlier files have none
    detectors: dict[str, _Bag]
    together: tuple[_Fusion, ...] = ()
    made: dict[str, JsonValue] = {}
