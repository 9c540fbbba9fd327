"""What commands show on a terminal: progress, sentences, the description of a file."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gifthorse.cli.border import Interrupted
from gifthorse.core import types
from gifthorse.core.text import inert
from gifthorse.models import Inspection
from gifthorse.report.text import in_columns
from gifthorse.report.words import CLAIM_LIMIT, NAME_LIMIT, RULES, plural, printable, volume

RATINGS = (
    "dangerous",
    "unknown",
    "class",
    "object",
    "harmless",
)  # of a pickle's imports, worst first

err = Console(stderr=True, highlight=False)


@contextmanager
def bar(title: str) -> Iterator[types.ProgressCallback | None]:
    """Show a progress bar on a terminal's standard error; lines now and then elsewhere."""
    title = inert(title)
    if not err.is_terminal:
        with Lines(title) as lines:
            yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as shown:
        task = shown.add_task(title, total=None, words="")
        yield lambda done, total, words: shown.update(
            task, completed=done, total=total, words=words
        )


class Lines(AbstractContextManager["Lines"]):
    """Progress where there is no terminal: a line after a second, then one every half minute.

    A thread of its own prints, since a single step of a large net may take longer than that.

    Args:
        title: What is worked on.
        every: Seconds between two lines.
        first: Seconds before the first one: what fails at once says why and nothing else.
    """

    def __init__(self, title: str, every: float = 30.0, first: float = 1.0) -> None:
        self.title, self.every, self.first = title, every, first
        self.started = time.monotonic()
        self._begun, self._first = self.started, 0  # of the search that goes on
        self._last: tuple[int, int, str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __call__(self, done: int, total: int, words: str) -> None:
        """Take note of how far it is; print the first time, and at the end."""
        before, self._last = self._last, (done, total, words)
        if before is None:
            self._thread.start()
        elif done < before[0] or total != before[1]:
            self._begun, self._first = time.monotonic(), done  # another search has begun

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        wait = self.first
        while not self._over.wait(wait):
            self._print()
            wait = self.every

    def _print(self) -> None:
        if self._last is not None:
            done, total, words = self._last
            spent = time.monotonic() - self.started
            each = (time.monotonic() - self._begun) / max(1, done - self._first)
            known = done > self._first and total > 1
            left = f", at most {each * (total - done):.0f} s left in it" if known else ""
            note(f"{self.title}: {words}, {done}/{total}, {spent:.0f} s{left}")


@contextmanager
def going_on(folder: Path | None, command: str) -> Iterator[None]:
    """If interrupted, say where the search is kept that was begun, and how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None or not any(folder.glob("*.safetensors")):
            raise
        say(f"gifthorse: interrupted; the search is kept in {folder}. Go on with: {command}")
        raise Interrupted from None


def say(words: str) -> None:
    """Print one sentence on standard error, unwrapped in pipes."""
    shown = Text(inert(words), style="bold red")
    err.print(shown, soft_wrap=not err.is_terminal)


def note(words: str) -> None:
    """Print what happens on the way on standard error."""
    err.print(Text(inert(words)), soft_wrap=not err.is_terminal)


def tell(words: str) -> None:
    """Print a result on standard output, as it is but for what acts on a terminal."""
    typer.echo(inert(words.removesuffix("\n")))


@contextmanager
def logged() -> Iterator[None]:
    """Show warnings of the package as notes."""
    log, handler = logging.getLogger("gifthorse"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: note(f"gifthorse: {record.getMessage()}")  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def with_command(app: typer.Typer, arguments: list[str]) -> list[str]:
    """Put `scan` in front of arguments that start with a model: `gifthorse MODEL --images DIR`."""
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    first = arguments[0] if arguments else ""
    if first and not first.startswith("-") and first not in known and "--images" in arguments:
        return ["scan", *arguments]
    return arguments


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
    return in_columns(Text(printable(found.path)), Padding(grid, (0, 0, 0, 2)))


def _first(lines: Sequence[str], most: int = 8) -> list[str]:
    """Return the first lines, cut to a length that a hostile file cannot choose."""
    first = [printable(line, CLAIM_LIMIT) for line in lines[:most]]
    return first + [f"and {len(lines) - most:,} more"] * (len(lines) > most)


def _advice(found: Inspection) -> str:
    if found.advice:
        return found.advice
    command = f"gifthorse scan {shlex.quote(found.path)} --images DIR"
    if not found.arch:
        command += " --arch NAME (see gifthorse list models, or give file.py:function)"
    return f"No code is no proof of good weights. Look for a backdoor: {command}"
