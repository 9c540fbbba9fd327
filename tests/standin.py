"""A CUDA card that is not there: tensors on the processor that claim to be on `cuda:0`.

Inside `standin()` every way of torch that this package knows to a card leads to a tensor whose
values lie in the processor's memory, whose device reads `cuda:0`, and which meets other tensors
under a card's rules. Where a card would refuse, RuntimeError (or TypeError for numpy) is raised:

- an operation on tensors of both devices, but a number (0 dimensions) of the processor may meet a
  tensor of the card in pointwise operations, never the other way round;
- indices of the card for a tensor of the processor (the other way round is allowed);
- a generator of the processor for random numbers on the card;
- a gradient that is not where its tensor is; `numpy()` of a tensor of the card.

What it is made of: a storage remembers where it claims to be, since all views of a tensor share it;
a dispatch mode sees every operation, those of backward passes too, checks its tensors and marks
what comes out; the properties and factories of torch that name a device are replaced. Factories
that torch calls from within (the zeros of a one-hot code) belong to either device until they meet
one. It is stricter than a card in one thing: a gradient that is a number is not moved to the other
device. What it cannot show: other rounding, operations that a card lacks, and time.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
EITHER = "either"  # made by torch itself on the way, and not yet in touch with any device
aten = torch.ops.aten

# Operations that copy from one device to the other.
COPIES = {aten.copy_, aten._foreach_copy_, aten._local_scalar_dense}
INDEXING = {
    aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index,
    aten._unsafe_index_put,
}  # fmt: skip
# Not pointwise by torch's own tags, yet a number of the processor may take part.
NUMBERS = {aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_, aten.fill_}
LIKES = ("zeros", "ones", "full", "empty", "rand", "randn", "randint")
METHODS = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


class Storages:
    """Where storages claim to be; one that is not in here is on the processor.

    A weak reference keeps the address of a dead storage from being given to another one.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, str]] = {}
        self._limit = 10_000

    def of(self, x: Tensor) -> str:
        """Return `cuda`, `either` or `cpu`."""
        storage = _storage(x)
        return "cpu" if storage is None else self._known.get(storage._cdata, (None, "cpu"))[1]

    def put(self, x: Tensor, where: str) -> Tensor:
        storage = _storage(x)
        if storage is None:
            return x
        if where == "cpu":
            self._known.pop(storage._cdata, None)
        else:
            self._known[storage._cdata] = (StorageWeakRef(storage), where)
        if len(self._known) > self._limit:
            alive = {k: v for k, v in self._known.items() if not v[0].expired()}
            self._known, self._limit = alive, max(10_000, 2 * len(alive))
        return x


def _storage(x: Tensor) -> Any:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    if x.layout != torch.strided or _true_device(x).type != "cpu":
        return None
    return x.untyped_storage()


_true_device: Callable[[Tensor], torch.device] = torch._C.TensorBase.device.__get__
_to, _type_as, _clone, _copied = Tensor.to, Tensor.type_as, Tensor.clone, Tensor.__deepcopy__
_numpy, _array = Tensor.numpy, Tensor.__array__
_grad: Any = torch._C.TensorBase.grad


PLACES = Storages()  # of all stand-ins, since what is cached outlasts one


class Card(TorchDispatchMode):
    """Checks every operation and marks what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.places = PLACES
        self.asked: str | None = None  # the device that a factory was called with

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in COPIES:
            return func(*args, **kwargs)
        where = self._met(func, args, kwargs)
        if where == "cuda" and any(
            isinstance(v, torch.Generator) for v in (*args, *kwargs.values())
        ):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and self.places.of(x) not in (where, "cuda"):
                self.places.put(x, where)
        return out

    def _met(self, func: Any, args: Any, kwargs: Any) -> str:
        """Return where the result lies; raise where a card would."""
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not given:
            return self.asked or EITHER
        if func.overloadpacket in INDEXING:
            return self._indexed(func, *args, *kwargs.values())
        lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
        if not str(func).startswith("aten._foreach") or not lists:
            return self._together(func, given)
        rest = [x for x in args if isinstance(x, Tensor)]
        found = {self._together(func, [*row, *rest]) for row in zip(*lists, strict=True)}
        return "cuda" if "cuda" in found else min(found)  # cpu before either

    def _together(self, func: Any, given: Sequence[Tensor]) -> str:
        places = [self.places.of(x) for x in given]
        if "cuda" not in places:
            return "cpu" if "cpu" in places else EITHER
        lax = torch.Tag.pointwise in func.tags or func.overloadpacket in NUMBERS
        lax |= str(func).startswith("aten._foreach")
        here = [x for x, place in zip(given, places, strict=True) if place == "cpu"]
        written = func._schema.is_mutable and places[0] == "cpu"
        if here and (written or not lax or any(x.ndim for x in here)):
            raise refusal(func)
        return "cuda"

    def _indexed(
        self, func: Any, itself: Tensor, indices: Sequence[Tensor | None], *rest: Any
    ) -> str:
        where, values = self.places.of(itself), [v for v in rest if isinstance(v, Tensor)]
        met = {self.places.of(x) for x in (*indices, *values) if x is not None}
        if where == EITHER and "cuda" in met:
            where = "cuda"
        if where == "cpu" and any(x is not None and self.places.of(x) == "cuda" for x in indices):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        for v in values:
            if {where, self.places.of(v)} == {"cuda", "cpu"} and (v.ndim or where == "cpu"):
                raise refusal(func)
        return where

    @contextmanager
    def asking(self, where: str) -> Iterator[None]:
        """Let factories make tensors here."""
        before, self.asked = self.asked, where
        try:
            yield
        finally:
            self.asked = before

    def moved(self, x: Tensor, where: str, *, copy: bool = False) -> Tensor:
        """Return the tensor on a device, itself if it is there already."""
        if _true_device(x).type != "cpu":
            return x
        now = "cpu" if self.places.of(x) == EITHER else self.places.of(x)
        if now == where and not copy:
            return x
        other = _Move.apply(x, self, where) if torch.is_grad_enabled() else _clone(x)
        return self.places.put(other, where)


class _Move(torch.autograd.Function):
    """A copy to another device, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, card: Card, where: str) -> Tensor:
        ctx.card, ctx.back = card, "cpu" if card.places.of(x) == EITHER else card.places.of(x)
        return card.places.put(_clone(x), where)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.card.moved(grads[0], ctx.back), None, None


def refusal(func: Any) -> RuntimeError:
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
        f"cpu! (when checking arguments of {func})"
    )


# What names a device in torch, replaced -----------------------------------------------------------


def named(device: Any) -> str | None:
    """Return `cuda` or `cpu`; None for anything else, which torch deals with itself."""
    if device is None or isinstance(device, Tensor | torch.dtype):
        return None
    kind = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if kind.type == "cuda" and kind.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return kind.type if kind.type in ("cuda", "cpu") else None


def factory(card: Card, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that makes tensors, of a card too."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Tensor:
        wanted = named(kwargs.get("device"))
        if kwargs.get("device") is not None and wanted is None:
            return make(*args, **kwargs)
        like = [x for x in args[:1] if isinstance(x, Tensor)]
        where = wanted or (card.places.of(like[0]) if like else "cpu")
        if wanted:
            kwargs["device"] = CPU
        with card.asking("cpu" if where == EITHER else where):
            out = make(*args, **kwargs)
        shared = [x for x in like if _storage(x) is not None and _storage(out) is not None]
        if any(_storage(x)._cdata == _storage(out)._cdata for x in shared):  # as_tensor
            return card.moved(out, where)
        return card.places.put(out, where)

    return made


def properties(card: Card) -> dict[str, Any]:
    """Return attributes of Tensor that say or change where it is."""

    def on_card(x: Tensor) -> bool:
        return card.places.of(x) == "cuda"

    def put_grad(x: Tensor, grad: Tensor | None) -> None:
        if grad is not None and x.device != grad.device:
            raise RuntimeError("assigned grad has data located on a different device")
        _grad.__set__(x, grad)

    move = mover(card)
    return {
        "device": property(lambda x: CUDA if on_card(x) else _true_device(x)),
        "is_cuda": property(on_card),
        "is_cpu": property(lambda x: not on_card(x) and _true_device(x).type == "cpu"),
        "get_device": lambda x: 0 if on_card(x) else -1,
        "grad": property(_grad.__get__, put_grad, _grad.__delete__),
        "to": move,
        "type_as": lambda x, other: move(_type_as(x, other), other),
        "cuda": lambda x, device=None, **_: card.moved(x, named(device) or "cuda"),
        "cpu": lambda x, **_: card.moved(x, "cpu"),
        "pin_memory": lambda x, *_: x,
        "numpy": guarded(card, _numpy),
        "__array__": guarded(card, _array),
        "__deepcopy__": lambda x, memo: card.places.put(_copied(x, memo), card.places.of(x)),
        **{name: factory(card, getattr(Tensor, name)) for name in METHODS},
    }


def mover(card: Card) -> Callable[..., Tensor]:
    """Return what takes the place of `Tensor.to`."""

    def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first = args[0] if args else kwargs.get("other", kwargs.get("device"))
        where = first.device.type if isinstance(first, Tensor) else named(first)
        if where not in ("cuda", "cpu"):
            return _to(x, *args, **kwargs)
        args = (first if isinstance(first, Tensor) else CPU, *args[1:])
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "other")}
        return card.moved(_to(x, *args, **kwargs), where)

    return to


def guarded(card: Card, plain: Any) -> Any:
    """Return a way to numpy that refuses tensors of the card."""

    def numpy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if card.places.of(x) == "cuda":
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        return plain(x, *args, **kwargs)

    return numpy


def machinery() -> dict[str, Any]:
    """Return functions of `torch.cuda` of a machine with one card."""
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "stand-in",
        "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": nothing,
        "empty_cache": nothing,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": nothing,
    }


@contextmanager
def standin() -> Iterator[None]:
    """Let this machine have a card, `cuda:0`, as far as tensors can tell."""
    # These look at all of torch when they are imported, and must see it as it is.
    import torch._dynamo

    card, start = Card(), torch.autocast.__init__

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        start(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    with ExitStack() as stack:
        for name, value in properties(card).items():
            stack.enter_context(patch.object(Tensor, name, value))
        for name, value in machinery().items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        names = {f.__name__ for f in _device_constructors()} | {f"{name}_like" for name in LIKES}
        for name in sorted(names & set(dir(torch))):
            stack.enter_context(patch.object(torch, name, factory(card, getattr(torch, name))))
        stack.enter_context(patch.object(torch.autocast, "__init__", autocast))
        stack.enter_context(card)
        yield
