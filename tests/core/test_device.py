"""Choosing a device, on machines that are made up."""

from __future__ import annotations

import pytest
import torch

from gifthorse.core.device import available, choose, half
from gifthorse.core.errors import BadOption


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    cards, apple = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize(
    ("machine", "names", "auto"),
    [
        ((0, False), ("cpu",), "cpu"),
        ((0, True), ("cpu", "mps"), "mps"),
        ((2, False), ("cpu", "cuda:0", "cuda:1"), "cuda:0"),
        ((12, True), ("cpu", *(f"cuda:{n}" for n in range(12)), "mps"), "cuda:0"),
    ],
    indirect=["machine"],
)
def test_auto_takes_cuda_then_apple_then_the_processor(
    machine: None, names: tuple[str, ...], auto: str
) -> None:
    assert available() == names
    assert choose() == choose("auto") == torch.device(auto)
    assert [choose(name) for name in names] == [torch.device(name) for name in names]


@pytest.mark.parametrize("machine", [(2, False)], indirect=True)
def test_a_card_without_a_number_is_the_first(machine: None) -> None:
    assert choose("cuda") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("machine", "name", "words"),
    [
        ((0, False), "cuda", "there is no device cuda: .* here are cpu$"),
        ((0, False), "mps", "there is no device mps: .* here are cpu$"),
        ((1, False), "cuda:1", "there is no device cuda:1: .* here are cpu, cuda:0$"),
        ((1, True), "gpu", "no device is called 'gpu': expected auto, cpu, cuda, cuda:N or mps"),
        ((1, True), "cuda:", "no device is called 'cuda:'"),
        ((1, True), "cuda:-1", "no device is called 'cuda:-1'"),
        ((1, True), "", "no device is called ''"),
    ],
    indirect=["machine"],
)
def test_a_device_that_is_not_there_is_named_with_those_that_are(
    machine: None, name: str, words: str
) -> None:
    with pytest.raises(BadOption, match=words):
        choose(name)


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"),
    [
        (True, (9, 0), torch.bfloat16),
        (False, (7, 5), torch.float16),
        (False, (6, 1), None),
    ],
)
def test_a_card_computes_in_the_16_bits_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
    bf16: bool,
    capability: tuple[int, int],
    expected: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert half(torch.device("cuda", 0)) == expected


@pytest.mark.parametrize("amx", [False, True])
def test_a_processor_computes_in_bfloat16_if_it_has_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert half(torch.device("cpu")) == (torch.bfloat16 if amx else None)
    assert half(torch.device("mps")) is None
