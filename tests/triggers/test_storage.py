"""Triggers as files: what comes back, and what is refused with words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, UsageError
from gifthorse.triggers import Learned, Patch, Stamp
from gifthorse.triggers.storage import KINDS, open_trigger, pack, unpack

SHAPE = (3, 12, 12)


def write(path: Path, tensors: dict[str, Tensor], claims: object) -> Path:
    separate = {name: t.clone() for name, t in tensors.items()}
    save_file(separate, path, {"trigger": json.dumps(claims)})
    return path


def test_a_file_without_a_kind_holds_a_patch(tmp_path: Path) -> None:
    patch = Stamp(ink="random").fixed(SHAPE, Generator().manual_seed(0))
    save_file({"pattern": patch.pattern, "mask": patch.mask}, tmp_path / "old")
    found = open_trigger(tmp_path / "old")
    assert isinstance(found, Patch)
    assert torch.equal(found.pattern, patch.pattern)


def test_a_trigger_that_still_learns_is_not_saved() -> None:
    learned = Learned(Stamp(ink="random").fixed(SHAPE, Generator().manual_seed(0)))
    with pytest.raises(BadOption, match="kind Learned cannot be saved"):
        pack(learned)
    assert "Patch" in KINDS


def test_numbers_and_tensors_are_not_taken_for_each_other() -> None:
    tensors, _ = pack(Stamp().fixed(SHAPE, Generator().manual_seed(0)))
    claims = {"trigger": json.dumps({"kind": "Patch", "fields": {"mask": 1.0}})}
    with pytest.raises(BadOption, match="mask must be a Tensor"):
        unpack({"pattern": tensors["pattern"]}, claims)


ONE = torch.zeros(1, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "claims", "words"),
    [
        ({"pattern": ONE}, {"kind": "Patch"}, "the file has pattern"),
        ({"pattern": ONE}, {"kind": "Ptch"}, "did you mean Patch"),
        ({"pattern": ONE}, ["Patch"], "no trigger file"),
        ({"pattern": ONE}, {"kind": "Patch", "fields": 3}, "no trigger file"),
        (
            {"pattern": ONE, "mask": ONE, "rng": ONE},
            {"kind": "Wandering"},
            "no trigger file",
        ),
        ({"masks.a": ONE, "patterns.b": ONE}, {"kind": "Generated"}, "no trigger file"),
    ],
)
def test_a_made_up_file_is_refused_with_words(
    tensors: dict[str, Tensor], claims: object, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        open_trigger(write(tmp_path / "made", tensors, claims))


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"not a trigger")
    with pytest.raises(UsageError, match="no trigger file"):
        open_trigger(tmp_path / "made")


@pytest.mark.parametrize("planes", [10**9, 0, "3", 1e308, float("nan")])
def test_numbers_that_size_what_is_drawn_are_limited(tmp_path: Path, planes: object) -> None:
    claims = {"kind": "LowBits", "fields": {"planes": planes}}
    path = write(tmp_path / "bits", {"values": torch.zeros(SHAPE)}, claims)
    with pytest.raises(UsageError, match="planes must be"):
        open_trigger(path)


def test_a_pipe_is_no_trigger_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="a device or a pipe"):
        open_trigger(tmp_path / "pipe")
