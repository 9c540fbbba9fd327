"""What the figures are drawn with: a page in the house style, colors, matrices, medians."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from gifthorse.analysis.landscape import minima
from gifthorse.core.atomic import atomic
from gifthorse.core.tensors import STEP
from gifthorse.core.types import Rate
from gifthorse.report.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Normalize
    from matplotlib.contour import ContourSet
    from matplotlib.figure import Figure

Share: TypeAlias = float | Rate  # in [0, 1]; a rate is drawn with its interval
Kind: TypeAlias = Literal["asr", "size"]
Side: TypeAlias = Literal["bottom", "right"]

WIDTH = 8.0  # inches
# Okabe and Ito's palette, which color-blind readers can tell apart; markers say the same again.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
MISSING = "#dcdcdc"
STYLE: dict[str, Any] = {
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextmanager
def page(path: Path, title: str, height: float) -> Iterator[Figure]:
    """Yield an empty figure in the house style, and write it as a PNG if all went well.

    Raises:
        UsageError: If the file cannot be written.
    """
    from matplotlib import style  # late: slow, and only figures need it
    from matplotlib.figure import Figure

    # After a reset, so that a reader's own matplotlibrc changes no byte.
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")  # draws with Agg
        figure.suptitle(fill(title, 88), fontsize=11, fontweight="bold", x=0.01, ha="left")
        yield figure
        with atomic(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})


@dataclass(frozen=True, eq=False)
class ColorScale:
    """How the numbers of a matrix turn into colors and text.

    Attributes:
        norm: Numbers to [0, 1].
        colors: Name of the color map.
        words: Format of one mean, for a title.
        cell: Writes one number into a cell.
        label: Title of the color bar.
        log: Whether the norm is logarithmic.
    """

    norm: Normalize
    colors: str
    words: str
    cell: Callable[[float], str]
    label: str
    log: bool = False

    def bar(self, figure: Figure, axes: list[Axes], location: Side = "bottom") -> None:
        """Add a color bar beside these axes."""
        alone = len(axes) == 1 and len(figure.axes) == 1
        bar = figure.colorbar(
            axes[0].images[0],
            ax=axes,
            location=location,
            aspect=12 + 14 * len(axes),
            shrink=0.6 if alone else 1.0,
        )
        bar.set_label(self.label)
        if self.log:
            plain_log(bar.long_axis)


def colored(kind: Kind, grids: Sequence[Tensor]) -> ColorScale:
    """Return one scale for several matrices: success in percent, or sizes in pixels."""
    from matplotlib.colors import LogNorm, Normalize

    if kind == "asr":
        return ColorScale(
            Normalize(0, 100), "viridis", "{:.1f} %", "{:.0f}".format, "attack success (%)"
        )
    known = torch.cat([_known(g) for g in grids])
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 2.0)
    norm = LogNorm(max(low, 0.5), max(high, 2 * max(low, 0.5)))
    return ColorScale(
        norm, "viridis", "{:.1f} px", "{:.0f}".format, "trigger size (pixels)", log=True
    )


def compared(kind: Kind, first: Tensor, second: Tensor) -> tuple[Tensor, ColorScale]:
    """Return how two matrices compare and its scale: points gained, or times larger."""
    from matplotlib.colors import LogNorm, Normalize

    if kind == "asr":
        gain = second - first
        reach = max(1.0, float(_known(gain).abs().max())) if len(_known(gain)) else 1.0
        norm = Normalize(-reach, reach)
        return gain, ColorScale(
            norm, "PuOr", "{:+.1f} points", "{:+.0f}".format, "difference (points)"
        )
    ratio = first / second
    known = _known(ratio.log2()).abs()
    reach = 2 ** max(0.5, float(known.max()) if len(known) else 1.0)
    norm = LogNorm(1 / reach, reach)
    return ratio, ColorScale(norm, "PuOr", "{:.1f} times", _short, "times larger", log=True)


def matrix(axis: Axes, grid: Tensor, names: Sequence[str], scale: ColorScale) -> None:
    """Draw one matrix `(K, K)`, with its numbers where there is room to read them."""
    from matplotlib import colormaps
    from numpy.ma import masked_invalid

    colors = colormaps[scale.colors].with_extremes(bad=MISSING)
    axis.imshow(masked_invalid(grid.numpy()), norm=scale.norm, cmap=colors)
    few = range(0, len(names), -(-len(names) // 20))  # more names than that overlap
    axis.set_xticks(few, [names[i] for i in few], rotation=90)
    axis.set_yticks(few, [names[i] for i in few])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    cells = {tuple(at): float(grid[tuple(at)]) for at in grid.isfinite().nonzero().tolist()}
    longest = max((len(scale.cell(v)) for v in cells.values()), default=1)
    size = min(8.0, 150 / len(names) / (0.7 * longest))  # a panel is some 150 points wide
    if size < 4.5:
        return
    for (row, column), value in cells.items():
        red, green, blue, _ = colors(scale.norm(value))
        ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        text = scale.cell(value)
        axis.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def plain_log(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2, 5, 10 where it is short."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    steps = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def mean(grid: Tensor) -> float:
    """Return the mean of the finite entries, NaN without any."""
    return float(_known(grid).mean())


def _known(grid: Tensor) -> Tensor:
    return grid[grid.isfinite()]


def marked(i: int, label: str) -> dict[str, Any]:
    """Return how line `i` looks: color, marker and label."""
    color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
    return {"color": color, "marker": marker, "markersize": 5, "label": label}


def percent(share: Share) -> tuple[float, float, float]:
    """Return value, low and high end in percent; a bare number has no interval.

    Example:
        >>> percent(0.25)
        (25.0, 25.0, 25.0)
    """
    if isinstance(share, Rate):
        return 100 * share.value, 100 * share.low, 100 * share.high
    return (100 * share,) * 3


def bars(axis: Axes, columns: Sequence[str], rows: Mapping[str, Sequence[Share]]) -> None:
    """Draw a group of bars a column in percent, one a row, with 95 % intervals as whiskers."""
    wide = 0.8 / len(rows)
    for i, (name, shares) in enumerate(rows.items()):
        at = [c - 0.4 + wide * (i + 0.5) for c in range(len(columns))]
        middle, low, high = torch.tensor([percent(share) for share in shares]).T
        axis.bar(at, middle.tolist(), wide * 0.92, color=COLORS[i % len(COLORS)], label=name)
        spread = torch.stack([middle - low, high - middle]).clamp(min=0).tolist()
        axis.errorbar(at, middle.tolist(), spread, fmt="none", ecolor="#444444", elinewidth=0.7)
    axis.set_xticks(range(len(columns)), columns)
    axis.grid(visible=False, axis="x")


def panels(figure: Figure, count: int, across: int) -> list[Axes]:
    """Return `count` axes in rows of `across` that share what they span."""
    down = -(-count // across)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten().tolist()
    for spare in axes[count:]:
        spare.remove()
    return list(axes[:count])


def axis_name(name: str) -> str:
    r"""Return a class name as matplotlib can draw it: short, printable, no mathematics.

    Example:
        >>> axis_name("a\tsign of $5")
        'a sign of \\$5'
    """
    return printable(name, 24).strip().replace("$", r"\$")


def median_track(tracks: Sequence[Tensor], runs: int) -> tuple[Tensor, Tensor]:
    """Return the median of step curves at all their steps: steps and sizes, `(S,)` each.

    Args:
        tracks: `(2, n)` each: steps in order, and the size that holds from there on.
        runs: How many runs there were; those without a track count as infinitely large.

    Example:
        >>> a, b = torch.tensor([[1.0, 3.0], [8.0, 2.0]]), torch.tensor([[2.0], [4.0]])
        >>> [t.tolist() for t in median_track([a, b], 3)]
        [[1.0, 2.0, 3.0], [inf, 8.0, 4.0]]
    """
    steps = torch.cat([t[0] for t in tracks]).unique()
    sizes = torch.full((runs, len(steps)), torch.inf, dtype=steps.dtype)
    for row, (at, size) in zip(sizes, tracks, strict=False):
        place = torch.searchsorted(at.contiguous(), steps, right=True)
        row[place > 0] = size[place[place > 0] - 1]
    # The upper of two middle values: no mean with infinity, and no size that no run had.
    return steps, sizes.sort(0).values[runs // 2]


def contours(axis: Axes, grid: Tensor, extent: float) -> tuple[ContourSet, list[float]]:
    """Draw a surface with levels of equal area, its strict local minima and its origin."""
    from matplotlib.colors import BoundaryNorm

    levels = grid.quantile(torch.linspace(0, 1, 19).to(grid)).unique().tolist()
    levels = levels if len(levels) > 1 else [levels[0], levels[0] + 1]  # a plain
    ticks, height = torch.linspace(-extent, extent, len(grid)), grid.T.numpy()
    at = ticks.tolist()
    filled = axis.contourf(at, at, height, levels, cmap="viridis", norm=BoundaryNorm(levels, 256))
    axis.contour(at, at, height, levels, colors="white", linewidths=0.3, alpha=0.6)
    rows, columns = minima(grid).nonzero(as_tuple=True)
    dot: dict[str, Any] = {"markersize": 4, "color": "white", "markeredgecolor": "black"}
    here = ticks[rows].tolist(), ticks[columns].tolist()
    axis.plot(*here, "o", markeredgewidth=0.6, label="local minimum", **dot)
    axis.plot(0, 0, "P", color=COLORS[1], markeredgecolor="white", label="found trigger")
    axis.set_aspect("equal")
    axis.grid(visible=False)
    return filled, levels


def strengths(axis: Axes, values: Mapping[str, Tensor]) -> None:
    """Draw how many pixels change how strongly, in ten bins, the range over runs as a whisker."""
    wide = 0.09 / len(values)
    middles = torch.arange(10) / 10 + 0.05
    for i, (method, several) in enumerate(values.items()):
        runs = several.double().cpu().reshape(-1, several.shape[-1])
        bins = torch.where(runs >= STEP - 1e-6, (runs * 10).long().clamp(0, 9), -1)
        counts = (bins[..., None] == torch.arange(10)).sum(1).double()  # (runs, 10)
        middle = counts.mean(0)
        at, height = (middles + wide * (i - (len(values) - 1) / 2)).tolist(), middle.tolist()
        axis.bar(at, height, wide * 0.95, color=COLORS[i % len(COLORS)], label=method)
        if len(runs) > 1:
            spread = torch.stack([middle - counts.amin(0), counts.amax(0) - middle])
            axis.errorbar(at, height, spread.tolist(), fmt="none", ecolor="#444444", elinewidth=0.7)
    axis.set(xlim=(0, 1), xticks=(torch.arange(0, 11, 2) / 10).tolist(), yscale="log")
    axis.set_ylim(bottom=0.5)
    axis.set(xlabel="strength of a pixel (1 replaces it)", ylabel="pixels of a trigger (log scale)")
    axis.set_title("How strongly pixels change (at least 1/255)")
    plain_log(axis.yaxis)
