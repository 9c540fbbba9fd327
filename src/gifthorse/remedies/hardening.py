"""Model hardening: train on images that carry natural triggers, so that none stays small."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from gifthorse.data.samples import Subset, batches, split
from gifthorse.errors import BadImages, BadOption, Incomplete
from gifthorse.inversion import PixelBackdoor
from gifthorse.remedies.guard import Guard
from gifthorse.search import Exhaustive, Pace, Search
from gifthorse.session import Ledger, LocalSession, fingerprint
from gifthorse.tensors import spawn
from gifthorse.training import Company, HeldNorms, Recipe, fit, still
from gifthorse.types import (
    Batch,
    Candidate,
    Goal,
    Hunt,
    Images,
    Inverter,
    Labels,
    Samples,
    Session,
    Subject,
)

SAVE_EVERY = 60.0  # seconds between two writes of an unfinished search


@dataclass(frozen=True)
class Hardening:
    """Enlarge the distances between classes: stamp small triggers on images, keep their labels.

    Assumes clean images enough to train on; nothing is known of a backdoor, and none need be there.
    Triggers of one class after the other are searched in the net as it is at that moment, or those
    of all classes once, before training. Training ends before it costs more accuracy than allowed,
    on images held out for that.

    Cost: a search of `later` rounds every `every` batches, and one of the inverter's own rounds
    for every class; then at most `recipe.epochs` passes, and one more for every fall of the rate.

    Attributes:
        inverter: What finds triggers, each for all other classes; its pace's rounds are those of
            the first search of a class.
        every: Batches from one search to the next, anew in every epoch; 0 searches all classes
            once, before training, and then each image draws one of their triggers.
        later: Rounds of a further search for a class, which starts from the trigger found last.
        each: Clean training images of every other class that a search uses, drawn anew each time.
        largest: Share of the image's pixels beyond which a trigger is not stamped.
        share: Share of the images of other classes than the trigger's that are stamped.
        drop: Accuracy on the held-out images that may be lost, in [0, 1]. An epoch that costs more
            is undone.
        falls: How often training then goes on at a third of its rate; it ends when another one is
            undone. How large a rate a net bears differs by ten times and more.
        held: Share of the clean images held out for that, class by class.
        recipe: How the net is trained; its epochs are the most there will be.

    Source: Tao et al., PixelBackdoor, CVPR 2022, sec. 5.4 and appendix L.1; schedule and rates,
    which the paper does not give, are those of the same group's MOTH, where BatchNorm keeps its
    statistics, too: those of half-stamped batches would cost accuracy on clean images at any rate.
    Differs: at most 10 epochs, the accuracy bound and the falling rate.
    """

    inverter: Inverter = PixelBackdoor(mode="clip", pace=Pace(bar=0.99, rounds=500, bf16=True))
    every: int = 10
    later: int = 100
    each: int = 10
    largest: float = 0.25
    share: float = 0.5
    drop: float = 0.02
    falls: int = 2
    held: float = 0.1
    recipe: Recipe = Recipe(epochs=10, lr=1e-4, decay=0.0, schedule="constant")

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("later", 1), ("each", 1), ("falls", 0)):
            if getattr(self, name) < least:
                raise BadOption(f"{name} must be {least} or more; got {getattr(self, name)}")
        for name in ("largest", "share", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadOption(f"{name} must lie in [0, 1]; got {getattr(self, name)}")
        if not 0 < self.held < 1:
            raise BadOption(f"held must lie between 0 and 1, both excluded; got {self.held}")

    def __call__(
        self,
        subject: Subject,
        clean: Samples,
        rng: Generator,
        *,
        session: Session | None = None,
    ) -> Subject:
        """Return the hardened net; an interrupted training goes on from its last epoch.

        Raises:
            BadImages: If there are too few images to hold some out.
            Incomplete: If the session ends during a search; whole epochs, and of the search before
                training every minute, are kept.
        """
        key = fingerprint(self, subject, clean, rng) if session else ""
        ledger = Ledger(session or LocalSession(), key)
        held, train = split(clean, self.held, spawn(rng))
        if not len(held) or not len(train):
            raise BadImages(
                f"of {len(clean)} clean images, {len(held)} are held out and {len(train)} left to "
                "train on: add images, or change held"
            )
        foes, guard = _Foes(self, train, spawn(rng), ledger), Guard(held, self.drop)
        company = [foes, HeldNorms(), guard]
        for fall, recipe in enumerate(guard.courses(self.recipe, self.falls)):
            part = ledger.stage(f"rate {fall}")
            subject = fit(subject, train, recipe, rng, mix=foes.mix, company=company, ledger=part)
        return subject


class _Foes(Company):
    """The triggers of the moment, and the searches that they come from."""

    def __init__(self, method: Hardening, train: Samples, rng: Generator, ledger: Ledger) -> None:
        self.method, self.train, self.ledger = method, train, ledger
        # The search before training draws from a stream of its own: a run that goes on after it
        # must not find the other one moved.
        self.once, self.rng = spawn(rng), spawn(rng)
        self.labels = torch.cat([y for _, y in batches(train, 1024)]).cpu()
        self.turn, self.states = 0, dict[int, dict[str, Tensor]]()
        self.current: list[Candidate] | None = None

    def before(self, learner: Subject, epoch: int) -> None:
        """Look at the net of this epoch; search all classes if that is still to be done."""
        self.learner, self.batch = learner, 0
        if not self.method.every and self.current is None:
            self.current = self._all()

    def mix(self, x: Images, y: Labels, index: Tensor) -> Batch:
        """Return the batch with triggers on some images, and its labels as they are."""
        if self.method.every and self.batch % self.method.every == 0:
            self.current = self._next()
        self.batch += 1
        usable = self.current or []
        if not usable:
            return x, y
        which = torch.randint(len(usable), y.shape, generator=self.rng)
        target = torch.tensor([c.goal.target for c in usable])[which]
        rows = (y.cpu() != target).nonzero().flatten()
        order = torch.randperm(len(rows), generator=self.rng)
        rows, x = rows[order[: round(self.method.share * len(rows))]], x.clone()
        for k, candidate in enumerate(usable):
            hit = rows[which[rows] == k].to(x.device)
            x[hit] = candidate.trigger(x[hit])
        return x, y

    def state_dict(self) -> dict[str, Any]:
        """Return whose turn it is, and what was found for each class."""
        return {"turn": self.turn, "states": self.states, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.turn, self.states = state["turn"], state["states"]
        self.rng.set_state(state["rng"])

    def _next(self) -> list[Candidate]:
        """Search the class whose turn it is in the net as it is."""
        goal, known = Goal(self.turn % self.learner.classes), self.turn >= self.learner.classes
        self.turn += 1
        hunt = self._hunt([goal], self.rng)
        if goal.target in self.states and isinstance(hunt, Search):
            hunt.follow(self.states[goal.target])
        self._run(hunt, self.method.later if known else None, None)
        if hunt.best[0].feasible:
            self.states[goal.target] = hunt.state()
        return self._usable(hunt)

    def _all(self) -> list[Candidate]:
        """Search all classes at once, or go on with that."""
        stage = self.ledger.stage("search")
        hunt = self._hunt([Goal(k) for k in range(self.learner.classes)], self.once)
        state = stage.recall()
        if state is not None:
            hunt.restore(state)
        self._run(hunt, None, stage)
        return self._usable(hunt)

    def _hunt(self, goals: Sequence[Goal], rng: Generator) -> Hunt:
        """Return a hunt on a few images that one of the goals is about."""
        rows = []
        for label in range(self.learner.classes):
            index = (self.labels == label).nonzero().flatten()
            if any(g.target != label for g in goals):
                rows.append(index[torch.randperm(len(index), generator=rng)[: self.method.each]])
        with still(self.learner):
            few = Subset(self.train, torch.cat(rows))
            return self.method.inverter(self.learner, few, goals, spawn(rng))

    def _run(self, hunt: Hunt, rounds: int | None, stage: Ledger | None) -> None:
        """Step a hunt for so many rounds, or to its end; keep it in a stage if there is one."""
        session, saved = self.ledger.session, time.monotonic()
        spent = hunt.image_steps if stage is not None and stage.recall() is not None else 0.0
        with still(self.learner):
            for _ in islice(Exhaustive()(hunt), rounds):
                session.spend(hunt.image_steps - spent)
                spent = hunt.image_steps
                if stage is not None and (session.over or time.monotonic() - saved > SAVE_EVERY):
                    stage.keep(hunt.state())
                    saved = time.monotonic()
                if session.over:
                    raise Incomplete(
                        f"the net is not hardened: {session.over}; go on with a higher limit"
                    )
        if stage is not None:
            stage.keep(hunt.state())

    def _usable(self, hunt: Hunt) -> list[Candidate]:
        most = self.method.largest * self.learner.shape[1] * self.learner.shape[2]
        return [c for c in hunt.best if c.feasible and c.size <= most]
