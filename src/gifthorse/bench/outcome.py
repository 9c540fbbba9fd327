"""What a defense did to one model, as figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gifthorse.core.metrics import Column, changed_size, column, mask_overlap, mask_size
from gifthorse.core.types import Arm, Finding, Label, Rate, Verdict
from gifthorse.detection.statistics import aiv, degenerate
from gifthorse.filtering.scoring import Caught
from gifthorse.workflows.evaluate import Figure, flatten

DefenseKind: TypeAlias = Literal["remedy", "filter", "detector"]


@dataclass(frozen=True)
class Cost:
    """What a defense took.

    Attributes:
        fit_seconds: Wall time of the remedy's or the detector's one call; None for a filter, which
            does what it does with clean images anew in every call.
        seconds_1: Seconds an image, one at a time: of the repaired net, or of the filter. None for
            detectors, and unless it was asked for.
        seconds_128: The same with 128 images at once.
        image_steps: Images that went forward and back through the net; forward alone: a half.
            A remedy without training or search counts none.
        peak_bytes: Most memory that the process has held so far, all that went before included;
            None where the system does not tell.
    """

    fit_seconds: float | None = None
    seconds_1: float | None = None
    seconds_128: float | None = None
    image_steps: float = 0.0
    peak_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class DetectorOutcome:
    """What a detector said, beside the truth.

    Attributes:
        label: The verdict.
        score: The detector's statistic for the whole model.
        threshold: Where suspicion starts.
        flagged: Targets of the findings that are worse than for information.
        column: In USB's words; None if the verdict is inconclusive.
        aiv: Anomaly index value of the true target's size, of a clean model the largest; 0 or
            infinite if `degenerate`, None with fewer than three classes in the table.
        aiv_lower: The same with the lower median, as TrojanZoo's code.
        degenerate: Whether half of the sizes or more are equal.
        size: Size of the true target's trigger in the detector's own measure, in pixels; of a clean
            model the mean over classes.
        mln: L1 norm of the mask shown for the true target.
        pixels: Pixels that its trigger changes, a mean over images.
        change: Sum over pixels of the largest change of a channel, a mean over images.
        overlap: Agreement of that mask with the true one, by the mode of `metrics.mask_overlap`;
            None where either has no fixed place, or the true one is the whole image.
        recovered: Success of that trigger on the defender's unseen images.
    """

    label: Label
    score: float
    threshold: float
    flagged: frozenset[int] = frozenset()
    column: Column | None = None
    aiv: float | None = None
    aiv_lower: float | None = None
    degenerate: bool = False
    size: float | None = None
    mln: float | None = None
    pixels: float | None = None
    change: float | None = None
    overlap: Mapping[str, float | None] = field(default_factory=dict)
    recovered: Rate | None = None

    def figures(self) -> dict[str, Figure]:
        """Return everything that is a number."""
        known, column = self.label != "INCONCLUSIVE", self.column
        flags: dict[str, Figure] = {
            f"flag_{word.replace(' ', '_')}": float(column == word) if column else None
            for word in ("clean", "correct", "correct set", "wrong")
        }
        return flags | {
            "score": self.score,
            "threshold": self.threshold,
            "confirmed": float(self.label == "BACKDOORED") if known else None,
            "suspected": float(self.label in ("BACKDOORED", "SUSPICIOUS")) if known else None,
            "flagged": float(len(self.flagged)) if known else None,
            "aiv": self.aiv,
            "aiv_lower": self.aiv_lower,
            "aiv_degenerate": None if self.aiv is None else float(self.degenerate),
            "size": self.size,
            "mln": self.mln,
            "mln_pixels": self.pixels,
            "mln_eff": self.change,
            "mjs": self.overlap.get("topk"),
            "mjs_half": self.overlap.get("half"),
            "mjs_zoo": self.overlap.get("zoo"),
            "recovered_asr": self.recovered,
        }


@dataclass(frozen=True, eq=False)
class DefenseOutcome:
    """One defense on one model, judged on images that neither it nor the attack saw.

    Attributes:
        kind: What the defense is.
        before: Figures of the model as it was given: `accuracy`, `ccc`, `ccc_correct`; of a
            backdoored one `asr`, `asr_all`, `ra` and `tmc`. None means no trials.
        after: The same of the repaired one; of a filter `acc_sys` and `asr_sys`, where images that
            are rejected count as neither right nor hijacked.
        changes: `cad`, `ccc_change`, and `ard`, `tmc_change`, `der`, `rir` of a backdoored one.
            Drops are positive where something fell.
        caught: How well a filter tells pairs of clean and stamped images apart; None without any.
        found: What a detector said.
        unpaired: A filter's `tpr_all` and `fpr_all` on test images that were drawn whatever the net
            makes of them.
        pairs: Pairs that a filter was tried on, or stamped images of a training set that it was to
            clean; None for other defenses, and clean models.
        cost: What it took.
        images: How many images there were: `fit`, `calibration`, `test`.
        reloaded: Whether the remedy's weights were saved and read again before they were measured.
        status: `collapsed` if less than half of the accuracy is left, else `ok`.
        scores: A filter's scores of the `calibration`, `clean` and `stamped` images, to judge anew.
    """

    kind: DefenseKind
    before: Mapping[str, Rate | None]
    after: Mapping[str, Rate | None]
    changes: Mapping[str, Figure] = field(default_factory=dict)
    caught: Caught | None = None
    found: DetectorOutcome | None = None
    unpaired: Mapping[str, Rate | None] = field(default_factory=dict)
    pairs: int | None = None
    cost: Cost = Cost()
    images: Mapping[str, int] = field(default_factory=dict)
    reloaded: bool = False
    status: Literal["ok", "collapsed"] = "ok"
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    def figures(self) -> dict[str, float | None]:
        """Return all figures by flat names, ready for JSON: finite numbers, or None.

        Rates have companions; see `flatten`. What the model was before has `_before` behind its
        name. An infinite AIV is None beside `aiv_degenerate`.
        """
        every: dict[str, Figure] = {f"{k}_before": v for k, v in self.before.items()}
        every |= dict(self.after) | dict(self.changes) | dict(self.unpaired)
        if self.pairs is not None:
            every |= _catch(self.caught) | {"pairs": float(self.pairs)}
        if self.found is not None:
            every |= self.found.figures()
        if self.kind == "remedy":
            every |= {
                "collapsed": float(self.status == "collapsed"),
                "reloaded": float(self.reloaded),
            }
        every |= vars(self.cost)
        every |= {f"n_{k}": float(v) for k, v in self.images.items()}
        return flatten(every)


def _catch(caught: Caught | None) -> dict[str, Figure]:
    """Return a filter's figures; its accuracy is called `decided`, since nets have one, too."""
    return {
        "decided" if name == "accuracy" else name: getattr(caught, name, None)
        for name in Caught._fields
    }


# What a verdict says ------------------------------------------------------------------------


def read_verdict(verdict: Verdict, target: int | None, true: Tensor | None) -> DetectorOutcome:
    """Return what a verdict says, beside the truth.

    Args:
        verdict: What it said.
        target: The true target; None of a clean model.
        true: The true mask, `(H, W)`; None of a trigger without one.
    """
    return _beside(_read(verdict, target), verdict, target, true)


def _read(verdict: Verdict, target: int | None) -> DetectorOutcome:
    """Return what a verdict says, and how far the true target's size, or any, stands out."""
    known = verdict.label in ("BACKDOORED", "SUSPICIOUS")
    worse = [f.goal for f in verdict.findings if f.goal is not None and f.severity != "INFO"]
    flagged = frozenset(goal.target for goal in worse) if known else frozenset[int]()
    sizes = _sizes(verdict.arms)
    out = DetectorOutcome(
        verdict.label,
        verdict.score,
        verdict.threshold,
        flagged,
        None if verdict.label == "INCONCLUSIVE" else column(flagged, target),
        size=sizes.get(target) if target is not None else _mean(list(sizes.values())),
    )
    if len(sizes) < 3 or (target is not None and target not in sizes):
        return out
    values = torch.tensor(list(sizes.values()), dtype=torch.float64)
    index = [aiv(values), aiv(values, middle="lower")]
    at = slice(None) if target is None else list(sizes).index(target)
    usual, lower = (float(v[at].max()) for v in index)
    return replace(out, aiv=usual, aiv_lower=lower, degenerate=degenerate(values))


def _sizes(arms: Sequence[Arm]) -> dict[int, float]:
    """Return the smallest size for each target; from some class, if pairs were searched."""
    out: dict[int, float] = {}
    for arm in arms:
        out[arm.goal.target] = min(arm.size, out.get(arm.goal.target, math.inf))
    return out


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _beside(
    out: DetectorOutcome, verdict: Verdict, target: int | None, true: Tensor | None
) -> DetectorOutcome:
    """Return what was found beside the true trigger, if the verdict shows one for its target."""
    shown: list[Finding] = [
        f for f in verdict.findings if f.goal is not None and f.goal.target == target
    ]
    if not shown:
        return out
    first = shown[0]
    parts = [first.evidence.get(name) for name in ("mask", "before", "after")]
    if first.confirmation is not None:
        out = replace(out, recovered=first.confirmation.asr)
    if isinstance(parts[1], Tensor) and isinstance(parts[2], Tensor) and len(parts[1]):
        pixels, size = changed_size(parts[1], parts[2])
        out = replace(out, pixels=pixels, change=size)
    if not isinstance(parts[0], Tensor):
        return out
    mask = parts[0].amax(0) if parts[0].ndim == 3 else parts[0]
    out = replace(out, mln=mask_size(mask))
    if true is None or true.shape != mask.shape:
        return out
    overlap = {mode: mask_overlap(mask, true, mode) for mode in ("topk", "half", "zoo")}
    return replace(out, overlap=overlap)
