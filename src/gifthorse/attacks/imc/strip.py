"""What IMC adds to hide from STRIP: mixtures of a stamped and a clean image must look undecided."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from gifthorse.attacks.poisoning import LabelMap
from gifthorse.core.fields import NotNegative, method
from gifthorse.core.types import Batch, Images, Subject, Trigger
from gifthorse.filtering.strip import entropy
from gifthorse.training import eval_mode


@method
class AgainstSTRIP:
    """Two ways of making half of a trigger worthless; both may be used at once.

    Attributes:
        copies: For each poisoned image of a batch, this many at half of the trigger's opacity with
            their true labels; 0 turns it off, TrojanZoo uses 1.
        entropy: Weight of minus the entropy of what the net says of half-and-half mixtures of a
            stamped and a clean image; 0 turns it off.

    Source: `copies`: TrojanZoo sec. 6.3 (IMC adapted to STRIP). `entropy`: Pang et al., IMC, CCS
    2020, sec. 5.3.2. Differs: a mixture has its own forward with BatchNorm's running statistics,
    which it leaves alone, as in STRIP itself; mates are the next images of the batch.
    """

    copies: Annotated[float, NotNegative] = 0.0
    entropy: Annotated[float, NotNegative] = 0.0

    def faint(self, clean: Batch, poisoned: int, trigger: Trigger, labels: LabelMap) -> Batch:
        """Return images with half of the trigger and their true labels, `copies` a poisoned one.

        A trigger of opacity a that is mixed half and half with another image has opacity a / 2.
        They are the last images of the batch that the backdoor is for; the first are stamped.
        """
        x, y = clean
        take = labels.eligible(y).nonzero().flatten().flip(0)[: round(self.copies * poisoned)]
        return (x[take] + trigger(x[take])) / 2, y[take]

    def penalty(self, subject: Subject, clean: Batch, trigger: Trigger, labels: LabelMap) -> Tensor:
        """Return minus the mean entropy of the mixtures of a clean batch, weighted."""
        x, y = clean
        use = labels(y) != y
        if not bool(use.any()):
            return x.new_zeros(())
        with eval_mode(subject.net):
            logits = subject(mixtures(x, trigger)[use])
        return -self.entropy * entropy(logits).mean()


def mixtures(x: Images, trigger: Trigger) -> Images:
    """Return each image, stamped, mixed half and half with the image after it, `(N, C, H, W)`."""
    return (trigger(x) + x.roll(-1, 0)) / 2
