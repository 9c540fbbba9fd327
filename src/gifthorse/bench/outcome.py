"""What a defense did to one model, as figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from gifthorse.core.metrics import Column
from gifthorse.core.types import Label, Rate
from gifthorse.filtering.scoring import Caught

Kind: TypeAlias = Literal["remedy", "filter", "detector"]
Figure: TypeAlias = Rate | float | None


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
class Found:
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
class Outcome:
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

    kind: Kind
    before: Mapping[str, Rate | None]
    after: Mapping[str, Rate | None]
    changes: Mapping[str, Figure] = field(default_factory=dict)
    caught: Caught | None = None
    found: Found | None = None
    unpaired: Mapping[str, Rate | None] = field(default_factory=dict)
    pairs: int | None = None
    cost: Cost = Cost()
    images: Mapping[str, int] = field(default_factory=dict)
    reloaded: bool = False
    status: Literal["ok", "collapsed"] = "ok"
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    def figures(self) -> dict[str, float | None]:
        """Return all figures by flat names, ready for JSON: finite numbers, or None.

        A rate is its name with its value, and the same with `_low`, `_high` and `_n`: its interval
        and how many trials it is of. What is undefined is None, and of a rate then `_n` is 0. What
        the model was before has `_before` behind its name. An infinite AIV is None beside
        `aiv_degenerate`.
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
        every |= {k: _number(v) for k, v in vars(self.cost).items()}
        every |= {f"n_{k}": float(v) for k, v in self.images.items()}
        out: dict[str, float | None] = {}
        for name, figure in every.items():
            out |= _flat(name, figure)
        return out


# What is a rate where it is known, so that it has companions where it is not.
_RATES = {"tpr", "fpr", "precision", "decided", "tpr_all", "fpr_all", "recovered_asr"}
_RATES |= {"accuracy", "ccc", "ccc_correct", "asr", "asr_all", "ra", "tmc"}


def _flat(name: str, figure: Figure) -> dict[str, float | None]:
    if isinstance(figure, Rate) and figure.trials:
        low, high, n = figure.low, figure.high, float(figure.trials)
        return {name: figure.value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}
    if isinstance(figure, Rate) or (figure is None and name.removesuffix("_before") in _RATES):
        return {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0.0}
    return {name: _number(figure)}


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _catch(caught: Caught | None) -> dict[str, Figure]:
    """Return a filter's figures; its accuracy is called `decided`, since nets have one, too."""
    return {
        "decided" if name == "accuracy" else name: getattr(caught, name, None)
        for name in Caught._fields
    }
