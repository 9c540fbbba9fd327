"""What the trigger of every class pair makes of images of all classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Goal, Labels, Samples, Subject
from gifthorse.data.gallery import balanced
from gifthorse.data.samples import whole
from gifthorse.training import predict


@dataclass(frozen=True)
class Crossed:
    """Every trigger on images of every class.

    Attributes:
        best: The trigger of each pair.
        y: True labels of the images that the search used, `(n,)`.
        said: What they come out as under each trigger, `(N, n)`; -1 under one that never worked.
        unseen: Share of images of its own source that the search did not use and that each trigger
            sends to its target, `(N,)`.
        bar: A trigger turns a class if it sends this share of its images to one other class.
    """

    best: Sequence[Candidate]
    y: Labels
    said: Tensor
    unseen: Tensor
    bar: float

    @classmethod
    def of(
        cls,
        subject: Subject,
        best: Sequence[Candidate],
        used: tuple[Samples, Samples],
        images: int,
        bar: float,
        run: Run,
    ) -> Crossed:
        """Stamp images of every class with every trigger.

        Args:
            subject: The net.
            best: The trigger of each pair, whose goal has a source.
            used: The images that the search used, and those it did not.
            images: How many of a class at most.
            bar: See `Crossed`.
            run: Is charged half an image-step an image.
        """
        (x, y), (x_new, y_new) = whole(used[0]), whole(used[1])
        some = torch.from_numpy(balanced(y.numpy(), images * len(y.unique())))
        x, y = x[some], y[some]
        said, works = torch.full((len(best), len(y)), -1), torch.zeros(len(best))
        for i, candidate in enumerate(best):
            if not candidate.feasible:
                continue
            own = x_new[candidate.goal.applies_to(y_new)]
            run.charge((len(x) + len(own)) / 2)
            out = predict(subject, candidate.trigger(torch.cat([x, own]))).argmax(1)
            said[i] = out[: len(x)]
            works[i] = (out[len(x) :] == candidate.goal.target).float().mean()
            run.report(i + 1, len(best), "trying the triggers of pairs on other classes")
        return cls(best, y, said, works, bar)

    @property
    def sources(self) -> Tensor:
        """The source of each pair, `(N,)`."""
        return torch.tensor([c.goal.source or 0 for c in self.best])

    @property
    def classes(self) -> int:
        """How many classes have images."""
        return len(self.y.unique())

    def transfer(self) -> Tensor:
        """Return the share of images of pair j that the trigger of pair i turns, `(N, N)`."""
        columns = [
            (self.said[:, c.goal.applies_to(self.y)] == c.goal.target).float().mean(1)
            for c in self.best
        ]
        return torch.stack(columns, 1)

    def map_of(self, pair: int) -> tuple[Goal, ...]:
        """Return the classes that the trigger of a pair turns, each as a pair with its target.

        Example:
            >>> from gifthorse.triggers import Patch
            >>> nothing = Patch(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
            >>> one = Candidate(Goal(1, source=0), nothing, 4.0, 1.0, 1)
            >>> y, said = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([[1, 1, 2, 2, 0, 2]])
            >>> Crossed([one], y, said, torch.ones(1), 0.6).map_of(0)
            (Goal(target=1, source=0), Goal(target=2, source=1))
        """
        said, out = self.said[pair], list[Goal]()
        for source in self.y.unique().tolist():
            mine = said[self.y == source]
            target = int(mine.mode().values)
            share = (mine == target).float().mean().item()
            if target not in (-1, source) and share >= self.bar:
                out.append(Goal(target, source))
        return tuple(out)
