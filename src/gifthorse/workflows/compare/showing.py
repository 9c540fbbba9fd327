"""A comparison as a table, as figures and as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from safetensors.torch import save

from gifthorse.core.atomic import atomic, check_writable
from gifthorse.core.errors import Unwritable
from gifthorse.core.types import Rate
from gifthorse.report.figures import comparison
from gifthorse.report.json import write_json
from gifthorse.report.words import interval
from gifthorse.workflows.compare.comparison import Compared
from gifthorse.workflows.compare.judging import Row

HEAD = ("method", "pair", "pixels", "ASR [95 %]", "at min", "s", "image-steps")
LEGEND = (
    "pair: source:target, * for all other classes; pixels: changed by 1/255 or more; ASR: attack "
    "success in % on images of the source, of {unseen} that no search used, with its 95 % "
    "interval; at min: the same of the trigger cut to the pixels of the smallest one of its pair "
    "that works on half of the search images; s and image-steps: work of the search, for that pair."
)


# 1. Table -------------------------------------------------------------------------------------


def table(record: Mapping[str, Any]) -> str:
    """Return the record of a comparison as text of at most 80 columns."""
    rows = [_cells(row, record["seconds"][row["method"]][row["goal"]]) for row in record["rows"]]
    if len(record["goals"]) > 1:
        rows += [_means(record, name) for name in record["methods"]]
    lines = [_line(cells) for cells in (HEAD, *rows)]
    lines += ["", fill(LEGEND.format(unseen=record["images"]["unseen"]), 80)]
    lines += [fill(f"{name} was stopped: {why}", 80) for name, why in record["stopped"].items()]
    lines += [f"{name} did not run" for name in record["missed"]]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    method, pair, *figures_of = cells
    widths = (6, 14, 6, 7, 11)
    right = " ".join(f"{cell:>{w}}" for cell, w in zip(figures_of, widths, strict=True))
    return f"{method:23.23} {pair:7} {right}"


def _cells(row: Row, seconds: float) -> tuple[str, ...]:
    source = "*" if row["source"] is None else row["source"]
    work = (f"{seconds:.1f}", f"{row['image_steps']:,.0f}")
    if not row["feasible"]:
        return (row["method"], f"{source}:{row['target']}", "none", "", "", *work)
    asr, cut = Rate(**row["asr"]), row["asr_at_smallest"]
    return (
        row["method"],
        f"{source}:{row['target']}",
        str(row["pixels"]),
        f"{100 * asr.value:.0f} {interval(asr):>9}",
        f"{100 * cut['value']:.0f}",
        *work,
    )


def _means(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the means of a method over the goals that it found a trigger for."""
    rows = [row for row in record["rows"] if row["method"] == name]
    found = [row for row in rows if row["feasible"]]
    work = f"{fmean(record['seconds'][name]):.1f}", f"{fmean(r['image_steps'] for r in rows):,.0f}"
    if not found:
        return (name, "mean", "none", "", "", *work)
    return (
        name,
        "mean",
        f"{fmean(row['pixels'] for row in found):.1f}",
        f"{100 * fmean(row['asr']['value'] for row in found):.1f} of {len(found)}",
        f"{100 * fmean(row['asr_at_smallest']['value'] for row in found):.1f}",
        *work,
    )


# 2. Files -------------------------------------------------------------------------------------


def write(compared: Compared, folder: Path, figures: Sequence[str] | None = None) -> Iterator[Path]:
    """Write record, triggers and figures, each file whole or not at all, and yield their paths.

    Each is there once its path comes. A figure that there is nothing to draw of is left out.

    Args:
        compared: What came of a comparison.
        folder: Where to; made if it is not there.
        figures: Which figures to draw; None for all that were asked for.

    Raises:
        UsageError: If a file cannot be written.
    """
    make(folder)
    record, triggers = folder / "compared.json", folder / "triggers.safetensors"
    write_json(record, compared.record)
    yield record
    with atomic(triggers) as file:
        file.write(save(compared.triggers))
    yield triggers
    if compared.triggers:
        wanted = compared.record["figures"] if figures is None else figures
        yield from comparison.draw(compared.record, compared.triggers, folder, wanted)


def make(folder: Path) -> None:
    """Make a folder if it is not there.

    Raises:
        Unwritable: If it cannot be made, or nothing can be written to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"cannot make the folder {folder}: {error.strerror or error}") from error
    check_writable(folder / "figures")
