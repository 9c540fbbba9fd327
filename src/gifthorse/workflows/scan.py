"""One request from file to report: open, read, receive, scan, write."""

from __future__ import annotations

import json
import logging
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from torch import Tensor

from gifthorse import __version__
from gifthorse.analysis.attribution import explained
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import (
    BadOption,
    GifthorseError,
    UnknownMethod,
    UnreadableModel,
    UsageError,
)
from gifthorse.core.metrics import mask_jaccard
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Detector,
    Finding,
    Normalization,
    Origin,
    Progress,
    Report,
    RunRecord,
    Subject,
)
from gifthorse.data import read
from gifthorse.detection import DETECTORS, PRESETS, SECOND
from gifthorse.models import Opened, load
from gifthorse.models import inspect as look
from gifthorse.report import WRITERS, FailOn, render
from gifthorse.report.facts import leads
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.detect import refused, scan
from gifthorse.workflows.prepare import Received, parse, receive

log = logging.getLogger("gifthorse")

STANDARD = PRESETS["standard"]  # what runs when nothing is named
SHOWN = 8  # pairs of images whose attribution maps are drawn
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Request:
    """What a user asked for; all of it shows in the report.

    Attributes:
        images: Where clean images are.
        arch: Architecture, or None to guess it from the tensors.
        normalize: `auto`, a name or `MEAN/STD`.
        input_size: `HxW`, or None to take the images' own size.
        limit: Most images to use, spread over their classes; None for all. They are held in memory,
            as float32 while they are searched on, and a scan gains nothing from more than hundreds.
        detectors: Names; empty runs those of the preset.
        options: Changes of the detectors' options by dotted name.
        preset: `quick`, `standard` or `thorough`.
        classes: The target classes to search, such as `0,3,7-9`; None takes all.
        pairs: Search a trigger for every pair of classes instead of every class.
        time_limit: When the detectors must stop, such as `90`, `10m` or `1h`; None for never.
        budget: Image-steps after which they must stop; None for never.
        resume: Folder that keeps the state of unfinished detectors; None keeps nothing.
        seed: Seed of all randomness.
        command: The command line, for the report.
    """

    images: str
    arch: str | None = None
    normalize: str = "auto"
    input_size: str | None = None
    limit: int | None = 1000
    detectors: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    preset: str = "standard"
    classes: str | None = None
    pairs: bool = False
    time_limit: str | None = None
    budget: int | None = None
    resume: Path | None = None
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
    limits(request, None)  # said before anything is opened

    def record() -> RunRecord:
        return RunRecord(
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
        return replace(refused(_unopened(path), error), run=record())
    received = take_in(opened, request, named, size)
    rng = torch.Generator().manual_seed(request.seed)
    digest = received.subject.origin.sha256
    run = limits(request, progress)
    report = scan(
        received,
        detectors,
        rng,
        run,
        second=second(request),
        store=lambda name: state_file(request, digest, name),
    )
    report = illustrated(report, received.subject)
    steps = (*_go_on(request, run.parts), *report.next_steps)
    return replace(report, next_steps=steps, run=record())


def illustrated(report: Report, subject: Subject) -> Report:
    """Add to the leading finding where the net looks, if captum is there and the net has maps."""
    lead = next(iter(leads(report)), None)
    if lead is None or lead.finding.goal is None or lead.finding.severity in ("LOW", "INFO"):
        return report
    found = lead.finding
    before, after = found.evidence.get("before"), found.evidence.get("after")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return report
    try:
        more = explained(subject, before[:SHOWN], after[:SHOWN], lead.finding.goal)
    except (GifthorseError, RuntimeError) as error:  # a picture less is no reason to fail
        log.debug("no attribution maps: %s", error)
        return report
    grown = replace(found, evidence={**found.evidence, **more})
    verdicts = (
        replace(v, findings=tuple(grown if f is found else f for f in v.findings))
        for v in report.verdicts
    )
    return replace(report, verdicts=tuple(verdicts))


def limits(request: Request, progress: Progress | None) -> Run:
    """Return what counts time from now, and the work of all detectors, against the limits.

    Raises:
        BadOption: If a limit is none.
        UsageError: If the folder for states cannot be made.
    """
    if request.budget is not None and request.budget < 1:
        raise BadOption(f"--budget takes 1 image-step or more; got {request.budget}")
    if request.resume is not None:
        try:
            request.resume.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--resume takes a folder; {request.resume}: {error}") from error
    return Run(progress, parse_time(request.time_limit), request.budget)


def state_file(request: Request, digest: str, name: str) -> Path | None:
    """Return where the state of a detector is kept, if it is, for a model with this SHA-256."""
    return request.resume / f"{digest[:12]}-{name}.safetensors" if request.resume else None


def _go_on(request: Request, parts: Sequence[Run]) -> tuple[str, ...]:
    """Say how a stopped scan goes on; forget the states of one that is complete."""
    kept = [t.store for t in parts if t.store is not None and t.store.exists()]
    if not any(t.was_stopped for t in parts):
        for path in kept:
            path.unlink()
        return ()
    if kept:
        again = request.command or "the same scan with the same folder"
        return (f"Go on where it stopped: {again}",)
    return ("Raise the limit, or scan with --resume DIR, so that a stopped scan can go on.",)


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
    if request.preset not in PRESETS:
        raise UnknownMethod.among("preset", request.preset, PRESETS)
    names = request.detectors or PRESETS[request.preset]
    for name in names:
        if name not in DETECTORS:
            raise UnknownMethod.among("detector", name, DETECTORS)
    found = {name: vary(DETECTORS[name], request.options) for name in names}
    if request.pairs:
        found = _everywhere(found, "pairs", True)
    if request.classes is not None:
        found = _everywhere(found, "classes", parse_classes(request.classes))
    return found


def second(request: Request) -> dict[str, Detector]:
    """Return what a preset runs as well in doubt, if it runs as it was calibrated."""
    changed = request.detectors or request.options or request.pairs or request.classes is not None
    return {} if changed else {name: DETECTORS[name] for name in SECOND.get(request.preset, ())}


def _everywhere(
    detectors: Mapping[str, Detector], option: str, value: object
) -> dict[str, Detector]:
    """Set an option of all detectors that have it."""
    able = [name for name, detector in detectors.items() if option in describe(detector)]
    if not able:
        raise BadOption(f"--{option} means nothing to {', '.join(detectors)}: leave it away")
    return {n: vary(d, {option: value}) if n in able else d for n, d in detectors.items()}


def parse_classes(text: str) -> tuple[int, ...]:
    """Read class numbers and ranges of them.

    Raises:
        BadOption: If it is something else.

    Example:
        >>> parse_classes("0,3,7-9")
        (0, 3, 7, 8, 9)
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        row = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
        if not row:
            raise BadOption(f"--classes takes numbers and ranges such as 0,3,7-9; got {text!r}")
        numbers |= set(row)
    return tuple(sorted(numbers))


def parse_time(text: str | None) -> float | None:
    """Read a time as seconds.

    Raises:
        BadOption: If it is something else, or none at all.

    Example:
        >>> parse_time("90"), parse_time("1.5s"), parse_time("10m"), parse_time("1h")
        (90.0, 1.5, 600.0, 3600.0)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh]?)", text.strip(), re.ASCII)
    if found is None or not float(found[1]):
        raise BadOption(f"--time-limit takes a time such as 90, 90s, 10m or 1h; got {text!r}")
    return float(found[1]) * UNITS[found[2]]


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
    mask = open_trigger(truth).picture()[1]
    found = next((f for v in report.verdicts for f in v.findings if "mask" in f.evidence), None)
    if found is None:
        return "no trigger was recovered, so none can be compared with the true one"
    strength = found.evidence["mask"]
    if not isinstance(strength, Tensor) or strength.shape != mask.shape:
        raise UsageError(
            f"{truth} holds a trigger whose mask is {tuple(mask.shape[1:])}: images of that size, "
            "or a trigger without a fixed place, which has no mask to compare"
        )
    index = mask_jaccard(strength[0], mask[0])
    pixels = int((mask > 0).sum())
    shared = round(2 * pixels * index / (1 + index))
    return (
        f"the true trigger has {pixels} pixels; {shared} of them are among the {pixels} strongest "
        f"of the recovered one (mask Jaccard {index:.2f})"
    )
