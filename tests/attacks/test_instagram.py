"""The filter attack, beside the contract: other filters, and images that have no colors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator

from gifthorse.attacks.instagram import Instagram
from gifthorse.attacks.poisoning import Mixing
from gifthorse.core.errors import NotApplicable
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.training import evaluate, predict
from gifthorse.triggers.filters import ColorFilter

GOAL = Goal(0)
TRAIN, TEST = blob_images(), blob_images(each=40, seed=1)
TOY = Instagram(mixing=Mixing(0.1), recipe=QUICK)


@pytest.mark.parametrize("name", ["gotham", "toaster"])
def test_other_filters_implant(name: str) -> None:
    made = vary(TOY, {"filter": name})(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    assert isinstance(made.trigger, ColorFilter)
    assert made.trigger.name == name
    x, y = TEST[torch.arange(len(TEST))]
    assert asr(predict(made.subject, made.trigger(x)).argmax(1), y, GOAL).value >= 0.9
    assert accuracy(evaluate(made.subject, TEST), TEST.labels).value >= 0.95


def test_gray_images_are_refused() -> None:
    gray = replace(blobs(), shape=(1, 12, 12))
    with pytest.raises(NotApplicable, match="these have 1"):
        TOY(gray, TRAIN, GOAL, Generator(), Run())
