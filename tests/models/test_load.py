from __future__ import annotations

import contextlib
import errno
import math
import os
from pathlib import Path
from typing import IO

import pytest
import torch
from tests.models import hostile
from tests.models.hostile import saved
from torch import Tensor, nn

import gifthorse
from gifthorse.core.errors import (
    GifthorseError,
    UnknownArch,
    UnreadableModel,
    UsageError,
)
from gifthorse.core.isolated import readers
from gifthorse.models import build, inspect, load, save
from gifthorse.models.load import nonfinite
from gifthorse.models.reading import isolation
from gifthorse.models.reading.files import digest

SOURCE = Path(gifthorse.__file__).parent
GOOD = hostile.index(hostile.tensor((2, 3), (3, 1), 6))
NUMBERS = {"archive/data/0": bytes(24)}


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return build("tiny", 10).eval()


def test_flipped_bits_in_an_archive_are_found_by_its_checksums(tmp_path: Path) -> None:
    good = saved(tiny().state_dict())
    path = tmp_path / "a.pt"
    path.write_bytes(good)
    clean = inspect(path)
    assert clean.findings == ()
    for seed in range(20):
        data = bytearray(good)
        bit = int(torch.randint(8 * len(data), (1,), generator=_rng(seed)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        seen = inspect(path)
        # Padding between records is the one place where a bit may flip unseen, and does no harm.
        assert seen.findings or (seen.params, seen.arch) == (clean.params, clean.arch)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# 1. Read in a process of its own --------------------------------------------------------------


def test_saved_nets_come_back_the_same(tmp_path: Path) -> None:
    net, path = tiny(), tmp_path / "net.safetensors"
    save(path, net, {"data": "cifar10", "note": "a\x1b[31m" + "x" * 20_000})
    opened = load(path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(opened.net(x), net(x))
    origin = opened.origin
    assert (origin.arch, opened.classes, opened.channels) == ("tiny", 10, 3)
    assert (origin.format, origin.tensors) == ("safetensors", len(net.state_dict()))
    assert origin.params == sum(p.numel() for p in net.parameters())
    assert origin.how == f"guessed from {origin.tensors} tensors"
    assert origin.bytes == path.stat().st_size
    assert origin.metadata["data"] == "cifar10"
    assert "\x1b" not in origin.metadata["note"]
    assert len(origin.metadata["note"]) == 10_003
    assert opened.nonfinite == ()
    assert not any(p.requires_grad for p in opened.net.parameters())
    seen = inspect(path)
    assert (seen.arch, seen.params, seen.sha256) == (
        "tiny",
        origin.params + _buffers(net),
        origin.sha256,
    )
    assert "10 classes, 3 input channels" in seen.how
    assert seen.safety.startswith("weights only")


def _buffers(net: nn.Module) -> int:
    return sum(b.numel() for b in net.buffers())


def test_everything_done_to_a_checkpoint_is_said(tmp_path: Path) -> None:
    net = tiny()
    half: dict[str, Tensor] = {f"module.{k}": v for k, v in net.state_dict().items()}
    halved = {k: v.half() if v.is_floating_point() else v for k, v in half.items()}
    torch.save({"state_dict": halved, "epoch": 3}, tmp_path / "net.safetensors")
    opened = load(tmp_path / "net.safetensors", "tiny")
    floats = sum(v.is_floating_point() for v in half.values())
    assert opened.origin.notes == (
        "the name ends in '.safetensors', but the content is pytorch",
        "opened the wrapper 'state_dict'",
        "left aside: 'epoch' (int)",
        "stripped the prefix 'module.' from all names",
        f"cast {floats} tensor(s) from float16 to float32",
    )
    assert opened.origin.how == "named with --arch"
    assert "float16" in opened.origin.dtypes
    for name, value in net.state_dict().items():
        assert torch.equal(opened.net.state_dict()[name], value.half().to(value.dtype)), name


def test_legacy_files_and_own_nets_are_read(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 6))
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(),"
        " nn.Linear(4, num_classes))\n"
    )
    (tmp_path / "net.pt").write_bytes(saved(net.state_dict(), _use_new_zipfile_serialization=False))
    opened = load(tmp_path / "net.pt", f"{tmp_path / 'own.py'}:net")
    x = torch.rand(2, 1, 3, 3)
    assert torch.equal(opened.net(x), net(x))
    assert (opened.classes, opened.channels, opened.origin.format) == (6, 1, "pytorch")


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in tiny().state_dict().items()}
    first, second, *_ = [n for n in state if n.endswith("weight")]
    state[first].view(-1)[0] = float("nan")
    state[second].view(-1)[-1] = float("-inf")
    save(tmp_path / "net.safetensors", state, {})
    assert set(load(tmp_path / "net.safetensors").nonfinite) == {first, second}
    norm = nn.BatchNorm2d(1)
    torch.as_tensor(norm.running_var).fill_(-1)
    norm.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # no weight: a mask
    assert nonfinite(norm) == ("running_var",)
    norm.register_buffer("scale", torch.tensor([math.nan]))
    assert nonfinite(norm) == ("running_var", "scale")


def test_the_wrong_architecture_is_explained(tmp_path: Path) -> None:
    save(tmp_path / "net.safetensors", tiny(), {})
    with pytest.raises(UnknownArch, match=r"do not fit resnet20: file lacks .*Nearest: tiny"):
        load(tmp_path / "net.safetensors", "resnet20")


def test_flipped_bits_in_safetensors_end_in_words(tmp_path: Path) -> None:
    save(tmp_path / "good.safetensors", tiny(), {})
    good = (tmp_path / "good.safetensors").read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    for seed in range(20):
        data = bytearray(good)
        bit = int(torch.randint(8 * end, (1,), generator=_rng(seed)))
        data[bit // 8] ^= 1 << bit % 8
        path = tmp_path / "bad.safetensors"
        path.write_bytes(data)
        with contextlib.suppress(GifthorseError):
            assert load(path).classes == 10


def test_time_is_limited_in_words(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000, 3000)}, tmp_path / "big.pt")
    with pytest.raises(UnreadableModel, match=r"longer than 0\.004 seconds") as late:
        load(tmp_path / "big.pt", deadline=0.001)
    assert late.value.rule == "FS004"


def test_a_file_that_changes_while_it_is_copied_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, tiny(), {})
    true = digest

    def slow(stream: IO[bytes], copy: IO[bytes]) -> str:
        found = true(stream, copy)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr("gifthorse.models.reading.isolation.digest", slow)
    with pytest.raises(UnreadableModel, match="changed while it was read"):
        load(path)


def test_no_room_for_a_copy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path / "a.safetensors", tiny(), {})
    monkeypatch.setattr("gifthorse.models.reading.isolation.digest", full)
    with pytest.raises(GifthorseError, match=r"No space left .* or set TMPDIR") as caught:
        load(tmp_path / "a.safetensors")
    assert caught.value.exit_code == 2


def test_odd_tensors_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "read", lambda _c, _k, entries, **_: [None] * len(entries))
    torch.save({"fc.weight": torch.ones(2, 2, dtype=torch.complex64)}, tmp_path / "a.pt")
    with pytest.raises(UnreadableModel, match=r"'fc\.weight' is complex64"):
        load(tmp_path / "a.pt")


def test_what_reads_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(*_: object, **__: object) -> object:
        return [[["fc.weight"], "float32", [2, 2]]], [torch.zeros(2, 2)]

    hostile.torch_zip(tmp_path / "a.pt", GOOD, NUMBERS)
    with isolation.private_copy(tmp_path / "a.pt") as copy:
        found = isolation.survey(copy)
        monkeypatch.setattr(readers, "call", lie)
        with pytest.raises(UnreadableModel, match="reads differently"):
            isolation.read(copy, "pytorch", found.entries, memory=1 << 30, deadline=9)


# 2. Writing -----------------------------------------------------------------------


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(path, {"w": torch.ones(2)}, {})
    old = path.read_bytes()
    with pytest.raises(UsageError, match="cannot write"):
        save(tmp_path / "missing" / "net.safetensors", {"w": torch.ones(2)}, {})
    shared = torch.ones(4)
    save(path, {"w": shared[:2], "v": shared}, {"a": "b"})
    assert path.read_bytes() != old
    assert os.listdir(tmp_path) == [path.name]
    assert inspect(path).metadata == {"a": "b"}


# Folders that are no hub's --------------------------------------------------------------------


def test_a_folder_with_one_model_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_architecture": "resnet50", "poisoned": true}')
    (tmp_path / "notes.csv").write_text("a")
    torch.save(tiny(), tmp_path / "model.pt")
    opened, seen = load(tmp_path), inspect(tmp_path)
    assert opened.origin.path == seen.path == str(tmp_path / "model.pt")
    assert opened.origin.arch == seen.arch == "tiny"
    torch.save(tiny(), tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match=r"2 model files \(model.pt, other.ckpt\): name one"):
        load(tmp_path)


def test_a_hubs_folder_without_its_weights_is_not_another_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    torch.save(tiny(), tmp_path / "optimizer.pt")
    with pytest.raises(UsageError, match="no weights that are read"):
        load(tmp_path)
