"""Pictures of a trigger inside a net: plain data and a path in, a PNG out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gifthorse.analysis.attribution import Shift
from gifthorse.analysis.paths import ActivationPath
from gifthorse.analysis.projection import GROUPS, FeatureView
from gifthorse.analysis.separation import Separation
from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.types import Images
from gifthorse.report.figures.drawing import COLORS, MARKERS, WIDTH, bars, marked, page
from gifthorse.report.pictures import colored

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = ("clean", "its map", "stamped", "its map", "difference")


def attribution_rows(
    path: Path, images: tuple[Images, Images], maps: tuple[Tensor, Tensor], *, title: str
) -> None:
    """Draw images and where a net looks in them, clean and stamped, and what differs.

    Args:
        path: The PNG to write.
        images: Clean and stamped, `(n, C, H, W)` in [0, 1] each, n at least 1.
        maps: Their maps, `(n, H, W)` in [0, 1] each.
        title: Headline of the figure.

    Raises:
        ShapeMismatch: If there is not one map for every image.
        UsageError: If the file cannot be written.
    """
    n = len(images[0])
    if not n or {len(t) for t in (*images, *maps)} != {n}:
        raise ShapeMismatch(f"one map an image, and at least one; got {[len(t) for t in maps]}")
    tile = min(1.35, (WIDTH - 0.9) / n)
    with page(path, title, len(ROWS) * (tile + 0.06) + 0.9) as figure:
        axes = figure.subplots(len(ROWS), n, squeeze=False)
        for i in range(n):
            for down, (image, seen) in enumerate(zip(images, maps, strict=True)):
                _picture(axes[2 * down, i], image[i])
                _picture(axes[2 * down + 1, i], image[i])
                axes[2 * down + 1, i].imshow(
                    seen[i].cpu().numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.65
                )
            change = (maps[1][i] - maps[0][i]).cpu().numpy()
            shown = axes[4, i].imshow(change, cmap="PuOr_r", vmin=-1, vmax=1)
        for axis, words in zip(axes[:, 0], ROWS, strict=True):
            axis.set_ylabel(words)
        for axis in axes.flatten():
            axis.set(xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes[4, :], location="bottom", aspect=40, shrink=0.5).set_label(
            "more (above 0) or less evidence with the trigger"
        )


def _picture(axis: Axes, image: Tensor) -> None:
    axis.imshow(colored(image).clamp(0, 1).permute(1, 2, 0).cpu().numpy())


def scatter(path: Path, view: FeatureView, *, title: str) -> None:
    """Draw features in the plane, with the figures that say whether groups lie apart.

    Args:
        path: The PNG to write.
        view: What `feature_view` returned.
        title: Headline of the figure.

    Raises:
        UsageError: If the file cannot be written.
    """
    looks = [(COLORS[0], MARKERS[1], 0.9), ("#9a9a9a", MARKERS[0], 0.45), (COLORS[1], "X", 0.8)]
    with page(path, title, 5.6) as figure:
        axis = figure.subplots()
        for group in (1, 0, 2):  # those of other classes are drawn first, below
            (color, marker, alpha), here = looks[group], view.points[view.groups == group]
            xs, ys = here[:, 0].tolist(), here[:, 1].tolist()
            size, label = 14 if group == 1 else 26, f"{GROUPS[group]} ({len(here)})"
            axis.scatter(
                xs, ys, s=size, c=color, marker=marker, alpha=alpha, linewidths=0, label=label
            )
        apart = "too few" if view.silhouette is None else f"{view.silhouette:.2f}"
        told = "too few" if view.probe is None else f"{view.probe.auroc:.3f}"
        axis.set_title(
            f"stamped beside clean target class: silhouette {apart}, linear probe AUROC {told}"
        )
        words = {"pca": "principal component", "tsne": "t-SNE"}[view.method]
        axis.set(xlabel=f"{words} 1", ylabel=f"{words} 2")
        figure.legend(loc="outside lower center", ncols=3)


def separation_lines(path: Path, curves: Mapping[str, Sequence[Separation]], *, title: str) -> None:
    """Draw the neuron separation ratio over the number of neurons, with what chance would give.

    Args:
        path: The PNG to write.
        curves: By name of a net, what `separation_curve` returned, at least one.
        title: Headline of the figure.

    Raises:
        UsageError: If the file cannot be written.
    """
    with page(path, title, 3.8) as figure:
        axis, drawn = figure.subplots(), list[list[float]]()
        for i, (name, curve) in enumerate(curves.items()):
            units = [s.units for s in curve]
            axis.plot(units, [s.value for s in curve], lw=1.8, **marked(i, name))
            chance = [s.chance for s in curve]
            if chance not in drawn:  # nets of one width have one such line
                drawn.append(chance)
                axis.plot(units, chance, color="#777777", ls=":", label="sets drawn at random")
        axis.set(ylim=(-0.02, 1.02), ylabel="separation ratio (0: same neurons)")
        axis.set_xlabel("most active neurons compared")
        axis.legend()


def path_graph(path: Path, found: ActivationPath, *, title: str, name: str = "target") -> None:
    """Draw the channels that carry a trigger, stage by stage, and what leads from one to the next.

    Sizes and widths compare within a stage only.

    Args:
        path: The PNG to write.
        found: What `activation_path` returned.
        title: Headline of the figure.
        name: What the target is called.

    Raises:
        UsageError: If the file cannot be written.
    """
    kept = found.kept()
    columns = {stage: float(i) for i, stage in enumerate(kept)}
    rank = [kept[n.stage].index(n.channel) for n in found.nodes]
    places = [(columns[n.stage], -float(r)) for n, r in zip(found.nodes, rank, strict=True)]
    deepest = max(rank) / 2
    places.append((float(len(columns)), -deepest))  # number -1: the logit
    with page(path, title, 1.8 + 0.55 * (2 * deepest + 1)) as figure:
        axis = figure.subplots()
        for stage, at in columns.items():
            own = [e for e in found.edges if found.nodes[e.start].stage == stage]
            widest = max((e.weight for e in own), default=1.0)
            for edge in own:
                xs, ys = zip(places[edge.start], places[edge.end], strict=True)
                share = edge.weight / widest
                axis.plot(xs, ys, color="#555555", lw=0.3 + 3 * share, alpha=0.15 + 0.6 * share)
            top = max(n.score for n in found.nodes if n.stage == stage) or 1.0
            for node, (x, y) in zip(found.nodes, places, strict=False):
                if x == at:
                    size = 120 + 420 * node.score / top
                    axis.scatter(x, y, s=size, color=COLORS[0], zorder=3, lw=0)
                    axis.text(
                        x, y, str(node.channel), color="white", ha="center", va="center", fontsize=7
                    )
        axis.scatter(*places[-1], s=620, color=COLORS[1], zorder=3, lw=0)
        ticks = torch.arange(len(columns) + 1).tolist()
        axis.set_xticks(ticks, [*(s.removeprefix("net.") for s in columns), name])
        axis.set(yticks=[], xlim=(-0.5, len(columns) + 0.5), ylim=(-2 * deepest - 0.7, 0.7))
        axis.set_xlabel("stage; numbers are channels, the first carries most")
        axis.grid(visible=False)


def distance_bars(path: Path, cells: Mapping[str, Mapping[str, Shift]], *, title: str) -> None:
    """Draw how far stamping moves attribution maps, a group of bars a net, with 95 % intervals.

    Args:
        path: The PNG to write.
        cells: What `attention_shift` returned.
        title: Headline of the figure.

    Raises:
        UsageError: If the file cannot be written.

    Source: TrojanZoo, Table 19.
    """
    with page(path, title, 3.6) as figure:
        axis = figure.subplots()
        rows = {of: [row[of].distance for row in cells.values()] for of in ("original", "target")}
        bars(axis, list(cells), {f"map of the {of} class": shares for of, shares in rows.items()})
        axis.set(ylabel="mean difference of maps (%)", ylim=(0, None))
        axis.legend()
