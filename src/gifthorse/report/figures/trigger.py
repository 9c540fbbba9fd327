"""Figures of the comparisons: plain data and a path in, a PNG out, same bytes for same data.

Every figure is 8 inches wide at 200 dots an inch, so that it can be read at 800 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import torch
from torch import Tensor

from gifthorse.analysis.landscape import local_minima
from gifthorse.core.errors import ShapeMismatch
from gifthorse.report.figures.drawing import (
    COLORS,
    WIDTH,
    Kind,
    Share,
    colored,
    compared,
    contours,
    marked,
    matrix,
    mean,
    median_track,
    page,
    percent,
    plain_log,
    strengths,
)


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
        axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
        for spare in axes[count:]:
            spare.remove()
        scale = colored(kind, list(grids.values()))
        for axis, (method, grid) in zip(axes, grids.items(), strict=False):
            matrix(axis, grid, names, scale)
            axis.set_title(f"{fill(method, 28)}\nmean {scale.words.format(mean(grid))}")
        scale.bar(figure, list(axes[: len(grids)]))
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
        axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
        for spare in axes[len(surfaces) :]:
            spare.remove()
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
    wide = 0.8 / len(rates)
    with page(path, title, 4.0) as figure:
        axis = figure.subplots()
        for i, (method, row) in enumerate(rates.items()):
            at = [c - 0.4 + wide * (i + 0.5) for c in range(len(columns))]
            shown = torch.tensor([percent(row.get(c, math.nan)) for c in columns])
            middle, low, high = shown.T
            axis.bar(at, middle.tolist(), wide * 0.92, color=COLORS[i % len(COLORS)], label=method)
            spread = torch.stack([middle - low, high - middle]).clamp(min=0)
            axis.errorbar(
                at, middle.tolist(), spread.tolist(), fmt="none", ecolor="#444444", elinewidth=0.7
            )
        axis.set_xticks(range(len(columns)), [_two_lines(c) for c in columns])
        for after in [i for i, c in enumerate(columns[:-1]) if _word(c) != _word(columns[i + 1])]:
            axis.axvline(after + 0.5, color="#bbbbbb", linewidth=0.8)
        axis.set(
            ylim=(0, 101),
            ylabel="attack success (%), 95 % interval",
            xlim=(-0.5, len(columns) - 0.5),
        )
        axis.grid(visible=False, axis="x")
        axis.tick_params(axis="x", length=0)
        figure.legend(loc="outside lower center", ncols=min(4, len(rates)))


def _word(column: str) -> str:
    """Return the group a transform belongs to: `rescale` of `rescale 98 %`."""
    return column.partition(" ")[0]


def _two_lines(column: str) -> str:
    return column.replace(" deg", "\N{DEGREE SIGN}").replace(" ", "\n", 1)
