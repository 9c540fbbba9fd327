"""STRIP: does the net stick to its answer when the image is mixed with others?"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, Share, method
from gifthorse.core.run import Run
from gifthorse.core.stats import median
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Logits, Samples, Subject
from gifthorse.data.samples import Subset, batches, near
from gifthorse.filtering.scoring import CHUNK, Asked


@method
class STRIP:
    """Mix an image with clean ones and measure how undecided the net is about the mixtures.

    A trigger that outweighs whatever it is mixed with leaves the net certain: the score is minus
    the mean entropy. Assumes a trigger that works at `weight` of its opacity, and partners that
    are not among the suspects. Cost: `partners` forwards an image.

    Attributes:
        partners: Clean images that every suspect is mixed with, drawn once.
        weight: Share of the suspect in a mixture, in [0, 1].
        tails: What is suspicious: `low` entropy, or `both`, where the score is the distance from
            the median entropy of the clean images that are not partners.
        relative: Whether entropy is divided by its largest value, ln K.

    Source: Gao et al., STRIP, ACSAC 2019, sec. 4; 64 partners as TrojanZoo; `both` gives the false
    positives of TrojanZoo's Table 23.
    Differs: mixtures are convex and stay in [0, 1]; all suspects meet the same partners, which are
    never test images.
    """

    partners: Annotated[int, AtLeast(1)] = 64
    weight: Annotated[float, Share] = 0.5
    tails: Literal["low", "both"] = "low"
    relative: bool = False

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` for each suspect, higher is worse; labels have no part in it.

        Raises:
            NotApplicable: If there are too few clean images.
            Incomplete: If the run is over before all images are scored.
        """
        need = self.partners + (self.tails == "both")
        if len(clean) < need:
            raise NotApplicable(
                f"{need} clean images are needed, but there are {len(clean)}: lower partners"
            )
        asked, order = Asked(subject, run), torch.randperm(len(clean), generator=spawn(rng))
        clean, suspects = near(clean, subject), near(suspects, subject)
        pool = clean[order[: self.partners]][0]
        found = self._entropies(asked, suspects, pool)
        if self.tails == "low":
            return -found
        rest = Subset(clean, order[self.partners :])
        return (found - median(self._entropies(asked, rest, pool))).abs()

    def _entropies(self, asked: Asked, samples: Samples, pool: Images) -> Tensor:
        """Return the mean entropy of each image's mixtures with the pool, `(N,)`."""
        top = math.log(asked.subject.classes) if self.relative else 1.0
        found: list[Tensor] = []
        for x, _ in batches(samples, max(1, CHUNK // len(pool))):
            mixed = torch.lerp(pool, x[:, None], self.weight)  # (B, P, C, H, W); exact at 0 and 1
            each = entropy(asked.logits(mixed.flatten(0, 1))).view(len(x), len(pool))
            found.append(each.mean(1).cpu() / top)
            asked.run.report(sum(map(len, found)), len(samples), "mixing images")
        return torch.cat(found)


def entropy(logits: Logits) -> Tensor:
    """Return the entropy `(N,)` of the classes, in nats; exact where a class is almost certain.

    Example:
        >>> round(entropy(torch.zeros(1, 4)).item(), 4)  # ln 4
        1.3863
    """
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
