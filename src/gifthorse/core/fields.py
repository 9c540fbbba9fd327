"""What the values of options may be: said in their types, checked when a method is made."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cache, partial
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MinLen

from gifthorse.core.errors import BadOption

M = TypeVar("M")

AtLeast, AtMost, Below = Ge, Le, Lt
Positive = Gt(0)
NotNegative = Ge(0)
Share = Interval(ge=0, le=1)
PositiveShare = Interval(gt=0, le=1)
OpenShare = Interval(gt=0, lt=1)
NotEmpty = MinLen(1)

_WORDS: dict[type, str] = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
_MEETS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: operator.ge,
    Gt: operator.gt,
    Le: operator.le,
    Lt: operator.lt,
    MinLen: lambda value, least: len(value) >= least,
}


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def method(kind: type[M]) -> type[M]:
    """Make a frozen dataclass whose instances refuse values that the types of its fields exclude.

    Checked are `Annotated[float, Share]` and the like, `Literal["pca", "ica"]`, tuples of any
    length of them, and one of them or `None`; other types are trusted. A `__post_init__` of the
    class relates several fields, and may rely on what each of them allows.

    Example:
        >>> @method
        ... class Blur:
        ...     sigma: Annotated[float, Positive] = 0.5
        >>> Blur(-1.0)
        Traceback (most recent call last):
            ...
        gifthorse.core.errors.BadOption: option sigma of Blur must be above 0, e.g. 0.5; got -1.0
    """
    relate = getattr(kind, "__post_init__", None)

    def check(self: M) -> None:
        for name, (fits, words) in _limited(kind).items():  # type: ignore[arg-type]
            if not fits(value := getattr(self, name)):
                must = f"option {name} of {kind.__name__} must be {words}"
                raise BadOption(f"{must}{_example(kind, name)}; got {value!r}")
        if relate:
            relate(self)

    kind.__post_init__ = check  # type: ignore[attr-defined]
    return dataclass(frozen=True)(kind)


def limits(kind: type) -> dict[str, str]:
    """Return what the values of a dataclass's fields must be, in words, where there are limits.

    Example:
        >>> from gifthorse.filtering.strip import STRIP
        >>> limits(STRIP)
        {'partners': 'at least 1', 'weight': '0 to 1', 'tails': 'low or both'}
    """
    return {name: words for name, (_, words) in _limited(kind).items()}


def allowed(hint: Any) -> str:
    """Return what a type asks of its values, in words; nothing if it has no limits.

    Example:
        >>> allowed(Annotated[float, Share] | None)
        '0 to 1, or null'
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        *head, last = map(str, inner)
        return f"{', '.join(head)} or {last}" if head else last
    if origin is Annotated:
        return ", ".join(filter(None, (_between(hint), allowed(inner[0]))))
    if origin is tuple and Ellipsis in inner and (words := allowed(inner[0])):
        return f"each {words}"
    if origin in (Union, UnionType):
        words = " or ".join(filter(None, map(allowed, inner)))
        return f"{words}, or null" if words and NoneType in inner else words
    return ""


def _between(hint: Any) -> str:
    given = dict(_bounds(hint))
    if given == {MinLen: 1}:
        return "one or more"
    if {*given} == {Ge, Le}:
        return f"{given[Ge]:g} to {given[Le]:g}"
    return " and ".join(f"{_WORDS[kind]} {limit:g}" for kind, limit in given.items())


def _test(hint: Any) -> Callable[[Any], bool]:
    """Return what says whether a value fits a type; made once a class, since methods are many."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return inner.__contains__
    each = [_test(arm) for arm in inner[: 1 if origin is Annotated else None]]
    if origin is Annotated:
        each += [partial(_meets, meets=_MEETS[kind], limit=limit) for kind, limit in _bounds(hint)]
        return lambda value: all(fits(value) for fits in each)
    if origin in (Union, UnionType):
        return lambda value: any(fits(value) for fits in each)
    if origin is tuple:
        return lambda value: isinstance(value, tuple | list) and all(map(each[0], value))
    return lambda value: (value is None) == (hint is NoneType)


def _meets(value: Any, meets: Callable[[Any, Any], bool], limit: Any) -> bool:
    try:
        return bool(meets(value, limit))
    except TypeError:  # a text for a number, a number for a tuple
        return False


def _bounds(hint: Any) -> Iterator[tuple[type, Any]]:
    for given in hint.__metadata__:
        bounds: Iterable[Any] = given if isinstance(given, GroupedMetadata) else (given,)
        yield from ((type(bound), getattr(bound, bound.__slots__[0])) for bound in bounds)


@cache
def _limited(kind: type) -> dict[str, tuple[Callable[[Any], bool], str]]:
    hints = get_type_hints(kind, include_extras=True)
    named = {f.name: hints[f.name] for f in fields(kind)}
    return {n: (_test(hint), words) for n, hint in named.items() if (words := allowed(hint))}


def _example(kind: type, name: str) -> str:
    default = getattr(kind, name, None)
    if isinstance(default, float):
        return f", e.g. {default:.4g}"
    return f", e.g. {default}" if isinstance(default, int | tuple) else ""
