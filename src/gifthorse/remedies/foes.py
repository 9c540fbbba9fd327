"""The triggers that a net is hardened against, and the searches that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import Incomplete
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Candidate, Goal, Images, Inversion, Labels, Samples, Subject
from gifthorse.data.samples import Subset, labels_of
from gifthorse.search import Exhaustive, Search, finish
from gifthorse.training import Callback, frozen_eval

if TYPE_CHECKING:
    from gifthorse.remedies.hardening import Hardening


class AdversarialTriggers(Callback):
    """The triggers of the moment, and the searches that they come from.

    Each class has the trigger that was found for it last, unless that search failed: batches with
    the trigger of one class alone would teach the net to forget that class until its next turn.

    Args:
        method: Whose options apply.
        train: Clean images that searches take theirs from.
        rng: Source of images, starts and who is stamped.
        run: Where the search before training is kept, and whose run is charged.
    """

    def __init__(self, method: Hardening, train: Samples, rng: Generator, run: Run) -> None:
        self.method, self.train, self.run = method, train, run
        # The search before training draws from a stream of its own: a run that goes on after it
        # must not find the other one moved.
        self.once, self.rng = spawn(rng), spawn(rng)
        self.labels = labels_of(train)
        self.turn, self.states = 0, dict[int, dict[str, Tensor]]()
        self.current: dict[int, Candidate] | None = None
        self.open_targets: list[int] = []

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Look at the net of this epoch; search all classes if that is still to be done."""
        self.learner, self.batch = learner, 0
        if self.current is None:
            self.current = self._recalled() if self.method.every else self._all()

    def mix(self, x: Images, y: Labels, index: Tensor) -> Batch:
        """Return the batch with triggers on some images, and its labels as they are."""
        if self.method.every and self.batch % self.method.every == 0:
            self._search()
        self.batch += 1
        usable = list((self.current or {}).values())
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
        """Return whose turn it is, what was found for each class, and which of it is in use."""
        open_targets = list(self.current or {})
        rng = self.rng.get_state()
        return {"turn": self.turn, "states": self.states, "open_targets": open_targets, "rng": rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.turn, self.states, self.open_targets = (
            state["turn"],
            state["states"],
            state["open_targets"],
        )
        self.rng.set_state(state["rng"])
        self.current = None

    def _search(self) -> None:
        """Search the class whose turn it is in the net as it is."""
        goal, known = Goal(self.turn % self.learner.classes), self.turn >= self.learner.classes
        self.turn += 1
        inversion = self._hunt([goal], self.rng)
        if goal.target in self.states and isinstance(inversion, Search):
            inversion.follow(self.states[goal.target])
        self._run(inversion, self.method.later if known else None, self.run.unkept)
        if inversion.best[0].feasible:
            self.states[goal.target] = inversion.state()
        # Last in order, as if its former trigger had never been there.
        others = {k: c for k, c in (self.current or {}).items() if k != goal.target}
        self.current = others | self._usable(inversion)

    def _recalled(self) -> dict[int, Candidate]:
        """Return what an interrupted training had in use."""
        found = dict[int, Candidate]()
        for target in self.open_targets:
            inversion = self._hunt([Goal(target)], Generator())
            inversion.restore(self.states[target])
            found |= self._usable(inversion)
        return found

    def _all(self) -> dict[int, Candidate]:
        """Search all classes at once, or go on with that."""
        inversion = self._hunt([Goal(k) for k in range(self.learner.classes)], self.once)
        self._run(inversion, None, self.run.checkpoint("search"))
        return self._usable(inversion)

    def _hunt(self, goals: Sequence[Goal], rng: Generator) -> Inversion:
        """Return an inversion on a few images that one of the goals is about."""
        rows = []
        for label in range(self.learner.classes):
            index = (self.labels == label).nonzero().flatten()
            if any(g.target != label for g in goals):
                rows.append(index[torch.randperm(len(index), generator=rng)[: self.method.each]])
        with frozen_eval(self.learner):
            few = Subset(self.train, torch.cat(rows))
            return self.method.inverter(self.learner, few, goals, spawn(rng))

    def _run(self, inversion: Inversion, rounds: int | None, run: Run) -> None:
        """Step an inversion for so many rounds, or to its end."""
        with frozen_eval(self.learner):
            stopped = finish(inversion, Exhaustive(), run, rounds=rounds)
        if stopped:
            raise Incomplete(f"the net is not hardened: {stopped}; go on with a higher limit")

    def _usable(self, inversion: Inversion) -> dict[int, Candidate]:
        most = self.method.largest * self.learner.shape[1] * self.learner.shape[2]
        return {c.goal.target: c for c in inversion.best if c.feasible and c.size <= most}
