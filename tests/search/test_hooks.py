"""A net that remembers a layer: against the same layers asked one after another."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption
from gifthorse.models.folding import frozen
from gifthorse.search.hooks import HookedModel


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def images(rng: Generator) -> Tensor:
    return torch.rand(6, 1, 6, 6, generator=rng)


@pytest.mark.parametrize(("layer", "upto"), [("0", 1), ("1", 2), ("3", 4)])
@pytest.mark.parametrize("private", [False, True])
def test_the_output_of_a_layer_is_remembered(
    layer: str, upto: int, private: bool, rng: Generator
) -> None:
    plain, x = net(), images(rng)
    watched = HookedModel(frozen(plain, x) if private else plain, layer)
    assert watched.seen(torch.Size((2, 3))) is None  # nobody has asked yet
    for now in (x, x.flip(0)):
        assert torch.allclose(watched(now), plain(now), atol=1e-6)
        seen = watched.seen(torch.Size((2, 3)))
        assert seen is not None
        expected = plain[:upto](now)
        assert torch.allclose(seen, expected.view(2, 3, *expected.shape[1:]), atol=1e-6)


def test_gradients_go_through_what_is_remembered(rng: Generator) -> None:
    plain, x = net(), images(rng).requires_grad_()
    watched = HookedModel(plain, "1")
    watched(x)
    seen = watched.seen(torch.Size((6,)))
    assert seen is not None
    (got,) = torch.autograd.grad(seen.square().sum(), x)
    (expected,) = torch.autograd.grad(plain[:2](x).square().sum(), x)
    assert torch.allclose(got, expected, atol=1e-6)


def test_without_a_layer_nothing_is_remembered(rng: Generator) -> None:
    watched = HookedModel(net())
    watched(images(rng))
    assert watched.seen(torch.Size((6,))) is None


def test_a_layer_that_is_not_there_is_refused_with_words() -> None:
    with pytest.raises(BadOption, match=r"no layer 'layer7'; it has .*\b0, 1, 2, 3"):
        HookedModel(net(), "layer7")


class Cast(nn.Module):
    """A net that answers in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.layer = dtype, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1).to(self.dtype))
        return out


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_logits_are_never_less_than_float32_and_never_cut(
    said: torch.dtype, heard: torch.dtype, rng: Generator
) -> None:
    watched, x = HookedModel(Cast(said), "layer"), images(rng).double()
    logits, seen = watched(x), None
    seen = watched.seen(torch.Size((2, 3)))
    assert seen is not None
    assert logits.dtype == seen.dtype == heard
    assert torch.equal(logits, x.flatten(1).to(said).to(heard))
    assert torch.equal(seen.flatten(0, 1), logits)


def test_bfloat16_is_asked_for_and_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, rng: Generator
) -> None:
    x, plain = images(rng), net()
    for fast in (None, torch.bfloat16):
        monkeypatch.setattr("gifthorse.search.hooks.half", lambda device, f=fast: f)
        for asked in (False, True):
            logits = HookedModel(plain)(x, bf16=asked)
            assert logits.dtype == torch.float32
            rounded = torch.equal(logits, logits.bfloat16().float())
            assert rounded == (fast is not None and asked)
            assert torch.allclose(logits, plain(x), atol=0.02)


@pytest.mark.parametrize("layer", ["", "1"])
def test_small_gradients_outlast_float16(
    layer: str, monkeypatch: pytest.MonkeyPatch, rng: Generator
) -> None:
    plain, x = net(), images(rng).requires_grad_()

    def slope(watched: HookedModel, bf16: bool) -> Tensor:
        logits = watched(x, bf16=bf16)
        seen = watched.seen(torch.Size((6,))) if layer else None
        loss = logits.sum() if seen is None else logits.sum() + 3 * seen.sum()
        (got,) = torch.autograd.grad(loss * 1e-7, x)  # float16 knows nothing below 6e-8
        return got / 1e-7

    exact = slope(HookedModel(plain, layer), False)
    monkeypatch.setattr("gifthorse.search.hooks.half", lambda device: torch.float16)
    assert torch.allclose(slope(HookedModel(plain, layer), True), exact, rtol=0.05, atol=0.05)
