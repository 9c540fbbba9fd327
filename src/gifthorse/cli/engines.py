"""What runs many jobs, and what is shown of it meanwhile: for benches and for scans of many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gifthorse.cli.terminal import err, note
from gifthorse.core.errors import UnknownMethod

if TYPE_CHECKING:
    from gifthorse.bench.runner import Executor, RunStatus, Tell, Work

EXECUTORS = ("serial", "pool", "ray")

Engine = Annotated[str, typer.Option(help="serial, pool or ray.")]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, or auto; default a Ray of its own.")
]


@contextmanager
def running(
    name: str, work: Work, workers: int | None, needs: Any, address: str | None, device: str
) -> Iterator[Executor]:
    """Lend an executor.

    Args:
        name: One of `EXECUTORS`.
        work: What it does with each job.
        workers: Processes of a pool; None for one a processor.
        needs: What a job asks of a node of Ray.
        address: Of a Ray cluster.
        device: Where nets run.

    Raises:
        UnknownMethod: If there is no such executor.
    """
    from gifthorse.bench import cluster, runner
    from gifthorse.core.device import choose

    if name not in EXECUTORS:
        raise UnknownMethod.among("executor", name, EXECUTORS)
    engine: Executor
    if name == "serial":
        engine = runner.Serial(work, *(runner.cards(needs.gpus) or [str(choose(device))])[:1])
    elif name == "pool":
        count = runner.processors() if workers is None else workers
        shared = [str(choose(device))] * count  # without a card for each they share one device
        engine = runner.Pool(work, count, runner.cards(needs.gpus) or shared)
    else:
        engine = cluster.OnRay(work, needs, address)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def view() -> Iterator[Tell]:
    """Show a run: live on a terminal, a line every half minute elsewhere."""
    if not err.is_terminal:
        last = 0.0

        def lines(status: RunStatus) -> None:
            nonlocal last
            if status.ended or time.monotonic() - last > 30:
                last = time.monotonic()
                note(line(status))

        yield lines
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=err, refresh_per_second=4, transient=True) as live:

        def draw(status: RunStatus) -> None:
            rows = [line(status), *(f"  {words}" for words in status.running[:20])]
            live.update(Text("\n".join(rows), no_wrap=True, overflow="ellipsis"))

        yield draw


def line(status: RunStatus) -> str:
    """Return how far a run is, in one line of at most 80 columns."""
    left = "" if status.left is None else f", {span(status.left)} left"
    failed = f", {status.failed} failed" if status.failed else ""
    running = f", {len(status.running)} running" if status.running else ""
    return f"{status.done} of {status.total} tasks done{running}{failed}{left}"


def span(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
