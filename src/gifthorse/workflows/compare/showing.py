"""A comparison as a table, as figures and as files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.core.types import Goal, Rate
from gifthorse.report.figures import trigger as figures
from gifthorse.report.json import write_json
from gifthorse.workflows.compare.comparison import Compared, tag
from gifthorse.workflows.compare.judging import Row

Draw: TypeAlias = Callable[[Compared, Path], list[Path]]

NAMED = 20  # most classes that an axis has room to name
HEAD = ("method", "pair", "pixels", "ASR [95 %]", "at min", "s", "image-steps")
LEGEND = (
    "pair: source:target, * for all other classes; pixels: changed by 1/255 or more; ASR: attack "
    "success in % on {unseen} images that no search used, with its 95 % interval; at min: the same "
    "of the trigger cut to the pixels of the smallest one of its pair that works on half of the "
    "search images; s and image-steps: work of "
    "the search, for that pair."
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
    asr, cut = row["asr"], row["asr_at_smallest"]
    interval = f"[{100 * asr['low']:.0f}, {100 * asr['high']:.0f}]"
    return (
        row["method"],
        f"{source}:{row['target']}",
        str(row["pixels"]),
        f"{100 * asr['value']:.0f} {interval:>9}",
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


def write(compared: Compared, folder: Path) -> list[Path]:
    """Write record, triggers and figures, each file whole or not at all; return their paths.

    A figure that there is nothing to draw of is left out.

    Args:
        compared: What came of a comparison.
        folder: Where to; made if it is not there.

    Raises:
        UsageError: If a file cannot be written.
    """
    make(folder)
    written = [folder / "compared.json", folder / "triggers.safetensors"]
    write_json(written[0], compared.record)
    with atomic(written[1]) as file:
        file.write(save(compared.triggers))
    if compared.triggers:
        for name in compared.record["figures"]:
            written += DRAWN[name](compared, folder)
    return written


def make(folder: Path) -> None:
    """Make a folder if it is not there.

    Raises:
        UsageError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _sizes(compared: Compared, folder: Path) -> list[Path]:
    maps, names = _maps(compared.record, lambda row, source: row["pixels"])
    pair, path = _against(maps), folder / "sizes.png"
    title = "Size of the smallest trigger"
    figures.heat_maps(path, maps, names=names, title=title, kind="size", compare=pair)
    return [path]


def _success(compared: Compared, folder: Path) -> list[Path]:
    paths = []
    for stem, key, title in (
        ("success", "by_source", "Success of whole triggers on unseen images"),
        (
            "success_at_smallest",
            "by_source_at_smallest",
            "Success on unseen images of triggers cut to the size of the smallest one",
        ),
    ):
        maps, names = _maps(compared.record, partial(_share, key))
        paths.append(folder / f"{stem}.png")
        figures.heat_maps(paths[-1], maps, names=names, title=title, compare=_against(maps))
    return paths


def _share(key: str, row: Row, source: int) -> float:
    rate = row[key].get(str(source))  # a class may have no unseen image
    return math.nan if rate is None else float(rate["value"])


def _maps(
    record: Mapping[str, Any], value: Callable[[Row, int], float]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a matrix of source and target classes for each method, and the classes' names."""
    goals = [Goal(**goal) for goal in record["goals"]]
    named = {k for g in goals for k in (g.source, g.target) if k is not None}
    every = range(len(record["classes"]))
    classes = list(every) if any(g.source is None for g in goals) else sorted(named)
    place = {k: i for i, k in enumerate(classes)}
    maps = {n: torch.full((len(classes),) * 2, torch.nan) for n in record["methods"]}
    for row in record["rows"]:
        sources = set(every) - {row["target"]} if row["source"] is None else {row["source"]}
        for source in sources if row["feasible"] else ():
            maps[row["method"]][place[source], place[row["target"]]] = value(row, source)
    # Not every name of many fits on an axis; numbers can be counted on from their neighbors.
    many = len(classes) > NAMED
    return maps, [str(k) if many else _plain(record["classes"][k]) for k in classes]


def _against(maps: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the method that the first one is held against, and the first."""
    first, second = [*maps, None, None][:2]
    return (second, first) if first is not None and second is not None else None


def _curves(compared: Compared, folder: Path) -> list[Path]:
    record, path = compared.record, folder / "curves.png"
    runs: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in record["methods"]}
    for row in record["rows"]:
        runs[row["method"]].append([(steps, size) for steps, size in row["curve"]])
    figures.curves(path, runs, title="Size of the smallest trigger against work")
    return [path]


def _landscape(compared: Compared, folder: Path) -> list[Path]:
    paths = []
    for goal, rows in _each(compared.record, "landscape"):
        surfaces = {row["method"]: torch.tensor(row["landscape"]["loss"]) for row in rows}
        paths.append(folder / f"landscape-{tag(goal)}.png")
        figures.landscapes(paths[-1], surfaces, title=f"Loss around {_words(compared, goal)}")
    return paths


def _histogram(compared: Compared, folder: Path) -> list[Path]:
    paths = []
    for goal, rows in _each(compared.record, "by_size"):
        values = {
            row["method"]: compared.triggers[f"{row['method']}.{tag(goal)}.strength"].flatten()
            for row in rows
        }
        success = {row["method"]: {k: Rate(**r) for k, r in row["by_size"]} for row in rows}
        paths.append(folder / f"histogram-{tag(goal)}.png")
        title = f"Strength and success of {_words(compared, goal)}"
        figures.histogram(paths[-1], values, success, title=title)
    return paths


def _robustness(compared: Compared, folder: Path) -> list[Path]:
    paths = []
    for goal, rows in list(_each(compared.record, "robustness"))[: compared.record["detail"]]:
        bars = {}
        for row in rows:
            bars[row["method"]] = {view: Rate(**r) for view, r in row["robustness"].items()}
            if row["pixels"] > row["smallest"]:
                cut = f"{row['method']}, {row['smallest']} px"
                views = row["robustness_at_smallest"]
                bars[cut] = {view: Rate(**r) for view, r in views.items()}
        paths.append(folder / f"robustness-{tag(goal)}.png")
        title = f"Robustness of {_words(compared, goal)}"
        figures.robust_bars(paths[-1], bars, title=title)
    return paths


def _each(record: Mapping[str, Any], key: str) -> Iterator[tuple[Goal, list[Row]]]:
    """Yield every goal with the rows that have a value under a key, if there are any."""
    for number, goal in enumerate(record["goals"]):
        rows = [r for r in record["rows"] if r["goal"] == number and r[key] is not None]
        if rows:
            yield Goal(**goal), rows


def _words(compared: Compared, goal: Goal) -> str:
    names = [
        f"class {k}" if name == str(k) else _plain(name)
        for k, name in enumerate(compared.record["classes"])
    ]
    source = "all classes" if goal.source is None else names[goal.source]
    return f"triggers from {source} to {names[goal.target]}"


def _plain(name: str) -> str:
    """Return a class name as matplotlib can draw it: short, printable, no mathematics."""
    return "".join(c for c in name if c.isprintable())[:24].replace("$", r"\$")


DRAWN: dict[str, Draw] = {
    "sizes": _sizes,
    "success": _success,
    "robustness": _robustness,
    "landscape": _landscape,
    "histogram": _histogram,
    "curves": _curves,
}
