"""An inverter of your own: any search that can be stepped. This one needs no gradient.

python examples/add_an_inverter.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from gifthorse import Goal, InMemory, Run, Samples, Subject, Verdict
from gifthorse.core.metrics import asr
from gifthorse.core.types import Candidate, Inversion, Inverter, Progress
from gifthorse.data import whole
from gifthorse.detection import Inspector
from gifthorse.training import predict
from gifthorse.triggers import Patch


@dataclass
class Growing:
    """An inversion that tries white squares at every place, one pixel wider in each round."""

    subject: Subject
    clean: Samples
    bar: float
    best: tuple[Candidate, ...]
    image_steps: float = 0.0

    def step(self, arms: Tensor, /) -> None:
        """Try the next width for these arms."""
        self.best = tuple(self._try(c) if a in arms else c for a, c in enumerate(self.best))

    @property
    def done(self) -> Tensor:
        """An arm rests once it has a square, or no larger one would fit."""
        return torch.tensor([c.feasible or c.rounds == self.subject.shape[1] for c in self.best])

    @property
    def progress(self) -> Progress:
        """How every arm did in its last round; the detector watches it."""
        rows = [(c.rounds, c.asr, c.size, c.size, c.feasible) for c in self.best]
        return Progress(*map(torch.tensor, zip(*rows, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """What a stopped search goes on from; nothing in this one is random, so counts will do."""
        return {"rounds": self.progress.rounds}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Do these rounds again."""
        for done in range(int(state["rounds"].max())):
            self.step((state["rounds"] > done).nonzero().flatten())

    def _try(self, last: Candidate) -> Candidate:
        (c, h, w), width, (x, y) = self.subject.shape, last.rounds + 1, whole(self.clean)
        for at in range((h - width + 1) * (w - width + 1)):
            top, left = divmod(at, w - width + 1)
            patch = Patch(torch.ones(c, h, w), torch.zeros(1, h, w))
            patch.mask[:, top : top + width, left : left + width] = 1
            rate = asr(predict(self.subject, patch(x)).argmax(1), y, last.goal).value
            self.image_steps += len(x) / 2  # forward alone
            if rate >= self.bar:
                return Candidate(last.goal, patch, float(width**2), rate, width)
        return replace(last, rounds=width)


@dataclass(frozen=True)
class Squares:
    """Find the smallest white square for each goal, from the logits alone."""

    bar: float = 0.9

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion that nobody has stepped yet; "nothing found" counts as the image."""
        c, h, w = subject.shape
        everything = Patch(torch.ones(c, h, w), torch.ones(1, h, w))
        start = [Candidate(g, everything, float(h * w), 0.0, 0, feasible=False) for g in goals]
        return Growing(subject, clean, self.bar, tuple(start))


class Bands(nn.Module):
    """Votes for the brightest of six bands; a bright corner pixel votes for class 4."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, 6)` for images `(N, 1, 12, 12)`."""
        backdoor = torch.eye(6)[4] * x[:, 0, :1, 0]
        return x.view(-1, 6, 24).mean(2) + backdoor * (backdoor > 0.8)


def main() -> Verdict:
    """Scan a net with a known backdoor."""
    rng, labels = Generator().manual_seed(0), torch.arange(60) % 6
    images = torch.randint(0, 60, (60, 1, 12, 12), generator=rng)
    images += 25 * torch.eye(6).long()[labels].repeat_interleave(2, 1)[:, None, :, None]
    inverter: Inverter = Squares()  # mypy checks it here; a line in INVERTERS does the same
    clean = InMemory(images.byte(), labels, 6)
    verdict = Inspector(inverter)(Subject(Bands(), (1, 12, 12), 6), clean, rng, Run())
    print(*(f"class {a.goal.target}: {a.size:.0f} px" for a in verdict.arms), sep=", ")
    print(verdict.label, verdict.findings[0].message, sep=": ")
    return verdict


if __name__ == "__main__":
    main()
