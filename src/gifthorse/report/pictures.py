"""Tensors as PNG data URIs, and the geometry of the charts that the template draws."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gifthorse.core.types import Arm, Confirmation, Rate, Report, Verdict
from gifthorse.report.facts import array, compared, cut
from gifthorse.report.words import class_label, class_name, class_names, figure, interval, percent

# 1. Pictures ----------------------------------------------------------------------------------


def png(picture: Tensor, alpha: Tensor | None = None, colors: int = 0) -> str:
    """Return a picture as a PNG data URI, one PNG pixel for a pixel.

    Args:
        picture: `(C, H, W)` in [0, 1]; C = 3 is drawn in color, else the mean over C in gray.
        alpha: `(1, H, W)` opacity in [0, 1]; color under opacity 0 is dropped.
        colors: Most colors of a color picture without opacity, which then takes less room; 0 keeps
            all.
    """
    color = picture if len(picture) == 3 else picture.mean(0, keepdim=True)
    if alpha is not None:
        color = torch.cat([color.expand(3, -1, -1) * (alpha > 0), alpha])
    buffer = io.BytesIO()
    image = Image.fromarray(dots(color).squeeze(-1).numpy())
    image = image.quantize(colors) if colors else image
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def colored(picture: Tensor) -> Tensor:
    """Return a picture as color, `(3, H, W)`: other than three channels as their mean in gray."""
    return picture if len(picture) == 3 else picture.mean(0, keepdim=True).expand(3, -1, -1)


def dots(picture: Tensor) -> Tensor:
    """Return a picture `(C, H, W)` in [0, 1] in 8 bits, `(H, W, C)` on the CPU; NaN is black."""
    pixels = (picture.nan_to_num(nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().cpu()


def trigger_pictures(evidence: Mapping[str, Tensor | float]) -> tuple[tuple[str, str], ...]:
    """Return captions and data URIs of pattern, mask and both together, as far as known."""
    pattern, mask = array(evidence, "pattern"), array(evidence, "mask")
    drawn = [("Pattern", png(pattern))] if pattern is not None else []
    drawn += [("Mask", png(mask))] if mask is not None else []
    if pattern is not None and mask is not None and pattern.shape[1:] == mask.shape[1:]:
        drawn.append(("Pattern under the mask", png(pattern, mask)))
    return tuple(drawn)


def heat(before: Tensor, after: Tensor) -> Tensor:
    """Return how much each pixel changed as colors `(n, 3, H, W)`, black for no change.

    Takes the largest change over the channels of `(n, C, H, W)` images, on one scale for all of
    them, so that the brightest pixel is the largest change.
    """
    from matplotlib import colormaps  # late: only pages with pictures need it

    change = (after - before).abs().amax(1)  # (n, H, W)
    scaled = change / change.max().clamp_min(1e-12)
    colors = torch.from_numpy(colormaps["inferno"](scaled.numpy())[..., :3])
    return colors.permute(0, 3, 1, 2).float() * (change > 0).unsqueeze(1)


def gaze(picture: Tensor, looks: Tensor, most: int = 48) -> Tensor:
    """Return a dimmed gray picture under a map of where the net looks, `(3, h, w)` in [0, 1].

    Args:
        picture: `(C, H, W)` in [0, 1].
        looks: `(H, W)` in [0, 1]; what is not looked at stays gray.
        most: Largest side of the result, so that pages stay small.
    """
    from matplotlib import colormaps  # late: only pages with pictures need it

    side = max(picture.shape[1:])
    layers = torch.cat([picture.mean(0, keepdim=True), looks[None]])
    if side > most:
        size = [max(1, round(n * most / side)) for n in picture.shape[1:]]
        layers = F.interpolate(layers[None], size, mode="area")[0]
    gray, strength = layers[:1].clamp(0, 1) * 0.7, layers[1:].clamp(0, 1)
    colors = torch.from_numpy(colormaps["inferno"](strength[0].numpy())[..., :3])
    share = 0.8 * strength.sqrt()
    return gray * (1 - share) + colors.permute(2, 0, 1).float() * share


# 2. The chart of sizes ------------------------------------------------------------------------

WIDTH, HEIGHT = 580.0, 210.0  # of the plot in SVG units, without its axes


@dataclass(frozen=True)
class ChartBar:
    """One class of the chart: a box in SVG units and the words of its tooltip."""

    x: float
    y: float
    width: float
    height: float
    number: int
    name: str
    title: str
    size: float
    feasible: bool
    outlier: bool
    ticked: bool


@dataclass(frozen=True)
class ChartLine:
    """A horizontal line: its place in SVG units and its words."""

    y: float
    text: str


@dataclass(frozen=True)
class SizeChart:
    """Bars by class number, lines at the median and at the cut, ticks of the vertical axis."""

    bars: tuple[ChartBar, ...]
    ticks: tuple[ChartLine, ...]
    median: ChartLine | None
    cut: ChartLine | None
    named: bool


def size_chart(report: Report, verdict: Verdict) -> SizeChart | None:
    """Return the chart of a detector's table, None if it has no sizes.

    Of several goals with one target the smallest is drawn. The axis ends above the largest
    feasible size; classes without a feasible trigger fill it.
    """
    arms = _smallest(verdict.arms)
    drawn = [arm.size for arm in arms if arm.feasible] or [arm.size for arm in arms]
    if not arms or max(drawn) <= 0:
        return None
    at = cut(verdict)
    step = _round_step(max(drawn) / 4)
    top = step * math.ceil(max([*drawn, at or 0.0]) * 1.02 / step)
    ticks = (
        ChartLine(_level(v * step, top), figure(v * step)) for v in range(round(top / step) + 1)
    )
    middle = _median(verdict, arms)
    return SizeChart(
        bars=_bars(report, verdict, arms, top),
        ticks=tuple(ticks),
        median=_line(middle, top, "median"),
        cut=_line(at, top, "suspicious below"),
        named=len(arms) <= 12,
    )


def _smallest(arms: Sequence[Arm]) -> list[Arm]:
    """Return the feasible or else smallest arm of each target, by class number."""
    best: dict[int, Arm] = {}
    for arm in (arm for arm in arms if math.isfinite(arm.size)):
        held = best.get(arm.goal.target)
        if held is None or (not arm.feasible, arm.size) < (not held.feasible, held.size):
            best[arm.goal.target] = arm
    return [best[target] for target in sorted(best)]


def _median(verdict: Verdict, arms: Sequence[Arm]) -> float | None:
    """Return the median size of the classes other than the one that stands out most."""
    lowest = max(arms, key=lambda arm: arm.index if math.isfinite(arm.index) else -math.inf)
    comparison = compared(verdict, lowest.goal)
    return comparison.median if comparison else None


def _bars(
    report: Report, verdict: Verdict, arms: Sequence[Arm], top: float
) -> tuple[ChartBar, ...]:
    flagged = {f.goal for f in verdict.findings if f.severity in ("CRITICAL", "HIGH", "MEDIUM")}
    ticked = _ticked(
        [a.goal.target for a in arms], {a.goal.target for a in arms if a.goal in flagged}
    )
    pitch = WIDTH / len(arms)
    width = min(pitch * 0.72, 44.0)
    return tuple(
        ChartBar(
            x=(place + 0.5) * pitch - width / 2,
            y=_level(arm.size if arm.feasible else top, top),
            width=width,
            height=HEIGHT - _level(arm.size if arm.feasible else top, top),
            number=arm.goal.target,
            name=class_name(class_names(report), arm.goal.target),
            title=_tooltip(report, arm),
            size=arm.size,
            feasible=arm.feasible,
            outlier=arm.goal in flagged,
            ticked=arm.goal.target in ticked,
        )
        for place, arm in enumerate(arms)
    )


def _ticked(numbers: Sequence[int], flagged: set[int]) -> set[int]:
    """Return the class numbers with room for a tick: the flagged ones, and round ones elsewhere."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000, 10**9) if len(numbers) / s <= 24)
    clear = {n for n in numbers if all(abs(n - flag) > step / 2 for flag in flagged)}
    return flagged | {n for n in clear if n % step == 0}


def _tooltip(report: Report, arm: Arm) -> str:
    names, start = class_names(report), arm.goal.source
    source = "" if start is None else f" from {class_label(names, start)}"
    found = f"{figure(arm.size)} pixels" if arm.feasible else "no trigger found"
    target = class_label(names, arm.goal.target)
    return f"{target}{source}: {found}, index {figure(arm.index)}, works on {percent(arm.asr)}"


def _line(value: float | None, top: float, word: str) -> ChartLine | None:
    if value is None or value > top:
        return None
    return ChartLine(_level(value, top), f"{word} {figure(value)}")


def _level(value: float, top: float) -> float:
    """Return the vertical place of a value; SVG counts downwards."""
    return HEIGHT * (1 - value / top)


def _round_step(rough: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is not below `rough`.

    Example:
        >>> [_round_step(v) for v in (0.3, 1.0, 14.0)]
        [0.5, 1.0, 20.0]
    """
    power = 10.0 ** math.floor(math.log10(rough))
    return next(float(power * m) for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


# 3. Dots with whiskers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Whisker:
    """A share with its interval on an axis from 0 to 100, and its words."""

    name: str
    value: float
    low: float
    high: float
    text: str
    trials: int


def whisker(name: str, rate: Rate) -> Whisker:
    """Return one row of the dot-and-whisker chart."""
    value, low, high = (
        100 * min(1.0, max(0.0, v)) if math.isfinite(v) else 0.0
        for v in (rate.value, rate.low, rate.high)
    )
    return Whisker(name, value, low, high, f"{percent(rate.value)} {interval(rate)}", rate.trials)


def confirmation_rows(confirmation: Confirmation) -> tuple[Whisker, ...]:
    """Return the rows of the confirmation chart: the trigger, the control, nothing."""
    return (
        whisker("Recovered trigger", confirmation.asr),
        whisker("Random trigger, same size", confirmation.control),
        whisker("No trigger", confirmation.no_trigger),
    )
