"""The stand-in for a card, held against what PyTorch documents of cards."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from tests.standin import standin
from torch import Generator, Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.optim import SGD, Adam

MIXED = "Expected all tensors to be on the same device"


@pytest.fixture(autouse=True)
def _card() -> Iterator[None]:
    with standin():
        yield


def card(*size: int) -> Tensor:
    return torch.rand(*size).to("cuda")


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )


def test_tensors_say_where_they_are() -> None:
    x = torch.zeros(2)
    assert (x.device, x.is_cuda, x.is_cpu, x.get_device()) == (torch.device("cpu"), False, True, -1)
    y = x.to("cuda")
    assert (y.device, y.is_cuda, y.is_cpu, y.get_device()) == (
        torch.device("cuda", 0), True, False, 0,
    )  # fmt: skip
    assert y.to("cuda:0") is y
    assert x.to("cpu") is x
    assert y.cpu().device.type == "cpu"
    assert y.cpu().data_ptr() != y.data_ptr()
    assert "cuda:0" in repr(y)


PLACES: dict[str, Callable[[], Tensor]] = {
    "to": lambda: torch.ones(2).to("cuda"),
    "to_keyword": lambda: torch.ones(2).to(device=torch.device("cuda"), dtype=torch.float64),
    "to_other": lambda: torch.ones(2).to(card(1)),
    "to_type": lambda: card(2).to(torch.float64),
    "type_as": lambda: torch.ones(2).type_as(card(1)),
    "cuda": lambda: torch.ones(2).cuda(),
    "zeros": lambda: torch.zeros(2, device="cuda"),
    "tensor": lambda: torch.tensor([1.0], device=torch.device("cuda")),
    "as_tensor": lambda: torch.as_tensor(torch.ones(2), device="cuda"),
    "arange": lambda: torch.arange(3, device="cuda:0"),
    "like": lambda: torch.rand_like(card(2)),
    "new": lambda: card(2).new_zeros(3),
    "view": lambda: card(4).view(2, 2).T[1],
    "sum": lambda: card(4).sum(),
    "one_hot": lambda: F.one_hot(torch.arange(3).cuda(), 3),
    "copy": lambda: deepcopy(card(2)),
    "detach": lambda: card(2).requires_grad_().detach(),
    "quantile": lambda: torch.quantile(card(5), 0.5),
    "where": lambda: torch.where(card(3) > 0.5, 1.0, 0.0),
    "cat": lambda: torch.cat([card(1), card(2)]),
    "masked": lambda: card(4)[torch.tensor([True, False, True, False])],
}


@pytest.mark.parametrize("name", PLACES)
def test_what_comes_of_the_card_is_there(name: str) -> None:
    assert PLACES[name]().device == torch.device("cuda", 0)


HERE: dict[str, Callable[[], Tensor]] = {
    "cpu": lambda: card(2).cpu(),
    "to": lambda: card(2).to("cpu", torch.float64),
    "like": lambda: torch.zeros_like(card(2), device="cpu"),
    "new": lambda: card(2).new_zeros(2, device="cpu"),
    "copy_": lambda: torch.zeros(2).copy_(card(2)),
    "shape": lambda: torch.zeros(card(3).shape),
    "item": lambda: torch.tensor(card(1).item()),
    "one_hot": lambda: F.one_hot(torch.arange(3), 3),
}


@pytest.mark.parametrize("name", HERE)
def test_what_comes_of_the_processor_is_there(name: str) -> None:
    assert HERE[name]().device == torch.device("cpu")


ALLOWED: dict[str, Callable[[], object]] = {
    "a number of the processor": lambda: card(2) * torch.tensor(2.0),
    "a number in a place": lambda: card(2).add_(torch.tensor(1.0)),
    "a filling number": lambda: card(2).masked_fill(card(2) > 0.5, torch.tensor(0.0)),
    "indices of the processor": lambda: card(3)[torch.tensor([2, 0])],
    "setting by them": lambda: card(3).index_put_((torch.tensor([1]),), card(1)),
    "assigning to a slice": lambda: card(3)[:2].copy_(torch.ones(2)),
    "loading": lambda: net().cuda().load_state_dict(net().state_dict()),
    "a scalar of both": lambda: torch.maximum(card(1).sum(), torch.tensor(0.5)),
}
REFUSED: dict[str, Callable[[], object]] = {
    "sum": lambda: card(2) + torch.ones(2),
    "sum the other way": lambda: torch.ones(2) + card(2),
    "number of the card": lambda: torch.ones(2) * card(1).sum(),
    "in place": lambda: torch.ones(2).mul_(card(2)),
    "in place a number": lambda: torch.tensor(1.0).add_(card(1).sum()),
    "product": lambda: card(2, 2) @ torch.ones(2, 2),
    "cat": lambda: torch.cat([card(2), torch.ones(2)]),
    "where": lambda: torch.where(torch.ones(2) > 0, card(2), card(2)),
    "convolution": lambda: net().cuda()(torch.rand(1, 3, 6, 6)),
    "loss": lambda: F.cross_entropy(card(2, 3), torch.tensor([0, 1])),
    "gather": lambda: card(2, 2).gather(0, torch.zeros(1, 2).long()),
    "index_select": lambda: card(3).index_select(0, torch.tensor([1])),
    "embedding": lambda: F.embedding(torch.tensor([0]), card(3, 2)),
    "put values": lambda: card(3).index_put_((torch.tensor([1, 2]),), torch.ones(2)),
    "equal": lambda: torch.equal(card(2), torch.ones(2)),
    "grid": lambda: F.grid_sample(card(1, 1, 4, 4), torch.zeros(1, 2, 2, 2), align_corners=True),
    "foreach": lambda: torch._foreach_add([card(2)], [torch.ones(2)]),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_card_accepts_is_accepted(name: str) -> None:
    ALLOWED[name]()


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_of_two_devices_do_not_meet(name: str) -> None:
    with pytest.raises(RuntimeError, match=MIXED):
        REFUSED[name]()


def test_indices_of_the_card_are_not_for_the_processor() -> None:
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        torch.ones(3)[torch.tensor([1]).cuda()]
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        torch.ones(3)[torch.tensor([True, False, True]).cuda()] = 1.0


def test_generators_of_the_processor_draw_nothing_on_the_card() -> None:
    rng = Generator().manual_seed(0)
    for draw in (
        lambda: torch.rand(2, generator=rng, device="cuda"),
        lambda: torch.randperm(3, generator=rng, device="cuda"),
        lambda: card(2).uniform_(generator=rng),
        lambda: torch.multinomial(card(2), 1, generator=rng),
    ):
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            draw()
    assert torch.rand(2, generator=rng).to("cuda").is_cuda
    with pytest.raises(RuntimeError):
        Generator(device="cuda")  # the stand-in has none, so none may be asked for


def test_numpy_is_for_the_processor() -> None:
    for ask in (lambda x: x.numpy(), np.asarray):
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            ask(card(2))
        assert ask(card(2).cpu()).shape == (2,)


def test_another_card_is_not_there() -> None:
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(1).to("cuda:1")


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_a_net_learns_as_on_the_processor(optimizer: Any) -> None:
    start, x, y = net(), torch.rand(6, 3, 6, 6), torch.arange(6) % 5
    after = []
    for where in ("cpu", "cuda"):
        model: Any = deepcopy(start).to(where)
        model = model.to(memory_format=torch.channels_last)
        moved = optimizer(model.parameters(), lr=0.1)
        for _ in range(3):
            moved.zero_grad()
            F.cross_entropy(model(x.to(where)), y.to(where)).backward()
            moved.step()
        assert {t.device.type for t in model.state_dict().values()} == {where}
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert {g.device.type for g in grads} == {where}
        after.append([p.detach().cpu() for p in model.parameters()])
    for here, there in zip(*after, strict=True):
        assert torch.allclose(here, there, atol=1e-5)


def test_gradients_come_back_over_a_move() -> None:
    x = torch.ones(2, requires_grad=True)
    (x.cuda() * card(2)).sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == "cpu"
    with pytest.raises(RuntimeError, match="different device"):
        x.grad = card(2)
    (got,) = torch.autograd.grad((x.cuda() ** 2).sum(), x, create_graph=True)
    assert got.tolist() == [2, 2]


def test_hooks_autocast_functional_calls_and_graphs_work() -> None:
    model, x, seen = net().eval().cuda(), card(2, 3, 6, 6), list[Tensor]()
    model[0].register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.autocast("cuda", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert seen[0].is_cuda
    assert seen[0].dtype == torch.bfloat16
    scaled = {k: v * 2 for k, v in model.named_parameters()}
    assert functional_call(model, scaled, (x,)).is_cuda
    with pytest.raises(RuntimeError, match=MIXED):
        functional_call(model, {k: v.cpu() for k, v in scaled.items()}, (x,))
    assert torch.allclose(fx.symbolic_trace(model)(x), model(x))
    assert vmap(lambda row: row.sum())(card(3, 2)).is_cuda


def test_a_file_holds_the_values() -> None:
    state = {k: v.contiguous() for k, v in net().cuda().state_dict().items()}
    back = load(save(state))
    assert {t.device.type for t in back.values()} == {"cpu"}
    assert all(torch.equal(back[k], v.cpu()) for k, v in state.items())
    assert pickle.loads(pickle.dumps(card(2).cpu())).device.type == "cpu"


def test_a_card_is_found_and_gone_again() -> None:
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1
    x = card(2)
    with torch.random.fork_rng(devices=[0]):
        torch.manual_seed(1)
    assert x.is_cuda


def test_outside_everything_is_as_it_was() -> None:
    plain = torch.zeros
    assert plain.__wrapped__ is not plain  # type: ignore[attr-defined]
    with standin():
        pass
    assert torch.zeros is plain
