"""Judge a filter: on images that come to a running model, or as one that cleans a training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.bench.outcome import DefenseOutcome
from gifthorse.bench.protocol import EvalConfig, Splits
from gifthorse.core.metrics import accuracy, asr, rate
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Filter, Images, Implant, Labels, Rate, Shape, Subject
from gifthorse.data.samples import Subset, whole
from gifthorse.filtering.scoring import judge, pairs, refused, threshold
from gifthorse.training import predict
from gifthorse.workflows.evaluate import EvalImages, Predictions, stamp

TRAINING = 5000  # images at most of a training set that is to be cleaned
POISONED = 0.05  # of them: what spectral signatures expects, and BackdoorBench's usual rates span
COMPANY = 4  # images of a training set for each calibration image among them, at least


@dataclass(frozen=True, eq=False)
class _Suspects:
    """Images with the labels that a filter is told."""

    images: Images
    labels: Labels
    classes: int

    @property
    def shape(self) -> Shape:
        _, c, h, w = self.images.shape
        return c, h, w

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor, /) -> Batch:
        return self.images[index], self.labels[index]


@dataclass(frozen=True, eq=False)
class FilterEvaluation:
    """A filter with the model that it works for.

    Attributes:
        method: The filter.
        subject: The model, as defenses see it.
        data: The defender's images, and the training images.
        evaluation: How it is judged.
        run: Who watches.
        seed: What the filter draws from, the same in every call.
        draw: What the judge draws from.
    """

    method: Filter
    subject: Subject
    data: Splits
    evaluation: EvalConfig
    run: Run
    seed: int
    draw: Generator

    # 1. Images that come to a running model --------------------------------------------------

    def guarding(self, images: EvalImages, before: Predictions) -> DefenseOutcome:
        """Return how well the filter tells stamped from clean test images, and what it costs.

        Args:
            images: Test images.
            before: What the model says of them.
        """
        (known,) = self._online([whole(self.data.calibration)[0]], self.run)
        caught, kept = None, {"calibration": known}
        rows, others = self._pairs(images, before)
        if len(rows) and images.stamped is not None:
            parts = [images.x[torch.cat([rows, others])], images.stamped[rows]]
            kept["clean"], kept["stamped"] = self._online(parts, self.run)
            caught = judge(kept["clean"], kept["stamped"], known, self.evaluation.fpr)
        after, unpaired = self._system(images, before, threshold(known, self.evaluation.fpr))
        return DefenseOutcome(
            "filter",
            {},
            after,
            caught=caught,
            unpaired=unpaired,
            pairs=None if images.stamped is None else len(rows),
            scores=kept,
        )

    def scores(self, x: Images) -> Tensor:
        """Return the scores of some images, watched by nobody: to measure its time."""
        return self._online([x], Run())[0]

    def _online(self, parts: Sequence[Images], run: Run) -> tuple[Tensor, ...]:
        """Return the scores of images that come with the model's own answers for labels."""
        labeled = [(x, predict(self.subject, x).argmax(1)) for x in parts]
        return self._scores(labeled, run)

    def _scores(self, parts: Sequence[Batch], run: Run) -> tuple[Tensor, ...]:
        """Return the scores of each part, all shown together in random order."""
        images, labels = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        order = torch.randperm(len(images), generator=self.draw)
        suspects = _Suspects(images[order], labels[order], self.subject.classes)
        rng = Generator().manual_seed(self.seed)
        given = self.method(self.subject, self.data.fit, suspects, rng, run)
        back = torch.empty_like(given).index_copy(0, order, given)
        return tuple(back.split([len(x) for x, _ in parts]))

    def _pairs(self, images: EvalImages, before: Predictions) -> tuple[Tensor, Tensor]:
        """Return which test images make pairs, and which ones are shown clean alone."""
        order = torch.randperm(len(images.x), generator=self.draw)
        if before.stamped is None or images.goal is None:
            return order[:0], order[:0]
        clean, y, goal = before.clean.argmax(1), images.y, images.goal
        good = pairs(clean, before.stamped.argmax(1), y, goal)[order]
        rows = order[good][: self.evaluation.pairs]
        more = round(len(rows) * (1 / self.evaluation.stamped - 2))
        right = ((clean == y) & (y != goal.target))[order] & ~torch.isin(order, rows)
        return rows, order[right][:more]

    def _system(
        self, images: EvalImages, before: Predictions, limit: float
    ) -> tuple[dict[str, Rate | None], dict[str, Rate | None]]:
        """Return figures of the net behind the filter, and of the filter, on images as they come.

        Args:
            images: Test images.
            before: What the model says of them.
            limit: The score above which an image is rejected.
        """
        rows = torch.randperm(len(images.x), generator=self.draw)[: self.evaluation.pairs]
        y, said = images.y[rows], before.clean[rows].argmax(1)
        if images.stamped is None or before.stamped is None or images.goal is None:
            flags = self._online([images.x[rows]], self.run)[0] > limit
            return {"acc_sys": accuracy(refused(said, flags), y)}, {"fpr_all": rate(flags)}
        parts = [images.x[rows], images.stamped[rows]]
        clean, stamped = (v > limit for v in self._online(parts, self.run))
        hit = before.stamped[rows].argmax(1)
        after: dict[str, Rate | None] = {
            "acc_sys": accuracy(refused(said, clean), y),
            "asr_sys": asr(refused(hit, stamped), y, images.goal),
        }
        return after, {"fpr_all": rate(clean), "tpr_all": rate(stamped[images.applies_to[rows]])}

    # 2. A training set -----------------------------------------------------------------------

    def cleaning(self, made: Implant | None) -> DefenseOutcome:
        """Return how well the filter finds the stamped images of a poisoned training set.

        Up to 5000 training images, 5 % of which are stamped and bear the target's label, as a
        poisoner leaves them; only images that the backdoor is meant for are. A clean model gets
        clean ones. Calibration images come along under their labels, at most one for four, and
        alone set the threshold.

        Args:
            made: The model and the truth about it; None for a clean model.
        """
        order = torch.randperm(len(self.data.train), generator=self.draw)[:TRAINING]
        x, y = whole(Subset(self.data.train, order))
        chosen = torch.zeros_like(y, dtype=torch.bool)
        if made is not None:
            applies = made.goal.applies_to(y)
            chosen = applies & (applies.cumsum(0) <= POISONED * len(x))
        known_x, known_y = whole(self.data.calibration)
        few = len(x) // COMPANY
        parts = [(known_x[:few], known_y[:few]), (x[~chosen], y[~chosen])]
        if made is not None:
            stamped = stamp(made, x[chosen])
            parts.append((stamped, torch.full((len(stamped),), made.goal.target)))
        scores = self._scores(parts, self.run)
        kept = dict(zip(("calibration", "clean", "stamped"), scores, strict=False))
        known, clean, fpr = kept["calibration"], kept["clean"], self.evaluation.fpr
        found, flagged = kept.get("stamped", clean[:0]), clean > threshold(known, fpr)
        return DefenseOutcome(
            "filter",
            {},
            {},
            caught=judge(clean, found, known, fpr) if len(found) else None,
            unpaired={"fpr_all": rate(flagged)},
            pairs=None if made is None else len(found),
            scores=kept,
        )
