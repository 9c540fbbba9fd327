"""Files that bring code beside good weights: these are read, the code is not run, both are said."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.cases.case import GIFT, QUICK, Case
from tests.models import hostile
from tests.models.hostile import Reduced
from tests.models.pickled import (
    Make,
    learner,
    library,
    lightning,
    net,
    own,
    program,
    saved,
    ultralytics,
)
from torch import nn

from gifthorse.models import build

Value = Callable[[Make], object]

CODE = "brings code: opening it as usual would run it; its weights are read here without it"
TOLD = "read without running its code; the code itself was not judged"
NEVER = ("hostile", "deceive", "Do not use this file", "would run commands", "damaged")
IMAGES = ("--images", str(GIFT / "clean.npz"))


def gift() -> nn.Module:
    """The backdoored net of the example, whole."""
    module = build("tiny", 43)
    module.load_state_dict(load_file(GIFT / "gift.safetensors"))
    return module.eval()


def _written(value: Value, path: Path, *, legacy: bool = False) -> None:
    with library() as make, warnings.catch_warnings(action="ignore"):
        made = value(make)
        path.write_bytes(made if isinstance(made, bytes) else saved(made, legacy=legacy))


# 1. Listed ------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, Value, tuple[str, ...]]] = {
    "a whole net": ("model.pt", lambda make: own(make, net()), ("gone.nets.Net (1)",)),
    "whole, of our own": ("model.pt", lambda make: net("resnet18"), ("resnet18, guessed",)),
    "DataParallel": ("model.pt", lambda make: nn.DataParallel(net()), ("parallel.DataParallel",)),
    "torch.compile": ("model.pt", lambda make: torch.compile(net()), ("OptimizedModule",)),
    "Lightning": ("last.ckpt", lambda make: lightning(make, net()), ("omegaconf.dictconfig",)),
    "fastai's learner": ("export.pkl", lambda make: learner(make, net()), ("Learner (1)",)),
    "ultralytics": (
        "yolo-cls.pt",
        lambda make: ultralytics(make, net()),
        ("ultralytics.nn.tasks.ClassificationModel (1)", "averaged weights 'ema'"),
    ),
    "TorchScript, scripted": ("net.ts", lambda make: program(net()), ("a TorchScript program",)),
    "TorchScript, traced": (
        "net.torchscript",
        lambda make: program(net(), traced=True),
        ("a TorchScript program",),
    ),
}


def _listed(name: str, file: str, value: Value, says: tuple[str, ...], legacy: bool) -> Case:
    def make(folder: Path) -> list[str]:
        _written(value, folder / file, legacy=legacy)
        return ["inspect", file]

    arch = () if any("guessed" in words for words in says) else ("tiny, guessed",)
    return Case(
        name=f"programs: {name}", fed=f"inspect of {file}", right="its net is named, exit 1",
        make=make, status=(1,), says=(CODE, TOLD, *arch, *says), never=NEVER, seconds=60,
    )  # fmt: skip


# 2. Scanned -----------------------------------------------------------------------------------


def _scanned(
    name: str, make: Callable[[Path], list[str]], says: tuple[str, ...], status: tuple[int, ...]
) -> Case:
    return Case(
        name=f"programs: {name}, scanned", fed="a scan of it", right=f"says {', '.join(says)}",
        make=make, status=status, says=says, never=("NO BACKDOOR FOUND",), seconds=120,
    )  # fmt: skip


def _gift(value: Value) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        _written(value, folder / "model.pt")
        return ["scan", "model.pt", *IMAGES, *QUICK]

    return make


def _trojai(folder: Path) -> list[str]:
    """A folder as NIST hands it out."""
    inside = folder / "id-00000000"
    examples = inside / "clean-example-data"
    examples.mkdir(parents=True)
    _written(lambda make: own(make, gift(), "trojai.nets.Net"), inside / "model.pt")
    (inside / "config.json").write_text(json.dumps({"number_classes": 43, "poisoned": True}))
    with np.load(GIFT / "clean.npz") as clean:
        for i, (image, label) in enumerate(zip(clean["images"], clean["labels"], strict=True)):
            Image.fromarray(image).save(examples / f"class_{label}_example_{i}.png")
    return ["scan", "id-00000000", "--images", "id-00000000/clean-example-data", *QUICK]


OPENED = ("tiny (guessed", "clean accuracy 96.5 %", TOLD)
SCANS = (
    _scanned("a whole net", _gift(lambda make: own(make, gift())), OPENED, (1, 3)),
    _scanned("a program", _gift(lambda make: program(gift())), OPENED, (1, 3)),
    _scanned("TrojAI's folder", _trojai, (*OPENED, "labels from file"), (1, 3)),
)


# 3. Hostile all the same ----------------------------------------------------------------------


def _armed(path: Path) -> None:
    records = hostile.records(saved(net()))
    call = hostile.code_pickles(path.parent / "owned")["os.system"][2:-1] + b"0"
    index = records["archive/data.pkl"]
    path.write_bytes(
        hostile.archived({**records, "archive/data.pkl": index[:2] + call + index[2:]})
    )


def _attribute(path: Path) -> None:
    import os

    module = net()
    module.hook = Reduced(os.system, "touch owned")  # type: ignore[assignment]
    path.write_bytes(saved(module))


def _looked_up(path: Path) -> None:
    module = net()
    module.hook = Reduced(getattr, Reduced(__import__, "os"), "system")  # type: ignore[assignment]
    path.write_bytes(saved(module))


def _hostile(name: str, write: Callable[[Path], None], command: str) -> Case:
    def make(folder: Path) -> list[str]:
        write(folder / "model.pt")
        return [command, "model.pt", *(IMAGES if command == "scan" else ())]

    scan = command == "scan"
    return Case(
        name=f"programs: {name}, {command}", fed=f"{command} of a whole net with a call",
        right="refused, nothing is run", make=make, status=(2,) if scan else (1,),
        says=("FS001", "would run code when opened", *(("NOT SCANNED",) * scan)),
        never=(TOLD, "NO BACKDOOR FOUND"), seconds=60,
    )  # fmt: skip


ARMED = {"a call first": _armed, "a call as an attribute": _attribute, "a lookup": _looked_up}

CASES = (
    *(
        _listed(f"{name}{', legacy' * legacy}", file, value, says, legacy)
        for name, (file, value, says) in KINDS.items()
        for legacy in (False, True)
        if not (legacy and "TorchScript" in name)
    ),
    *SCANS,
    *(_hostile(name, write, c) for name, write in ARMED.items() for c in ("inspect", "scan")),
)
