"""The command `doctor`: what there is here to work with, and whether a scan comes out right."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from gifthorse import __version__
from gifthorse.cli import options
from gifthorse.cli.described import named
from gifthorse.cli.terminal import tell
from gifthorse.report.text import in_columns
from gifthorse.report.words import plural, volume

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from

LITTLE = 2 << 30  # bytes of memory or disk below which a scan may not get through
SHOWN = (
    *("CUDA_VISIBLE_DEVICES", "GIFTHORSE_DATA", "HF_HOME", "HF_HUB_OFFLINE", "NO_COLOR"),
    *("OMP_NUM_THREADS", "TMPDIR"),
)
WALLS = (
    "from gifthorse.core.isolated import kernel; "
    "print(int(kernel.landlock([])), int(kernel.seccomp()))"
)
Row = tuple[str, str]  # what, and what it is


@commands.command()
def doctor(
    device: options.Device = "auto",
    self_test: Annotated[
        bool, typer.Option(help="Also open and scan two made nets, one of them backdoored.")
    ] = True,
) -> None:
    """Say what is installed, what the machine has, and try a scan whose answer is known."""
    from gifthorse.core.device import choose

    choose(device)  # one that is not there is a wrong call, no failure of the self-test
    for title, rows in sections():
        tell(f"{title}\n{_lines(rows)}")
    if self_test:
        tell("self-test")
        if not _passes(device):
            raise typer.Exit(2)


def sections() -> Iterator[tuple[str, list[Row]]]:
    """Yield what there is, by kind."""
    yield "versions", versions()
    yield "devices", list(_devices())
    yield "limits", list(_limits())
    yield "extras", list(_extras())
    yield "data sets", list(_data())
    found = [(name, os.environ[name]) for name in SHOWN if os.environ.get(name)]
    yield "environment", found or [("", "nothing set")]


def versions() -> list[Row]:
    """Return the versions of what a scan rests on."""
    own = [("gifthorse", __version__), ("python", platform.python_version())]
    libraries = ("torch", "numpy", "pillow", "safetensors", "kornia", "picklescan")
    known = [(name, _version(name) or "missing") for name in libraries]
    return [*own, *known, ("system", platform.platform())]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _devices() -> Iterator[Row]:
    import torch

    from gifthorse.core.device import available, half

    for name in available():
        device = torch.device(name)
        quick = half(device)
        words = f"{quick}".removeprefix("torch.") if quick else "float32"
        if device.type == "cuda":
            about = torch.cuda.get_device_properties(device)
            words = f"{about.name}, {volume(about.total_memory)}, {words}"
        elif device.type == "cpu":
            cores, threads = os.cpu_count() or 1, torch.get_num_threads()
            words = f"{plural(cores, 'core')}, {plural(threads, 'thread')} in use, {words}"
        yield name, words


def _limits() -> Iterator[Row]:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield "memory", f"{volume(free)} free{_warned(free)}"
    except (OSError, ValueError, AttributeError):
        yield "memory", "the system does not tell"
    folder = tempfile.gettempdir()
    room = shutil.disk_usage(folder).free
    yield "disk", f"{volume(room)} free in {folder}{_warned(room)}"
    yield "readers", _walls()


def _warned(free: int) -> str:
    return "" if free >= LITTLE else f" - LITTLE: a scan of a large net takes {volume(LITTLE)}"


def _walls() -> str:
    """Say what the kernel adds to how files are read; asked in a process that then gives it up."""
    if not hasattr(os, "fork"):
        return "NONE: files that nobody trusts are read apart, which needs Linux or macOS"
    asked = [sys.executable, "-c", WALLS]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(  # noqa: S603 - our interpreter, our module, no shell
        asked, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    has = dict(zip(("landlock", "seccomp"), done.stdout.split(), strict=False))
    told = [f"{name} {'yes' if has.get(name) == '1' else 'no'}" for name in ("landlock", "seccomp")]
    return f"processes of their own, limits, audit hook, {', '.join(told)}"


def _extras() -> Iterator[Row]:
    """Yield what each extra of the package brings, and whether it is there."""
    try:
        about = metadata.metadata("gifthorse")
    except metadata.PackageNotFoundError:
        yield "", "not known: gifthorse is not installed, only on the path"
        return
    needs = metadata.requires("gifthorse") or []
    for extra in about.get_all("Provides-Extra") or []:
        mark = f"extra == '{extra}'"
        named = [n for n in needs if mark in n.replace('"', "'")]
        parts = [_name(n) for n in named]
        missing = [part for part in parts if not _version(part)]
        there = ", ".join(f"{part} {_version(part)}" for part in parts if part not in missing)
        advice = f"lacks {', '.join(missing)}: pip install 'gifthorse[{extra}]'"
        yield extra, "; ".join(filter(None, (there, advice if missing else "")))


def _name(requirement: str) -> str:
    """Return the name that a requirement begins with.

    Example:
        >>> _name("ray>=2.40; extra == 'ray'")
        'ray'
    """
    name = requirement.split(";")[0]
    return name[: next((i for i, c in enumerate(name) if c in "<>=!~[ ("), len(name))]


def _data() -> Iterator[Row]:
    from gifthorse.core.errors import UsageError
    from gifthorse.data.packed import PACKED, locate

    for name in sorted(PACKED):
        try:
            yield name, str(locate(name))
        except UsageError:
            continue
    if not os.environ.get("GIFTHORSE_DATA"):
        yield "", "GIFTHORSE_DATA names no folder; only making test models needs one"


def _passes(device: str) -> bool:
    from gifthorse.workflows.selftest import selftest

    good = True
    for trial in selftest(device):
        good = good and trial.passed
        mark = "ok    " if trial.passed else "FAILED"
        said = f"{mark} {trial.name}, {trial.seconds:.1f} s: {trial.words}"
        tell(fill(said, 80, initial_indent="  ", subsequent_indent=" " * 9))
    return good


def _lines(rows: Iterable[Row]) -> str:
    return in_columns(named((name, [value]) for name, value in rows))


def here() -> str:
    """Return versions, devices and where the package lies, for a report of a bug."""
    place = str(Path(__file__).parents[1])
    return _lines([*versions(), *_devices(), ("package", place)])
