"""How a bench makes its models: data, training, implanting, and what each draws from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor

from gifthorse.bench.sources import code_digest
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Subject
from gifthorse.data.gallery import digest
from gifthorse.data.samples import InMemory
from gifthorse.workflows import make
from gifthorse.workflows.make import DataSplits

if TYPE_CHECKING:  # types alone, so that what else these do changes no model
    from gifthorse.bench.tasks import Cell
    from gifthorse.models.load import Opened

PARTS = ("train", "validation", "test")

log = logging.getLogger("gifthorse")


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
    """Return a data set by name; errors are those of `make.divide`.

    Signs that are drawn are kept in the user's cache: every task has a process of its own, and
    drawing takes longer than most judgments.
    """
    if not name.startswith("trojai:"):
        return make.divide(name)
    code = code_digest(frozenset({"gifthorse.workflows.make"}))
    drawn = hashlib.sha256(f"{name} {code}".encode()).hexdigest()[:24]
    path = user_cache_path("gifthorse") / "drawn" / f"{drawn}.safetensors"
    if (data := _kept(path, name)) is None:
        data = make.divide(name)
        _keep(path, data)
    return data


def _keep(path: Path, data: DataSplits) -> None:
    parts = [(name, getattr(data, name)) for name in PARTS]
    tensors = {f"{name}.images": part.images for name, part in parts}
    tensors |= {f"{name}.labels": part.labels for name, part in parts}
    told = {"class_names": json.dumps(data.class_names), "classes": str(data.train.classes)}
    told["sha256"] = _digest([(part.images, part.labels) for _, part in parts])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(save(tensors, told))
    except (OSError, UsageError) as error:
        log.warning("%s cannot be cached in %s: %s", data.name, path.parent, error)


def _digest(parts: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Return the SHA-256 of images and labels, part by part."""
    return hashlib.sha256("".join(digest(*part) for part in parts).encode()).hexdigest()


def _kept(path: Path, name: str) -> DataSplits | None:
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata()
            parts = {
                part: InMemory(
                    file.get_tensor(f"{part}.images"),
                    file.get_tensor(f"{part}.labels"),
                    int(told["classes"]),
                )
                for part in PARTS
            }
        kept = _digest([(part.images, part.labels) for part in parts.values()])
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError):
        return None
    if told.get("sha256") != kept:
        log.warning("%s was changed since it was written: %s is made anew", path, name)
        return None
    names = tuple(json.loads(told["class_names"]))
    return DataSplits(name, **parts, class_names=names, normalization=make.usual(name))


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
