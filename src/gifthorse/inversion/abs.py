"""ABS: stimulate neurons one by one, then invert a trigger for those that decide alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.types import Candidate, Goal, Inversion, Progress, Samples, Subject
from gifthorse.data.samples import near, whole
from gifthorse.inversion.stimulation import SuspectNeuron, few, stimulate
from gifthorse.models.folding import frozen
from gifthorse.search import CostController, MaskPattern, Objective, Search, SearchConfig
from gifthorse.search.losses import Activation, StepwiseSize
from gifthorse.search.start import under


@method
class ABS:
    """Maximize the activation of a suspect neuron over mask and pattern, one search a suspect.

    A neuron is suspect if forcing it up raises one class on nearly all images. Assumes a trigger
    that works through single neurons. Needs a few clean images of every class and a look inside
    the net. The size of a trigger is the L1 norm of its mask; a class without a suspect neuron, or
    whose triggers are too large or fail, has none.

    Attributes:
        layers: Names of the layers to stimulate; empty takes `spread` convolutions and linear
            layers, evenly from first to last, without the one that gives the logits.
        spread: How many layers are taken if none is named.
        each: Clean images of every class to stimulate with.
        samples: Values that a neuron is forced to, from 0 upwards.
        reach: Those values go up to this times the layer's largest activation.
        share: A suspect must raise the same class on this share of the images.
        keep: Suspects kept of every layer, those of largest margin.
        others: Weight of the layer's other neurons, which ought to stay as they are.
        limit: Pixels that a trigger may have before its size is punished.
        factor: Above `limit` times this it is punished harder.
        weights: The weights of size up to the limit, above it, and above `limit * factor`.
        config: Steps of the inversion; `success_threshold` is the success (REASR) that a trigger
            must reach.

    Source: Liu et al., ABS, CCS 2019, as in TrojanZoo (Table 21 and released code). Differs: the
    suspects of largest margin are kept (the code's sort keeps the smallest); of a class's triggers
    the one that works most often counts, not the smallest.
    """

    layers: tuple[str, ...] = ()
    spread: Annotated[int, AtLeast(1)] = 4
    each: Annotated[int, AtLeast(1)] = 5
    samples: Annotated[int, AtLeast(2)] = 5
    reach: Annotated[float, Positive] = 8.0
    share: Annotated[float, Share] = 0.75
    keep: Annotated[int, AtLeast(1)] = 20
    others: Annotated[float, NotNegative] = 1e-4
    limit: Annotated[int, NotNegative] = 16
    factor: Annotated[float, NotNegative] = 1.2
    weights: tuple[float, float, float] = (0.01, 500.0, 1000.0)
    config: SearchConfig = SearchConfig(
        batch=50,
        success_threshold=0.88,
        steps=10,
        min_steps=10,
        rounds=100,
        schedule="cosine",
        loss="none",
        rule="success",
    )

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion with one arm a goal; its start is the stimulation."""
        return ABSInversion(self, subject, clean, goals, rng)

    def named(self, net: nn.Module) -> list[str]:
        """Return the names of the layers to stimulate in a frozen net."""
        if self.layers:
            return list(self.layers)
        kinds = (nn.Conv2d, nn.Linear)
        known = [name for name, module in net.named_modules() if isinstance(module, kinds)][:-1]
        places = torch.linspace(0, len(known) - 1, min(self.spread, len(known))).round().long()
        return [known[i] for i in places.unique().tolist()]


class ABSInversion:
    """One search a layer, one arm in it a suspect neuron; to the outside, one arm a goal.

    Attributes:
        suspects: The neurons under suspicion, by layer, of the layers that were stimulated.
    """

    def __init__(
        self, method: ABS, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> None:
        self.method, self.goals, self.subject = method, tuple(goals), subject
        self.clean, self._rng, self._stimulated = clean, rng, 0.0
        self.suspects: dict[str, list[SuspectNeuron]] = {}
        self._searches: list[tuple[Search, Tensor]] = []  # a search, and the goal of each arm
        self._rounds = torch.zeros(len(goals), dtype=torch.int64)
        self._net = frozen(subject.net)
        self._layers = method.named(self._net)

    def start(self) -> Iterator[str]:
        """Stimulate the layers that are left, one after the other."""
        m = self.method
        x, y = few(*whole(near(self.clean, self.subject)), m.each)
        for layer in self._layers[len(self.suspects) :]:
            found, work = stimulate(
                self._net, layer, x, y, samples=m.samples, reach=m.reach, share=m.share
            )
            self._stimulated += work
            self._open(layer, found[: m.keep])
            yield f"{len(self.suspects)} of {len(self._layers)} layers stimulated"

    def _open(self, layer: str, suspects: list[SuspectNeuron]) -> None:
        """Set up the search for the suspects of a layer whose class is a goal."""
        m, self.suspects[layer] = self.method, suspects
        pairs = [
            (i, s.neuron)
            for s in suspects
            for i, goal in enumerate(self.goals)
            if goal.target == s.label
        ]
        if not pairs:
            return
        places, neurons = torch.tensor(pairs).T
        terms = (
            (1.0, Activation(neurons, m.others)),
            (1.0, StepwiseSize(m.limit, m.factor, m.weights)),
        )
        cost = CostController.fixed(len(places))
        objective = Objective(MaskPattern(), cost, terms=terms, layer=layer)
        goals = [self.goals[i] for i in places.tolist()]
        search = Search(self.subject, self.clean, goals, self._rng, objective, m.config)
        self._searches.append((search, places))

    def step(self, arms: Tensor, /) -> None:
        """Run one round of every suspect of these goals."""
        for _ in self.start():
            pass
        for search, places in self._searches:
            rows = (torch.isin(places, arms) & ~search.done).nonzero().flatten()
            if len(rows):
                search.step(rows)
        self._rounds[arms] += 1

    @property
    def done(self) -> Tensor:
        """Which goals have no suspect that may still step, `(A,)` bool."""
        stimulated = len(self.suspects) == len(self._layers)
        done = torch.full((len(self.goals),), stimulated)
        for search, places in self._searches:
            done[places[~search.done]] = False
        return done

    @property
    def progress(self) -> Progress:
        """How the best suspect of every goal did in its last round."""
        success = torch.zeros(len(self.goals))
        penalty = torch.full_like(success, torch.inf)
        for search, places in self._searches:
            success.scatter_reduce_(0, places, search.progress.success, "amax")
            penalty.scatter_reduce_(0, places, search.progress.penalty, "amin")
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
        nothing = MaskPattern().to_trigger((torch.zeros(1, height, width), torch.zeros(shape)))
        out = [
            Candidate(goal, nothing, float(height * width), 0.0, 0, feasible=False)
            for goal in self.goals
        ]
        for search, places in self._searches:
            for found, i in zip(search.best, places.tolist(), strict=True):
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
        self._rounds, self._stimulated = state["rounds"].clone(), float(state["stimulated"])
        for i, layer in enumerate(self._layers):
            if f"suspects.{i}" in state and layer not in self.suspects:
                rows = state[f"suspects.{i}"].tolist()
                self._open(layer, [SuspectNeuron(int(n), int(k), score) for n, k, score in rows])
        for i, (search, _) in enumerate(self._searches):
            search.restore(under(state, f"search.{i}."))
