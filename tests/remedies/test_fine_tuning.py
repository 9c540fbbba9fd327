"""Fine-tuning is plain training on clean images; trained remedies go on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator

from gifthorse.core.run import Run
from gifthorse.core.types import Remedy
from gifthorse.remedies import FinePruning, FineTuning, Projection
from gifthorse.training import fit

CLEAN = blob_images(each=16)
RECIPE = replace(QUICK, batch=20, lr=0.02)


def test_it_is_training_on_the_clean_images() -> None:
    made = FineTuning(recipe=RECIPE)(blobs(), CLEAN, Generator().manual_seed(0), Run())
    wanted = fit(blobs(), CLEAN, RECIPE, Generator().manual_seed(0), Run()).net.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in made.net.state_dict().items())


@pytest.mark.parametrize(
    "remedy",
    [
        FineTuning(recipe=RECIPE),
        FinePruning(tolerance=0.04, step=0.1, recipe=RECIPE),
        Projection(width=4, recipe=replace(RECIPE, epochs=7)),
    ],
    ids=["fine_tuning", "fine_pruning", "projection"],
)
def test_an_interrupted_training_goes_on(remedy: Remedy, tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupt(done: int, total: int, words: str) -> None:
        calls.append(done)
        if len(calls) == 1:
            raise KeyboardInterrupt

    subject, store = blobs(), tmp_path / "state.safetensors"
    run = Run(progress=interrupt, store=store)
    with pytest.raises(KeyboardInterrupt):
        remedy(subject, CLEAN, Generator().manual_seed(0), run)
    assert store.exists()
    run = Run(progress=interrupt, store=store)
    resumed = remedy(subject, CLEAN, Generator().manual_seed(0), run)
    straight = remedy(subject, CLEAN, Generator().manual_seed(0), Run()).net.state_dict()
    assert all(torch.equal(v, straight[k]) for k, v in resumed.net.state_dict().items())
