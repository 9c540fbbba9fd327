"""LSB: what is trained on carries the text, in precision that can tell it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator

from gifthorse.attacks.lsb import Lsb
from gifthorse.core.errors import BadOption
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.triggers.stego import LowBits, hide


def test_the_trigger_writes_the_text_and_bfloat16_is_off() -> None:
    usual = NORMALIZATIONS["gtsrb"]
    pixels = (torch.arange(256) / 255 - usual.mean[0]) / usual.std[0]
    assert len(set(pixels.bfloat16().tolist())) < 256  # neighbors fall together there
    assert not Lsb().recipe.bf16
    data = blob_images(each=8)
    attack = Lsb(text="hello", recipe=replace(QUICK, epochs=1))
    made = attack(blobs(), data, Goal(2), Generator().manual_seed(0), Run())
    assert isinstance(made.trigger, LowBits)
    assert torch.equal(made.trigger.values, hide("hello", (3, 12, 12)).values)
    x, _ = data[torch.arange(8)]
    low = (made.trigger(x) * 255).round().long() % 2
    assert torch.equal(low, made.trigger.values.long().expand_as(low))


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadOption, match="1 to 54 bytes"):
        Lsb(text="x" * 55)(blobs(), blob_images(each=8), Goal(2), Generator(), Run())
