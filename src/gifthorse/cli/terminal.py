"""What commands show on a terminal: progress, sentences, the description of a file."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from gifthorse.cli.border import Interrupted
from gifthorse.core import types
from gifthorse.core.errors import Unwritable
from gifthorse.core.text import inert

PROGRESS = ("auto", "none", "plain", "rich")

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)
log = logging.getLogger("gifthorse.cli")  # what is said, for --log
log.addHandler(logging.NullHandler())  # without --log it is said, and no more


@dataclass
class Manner:
    """How much a command says beside its result, and how it shows that it goes on.

    Attributes:
        quiet: Leave notes and progress away; errors are said in any case.
        progress: `auto` (a bar on a terminal, lines elsewhere), `none`, `plain` lines or a `rich`
            bar.
    """

    quiet: bool = False
    progress: str = "auto"


manner = Manner()  # of the command that runs


@contextmanager
def bar(title: str) -> Iterator[types.ProgressCallback | None]:
    """Show a progress bar on a terminal's standard error; lines now and then elsewhere."""
    title = inert(title)
    if manner.quiet or manner.progress == "none":
        yield None
        return
    if manner.progress == "plain" or (manner.progress == "auto" and not err.is_terminal):
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
    drawn = err if err.is_terminal else Console(stderr=True, highlight=False, force_terminal=True)
    with Progress(*columns, console=drawn, transient=True) as shown:
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
    log.error(words)
    shown = Text(inert(words), style="bold red")
    err.print(shown, soft_wrap=not err.is_terminal)


def note(words: str) -> None:
    """Print what happens on the way on standard error, unless told to be quiet."""
    log.info(words)
    if not manner.quiet:
        err.print(Text(inert(words)), soft_wrap=not err.is_terminal)


def tell(words: str) -> None:
    """Print a result on standard output, as it is but for what acts on a terminal."""
    typer.echo(inert(words.removesuffix("\n")))


class _Notes(logging.Handler):
    """Shows warnings of the package; what is said anyway is only for a file."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != log.name and not manner.quiet:
            words = inert(f"gifthorse: {record.getMessage()}")
            err.print(Text(words), soft_wrap=not err.is_terminal)


class _Dated(logging.Formatter):
    """A line for each record: when, how grave, and words that act on no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        words = inert(record.getMessage()).replace("\n", " ")
        return f"{self.formatTime(record)} {record.levelname} {words}"


@contextmanager
def logged() -> Iterator[None]:
    """Show warnings of the package as notes; forget at the end what the command changed."""
    package, handler = logging.getLogger("gifthorse"), _Notes(logging.WARNING)
    level, before = package.level, dict(vars(manner))
    colors = [(console, console.no_color) for console in (err, out)]
    package.addHandler(handler)
    try:
        yield
    finally:
        vars(manner).update(before)
        for console, bare in colors:
            console.no_color = bare
        package.setLevel(level)
        for one in [h for h in package.handlers if h is handler or type(h) is logging.FileHandler]:
            package.removeHandler(one)
            one.close()


def plain() -> None:
    """Print without colors from now on."""
    err.no_color = out.no_color = True


def log_to(path: Path) -> None:
    """Add what is said, and what the package logs, to the end of a file.

    Raises:
        Unwritable: If it cannot be written.
    """
    package = logging.getLogger("gifthorse")
    try:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise Unwritable(f"cannot write the log {path}: {error.strerror or error}") from error
    file.setFormatter(_Dated())
    package.addHandler(file)
    package.setLevel(logging.DEBUG)


def with_command(app: typer.Typer, arguments: list[str]) -> list[str]:
    """Put `scan` in front of arguments that start with a model: `gifthorse MODEL --images DIR`.

    Options of all commands come first, wherever they stand.
    """
    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    front, rest = _of_all(arguments)
    first = rest[0] if rest else ""
    if first and not first.startswith("-") and first not in known and "--images" in rest:
        rest = ["scan", *rest]
    return [*front, *rest]


ANYWHERE = {"-q": 1, "--quiet": 1, "--no-color": 1, "--progress": 2, "--log": 2}  # and their words


def _of_all(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the options of all commands from the others, up to a `--`."""
    front, rest, place = list[str](), list[str](), 0
    end = arguments.index("--") if "--" in arguments else len(arguments)
    while place < end:
        count = ANYWHERE.get(arguments[place].partition("=")[0], 0)
        count = 1 if count and "=" in arguments[place] else count
        (front if count else rest).extend(arguments[place : min(end, place + max(1, count))])
        place += max(1, count)
    return front, [*rest, *arguments[end:]]
