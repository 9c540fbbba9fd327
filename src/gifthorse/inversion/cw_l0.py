"""Carlini and Wagner's L0 attack on a set of images: solve, drop useless pixels, repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Candidate, Goal, Inversion, Progress, Samples, Subject
from gifthorse.data.samples import near, whole
from gifthorse.search import CostController, Objective, Search, SearchConfig
from gifthorse.search.losses import Distance, Margin, Step
from gifthorse.search.parametrizations.opaque import Opaque


@method
class CWL0:
    """Replace ever fewer pixels: minimize `mean ||x' - x||^2 + c max(z_other - z_t, -kappa)`.

    Assumes an opaque patch. Needs clean images and gradients and much patience: every round of
    dropping pixels solves the problem anew, and a dropped pixel never comes back. The size of a
    trigger is the number of replaced pixels.

    Attributes:
        initial: c at the start; doubled whenever a solve fails.
        limit: The largest c.
        solve: Most steps of a solve.
        share: So many times the root of the number of live pixels are dropped at once, at least
            one.
        kappa: Margin beyond which a success is not pushed further.
        config: Steps, success bar and the most rounds (passes over the images).

    Source: PixelBackdoor, sec. 3.2 and appendix A, eqs. 7 to 9, which name no constants but the bar
    and the rounds; what is dropped at once as in Carlini and Wagner's released code. Differs:
    importance is the actual change times the size of its gradient, where the paper's text ranks an
    absolute pattern value; c starts at 10, rises after 50 steps and the rate is that of the paper's
    other searches, where the released code has 0.001, 1000 and 0.01 for a change of one image that
    starts at nothing: the same patch on all images starts at a squared distance of some hundred,
    beside which a c below 1 is nothing, and 1000 rounds of few steps end before c gets there;
    dropping does not stop at the first importance above 0.01 either, which in those units all have;
    fewer images come up again in a round, which has the paper's three steps in any case.
    """

    initial: Annotated[float, Positive] = 10.0
    limit: Annotated[float, Positive] = 2e6
    solve: Annotated[int, AtLeast(1)] = 50
    share: Annotated[float, Positive] = 0.3
    kappa: Annotated[float, NotNegative] = 0.0
    config: SearchConfig = SearchConfig(
        lr=0.1,
        betas=(0.9, 0.999),
        success_threshold=0.9,
        min_steps=3,
        rounds=1000,
        patience=200,
    )

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion over replaced pixels, one arm a goal."""
        return CWL0Inversion(self, subject, clean, goals, rng)


class CWL0Inversion:
    """A search over what is left of the pixels; whenever it succeeds, some pixels go.

    Attributes:
        weight: c of every arm, `(A,)`.
        stuck: Arms whose c has reached its limit, `(A,)` bool.
    """

    def __init__(
        self, method: CWL0, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> None:
        self.method = method
        self.weight = torch.full((len(goals),), method.initial)
        self.stuck = torch.zeros(len(goals), dtype=torch.bool)
        self._since = torch.zeros(len(goals), dtype=torch.int64)  # rounds of the present solve
        self._x, _ = whole(near(clean, subject))
        objective = Objective(Opaque(), CostController.fixed(len(goals)), loss=self._loss)
        self._search = Search(subject, clean, goals, rng, objective, method.config)

    def step(self, arms: Tensor, /) -> None:
        """Run one round; drop pixels of arms that met the bar, push those that took too long."""
        # The first trigger covers the whole image, as an arm without one does.
        before, had = self._search.progress.size, self._search.feasible.cpu().clone()
        self._search.step(arms)
        self._since[arms] += 1
        smaller = self._search.progress.size < before
        met = arms[(smaller | (self._search.feasible.cpu() & ~had))[arms]]
        if len(met):
            self._drop(met)
        late = arms[self._since[arms] * self._search.data.steps >= self.method.solve]
        if len(late):
            self.weight[late] *= 2
            self.stuck[late] |= self.weight[late] > self.method.limit
            self._fresh(late)

    def _loss(self, step: Step) -> Tensor:
        weight = self.weight.to(step.arms.device)[step.arms]
        return Distance()(step) + weight * Margin(self.method.kappa)(step)

    def _drop(self, arms: Tensor) -> None:
        """Drop the live pixels of least importance; the first dropped never come back."""
        parts = self._search.decoded(arms)
        _, slope = self._search.gradient(parts, arms)
        change = (parts[1].unsqueeze(1) - self._x).abs().mean(1).sum(1)  # (a, H, W)
        importance = change * slope.abs().sum(1)
        live = self._search.live[arms, 0]
        for row, arm in enumerate(arms.tolist()):
            places = live[row].flatten().nonzero().flatten()
            most = max(1, int(self.method.share * len(places) ** 0.5))
            order = importance[row].flatten()[places].argsort()
            left = live[row].flatten().clone()
            left[places[order[: min(most, len(places) - 1)]]] = False
            self._search.narrow(torch.tensor([arm]), left.view(1, 1, *live.shape[1:]))
        self._fresh(arms)

    def _fresh(self, arms: Tensor) -> None:
        self._since[arms] = 0
        self._search.put(arms, tuple(v[arms] for v in self._search.variables))

    @property
    def done(self) -> Tensor:
        """Which arms have used their rounds, failed for good or come down to one pixel."""
        return self._search.done | self.stuck | (self._search.progress.size <= 1)

    @property
    def progress(self) -> Progress:
        """How every arm did in its last round."""
        return self._search.progress

    @property
    def image_steps(self) -> float:
        """Images that went forward and back; forward alone counts a half."""
        return self._search.image_steps

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The last trigger of each arm that met the bar."""
        return self._search.best

    def state(self) -> dict[str, Tensor]:
        """Everything that the inversion goes on from, by name."""
        own = {"weight": self.weight, "stuck": self.stuck, "since": self._since}
        return self._search.state() | own

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned."""
        self._search.restore(state)
        self.weight, self.stuck = state["weight"].clone(), state["stuck"].clone()
        self._since = state["since"].clone()
