"""The same search on a GPU: same sizes as on the processor, up to rounding."""

from __future__ import annotations

import pytest
import torch
from tests.toys import WIRED_CLASSES, wired, wired_images

from gifthorse.core.types import Goal, Inverter, Subject
from gifthorse.data.samples import InMemory
from gifthorse.inversion import NeuralCleanse, PixelBackdoor
from gifthorse.search import Exhaustive, Halving, Pace, Turns


def sizes(turns: Turns, inverter: Inverter, subject: Subject, clean: InMemory) -> list[float]:
    goals = [Goal(k) for k in range(WIRED_CLASSES)]
    hunt = inverter(subject, clean, goals, torch.Generator().manual_seed(0))
    *_, last = turns(hunt)
    assert last.size.tolist() == pytest.approx([c.size for c in hunt.best])
    return [c.size for c in hunt.best]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "inverter",
    [NeuralCleanse(pace=Pace(rounds=120)), PixelBackdoor(pace=Pace(bar=0.9, rounds=120))],
    ids=["neural_cleanse", "pixel"],
)
@pytest.mark.parametrize(
    "turns", [Exhaustive(), Halving(first=10, second=40)], ids=["all", "halving"]
)
def test_a_gpu_finds_the_same_sizes(inverter: Inverter, turns: Turns) -> None:
    subject, clean = wired(2), wired_images(6)
    here = sizes(turns, inverter, subject, clean)
    there = sizes(turns, inverter, subject.to("cuda"), clean)
    assert there == pytest.approx(here, rel=0.05)
