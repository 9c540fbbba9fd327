"""Checkpoints as strangers' training code leaves them: the net among other things."""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import io
import json
import pathlib
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tests.cases.case import GIFT, QUICK, Case
from tests.models import hostile
from torch import Tensor

from gifthorse.core.types import Origin
from gifthorse.models import build, inspect
from gifthorse.workflows.opening import claimed

Weights = dict[str, Tensor]

SAFE = "weights only: nothing in it can run"
NEVER = ("hostile", "deceive", "Do not use this file", "would run commands", "damaged")
IMAGES = ("--images", str(GIFT / "clean.npz"))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def net(arch: str = "tiny", seed: int = 0) -> Weights:
    """The weights of an untrained net."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(build(arch, 10).state_dict())


def under(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    """Weights under longer names."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def row(*values: float) -> Tensor:
    """A vector."""
    return torch.tensor(values)


def _listed(name: str, fed: str, value: Callable[[], object], says: tuple[str, ...]) -> Case:
    """A checkpoint of which `inspect` must name the net and what lies beside it."""

    def make(folder: Path) -> list[str]:
        torch.save(value(), folder / "model.pt")
        return ["inspect", "model.pt"]

    return Case(
        name=name, fed=fed, right=f"opened: {', '.join(says)}", make=make, status=(0,),
        says=(SAFE, *says), never=NEVER, seconds=30,
    )  # fmt: skip


# 1. Things beside the net ---------------------------------------------------------------------


def _counted() -> Weights:
    """What a counter of operations leaves in every layer."""
    weights = net()
    layers = {name.rpartition(".")[0] for name in weights}
    counts = {
        f"{layer}.{word}": torch.zeros(1, dtype=torch.float64)
        for layer in ("", *layers)
        for word in ("total_ops", "total_params")
    }
    return {**weights, **{name.lstrip("."): count for name, count in counts.items()}}


def _warped() -> dict[str, object]:
    """What WaNet's training keeps: the classifier beside the grids of its trigger."""
    return {
        "netC": net("preactresnet18"),
        "schedulerC": {"last_epoch": 3},
        "optimizerC": {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 3, 3)}}},
        "best_clean_acc": torch.tensor(94.0),
        "identity_grid": torch.zeros(1, 32, 32, 2),
        "noise_grid": torch.zeros(1, 32, 32, 2),
        "epoch_current": 9,
    }


def _adam() -> dict[str, object]:
    parameters = build("tiny", 10).parameters()
    return {"model": net(), "optimizer": torch.optim.Adam(parameters).state_dict(), "epoch": 3}


def _robust() -> dict[str, object]:
    """The net twice, the second time within the attacker that trained it, and normalizations."""
    weights, normal = net(), {"new_mean": row(*MEAN), "new_std": row(*STD)}
    return {
        "model": {
            **under("module.normalizer.", normal),
            **under("module.model.", weights),
            **under("module.attacker.normalize.", normal),
            **under("module.attacker.model.", weights),
        },
        "epoch": 3,
    }


BESIDE: dict[str, tuple[str, Callable[[], object], tuple[str, ...]]] = {
    "faults 14": (
        "averaged weights with their counter",
        lambda: {"n_averaged": torch.tensor(3), **under("module.", net())},
        ("tiny, guessed", "'n_averaged'"),
    ),
    "faults 15": ("counts of operations in every layer", _counted, ("tiny, guessed", "total_ops")),
    "faults 16": (
        "WaNet's own checkpoint", _warped, ("preactresnet18, guessed", "'identity_grid'"),
    ),
    "faults 17": (
        "a loss with weights of classes",
        lambda: {"state_dict": {**under("model.", net()), "criterion.weight": torch.ones(10)}},
        ("tiny, guessed", "'criterion'"),
    ),
    "checkpoints: a loss deeper down": (
        "a loss and metrics beside the net",
        lambda: {
            "state_dict": {
                **under("net.", net()),
                "loss_fn.ce.weight": torch.ones(10),
                "train_acc.tp": torch.zeros(10),
            },
            "hyper_parameters": {"lr": 0.1},
        },
        ("tiny, guessed", "'loss_fn'", "'train_acc'"),
    ),
    "checkpoints: optimizer": ("Adam's moments", _adam, ("tiny, guessed", "'optimizer'")),
    "checkpoints: queue": (
        "what contrastive training keeps",
        lambda: {**net("resnet20"), "queue": torch.zeros(128, 64), "queue_ptr": torch.zeros(1)},
        ("resnet20, guessed", "'queue'"),
    ),
    "checkpoints: auxiliary head": (
        "a second head that rotations were told by",
        lambda: {**net("resnet20"), "rot.weight": torch.zeros(4, 64), "rot.bias": torch.zeros(4)},
        ("resnet20, guessed", "left aside: 'rot'"),
    ),
    "checkpoints: average": (
        "raw and averaged weights",
        lambda: {"model": net(), "model_ema": net(seed=1)},
        ("tiny, guessed", "took the averaged weights 'model_ema'", "--part model"),
    ),
    "checkpoints: average, flat": (
        "raw and averaged weights in one dictionary",
        lambda: {**net(), **under("ema.", net(seed=1))},
        ("tiny, guessed", "took the averaged weights 'ema'"),
    ),
    "checkpoints: twice the same": (
        "the same tensors under two keys",
        lambda: dict.fromkeys(("model", "best"), net()),
        ("tiny, guessed", "'best'"),
    ),
    "checkpoints: in its attacker": ("a copy within an attacker", _robust, ("tiny, guessed",)),
    "checkpoints: arrays": (
        "a history and states of random numbers",
        lambda: {
            "state_dict": net(),
            "history": np.arange(10.0),
            "losses": np.ones((2, 3), np.float32),
            "best": np.float64(0.9),
            "rng": (
                np.random.get_state(),  # noqa: NPY002 - what training scripts keep
                random.getstate(),
                torch.get_rng_state(),
            ),
        },
        ("tiny, guessed", "'history' (ndarray)"),
    ),
}  # fmt: skip

# 2. Names -------------------------------------------------------------------------------------


def _trunk() -> Weights:
    return {n: t for n, t in net("resnet20_fc").items() if not n.startswith("fc.")}


def _head() -> Weights:
    return {n: t for n, t in net("resnet20_fc").items() if n.startswith("fc.")}


def _old() -> Weights:
    """A DenseNet with the names of its official files."""
    layer = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12])")
    return {layer.sub(r"\1.\2", name): tensor for name, tensor in net("densenet121").items()}


NAMES: dict[str, tuple[str, Callable[[], object], tuple[str, ...]]] = {
    "faults 19": ("DenseNet's old names", _old, ("densenet121, guessed", "renamed")),
    "checkpoints: old names, parallel": (
        "the same from several cards",
        lambda: {"state_dict": under("module.", _old())},
        ("densenet121, guessed",),
    ),
    "checkpoints: parallel features": (
        "one part of the net was run in parallel",
        lambda: {
            name.replace("features.", "features.module."): tensor
            for name, tensor in net("vgg11_bn_cifar").items()
        },
        ("vgg11_bn_cifar, guessed",),
    ),
    "checkpoints: compiled, parallel": (
        "prefixes of torch.compile, DataParallel and Lightning, in wrappers",
        lambda: {"checkpoint": {"net": {"params": under("module._orig_mod.model.", net())}}},
        ("tiny, guessed", "checkpoint > net > params", "'module._orig_mod.model.'"),
    ),
    "checkpoints: backbone and head": (
        "a trunk in its own module, the head beside it",
        lambda: {
            name if name.startswith("fc") else f"backbone.{name}": tensor
            for name, tensor in net("resnet20_fc").items()
        },
        ("resnet20_fc, guessed",),
    ),
    "checkpoints: trunk and head": (
        "backbone.*, head.fc.*, statistics, the moments of Adam and an average without a net",
        lambda: {
            "meta": {"CLASSES": ["a"] * 10},
            "state_dict": {
                **under("backbone.", _trunk()),
                **under("head.", _head()),
                "data_preprocessor.mean": torch.zeros(3, 1, 1),
            },
            "optimizer": _adam()["optimizer"],
            "ema": {"shadow": {"backbone.conv1.weight": torch.zeros(16, 3, 3, 3)}},
        },
        ("resnet20_fc, guessed", "data_preprocessor"),
    ),
    "checkpoints: features and classifier": (
        "features.*, classifier.fc.* and a normalization",
        lambda: {
            **under("features.", _trunk()),
            **under("classifier.", _head()),
            "normalize.mean": row(*MEAN),
            "normalize.std": row(*STD),
        },
        ("resnet20_fc, guessed", "left aside: 'normalize'"),
    ),
    "checkpoints: bytes as keys": (
        "bytes, tuples, numbers and None as keys beside the net",
        lambda: {"model": net(), b"epoch": 3, "confused": {(0, 1): 3}, None: 1, 0.5: 2},
        ("tiny, guessed",),
    ),
    "checkpoints: a longer net": (
        "a ResNet that is longer than any that is known",
        lambda: {
            **net("resnet56"),
            **{
                name.replace("layer3.8", "layer3.9"): tensor
                for name, tensor in net("resnet56").items()
                if "layer3.8" in name
            },
        },
        ("no known architecture fits", "nearest: resnet56"),
    ),
}

# 3. A normalization as a layer ----------------------------------------------------------------

_FOUR = (1, 3, 1, 1)
NORMED: dict[str, tuple[str, Callable[[], object], tuple[str, ...]]] = {
    "faults 18a": (
        "a normalization as the first layer",
        lambda: {"0.mean": row(*MEAN), "0.std": row(*STD), **under("1.", net())},
        ("tiny, guessed", "left aside: '0'"),
    ),
    "checkpoints: normalize.mean": (
        "a normalization with a name, of four dimensions",
        lambda: {
            "normalize.mean": row(*MEAN).view(_FOUR),
            "normalize.std": row(*STD).view(_FOUR),
            **under("model.", net()),
        },
        ("tiny, guessed", "left aside: 'normalize'"),
    ),
    "checkpoints: mean": (
        "mean and std among the weights",
        lambda: {"mean": row(*MEAN).view(_FOUR), "std": row(*STD).view(_FOUR), **net()},
        ("tiny, guessed", "'mean'", "'std'"),
    ),
}


def _gift() -> Weights:
    return load_file(GIFT / "gift.safetensors")


def _scanned(
    name: str, fed: str, value: Callable[[], object], says: tuple[str, ...], *more: str
) -> Case:
    """The gift in another checkpoint: its own net is scanned."""

    def make(folder: Path) -> list[str]:
        torch.save(value(), folder / "gift.pt")
        return ["scan", "gift.pt", *IMAGES, *QUICK, *more]

    return Case(
        name=name, fed=fed, right=f"scanned: {', '.join(says)}", make=make, status=(1, 3),
        says=says, never=("NOT SCANNED", "NO BACKDOOR FOUND"), seconds=90,
    )  # fmt: skip


def _normed_gift() -> Weights:
    """The gift behind the normalization that its metadata names."""

    metadata = inspect(GIFT / "gift.safetensors").metadata
    claim = claimed(Origin(metadata=metadata))
    mean, std = (claim.mean, claim.std) if claim else ((0.0,), (1.0,))
    return {"0.mean": row(*mean), "0.std": row(*std), **under("1.", _gift())}


SCANS = (
    _scanned(
        "checkpoints: a stored normalization is checked", "the gift behind its normalization",
        _normed_gift, ("normalize=stored",),
    ),
    _scanned(
        "checkpoints: the gift among others", "the gift in a checkpoint of an attack",
        lambda: {"netC": _gift(), "noise_grid": torch.zeros(1, 32, 32, 2), "epoch": 3},
        ("opened the wrapper 'netC'",),
    ),
    _scanned(
        "checkpoints: counters of another shape", "counters of BatchNorm with 7 numbers, NaN",
        lambda: {
            n: torch.full((7,), torch.nan) if n.endswith("tracked") else t
            for n, t in _gift().items()
        },
        ("clean accuracy 96.5 %",), "--normalize", "gtsrb",
    ),
    _scanned(
        "checkpoints: a part is named", "the gift as the teacher of a net",
        lambda: {
            "student": under("module.", {n: t + 0.1 for n, t in _gift().items()}),
            "teacher": _gift(),
        },
        ("opened the wrapper 'teacher'",), "--part", "teacher",
    ),
)  # fmt: skip


# 4. Several nets ------------------------------------------------------------------------------


def _pair(folder: Path) -> None:
    value = {
        "student": under("module.backbone.", net()),
        "teacher": under("backbone.", net(seed=1)),
        "epoch": 3,
        "args": None,
    }
    torch.save(value, folder / "dino.pth")


def _asked(name: str, right: str, status: int, says: tuple[str, ...], *arguments: str) -> Case:
    def make(folder: Path) -> list[str]:
        _pair(folder)
        return list(arguments)

    return Case(
        name=name, fed=f"student and teacher: {' '.join(arguments[:1])}", right=right, make=make,
        status=(status,), says=says, never=NEVER, seconds=30,
    )  # fmt: skip


_QUESTION = ("2 whole nets", "'student'", "'teacher'", "--part student")
SEVERAL = (
    _asked("faults 20", "asks which", 2, ("NOT SCANNED", *_QUESTION), "scan", "dino.pth", *IMAGES),
    _asked("faults 20, inspected", "asks which", 0, (SAFE, *_QUESTION), "inspect", "dino.pth"),
    _asked(
        "checkpoints: --part of inspect", "the teacher", 0,
        ("tiny, guessed", "'student'"), "inspect", "dino.pth", "--part", "teacher",
    ),
    _asked(
        "checkpoints: --part that is none", "says which there are", 4,
        ("no part 'tutor'", "student, teacher"), "inspect", "dino.pth", "--part", "tutor",
    ),
    *(
        _asked(f"checkpoints: {words[0]} asks as well", "asks which", 2, _QUESTION, *words)
        for words in (
            ("repair", "dino.pth", *IMAGES, "-o", "out.safetensors"),
            ("filter", str(GIFT / "clean.npz"), "--model", "dino.pth", *IMAGES),
            ("compare-triggers", "dino.pth", *IMAGES),
        )
    ),
)  # fmt: skip


# 5. Objects, protocols, types, other files ----------------------------------------------------


class _Saved:
    """Writes what torch.save makes of a value, with its options."""

    def __init__(self, value: Callable[[], object], **options: Any) -> None:
        self._value, self._options = value, options

    def __call__(self, path: Path) -> None:
        torch.save(self._value(), path, **self._options)


def _beside(**more: object) -> _Saved:
    return _Saved(lambda: {"state_dict": net(), **more})


def _typed(dtype: str, size: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        header = {"w": hostile.span(0, 4, (1,)), "x": hostile.span(4, 4 + size, (4,), dtype)}
        hostile.safetensors(path, header, bytes(4 + size))

    return make


def _metadata(value: object) -> Callable[[Path], object]:
    header = {"__metadata__": {"epoch": value}, "w": hostile.span(0, 4, (1,))}
    return lambda path: hostile.safetensors(path, header, bytes(4))


def _weights() -> bytes:
    buffer = io.BytesIO()
    torch.save(net(), buffer)
    return buffer.getvalue()


def _tar(path: Path, mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo("model.pt")
        data = _weights()
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def _zip_of(*names: str, method: int = zipfile.ZIP_STORED) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in names:
                archive.writestr(name, bytes(1000))

    return make


def _rezipped(path: Path) -> None:
    """A checkpoint that was unpacked and packed again with compression."""
    with zipfile.ZipFile(io.BytesIO(_weights())) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)


def _index(path: Path) -> None:
    table = {"a.weight": "model-00001-of-00002.safetensors"}
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": table}))


def _starts(start: bytes, at: int = 0) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(bytes(at) + start + bytes(2000))


OBJECTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "faults 21a": ("a.pt", _beside(a=pathlib.PurePosixPath("x")), "pathlib.Pure"),
    "faults 21b": ("a.pt", _beside(rows=slice(1, 3)), "builtins.slice"),
    "faults 22a": ("a.pt", _beside(a=argparse.Namespace(b=1)), "argparse.Namespace"),
    "checkpoints: deque": ("a.pt", _beside(a=collections.deque([1])), ".deque"),
    "checkpoints: defaultdict": (
        "a.pt", _beside(a=collections.defaultdict(list)), "collections.defaultdict",
    ),
    "checkpoints: datetime": (
        "a.pt", _beside(a=datetime.datetime(2024, 1, 1)), "datetime.datetime",
    ),
    "checkpoints: random state": (
        "a.pt", _beside(a=np.random.RandomState(0)), "numpy.random",
    ),
    "checkpoints: range": ("a.pt", _beside(a=range(3)), "range"),
    "checkpoints: an error": ("a.pt", _beside(a=ValueError("x")), "ValueError"),
    "checkpoints: legacy with a path": (
        "a.pt",
        _Saved(
            lambda: {"net": net(), "path": pathlib.PurePosixPath("x")},
            _use_new_zipfile_serialization=False,
        ),
        "pathlib.Pure",
    ),
}  # fmt: skip


def _with_objects(name: str, file: str, write: Callable[[Path], object], kind: str) -> Case:
    """Weights beside plain objects: the net is named, the objects are left alone."""

    def make(folder: Path) -> list[str]:
        write(folder / file)
        return ["inspect", file]

    return Case(
        name=name, fed=f"inspect of {file}", right="opened without making the object", make=make,
        status=(0,), says=("Python objects beside", kind, "tiny, guessed", "without making them"),
        never=NEVER, seconds=60,
    )  # fmt: skip


UNKNOWN = "not understood"
ODD: dict[str, tuple[str, Callable[[Path], object], str, tuple[str, ...]]] = {
    "checkpoints: texts of NumPy": ("a.pt", _beside(a=np.array(["a", "b"])), UNKNOWN, ("NumPy",)),
    "faults 23": ("a.pt", _Saved(net, pickle_protocol=4), UNKNOWN, ("protocol 4", "save it again")),
    "checkpoints: protocol 5": ("a.pt", _Saved(net, pickle_protocol=5), UNKNOWN, ("protocol",)),
    "checkpoints: protocol 4, legacy": (
        "a.pt",
        _Saved(net, pickle_protocol=4, _use_new_zipfile_serialization=False),
        UNKNOWN,
        ("protocol 4",),
    ),
    "checkpoints: protocol 7": (
        "a.pkl", lambda path: path.write_bytes(b"\x80\x07N."), UNKNOWN, ("protocol 7", "newer"),
    ),
    "faults 24": ("a.safetensors", _typed("F8_E8M0", 4), UNKNOWN, ("F8_E8M0", "float32")),
    "faults 24, F4": ("a.safetensors", _typed("F4", 2), UNKNOWN, ("'F4'", "float32")),
    "checkpoints: a type of tomorrow": ("a.safetensors", _typed("I3", 2), UNKNOWN, ("'I3'",)),
    "faults 25": ("a.safetensors", _metadata(3), UNKNOWN, ("'epoch'", "texts alone")),
    "checkpoints: nested metadata": ("a.safetensors", _metadata({"a": 1}), UNKNOWN, ("'epoch'",)),
    "checkpoints: true in metadata": ("a.safetensors", _metadata(True), UNKNOWN, ("'epoch'",)),
    "faults 27a": ("weights.tar", _tar, UNKNOWN, ("a tar archive", "unpack")),
    "checkpoints: tar.gz": ("w.tar.gz", lambda p: _tar(p, "w:gz"), UNKNOWN, ("gzip", "unpack")),
    "checkpoints: tar.bz2": ("w.tar.bz2", lambda p: _tar(p, "w:bz2"), UNKNOWN, ("bzip2", "unpack")),
    "checkpoints: tar.xz": ("w.tar.xz", lambda p: _tar(p, "w:xz"), UNKNOWN, ("xz", "unpack")),
    "checkpoints: gz under another name": (
        "model.pt", lambda path: path.write_bytes(gzip.compress(_weights())), UNKNOWN, ("gzip",),
    ),
    "checkpoints: zst": ("w.zst", _starts(b"\x28\xb5\x2f\xfd"), UNKNOWN, ("Zstandard", "unpack")),
    "checkpoints: 7z": ("w.7z", _starts(b"7z\xbc\xaf\x27\x1c"), UNKNOWN, ("7z", "unpack")),
    "checkpoints: rar": ("w.rar", _starts(b"Rar!\x1a\x07\x01"), UNKNOWN, ("RAR", "unpack")),
    "checkpoints: zip of a model": (
        "w.zip", _zip_of("run/model.pt", "run/log.txt"), UNKNOWN, ("run/model.pt", "unpack"),
    ),
    "checkpoints: packed again": ("a.pt", _rezipped, UNKNOWN, ("compressed",)),
    "faults 27c": (
        "model.safetensors.index.json", _index, UNKNOWN,
        ("an index of sharded weights", "name a shard", "model-00001-of-00002"),
    ),
    "checkpoints: config": ("config.json", lambda p: p.write_text('{"a": 1}'), UNKNOWN, ("JSON",)),
    "checkpoints: ONNX": ("a.onnx", _starts(b"\x08\x07\x12\x07pytorch"), UNKNOWN, ("ONNX",)),
    "checkpoints: HDF5": ("a.h5", _starts(b"\x89HDF\r\n\x1a\n"), UNKNOWN, ("HDF5",)),
    "checkpoints: Keras": (
        "a.keras", _zip_of("config.json", "model.weights.h5"), UNKNOWN, ("Keras",),
    ),
    "checkpoints: TFLite": ("a.tflite", _starts(b"TFL3", 4), UNKNOWN, ("TFLite",)),
    "checkpoints: GGUF": ("a.gguf", _starts(b"GGUF"), UNKNOWN, ("GGUF",)),
    "checkpoints: npy": ("a.npy", lambda path: np.save(path, np.ones(3)), UNKNOWN, ("NumPy",)),
    "checkpoints: npz": ("a.npz", lambda path: np.savez(path, a=np.ones(3)), UNKNOWN, ("npz",)),
    "checkpoints: image": ("a.png", _starts(b"\x89PNG\r\n\x1a\n"), UNKNOWN, ("PNG", "--images")),
    "checkpoints: web page": (
        "a.pt", lambda path: path.write_text("<!DOCTYPE html><p>404"), "damaged", ("web page",),
    ),
    "checkpoints: LFS": (
        "a.pt", _starts(b"version https://git-lfs.github.com"), "damaged", ("git lfs pull",),
    ),
}  # fmt: skip


def _odd(
    name: str, file: str, write: Callable[[Path], object], safety: str, says: tuple[str, ...]
) -> tuple[Case, Case]:
    """What cannot be examined: `inspect` and `scan` say the same, and neither says hostile."""

    def build(before: str, behind: tuple[str, ...]) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            write(folder / file)
            return [before, file, *behind]

        return make

    never = tuple(word for word in NEVER if word != safety)
    inspected = Case(
        name=name, fed=f"inspect of {file}", right=f"{safety}, exit 2", make=build("inspect", ()),
        status=(2,), says=(safety, *says), never=never, seconds=30,
    )  # fmt: skip
    scanned = Case(
        name=f"{name}, scanned", fed=f"scan of {file}", right="not scanned, in the same words",
        make=build("scan", IMAGES), status=(2,), says=("NOT SCANNED", *says), never=NEVER,
        seconds=30,
    )  # fmt: skip
    return inspected, scanned


CASES = (
    *(_listed(name, *given) for name, given in {**BESIDE, **NAMES, **NORMED}.items()),
    *SCANS,
    *SEVERAL,
    *(_with_objects(name, *given) for name, given in OBJECTS.items()),
    *(case for name, given in ODD.items() for case in _odd(name, *given)),
)
