"""DeepFool-based universal perturbation: one change that sends most images to the goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from gifthorse.core.fields import AtLeast, NotNegative, Share, method
from gifthorse.core.pacing import breathe, undone
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Candidate,
    Goal,
    Images,
    Inversion,
    Labels,
    Progress,
    Samples,
    Subject,
)
from gifthorse.data.samples import near, whole
from gifthorse.models.folding import frozen
from gifthorse.search.data import usable
from gifthorse.training import predict
from gifthorse.triggers import Additive

MARGIN = 1e-4  # added to the gap between logits, so that a step ends beyond the boundary
FLAT = 1e-12  # least norm of a gradient: a flat spot gives no step, not an infinite one
FIGURES = ("success", "fooling", "asr", "penalty", "size", "rounds", "feasible")
KEPT = ("perturbations", "stored", *FIGURES)  # what a pass changes


@method
class DeepFoolUAP:
    """Add up the smallest steps that carry one image after another over to the target.

    Assumes nothing about the trigger: the result is a faint change all over the image, and a
    planted class needs a smaller one. Needs clean images and gradients; a pass costs a few
    forward and backward runs an image. The size is the sum over pixels of the largest change of
    a channel.

    Attributes:
        success_threshold: theta, the success rate on the generation images at which an arm is done.
        overshoot: o; a step goes `1 + o` times as far as the boundary seems to be.
        iterations: Most DeepFool steps for one image.
        max_pass: Most passes over the images.
        bound: Largest change of any pixel (L-infinity); None sets no bound.
        max_batch: Most images in one forward; arms beyond it take turns.

    Source: USB (arXiv 2302.00747), Algorithm 1; Moosavi-Dezfooli et al., Universal Adversarial
    Perturbations, CVPR 2017, Algorithm 1. Differs: v is added up and projected as in the latter,
    where USB's listing replaces it; DeepFool heads for the target, not the nearest class; success
    is targeted; images are clipped to [0, 1] as they are when stamped, and a step leaves pixels
    alone that the clip holds; v is kept in [-1, 1], beyond which clipping hides every difference;
    images of the target class are left out; overshoot 0.02 (USB's code: 0.2).
    """

    success_threshold: Annotated[float, Share] = 0.6
    overshoot: Annotated[float, NotNegative] = 0.02
    iterations: Annotated[int, AtLeast(1)] = 20
    max_pass: Annotated[int, AtLeast(1)] = 5
    bound: Annotated[float, NotNegative] | None = None
    max_batch: Annotated[int, AtLeast(1)] = 512

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion for universal perturbations, one arm a goal."""
        return DeepFoolInversion(self, subject, clean, goals, rng)


class DeepFoolInversion:
    """An inversion whose round is one pass over the images, in a fresh order for each arm.

    Attributes:
        image_steps: Work so far; a forward and a backward of one image are a half each.
        perturbations: v of every arm as it stands, feasible or not, `(A, C, H, W)` in [-1, 1].
        success: Share of the arm's images that its v sends to the target, `(A,)`, last round.
        fooling: Share of them that it sends to any other class than without v, `(A,)`.
        rounds: Passes of every arm, `(A,)` int64.
        feasible: Whether any v met the bar so far, `(A,)` bool.
        penalty: Size of v, in soft pixels, `(A,)`; infinite before the first round.
        stored: The smallest v that met the bar, or else the latest, `(A, C, H, W)`.
        asr: Success of the stored v, `(A,)`.
        size: Its size, `(A,)`; `H * W` unless it met the bar.
    """

    def __init__(
        self,
        method: DeepFoolUAP,
        subject: Subject,
        clean: Samples,
        goals: Sequence[Goal],
        rng: Generator,
    ) -> None:
        self.method, self.goals = method, tuple(goals)
        self._pool, labels = whole(near(clean, subject))
        self._subject = replace(subject, net=frozen(subject.net, self._pool))
        rows = zip(*usable(labels, goals), strict=True)
        self._usable: list[Tensor] = [index[: int(count)].sort().values for index, count in rows]
        self._target = torch.tensor([g.target for g in goals], device=labels.device)
        self._clean = predict(self._subject, self._pool, method.max_batch).argmax(1)
        self._rngs = [spawn(rng) for _ in goals]
        self.image_steps = len(labels) / 2
        zeros = torch.zeros(len(goals), device=labels.device)
        self.perturbations = self._pool.new_zeros(len(goals), *self._pool.shape[1:])
        self.stored = self.perturbations.clone()
        self._whole = float(self._pool[0, 0].numel())
        self.success, self.fooling, self.asr = zeros.clone(), zeros.clone(), zeros.clone()
        self.penalty, self.size = zeros + torch.inf, zeros + self._whole
        self.rounds, self.feasible = zeros.long(), zeros.bool()

    def step(self, arms: Tensor, /) -> None:
        """Visit every usable image of these arms once, then measure and store."""
        for part in arms.to(self._target.device).split(self.method.max_batch):
            with undone(self._rngs, self.perturbations):
                rows = [self._shuffled(arm) for arm in part.tolist()]
                # Arms with fewer images drop out towards the end of the pass.
                for index in pad_sequence(rows, batch_first=True, padding_value=-1).T:
                    breathe()
                    some = (index >= 0).nonzero().flatten()
                    self._visit(part[some], self._pool[index[some]])
            for arm in part.tolist():
                self._measure(arm)
            self.rounds[part] += 1

    @property
    def done(self) -> Tensor:
        """Which arms met the bar or have used their passes, `(A,)` bool."""
        return (self.feasible | (self.rounds >= self.method.max_pass)).cpu()

    @property
    def progress(self) -> Progress:
        """How every arm did in its last pass; there is no weight that could turn."""
        last = (self.rounds, self.success, self.penalty, self.size, torch.zeros_like(self.feasible))
        return Progress(*(tensor.to("cpu", copy=True) for tensor in last))

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The smallest feasible perturbation of each arm, or the latest if none is feasible."""
        figures = (self.size, self.asr, self.rounds, self.feasible)
        lists = [figure.tolist() for figure in figures]
        rows = zip(self.goals, self.stored.to("cpu", copy=True), *lists, strict=True)
        return tuple(Candidate(goal, Additive(v), *row) for goal, v, *row in rows)

    def state(self) -> dict[str, Tensor]:
        """Return copies of every tensor and of the generators' states, by name."""
        spent = torch.tensor(self.image_steps, dtype=torch.float64)
        rngs = torch.stack([rng.get_state() for rng in self._rngs])
        kept = {name: getattr(self, name).to("cpu", copy=True) for name in KEPT}
        return {**kept, "rngs": rngs, "image_steps": spent}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned, for the same subject, images and goals."""
        for name in KEPT:
            getattr(self, name).copy_(state[name])
        for rng, kept in zip(self._rngs, state["rngs"], strict=True):
            rng.set_state(kept.clone())  # it reads a row of a tensor from the tensor's start
        self.image_steps = state["image_steps"].item()

    def _shuffled(self, arm: int) -> Tensor:
        """Return the indices of the images of an arm in a fresh order."""
        index = self._usable[arm]
        order = torch.randperm(len(index), generator=self._rngs[arm])
        return index.index_select(0, order.to(index.device))

    def _visit(self, arms: Tensor, x: Images) -> None:
        """Add what carries one image `(a, C, H, W)` of each arm over to its target."""
        v, method = self.perturbations[arms], self.method
        limit = 1.0 if method.bound is None else min(1.0, method.bound)
        r, won, spent = deepfool(
            self._subject, x + v, self._target[arms], method.overshoot, method.iterations
        )
        moved = (v + r).clamp(-limit, limit)
        self.perturbations[arms] = torch.where(won.view(-1, 1, 1, 1), moved, v)
        self.image_steps += spent

    def _measure(self, arm: int) -> None:
        """Test v on all images of an arm; store it if it is the first or the smallest to pass."""
        index, v = self._usable[arm], self.perturbations[arm]
        stamped = Additive(v)(self._pool[index])
        got = predict(self._subject, stamped, self.method.max_batch).argmax(1)
        self.image_steps += len(index) / 2
        success = int((got == self.goals[arm].target).sum()) / len(index)
        self.success[arm] = success
        self.fooling[arm] = int((got != self._clean[index]).sum()) / len(index)
        size = self.penalty[arm] = v.abs().amax(0).sum()
        ok = success >= self.method.success_threshold
        if not self.feasible[arm] or (ok and size < self.size[arm]):
            self.stored[arm], self.asr[arm], self.feasible[arm] = v, success, ok
            self.size[arm] = size if ok else self._whole


def deepfool(
    net: Callable[[Images], Tensor], x: Images, target: Labels, overshoot: float, iterations: int
) -> tuple[Tensor, Tensor, float]:
    """Return small changes that carry images over to their targets, all images in a batch.

    Each step is the smallest one (L2) that lifts the target's logit over the largest one if the
    net is linear. Images are independent of each other.

    Args:
        net: Maps images in [0, 1] to logits `(N, K)`.
        x: Where to start, `(N, C, H, W)`; the net sees it, like all that follows, clipped.
        target: Classes to reach, `(N,)`.
        overshoot: Share by which the change is lengthened at the end of every step.
        iterations: Most steps an image takes.

    Returns:
        Changes `(N, C, H, W)`, zero where the target is reached already; which images reach it
        with them, `(N,)` bool; the image-steps spent.

    Source: USB, Algorithm 1, after Moosavi-Dezfooli et al., DeepFool, CVPR 2016, Algorithm 2.
    Differs: one backward of `z_t - z_c`, c the predicted class, instead of one a class.
    """
    r = torch.zeros_like(x)
    won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    live, spent = torch.arange(len(x), device=x.device), 0.0
    for turn in range(iterations + 1):
        u = (x[live] + (1 + overshoot) * r[live]).requires_grad_()
        z = net(u.clamp(0, 1))
        spent += len(live) / 2
        top, goal = z.argmax(1, keepdim=True), target[live, None]
        won[live] = (top == goal)[:, 0]
        away = (top != goal)[:, 0].nonzero().flatten()
        if turn == iterations or not len(away):
            break
        gap = (z.gather(1, top) - z.gather(1, goal))[away]  # (a, 1)
        w = torch.autograd.grad(-gap.sum(), u)[0][away]
        u, live = u.detach()[away], live[away]
        w = w * ((u > 0) | (w > 0)) * ((u < 1) | (w < 0))  # nothing that the clip undoes
        norm = w.flatten(1).norm(dim=1).clamp_min(FLAT).view(-1, 1, 1, 1)
        r[live] += (gap.detach()[..., None, None] + MARGIN) / norm * (w / norm)
        spent += len(live) / 2
    return (1 + overshoot) * r, won, spent
