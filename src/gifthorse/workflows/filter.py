"""Screen images with a filter: which of them carry a trigger, and what flagging them costs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Generator, Tensor

from gifthorse import __version__
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadImages, BadOption, Incomplete, UsageError
from gifthorse.core.options import describe, vary
from gifthorse.core.resizing import Resize
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.text import cell
from gifthorse.core.types import Filter, Labels, Rate, Samples, Subject
from gifthorse.data import read
from gifthorse.data.files import shown
from gifthorse.data.gallery import Gallery
from gifthorse.data.samples import InMemory, Subset, batches, split
from gifthorse.filtering.scoring import takes_labels, threshold
from gifthorse.report.figures.contact_sheet import plain_sheet, write_sheet
from gifthorse.training import predict
from gifthorse.workflows.prepare import Prepared

log = logging.getLogger("gifthorse")
SHARE = 0.5  # of the clean images, what a filter compares with; the others set the threshold
LEAST = 40  # clean images among a training set, if there are so many
COLUMNS = ("row", "file", "label", "predicted", "score", "flagged")


# 1. Scoring -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Screened:
    """What a filter makes of images.

    Attributes:
        method: The filter, with the options that it ran with.
        scores: One an image, `(N,)`; higher is worse.
        predicted: What the model takes the images for, `(N,)`.
        fpr: Share of clean images that were allowed to be flagged.
        threshold: The score above which an image is flagged.
        cost: Estimated share of clean images above it, from the images that set it.
        images: Clean images that the filter compared with.
        seconds: Wall time.
    """

    method: Filter
    scores: Tensor
    predicted: Labels
    fpr: float
    threshold: float
    cost: Rate
    images: int
    seconds: float

    @property
    def flagged(self) -> Tensor:
        """Which images are flagged, `(N,)` bool."""
        return self.scores > self.threshold

    @property
    def order(self) -> Tensor:
        """Indices of all images, the most suspicious first, `(N,)`."""
        return self.scores.argsort(descending=True, stable=True)


def screen(
    prepared: Prepared,
    suspects: InMemory,
    method: Filter,
    rng: Generator,
    run: Run,
    *,
    fpr: float = 0.05,
) -> Screened:
    """Score images with a filter, and set the threshold on clean images that it did not use.

    The clean images are split: with one part the filter works, the other one, mixed among the
    suspects in random order, gets its scores in the same call. So what depends on the company, as
    clusters and directions of features do, treats both alike, a trigger is only searched once, and
    the threshold is what a clean image scores among just these suspects. A filter that takes
    suspects for a training set needs no clean images: they are only mixed in, under their labels,
    at most one for four suspects, since many would thin a poisoned share out until it escapes.
    The model never saw them in training, so their scores are rather too high than too low.

    Args:
        prepared: The model and its clean images, as a scan takes them in.
        suspects: The images, of the model's shape; labels count for training sets alone.
        method: The filter.
        rng: Source of all randomness.
        fpr: Share of clean images that may be flagged, in [0, 1).
        run: Who watches.

    Raises:
        BadOption: If `fpr` is out of range.
        BadImages: If there are too few clean images, or labels are missing that are needed.
        Incomplete: If the model fails the checks that a scan begins with, or has no finite answer
            to some image: then nothing is said about any.
    """
    for check in prepared.checks:
        if check.severity in ("HIGH", "CRITICAL"):
            raise Incomplete(f"nothing was scored: {check.message}", rule=check.rule)
    threshold(torch.zeros(1), fpr)  # a share that is out of range is said before the long part
    if takes_labels(method) and not bool((suspects.labels >= 0).all()):
        raise BadImages("this filter judges a training set: give images with labels, all of them")
    started, clean = time.monotonic(), prepared.samples
    used, held = _parts(clean, suspects, method, spawn(rng))
    predicted = _answers(prepared.subject, suspects)
    every = InMemory(
        torch.cat([clean.images[held.index], suspects.images]),
        torch.cat([clean.labels[held.index], suspects.labels]),
        clean.classes,
    )
    order = torch.randperm(len(every), generator=spawn(rng))
    scores = torch.empty(len(every))
    scores[order] = method(prepared.subject, used, Subset(every, order), rng, run).cpu()
    known, scores = scores[: len(held)], scores[len(held) :]
    limit = threshold(known, fpr)
    seconds = time.monotonic() - started
    return Screened(method, scores, predicted, fpr, limit, cost(known, limit), len(used), seconds)


def _parts(
    clean: Samples, suspects: Samples, method: Filter, rng: Generator
) -> tuple[Subset, Subset]:
    """Return the clean images for the filter, and those for the threshold."""
    if not takes_labels(method):
        return split(clean, SHARE, rng)
    mixed = max(LEAST, len(suspects) // 4)
    _, held = split(clean, max(0.0, 1 - mixed / len(clean)), rng)
    return Subset(clean, held.index[:0]), held


def cost(known: Tensor, limit: float) -> Rate:
    """Return which share of further clean images to expect above a threshold, 95 % interval.

    Args:
        known: The scores of clean images that set it, `(n,)`.
        limit: The threshold, one of them.

    Source: the share above the (k+1)-th largest of n is Beta(k + 1, n - k), whatever the scores'
    distribution (Wilks, Ann. Math. Statist. 12, 1941). Without ties exact, else too high.

    Example:
        >>> cost(torch.arange(99.0), 94.0).value
        0.05
    """
    from scipy.special import betaincinv  # late: slow

    n, above = len(known), int((known > limit).sum())
    low, high = (float(betaincinv(above + 1, n - above, q)) for q in (0.025, 0.975))
    return Rate((above + 1) / (n + 1), low, high, n)


def fitted(method: Filter, clean: int) -> Filter:
    """Return a filter that makes do with its part of so many clean images, if fewer partners help.

    One image more than partners is left, which two-sided STRIP needs.
    """
    most, partners = max(1, int(clean * SHARE) - 1), getattr(method, "partners", 0)
    if partners <= most:
        return method
    log.warning(
        "partners lowered from %d to %d: one half of %d clean images is for the filter",
        partners,
        most,
        clean,
    )
    return vary(method, {"partners": most})


def take_in(source: str, prepared: Prepared, method: Filter) -> Gallery:
    """Read the images to judge, brought to size like the model's clean ones, repeats and all.

    Of a folder every image is read, wherever in it and whatever its subfolders mean, unless the
    method needs labels.

    Raises:
        BadImages: If there are none, or labels that count do not fit the model.
    """
    channels, height, width = prepared.subject.shape
    labeled = takes_labels(method)
    return read(
        source,
        size=prepared.resize or Resize((height, width)),
        channels=channels,
        classes=prepared.subject.classes if labeled else None,
        repeats=True,
        flat=not labeled,
    )


def shared(clean: InMemory, suspects: InMemory) -> int:
    """Return how many suspects are, pixel by pixel, among the clean images."""
    one, other = (
        [hashlib.sha256(x.numpy().tobytes()).digest() for x in samples.images]
        for samples in (clean, suspects)
    )
    known = set(one)
    return sum(x in known for x in other)


def _answers(subject: Subject, suspects: Samples) -> Labels:
    parts = []
    for x, _ in batches(suspects, 512):
        logits = predict(subject, x)
        if not bool(logits.isfinite().all()):
            raise Incomplete("nothing was scored: the model has no finite answer to some images")
        parts.append(logits.argmax(1).cpu())
    return torch.cat(parts)


# 2. Writing -----------------------------------------------------------------------------------


def record(name: str, seed: int, prepared: Prepared, gallery: Gallery, done: Screened) -> Any:
    """Return everything about a screening that can be said in JSON."""
    origin, preparation = prepared.subject.origin, prepared.preparation
    return {
        "model": {"path": origin.path, "sha256": origin.sha256, "arch": origin.arch},
        "method": name,
        "options": {k: str(v) for k, v in describe(done.method).items()},
        "seed": seed,
        "rule": "DS001" if takes_labels(done.method) else "DS002",
        "data": {
            "source": gallery.source,
            "sha256": gallery.sha256,
            "scored": len(done.scores),
            "not_scored": list(gallery.skipped),
            "notes": list(gallery.notes),
            "among_clean": shared(prepared.samples, gallery.samples),
        },
        "clean": {
            "source": preparation.source,
            "sha256": preparation.sha256,
            "used": done.images,
            "calibration": done.cost.trials,
        },
        "fpr": done.fpr,
        "threshold": done.threshold,
        "cost": asdict(done.cost),
        "flagged": int(done.flagged.sum()),
        "seconds": done.seconds,
        "versions": {"gifthorse": __version__, "torch": torch.__version__},
        "images": [_row(i, gallery, done) for i in done.order.tolist()],
    }


def _row(i: int, gallery: Gallery, done: Screened) -> dict[str, Any]:
    label = int(gallery.samples.labels[i])
    values = (
        i,
        gallery.names[i] if gallery.names else None,
        label if label >= 0 else None,
        int(done.predicted[i]),
        float(done.scores[i]),
        bool(done.flagged[i]),
    )
    return dict(zip(COLUMNS, values, strict=True))


def targets(out: str) -> dict[str, Path]:
    """Return where list, record and contact sheet go: into a folder, or beside a stem.

    Args:
        out: A folder that exists or ends with a slash, then made if need be, or a stem; an ending
            .csv, .json or .png counts as none.

    Raises:
        UsageError: If there is no such place.

    Example:
        >>> [path.name for path in targets("found.csv").values()]
        ['found.csv', 'found.json', 'found.png']
    """
    path, folder = Path(out), out.endswith(("/", os.sep))
    stem = path / "filter" if folder or path.is_dir() else path
    if stem.suffix in (".csv", ".json", ".png"):
        stem = stem.with_suffix("")
    try:
        if folder:
            path.mkdir(exist_ok=True)
        if not stem.parent.is_dir():
            raise FileNotFoundError(2, "its folder does not exist")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error
    return {end: stem.with_name(f"{stem.name}.{end}") for end in ("csv", "json", "png")}


def write(
    paths: Mapping[str, Path], said: Any, samples: InMemory, names: tuple[str, ...], most: int
) -> list[Path]:
    """Write list, record and a contact sheet of the most suspicious images.

    Args:
        paths: What `targets` returned.
        said: The record.
        samples: The images.
        names: Class names by number; may be empty.
        most: Images on the sheet; 0 for no sheet.
    """
    table = io.StringIO()
    lines = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    lines.writeheader()
    for row in said["images"]:
        figures = {"score": f"{row['score']:.9g}", "flagged": str(row["flagged"]).lower()}
        lines.writerow({key: cell(value) for key, value in row.items()} | figures)
    for end, text in (("csv", table.getvalue()), ("json", json.dumps(said, indent=1))):
        with atomic(paths[end]) as file:
            file.write(text.encode(errors="backslashreplace"))  # names need not be Unicode
    if not most:
        return [paths["csv"], paths["json"]]
    rows = said["images"][:most]
    x = samples[torch.tensor([row["row"] for row in rows])][0]
    words = [(_class(row, names), f"{row['score']:.3g}  {_short(row)}") for row in rows]
    write_sheet(paths["png"], plain_sheet(x, words, torch.tensor([row["flagged"] for row in rows])))
    return list(paths.values())


def _class(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    k: int = row["predicted"]
    return shown(names[k])[:40] if k < len(names) else str(k)


def _short(row: Mapping[str, Any]) -> str:
    return PurePosixPath(title(row)).name


def title(row: Mapping[str, Any]) -> str:
    """Return what an image is called on a terminal: its file, or its row."""
    return shown(row["file"]) if row["file"] else f"row {row['row']}"


def check_most(most: int) -> None:
    """Raise BadOption if a contact sheet cannot have so many images."""
    if not 0 <= most <= 1000:
        raise BadOption(f"--most takes 0 (no contact sheet) to 1000 images; got {most}")
