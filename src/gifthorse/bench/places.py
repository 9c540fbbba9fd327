"""Which store a plan has, and which of its records are the plan's."""

from __future__ import annotations

from pathlib import Path

from gifthorse.bench.plan import BenchPlan, read
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import judging


def opened(file: Path, store: str | None) -> tuple[BenchPlan, Store]:
    """Return a plan and its store, `runs/NAME` unless another is named.

    Raises:
        UsageError: If either cannot be opened.
    """
    made = read(file)
    return made, Store(store or f"runs/{made.name}")


def recorded(source: str, store: str | None) -> tuple[Store, list[str] | None]:
    """Return the store of a plan and the keys of its cells; of a folder or URL all there is.

    Raises:
        UsageError: If it cannot be opened.
    """
    if source.endswith(".toml"):
        made, place = opened(Path(source), store)
        return place, [judging(cell).key for cell in made.cells]
    return Store(source), None
