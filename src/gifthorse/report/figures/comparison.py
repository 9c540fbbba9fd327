"""Figures of the comparisons: plain data and a path in, a PNG out, same bytes for same data.

Every figure is 8 inches wide at 200 dots an inch, so that it can be read at 800 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gifthorse.analysis.landscape import local_minima
from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.types import Goal, Rate
from gifthorse.report.figures.drawing import (
    COLORS,
    WIDTH,
    Kind,
    Share,
    axis_name,
    bars,
    colored,
    compared,
    contours,
    marked,
    matrix,
    mean,
    median_track,
    page,
    panels,
    percent,
    plain_log,
    strengths,
)

Record: TypeAlias = Mapping[str, Any]
Triggers: TypeAlias = Mapping[str, Tensor]
Draw: TypeAlias = Callable[[Record, Triggers, Path], list[Path]]

NAMED = 20  # most classes that an axis has room to name


def heat_maps(
    path: Path,
    maps: Mapping[str, Tensor],
    *,
    names: Sequence[str],
    title: str,
    kind: Kind = "asr",
    compare: tuple[str, str] | None = None,
) -> None:
    """Draw a matrix of all class pairs for each method, and how two methods compare.

    Args:
        path: The PNG to write.
        maps: `(K, K)` by method, source class down, target class across; NaN where there is none.
        names: The K class names.
        title: Headline of the figure.
        kind: `asr`, shares in [0, 1] drawn as percent; or `size`, pixels on a logarithmic scale.
        compare: Two methods a, b for one more panel: points of success that b has over a, or how
            many times larger a is than b.

    Raises:
        ShapeMismatch: If a map is not `(K, K)`.
        UsageError: If the file cannot be written.

    Source: the layout of PixelBackdoor's Figs. 5, 6, 10 and 12 to 14.
    """
    for method, grid in maps.items():
        if grid.shape != (len(names), len(names)):
            raise ShapeMismatch(
                f"the map of {method} must be ({len(names)}, {len(names)}), one row and column a "
                f"class; got {tuple(grid.shape)}"
            )
    grids = {m: g.double().cpu() * (100 if kind == "asr" else 1) for m, g in maps.items()}
    count = len(grids) + (compare is not None)
    across = {1: 1, 2: 2, 4: 2}.get(count, 3)
    down = -(-count // across)
    room = 1.6 if count == across * down else 2.4  # else names stand under inner panels as well
    with page(path, title, down * (0.93 * WIDTH / max(across, 1.6) + 0.4) + room) as figure:
        axes = panels(figure, count, across)
        scale = colored(kind, list(grids.values()))
        for axis, (method, grid) in zip(axes, grids.items(), strict=False):
            matrix(axis, grid, names, scale)
            axis.set_title(f"{fill(method, 28)}\nmean {scale.words.format(mean(grid))}")
        scale.bar(figure, axes[: len(grids)])
        if compare is not None:
            (a, b), axis = compare, axes[count - 1]
            grid, scale = compared(kind, grids[a], grids[b])
            matrix(axis, grid, names, scale)
            pair = f"{b} minus {a}" if kind == "asr" else f"{a} over {b}"
            axis.set_title(f"{fill(pair, 28)}\nmean {scale.words.format(mean(grid))}")
            scale.bar(figure, [axis], "bottom" if down == 1 else "right")
        for i, axis in enumerate(axes[:count]):
            outer = i + across >= count, i % across == 0  # nothing below, nothing to the left
            axis.tick_params(labelbottom=outer[0], labelleft=outer[1])
            axis.set(xlabel="target class" * outer[0], ylabel="source class" * outer[1])


def curves(
    path: Path,
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    *,
    title: str,
) -> None:
    """Draw how the smallest trigger shrinks with work: each run thin, the median of a method bold.

    Args:
        path: The PNG to write.
        runs: For each method its runs, each a list of (image-steps, size of the best trigger in
            pixels) in order; a run starts at its first trigger. Before that it counts as infinitely
            large, after its end as what it ended with.
        title: Headline of the figure.

    Raises:
        UsageError: If the file cannot be written.

    Source: PixelBackdoor's Fig. 8. Differs: work is counted in image-steps, not in seconds.
    """
    with page(path, title, 4.6) as figure:
        axis = figure.subplots()
        for i, (method, several) in enumerate(runs.items()):
            thin = marked(i, "") | {"where": "post", "alpha": 0.25, "lw": 0.8}
            thin |= {"label": None, "marker": "o", "markersize": 2, "markevery": [0]}
            tracks = [torch.tensor(run, dtype=torch.float64).T for run in several if run]
            for steps, size in tracks:
                axis.step(steps.tolist(), size.tolist(), **thin)
            if not tracks:
                continue
            at, middle = median_track(tracks, len(several))
            found = middle.isfinite()
            ends = [0, max(0, int(found.sum()) - 1)]
            look = marked(i, method) | {"where": "post", "lw": 2.2, "markevery": ends}
            axis.step(at[found].tolist(), middle[found].tolist(), **look)
        axis.set(xscale="log", yscale="log", ylabel="smallest trigger so far (pixels)")
        plain_log(axis.xaxis)
        plain_log(axis.yaxis)
        axis.set_xlabel("image-steps (images that went forward and back through the net)")
        axis.legend(title="median of all runs", alignment="left")


def landscapes(
    path: Path, surfaces: Mapping[str, Tensor], *, title: str, extent: float = 1.0
) -> None:
    """Draw the loss around each method's trigger as contours, with its strict local minima.

    Args:
        path: The PNG to write.
        surfaces: Loss by method, `(points, points)` each, the trigger in the middle.
        title: Headline of the figure.
        extent: What the axes span, in units of the variables' norm.

    Raises:
        UsageError: If the file cannot be written.

    Source: PixelBackdoor's Fig. 1. Differs: contours instead of a surface seen from the side, and
    each panel has levels of equal area, so that a shallow pit shows beside a high wall.
    """
    across = min(len(surfaces), 3)
    down = -(-len(surfaces) // across)
    with page(path, title, down * (WIDTH / max(across, 1.6)) + 1.0) as figure:
        axes = panels(figure, len(surfaces), across)
        for axis, (method, grid) in zip(axes, surfaces.items(), strict=False):
            filled, levels = contours(axis, grid.double().cpu(), extent)
            axis.set_title(f"{fill(method, 28)}\nlocal minima: {local_minima(grid)}")
            shrink = 0.6 if across == 1 else 1.0
            bar = figure.colorbar(filled, ax=axis, location="bottom", aspect=30, shrink=shrink)
            bar.set_label("loss")
            bar.set_ticks(levels[:: max(1, len(levels) // 5)])
            bar.ax.xaxis.set_major_formatter("{x:.4g}")
            axis.set_xlabel("step along direction 1")
        axes[0].set_ylabel("step along direction 2")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def histogram(
    path: Path,
    values: Mapping[str, Tensor],
    success: Mapping[str, Mapping[int, Share]],
    *,
    title: str,
) -> None:
    """Draw how strongly triggers change their pixels, and how success grows with pixels kept.

    Args:
        path: The PNG to write.
        values: For each method the strength of all pixels in [0, 1], `(n,)`, or `(runs, n)` for
            several runs, whose range is drawn.
        success: For each method the attack success of its k strongest pixels, by k.
        title: Headline of the figure.

    Raises:
        UsageError: If the file cannot be written.

    Source: PixelBackdoor's Fig. 3.
    """
    with page(path, title, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        strengths(left, values)
        for i, (method, by_size) in enumerate(success.items()):
            sizes = sorted(by_size)
            middle, low, high = zip(*(percent(by_size[k]) for k in sizes), strict=True)
            look = marked(i, method) | {"lw": 1.8, "markevery": [len(sizes) - 1]}
            right.plot(sizes, middle, **look)
            right.fill_between(
                sizes, low, high, color=COLORS[i % len(COLORS)], alpha=0.18, linewidth=0
            )
        right.set(xscale="log", ylim=(0, 101), title="Success of the strongest pixels alone")
        right.set(xlabel="pixels kept (strongest first)", ylabel="attack success (%)")
        plain_log(right.xaxis)
        for axis in (left, right):
            axis.legend()


def robust_bars(path: Path, rates: Mapping[str, Mapping[str, Share]], *, title: str) -> None:
    """Draw attack success after each transform, a bar a method, with 95 % intervals.

    Args:
        path: The PNG to write.
        rates: By method, then by transform, as `robustness` returns them.
        title: Headline of the figure.

    Raises:
        UsageError: If the file cannot be written.

    Source: PixelBackdoor's Table 5 and Fig. 11.
    """
    columns = list(dict.fromkeys(name for row in rates.values() for name in row))
    with page(path, title, 4.0) as figure:
        axis = figure.subplots()
        shown = {m: [row.get(c, math.nan) for c in columns] for m, row in rates.items()}
        bars(axis, [_two_lines(c) for c in columns], shown)
        for after in [i for i, c in enumerate(columns[:-1]) if _word(c) != _word(columns[i + 1])]:
            axis.axvline(after + 0.5, color="#bbbbbb", linewidth=0.8)
        axis.set(
            ylim=(0, 101),
            ylabel="attack success (%), 95 % interval",
            xlim=(-0.5, len(columns) - 0.5),
        )
        axis.tick_params(axis="x", length=0)
        figure.legend(loc="outside lower center", ncols=min(4, len(rates)))


def _word(column: str) -> str:
    """Return the group a transform belongs to: `rescale` of `rescale 98 %`."""
    return column.partition(" ")[0]


def _two_lines(column: str) -> str:
    return column.replace(" deg", "\N{DEGREE SIGN}").replace(" ", "\n", 1)


# Of the record of a comparison ----------------------------------------------------------------


def draw(
    record: Record, triggers: Triggers, folder: Path, figures: Sequence[str]
) -> Iterator[Path]:
    """Draw figures of a comparison; yield the path of each once it is there.

    A figure that there is nothing to draw of is left out.

    Args:
        record: The record of a comparison.
        triggers: Its triggers.
        folder: Where to; it must exist.
        figures: Names out of `DRAWN`.

    Raises:
        UsageError: If a file cannot be written.
    """
    for name in figures:
        yield from DRAWN[name](record, triggers, folder)


def _sizes(record: Record, triggers: Triggers, folder: Path) -> list[Path]:
    maps, names = _maps(record, lambda row, source: row["pixels"])
    pair, path = _against(maps), folder / "sizes.png"
    title = "Size of the smallest trigger"
    heat_maps(path, maps, names=names, title=title, kind="size", compare=pair)
    return [path]


def _success(record: Record, triggers: Triggers, folder: Path) -> list[Path]:
    paths = []
    for stem, key, title in (
        ("success", "by_source", "Success of whole triggers on unseen images"),
        (
            "success_at_smallest",
            "by_source_at_smallest",
            "Success on unseen images of triggers cut to the size of the smallest one",
        ),
    ):
        maps, names = _maps(record, partial(_share, key))
        paths.append(folder / f"{stem}.png")
        heat_maps(paths[-1], maps, names=names, title=title, compare=_against(maps))
    return paths


def _share(key: str, row: Record, source: int) -> float:
    rate = row[key].get(str(source))  # a class may have no unseen image
    return math.nan if rate is None else float(rate["value"])


def _maps(
    record: Record, value: Callable[[Record, int], float]
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
    return maps, [str(k) if many else axis_name(record["classes"][k]) for k in classes]


def _against(maps: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the method that the first one is held against, and the first."""
    first, second = [*maps, None, None][:2]
    return (second, first) if first is not None and second is not None else None


def _curves(record: Record, triggers: Triggers, folder: Path) -> list[Path]:
    path = folder / "curves.png"
    runs: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in record["methods"]}
    for row in record["rows"]:
        runs[row["method"]].append([(steps, size) for steps, size in row["curve"]])
    curves(path, runs, title="Size of the smallest trigger against work")
    return [path]


def _landscape(record: Record, triggers: Triggers, folder: Path) -> list[Path]:
    paths = []
    for goal, rows in _each(record, "landscape"):
        surfaces = {row["method"]: torch.tensor(row["landscape"]["loss"]) for row in rows}
        paths.append(folder / f"landscape-{goal.tag}.png")
        landscapes(paths[-1], surfaces, title=f"Loss around {_words(record, goal)}")
    return paths


def _histogram(record: Record, triggers: Triggers, folder: Path) -> list[Path]:
    paths = []
    for goal, rows in _each(record, "by_size"):
        values = {
            row["method"]: triggers[f"{row['method']}.{goal.tag}.strength"].flatten()
            for row in rows
        }
        success = {row["method"]: {k: Rate(**r) for k, r in row["by_size"]} for row in rows}
        paths.append(folder / f"histogram-{goal.tag}.png")
        title = f"Strength and success of {_words(record, goal)}"
        histogram(paths[-1], values, success, title=title)
    return paths


def _robustness(record: Record, triggers: Triggers, folder: Path) -> list[Path]:
    paths = []
    for goal, rows in list(_each(record, "robustness"))[: record["detail"]]:
        bars = {}
        for row in rows:
            bars[row["method"]] = {view: Rate(**r) for view, r in row["robustness"].items()}
            if row["pixels"] > row["smallest"]:
                cut = f"{row['method']}, {row['smallest']} px"
                views = row["robustness_at_smallest"]
                bars[cut] = {view: Rate(**r) for view, r in views.items()}
        paths.append(folder / f"robustness-{goal.tag}.png")
        title = f"Robustness of {_words(record, goal)}"
        robust_bars(paths[-1], bars, title=title)
    return paths


def _each(record: Record, key: str) -> Iterator[tuple[Goal, list[Record]]]:
    """Yield every goal with the rows that have a value under a key, if there are any."""
    for number, goal in enumerate(record["goals"]):
        rows = [r for r in record["rows"] if r["goal"] == number and r[key] is not None]
        if rows:
            yield Goal(**goal), rows


def _words(record: Record, goal: Goal) -> str:
    names = [
        f"class {k}" if name == str(k) else axis_name(name)
        for k, name in enumerate(record["classes"])
    ]
    source = "all classes" if goal.source is None else names[goal.source]
    return f"triggers from {source} to {names[goal.target]}"


DRAWN: dict[str, Draw] = {
    "sizes": _sizes,
    "success": _success,
    "robustness": _robustness,
    "landscape": _landscape,
    "histogram": _histogram,
    "curves": _curves,
}
