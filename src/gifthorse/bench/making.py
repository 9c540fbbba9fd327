"""How a bench makes its models: data, training, implanting, and what each draws from."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import Generator

from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Subject
from gifthorse.workflows import make
from gifthorse.workflows.make import DataSplits

if TYPE_CHECKING:  # types alone, so that what else these do changes no model
    from gifthorse.bench.tasks import Cell
    from gifthorse.models.load import Opened


def draws(cell: Cell, purpose: str) -> Generator:
    """Return the source of randomness of one purpose in a cell; other purposes do not shift it.

    It depends on seed, data and net, not on options, so that settings are compared on the same
    draws, nor on the code.
    """
    text = f"{cell.seed}|{cell.data}|{cell.net}|{purpose}"
    whole = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    return Generator().manual_seed(whole)


@lru_cache(2)
def whole_data(name: str) -> DataSplits:
    """Return a data set by name, read once a process; errors are those of `make.divide`."""
    return make.divide(name)


def data_of(cell: Cell) -> DataSplits:
    """Return a cell's data, cut to what the plan's setting says.

    Raises:
        BadImages: If the data set cannot be found.
        BadOption: If it has no such name, or the plan's images are less than one a class.
    """
    data = make.shorter(whole_data(cell.data), cell.setting.images)
    return make.fewer_tests(data, cell.setting.test)


def trained(cell: Cell, data: DataSplits, run: Run, given: Opened | None = None) -> Subject:
    """Return the benign net of a cell: trained here, or what the plan's file holds."""
    if given is not None:
        return make.benign(given, data).to(run.device)
    return make.train_clean(cell.net, data, cell.setting.recipe, draws(cell, "train"), run)


def implanted(cell: Cell, data: DataSplits, benign: Subject, run: Run) -> Implant:
    """Return the backdoored net of a cell, made from its benign one or from scratch."""
    assert cell.attack is not None
    name, start = cell.attack.name, benign
    if cell.setting.start == "scratch":
        start = make.fresh(cell.net, data, draws(cell, f"start {name}")).to(run.device)
    goal, rng = Goal(cell.setting.target), draws(cell, f"implant {name}")
    return make.implant(cell.attack.method, start, data, goal, rng, run)
