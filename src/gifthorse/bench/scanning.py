"""Scans of many models as jobs of the bench's executors; what each said is kept in a store."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from gifthorse import __version__
from gifthorse.bench.runner import Done, Executor, RunStatus, Tell, drive, heartbeat
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import READING
from gifthorse.core.errors import GifthorseError, Unwritable
from gifthorse.core.files import is_regular
from gifthorse.core.types import Origin, Report
from gifthorse.models.opening import digest_now
from gifthorse.report import WRITERS, FailOn, exit_code
from gifthorse.report.saving import save
from gifthorse.report.status import limited
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import Request, scan

FORM = 1  # of keys and records; a new number has every model scanned again
LISTED = 100_000  # images of a folder that a key looks at


@dataclass(frozen=True)
class ScanJob:
    """One model to be scanned.

    Attributes:
        key: Digest of the model, of the images and of what is asked.
        model: The file, or the folder.
        inputs: How to open it, and clean images.
        request: What is to run.
        files: Formats of reports and where they go.
        device: Where the net runs.
        after: Nothing: models need not wait for each other.
    """

    key: str
    model: str
    inputs: Inputs
    request: Request
    files: tuple[tuple[str, Path], ...] = ()
    device: str = "cpu"
    after: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """Seconds after which the scan is given up: it is asked to stop long before."""
        seconds = self.request.time_limit
        return math.inf if seconds is None else 2 * seconds + READING

    @property
    def words(self) -> str:
        """The model's path."""
        return self.model


def jobs_of(
    models: Iterable[str],
    inputs: Inputs,
    request: Request,
    files: Sequence[tuple[tuple[str, Path], ...]],
) -> list[ScanJob]:
    """Return a job for each model.

    Args:
        models: Paths, each once.
        inputs: How to open them, and clean images.
        request: What is to run.
        files: For each model, formats of reports and where they go.
    """
    asked = [repr(replace(inputs, device="cpu")), repr(replace(request, resume=None, command=""))]
    common = [FORM, __version__, torch.__version__, *_read(inputs, request), *asked]
    jobs = []
    for model, row in zip(models, files, strict=True):
        try:
            bytes_ = digest_now(model)
        except GifthorseError:
            bytes_ = ""  # whatever is wrong with it, the scan says so
        text = json.dumps([*common, model, bytes_, *_signed(model, inputs)])
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        kept = request.resume / "states" / key if request.resume else None
        jobs.append(ScanJob(key, model, inputs, replace(request, resume=kept), row))
    return jobs


def _read(inputs: Inputs, request: Request) -> list[str]:
    """Return what tells one content of what a scan reads beside the model from another."""
    named = (inputs.images, request.calibration, (inputs.arch or "").partition(":")[0])
    return [_content(str(place)) if place else "" for place in named]


def _signed(model: str, inputs: Inputs) -> list[str]:
    """Return what tells one signature, its key and the files that it may cover from others."""
    if inputs.signer is None:
        return []
    folder = model if os.path.isdir(model) else str(Path(model).parent)
    return [_content(str(inputs.signer)), _content(folder)]


def _content(place: str) -> str:
    """Return a digest of a file's bytes, or of the names, sizes and times in a folder."""
    path = Path(place)
    if is_regular(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not os.path.isdir(path):  # however odd the name
        return place
    total = hashlib.sha256(place.encode())
    for number, found in enumerate(sorted(path.rglob("*"))):
        if number > LISTED:
            break
        seen = found.stat() if found.exists() else found.lstat()  # of a link that leads nowhere
        told = f"{found.relative_to(path)} {seen.st_size} {seen.st_mtime_ns}\n"
        total.update(told.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


@dataclass(frozen=True)
class Scanner:
    """Scans a model and keeps what is said of it; itself a value, so that it can be sent.

    Attributes:
        root: Path or URL of the store.
        threads: Processor threads of a scan; 0 for what torch takes by itself.
    """

    root: str
    threads: int = 0

    def __call__(self, job: ScanJob) -> None:
        """Scan a model on its job's device; whatever is wrong with it is recorded, not raised."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            self._keep(job, *_scanned(job))
        finally:
            torch.set_num_threads(before)

    def failed(self, job: ScanJob, done: Done) -> None:
        """Leave word of a scan that was not finished."""
        Store(self.root).keep(_record(job, _broken(job.model, done.error), done.error, 2))

    def _keep(self, job: ScanJob, report: Report, error: str, status: int) -> None:
        try:
            save(job.files, lambda form: WRITERS[form](report), lambda words: None)
        except Unwritable as unwritten:
            error, status = error or str(unwritten), unwritten.exit_code
        Store(self.root).keep(_record(job, report, error, status))


def _scanned(job: ScanJob) -> tuple[Report, str, int]:
    """Return a report; where there is none, one that says why, and the exit status for that."""
    try:
        with redirect_stdout(sys.stderr):  # what a net prints is no part of a report
            inputs = replace(job.inputs, device=job.device)
            return scan(job.model, inputs, job.request), "", 0
    except GifthorseError as error:
        return _broken(job.model, str(error)), str(error), error.exit_code
    except Exception as error:  # no model keeps the others from being scanned
        words = f"not examined to the end: {type(error).__name__}: {error}"
        return _broken(job.model, words), words, 2


def _broken(model: str, words: str) -> Report:
    return Report("ERROR", words, Origin(path=model), None, (), (), (), (), None)


def _record(job: ScanJob, report: Report, error: str, status: int) -> dict[str, Any]:
    """Return what the store keeps; only what came to its end is not asked for again."""
    statuses = {fail: status or exit_code(report, fail) for fail in get_args(FailOn)}
    return {
        "key": job.key,
        "model": job.model,
        "finished": not error and not limited(report),
        "statuses": statuses,
        "scan": json.loads(WRITERS["json"](report)),
    }


def scan_all(
    jobs: Sequence[ScanJob], store: Store, scanner: Scanner, engine: Executor, tell: Tell
) -> list[Mapping[str, Any]]:
    """Scan what is not in the store yet, and return all records in the order of the jobs.

    Args:
        jobs: The models.
        store: Where records are.
        scanner: What the engine does with each.
        engine: Runs them.
        tell: Told how far it is.

    Raises:
        UsageError: If another run is at work in the store.
    """
    store.mend()
    todo = [job for job in jobs if not _is_finished(job, store)]
    if todo:
        with heartbeat(store) as beat:

            def watch(status: RunStatus) -> None:
                beat(status)
                tell(status)

            drive(todo, engine, scanner.failed, watch)
    found = (store.record(job.key) for job in jobs)
    return [record for record in found if record is not None]


def _is_finished(job: ScanJob, store: Store) -> bool:
    record = store.record(job.key)
    return bool(record and record.get("finished")) and all(p.exists() for _, p in job.files)
