"""Options by dotted name: read, changed in a copy, refused with words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gifthorse.attacks.poisoning import Mixing
from gifthorse.core.errors import BadOption
from gifthorse.core.options import RENAMED, describe, renamed, suggestion, vary
from gifthorse.training import Recipe


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["one", "two"] = "one"


@dataclass(frozen=True)
class Outer:
    count: int = 3
    on: bool = False
    name: str = "none"
    pair: tuple[float, float] = (0.5, 0.9)
    least: int | None = None
    inner: Inner = Inner()


def test_describe_lists_nested_options_by_dotted_name() -> None:
    assert describe(Outer()) == {
        "count": 3,
        "on": False,
        "name": "none",
        "pair": (0.5, 0.9),
        "least": None,
        "inner.rate": 0.5,
        "inner.kind": "one",
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "12", 12),
        ("on", "true", True),
        ("name", "[not json", "[not json"),
        ("name", "null", "null"),
        ("pair", "[0.1, 0.2]", (0.1, 0.2)),
        ("least", "4", 4),
        ("least", "null", None),
        ("inner.rate", "0.05", 0.05),
        ("inner.rate", "1e-3", 1e-3),
        ("inner.kind", "two", "two"),
    ],
)
def test_text_is_read_as_the_type_of_the_field(name: str, text: str, value: Any) -> None:
    assert describe(vary(Outer(), {name: text}))[name] == value


def test_the_given_method_stays_as_it_was() -> None:
    method = Outer()
    changed = vary(method, {"inner.rate": 0.1, "count": 4})
    assert method == Outer()
    assert changed == Outer(count=4, inner=Inner(rate=0.1))


@given(st.builds(Outer, count=st.integers(), on=st.booleans(), inner=st.builds(Inner)))
def test_describe_and_vary_are_inverse(method: Outer) -> None:
    assert vary(Outer(), describe(method)) == method


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cuont": "3"}, "count"),
        ({"inner.rat": "3"}, "inner.rate|rate"),
        ({"count.deep": "3"}, "no option"),
        ({"count": "many"}, "count"),
        ({"count": "2.5"}, "count"),
        ({"count": "9" * 25}, "too large"),
        ({"inner.kind": "three"}, "kind.*three"),
        ({"on": "perhaps"}, "perhaps"),
        ({"pair": "[1, 2, 3]"}, "pair"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, str], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        vary(Outer(), options)


def test_values_that_a_method_refuses_are_bad_options() -> None:
    with pytest.raises(BadOption, match="rate"):
        vary(Mixing(), {"rate": "1.5"})


def test_the_order_of_options_does_not_matter() -> None:
    options = {"stamp": "before", "mode": "dataset"}
    backwards = dict(reversed(options.items()))
    assert vary(Mixing(), backwards) == vary(Mixing(), options) == Mixing(**options)  # type: ignore[arg-type]


def test_every_field_of_a_recipe_is_an_option() -> None:
    assert list(describe(Recipe())) == [f.name for f in fields(Recipe)]


# Names of version 0.1 ----------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    success_threshold: float = 0.99
    patience: int = 3
    images: int = 8  # an old name, of something else, that stayed


@dataclass(frozen=True)
class Searcher:
    patience: int = 5
    config: Config = Config()


@dataclass(frozen=True)
class Finder:
    inverter: Searcher = Searcher()
    floor: float = 0.2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("inverter.pace.bar", "inverter.config.success_threshold"),
        ("inverter.pace.patience", "inverter.config.patience"),
        ("inverter.pace", "inverter.config"),
        ("inverter.pace.images", "inverter.config.images"),
        ("inverter.wait", "inverter.patience"),
    ],
)
def test_an_old_name_is_answered_with_the_whole_new_one(old: str, new: str) -> None:
    with pytest.raises(BadOption) as caught:
        vary(Finder(), {old: 0.9})
    assert str(caught.value) == f"option {old} is now {new}"


def test_a_name_that_means_something_is_never_taken_for_an_old_one() -> None:
    assert vary(Finder(), {"floor": "0.5"}).floor == 0.5


def test_a_new_name_is_told_only_where_it_exists() -> None:
    assert renamed("pace.bar", ["config.patience"]) == ""
    with pytest.raises(BadOption, match=r"Searcher has no option pace.bat: it has: config.ima"):
        vary(Searcher(), {"pace.bat": 1})


def test_a_suggestion_prefers_the_new_name_to_one_that_looks_alike() -> None:
    known = ["config.success_threshold", "pace.bart"]
    assert suggestion("pace.bar", known) == "pace.bar is now config.success_threshold"
    assert suggestion("pace.barb", known) == "did you mean pace.bart?"
    assert suggestion("something", known) == ""


def test_no_new_name_is_an_old_one_as_well() -> None:
    assert not set(RENAMED) & {new for news in RENAMED.values() for new in news}
