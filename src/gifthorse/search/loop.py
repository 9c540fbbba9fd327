"""The one loop over triggers: every goal is an arm, and any subset of arms may step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.data.samples import whole
from gifthorse.errors import BadImages
from gifthorse.models.folding import frozen
from gifthorse.search.costs import Adaptive
from gifthorse.search.forms import Form, Parts
from gifthorse.search.probe import Probe, Spots
from gifthorse.tensors import spawn
from gifthorse.training import fast_bf16
from gifthorse.types import Candidate, Goal, Logits, Samples, Subject


@dataclass(frozen=True)
class Pace:
    """How a search moves and when it stops.

    Attributes:
        batch: Images an arm sees in a step; fewer if there are fewer.
        lr: Adam's learning rate.
        betas: Adam's decay rates.
        bar: Success rate that a trigger must reach on the generation images.
        steps: Most steps in a round; 0 makes a round a pass over the images.
        rounds: Most rounds an arm gets.
        least: Rounds an arm gets in any case.
        patience: An arm settles after this many rounds without a gain, once its cost has moved
            both up and down; 0 never stops early.
        gain: Relative decrease of the size that counts as a gain.
        notch: Least relative decrease of the size that is worth testing and storing a trigger
            for; every test is a forward over all generation images.
        loss: `ce`, or `prob`: 16.118 (1 - p_t), what the Keras codes of Neural Cleanse and
            PixelBackdoor minimize since they swap the arguments of the cross entropy.
        rule: `size` stores a smaller trigger; `reference` asks for a smaller penalty as well.
        chunk: Most images in one forward; arms beyond it take turns.
        bf16: Run the net in bfloat16 where that is fast; triggers, losses and acceptance stay
            in float32.
    """

    batch: int = 32
    lr: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    bar: float = 0.99
    steps: int = 0
    rounds: int = 1000
    least: int = 0
    patience: int = 0
    gain: float = 0.01
    notch: float = 0.0
    loss: Literal["ce", "prob"] = "ce"
    rule: Literal["size", "reference"] = "size"
    chunk: int = 512
    bf16: bool = False


class Search:
    """A hunt: cross entropy to the goal plus cost times size, Adam an arm, best trigger an arm."""

    def __init__(
        self,
        subject: Subject,
        clean: Samples,
        goals: Sequence[Goal],
        form: Form,
        rng: Generator,
        *,
        cost: Adaptive,
        pace: Pace,
        probe: Probe | None = None,
    ) -> None:
        self.goals, self.form, self.pace = tuple(goals), form, pace
        self.subject = subject
        self._net = frozen(subject.net)
        x, y = whole(clean)
        self._pool = x
        self._device = x.device
        self.cost = cost.to(x.device)
        self._index, self._count = _usable(y, goals)
        # The same for all arms, so that no arm's path depends on the company it steps in.
        fewest = int(self._count.min())
        self._batch = min(pace.batch, fewest)
        self._per_round = min(fewest // self._batch, pace.steps or fewest)
        self._target = torch.tensor([g.target for g in goals], device=x.device)
        self._rngs = [spawn(rng) for _ in goals]
        self.variables = self._start(None if probe is None else probe(self._net, x, spawn(rng)))
        self._first: Parts = tuple(torch.zeros_like(v) for v in self.variables)
        self._second: Parts = tuple(torch.zeros_like(v) for v in self.variables)
        arms, (_, h, w) = len(goals), subject.shape
        zeros = torch.zeros(arms, device=x.device)
        self.rounds = torch.zeros(arms, dtype=torch.int64, device=x.device)
        self._steps, self._stale = self.rounds.clone(), self.rounds.clone()
        self._parts: Parts = tuple(p.clone() for p in form.decode(self.variables))
        self._size, self._asr = zeros + h * w, zeros.clone()
        self._soft, self._penalty = zeros + torch.inf, zeros + torch.inf
        self._anchor = zeros + torch.inf
        self.feasible = torch.zeros(arms, dtype=torch.bool, device=x.device)
        self.image_steps = 0

    def _start(self, spots: Spots | None) -> Parts:
        """Return random variables, seeded with the probed patch of each arm's target if any."""
        starts = [self.form.start(self.subject.shape, rng) for rng in self._rngs]
        variables = tuple(torch.stack(v).to(self._device) for v in zip(*starts, strict=True))
        if spots is None:
            return variables
        return self.form.seed(variables, spots.pattern[self._target], spots.support[self._target])

    def step(self, arms: Tensor, /) -> None:
        """Run one round, at most a pass over the generation images, for these arms."""
        for part in arms.to(self._device).split(max(1, self.pace.chunk // self._batch)):
            self._round(part)

    @property
    def settled(self) -> Tensor:
        """Which arms have used their rounds or stopped improving, `(A,)` bool."""
        spent = self.rounds >= self.pace.rounds
        if not self.pace.patience:
            return spent
        still = (self._stale >= self.pace.patience) & (self.rounds >= self.pace.least)
        return spent | (self.feasible & still & self.cost.rose & self.cost.fell)

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The best trigger of each arm so far."""
        return tuple(
            Candidate(
                goal,
                self.form.freeze(tuple(p[a].clone() for p in self._parts)),
                self._size[a].item(),
                self._asr[a].item(),
                int(self.rounds[a]),
                bool(self.feasible[a]),
            )
            for a, goal in enumerate(self.goals)
        )

    def _round(self, arms: Tensor) -> None:
        variables = [v[arms].requires_grad_() for v in self.variables]
        moments = [[m[arms] for m in moment] for moment in (self._first, self._second)]
        steps = self._steps[arms]
        hits = torch.zeros(len(arms), device=self._device)
        penalties, taken = torch.zeros_like(hits), 0
        for index in self._batches(arms):  # (a, B)
            loss, penalty, hit = self._loss(tuple(variables), arms, index)
            gradients = torch.autograd.grad(loss, variables)
            steps = steps + 1
            _adam(variables, gradients, moments, steps, self.pace)
            hits, penalties, taken = hits + hit, penalties + penalty, taken + 1
            self.image_steps += index.numel()
        for mine, new in zip(self.variables, variables, strict=True):
            mine[arms] = new.detach()
        for full, rows in zip((self._first, self._second), moments, strict=True):
            for i, row in enumerate(rows):
                full[i][arms] = row
        self._steps[arms] = steps
        self.rounds[arms] += 1
        met = hits >= self.pace.bar * taken - 1e-6
        self._accept(arms, met, penalties / taken)
        self.cost = self.cost.after(met, arms)

    def _loss(self, variables: Parts, arms: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss over all arms, the penalty and the share of hits of each arm."""
        stamped = self.form.stamp(self.form.decode(variables), self._pool[index])
        logits = self._forward(stamped, bf16=self.pace.bf16)  # (a, B, K)
        target = self._target[arms, None].expand(index.shape)
        if self.pace.loss == "prob":
            chosen = logits.softmax(-1).gather(-1, target[..., None])[..., 0]
            errors = 16.118 * (1 - chosen)
        else:
            flat = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            errors = flat.view(index.shape)
        penalty = self.form.penalty(variables)
        loss = (errors.mean(1) + self.cost.weight[arms] * penalty).sum()
        return loss, penalty.detach(), (logits.argmax(-1) == target).float().mean(1)

    def _forward(self, x: Tensor, *, bf16: bool = False) -> Logits:
        a, b = x.shape[:2]
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        fast = bf16 and fast_bf16(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=fast):
            logits: Tensor = self._net(flat)
        return logits.float().view(a, b, -1)

    @torch.no_grad()
    def _accept(self, arms: Tensor, met: Tensor, penalty: Tensor) -> None:
        """Store the truncated triggers that are smaller and pass on all generation images."""
        parts = self.form.cut(self.form.decode(tuple(v[arms] for v in self.variables)))
        size, soft = self.form.size(parts), self.form.soft_size(parts)
        best, first = self._size[arms], ~self.feasible[arms]
        notch = self.pace.notch
        finer = (size == best) & (soft < self._soft[arms] * (1 - notch))
        better = first | ((size < best) & (size <= best * (1 - notch))) | finer
        if self.pace.rule == "reference":
            better &= penalty < self._penalty[arms]
        chosen = (met & better).nonzero().flatten()
        self._stale[arms] += 1
        if not len(chosen):
            return
        parts = tuple(p[chosen] for p in parts)
        asr = self._verify(parts, arms[chosen])
        good = (asr >= self.pace.bar).nonzero().flatten()
        chosen, parts = chosen[good], tuple(p[good] for p in parts)
        self._store(arms[chosen], parts, size[chosen], soft[chosen], asr[good])
        self._penalty[arms[chosen]] = penalty[chosen]

    def _store(self, arms: Tensor, parts: Parts, size: Tensor, soft: Tensor, asr: Tensor) -> None:
        for mine, new in zip(self._parts, parts, strict=True):
            mine[arms] = new
        gained = ~self.feasible[arms] | (size <= self._anchor[arms] * (1 - self.pace.gain))
        self._anchor[arms] = torch.where(gained, size, self._anchor[arms])
        self._stale[arms] = torch.where(gained, 0, self._stale[arms])
        self._size[arms], self._soft[arms], self._asr[arms] = size, soft, asr
        self.feasible[arms] = True
        for row, arm in enumerate(arms.tolist()):
            one = slice(row, row + 1)
            before = tuple(v[arm : arm + 1] for v in self.variables)
            again = self.form.resume(tuple(p[one] for p in parts), before, self._rngs[arm])
            for mine, new in zip(self.variables, again, strict=True):
                mine[arm] = new[0]

    def _verify(self, parts: Parts, arms: Tensor) -> Tensor:
        """Return the success of finished triggers on all generation images of their arms, (a,)."""
        out = []
        per = max(1, self.pace.chunk // self._index.shape[1])
        for rows in torch.arange(len(arms)).split(per):
            some = arms[rows]
            stamped = self.form.stamp(tuple(p[rows] for p in parts), self._pool[self._index[some]])
            hit = self._forward(stamped).argmax(-1) == self._target[some, None]
            valid = torch.arange(hit.shape[1], device=hit.device) < self._count[some, None]
            out.append((hit & valid).sum(1) / self._count[some])
        return torch.cat(out)

    def _batches(self, arms: Tensor) -> Iterator[Tensor]:
        """Yield full batches of image indices (a, B), a fresh order for each arm."""
        taken = self._per_round * self._batch
        rows = []
        for arm in arms.tolist():
            order = torch.randperm(int(self._count[arm]), generator=self._rngs[arm])[:taken]
            rows.append(self._index[arm][order.to(self._device)])
        yield from torch.stack(rows).split(self._batch, dim=1)


def _usable(y: Tensor, goals: Sequence[Goal]) -> tuple[Tensor, Tensor]:
    """Return, for each goal, the images it may use, padded by repetition, and their number."""
    rows = []
    for goal in goals:
        keep = y != goal.target if goal.source is None else y == goal.source
        index = keep.nonzero().flatten()
        if not len(index):
            who = "any other class" if goal.source is None else f"class {goal.source}"
            raise BadImages(
                f"no clean image of {who} to search a trigger for class {goal.target} with: "
                "add images of more classes"
            )
        rows.append(index)
    count = torch.tensor([len(r) for r in rows], device=y.device)
    longest = int(count.max())
    padded = [r.repeat(-(-longest // len(r)))[:longest] for r in rows]
    return torch.stack(padded), count


@torch.no_grad()
def _adam(
    variables: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: list[list[Tensor]],
    steps: Tensor,
    pace: Pace,
) -> None:
    """Adam in place, with a step count an arm, so that arms may start and pause at any time."""
    b1, b2 = pace.betas
    for i, (v, g) in enumerate(zip(variables, gradients, strict=True)):
        first, second = moments[0][i], moments[1][i]
        first.lerp_(g, 1 - b1)
        second.mul_(b2).addcmul_(g, g, value=1 - b2)
        t = steps.view(-1, *([1] * (v.ndim - 1))).to(v)
        scale = second.div(1 - b2**t).sqrt_().add_(1e-8)
        v.sub_(pace.lr / (1 - b1**t) * first / scale)
