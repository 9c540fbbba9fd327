"""What a checkpoint holds, and which part of it is the net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gifthorse.core.errors import UnreadableModel

T = TypeVar("T")


def shown(text: str, limit: int = 200) -> str:
    """Return text from a file, fit to print: one line, no control or bidi marks, cut at `limit`.

    Example:
        >>> shown("a" + chr(27) + "[2J")
        'a?[2J'
    """
    cut = text[:limit] + "..." * (len(text) > limit)
    return "".join(c if c.isprintable() else "?" for c in cut)


# Keys under which training scripts put the net, the plain weights before their average.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "net_state_dict",
    "state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "classifier",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
)

# What wrappers of modules put before every name: DataParallel, torch.compile, Lightning ...
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "backbone.",
    "_model.",
    "classifier.",
)

# Data types that can be cast to float32 or kept; all others are refused by name.
_PLAIN = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
PLAIN = frozenset(_PLAIN.split())


@dataclass(frozen=True)
class CheckpointEntry:
    """One leaf of a checkpoint.

    Attributes:
        path: Keys from the outermost container to the leaf.
        type: Data type of a tensor, e.g. `float32` or `quantized qint8`; else a type's name.
        shape: Of a tensor; None for everything else.
    """

    path: tuple[str, ...]
    type: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Chosen:
    """The entries of one state dict inside a checkpoint.

    Attributes:
        entries: Tensors by name, in the file's order.
        wrappers: Keys that were opened on the way, outermost first.
        notes: The same and what was left aside, in words.
    """

    entries: Mapping[str, CheckpointEntry]
    wrappers: tuple[str, ...]
    notes: tuple[str, ...]


def choose(entries: Sequence[CheckpointEntry]) -> Chosen:
    """Return the tensors of the innermost state dict, opening known wrappers.

    Raises:
        UnreadableModel: If there is no tensor, or no telling which of several parts is the net.

    Example:
        >>> weight = CheckpointEntry(("state_dict", "fc.weight"), "float32", (2, 3))
        >>> chosen = choose([weight, CheckpointEntry(("epoch",), "int")])
        >>> list(chosen.entries), chosen.notes
        (['fc.weight'], ("opened the wrapper 'state_dict'", "left aside: 'epoch' (int)"))
    """
    wrappers: list[str] = []
    notes: list[str] = []
    inside = list(entries)
    while (key := _wrapper(inside, len(wrappers))) is not None:
        aside = [e for e in inside if e.path[len(wrappers)] != key]
        inside = [e for e in inside if e.path[len(wrappers)] == key]
        notes.append(f"opened the wrapper {shown(key)!r}")
        notes.extend(_aside(aside, len(wrappers)))
        wrappers.append(key)
    depth = len(wrappers)
    direct = {e.path[-1]: e for e in inside if len(e.path) == depth + 1 and e.shape is not None}
    if not direct:
        raise UnreadableModel(
            "the file holds no weights: found "
            f"{', '.join(_counts(entries, 0)) or 'nothing'}; expected a state dict of tensors",
            rule="FS003",
        )
    notes.extend(_aside([e for e in inside if e.path[-1] not in direct], depth))
    return Chosen(direct, tuple(wrappers), tuple(notes))


def _wrapper(entries: Sequence[CheckpointEntry], depth: int) -> str | None:
    """Return the key to open next at this depth; None if the tensors lie here."""
    tensors = [e for e in entries if e.shape is not None and len(e.path) > depth]
    deeper = dict.fromkeys(e.path[depth] for e in tensors if len(e.path) > depth + 1)
    known = next((key for key in WRAPPERS if key in deeper), None)
    if known is not None:
        return known
    if any(len(e.path) == depth + 1 for e in tensors):
        return None
    if len(deeper) > 1:
        names = ", ".join(repr(shown(name)) for name in list(deeper)[:8])
        raise UnreadableModel(
            f"the file holds several groups of tensors ({names}), none under a usual name; "
            'keep the one that is the net: torch.save(model.state_dict(), "weights.pt")',
            rule="FS003",
        )
    return next(iter(deeper), None)


def _counts(entries: Sequence[CheckpointEntry], depth: int) -> list[str]:
    """Describe the keys at this depth: `'optimizer' (12 tensors)`, `'epoch' (int)`."""
    groups: dict[str, list[CheckpointEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.path[depth] if len(entry.path) > depth else "", []).append(entry)
    words = []
    for key, group in groups.items():
        tensors = sum(e.shape is not None for e in group)
        what = group[0].type if len(group) == 1 else f"{len(group)} values"
        words.append(f"{shown(key)!r} ({f'{tensors} tensor(s)' if tensors else what})")
    return words[:8] + [f"{len(words) - 8} more"] * (len(words) > 8)


def _aside(entries: Sequence[CheckpointEntry], depth: int) -> list[str]:
    return [f"left aside: {', '.join(_counts(entries, depth))}"] if entries else []


def variants(state: Mapping[str, T]) -> Iterator[tuple[Mapping[str, T], tuple[str, ...]]]:
    """Yield the state as it is, then with each prefix stripped that all names share.

    Yields:
        The state under shorter and shorter names, and the notes on what was stripped.

    Example:
        >>> [(list(state), notes) for state, notes in variants({"module.fc.weight": 1})][-1]
        (['fc.weight'], ("stripped the prefix 'module.' from all names",))
    """
    notes: tuple[str, ...] = ()
    yield state, notes
    while (prefix := next((p for p in PREFIXES if _shared(state, p)), None)) is not None:
        state = {name[len(prefix) :]: value for name, value in state.items()}
        notes = (*notes, f"stripped the prefix {prefix!r} from all names")
        yield state, notes


def _shared(state: Mapping[str, T], prefix: str) -> bool:
    return bool(state) and all(name.startswith(prefix) and name != prefix for name in state)
