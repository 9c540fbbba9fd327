"""Triggers as tensors and text, so that a file can hold any of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, GifthorseError, UnknownMethod, UsageError
from gifthorse.core.isolated.tensors import from_file
from gifthorse.core.types import Trigger
from gifthorse.triggers.developed import Developed
from gifthorse.triggers.filters import ColorFilter
from gifthorse.triggers.generated import Autoencoder, Generated
from gifthorse.triggers.patch import Additive, Patch, Wandering
from gifthorse.triggers.polygon import Confined
from gifthorse.triggers.reflection import Reflection
from gifthorse.triggers.stego import LowBits
from gifthorse.triggers.warp import Warp

_ALL = (
    *(Additive, Confined, ColorFilter, Developed, Generated, LowBits, Patch, Reflection),
    *(Wandering, Warp),
)
KINDS: dict[str, type] = {kind.__name__: kind for kind in _ALL}
KINDS["Filter"] = ColorFilter  # what files of version 0.1 call it


MOST = 4096  # of any number in a file, which are pixels, cells, or factors near 1

# Types of fields that are kept as JSON; all others are objects that tensors are made into.
_PLAIN: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str}

# What a file that is damaged, or made up, can raise on its way into a trigger.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    OverflowError,
    MemoryError,
    LookupError,
    GifthorseError,
)


def pack(trigger: Trigger) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a trigger, and its kind, numbers and words as metadata.

    Args:
        trigger: A dataclass of tensors, numbers, words and generators, whose kind is in `KINDS`.

    Raises:
        BadOption: If it is of another kind, or has a field that cannot be kept.
    """
    kind = type(trigger).__name__
    if KINDS.get(kind) is not type(trigger):
        raise BadOption(f"a trigger of kind {kind} cannot be saved; known: {', '.join(KINDS)}")
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for field in fields(trigger):  # type: ignore[arg-type]
        value = getattr(trigger, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value.detach()
        elif isinstance(value, Generator):
            tensors[field.name] = value.get_state()
        elif isinstance(value, Autoencoder):
            tensors |= {f"{field.name}.{key}": t for key, t in value.state_dict().items()}
        elif isinstance(value, bool | int | float | str):
            plain[field.name] = value
        else:
            raise BadOption(f"{kind}.{field.name} is a {type(value).__name__}: it cannot be saved")
    return tensors, {"trigger": json.dumps({"kind": kind, "fields": plain})}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Trigger:
    """Return the trigger that `pack` took apart; files without a kind hold a patch.

    Raises:
        UnknownMethod: If there is no such kind.
        BadOption: If fields are missing, left over or of the wrong type.
    """
    claims = json.loads(metadata.get("trigger", '{"kind": "Patch"}'))
    kind, plain = str(claims.get("kind")), claims.get("fields", {})
    if kind not in KINDS:
        raise UnknownMethod.among("trigger", kind, KINDS)
    wanted = {field.name: str(field.type) for field in fields(KINDS[kind])}
    given: dict[str, Any] = {**plain, **tensors}
    for name in [name for name, kept in wanted.items() if kept == "nn.Module"]:
        own = {k: v for k, v in tensors.items() if k.startswith(f"{name}.")}
        given = {k: v for k, v in given.items() if k not in own}
        given[name] = Autoencoder.like({k.removeprefix(f"{name}."): v for k, v in own.items()})
    if set(given) != set(wanted):
        found = ", ".join(list(given)[:9]) or "nothing"
        raise BadOption(f"a {kind} has {', '.join(wanted)}; the file has {found}")
    for name, value in given.items():
        if wanted[name] == "Generator":
            given[name] = Generator()
            given[name].set_state(value)
        elif isinstance(value, int | float) and not abs(value) <= MOST:
            raise BadOption(f"{kind}.{name} must be at most {MOST:,}; the file has {value:.9g}")
        elif not isinstance(value, _PLAIN.get(wanted[name], object)) or (
            isinstance(value, Tensor) != (wanted[name] == "Tensor")
        ):
            raise BadOption(f"{kind}.{name} must be a {wanted[name]}; the file has {value!r:.40}")
    return cast(Trigger, KINDS[kind](**given))


def open_trigger(path: Path) -> Trigger:
    """Read a trigger file that `gifthorse attack` wrote.

    Raises:
        UsageError: If it is something else.
    """
    return open_claims(path)[0]


def open_claims(path: Path) -> tuple[Trigger, Mapping[str, str]]:
    """Read a trigger file, and what its metadata claim.

    Raises:
        UsageError: If it is something else.
    """
    try:
        tensors, claims = from_file(path, "it")
        return unpack(tensors, claims), claims
    except DAMAGED as error:
        raise UsageError(f"{path} is no trigger file of gifthorse: {error}") from error
