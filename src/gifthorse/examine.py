"""One request from file to report: open, read, receive, scan, write."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from gifthorse import __version__
from gifthorse.data import read
from gifthorse.detection import DETECTORS
from gifthorse.errors import BadOption, UnknownMethod, UnreadableModel
from gifthorse.intake import Received, parse, receive
from gifthorse.models import Inspection, Opened, load
from gifthorse.options import vary
from gifthorse.report import WRITERS, FailOn, render
from gifthorse.scan import refused, scan
from gifthorse.types import Detector, Finding, Normalization, Origin, Progress, Report, Run
from gifthorse.writing import atomic

STANDARD = ("pixel_quick",)  # what runs when no detector is named


@dataclass(frozen=True)
class Request:
    """What a user asked for; all of it shows in the report.

    Attributes:
        images: Where clean images are.
        arch: Architecture, or None to guess it from the tensors.
        normalize: `auto`, a name or `MEAN/STD`.
        input_size: `HxW`, or None to take the images' own size.
        limit: Most images to use.
        detectors: Names; empty runs the standard ones.
        options: Changes of the detectors' options by dotted name.
        seed: Seed of all randomness.
        command: The command line, for the report.
    """

    images: str
    arch: str | None = None
    normalize: str = "auto"
    input_size: str | None = None
    limit: int | None = None
    detectors: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    command: str = ""


def examine(path: str, request: Request, progress: Progress | None = None) -> Report:
    """Scan one file; a file that cannot be opened gives a report that says so.

    Raises:
        UsageError: If the request itself is wrong (options, images, a path that is not there).
    """
    started, clock = datetime.now(UTC), time.monotonic()
    detectors = chosen(request)
    named, size = parse(request.normalize), parse_size(request.input_size)

    def run() -> Run:
        return Run(
            command=request.command,
            seed=request.seed,
            device="cpu",
            seconds=time.monotonic() - clock,
            started=started.isoformat(timespec="seconds"),
            versions={
                "gifthorse": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )

    try:
        opened = load(path, request.arch)
    except UnreadableModel as error:
        return refused(Origin(path=path), str(error), error.rule, run())
    received = take_in(opened, request, named, size)
    rng = torch.Generator().manual_seed(request.seed)
    report = scan(received, detectors, rng, run(), watch=lambda name: progress)
    return replace(report, run=run())


def take_in(
    opened: Opened,
    request: Request,
    named: Normalization | None,
    size: tuple[int, int] | None,
) -> Received:
    """Read the images and put the net behind its normalization."""
    claim = claimed(opened.origin)
    gallery = read(
        request.images,
        size=size,
        channels=opened.channels,
        classes=opened.classes,
        limit=request.limit,
    )
    received = receive(
        opened.net,
        opened.classes,
        gallery,
        origin=opened.origin,
        chosen=named or claim,
        how="--normalize" if named else "the file's own metadata, checked",
    )
    if opened.nonfinite:
        names = ", ".join(opened.nonfinite[:3])
        words = f"{len(opened.nonfinite)} tensors hold NaN or infinite weights: {names}"
        broken = Finding("FS005", "HIGH", float(len(opened.nonfinite)), words)
        received = replace(received, checks=(broken, *received.checks))
    return received


def claimed(origin: Origin) -> Normalization | None:
    """Return the normalization that the file's metadata names, if it is well-formed."""
    try:
        record = json.loads(origin.metadata.get("gifthorse", "{}"))["normalization"]
        mean, std = (tuple(float(v) for v in record[k]) for k in ("mean", "std"))
        text = "/".join(",".join(str(v) for v in values) for values in (mean, std))
        found = parse(text)
    except (ValueError, KeyError, TypeError, BadOption):
        return None
    return replace(found, name=str(record.get("name", "custom"))[:20]) if found else None


def chosen(request: Request) -> dict[str, Detector]:
    """Return the detectors of a request with its options.

    Raises:
        UnknownMethod: If a name is unknown.
        BadOption: If an option is.
    """
    names = request.detectors or STANDARD
    for name in names:
        if name not in DETECTORS:
            raise UnknownMethod.among("detector", name, DETECTORS)
    return {name: vary(DETECTORS[name], request.options) for name in names}


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read `HxW`.

    Raises:
        BadOption: If it is something else.

    Example:
        >>> parse_size("32x48")
        (32, 48)
    """
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise BadOption(f"--input-size takes HxW such as 32x32; got {text!r}")
    return int(height), int(width)


def fail_on(text: str) -> FailOn:
    """Read `--fail-on`.

    Raises:
        BadOption: If it is not a verdict to fail on.
    """
    for known in get_args(FailOn):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise BadOption(f"--fail-on takes {', '.join(get_args(FailOn))}; got {text!r}")


def outputs(
    output_format: str, extra: Sequence[str], models: int
) -> tuple[tuple[str, Path | None], ...]:
    """Read `--format` and `--out FORMAT=PATH`: (format, path or None for standard output).

    Raises:
        BadOption: If a format is unknown, or several models would write one file.
    """
    wanted: list[tuple[str, Path | None]] = [(output_format, None)]
    for text in extra:
        name, equals, path = text.partition("=")
        if not equals:
            raise BadOption(f"--out takes FORMAT=PATH such as html=report.html; got {text!r}")
        if models > 1 and "{name}" not in path:
            raise BadOption(f"{models} models would write {path}: put {{name}} into the path")
        wanted.append((name, Path(path)))
        if not Path(path).resolve().parent.parent.is_dir():
            raise BadOption(f"cannot write {path}: its folder does not exist")
    for name, _ in wanted:
        if name not in WRITERS:
            raise UnknownMethod.among("format", name, WRITERS)
    return tuple(wanted)


def emit(report: Report, wanted: Sequence[tuple[str, Path | None]], console: Console) -> list[Path]:
    """Write a report in every format; return the files written, each whole or not at all."""
    written = []
    for name, target in wanted:
        if target is None and name == "text":
            render(report, console)
        elif target is None:
            console.out(WRITERS[name](report), highlight=False)
        else:
            stem = Path(report.origin.path).stem
            path = Path(str(target).replace("{name}", stem))
            path.parent.mkdir(exist_ok=True)
            with atomic(path) as file:
                file.write(WRITERS[name](report).encode())
            written.append(path)
    return written


def describe_file(found: Inspection) -> str:
    """Return what `gifthorse inspect` prints of one file."""
    raise NotImplementedError
