"""Judge a defense on a model: the one place that sees trigger, target and test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from gifthorse.bench.measures import digest, neurons_apart, peak_bytes, resaved, seconds
from gifthorse.bench.outcome import Cost, Figure, Kind, Outcome
from gifthorse.bench.reading import found
from gifthorse.bench.splits import Sizes, Splits, splits
from gifthorse.data.samples import whole
from gifthorse.errors import BadImages, BadOption, GifthorseError
from gifthorse.filtering.scoring import judge, pairs, refused, threshold
from gifthorse.metrics import (
    accuracy,
    asr,
    asr_all,
    asr_drop,
    change,
    clean_drop,
    collapsed,
    confidence,
    confidence_change,
    confidence_correct,
    der,
    rate,
    rir,
    robust_accuracy,
    target_confidence,
)
from gifthorse.session import LocalSession
from gifthorse.tensors import spawn
from gifthorse.training import predict
from gifthorse.types import (
    Batch,
    Detector,
    Filter,
    Goal,
    Images,
    Implant,
    Labels,
    Logits,
    Rate,
    Remedy,
    Session,
    Shape,
    Subject,
    Trigger,
)

__all__ = ["Sizes", "Splits", "Terms", "digest", "evaluate", "evaluate_clean", "splits"]

Defense: TypeAlias = Remedy | Filter | Detector
Online: TypeAlias = Callable[[Images], object] | None  # what is asked about each image later


@dataclass(frozen=True)
class Terms:
    """How defenses are judged.

    Attributes:
        pairs: Images, each clean and stamped, that filters are tried on.
        stamped: Share of stamped images among those that a filter is shown together; less than a
            half adds clean ones.
        fpr: Share of clean images that a filter may flag.
        timed: Whether to measure seconds an image.
        repeats: How often that is measured, at least 5; the median counts.
    """

    pairs: int = 100
    stamped: float = 0.5
    fpr: float = 0.05
    timed: bool = False
    repeats: int = 5

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise BadOption(f"pairs must be 1 or more; got {self.pairs}")
        if not 0 < self.stamped <= 0.5:
            raise BadOption(f"stamped must be a share in (0, 0.5]; got {self.stamped}")
        if self.repeats < 5:
            raise BadOption(f"repeats must be 5 or more, or a median says little; {self.repeats}")


# 1. Judging -----------------------------------------------------------------------------------


def evaluate(
    made: Implant,
    defense: Defense,
    data: Splits,
    rng: Generator,
    *,
    kind: Kind,
    terms: Terms = Terms(),
    session: Session | None = None,
) -> Outcome:
    """Try a defense on a backdoored model.

    The defense gets a private copy of the net without its history, and clean images. Suspects come
    with the net's own answers for labels, clean and stamped ones shuffled together. Every call of a
    filter starts from the same seed, so that it draws the same partners for all images.

    Args:
        made: The model and the truth about it; all of it stays as it was.
        defense: What is tried.
        data: The defender's images, and those that are judged on.
        rng: Source of all randomness.
        kind: What the defense is.
        terms: How it is judged.
        session: Who watches, and when it must stop.

    Raises:
        GifthorseError: If the defense changed the weights it was given.
        Incomplete: If the session was over before the defense was done; a detector then says so.
    """
    return _Case(made.subject, made, data, terms, session, rng).judge(defense, kind)


def evaluate_clean(
    subject: Subject,
    defense: Defense,
    data: Splits,
    rng: Generator,
    *,
    kind: Kind,
    terms: Terms = Terms(),
    session: Session | None = None,
) -> Outcome:
    """Try a defense on a clean model: what it costs, and its false alarms.

    Arguments and errors are those of `evaluate`.
    """
    return _Case(subject, None, data, terms, session, rng).judge(defense, kind)


# 2. The model, the images, and what it says of them ---------------------------------------------


@dataclass(frozen=True, eq=False)
class _Test:
    """Test images, the same with the trigger, their labels, and what the backdoor is for.

    The trigger is copied first: one that draws its places draws the same ones in every judgment.
    """

    x: Images
    y: Labels
    stamped: Images | None = None
    goal: Goal | None = None


def _test(data: Splits, made: Implant | None) -> _Test:
    x, y = whole(data.test)
    if not len(x):
        raise BadImages("there are no test images to judge on")
    if made is None:
        return _Test(x, y)
    with torch.no_grad():
        return _Test(x, y, deepcopy(made.trigger)(x), made.goal)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Logits of test images, clean and stamped."""

    clean: Logits
    stamped: Logits | None


def _asked(subject: Subject, test: _Test) -> _Answers:
    stamped = None if test.stamped is None else predict(subject, test.stamped)
    return _Answers(predict(subject, test.x), stamped)


def _measured(answers: _Answers, test: _Test) -> dict[str, Rate | None]:
    clean, y = answers.clean, test.y
    out: dict[str, Rate | None] = {
        "accuracy": accuracy(clean.argmax(1), y),
        "ccc": confidence(clean, y),
        "ccc_correct": confidence_correct(clean, y),
    }
    if answers.stamped is not None and test.goal is not None:
        hit, goal = answers.stamped.argmax(1), test.goal
        out |= {"asr": asr(hit, y, goal), "asr_all": asr_all(hit, goal)}
        out |= {"ra": robust_accuracy(hit, y, goal)}
        out |= {"tmc": target_confidence(answers.stamped, y, goal)}
    return out


def _changed(before: _Answers, after: _Answers, test: _Test) -> dict[str, Figure]:
    y, first, last = test.y, before.clean.argmax(1), after.clean.argmax(1)
    out: dict[str, Figure] = {
        "cad": clean_drop(first, last, y),
        "ccc_change": confidence_change(before.clean, after.clean, y),
    }
    if before.stamped is None or after.stamped is None or test.goal is None:
        return out
    goal, own = test.goal, (accuracy(first, y), accuracy(last, y))
    logits = (before.stamped, after.stamped)
    hits = tuple(v.argmax(1) for v in logits)
    return out | {
        "ard": asr_drop(hits[0], hits[1], y, goal),
        "tmc_change": change(*(target_confidence(v, y, goal) for v in logits)),
        "der": der((asr(hits[0], y, goal), asr(hits[1], y, goal)), own),
        "rir": rir((robust_accuracy(hits[0], y, goal), robust_accuracy(hits[1], y, goal)), own),
    }


@dataclass(frozen=True, eq=False)
class _Suspects:
    """Images that come one by one, with whatever the net makes of them for labels."""

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


# 3. The three kinds of defense ----------------------------------------------------------------


class _Case:
    """A model under judgment: the private copy of it, and what it says of the test images."""

    def __init__(
        self,
        subject: Subject,
        made: Implant | None,
        data: Splits,
        terms: Terms,
        session: Session | None,
        rng: Generator,
    ) -> None:
        self.given = Subject(deepcopy(subject.net).eval(), subject.shape, subject.classes)
        self.digest = digest(self.given.net)
        self.data, self.terms, self.session = data, terms, session or LocalSession()
        self.seed, self.draw = spawn(rng).initial_seed(), spawn(rng)
        self.test = _test(data, made)
        self.before = _asked(self.given, self.test)
        self.place = None if made is None else _place(made.trigger, self.test)

    def judge(self, defense: Defense, kind: Kind) -> Outcome:
        """Return the outcome of a defense, with its cost."""
        spent = self.session.image_steps
        if kind == "remedy":
            outcome, online = self._remedy(cast("Remedy", defense))
        elif kind == "filter":
            outcome, online = self._filter(cast("Filter", defense))
        elif kind == "detector":
            outcome, online = self._detector(cast("Detector", defense))
        else:
            raise BadOption(f"kind must be remedy, filter or detector; got {kind!r}")
        if digest(self.given.net) != self.digest:
            raise GifthorseError(
                "the defense changed the weights of the net that it was given, so nothing that is "
                "said of it holds: it must work on a copy"
            )
        spent = self.session.image_steps - spent
        cost = replace(outcome.cost, image_steps=spent, peak_bytes=peak_bytes())
        if self.terms.timed and online is not None:
            once, many = (
                seconds(online, self.test.x[torch.arange(n) % len(self.test.x)], self.terms.repeats)
                for n in (1, 128)
            )
            cost = replace(cost, seconds_1=once, seconds_128=many)
        images = {k: len(getattr(self.data, k)) for k in ("fit", "calibration", "test")}
        before = _measured(self.before, self.test)
        return replace(outcome, before=before, cost=cost, images=images)

    def _rng(self) -> Generator:
        return Generator().manual_seed(self.seed)

    def _remedy(self, remedy: Remedy) -> tuple[Outcome, Online]:
        started = time.monotonic()
        made = remedy(self.given, self.data.fit, self._rng(), session=self.session)
        cost = Cost(fit_seconds=time.monotonic() - started)
        net = resaved(made.net, self.given.net)
        repaired = replace(made, net=deepcopy(made.net).eval() if net is None else net)
        answers = _asked(repaired, self.test)
        changes = _changed(self.before, answers, self.test)
        if net is not None and self.test.stamped is not None:  # reforming inputs moves no neuron
            goal, y = cast("Goal", self.test.goal), self.test.y
            meant = y != goal.target if goal.source is None else y == goal.source
            both = self.test.x[meant], self.test.stamped[meant]
            changes["nsr_before"] = neurons_apart(self.given, *both)
            changes["nsr"] = neurons_apart(repaired, *both)
        own = [accuracy(v.clean.argmax(1), self.test.y) for v in (self.before, answers)]
        outcome = Outcome(
            "remedy",
            {},
            _measured(answers, self.test),
            changes,
            cost=cost,
            reloaded=net is not None,
            status="collapsed" if collapsed(own[0], own[1]) else "ok",
        )
        return outcome, lambda x: predict(repaired, x)

    def _filter(self, method: Filter) -> tuple[Outcome, Online]:
        def scores(parts: Sequence[Images], session: Session | None) -> tuple[Tensor, ...]:
            x = torch.cat(list(parts))
            order = torch.randperm(len(x), generator=self.draw)
            labels = predict(self.given, x[order]).argmax(1)
            suspects = _Suspects(x[order], labels, self.given.classes)
            given = method(self.given, self.data.fit, suspects, self._rng(), session=session)
            back = torch.empty_like(given).index_copy(0, order, given)
            return tuple(back.split([len(part) for part in parts]))

        def ask(*parts: Images) -> tuple[Tensor, ...]:
            return scores(parts, self.session)

        (known,) = ask(whole(self.data.calibration)[0])
        caught, kept = None, {"calibration": known}
        rows, others = self._pairs()
        if len(rows) and self.test.stamped is not None:
            clean = self.test.x[torch.cat([rows, others])]
            kept["clean"], kept["stamped"] = ask(clean, self.test.stamped[rows])
            caught = judge(kept["clean"], kept["stamped"], known, self.terms.fpr)
        after, unpaired = self._system(ask, threshold(known, self.terms.fpr))
        outcome = Outcome(
            "filter",
            {},
            after,
            caught=caught,
            unpaired=unpaired,
            pairs=None if self.test.stamped is None else len(rows),
            scores=kept,
        )
        return outcome, lambda x: scores([x], None)

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Return which test images make pairs, and which ones are shown clean alone."""
        order = torch.randperm(len(self.test.x), generator=self.draw)
        if self.before.stamped is None or self.test.goal is None:
            return order[:0], order[:0]
        clean, y, goal = self.before.clean.argmax(1), self.test.y, self.test.goal
        good = pairs(clean, self.before.stamped.argmax(1), y, goal)[order]
        rows = order[good][: self.terms.pairs]
        more = round(len(rows) * (1 / self.terms.stamped - 2))
        right = ((clean == y) & (y != goal.target))[order] & ~torch.isin(order, rows)
        return rows, order[right][:more]

    def _system(
        self, ask: Callable[..., tuple[Tensor, ...]], limit: float
    ) -> tuple[dict[str, Rate | None], dict[str, Rate | None]]:
        """Return figures of the net behind the filter, and of the filter, on images as they come.

        Args:
            ask: Scores some images with others.
            limit: The score above which an image is rejected.
        """
        test = self.test
        rows = torch.randperm(len(test.x), generator=self.draw)[: self.terms.pairs]
        y, said = test.y[rows], self.before.clean[rows].argmax(1)
        if test.stamped is None or self.before.stamped is None or test.goal is None:
            flags = ask(test.x[rows])[0] > limit
            return {"acc_sys": accuracy(refused(said, flags), y)}, {"fpr_all": rate(flags)}
        clean, stamped = (v > limit for v in ask(test.x[rows], test.stamped[rows]))
        hit = self.before.stamped[rows].argmax(1)
        meant = y != test.goal.target if test.goal.source is None else y == test.goal.source
        after: dict[str, Rate | None] = {
            "acc_sys": accuracy(refused(said, clean), y),
            "asr_sys": asr(refused(hit, stamped), y, test.goal),
        }
        return after, {"fpr_all": rate(clean), "tpr_all": rate(stamped[meant])}

    def _detector(self, detector: Detector) -> tuple[Outcome, Online]:
        started = time.monotonic()
        verdict = detector(self.given, self.data.fit, self._rng(), session=self.session)
        cost = Cost(fit_seconds=time.monotonic() - started)
        target = None if self.test.goal is None else self.test.goal.target
        said = found(verdict, target, self.place)
        return Outcome("detector", {}, {}, found=said, cost=cost), None


def _place(trigger: Trigger, test: _Test) -> Tensor | None:
    """Return the true mask `(H, W)`, or None of a trigger that has no fixed place of its own."""
    assert test.stamped is not None
    mask = trigger.picture()[1].amax(0)
    touched = (test.stamped - test.x).abs().amax((0, 1)) > 1e-6
    if mask.shape != touched.shape or bool((mask > 0).all()) or bool((touched & (mask <= 0)).any()):
        return None
    return mask
