"""Limits in the types of fields: values in and out, words, and what stays of a dataclass."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import (
    AtLeast,
    AtMost,
    Below,
    NotEmpty,
    NotNegative,
    OpenShare,
    Positive,
    PositiveShare,
    Share,
    allowed,
    limits,
    method,
)
from gifthorse.core.options import describe, vary


@method
class Kinds:
    share: Annotated[float, Share] = 0.5
    some: Annotated[float, PositiveShare] = 0.5
    inside: Annotated[float, OpenShare] = 0.5
    left: Annotated[float, NotNegative, Below(1)] = 0.5
    between: Annotated[int, AtLeast(3), AtMost(12)] = 4
    count: Annotated[int, AtLeast(1)] = 1
    above: Annotated[float, Positive] = 2 / 255
    word: Literal["pca", "ica", "none"] = "pca"
    maybe: Annotated[float, Share] | None = None
    several: Annotated[tuple[Annotated[int, AtLeast(1)], ...], NotEmpty] = (3,)
    words: tuple[Literal["a", "b"], ...] = ()
    free: float = -1.0
    pair: tuple[float, float] = (9.0, -9.0)
    on: bool = True


@method
class Related:
    """Fields that must fit each other."""

    least: Annotated[int, NotNegative] = 0
    most: int = 5

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise BadOption(f"least must be at most most ({self.most}); got {self.least}")


@method
class Around:
    """A method made of options."""

    kinds: Kinds = Kinds()
    other: Annotated[int, AtLeast(2)] = 2


KINDS: list[tuple[str, list[Any], list[Any], str]] = [
    ("share", [0, 1, 0.0, 1.0, 0.3], [-1e-9, 1 + 1e-9, math.nan, "0.5", None], "0 to 1, e.g. 0.5"),
    ("some", [1e-9, 1.0], [0, 0.0, 1.1, math.nan], "above 0 and at most 1, e.g. 0.5"),
    ("inside", [1e-9, 0.99], [0.0, 1.0, 1, math.nan], "above 0 and below 1, e.g. 0.5"),
    ("left", [0.0, 0.99], [-0.1, 1.0, math.nan], "at least 0 and below 1, e.g. 0.5"),
    ("between", [3, 12], [2, 13, None], "3 to 12, e.g. 4"),
    ("count", [1, 10**9], [0, -1, (1,)], "at least 1, e.g. 1"),
    ("above", [1e-9, math.inf], [0.0, -1.0, math.nan], "above 0, e.g. 0.007843"),
    ("word", ["ica", "none"], ["PCA", "", None, 1, ["pca"]], "pca, ica or none"),
    ("maybe", [None, 0.0, 1.0], [-0.1, 1.1, math.nan, "null"], "0 to 1, or null"),
    ("several", [(1,), (1, 2)], [(), (0,), (1, 0), 1, "1"], "one or more, each at least 1"),
    ("words", [(), ("a", "b")], [("c",), ("a", "c"), "a", None], "each a or b"),
]


@pytest.mark.parametrize(("name", "good", "bad", "words"), KINDS, ids=[k[0] for k in KINDS])
def test_values_in_and_out(name: str, good: list[Any], bad: list[Any], words: str) -> None:
    for value in good:
        made = Kinds(**{name: value})
        assert getattr(made, name) is value
    for value in bad:
        with pytest.raises(BadOption) as caught:
            Kinds(**{name: value})
        said = str(caught.value)
        assert said.startswith(f"option {name} of Kinds must be {words}")
        assert said.endswith(f"; got {value!r}")


def test_what_has_no_limits_is_trusted() -> None:
    made = Kinds(free=math.nan, pair=(1.0,), on=3)  # type: ignore[arg-type]
    assert math.isnan(made.free)
    assert limits(Kinds).keys() == {name for name, *_ in KINDS}
    assert allowed(float) == allowed(Kinds | None) == allowed(tuple[int, ...]) == ""


NUMBERS = [Share, PositiveShare, OpenShare, Positive, NotNegative, AtMost(3), Below(2), AtLeast(-1)]


@given(st.sampled_from(NUMBERS), st.floats(allow_nan=False))
def test_pydantic_understands_the_limits_alike(limit: Any, value: float) -> None:
    @method
    class One:
        x: float

    One.__annotations__["x"] = Annotated[float, limit]
    try:
        TypeAdapter(Annotated[float, limit]).validate_python(value)
    except ValidationError:
        with pytest.raises(BadOption, match="option x of One"):
            One(value)
    else:
        assert One(value).x == value


def test_a_relation_is_looked_at_last() -> None:
    assert Related(2, 2) == Related(most=2, least=2)
    with pytest.raises(BadOption, match=r"at most most \(5\); got 6"):
        Related(6)
    with pytest.raises(BadOption, match=r"option least of Related must be at least 0, e.g. 0"):
        Related(-1, -2)
    with pytest.raises(BadOption, match="at most most"):
        replace(Related(2, 2), least=3)


def test_it_is_a_frozen_dataclass_like_any_other() -> None:
    made = Around(Kinds(share=0.25), 7)
    assert is_dataclass(made)
    assert [f.name for f in fields(made)] == ["kinds", "other"]
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made) == hash(replace(made))
    assert repr(Related(1)) == "Related(least=1, most=5)"
    assert Related.__doc__ == "Fields that must fit each other."
    with pytest.raises(FrozenInstanceError):
        made.other = 8  # type: ignore[misc]
    with pytest.raises(BadOption, match="other"):
        replace(made, other=1)


def test_options_are_varied_and_refused_as_before() -> None:
    made = vary(Around(), {"kinds.share": "0.75", "kinds.maybe": "0.5", "kinds.several": "[4, 5]"})
    assert made == Around(Kinds(share=0.75, maybe=0.5, several=(4, 5)))
    assert describe(made)["kinds.several"] == (4, 5)
    assert vary(made, {"kinds.maybe": "null"}).kinds.maybe is None
    with pytest.raises(BadOption, match=r"option share of Kinds must be 0 to 1, e.g. 0.5; got 2.0"):
        vary(Around(), {"kinds.share": "2"})
    with pytest.raises(BadOption, match=r"option kinds of Around cannot be .* share: "):
        vary(Around(), {"kinds": '{"share": 2}'})


def test_types_are_read_once_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    Related()
    monkeypatch.setattr("gifthorse.core.fields.get_type_hints", None)  # would raise if called
    assert Related(1) == Related(1, 5)
