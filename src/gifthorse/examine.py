"""One request from file to report: open, read, receive, scan, write."""

from __future__ import annotations

import io
import json
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gifthorse import __version__
from gifthorse.data import read
from gifthorse.detection import DETECTORS
from gifthorse.errors import BadOption, UnknownMethod, UnreadableModel, UsageError
from gifthorse.intake import Received, parse, receive
from gifthorse.metrics import mask_jaccard
from gifthorse.models import Inspection, Opened, load
from gifthorse.models import inspect as look
from gifthorse.options import vary
from gifthorse.report import WRITERS, FailOn, render
from gifthorse.report.words import CLAIM_LIMIT, NAME_LIMIT, RULES, plural, printable, volume
from gifthorse.scan import refused, scan
from gifthorse.triggers import Patch
from gifthorse.types import Detector, Finding, Normalization, Origin, Progress, Report, Run
from gifthorse.writing import atomic

STANDARD = ("pixel_quick",)  # what runs when no detector is named
RATINGS = ("dangerous", "unknown", "class", "harmless")  # of a pickle's imports, worst first


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
        return refused(_unopened(path), error, run())
    received = take_in(opened, request, named, size)
    rng = torch.Generator().manual_seed(request.seed)
    report = scan(received, detectors, rng, run(), watch=lambda name: progress)
    return replace(report, run=run())


def _unopened(path: str) -> Origin:
    """Return what is known of a file that was not opened: its bytes and what they look like."""
    seen = look(path)
    return Origin(path=path, sha256=seen.sha256, bytes=seen.bytes, format=seen.format)


def take_in(
    opened: Opened,
    request: Request,
    named: Normalization | None,
    size: tuple[int, int] | None,
) -> Received:
    """Read the images and put the net behind its normalization."""
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
        chosen=named,
        claimed=claimed(opened.origin),
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


def emit(
    report: Report,
    wanted: Sequence[tuple[str, Path | None]],
    console: Console,
    fail: FailOn = "suspicious",
) -> list[Path]:
    """Write a report in every format; return the files written, each whole or not at all."""
    written = []
    for name, target in wanted:
        if target is None and name == "text":
            render(report, console, fail_on=fail)
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


def compared(report: Report, truth: Path) -> str:
    """Return, in words, how well the leading trigger overlaps the true one of a test model.

    Args:
        report: A report with findings.
        truth: What `gifthorse attack` wrote beside the model, `NAME.trigger.safetensors`.

    Raises:
        UsageError: If the file is no trigger of this image size.
    """
    mask = open_trigger(truth).mask
    found = next((f for v in report.verdicts for f in v.findings if "mask" in f.evidence), None)
    if found is None:
        return "no trigger was recovered, so none can be compared with the true one"
    strength = found.evidence["mask"]
    if not isinstance(strength, Tensor) or strength.shape != mask.shape:
        raise UsageError(f"{truth} holds a trigger for images of {tuple(mask.shape[1:])} pixels")
    index = mask_jaccard(strength[0], mask[0])
    pixels = int((mask > 0).sum())
    shared = round(2 * pixels * index / (1 + index))
    return (
        f"the true trigger has {pixels} pixels; {shared} of them are among the {pixels} strongest "
        f"of the recovered one (mask Jaccard {index:.2f})"
    )


def open_trigger(path: Path) -> Patch:
    """Read a trigger file that `gifthorse attack` wrote.

    Raises:
        UsageError: If it is something else.
    """
    try:
        parts = load_file(path)
        return Patch(parts["pattern"], parts["mask"])
    except (OSError, SafetensorError, KeyError) as error:
        raise UsageError(f"{path} is no trigger file of gifthorse: {error}") from error


def describe_file(found: Inspection) -> str:
    """Return what `gifthorse inspect` prints of one file: plain text of at most 80 columns."""
    listed = f"{found.tensors:,} with {found.params:,} numbers ({', '.join(found.dtypes)})"
    records = f", {plural(len(found.records), 'zip record')}" if found.records else ""
    worst_first = sorted(found.imports, key=lambda i: RATINGS.index(i.safety))
    rows = [
        ("safety", [found.safety]),
        ("format", [found.format + records]),
        ("size", [f"{volume(found.bytes)} ({found.bytes:,} bytes)"]),
        ("sha256", [found.sha256]),
        ("tensors", [listed if found.tensors else "none listed"]),
        ("wrapped in", [" > ".join(found.wrappers)] if found.wrappers else []),
        ("network", [f"{found.arch}, {found.how}" if found.arch else found.how]),
        ("notes", _first(found.notes)),
        ("asks for", _first([f"{i.safety}: {i} (in {i.record})" for i in worst_first])),
        ("file claims", _first([f"{k[:NAME_LIMIT]}: {v}" for k, v in found.metadata.items()])),
        *(
            (f.rule, [f"{f.severity}, {RULES.get(f.rule, '')}: {f.message}"])
            for f in found.findings
        ),
        ("next", [_advice(found)]),
    ]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, lines in rows:
        for number, line in enumerate(lines):
            grid.add_row("" if number else name, Text(printable(line)))
    out = io.StringIO()
    plain = Console(file=out, width=80, color_system=None, legacy_windows=False)
    plain.print(Text(printable(found.path)), Padding(grid, (0, 0, 0, 2)), sep="\n")
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _first(lines: Sequence[str], most: int = 8) -> list[str]:
    """Return the first lines, cut to a length that a hostile file cannot choose."""
    first = [printable(line, CLAIM_LIMIT) for line in lines[:most]]
    return first + [f"and {len(lines) - most:,} more"] * (len(lines) > most)


def _advice(found: Inspection) -> str:
    rules = {f.rule for f in found.findings if f.severity in ("CRITICAL", "HIGH")}
    if rules & {"FS001", "FS002"}:
        return "Do not open this file with torch.load or pickle; ask its author for safetensors."
    if rules:
        return "Do not use this file: get it again from its source and compare the hash."
    command = f"gifthorse scan {shlex.quote(found.path)} --images DIR"
    if not found.arch:
        command += " --arch NAME (see gifthorse list models, or give file.py:function)"
    return f"No code is no proof of good weights. Look for a backdoor: {command}"
