"""The same search on a GPU: same sizes as on the processor, up to rounding."""

from __future__ import annotations

import pytest
import torch
from tests.toys import WIRED_CLASSES, wired, wired_images

from gifthorse.core.types import Goal, Inverter, Subject
from gifthorse.data.samples import InMemory
from gifthorse.inversion import NeuralCleanse, PixelBackdoor
from gifthorse.search import Exhaustive, Scheduler, SearchConfig, SuccessiveHalving


def sizes(
    scheduler: Scheduler, inverter: Inverter, subject: Subject, clean: InMemory
) -> list[float]:
    goals = [Goal(k) for k in range(WIRED_CLASSES)]
    inversion = inverter(subject, clean, goals, torch.Generator().manual_seed(0))
    *_, last = scheduler(inversion)
    assert last.size.tolist() == pytest.approx([c.size for c in inversion.best])
    return [c.size for c in inversion.best]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "inverter",
    [
        NeuralCleanse(config=SearchConfig(rounds=120)),
        PixelBackdoor(config=SearchConfig(success_threshold=0.9, rounds=120)),
    ],
    ids=["neural_cleanse", "pixel"],
)
@pytest.mark.parametrize(
    "scheduler", [Exhaustive(), SuccessiveHalving(first=10, second=40)], ids=["all", "halving"]
)
def test_a_gpu_finds_the_same_sizes(inverter: Inverter, scheduler: Scheduler) -> None:
    subject, clean = wired(2), wired_images(6)
    here = sizes(scheduler, inverter, subject, clean)
    there = sizes(scheduler, inverter, subject.to("cuda"), clean)
    assert there == pytest.approx(here, rel=0.05)
