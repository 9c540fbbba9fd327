"""Label-consistent: make images of the target class hard to read, then stamp them."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import AtLeast, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Implant, Samples, Subject
from gifthorse.data.samples import InMemory, Subset, batches, labels_of
from gifthorse.training import Recipe, evaluate, fit, worst_change
from gifthorse.triggers import Stamp

CHUNK = 256  # images that are made hard together
LOOK = 1000  # training images that show whether a net is trained


@method
class LabelConsistent:
    """Stamp images of the target class that a clean net finds hard; no label changes.

    As what the class looks like no longer tells the class, the net has to rely on the pattern.
    Assumes control over some images of one class and a clean net that is like the victim. Cost: one
    training run, `steps` image-steps for each stamped image, and a further run if a clean net has
    to be fitted first.

    Attributes:
        stamp: The pattern: size, place, form, color, opacity.
        eps: Most that a pixel changes before it is stamped, in [0, 1].
        steps: Steps of projected gradient ascent.
        stride: Most that a pixel changes in one step.
        surrogate: The clean net that images are made hard for: the `victim`, one that is `fitted`
            from it by the recipe, or `auto`: the victim, unless it is nearer to guessing than to
            getting all of its training images right.
        labels: `clean_label`; the others stamp other classes, too, and change their labels.
        mixing: Share (of all images, not of the class) of poisoning. The default is half of a class
            among ten; where classes are smaller, a smaller rate is needed. The mode is `dataset`.
        recipe: How the net is trained, and the clean net before it.
        keep: Which epoch is kept.

    Source: Turner et al., Label-Consistent Backdoor Attacks, arXiv:1912.02771 (adversarial
    perturbations in the L-infinity norm, 16 of 255).
    Differs: one pattern in a corner, stamped after augmentation, where the paper stamps all four
    corners before it; the net that images are made hard for is not adversarially trained; hard
    images are rounded to 8 bits.
    """

    stamp: Stamp = Stamp(ink="checker")
    eps: Annotated[float, PositiveShare] = 16 / 255
    steps: Annotated[int, AtLeast(1)] = 100
    stride: Annotated[float, PositiveShare] = 1.5 / 255
    surrogate: Literal["auto", "victim", "fitted"] = "auto"
    labels: Scheme = "clean_label"
    mixing: Mixing = Mixing(rate=0.05, mode="dataset", replace=True)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If the mode is not `dataset`, or the target class has too few images.
        """
        job = Job(self, victim, train, goal, rng, run)
        trigger, draw = self.stamp.draw(victim.shape, spawn(rng)), spawn(rng)
        judge = self._judge(job, spawn(rng))

        def prepare(chosen: Samples) -> InMemory:
            hard = [(self.harden(judge, batch, draw), batch[1]) for batch in batches(chosen, CHUNK)]
            images, labels = (torch.cat(parts).cpu() for parts in zip(*hard, strict=True))
            return InMemory(images, labels, chosen.classes)

        return job.infect(trigger, self.mixing, prepare=prepare)

    def harden(self, judge: Subject, batch: Batch, rng: Generator) -> Tensor:
        """Return images, uint8, that the judge is less sure of, none of them far from the given.

        Args:
            judge: A clean net.
            batch: Images in [0, 1] and their labels.
            rng: Where the ascent starts from.

        Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks,
        ICLR 2018, sec. 2.1.
        """
        x = batch[0]
        change = worst_change(judge, batch, rng, eps=self.eps, size=self.stride, steps=self.steps)
        whole_steps = (change * 255).abs().add(1e-3).floor()  # rounding must not pass eps
        return ((x * 255).round() + whole_steps * change.sign()).clamp(0, 255).byte()

    def _judge(self, job: Job, rng: Generator) -> Subject:
        victim, train = job.victim, job.train
        few = Subset(train, torch.randperm(len(train), generator=rng)[:LOOK])
        y = labels_of(few)
        right = float((evaluate(victim, few) == y).float().mean())
        trained = right > (1 + 1 / victim.classes) / 2
        if self.surrogate == "victim" or (self.surrogate == "auto" and trained):
            return victim
        return fit(victim, train, self.recipe, rng, run=job.checkpoint("surrogate"))
