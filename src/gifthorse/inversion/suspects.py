"""The inversion behind ABS: suspects are sought first, then every one is a search of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from gifthorse.core.tensors import spawn
from gifthorse.core.types import Candidate, Goal, Images, Logits, Progress, Samples, Subject
from gifthorse.data.samples import near, whole
from gifthorse.inversion.stimulation import SuspectNeuron, few, stimulate
from gifthorse.models.folding import frozen
from gifthorse.models.places import read, spread
from gifthorse.search import CostController, Objective, Search
from gifthorse.search.init import BestPatches, FromPatches, SquareInit
from gifthorse.search.losses import Activation, Logit, StepwiseSize
from gifthorse.search.objective import Initializer
from gifthorse.search.start import under

if TYPE_CHECKING:
    from gifthorse.inversion.abs import ABS


class ABSInversion:
    """One search a layer, one arm in it a suspect neuron; to the outside, one arm a goal.

    Attributes:
        suspects: The neurons under suspicion, by the place that was stimulated.
    """

    def __init__(
        self, method: ABS, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> None:
        self.method, self.goals, self.subject = method, tuple(goals), subject
        self.clean, self._rng, self._stimulated = clean, rng, 0.0
        self.suspects: dict[str, list[SuspectNeuron]] = {}
        self._searches: list[tuple[Search, Tensor]] = []  # a search, and the goal of each arm
        self._rounds = torch.zeros(len(goals), dtype=torch.int64)
        self._net, self._drawn = frozen(subject.net), spawn(rng)
        self._patches: BestPatches | None = None
        self._images = few(*whole(near(clean, subject)), method.each)
        places = list(method.layers) or spread(read(self._net, self._images[0]), method.spread)
        self._places = places

    def start(self) -> Iterator[str]:
        """Stimulate the places that are left, one after the other."""
        m, count = self.method, len(self._places)
        for place in self._places[len(self.suspects) :]:
            found, work = stimulate(
                self._net, place, *self._images, samples=m.samples, reach=m.reach, share=m.share
            )
            self._stimulated += work
            self._open(place, found)
            yield f"{len(self.suspects)} of {count} layers stimulated"

    def _open(self, place: str, found: Sequence[SuspectNeuron]) -> None:
        """Set up the search for the strongest suspects of a place, no two of them of one class."""
        best: dict[int, SuspectNeuron] = {}
        for one in found:
            best.setdefault(one.label, one)
        self.suspects[place] = list(best.values())[: self.method.keep]
        pairs = [
            (i, s.neuron)
            for s in self.suspects[place]
            for i, goal in enumerate(self.goals)
            if goal.target == s.label
        ]
        if pairs:
            self._searches.append(self._search(place, *torch.tensor(pairs).T))

    def _init(self) -> Initializer:
        """Return where searches begin; patches are tried once, for all of them."""
        if self.method.probe is None:
            return SquareInit(self.method.limit)
        if self._patches is None:

            def ask(x: Images) -> Logits:
                self._stimulated += len(x) / 2
                logits: Logits = self._net(x)
                return logits

            self._patches = self.method.probe.best_patches(ask, self._images[0], self._drawn)
        return FromPatches(self._patches)

    def _search(self, place: str, goals: Tensor, neurons: Tensor) -> tuple[Search, Tensor]:
        m = self.method
        terms = (
            (1.0, Activation(neurons, m.others)),
            (m.logit, Logit()),
            (1.0, StepwiseSize(m.limit, m.factor, m.weights)),
        )
        objective = Objective(
            m.form,
            CostController.fixed(len(goals)),
            terms=terms,
            init=self._init(),
            layer=place,
        )
        wanted = [self.goals[i] for i in goals.tolist()]
        search = Search(self.subject, self.clean, wanted, self._rng, objective, m.config)
        return search, goals

    def step(self, arms: Tensor, /) -> None:
        """Run one round of every suspect of these goals."""
        for _ in self.start():
            pass
        enough = self._enough
        for search, goals in self._searches:
            rows = (torch.isin(goals, arms) & ~search.done & ~enough[goals]).nonzero().flatten()
            if len(rows):
                search.step(rows)
        self._rounds[arms] += 1

    @property
    def _enough(self) -> Tensor:
        """Which goals have a trigger that works often enough, `(A,)` bool."""
        return torch.tensor([c.feasible and c.asr >= self.method.enough for c in self.best])

    @property
    def done(self) -> Tensor:
        """Which goals have no suspect that may still step, `(A,)` bool."""
        stimulated = len(self.suspects) == len(self._places)
        done = torch.full((len(self.goals),), stimulated)
        for search, goals in self._searches:
            done[goals[~search.done]] = False
        return done | self._enough

    @property
    def progress(self) -> Progress:
        """How the best suspect of every goal did in its last round."""
        success = torch.zeros(len(self.goals))
        penalty = torch.full_like(success, torch.inf)
        for search, goals in self._searches:
            success.scatter_reduce_(0, goals, search.progress.success, "amax")
            penalty.scatter_reduce_(0, goals, search.progress.penalty, "amin")
        size = torch.tensor([c.size for c in self.best])
        turned = torch.ones(len(self.goals), dtype=torch.bool)
        return Progress(self._rounds.clone(), success, penalty, size, turned)

    @property
    def image_steps(self) -> float:
        """Images that went forward and back; forward alone counts a half."""
        return self._stimulated + sum(search.image_steps for search, _ in self._searches)

    @property
    def best(self) -> tuple[Candidate, ...]:
        """Of every goal the trigger that works most often, among those within the size limit."""
        most = self.method.limit * self.method.factor
        shape = self.subject.shape
        _, height, width = shape
        blank = torch.zeros(1, height, width), torch.zeros(shape)
        nothing = self.method.form.to_trigger(blank)
        out = [
            Candidate(goal, nothing, float(height * width), 0.0, 0, feasible=False)
            for goal in self.goals
        ]
        for search, goals in self._searches:
            for found, i in zip(search.best, goals.tolist(), strict=True):
                if found.feasible and found.size <= most:
                    out[i] = max(out[i], found, key=lambda c: (c.feasible, c.asr, -c.size))
        return tuple(replace(c, rounds=int(r)) for c, r in zip(out, self._rounds, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that the inversion goes on from, by name."""
        kept = {"rounds": self._rounds.clone(), "stimulated": torch.tensor(self._stimulated)}
        for i, found in enumerate(self.suspects.values()):
            rows = [(s.neuron, s.label, s.score) for s in found]
            kept[f"suspects.{i}"] = torch.tensor(rows, dtype=torch.float64).view(-1, 3)
        for i, (search, _) in enumerate(self._searches):
            kept |= {f"search.{i}.{name}": value for name, value in search.state().items()}
        return kept

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned."""
        self._rounds = state["rounds"].clone()
        for i, place in enumerate(self._places):
            if f"suspects.{i}" in state and place not in self.suspects:
                rows = state[f"suspects.{i}"].tolist()
                self._open(place, [SuspectNeuron(int(n), int(k), score) for n, k, score in rows])
        for i, (search, _) in enumerate(self._searches):
            search.restore(under(state, f"search.{i}."))
        self._stimulated = float(state["stimulated"])
