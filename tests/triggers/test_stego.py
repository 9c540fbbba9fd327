"""Low bits: the text comes back, and nothing but the low bits changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.triggers.stego import LowBits, hide

SHAPE = (3, 8, 10)


def eight_bits(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """What a file would hold; refuses images that are not multiples of 1/255."""
    scaled = (x * 255).double()
    assert torch.allclose(scaled, scaled.round(), atol=1e-4)
    return scaled.round().numpy().astype(np.uint8)


def text_in(x: Tensor, planes: int) -> bytes:
    """Read the low bits of one image, as written down in the docstring of `hide`."""
    bits = np.unpackbits(eight_bits(x).reshape(-1, 1), axis=1)[:, 8 - planes :].ravel()
    return np.packbits(bits[: len(bits) // 8 * 8]).tobytes()


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=7), st.integers(1, 8), st.integers(0, 99))
def test_the_text_comes_back_again_and_again(text: str, planes: int, seed: int) -> None:
    x = torch.randint(256, (2, *SHAPE), generator=Generator().manual_seed(seed)).float() / 255
    before = x.clone()
    stamped = hide(text, SHAPE, planes)(x)
    data = text.encode()
    for image in stamped:
        found = text_in(image, planes)
        assert found == (data * (len(found) // len(data) + 1))[: len(found)]
    low = 2**planes - 1
    assert np.array_equal(eight_bits(stamped) & ~np.uint8(low), eight_bits(x) & ~np.uint8(low))
    assert 0 <= stamped.min() <= stamped.max() <= 1
    assert torch.equal(x, before)


def test_stamping_twice_changes_nothing_more(rng: Generator) -> None:
    trigger = hide("gift", SHAPE)
    once = trigger(torch.rand(3, *SHAPE, generator=rng))
    assert torch.equal(trigger(once), once)


def test_one_bit_changes_a_pixel_by_one_step_at_most(rng: Generator) -> None:
    x = torch.randint(256, (4, *SHAPE), generator=rng).float() / 255
    change = (hide("gift", SHAPE)(x) - x).abs()
    assert change.max().item() == pytest.approx(1 / 255, abs=1e-6)
    assert 0.4 < (change > 1e-4).float().mean() < 0.6
    assert torch.allclose(hide("gift", SHAPE).render()[1], torch.full((1, 8, 10), 1 / 255))


def test_a_scrambled_trigger_has_the_same_pixels_elsewhere(rng: Generator) -> None:
    trigger = hide("some text", SHAPE, planes=3)
    other = trigger.shuffled(rng)
    assert isinstance(other, LowBits)
    assert other.planes == 3
    rows = [sorted(map(tuple, t.values.flatten(1).T.tolist())) for t in (trigger, other)]
    assert rows[0] == rows[1]
    assert not torch.equal(trigger.values, other.values)
    assert torch.equal(trigger.render()[0] * 7, trigger.values)


@pytest.mark.parametrize(("text", "planes"), [("", 1), ("x" * 31, 1), ("x", 0), ("x", 9)])
def test_texts_that_cannot_be_hidden_are_refused(text: str, planes: int) -> None:
    with pytest.raises(BadOption):
        hide(text, SHAPE, planes)
    hide("x" * 30, SHAPE)  # 240 pixels, 30 bytes


@pytest.mark.parametrize("planes", [0, 9, 10**9, -1])
def test_a_trigger_of_more_bits_than_a_pixel_has_is_refused(planes: int) -> None:
    with pytest.raises(BadOption, match="planes must be 1 to 8"):
        LowBits(torch.zeros(SHAPE), planes)
