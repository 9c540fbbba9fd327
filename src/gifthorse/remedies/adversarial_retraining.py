"""Adversarial retraining: go on training, on images moved to where the net is most wrong."""

from __future__ import annotations

from typing import Annotated

from torch import Generator, Tensor

from gifthorse.core.fields import NotNegative, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Samples, Subject
from gifthorse.training import Recipe, RngState, charged, fit, usual_loss, worst_change


@method
class AdversarialRetraining:
    """Train on `argmax CE(f(x + d), y)` over `|d| <= eps`, found anew for every batch.

    Assumes many clean images: with a few hundred it costs much of the accuracy. Cost: `steps` more
    passes, forward and back, for every pass of the training.

    Attributes:
        steps: Steps of projected gradient descent for each batch; 0 only adds noise within `eps`.
        size: Length of a step, on the 0-1 scale.
        eps: How far a channel of a pixel may move, on the 0-1 scale.
        recipe: How the net is trained.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018,
    sec. 2.1; TrojanZoo Table 21 (2/255, 8/255, 7 steps, learning rate 0.01, 50
    epochs). Differs: the rate falls along a cosine; from a random start, seven steps and one update
    of the net, as Madry et al. have it, where TrojanZoo's code updates the net after each step and
    once more on the clean images; the net is in evaluation mode while the images move.
    """

    steps: Annotated[int, NotNegative] = 7
    size: Annotated[float, PositiveShare] = 2 / 255
    eps: Annotated[float, PositiveShare] = 8 / 255
    recipe: Recipe = Recipe(epochs=50, lr=0.01, decay=2e-4, schedule="cosine")

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the retrained net; `subject` and `clean` stay as they were.

        An interrupted training goes on from what the run kept of it.

        Raises:
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        plain, draw = usual_loss(self.recipe), spawn(rng)

        def loss(learner: Subject, batch: Batch) -> Tensor:
            x, y = batch
            return plain(learner, (x + self.worst(learner, batch, draw), y))

        return fit(
            subject,
            clean,
            self.recipe,
            rng,
            loss=charged(loss, run, float(self.steps)),
            callbacks=[RngState(draw)],
            run=run.keyed(self, subject, clean, rng),
        )

    def worst(self, subject: Subject, batch: Batch, rng: Generator) -> Tensor:
        """Return a change `(N, C, H, W)` within `eps` that makes the net wrong more often.

        Changed images stay in [0, 1]. The net is in evaluation mode meanwhile.
        """
        return worst_change(subject, batch, rng, eps=self.eps, size=self.size, steps=self.steps)
