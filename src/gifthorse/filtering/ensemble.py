"""The ensemble filter: does an image hold its own against a trigger that was found?"""

from __future__ import annotations

import logging
from typing import Annotated, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotEmpty, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Candidate, Goal, Images, Inverter, Samples, Subject
from gifthorse.data.samples import batches, near
from gifthorse.filtering.scoring import CHUNK, Asked
from gifthorse.filtering.strip import STRIP, entropy
from gifthorse.inversion import NeuralCleanse
from gifthorse.search import Exhaustive, Scheduler, found

log = logging.getLogger("gifthorse")

Weights: TypeAlias = Annotated[tuple[Annotated[float, Share], ...], NotEmpty]


@method
class Ensemble:
    """Mix an image at many weights with clean ones that carry the smallest trigger found.

    A clean image loses to the trigger as its weight falls, and the net is undecided in between. A
    stamped one carries a trigger, too, and the net is sure at every weight: the score is minus the
    spread of the entropy over the weights, at most 0. Assumes that the smallest trigger that the
    inverter finds stands for the true one. If no class has any, all images get the score of STRIP
    with the same number of partners, and the log says so. Cost: one search over all classes, then
    `partners * weights` forwards an image.

    Attributes:
        inverter: What finds the smallest trigger of each class.
        scheduler: In which order classes are searched.
        weights: Shares of the suspect in the mixtures, each in [0, 1].
        partners: Clean images that are stamped with the trigger found, drawn once.

    Source: Pang et al., A Tale of Evil Twins (IMC), CCS 2020, sec. 5.4 (`StripNC`).
    Differs: the paper names neither weights nor partners: nine weights, and the eight partners that
    it gives STRIP; the deviation over weights (that of a population) is taken for each partner,
    then averaged; STRIP where the paper has no trigger to go on with.
    """

    inverter: Inverter = NeuralCleanse()
    scheduler: Scheduler = Exhaustive()
    weights: Weights = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    partners: Annotated[int, AtLeast(1)] = 8

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` for each suspect, higher is worse; labels have no part in it.

        A search that the run ends is kept in it, and goes on in the next call.

        Raises:
            NotApplicable: If there are too few clean images.
            Incomplete: If the run is over before all images are scored.
        """
        if len(clean) < self.partners:
            raise NotApplicable(
                f"{self.partners} clean images are needed, but there are {len(clean)}: lower "
                "partners"
            )
        asked = Asked(subject, run)
        run = run.keyed(self, subject, clean, rng)
        found = self._smallest(asked.subject, clean, spawn(rng), run.checkpoint("search"))
        if found is None:
            log.warning("no class has a trigger that works: images are scored by STRIP alone")
            return STRIP(self.partners)(subject, clean, suspects, rng, asked.run)
        log.info("images compete with a trigger of %.1f px: %s", found.size, found.goal)
        drawn = torch.randperm(len(clean), generator=spawn(rng))[: self.partners]
        rivals = found.trigger(near(clean, subject)[drawn][0])
        return -self._spreads(asked, near(suspects, subject), rivals)

    def _smallest(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> Candidate | None:
        """Return the smallest trigger of any class that has one."""
        inversion = self.inverter(subject, clean, [Goal(k) for k in range(subject.classes)], rng)
        best = found(inversion, self.scheduler, run, "not all images were scored")
        return min((c for c in best if c.feasible), key=lambda c: c.size, default=None)

    def _spreads(self, asked: Asked, suspects: Samples, rivals: Images) -> Tensor:
        """Return how much the entropy varies with the weight, mean over rivals, `(N,)`."""
        shares = torch.tensor(self.weights, device=rivals.device).view(-1, 1, 1, 1, 1)
        each, out = len(rivals) * len(shares), torch.zeros(0)
        for x, _ in batches(suspects, max(1, CHUNK // each)):
            mixed = torch.lerp(rivals, x[:, None, None], shares)  # (B, W, P, C, H, W)
            found = entropy(asked.logits(mixed.flatten(0, 2)))
            spread = found.view(len(x), len(shares), len(rivals)).std(1, correction=0)
            out = torch.cat([out, spread.mean(1).cpu()])
            asked.run.report(len(out), len(suspects), "mixing images")
        return out
