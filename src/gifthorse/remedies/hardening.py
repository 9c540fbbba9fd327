"""Model hardening: train on images that carry natural triggers, so that none stays small."""

from __future__ import annotations

from typing import Annotated

from torch import Generator

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, OpenShare, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Inverter, Samples, Subject
from gifthorse.data.samples import split
from gifthorse.inversion import PixelBackdoor
from gifthorse.remedies.foes import AdversarialTriggers
from gifthorse.remedies.guard import AccuracyGuard
from gifthorse.search import SearchConfig
from gifthorse.training import FrozenBatchNorm, Recipe, fit


@method
class Hardening:
    """Enlarge the distances between classes: stamp small triggers on images, keep their labels.

    Assumes clean images enough to train on; nothing is known of a backdoor, and none need be there.
    Triggers of one class after the other are searched in the net as it is at that moment, or those
    of all classes once, before training. Training ends before it costs more accuracy than allowed,
    on images held out for that.

    Cost: a search of `later` rounds every `every` batches, and one of the inverter's own rounds
    for every class; then at most `recipe.epochs` passes, and one more for every fall of the rate.

    Attributes:
        inverter: What finds triggers, each for all other classes; the rounds of its config are
            those of the first search of a class.
        every: Batches from one search to the next, anew in every epoch; 0 searches all classes
            once, before training, and then each image draws one of their triggers.
        later: Rounds of a further search for a class, which starts from the trigger found last.
        each: Clean training images of every other class that a search uses, drawn anew each time.
        largest: Share of the image's pixels beyond which a trigger is not stamped.
        share: Share of the images of other classes than the trigger's that are stamped.
        drop: Accuracy on the held-out images that may be lost, in [0, 1]. An epoch that costs more
            is undone.
        falls: How often training then goes on at a third of its rate; it ends when another one is
            undone. How large a rate a net bears differs by ten times and more.
        held: Share of the clean images held out for that, class by class.
        recipe: How the net is trained; its epochs are the most there will be.

    Source: Tao et al., PixelBackdoor, CVPR 2022, sec. 5.4 and appendix L.1; schedule and rates,
    which the paper does not give, are those of the same group's MOTH, where BatchNorm keeps its
    statistics, too: those of half-stamped batches would cost accuracy on clean images at any rate.
    Differs: at most 10 epochs, the accuracy bound and the falling rate; batches draw from the last
    triggers of all classes, in MOTH from that of the class or pair whose turn it is.
    """

    inverter: Inverter = PixelBackdoor(
        mode="clip", config=SearchConfig(success_threshold=0.99, rounds=500, bf16=True)
    )
    every: Annotated[int, NotNegative] = 10
    later: Annotated[int, AtLeast(1)] = 100
    each: Annotated[int, AtLeast(1)] = 10
    largest: Annotated[float, Share] = 0.25
    share: Annotated[float, Share] = 0.5
    drop: Annotated[float, Share] = 0.02
    falls: Annotated[int, NotNegative] = 2
    held: Annotated[float, OpenShare] = 0.1
    recipe: Recipe = Recipe(epochs=10, lr=1e-4, decay=0.0, schedule="constant")

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the hardened net; an interrupted training goes on from its last epoch.

        Raises:
            NotApplicable: If there are too few images to hold some out.
            Incomplete: If the run ends during a search; whole epochs, and of the search before
                training every minute, are kept.
        """
        run = run.keyed(self, subject, clean, rng)
        held, train = split(clean, self.held, spawn(rng))
        if not len(held) or not len(train):
            raise NotApplicable(
                f"of {len(clean)} clean images, {len(held)} are held out and {len(train)} left to "
                "train on: add images, or change held"
            )
        adversarial, guard = (
            AdversarialTriggers(self, train, spawn(rng), run),
            AccuracyGuard(held, self.drop),
        )
        callbacks = [adversarial, FrozenBatchNorm(), guard]
        for fall, recipe in enumerate(guard.courses(self.recipe, self.falls)):
            part = run.checkpoint(f"rate {fall}")
            subject = fit(
                subject, train, recipe, rng, mix=adversarial.mix, callbacks=callbacks, run=part
            )
        return subject
