"""A trigger with its goal as one line of text, so that an option or a JSON result can hold it."""

from __future__ import annotations

import base64
import binascii
import json
import zlib

from safetensors.torch import save as to_bytes

from gifthorse.core.errors import BadOption
from gifthorse.core.isolated.tensors import from_bytes
from gifthorse.core.types import Goal, Trigger
from gifthorse.triggers.storage import DAMAGED, pack, unpack

MOST = 2**26  # bytes that a text may unfold to: a trigger of 2048 x 2048 in color takes 50 MB


def packed(trigger: Trigger, goal: Goal) -> str:
    """Return a trigger and its goal as text: safetensors, deflated, in base64.

    Raises:
        BadOption: If the trigger is of a kind that cannot be saved.

    Example:
        >>> from gifthorse.triggers import square
        >>> from torch import Generator
        >>> white = square((3, 32, 32), 3, "lower_right", "white", 1.0, Generator())
        >>> len(packed(white, Goal(14))) < 500
        True
    """
    tensors, claims = pack(trigger)
    told = json.loads(claims["trigger"]) | {"goal": {"target": goal.target, "source": goal.source}}
    # One entry only: safetensors writes several in an order that differs from run to run.
    claims = {"trigger": json.dumps(told)}
    whole = to_bytes({name: t.cpu().contiguous() for name, t in tensors.items()}, claims)
    return base64.b64encode(zlib.compress(whole, 9)).decode("ascii")


def unpacked(text: str) -> tuple[Trigger, Goal]:
    """Return the trigger and the goal that `packed` put into text.

    Raises:
        BadOption: If the text is something else, or unfolds to more than 64 MiB.
    """
    try:
        whole = _inflated(base64.b64decode(text, validate=True))
        tensors, claims = from_bytes(whole, "it")
        goal = json.loads(claims["trigger"])["goal"]
        source = goal["source"]
        known = Goal(int(goal["target"]), None if source is None else int(source))
        return unpack(tensors, claims), known
    except (*DAMAGED, binascii.Error, zlib.error) as error:
        raise BadOption(
            f"no trigger is packed in {text[:20]!r} ({error}): take the text from the JSON result "
            "of a scan, findings, trigger, packed"
        ) from error


def _inflated(folded: bytes) -> bytes:
    unfolding = zlib.decompressobj()
    whole = unfolding.decompress(folded, MOST)
    if not unfolding.eof:
        raise BadOption("it is cut off, or unfolds to more than 64 MiB")
    return whole
