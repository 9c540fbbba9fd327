"""Exit statuses, many models, and options that nobody should give."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copy

import numpy as np
from tests.cases.case import GIFT, QUICK, Case

MODEL, IMAGES = str(GIFT / "gift.safetensors"), str(GIFT / "clean.npz")
FLAGS = ["--images", IMAGES, *QUICK]
WRONG = (2, 3, 4)  # anything but a pass and a finding
NET = "    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4096, {}))\n"


def _scan(*more: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["scan", MODEL, *FLAGS, *more]


def _arch(body: str, arch: str = "own.py:net", **others: str) -> Callable[[Path], list[str]]:
    """A scan of weights of a small net that a stranger's file makes."""

    def make(folder: Path) -> list[str]:
        import torch
        from safetensors.torch import save_file
        from torch import nn

        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4096, 43))
        save_file(net.state_dict(), folder / "m.safetensors")
        head = "from __future__ import annotations\nfrom torch import nn\n"
        (folder / "own.py").write_text(head + body)
        for name, text in others.items():
            (folder / f"{name}.py").write_text("from torch import nn\n" + text)
        return ["scan", "m.safetensors", *FLAGS, "--arch", arch]

    return make


def _several(*models: str, out: str = "") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        for name in ("a", "b", "rep"):
            (folder / name).mkdir()
        for name in ("a", "b"):
            copy(MODEL, folder / name / "model.safetensors")
        copy(MODEL, folder / "...safetensors")
        os.mkfifo(folder / "pipe.pt")
        (folder / "other.pt").write_text("no model at all")
        np.savez(folder / "few.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1])
        more = ["-o", out] if out else []
        return ["scan", *models, *FLAGS, *more]

    return make


def _over(images: str, out: str, command: str = "scan") -> Callable[[Path], list[str]]:
    """A command whose output lies where its images are."""

    def make(folder: Path) -> list[str]:
        (folder / "images").mkdir()
        copy(IMAGES, folder / "clean.npz")
        (folder / "images" / "labels.json").write_text("{}")
        return [command, MODEL, "--images", images, "-o", out]

    return make


def _replaced(folder: Path) -> list[str]:
    kept = (folder / "clean.npz").read_bytes() == Path(IMAGES).read_bytes()
    table = (folder / "images" / "labels.json").read_text() == "{}"
    return [] if kept and table else ["images or labels were replaced"]


def _plan(text: str, *arguments: str, name: str = "p.toml") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_text(text)
        os.mkfifo(folder / "pipe.toml")
        for i in range(25):
            (folder / f"i{i}.toml").write_text(f'include = ["i{i + 1}.toml", "i{i + 1}.toml"]\n')
        (folder / "i25.toml").write_text('name = "end"\n')
        return ["bench", *(arguments or ("plan",)), name]

    return make


GRID = '[[grid]]\ndata = ["mnist"]\nnets = ["tiny"]\n'


def _records(folder: Path) -> list[str]:
    key = "0123456789abcdef"
    record = {
        "schema": 2,
        "key": key,
        "cell": {"data": "mnist", "net": "tiny", "seed": 0},
        "status": "ok",
        "figures": [1, 2],
        "words": [],
        "times": 3,
        "models": "x",
    }
    (folder / "s/records/01").mkdir(parents=True)
    (folder / f"s/records/01/{key}.json").write_text(json.dumps(record))
    return ["bench", "report", "s"]


def _doctored(change: Callable[[dict[str, object]], None]) -> Callable[[Path], list[str]]:
    """A repair by a scan's result that names what the model has not."""

    def make(folder: Path) -> list[str]:
        import hashlib

        digest = hashlib.sha256(Path(MODEL).read_bytes()).hexdigest()
        goal: dict[str, object] = {"target": 3, "source": None}
        change(goal)
        finding = {"severity": "HIGH", "goal": goal, "trigger": None}
        told = {
            "schema_version": "2",
            "target": {"path": MODEL, "sha256": digest},
            "verdict": {
                "label": "BACKDOORED",
                "reason": "",
                "confidence": None,
                "not_covered": [],
                "next_steps": [],
            },
            "findings": [finding],
        }
        (folder / "r.json").write_text(json.dumps(told))
        return ["repair", MODEL, "--images", IMAGES, "--scan", "r.json", "-o", "out.safetensors"]

    return make


def _normalized(record: object) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        from safetensors.torch import load_file, save_file

        said = {"gifthorse": json.dumps({"normalization": record})}
        save_file(load_file(MODEL), folder / "m.safetensors", metadata=said)
        return ["scan", "m.safetensors", *FLAGS]

    return make


ARCHS = (
    Case(
        "faults 3a",
        "--arch file: dataclass and postponed annotations",
        "net is built",
        _arch(
            f"from dataclasses import dataclass\n@dataclass\nclass C:\n    n: int = 43\n"
            f"def net():\n{NET.format('C().n')}"
        ),
        (3,),
        ("own.py:net",),
    ),
    Case(
        "faults 3b",
        "--arch file: argument n_classes",
        "net is built",
        _arch(f"def net(n_classes):\n{NET.format('n_classes')}"),
        (3,),
        ("own.py:net",),
    ),
    Case(
        "faults 3b unknown",
        "--arch file: argument that is not known",
        "names it",
        _arch("def net(width):\n    pass\n"),
        (4,),
        ("needs width, which is not known here",),
    ),
    Case(
        "faults 3c",
        "--arch file that imports its neighbor",
        "net is built",
        _arch(
            "from layers import head\ndef net():\n    return nn.Sequential(*head)\n",
            layers="head = nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4096, 43)\n",
        ),
        (3,),
        ("own.py:net",),
    ),
    Case(
        "faults 3d",
        "--arch module:f in the working folder",
        "net is built",
        _arch(f"def net():\n{NET.format(43)}", "own:net"),
        (3,),
        ("own:net",),
    ),
    Case(
        "arch: exits",
        "--arch file that calls sys.exit(0)",
        "a sentence, status 4",
        _arch("import sys\nsys.exit(0)\n"),
        (4,),
        ("it called exit(0)",),
    ),
    Case(
        "arch: raises",
        "--arch file that raises",
        "a sentence with the line, status 4",
        _arch("1 / 0\n"),
        (4,),
        ("ZeroDivisionError", "own.py, line 3"),
    ),
    Case(
        "arch: forward exits",
        "a forward that calls sys.exit(0)",
        "ERROR, status 2",
        _arch(
            "import sys\nclass N(nn.Sequential):\n    def forward(self, x):\n        sys.exit(0)\n"
            "def net():\n    return N(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4096, 43))\n"
        ),
        WRONG,
    ),
    Case(
        "arch: prints",
        "a file that prints, and -f json",
        "JSON alone on standard output",
        _arch(f"print('hello')\ndef net():\n    print('made')\n{NET.format(43)}"),
        (3,),
    ),
    Case(
        "arch: os:system",
        "--arch os:system",
        "a sentence, status 4",
        _scan("--arch", "os:system"),
        (4,),
        ("needs command",),
    ),
)


def _ring(folder: Path) -> list[str]:
    (folder / "ring.pt").symlink_to(folder / "ring.pt")
    return ["scan", "ring.pt", MODEL, *FLAGS, "-o", "json={name}.json"]


MANY = (
    Case(
        name="runs: ring of links",
        fed="a model that links to itself, and a good one",
        right="the other is scanned",
        make=_ring,
        status=(2, 4),
        says=("ring.pt",),
        leaves=("gift.json",),
    ),
    Case(
        "faults 34",
        "models of one name, one {name}.json",
        "refused at the start",
        _several("a/model.safetensors", "b/model.safetensors", out="json=rep/{name}.json"),
        (4,),
        ("a/model.safetensors and b/model.safetensors would be written",),
        seconds=20,
    ),
    Case(
        "faults 35",
        "one of several is gone, one a pipe, one no model, one a folder with a net",
        "the others are scanned",
        _several("gone.pt", "pipe.pt", "other.pt", "a", "a/model.safetensors"),
        (1, 2),
        ("gone.pt: there is no file", "pipe", "not a model", "a/model.safetensors"),
        seconds=60,
    ),
    Case(
        "hostile-results 4: {name} climbs",
        "-o json=rep/{name}/r.json for ...safetensors",
        "stays below rep",
        _several("...safetensors", out="json=rep/{name}-r.json"),
        (1, 3),
        leaves=("rep/model-r.json",),
    ),
    Case(
        "runs: report over model",
        "-o json=MODEL",
        "refused",
        lambda folder: [*_several("a/model.safetensors")(folder), "-o", "json=a/model.safetensors"],
        (4,),
        ("would replace the model",),
    ),
    Case(
        "runs: report over images",
        "-o json=clean.npz",
        "refused",
        _over("clean.npz", "json=clean.npz"),
        (4,),
        ("would replace a file of clean.npz",),
        check=_replaced,
    ),
    Case(
        "runs: report over a table",
        "-o json=images/labels.json",
        "refused",
        _over("images", "json=images/labels.json"),
        (4,),
        ("would replace a file of images",),
        check=_replaced,
    ),
    Case(
        "runs: repair over images",
        "repair -o clean.npz",
        "refused",
        _over("clean.npz", "clean.npz", "repair"),
        (4,),
        ("would replace a file of clean.npz",),
        check=_replaced,
    ),
    Case(
        "runs: sample of none",
        "sample --per-class 0",
        "status 4",
        lambda folder: ["sample", "--data", IMAGES, "--per-class", "0", "-o", "y.npz"],
        (4,),
        ("--per-class",),
    ),
    Case(
        "runs: report to a device",
        "-o json=/dev/null",
        "refused, the device stays one",
        _scan("-o", "json=/dev/null"),
        (2,),
        ("is no file",),
    ),
    Case(
        "runs: no models",
        "inspect of what is gone, a folder, a file",
        "all are looked at",
        lambda folder: ["inspect", "gone.pt", str(folder), MODEL],
        (4,),
        ("gone.pt: there is no file", "weights only"),
    ),
)

OPTIONS = (
    Case(
        "options: seed",
        "--seed of 20 digits",
        "status 4",
        _scan("--seed", "9" * 20),
        (4,),
        ("--seed",),
    ),
    Case(
        "options: normalize two of three",
        "--normalize 0.5,0.5/0.2,0.2",
        "status 4",
        _scan("--normalize", "0.5,0.5/0.2,0.2"),
        (4,),
        ("has 2 means",),
    ),
    Case(
        "options: normalize nan",
        "--normalize nan/1",
        "status 4",
        _scan("--normalize", "nan/1"),
        (4,),
        ("got 'nan/1'",),
    ),
    Case(
        "options: metadata of two means",
        "a file that names two",
        "left aside",
        _normalized({"mean": [0.5] * 2, "std": [1] * 2}),
        (1, 3),
    ),
    Case(
        "options: metadata of 1000 means",
        "a file that names 1000",
        "left aside",
        _normalized({"mean": [0.5] * 1000, "std": [1] * 1000}),
        (1, 3),
    ),
    Case("options: metadata of another type", "a list", "left aside", _normalized([1]), (1, 3)),
    *(
        Case(
            f"options: {flag} {value[:20]}",
            f"{flag} {value[:40]}",
            "status 4",
            _scan(flag, value),
            (4,),
        )
        for flag, value in (
            ("--limit", "-1"),
            ("--budget", "-3"),
            ("--time-limit", "1e999"),
            ("--input-size", "0x0"),
            ("--input-size", "9" * 30 + "x1"),
            ("--classes", "1-" * 99),
            ("--classes", "99999"),
            ("--device", "cuda:99999999999999999999"),
            ("--images", "x" * 5000),
            ("--images", "/dev/zero"),
            ("--truth", "/dev/zero"),
            ("--truth", "gone"),
            ("--set", "inverter.config.rounds=" + "9" * 5000),
            ("--set", "="),
            ("-f", ""),
        )
    ),
)

PLANS = (
    *(
        Case(
            f"plan: {name}", text[:60], "status 4", _plan(text), (4,), says, seconds=20, memory=900
        )
        for name, text, says in (
            ("include is a number", "include = 3\n", ("include takes a list",)),
            ("include of a device", 'include = ["/dev/zero"]\n', ("a device",)),
            ("include of a pipe", 'include = ["pipe.toml"]\n', ("a pipe",)),
            ("includes double", 'include = ["i0.toml"]\n', ("crosses nothing",)),
            ("itself", 'include = ["p.toml"]\n', ("includes itself",)),
            ("deep", "a = " + "[" * 100_000, ("is no TOML",)),
            ("huge number", "a = " + "9" * 5000, ("is no TOML",)),
            ("a billion seeds", GRID + "seeds = 1_000_000_000\n", ("crosses",)),
            ("infinite", GRID + "[setting]\nimages = inf\n", ()),
            ("text for a table", "setting = 3\n" + GRID, ()),
            ("climbs", 'name = "../.."\n' + GRID, ("no name for a folder",)),
            ("escapes", 'name = "\\u001b[2J"\n' + GRID, ("no name for a folder",)),
        )
    ),
    Case(
        "plan: a device",
        "bench plan /dev/zero",
        "status 4",
        lambda folder: ["bench", "plan", "/dev/zero"],
        (4,),
        ("a device",),
        seconds=20,
    ),
    Case(
        "bench: figures are a list",
        "a record whose figures are a list",
        "no traceback",
        _records,
        (0, 2, 4),
        seconds=30,
    ),
)

REPAIRS = tuple(
    Case(
        f"repair: {name}",
        f"--scan with {name}",
        "status 4",
        _doctored(change),
        (4,),
        ("but the model has classes 0 to 42",),
    )
    for name, change in (
        ("class 999", lambda goal: goal.update(target=999)),
        ("class -1", lambda goal: goal.update(target=-1)),
        ("source 77", lambda goal: goal.update(source=77)),
    )
)

CASES = (*ARCHS, *MANY, *OPTIONS, *PLANS, *REPAIRS)
