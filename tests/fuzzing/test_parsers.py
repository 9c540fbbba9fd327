"""Every parser of untrusted bytes raises our own errors alone, whatever it is fed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzzing import agreement
from tests.fuzzing.parsers import PARSERS, in_process, model, parsed
from tests.models import hostile

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*/*.hex"))
FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@st.composite
def mutations(draw: st.DrawFn, name: str) -> bytes:
    """A seed of a parser with bytes replaced, removed, doubled, and words put in."""
    data = bytearray(draw(st.sampled_from(PARSERS[name].seeds())))
    words = st.sampled_from(PARSERS[name].words) if PARSERS[name].words else st.binary(max_size=4)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = at + draw(st.integers(0, 8))
        data[at:end] = draw(st.one_of(words, st.binary(max_size=3), st.just(data[at:end] * 2)))
    return bytes(data)


@pytest.mark.parametrize("name", PARSERS)
def test_mutations_end_in_words(name: str) -> None:
    @FEW
    @given(data=mutations(name))
    def run(data: bytes) -> None:
        with in_process():
            parsed(name, data)

    run()


@pytest.mark.parametrize("name", PARSERS)
def test_seeds_reach_the_parser(name: str) -> None:
    """At least one seed is read to its end, so that mutations of it reach far; or its image is."""
    with in_process():
        ends = [parsed(name, seed) for seed in PARSERS[name].seeds()]
    assert "" in ends or name == "table"  # whose images are not there


@FEW
@given(data=mutations("tensors"))
def test_readers_agree(data: bytes) -> None:
    agreement.compared(*model(data))


def test_readers_agree_on_the_same_good_files() -> None:
    ends = [agreement.compared(*model(seed)) for seed in PARSERS["tensors"].seeds()]
    assert ends.count("both") >= 5


def test_where_we_alone_refuse_the_rule_is_told() -> None:
    twice = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2
    raw = twice[:-1].replace(b",{", b",") + b"}"
    path = io.BytesIO(len(raw).to_bytes(8, "little") + raw + b"\0")
    assert agreement.compared("a.safetensors", path.getvalue()) in (
        "theirs alone, we say FS003",
        "neither",
    )
    spread = hostile.index(hostile.tensor((2, 3), (0, 0), 6))
    assert agreement.compared(*model(b"z" + spread)) == "both"


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_once_went_wrong_ends_in_words(path: Path) -> None:
    data = bytes.fromhex("".join(path.read_text().split()))
    with in_process():
        if path.parent.name == "agreement":
            agreement.compared(*model(data))
        else:
            parsed(path.parent.name, data)
