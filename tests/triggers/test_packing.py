"""Triggers as text: they come back as they were, and other texts are refused."""

from __future__ import annotations

import base64
import zlib

import pytest
import torch
from torch import Generator

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Goal, Images, Trigger
from gifthorse.triggers import Additive, Patch, square, wandering
from gifthorse.triggers.packing import MOST, packed, unpacked

SHAPE = (3, 8, 9)


def triggers() -> list[Trigger]:
    rng = Generator().manual_seed(0)
    return [
        Patch(torch.rand(SHAPE, generator=rng), torch.rand(1, 8, 9, generator=rng)),
        Additive(torch.rand(SHAPE, generator=rng) * 2 - 1),
        wandering(SHAPE, 2, "random", 0.7, rng),
    ]


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("goal", [Goal(14), Goal(0, 3)])
def test_a_trigger_comes_back_bit_for_bit(kind: int, goal: Goal) -> None:
    known, same, x = triggers()[kind], triggers()[kind], torch.rand(4, *SHAPE)
    back, told = unpacked(packed(known, goal))
    assert told == goal
    assert type(back) is type(known)
    assert torch.equal(back(x), same(x))
    assert {packed(triggers()[kind], goal) for _ in range(8)} == {packed(triggers()[kind], goal)}


def test_a_small_patch_is_a_short_line() -> None:
    text = packed(square((3, 224, 224), 9, "center", "white", 1.0, Generator()), Goal(1))
    assert len(text) < 3000  # of 800 kB
    assert text.isascii()
    assert text.isprintable()


def fold(whole: bytes) -> str:
    return base64.b64encode(zlib.compress(whole)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no base64!",
        base64.b64encode(b"not deflated").decode(),
        fold(b""),
        fold(b"\xff" * 40),
        fold((2).to_bytes(8, "little") + b"{}"),
        packed(triggers()[0], Goal(1))[:-8],
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadOption, match="no trigger is packed in"):
        unpacked(text)


def test_a_text_that_unfolds_to_too_much_is_refused() -> None:
    with pytest.raises(BadOption, match="64 MiB"):
        unpacked(fold(bytes(MOST + 1)))


class Odd:
    """A trigger that no file holds."""

    def __call__(self, x: Images, /) -> Images:
        return x

    def shuffled(self, rng: Generator, /) -> Trigger:
        return self

    def render(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(SHAPE), torch.zeros(1, 8, 9)


def test_a_trigger_of_no_known_kind_cannot_be_packed() -> None:
    with pytest.raises(BadOption, match="cannot be saved"):
        packed(Odd(), Goal(1))
