"""One request from file to report: open, read, receive, scan, write."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from gifthorse import __version__
from gifthorse.analysis.attribution import explained
from gifthorse.core.device import choose
from gifthorse.core.errors import (
    BadOption,
    GifthorseError,
    Halted,
    UnknownMethod,
    UnreadableModel,
    UsageError,
)
from gifthorse.core.files import owned
from gifthorse.core.metrics import mask_jaccard
from gifthorse.core.options import describe, vary
from gifthorse.core.pacing import paced
from gifthorse.core.run import CPU, GRACE, Run
from gifthorse.core.types import (
    Detector,
    Origin,
    ProgressCallback,
    Report,
    RunRecord,
    Subject,
    Trigger,
)
from gifthorse.data.readers import sniff
from gifthorse.detection import (
    BESIDE,
    DATA_FREE,
    DETECTORS,
    FEW_CLASSES,
    PRESETS,
    SECOND,
    STATISTICS,
)
from gifthorse.detection.calibrations import Calibrations, shipped
from gifthorse.detection.calibrations import opened as calibrations
from gifthorse.models import inspect as look
from gifthorse.models import load
from gifthorse.models.hub.fetching import check_fetched, fetch, is_hub_name
from gifthorse.models.opening import digest_now
from gifthorse.models.verification import read_key
from gifthorse.report.facts import leads
from gifthorse.report.status import limited
from gifthorse.workflows.detect import detect, refused, unprepared
from gifthorse.workflows.opening import Inputs, take_in
from gifthorse.workflows.prepare import Prepared

log = logging.getLogger("gifthorse")

SHOWN = 8  # pairs of images whose attribution maps are drawn


@dataclass(frozen=True)
class Request:
    """What is to run, and when it must stop.

    Attributes:
        detectors: Names; empty runs those of the preset.
        options: Changes of the detectors' options by dotted name.
        preset: `quick`, `standard` or `thorough`.
        classes: The target classes to search; empty takes all.
        pairs: Search a trigger for every pair of classes instead of every class.
        time_limit: Seconds after which the detectors must stop; None for never.
        budget: Image-steps after which they must stop; None for never.
        resume: Folder that keeps the state of unfinished detectors; None keeps nothing.
        seed: Seed of all randomness.
        command: The command line, for the report.
        calibration: A file of `gifthorse calibrate`, in place of what comes with the package.
    """

    detectors: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    preset: str = "standard"
    classes: tuple[int, ...] = ()
    pairs: bool = False
    time_limit: float | None = None
    budget: int | None = None
    resume: Path | None = None
    seed: int = 0
    command: str = ""
    calibration: Path | None = None


def scan(
    path: str,
    inputs: Inputs,
    request: Request = Request(),
    progress: ProgressCallback | None = None,
) -> Report:
    """Scan one model; one that cannot be opened gives a report that says so.

    Args:
        path: The model's file or folder, or its name on a hub, which is then fetched.
        inputs: How to open it, and clean images.
        request: What is to run.
        progress: Told of every round.

    Raises:
        UsageError: If the request itself is wrong (options, images, a path that is not there).
        Unfetched: If a hub does not give it.
    """
    if not is_hub_name(path):
        return _scanned(path, inputs, request, progress)
    check_fetched(path, inputs.signer)
    clock, run = _Clock(), Run(progress)
    try:
        found = fetch(path, lambda words: run.report(0, 1, words))
    except UnreadableModel as error:
        record = clock.record(request, choose(inputs.device))
        return replace(refused(Origin(path=path), error), run=record)
    report = _scanned(str(found.path), inputs, request, progress)
    return replace(report, origin=found.named(report.origin))


def _scanned(
    path: str, inputs: Inputs, request: Request, progress: ProgressCallback | None
) -> Report:
    clock, detectors, device = _Clock(), chosen(request), choose(inputs.device)
    run, opened = limits(request, progress, device), None
    try:
        run.report(0, 1, "opening the model")
        opened = load(path, inputs.arch, inputs.part, signer=inputs.signer)
        run.report(0, 1, "reading and checking the images")
        with paced(lambda kept: run.overtime(GRACE)):
            prepared = take_in(opened, inputs)
    except UnreadableModel as error:
        return replace(
            refused(error.origin or _unopened(path), error), run=clock.record(request, device)
        )
    except Halted as halt:
        origin = opened.origin if opened is not None else _unopened(path)
        return replace(unprepared(origin, halt), run=clock.record(request, device))
    if not request.detectors:
        detectors = usual(prepared, request, detectors)
    rng = torch.Generator().manual_seed(request.seed)
    digest = prepared.subject.origin.sha256
    with owned(state_file(request, digest, "scan")):
        report = detect(
            prepared,
            detectors,
            rng,
            run,
            beside=beside(request, prepared),
            second={} if prepared.blind else further(request, SECOND),
            calibrations=given(request),
            store=lambda name: state_file(request, digest, name),
        )
    with paced(lambda kept: run.overtime(GRACE)):
        report = illustrated(report, prepared.subject)
    steps = (*_go_on(request, run.parts, report), *report.next_steps)
    report = _of_then(report) if _changed(path, digest) else report
    return replace(report, next_steps=steps, run=clock.record(request, device))


def check(inputs: Inputs, request: Request) -> None:
    """Say what is wrong with a request whatever the model, before any is opened.

    Raises:
        UsageError: If an option, a limit, a folder or the images are.
    """
    found = chosen(request)
    given(request)
    if inputs.signer is not None:
        read_key(inputs.signer)
    limits(request)
    if inputs.images is not None:
        sniff(inputs.images)
    elif request.detectors:
        check_blind(found)
    if inputs.limit is not None and inputs.limit < 1:
        raise BadOption(f"limit must be 1 or more; got {inputs.limit}")


class _Clock:
    """When a scan began, and how long it took."""

    def __init__(self) -> None:
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def record(self, request: Request, device: torch.device) -> RunRecord:
        """Return how the report came about, as of now."""
        return RunRecord(
            command=request.command,
            seed=request.seed,
            device=str(device),
            seconds=time.monotonic() - self._clock,
            started=self._started.isoformat(timespec="seconds"),
            versions={
                "gifthorse": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )


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
    except (GifthorseError, RuntimeError, Halted) as error:  # a picture less is no reason to fail
        log.debug("no attribution maps: %s", error)
        return report
    grown = replace(found, evidence={**found.evidence, **more})
    verdicts = (
        replace(v, findings=tuple(grown if f is found else f for f in v.findings))
        for v in report.verdicts
    )
    return replace(report, verdicts=tuple(verdicts))


def limits(
    request: Request, progress: ProgressCallback | None = None, device: torch.device = CPU
) -> Run:
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
    return Run(progress, request.time_limit, request.budget, device=device)


def state_file(request: Request, digest: str, name: str) -> Path | None:
    """Return where the state of a detector is kept, if it is, for a model with this SHA-256."""
    return request.resume / f"{digest[:12]}-{name}.safetensors" if request.resume else None


def _go_on(request: Request, parts: Sequence[Run], report: Report) -> tuple[str, ...]:
    """Say how a stopped scan goes on; forget the states of one that is complete."""
    kept = [t.store for t in parts if t.store is not None and t.store.exists()]
    if not limited(report):
        for path in () if any(check.rule == "IN007" for check in report.checks) else kept:
            path.unlink()  # a detector that failed may get on in another version
        return ()
    if kept:
        again = request.command or "the same scan with the same folder"
        return (f"Go on where it stopped: {again}",)
    return ("Raise the limit, or scan with --resume DIR, so that a stopped scan can go on.",)


def _changed(path: str, digest: str) -> bool:
    """Whether a model is another one by now."""
    try:
        return digest_now(path) != digest
    except GifthorseError:
        return True


def _of_then(report: Report) -> Report:
    """Return a report on a file that was changed meanwhile: what lies there now has no verdict."""
    words = (
        "The file was changed while it was scanned: what is said is of the bytes with sha256 "
        f"{report.origin.sha256[:12]}, not of those that lie there now. Scan it again."
    )
    found = report.label in ("BACKDOORED", "SUSPICIOUS")
    label, reason = (report.label, f"{report.reason} {words}") if found else ("ERROR", words)
    return replace(report, label=label, reason=reason, confidence=report.confidence)


def _unopened(path: str) -> Origin:
    """Return what is known of a file that was not opened: its bytes and what they look like."""
    seen = look(path)
    return Origin(path=path, sha256=seen.sha256, bytes=seen.bytes, format=seen.format)


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
    if request.classes:
        found = _everywhere(found, "classes", request.classes)
    return found


def given(request: Request) -> Calibrations | None:
    """Return the calibrations of a request; None for those that come with the package.

    Raises:
        UsageError: If its file is none.
    """
    return None if request.calibration is None else calibrations(request.calibration)


def usual(prepared: Prepared, request: Request, preset: dict[str, Detector]) -> dict[str, Detector]:
    """Return what runs if no detector is named: the preset, but on two classes or no images."""
    if prepared.blind:
        names: Iterable[str] = DATA_FREE
    elif prepared.subject.classes < 3:
        names = sorted(FEW_CLASSES)
    else:
        return preset
    return {name: vary(DETECTORS[name], request.options) for name in names}


def check_blind(detectors: Iterable[str]) -> None:
    """Refuse detectors that need images where there are none.

    Raises:
        BadOption: If there is such a one.
    """
    able = {*DATA_FREE, "mm_bd"}
    needy = [name for name in detectors if name not in able]
    if needy:
        raise BadOption(
            f"{', '.join(needy)} cannot run without images: give --images, or take one of "
            f"{', '.join(sorted(able))}"
        )


def further(request: Request, table: Mapping[str, Sequence[str]]) -> dict[str, Detector]:
    """Return what else a preset runs by `BESIDE` or `SECOND`, if it runs as it was calibrated."""
    changed = request.detectors or request.options or request.pairs or request.classes
    return {} if changed else {name: DETECTORS[name] for name in table.get(request.preset, ())}


def beside(request: Request, prepared: Prepared) -> dict[str, Detector]:
    """Return what joins a preset: by `BESIDE`, and what a calibration reads together with it."""
    found = {} if prepared.blind else further(request, BESIDE)
    if not found:
        return {}
    known, subject = given(request) or shipped(), prepared.subject
    preset = set(PRESETS[request.preset])
    for fusion in known.together:
        more = [name for name in fusion.detectors if name not in preset]
        if fusion.covers(subject.classes, subject.shape[1:]) and {*STATISTICS}.issuperset(more):
            found |= {name: DETECTORS[name] for name in more}
    return found


def _everywhere(
    detectors: Mapping[str, Detector], option: str, value: object
) -> dict[str, Detector]:
    """Set an option of all detectors that have it."""
    able = [name for name, detector in detectors.items() if option in describe(detector)]
    if not able:
        raise BadOption(f"--{option} means nothing to {', '.join(detectors)}: leave it away")
    return {n: vary(d, {option: value}) if n in able else d for n, d in detectors.items()}


def compared(report: Report, true: Trigger, truth: str) -> str:
    """Return, in words, how well the leading trigger overlaps the true one of a test model.

    Args:
        report: A report with findings.
        true: What `gifthorse attack` wrote beside the model, opened by `open_trigger`.
        truth: Its file's name.

    Raises:
        UsageError: If it is no trigger of this image size.
    """
    mask = true.render()[1]
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
