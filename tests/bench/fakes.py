"""Work that trains nothing: what a driver and its executors can be tried with, in any process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from gifthorse.bench.tasks import Cell, Task
from gifthorse.core.errors import UsageError


def task(number: int, *after: int, kind: str = "judge") -> Task:
    """A task whose cell has its number for a seed."""
    cell = Cell("data", "net", None, None, number)
    parents = tuple(f"{n:024x}" for n in after)
    return Task(kind, f"{number:024x}", cell, after=parents)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stamp:
    """Leave a line in a file of the task's own; some tasks kill their process, once or always.

    Attributes:
        folder: Where the files are.
        seconds: How long a task takes.
        dies: Tasks that always kill the process they run in.
        stumbles: Tasks that do so the first time.
        raises: Tasks that find something wrong that no other would fare better with.
    """

    folder: str
    seconds: float = 0.0
    dies: tuple[int, ...] = ()
    stumbles: tuple[int, ...] = ()
    raises: tuple[int, ...] = ()

    def __call__(self, task: Task) -> None:
        number, path = task.cell.seed, Path(self.folder) / task.key
        for parent in task.after:
            assert "done" in (Path(self.folder) / parent).read_text()
        first = not path.exists()
        with path.open("a") as file:
            file.write(f"begun {os.getpid()}\n")
        if number in self.raises:
            raise UsageError(f"task {number} finds no data: set GIFTHORSE_DATA")
        if number in self.dies or (number in self.stumbles and first):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        with path.open("a") as file:
            file.write(f"on {task.device}\ndone\n")

    def device(self, number: int) -> str:
        """Where a task was done."""
        words = (Path(self.folder) / f"{number:024x}").read_text().split()
        return words[words.index("on") + 1]

    def times(self, number: int) -> int:
        """How often a task came to its end."""
        path = Path(self.folder) / f"{number:024x}"
        return path.read_text().count("done") if path.exists() else 0
