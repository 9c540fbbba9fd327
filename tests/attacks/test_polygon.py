"""The polygon attack, beside the contract: a fixed place, and what the seed decides."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.polygon import Polygon
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.training import evaluate, predict
from gifthorse.triggers import Patch
from gifthorse.triggers.polygon import Confined, Outline

GOAL = Goal(2)
TOY = Polygon(mixing=Mixing(0.1), recipe=QUICK)


def test_a_small_polygon_at_a_fixed_place_implants() -> None:
    test = blob_images(each=40, seed=1)
    outline = Outline(sides=4, size=4, color="hue", box=0, place="lower_right")
    made = replace(TOY, outline=outline)(
        blobs(), blob_images(), GOAL, Generator().manual_seed(0), Run()
    )
    assert isinstance(made.trigger, Patch)
    x, y = test[torch.arange(len(test))]
    assert asr(predict(made.subject, made.trigger(x)).argmax(1), y, GOAL).value >= 0.9
    assert accuracy(evaluate(made.subject, test), test.labels).value >= 0.95


def test_the_seed_alone_decides_on_the_polygon() -> None:
    short, few = replace(TOY, recipe=replace(QUICK, epochs=1)), blob_images(each=8)

    def drawn(seed: int, unrelated: int) -> Tensor:
        torch.manual_seed(unrelated)
        made = short(blobs(), few, GOAL, Generator().manual_seed(seed), Run())
        assert isinstance(made.trigger, Confined)
        return torch.cat(made.trigger.render())

    assert torch.equal(drawn(0, 1), drawn(0, 2))
    assert not torch.equal(drawn(0, 1), drawn(5, 1))
