"""Which part of a checkpoint is the net, and what lies beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod

from gifthorse.core.errors import SeveralNets, UnreadableModel, UsageError
from gifthorse.models.architectures import Guess, Shapes
from gifthorse.models.reading.entries import CheckpointEntry, shown

Tensors = Mapping[str, CheckpointEntry]

LEVELS = 8  # of wrappers and prefixes that are looked into
LEAST = 4  # tensors of a part that may be a net
LONGEST = 1000  # characters of a name
MANY = 32  # parts that are whole nets; of more, none is looked at closely

# Keys and prefixes under which training scripts put the net; where no architecture is known, the
# way leads through these.
_WRAPPERS = (
    "state_dict model_state_dict net_state_dict state model net network module weights params "
    "classifier _model backbone _orig_mod"
)
WRAPPERS = frozenset(_WRAPPERS.split())
# What wrappers of modules put between the parts of a name: DataParallel, torch.compile, FSDP.
_INNER = (
    "module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module _flat_module"
)
INNER = frozenset(_INNER.split())
# What modules are called that hold a trunk whose head lies beside them.
_TRUNKS = ("model", "net", "network", "backbone", "encoder", "trunk")
_TRUNK = re.compile(rf"^(?:{'|'.join(_TRUNKS)})\.")
# Some keep the layers before the head in a box of its own, and the head in another.
_FEATURES = re.compile(r"^features\.(?!\d)")
_HEAD = re.compile(r"^(?:classifier|cls_head|head)\.(?=(?:fc|linear|classifier|head)\.)")
# The official files of DenseNet are older than the names of its layers: `norm.1` is `norm1`.
_OLD = re.compile(r"(\bdenselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

_ODD = re.compile(
    rf"(?:^|\.)(?:{'|'.join((*INNER, *_TRUNKS))})\.|{_OLD.pattern}|\.?{_HEAD.pattern[1:]}"
)

# Parts that are copies of the net for the sake of its training, and averages of its weights.
AIDS = frozenset({"attacker", "optimizer", "criterion", "loss", "discriminator", "lr_scheduler"})
AVERAGES = frozenset(["average", "averaged", "avg", "ema", "ewa", "polyak", "shadow", "swa"])


@dataclass(frozen=True)
class Chosen:
    """The tensors of a checkpoint that are the net.

    Attributes:
        entries: Tensors by the names that the net has for them, in the file's order.
        wrappers: Keys that were opened on the way, outermost first.
        notes: The same, what was stripped and what was left aside, in words.
        fit: The architecture that they are; None if none fits.
        normalization: Mean and std of a normalization that is stored beside the net.
    """

    entries: Tensors
    wrappers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fit: Guess | None = None
    normalization: tuple[CheckpointEntry, CheckpointEntry] | None = None


class _Shapes(Mapping[str, tuple[int, ...]]):
    """The shapes of entries, without a copy of them."""

    def __init__(self, names: Tensors) -> None:
        self._names = names

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._names[name].shape or ()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class _Part:
    """Tensors of a file whose full names begin alike; `names` maps the rest to them."""

    prefix: str
    names: Tensors
    fit: Guess | None = None

    @property
    def path(self) -> list[str]:
        """The parts of the prefix."""
        return self.prefix.split(".")[:-1]


def choose(
    entries: Sequence[CheckpointEntry],
    fits: Callable[[Shapes], Guess | None],
    part: str | None = None,
) -> Chosen:
    """Return the tensors that are the net: those that fit an architecture, wherever they lie.

    Args:
        entries: All leaves of a checkpoint.
        fits: Which architecture tensors of these names and shapes are, maybe with others beside.
        part: Name of the part to look at, of a file that holds several nets.

    Raises:
        UnreadableModel: If there is no tensor.
        SeveralNets: If several parts are whole nets, and none is named.
        UsageError: If there is no part of that name.

    Example:
        >>> weight = CheckpointEntry(("state_dict", "fc.weight"), "float32", (2, 3))
        >>> chosen = choose([weight, CheckpointEntry(("epoch",), "int")], lambda shapes: None)
        >>> list(chosen.entries), chosen.notes
        (['fc.weight'], ("opened the wrapper 'state_dict'", "left aside: 'epoch' (int)"))
    """
    named = _named(entries, part)
    if not named:
        raise UnreadableModel(
            f"the file holds no weights: found {', '.join(_counts(entries)) or 'nothing'}; "
            "expected a state dict of tensors",
            rule="FS009",
        )
    whole = [f for p in _parts(named) if (f := _fitted(p, fits)) is not None]
    ways = [_renamed] if any(map(_ODD.search, named)) else []
    for way in [*ways, _unboxed] if ways and any("features." in name for name in named) else ways:
        whole = whole or [f for p in _parts(named) if (f := _fitted(p, fits, way)) is not None]
    if whole:
        best, why = _best(whole)
    else:
        best, why = _likely(named), ()
    return _chosen(entries, best, why)


def _named(entries: Sequence[CheckpointEntry], part: str | None) -> Tensors:
    """Return the tensors by full name; two of one name are no part of a net."""
    tensors = [e for e in entries if e.shape is not None and sum(map(len, e.path)) < LONGEST]
    counts = Counter(".".join(e.path) for e in tensors)
    named = {name: e for e in tensors if counts[name := ".".join(e.path)] == 1}
    if part is None or not named:
        return named
    inside = {n: e for n, e in named.items() if f".{n}".find(f".{part.strip('.')}.") >= 0}
    if not inside:
        tops = list(dict.fromkeys(name.partition(".")[0] for name in named))
        raise UsageError(
            f"the file has no part {part!r}; it begins with: "
            f"{', '.join(shown(top, 40) for top in tops[:8])}{', ...' * (len(tops) > 8)}"
        )
    return inside


def _parts(named: Tensors) -> Iterator[_Part]:
    """Yield all tensors, then those below each prefix that several share, outermost first."""
    stack = [_Part("", named)]
    while stack:
        part = stack.pop()
        yield part
        if len(part.path) < LEVELS:
            below = ((top, names) for top, names in _below(part).items() if len(names) >= LEAST)
            stack += [_Part(f"{part.prefix}{top}.", names) for top, names in below][::-1]


def _below(part: _Part) -> dict[str, dict[str, CheckpointEntry]]:
    """Return the tensors below each first part of their names."""
    groups: dict[str, dict[str, CheckpointEntry]] = {}
    for name, entry in part.names.items():
        top, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(top, {})[rest] = entry
    return groups


def _fitted(
    part: _Part,
    fits: Callable[[Shapes], Guess | None],
    renamed: Callable[[str], str] | None = None,
) -> _Part | None:
    """Return the tensors of a part that are a whole net; None if no architecture fits them."""
    names = part.names
    if renamed is not None:
        names = {renamed(name): entry for name, entry in names.items()}
        if names.keys() == part.names.keys() or len(names) < len(part.names):
            return None
    fit = fits(_Shapes(names))
    if fit is None:
        return None
    own = {name: entry for name, entry in names.items() if name in fit.shapes}
    return replace(part, names=own, fit=fit)


def _renamed(name: str) -> str:
    """Return a name as the net itself has it, without what wrappers put into it."""
    bare = ".".join(key for key in name.split(".") if key not in INNER)
    return _OLD.sub(r"\1\2", _HEAD.sub("", _TRUNK.sub("", bare)))


def _unboxed(name: str) -> str:
    """Return a name as `_renamed` does, without a box around all layers before the head, too."""
    return _FEATURES.sub("", _renamed(name))


# 1. Several whole nets ------------------------------------------------------------------------


def _best(whole: Sequence[_Part]) -> tuple[_Part, tuple[str, ...]]:
    """Return the net among parts that are whole nets, and why it is that one.

    Raises:
        SeveralNets: If there is no telling.
    """
    if len(whole) > MANY:
        raise _several(whole[:MANY])
    apart = [p for p in whole if not any(_inside(p, other) for other in whole)]
    plain = [p for p in apart if not AIDS & set(p.path)] or apart
    first = {tuple(e.place or id(e) for e in p.names.values()): p for p in reversed(plain)}
    left = [p for p in plain if p in first.values()]
    averages = [p for p in left if _is_average(p)]
    if len(averages) == 1 and len({(p.fit.arch, p.fit.classes) for p in left if p.fit}) == 1:
        raw = [p for p in left if p is not averages[0]]
        names = _short(left)
        told = f"took the averaged weights {names[averages[0].prefix]!r}, which training deploys"
        others = ", ".join(f"--part {names[p.prefix]}" for p in raw if names[p.prefix])
        return averages[0], (f"{told}; for the raw ones: {others}" if others else told,)
    outer = [p for p in left if all(other.prefix.startswith(p.prefix) for other in left)]
    left = outer or left
    if len(left) > 1:
        raise _several(left)
    return left[0], ()


def _inside(part: _Part, other: _Part) -> bool:
    """Whether a net is a part of a larger one, such as the host of a net that may overrule it."""
    if part is other or len(part.names) >= len(other.names):
        return False
    return {e.path for e in part.names.values()} <= {e.path for e in other.names.values()}


def _is_average(part: _Part) -> bool:
    words = (w.lower() for key in part.path for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key))
    return not AVERAGES.isdisjoint(words)


def _short(parts: Sequence[_Part]) -> dict[str, str]:
    """Return the shortest beginnings of prefixes that tell parts apart."""
    for count in range(1, LEVELS + 2):
        names = {p.prefix: ".".join(p.path[:count]) for p in parts}
        if len(set(names.values())) == len(parts):
            break
    return names


def _several(parts: Sequence[_Part]) -> SeveralNets:
    fits = [p.fit for p in parts]
    names = [shown(name, 60) for name in _short(parts).values()]
    told = ", ".join(f"{n!r} ({f.arch})" for n, f in zip(names[:8], fits, strict=False) if f)
    return SeveralNets(
        f"the file holds {len(parts)} whole nets: {told}{', ...' * (len(parts) > 8)}. Say which "
        f"is to be examined, such as --part {names[0]}"
    )


# 2. No whole net ------------------------------------------------------------------------------


def _likely(named: Tensors) -> _Part:
    """Return the part that is most likely meant for a net, by the usual names of wrappers.

    Raises:
        SeveralNets: If several parts might be meant.
    """
    part = _Part("", named)
    while len(part.path) < LEVELS:
        below, depth = _below(part), len(part.path)
        boxes = [top for top in below if all(len(e.path) > depth + 1 for e in below[top].values())]
        usual = [top for top in boxes if top in WRAPPERS]
        loose = any(len(e.path) == depth + 1 for e in part.names.values())
        if not usual and len(boxes) > 1 and not loose:
            raise _unclear(boxes)
        shared = [top for top in below if len(below[top]) == len(part.names) and top in WRAPPERS]
        ways = usual or shared or (boxes if not loose else [])
        if not ways:
            break
        largest = max(ways, key=lambda top: len(below[top]))
        part = _Part(f"{part.prefix}{largest}.", below[largest])
    return part


def _unclear(boxes: Sequence[str]) -> SeveralNets:
    names = ", ".join(repr(shown(top, 60)) for top in boxes[:8])
    return SeveralNets(
        f"the file holds several groups of tensors ({names}), and no known architecture fits one "
        f"of them: say which is the net, such as --part {shown(boxes[0], 60)}, and name its "
        "architecture with --arch"
    )


# 3. In words ----------------------------------------------------------------------------------


def _chosen(entries: Sequence[CheckpointEntry], part: _Part, why: tuple[str, ...]) -> Chosen:
    """Return a part with what was opened, stripped and left aside on the way to it."""
    paths = {e.path for e in part.names.values()}
    wrappers = _shared(min(paths), max(paths))
    opened = [f"opened the wrapper {shown(key)!r}" for key in wrappers]
    stripped = part.prefix.removeprefix("".join(f"{key}." for key in wrappers))
    aside = [e for e in entries if e.path not in paths]
    beside = [e for e in aside if e.path[: len(wrappers)] == wrappers and e.shape is not None]
    scope = "its" if beside else "all"
    full = [name for name, e in part.names.items() if not ".".join(e.path).endswith(name)]
    notes = [
        *opened,
        *([f"left aside: {', '.join(_counts(aside, part.prefix))}"] if aside else []),
        *([f"stripped the prefix {shown(stripped)!r} from {scope} names"] if stripped else []),
        *([f"renamed {len(full)} tensors, such as {shown(full[0])!r}"] if full else []),
        *why,
    ]
    return Chosen(part.names, wrappers, tuple(notes), part.fit, _normalization(aside, part.fit))


def _shared(first: tuple[str, ...], last: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys that two paths begin with, without the last of either."""
    keys = zip(first[:-1], last[:-1], strict=False)
    same = [key for key, _ in takewhile(lambda pair: pair[0] == pair[1], keys)]
    return tuple(same)


def _counts(entries: Iterable[CheckpointEntry], prefix: str = "") -> list[str]:
    """Describe entries by where they part from a prefix: `'optimizer' (12 tensors)`."""
    groups: dict[str, list[CheckpointEntry]] = {}
    for entry in entries:
        groups.setdefault(_group(entry, prefix), []).append(entry)
    words = []
    for key, group in groups.items():
        tensors = sum(e.shape is not None for e in group)
        what = group[0].type if len(group) == 1 else f"{len(group)} values"
        words.append(f"{shown(key)!r} ({f'{tensors} tensor(s)' if tensors else what})")
    return words[:8] + [f"{len(words) - 8} more"] * (len(words) > 8)


def _group(entry: CheckpointEntry, prefix: str) -> str:
    """Return the first key of an entry that is not of the prefix; of counters, the last one."""
    keys = [key for part in entry.path for key in part[:LONGEST].split(".")]
    depth, scalar = prefix.count("."), entry.shape is not None and prod(entry.shape) <= 1
    if scalar and len(keys) > depth + 1 and keys[:depth] == prefix.split(".")[:-1]:
        return f"*.{keys[-1]}"
    for key, usual in zip(keys, [*prefix.split(".")[:-1], None], strict=False):
        if key != usual:
            return key
    return keys[-1] if keys else ""


def _normalization(
    aside: Sequence[CheckpointEntry], fit: Guess | None
) -> tuple[CheckpointEntry, CheckpointEntry] | None:
    """Return mean and std of a normalization among what lies beside a net."""
    if fit is None:
        return None
    small = {
        ".".join(e.path): e
        for e in aside
        if e.shape is not None and prod(e.shape) in (1, fit.channels) and e.type.startswith("float")
    }
    for name, mean in small.items():
        above, dot, key = name.rpartition(".")
        for one, other in (("mean", "std"), ("mu", "sigma"), ("mu", "std")):
            std = small.get(f"{above}{dot}{key.replace(one, other)}") if one in key else None
            if std is not None and not AIDS & set(name.split(".")):
                return mean, std
    return None
