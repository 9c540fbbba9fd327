"""The one loop over triggers: every goal is an arm, and any subset of arms may step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import exhausted
from gifthorse.core.pacing import breathe, undone
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Candidate, Goal, Progress, Samples, Subject
from gifthorse.search.adam import adam
from gifthorse.search.data import SearchData
from gifthorse.search.objective import LOSSES, Objective, SearchConfig
from gifthorse.search.parametrizations.masks import Parts

# What an arm is besides its variables, moments, trigger and cost; one entry an arm each.
_KEPT = ["live", "rounds", "feasible", "_steps", "_stale", "_size", "_asr", "_soft"]
_KEPT += ["_penalty", "_anchor", "_success", "_last"]


class Search:
    """An inversion: loss to the goal plus cost times size, Adam an arm, best trigger an arm.

    Attributes:
        variables: The raw variables, `(A, ...)` each.
        live: Pixels that a trigger may use, `(A, 1, H, W)` bool; all of them at first.
        cost: Weight of the penalty, one an arm.
        rounds: Rounds that each arm was given, `(A,)`.
        data: The images of every arm and the net that judges them.
        feasible: Whether an arm ever met the bar, `(A,)` bool.
    """

    def __init__(
        self,
        subject: Subject,
        clean: Samples,
        goals: Sequence[Goal],
        rng: Generator,
        objective: Objective,
        config: SearchConfig,
    ) -> None:
        self.goals, self.form = tuple(goals), objective.form
        self.config, self.objective = config, objective
        self.subject = subject
        self.data = SearchData(subject, clean, goals, rng, objective, config)
        self._device = self.data.device
        self._loss = objective.loss or LOSSES[config.loss]
        self._terms = [(w, term) for w, term in objective.terms if w]
        self.cost = objective.cost.to(self._device)
        self._own = spawn(rng)  # of the start
        starts = [self.form.start(subject.shape, one) for one in self.data.rngs]
        self.variables: Parts = tuple(
            torch.stack(v).to(self._device) for v in zip(*starts, strict=True)
        )
        self._begun = objective.init is None
        self._first: Parts = tuple(torch.zeros_like(v) for v in self.variables)
        self._second: Parts = tuple(torch.zeros_like(v) for v in self.variables)
        arms, (_, h, w) = len(goals), subject.shape
        zeros = torch.zeros(arms, device=self._device)
        self.live = torch.ones(arms, 1, h, w, dtype=torch.bool, device=self._device)
        self._narrow = False
        self.rounds = torch.zeros(arms, dtype=torch.int64, device=self._device)
        self._steps, self._stale = self.rounds.clone(), self.rounds.clone()
        self._parts: Parts = tuple(p.clone() for p in self.form.decode(self.variables))
        self._size, self._asr = zeros + h * w, zeros.clone()
        self._soft, self._penalty = zeros + torch.inf, zeros + torch.inf
        self._anchor, self._last = zeros + torch.inf, zeros + torch.inf
        self._success = zeros.clone()
        self.feasible = torch.zeros(arms, dtype=torch.bool, device=self._device)

    def start(self) -> Iterator[str]:
        """Look where to begin, if the objective says how; nothing if that was done."""
        if not self._begun:
            self._begin()
            yield "start: looked for"

    def step(self, arms: Tensor, /) -> None:
        """Run one round for these arms, as many of them at once as memory has room for.

        Raises:
            Halted: If it must be left; the arms that had their round keep it.
        """
        self._begin()
        left = arms.to(self._device)
        while len(left):
            some = left[: max(1, self.data.abreast // self.data.batch)]
            try:
                self._round(some)
            except (MemoryError, RuntimeError) as error:
                if not exhausted(error) or not self.data.shrink(len(some)):
                    raise
            else:
                left = left[len(some) :]
                if len(left):
                    breathe(kept=True)

    @property
    def done(self) -> Tensor:
        """Which arms have used their rounds or stopped improving, `(A,)` bool."""
        done = self.rounds >= self.config.rounds
        if self.config.patience:
            still = (self._stale >= self.config.patience) & (self.rounds >= self.config.min_rounds)
            done |= self.feasible & still & self._turned
        return done.cpu()

    @property
    def progress(self) -> Progress:
        """How every arm did in its last round."""
        last = (self.rounds, self._success, self._last, self._size, self._turned)
        return Progress(*(tensor.to("cpu", copy=True) for tensor in last))

    @property
    def _turned(self) -> Tensor:
        """Whether the weight of size moved both ways; a bar of 0 is never missed."""
        return self.cost.rose & (self.cost.fell | (self.config.success_threshold <= 0))

    @property
    def image_steps(self) -> float:
        """Images that went forward and back so far; forward alone counts a half."""
        return self.data.image_steps

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The best trigger of each arm so far."""
        return tuple(
            Candidate(
                goal,
                self.form.to_trigger(tuple(p[a].to("cpu", copy=True) for p in self._parts)),
                self._size[a].item(),
                self._asr[a].item(),
                int(self.rounds[a]),
                bool(self.feasible[a]),
            )
            for a, goal in enumerate(self.goals)
        )

    def state(self) -> dict[str, Tensor]:
        """Everything that the search goes on from, by name."""
        kept = {name: getattr(self, name) for name in _KEPT}
        kept["begun"] = torch.tensor(self._begun)
        for name in ("variables", "_first", "_second", "_parts"):
            kept |= {f"{name}.{i}": v for i, v in enumerate(getattr(self, name))}
        kept |= {f"rng.{i}": rng.get_state() for i, rng in enumerate(self.data.rngs)}
        kept |= {f"cost.{name}": v for name, v in self.cost.state().items()}
        kept["image_steps"] = torch.tensor(self.image_steps, dtype=torch.float64)
        # Steps change it in place.
        return {name: value.to("cpu", copy=True) for name, value in kept.items()}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned."""
        for name in _KEPT:
            setattr(self, name, state[name].to(self._device).clone())
        for name in ("variables", "_first", "_second", "_parts"):
            count = len(getattr(self, name))
            parts = (state[f"{name}.{i}"] for i in range(count))
            setattr(self, name, tuple(p.to(self._device).clone() for p in parts))
        for i, rng in enumerate(self.data.rngs):
            rng.set_state(state[f"rng.{i}"])
        self.cost = self.cost.restored(state, "cost.").to(self._device)
        self._narrow = not bool(self.live.all())
        self.data.image_steps = state["image_steps"].item()
        self._begun = bool(state["begun"])

    # What methods that steer a search between its rounds need -----------------------------------

    def decoded(self, arms: Tensor) -> Parts:
        """Return the current triggers of these arms, after the method's post-processing."""
        self._begin()
        with torch.no_grad():
            return self.form.postprocess(self._decode(tuple(v[arms] for v in self.variables), arms))

    def stored(self, arms: Tensor) -> Parts:
        """Return the best triggers of these arms so far."""
        return tuple(p[arms].clone() for p in self._parts)

    def success(self, parts: Parts, arms: Tensor) -> Tensor:
        """Return the success of finished triggers on all generation images of their arms, (a,)."""
        with torch.no_grad():
            return self.data.verify(parts, arms)

    def gradient(self, parts: Parts, arms: Tensor) -> Parts:
        """Return the gradient of the main loss on all images with respect to decoded parts."""
        arms, leaves = arms.to(self._device), tuple(p.detach().requires_grad_() for p in parts)
        total = [torch.zeros_like(p) for p in leaves]
        counts = self.data.count[arms]
        for count in counts.unique().tolist():  # padding must not count twice
            rows = (counts == count).nonzero().flatten()
            every = self.data.index[arms[rows], :count]
            for index in every.split(max(1, self.data.abreast // len(rows)), dim=1):
                some = tuple(leaf[rows] for leaf in leaves)
                loss = self._loss(self.data.forward(some, arms[rows], index)).sum()
                got = torch.autograd.grad(
                    loss * (index.shape[1] / count), leaves, allow_unused=True
                )
                total = [t if g is None else t + g for t, g in zip(total, got, strict=True)]
                self.data.image_steps += index.numel()
        return tuple(total)

    def put(self, arms: Tensor, variables: Parts) -> None:
        """Replace the variables of these arms and forget Adam's moments for them."""
        self._begin()
        for mine, new in zip(self.variables, variables, strict=True):
            mine[arms] = new.to(mine)
        for moment in (*self._first, *self._second):
            moment[arms] = 0
        self._steps[arms] = 0

    def follow(self, state: Mapping[str, Tensor], /) -> None:
        """Start every arm from the trigger that an earlier search of the same goals ended with.

        Nothing else is taken over: weight of size, moments, rounds and best triggers begin anew, so
        that the earlier search may have been one of another net or of other images. An arm that
        had found nothing keeps its own start.

        Args:
            state: What the earlier search's `state` returned.
        """

        def row(name: str, count: int, arm: int) -> Parts:
            rows = (state[f"{name}.{i}"][arm : arm + 1] for i in range(count))
            return tuple(r.to(self._device) for r in rows)

        for arm in state["feasible"].nonzero().flatten().tolist():
            parts = row("_parts", len(self._parts), arm)
            variables = row("variables", len(self.variables), arm)
            again = self.form.restart(parts, variables, self.data.rngs[arm])
            self.put(torch.tensor([arm], device=self._device), again)

    def narrow(self, arms: Tensor, live: Tensor) -> None:
        """Let the triggers of these arms use only these pixels, `(a, 1, H, W)` bool."""
        self.live[arms], self._narrow = live, True

    def offer(self, arms: Tensor, parts: Parts) -> Tensor:
        """Store finished triggers that meet the bar and are better; return which were, (a,).

        Whatever the rule, the size decides here; under `success` the tested success does.
        """
        arms = arms.to(self._device)
        before = self._soft[arms].clone(), self._asr[arms].clone(), self._size[arms].clone()
        met = torch.ones(len(arms), dtype=torch.bool, device=self._device)
        with torch.no_grad():
            self._weigh(arms, parts, met)
        now = (self._soft[arms], self._asr[arms], self._size[arms])
        return torch.stack([a != b for a, b in zip(before, now, strict=True)]).any(0)

    def losses(self, arm: int, variables: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, main loss and penalty, `(g,)` each, of variables `(g, ...)` of one arm.

        All generation images of the arm are used, in the precision of acceptance.
        """
        rows = torch.full((len(variables[0]),), arm, device=self._device)
        with torch.no_grad():
            index = self.data.index[rows, : int(self.data.count[arm])]
            variables = tuple(v.to(self._device) for v in variables)
            parts = self._decode(variables, rows)
            step = self.data.forward(parts, rows, index, exact=True)
            main, penalty = self._loss(step), self.form.penalty(variables, parts)
            self.data.image_steps += index.numel() / 2
            more = sum(weight * term(step) for weight, term in self._terms)
        return main + self.cost.weight[arm] * penalty + more, main, penalty

    # One round -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Replace the random variables by what the objective's init makes of them, once."""
        start, data = self.objective.init, self.data
        if self._begun or start is None:
            return
        with torch.no_grad():
            asked = data.ask, data.pool, data.target, self.form, self.variables
            self.variables = start(*asked, self._own, data.index if data.paired else None)
            self._parts = tuple(p.clone() for p in self.form.decode(self.variables))
        self._begun = True

    def _round(self, arms: Tensor) -> None:
        """Give these arms a round, or none at all if it is left or memory does not suffice."""
        variables = [v[arms].requires_grad_() for v in self.variables]
        moments = [[m[arms] for m in moment] for moment in (self._first, self._second)]
        steps = self._steps[arms]
        hits = torch.zeros(len(arms), device=self._device)
        penalties, taken = torch.zeros_like(hits), 0
        with undone([self.data.rngs[arm] for arm in arms.tolist()]):
            for index in self.data.batches(arms):  # (a, B)
                breathe()
                loss, penalty, hit = self._measure(tuple(variables), arms, index)
                gradients = torch.autograd.grad(loss, variables)
                steps = steps + 1
                adam(variables, gradients, moments, steps, self._rate(steps), self.config.betas)
                with torch.no_grad():
                    projected = self.form.project(tuple(variables))
                    for v, allowed in zip(variables, projected, strict=True):
                        if allowed is not v:
                            v.copy_(allowed)
                hits, penalties, taken = hits + hit, penalties + penalty, taken + 1
                self.data.image_steps += index.numel()
        for mine, new in zip(self.variables, variables, strict=True):
            mine[arms] = new.detach()
        for full, rows in zip((self._first, self._second), moments, strict=True):
            for i, row in enumerate(rows):
                full[i][arms] = row
        self._steps[arms] = steps
        self.rounds[arms] += 1
        met = hits >= self.config.success_threshold * taken - 1e-6
        self._success[arms], self._last[arms] = hits / taken, penalties / taken
        self._stale[arms] += 1
        failed = self._accept(arms, met)
        if self.config.failed_test_patience:
            met &= ~(failed & (self._stale[arms] >= self.config.failed_test_patience))
        self.cost = self.cost.after(met, arms)

    def _rate(self, steps: Tensor) -> Tensor:
        """Return Adam's learning rate of each arm for its step, `(a,)`."""
        if self.config.schedule == "constant":
            return torch.full(steps.shape, self.config.lr, device=steps.device)
        part = (steps - 1) / (self.config.rounds * self.data.steps)
        return self.config.lr * (1 + torch.cos(math.pi * part.clamp(max=1))) / 2

    def _measure(
        self, variables: Parts, arms: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss over all arms, the penalty and the share of hits of each arm."""
        parts = self._decode(variables, arms)
        step = self.data.forward(parts, arms, index)
        penalty = self.form.penalty(variables, parts)
        loss = self._loss(step) + self.cost.weight[arms] * penalty
        for weight, term in self._terms:
            loss = loss + weight * term(step)
        hit = (step.logits.argmax(-1) == step.target[:, None]).float().mean(1)
        return loss.sum(), penalty.detach(), hit

    def _decode(self, variables: Parts, arms: Tensor) -> Parts:
        parts = self.form.decode(variables)
        return self.form.restrict(parts, self.live[arms]) if self._narrow else parts

    @torch.no_grad()
    def _accept(self, arms: Tensor, met: Tensor) -> Tensor:
        """Store the truncated triggers that are smaller and pass on all generation images.

        Returns which were tested and failed, `(a,)`.
        """
        parts = self.form.postprocess(self._decode(tuple(v[arms] for v in self.variables), arms))
        return self._weigh(arms, parts, met, self._last[arms])

    def _weigh(
        self, arms: Tensor, parts: Parts, met: Tensor, penalty: Tensor | None = None
    ) -> Tensor:
        """Store what is better by the rule; without a penalty, nobody has tried them yet.

        Returns which were tested and failed, `(a,)`.
        """
        size, soft = self.form.size(parts), self.form.soft_size(parts)
        best, first = self._size[arms], ~self.feasible[arms]
        min_improvement = self.config.min_improvement
        finer = (size == best) & (soft < self._soft[arms] * (1 - min_improvement))
        better = first | ((size < best) & (size <= best * (1 - min_improvement))) | finer
        if self.config.rule == "reference" and penalty is not None:
            better &= penalty < self._penalty[arms]
        elif self.config.rule == "success":
            tried = self._success[arms] if penalty is not None else 1 + self._success[arms]
            better = first | (tried > self._asr[arms])
        chosen = (met & better).nonzero().flatten()
        failed = torch.zeros_like(met)
        if not len(chosen):
            return failed
        parts = tuple(p[chosen] for p in parts)
        asr = self.data.verify(parts, arms[chosen])
        works = asr >= self.config.success_threshold
        if self.config.rule == "success":  # a round's success is that of a moving trigger
            works &= first[chosen] | (asr > self._asr[arms[chosen]])
        failed[chosen] = ~works
        good = works.nonzero().flatten()
        chosen, parts = chosen[good], tuple(p[good] for p in parts)
        self._store(arms[chosen], parts, size[chosen], soft[chosen], asr[good])
        if penalty is not None:
            self._penalty[arms[chosen]] = penalty[chosen]
        return failed

    def _store(self, arms: Tensor, parts: Parts, size: Tensor, soft: Tensor, asr: Tensor) -> None:
        for mine, new in zip(self._parts, parts, strict=True):
            mine[arms] = new
        gained = ~self.feasible[arms] | (size <= self._anchor[arms] * (1 - self.config.min_delta))
        gained |= self.config.rule == "success"  # what is stored works more often
        self._anchor[arms] = torch.where(gained, size, self._anchor[arms])
        self._stale[arms] = torch.where(gained, 0, self._stale[arms])
        self._size[arms], self._soft[arms], self._asr[arms] = size, soft, asr
        self.feasible[arms] = True
        for row, arm in enumerate(arms.tolist()):
            one = slice(row, row + 1)
            before = tuple(v[arm : arm + 1] for v in self.variables)
            again = self.form.restart(tuple(p[one] for p in parts), before, self.data.rngs[arm])
            for mine, new in zip(self.variables, again, strict=True):
                mine[arm] = new[0]
