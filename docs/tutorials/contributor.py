"""A filter of your own, registered, explained and measured: a tutorial for contributors.

It takes a moment on a laptop: `python docs/tutorials/contributor.py`.
"""

# A method is a frozen dataclass: its fields are its options, its call takes data. A filter
# returns a score for each image, the higher the more likely it carries a trigger. There is no
# base class; the type checker compares it with its protocol where it is registered.

from pathlib import Path
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse import FILTERS, Inputs, Run, Samples, Subject, open_model
from gifthorse.cli.commands import run
from gifthorse.core.fields import Positive, method
from gifthorse.core.stats import auroc
from gifthorse.data import InMemory, whole
from gifthorse.training import predict
from gifthorse.triggers.storage import open_trigger

GIFT = Path(__file__).parents[2] / "examples" / "gift"


@method
class Sureness:
    """Score images by how sure the net is of them.

    Assumes that a trigger makes the net surer than ordinary images do.

    Attributes:
        temperature: What logits are divided by.

    Source: none, it is an example.
    """

    temperature: Annotated[float, Positive] = 4.0

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return the highest probability of each image, `(N,)`."""
        x, _ = whole(suspects)
        return (predict(subject, x) / self.temperature).softmax(1).amax(1)


# A line in its registry, and every command knows it: its options, their ranges, its page.

FILTERS["sureness"] = Sureness()
assert run(["explain", "sureness"]) == 0

# Measure it on a net whose truth is known: the shipped gift, with half of its images stamped.

gift = open_model(str(GIFT / "gift.safetensors"), Inputs(str(GIFT / "clean.npz"), device="cpu"))
x, y = whole(gift.samples)
trigger, stamped = open_trigger(GIFT / "gift.trigger.safetensors"), torch.arange(len(x)) % 2 == 0
shown = x.clone()
shown[stamped] = trigger(x[stamped])
mixed = InMemory((shown * 255).round().byte(), y, gift.subject.classes)

for name in ("sureness", "strip"):
    scores = FILTERS[name](gift.subject, gift.samples, mixed, Generator().manual_seed(0), Run())
    print(f"{name}: AUROC {auroc(scores[~stamped], scores[stamped]):.2f}")

# What is left is a test with an oracle and a golden row: `docs/adding.md` has the steps.
