"""The commands of `gifthorse bench`: plan, run, resume, status, report, leaderboard, query."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gifthorse.cli.border import Interrupted
from gifthorse.cli.engines import Address, Engine, line, running, span, view
from gifthorse.cli.options import Device, PlanFile, PlanStore
from gifthorse.cli.terminal import say, tell
from gifthorse.core.errors import Incomplete, UnknownMethod, UsageError

if TYPE_CHECKING:
    from gifthorse.bench.plan import BenchPlan
    from gifthorse.bench.runner import RunStatus
    from gifthorse.bench.store import Store
    from gifthorse.bench.tasks import Cell, Task

commands = typer.Typer(help="Cross attacks with defenses, data, nets and seeds; survive anything.")

FAILED = {"error", "timeout"}  # what a record says of a cell that may come out otherwise next time

Workers = Annotated[int | None, typer.Option(help="Processes of a pool; default one a processor.")]
Retry = Annotated[bool, typer.Option("--retry", help="Do what failed or timed out once more.")]


@commands.command()
def plan(file: PlanFile, store: PlanStore = None) -> None:
    """Say what a plan consists of, what is left of it and what that will cost."""
    from gifthorse.bench.results import opened

    _spoken(*opened(file, store))


@commands.command()
def run(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    file: PlanFile,
    store: PlanStore = None,
    executor: Engine = "pool",
    workers: Workers = None,
    address: Address = None,
    cpus: Annotated[float, typer.Option(help="Processors a task asks of a Ray node.")] = 1.0,
    gpus: Annotated[
        float, typer.Option(help="A GPU, or what part of one, each task has for itself.")
    ] = 0.0,
    memory: Annotated[float | None, typer.Option(help="GiB it asks for.")] = None,
    device: Device = "auto",
    only: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this cell; repeatable.")
    ] = None,
    retry: Retry = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do.")] = False,
) -> None:
    """Do what is left of a plan. It may be stopped at any time, in any way; run it again.

    Exits with 3 if cells failed or took too long, which their records say.
    """
    from gifthorse.bench import runner
    from gifthorse.bench.cluster import Needs
    from gifthorse.bench.results import opened
    from gifthorse.bench.worker import Worker

    made, place = opened(file, store)
    if dry_run:
        _spoken(made, place)
        return
    cells = _only(made, only or [])
    if retry:
        _again(made, place)
    # A worker on another machine stands in another folder.
    root = place.root if "://" in place.root else str(Path(place.root).absolute())
    worker = Worker(root, str(file))
    needs = Needs(cpus, gpus, None if memory is None else int(memory * 2**30))
    with runner.heartbeat(place) as beat:
        todo = _left(cells, place)
        if todo:
            most = None if workers is None else min(workers, len(todo))
            with (
                running(executor, worker, most, needs, address, device) as engine,
                view() as show,
            ):

                def watch(status: RunStatus) -> None:
                    beat(status)
                    show(status)

                try:
                    runner.drive(todo, engine, worker.failed, watch)
                except KeyboardInterrupt:
                    say(f"stopped; what was done is kept: gifthorse bench resume {file}")
                    raise Interrupted from None
    if _concluded(made, place) & FAILED:
        raise typer.Exit(Incomplete.exit_code)


def _left(cells: Iterable[Cell], place: Store) -> list[Task]:
    """Tidy a store, say what of it is damaged, and return what there is to do."""
    from gifthorse.bench.runner import missing
    from gifthorse.data.decode import listed

    place.sweep()
    if damaged := place.mend():
        say(f"damaged, so made anew: {listed(damaged)}")
    return missing(cells, place)


@commands.command()
def resume(
    file: PlanFile,
    store: PlanStore = None,
    executor: Engine = "pool",
    workers: Workers = None,
    address: Address = None,
    retry: Retry = False,
    device: Device = "auto",
) -> None:
    """Go on with a run that was stopped; like run, but something must be there already."""
    from gifthorse.bench.results import opened

    _, place = opened(file, store)
    if not place.recorded() and not place.models():
        raise UsageError(f"there is nothing to resume in {place.root}: gifthorse bench run {file}")
    run(file, store, executor, workers, address, retry=retry, device=device)


@commands.command()
def status(file: PlanFile, store: PlanStore = None) -> None:
    """Say how far a run is, from any terminal."""
    from gifthorse.bench import runner
    from gifthorse.bench.results import opened

    made, place = opened(file, store)
    status = runner.status(place)
    if status is None:
        tell(f"no run was started in {place.root}")
    else:
        quiet = time.time() - status.beat
        if status.ended:
            tell("the last run came to its end")
        elif quiet > runner.STALE:
            tell(f"the last run stopped {span(quiet)} ago: gifthorse bench resume {file}")
        else:
            tell(line(status))
            for words in status.running:
                tell(f"  {words}")
    _concluded(made, place)


def _spoken(made: BenchPlan, place: Store) -> None:
    from gifthorse.bench import runner
    from gifthorse.bench.results import estimate_cost
    from gifthorse.bench.tasks import tasks

    tell(wrapped(f"{made.name}: {len(made.cells)} cells. {made.about}"))
    whole = Counter(task.kind for task in tasks(made.cells))
    tell(
        f"  {whole['train']} benign nets and {whole['implant']} implants are shared by "
        f"{whole['judge']} cells"
    )
    for what in ("data", "net", "attack", "defense", "seed"):
        names = dict.fromkeys(str(getattr(getattr(c, what), "label", getattr(c, what)))
                              for c in made.cells if getattr(c, what) is not None)  # fmt: skip
        tell(wrapped(f"  {what:8} {', '.join(names) or '-'}", " " * 11))
    ahead = estimate_cost(runner.missing(made.cells, place), place)
    tell(
        f"left in {place.root}: {ahead.train} to train, {ahead.implant} to implant, "
        f"{ahead.judge} to judge"
    )
    if ahead.tasks:
        guess = span(ahead.seconds) if ahead.unknown < ahead.tasks else "unknown"
        beside = f"; {ahead.unknown} tasks of a kind not timed here" if ahead.unknown else ""
        tell(f"one worker needs about: {guess}{beside}")


def wrapped(text: str, indent: str = "  ") -> str:
    """Return text in lines of at most 80 columns, the later ones indented."""
    return fill(text.rstrip(), 80, subsequent_indent=indent, break_on_hyphens=False)


def _only(made: BenchPlan, keys: list[str]) -> list[Any]:
    from gifthorse.bench.tasks import judging

    if not keys:
        return list(made.cells)
    known = {judging(cell).key: cell for cell in made.cells}
    for key in keys:
        if key not in known:
            raise UnknownMethod.among("cell of this plan", key, known)
    return [known[key] for key in keys]


def _again(made: BenchPlan, place: Store) -> None:
    """Forget records and models of a plan that failed."""
    from gifthorse.bench.tasks import judging, tasks

    for task in tasks(made.cells):
        spec = None if task.kind == "judge" else place.spec(task.key)
        if spec and spec["error"] and spec.get("status", "error") in FAILED:
            place.abandon(task.key)
    for cell in made.cells:
        record = place.record(judging(cell).key)
        if record and record["status"] in FAILED:
            place.forget(record["key"])


def _concluded(made: BenchPlan, place: Store) -> set[str]:
    """Print how many cells are there, and why others are not; return what became of them."""
    from gifthorse.bench.tasks import judging

    found = [place.record(judging(cell).key) for cell in made.cells]
    count = Counter(record["status"] if record else "missing" for record in found)
    parts = ", ".join(f"{n} {status}" for status, n in count.most_common())
    tell(f"{made.name}: {len(made.cells)} cells in {place.root}: {parts}")
    said: set[str] = set()
    for cell, record in zip(made.cells, found, strict=True):
        if record and record["error"] and record["error"] not in said and len(said) < 8:
            said.add(record["error"])
            say(f"  {record['status']}: {cell.words}: {record['error'][:300]}")
    return set(count)
