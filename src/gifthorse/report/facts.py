"""Figures derived from a report that more than one format shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gifthorse.core.stats import median
from gifthorse.core.types import Arm, Finding, Goal, Label, Report, Severity, Verdict

_LABELS: tuple[Label, ...] = ("BACKDOORED", "SUSPICIOUS", "NO BACKDOOR FOUND", "INCONCLUSIVE")
_SEVERITIES: tuple[Severity, ...] = ("CRITICAL", "HIGH", "MEDIUM", "LOW", "INFO")
_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "center", "right")


@dataclass(frozen=True)
class Footprint:
    """Where a trigger sits and how much of the image it takes.

    Attributes:
        pixels: Pixels where the mask exceeds half of its largest value.
        area: Pixels of the image.
        l1: Sum of the mask, in pixels; a mask that is fully opaque counts each pixel as 1.
        peak: Largest value of the mask.
        box: Left, top, right and bottom of these pixels; right and bottom are exclusive.
        place: The box in words, e.g. `lower right`.
    """

    pixels: int
    area: int
    l1: float
    peak: float
    box: tuple[int, int, int, int] | None
    place: str

    @property
    def share(self) -> float:
        """Share of the image's pixels, in [0, 1]."""
        return self.pixels / self.area


@dataclass(frozen=True)
class SizeComparison:
    """The trigger size of one goal beside those of the others, sizes in pixels.

    Attributes:
        size: Of this goal.
        median: Of the other goals.
        others: How many those are.
        index: Robust deviations below the median.
        ratio: `size / median`; NaN if the median is 0.
    """

    size: float
    median: float
    others: int
    index: float
    ratio: float


@dataclass(frozen=True)
class Lead:
    """A finding together with the verdict of the detector that made it."""

    verdict: Verdict
    finding: Finding


def leads(report: Report) -> tuple[Lead, ...]:
    """Return the findings of all detectors, the gravest first."""
    found = [Lead(verdict, finding) for verdict in report.verdicts for finding in verdict.findings]
    return tuple(sorted(found, key=_gravity))


def _gravity(lead: Lead) -> tuple[int, int]:
    """Return a sort key: the verdict's label, then the finding's severity."""
    label = lead.verdict.label
    rank = _LABELS.index(label) if label in _LABELS else len(_LABELS)
    return rank, _SEVERITIES.index(lead.finding.severity)


def array(evidence: Mapping[str, Tensor | float], name: str) -> Tensor | None:
    """Return a tensor of the evidence on the CPU as float32 with NaN as 0, None if missing."""
    value = evidence.get(name)
    if not isinstance(value, Tensor):
        return None
    return value.detach().float().cpu().nan_to_num(nan=0.0)


def scalars(evidence: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Return the plain numbers of the evidence."""
    return {name: float(v) for name, v in evidence.items() if not isinstance(v, Tensor)}


def footprint(evidence: Mapping[str, Tensor | float]) -> Footprint | None:
    """Return where the trigger sits, from its mask or else from what it changed in the images."""
    mask = array(evidence, "mask")
    before, after = array(evidence, "before"), array(evidence, "after")
    if mask is not None:
        return locate(mask.flatten(0, -3).amax(0))
    if before is None or after is None or not len(before):
        return None
    return locate((after - before).abs().amax((0, 1)))


def locate(mask: Tensor) -> Footprint:
    """Measure a mask of shape `(H, W)` with values from 0 on.

    Example:
        >>> mask = torch.zeros(32, 32)
        >>> mask[28:31, 28:31] = 1
        >>> spot = locate(mask)
        >>> spot.pixels, spot.box, spot.place
        (9, (28, 28, 31, 31), 'lower right')
    """
    height, width = mask.shape
    on = mask > mask.max() / 2
    if not on.any():
        return Footprint(0, height * width, 0.0, 0.0, None, "nowhere")
    rows, columns = on.any(1).nonzero().flatten(), on.any(0).nonzero().flatten()
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    l1, peak = float(mask.sum()), float(mask.max())
    return Footprint(int(on.sum()), height * width, l1, peak, box, _place(box, height, width))


def _place(box: tuple[int, int, int, int], height: int, width: int) -> str:
    """Name the ninth of the image in which the box has its center."""
    left, top, right, bottom = box
    if 3 * (right - left) >= 2 * width and 3 * (bottom - top) >= 2 * height:
        return "across the image"
    row = _ROWS[min(2, 3 * (top + bottom) // (2 * height))]
    column = _COLUMNS[min(2, 3 * (left + right) // (2 * width))]
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"


def arm_of(verdict: Verdict, goal: Goal | None) -> Arm | None:
    """Return the row of a goal in the detector's table, None if it has none."""
    return next((arm for arm in verdict.arms if arm.goal == goal), None)


def compared(verdict: Verdict, goal: Goal | None) -> SizeComparison | None:
    """Return a goal's size beside those of its like: classes with classes, pairs with pairs."""
    arm = arm_of(verdict, goal)
    if arm is None:
        return None
    pair = arm.goal.source is not None
    rest = [
        other.size
        for other in verdict.arms
        if other is not arm and (other.goal.source is not None) == pair
    ]
    finite = [size for size in rest if math.isfinite(size)]
    if not finite:
        return None
    middle = float(median(torch.tensor(finite)))
    ratio = arm.size / middle if middle else math.nan
    return SizeComparison(arm.size, middle, len(finite), arm.index, ratio)


def cut(verdict: Verdict) -> float | None:
    """Return the size in pixels below which the index reaches the detector's threshold.

    Detectors score sizes or their logarithms; the line (or the curve) is read off the table, so
    that the chart needs no knowledge of the method. None if the score is not the largest index
    or if the indices do not lie on such a line.
    """
    rows = [a for a in verdict.arms if a.feasible and a.index > 0 and a.size > 0]
    rows = [a for a in rows if math.isfinite(a.index) and math.isfinite(a.size)]
    if len(rows) < 3 or not math.isclose(verdict.score, max(a.index for a in rows), rel_tol=1e-4):
        return None
    sizes = torch.tensor([a.size for a in rows], dtype=torch.float64)
    indices = torch.tensor([a.index for a in rows], dtype=torch.float64)
    at = _crossing(sizes, indices, verdict.threshold)
    if at is None:
        log = _crossing(sizes.log(), indices, verdict.threshold)
        at = math.exp(log) if log is not None else None
    return at if at is not None and at > 0 else None


def _crossing(x: Tensor, y: Tensor, level: float) -> float | None:
    """Return where the straight line through all points meets `level`, None if they bend."""
    dx, dy = x - x.mean(), y - y.mean()
    spread = float(dx.square().sum())
    slope = float((dx * dy).sum()) / spread if spread else 0.0
    if slope >= 0 or float((dy - slope * dx).abs().max()) > 1e-3 * float(y.abs().max()):
        return None
    return float(x.mean()) + (level - float(y.mean())) / slope
