"""Many models at once: scanned by an executor, then one table or one JSON."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gifthorse import __version__
from gifthorse.cli import parsing
from gifthorse.cli.border import Interrupted
from gifthorse.cli.engines import running, view
from gifthorse.cli.terminal import note, say, tell
from gifthorse.core.errors import BadOption, UsageError
from gifthorse.report.saving import save

if TYPE_CHECKING:
    from gifthorse.bench.scanning import ScanJob
    from gifthorse.workflows.opening import Inputs
    from gifthorse.workflows.scan import Request

LONGEST = 4 << 20  # bytes of a list


@dataclass(frozen=True)
class Crowd:
    """How many models are scanned.

    Attributes:
        executor: One of `EXECUTORS`; None for a pool.
        jobs: How many at once.
        address: Of a Ray cluster.
        source: The file that lists them.
    """

    executor: str | None = None
    jobs: int | None = None
    address: str | None = None
    source: str | None = None


def listed(place: str | None) -> list[str]:
    """Return the paths that a file lists, one a line; `-` reads standard input.

    Empty lines, and those that begin with `#`, are left out.

    Raises:
        UsageError: If it cannot be read, or is no list of paths.
    """
    if place is None:
        return []
    try:
        if place == "-":
            data = sys.stdin.buffer.read(LONGEST + 1)
        else:
            with Path(place).open("rb") as file:
                data = file.read(LONGEST + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--from takes a text file of paths; {place}: {error}") from error
    if len(data) > LONGEST or "\0" in text:
        raise UsageError(
            f"--from takes a text file of paths, one a line; {place} is something else"
        )
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def outputs(form: str, out: Sequence[str], models: Sequence[str]) -> parsing.Outputs:
    """Return where reports of each model go, and where what holds all goes, the one JSON too.

    Raises:
        BadOption: If a format or a path cannot be used.
    """
    from gifthorse.report import SUMMARIES

    if form not in ("text", "json", *SUMMARIES):
        known = ", ".join(SUMMARIES)
        raise BadOption(f"of many models the format is text (a table), json, {known}; got {form!r}")
    return parsing.outputs(form, out, models, one=("json",))


def scan_many(
    models: Sequence[str],
    inputs: Inputs,
    request: Request,
    crowd: Crowd,
    *,
    form: str,
    out: Sequence[str],
    fail_on: str,
) -> set[int]:
    """Scan models, print what was found of all of them, and return their exit statuses."""
    from gifthorse.bench import scanning
    from gifthorse.report import overview
    from gifthorse.workflows.scan import check

    models = list(dict.fromkeys(models))
    if not models:
        raise BadOption("there is no model to scan: name some, or list them with --from")
    fail = parsing.fail_on(fail_on)
    files = outputs(form, out, models)
    named = inputs.images, inputs.arch, inputs.signer
    read = (*models, crowd.source, *named, request.calibration)
    parsing.keep(files.paths, read)
    check(inputs, request)
    todo = scanning.jobs_of(models, inputs, request, files.each)
    try:
        found = _scanned(todo, request.resume, crowd, inputs.device)
    except KeyboardInterrupt:
        if request.resume is None:
            raise
        say(f"gifthorse: interrupted; what was scanned is kept. Go on: {request.command}")
        raise Interrupted from None
    scans = [record["scan"] for record in found]
    tell(overview.table(scans) if form == "text" else _document(scans, request.command, form))
    save(files.together, partial(_document, scans, request.command), note)
    return {record["statuses"][fail] for record in found}


def _scanned(
    todo: Sequence[ScanJob], resume: Path | None, crowd: Crowd, device: str
) -> Sequence[Mapping[str, Any]]:
    """Scan what is not kept yet, and return what is."""
    from gifthorse.bench import scanning
    from gifthorse.bench.cluster import Needs
    from gifthorse.bench.runner import processors
    from gifthorse.bench.store import Store

    jobs = min(crowd.jobs or 1, len(todo))
    threads = max(1, processors() // jobs) if jobs > 1 else 0
    with nullcontext(str(resume.absolute())) if resume else _scratch() as root:
        scanner = scanning.Scanner(root, threads)
        asked = crowd.executor or "pool", scanner, jobs, Needs(), crowd.address, device
        with running(*asked) as engine, view() as show:
            return scanning.scan_all(todo, Store(root), scanner, engine, show)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gifthorse-")


def _document(scans: Sequence[Any], command: str, form: str) -> str:
    """Return all results in a format."""
    from gifthorse.report import SUMMARIES, overview
    from gifthorse.report.reading import checked

    if form == "json":
        return overview.document(scans, command, __version__)
    return SUMMARIES[form]([checked(scan) for scan in scans])
