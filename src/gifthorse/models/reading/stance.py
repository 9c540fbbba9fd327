"""Three words for three things: a file is hostile, damaged or not understood; or it brings code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gifthorse.core.types import Finding
from gifthorse.models.reading.ratings import Import, objects_alone


@dataclass(frozen=True)
class Stance:
    """What to think of a file.

    Attributes:
        safety: In words.
        advice: What to do next; empty if nothing speaks against the file.
        status: Exit status of `gifthorse inspect`: 1 for a finding, 2 for what cannot be examined.
    """

    safety: str
    advice: str
    status: int


FINE = Stance("weights only: nothing in it can run", "", 0)
_COMMANDS = Stance(
    "dangerous: opening it as usual would run commands",
    "Do not use this file. Do not open this file with torch.load or pickle.",
    1,
)
_HOSTILE = Stance(
    "hostile: it is made to exhaust or deceive its reader",
    "Do not use this file: it is not what it seems to be.",
    1,
)
_CODE = Stance(
    "brings code: opening it as usual would run it",
    "Do not open this file with torch.load or pickle; ask its author for safetensors.",
    1,
)
_UNJUDGED = Stance(
    "brings code: opening it as usual would run it; its weights are read here without it",
    "Do not open this file with torch.load or pickle; ask its author for safetensors.",
    1,
)
_ASIDE = Stance("weights, and Python objects beside them: plain values that run nothing", "", 0)
_OBJECTS = Stance(
    "brings Python objects beside its weights: plain values that run nothing",
    "Ask its author for the weights alone, best as safetensors.",
    2,
)
_UNSIGNED = Stance(
    "not what its signer signed, as far as can be told",
    "Get the model and its signature again from its author, and make sure of the key.",
    1,
)
_DAMAGED = Stance(
    "damaged: it is cut off, changed on its way, or no model at all",
    "Get the file again from its source and compare the hash.",
    2,
)
_UNKNOWN = Stance(
    "not understood: it may be fine, but it cannot be examined",
    "Bring it into a form that is known, as said above.",
    2,
)
# By rule, the gravest first.
_STANCES: Mapping[str, Stance] = {
    "FS001": _COMMANDS,
    "FS008": _HOSTILE,
    "FS004": _HOSTILE,
    "FS006": _HOSTILE,
    "FS002": _CODE,
    "FS010": _UNSIGNED,
    "FS003": _DAMAGED,
    "FS009": _UNKNOWN,
}
GRAVITY = tuple(_STANCES)


def stance(findings: Sequence[Finding], found: tuple[Import, ...] = ()) -> Stance:
    """Say what to think of a file with these findings, whose pickles ask for these names.

    Example:
        >>> stance([Finding("FS003", "HIGH", 1.0, "cut off")]).status
        2
    """
    rules = {f.rule for f in findings if f.severity in ("CRITICAL", "HIGH")}
    worst = next((rule for rule in GRAVITY if rule in rules), "")
    if worst == "FS002" and objects_alone(found):
        return _OBJECTS
    if worst:
        return _STANCES[worst]
    code = [f.severity for f in findings if f.rule == "FS002"]
    return FINE if not code else _UNJUDGED if "MEDIUM" in code else _ASIDE
