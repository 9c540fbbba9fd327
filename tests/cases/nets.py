"""Nets that are not what the tool takes for granted."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.cases.case import GIFT, QUICK, Case

from gifthorse.models import build

# What wraps the shipped net: a constructor `make` that takes a state dict of `tiny` as it is, named
# alike, with another forward.
PRELUDE = """
import torch
import torch.nn.functional as F
from collections import namedtuple
from dataclasses import dataclass
from torch import nn
from gifthorse.models import build

class Inner(nn.Module):
    def __init__(self, num_classes=43, in_channels=3):
        super().__init__()
        self.before()
        self.names = []
        for name, child in build("tiny", 43, 3).named_children():
            self.names.append(name)
            self.add_module(name, child)
        self.after()

    def before(self):
        pass

    def after(self):
        pass

    def plain(self, x):
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x):
        return self.answer(x)
"""

CLEAN = str(GIFT / "clean.npz")
TRIGGER = str(GIFT / "gift.trigger.safetensors")


def wrapped(
    folder: Path,
    body: str,
    *,
    weights: str = "gift",
    more: dict[str, torch.Tensor] | None = None,
) -> list[str]:
    """Write a net around the shipped one as `net.py:Net`, and its file; return model and --arch.

    Args:
        folder: Where to.
        body: The lines of a class `Net(Inner)`.
        weights: Which of the shipped files.
        more: Further tensors of the state dict; the file then has no metadata.
    """
    (folder / "net.py").write_text(f"{PRELUDE}\n\nclass Net(Inner):\n{indent(body)}\n")
    file = GIFT / f"{weights}.safetensors"
    if more is None:
        shutil.copy(file, folder / "m.safetensors")
    else:
        save_file({**load_file(file), **more}, folder / "m.safetensors")
    return ["m.safetensors", "--arch", "net.py:Net"]


def indent(body: str) -> str:
    """Return lines as those of a class."""
    return "\n".join(f"    {line}" for line in body.strip("\n").splitlines())


def answers(expression: str) -> str:
    """Return the body of a net that returns an expression of `y` (logits) and `x` (its input)."""
    return f"def answer(self, x):\n    y = self.plain(x)\n    return {expression}"


def scan(
    folder: Path,
    body: str,
    *flags: str,
    weights: str = "gift",
    more: dict[str, torch.Tensor] | None = None,
    normalize: str = "",
) -> list[str]:
    """Return the arguments that scan a wrapped net; see `wrapped`."""
    normalize = normalize or ("" if more is None else "gtsrb")  # such a file has no metadata
    named = ("--normalize", normalize) if normalize else ()
    given = wrapped(folder, body, weights=weights, more=more)
    return ["scan", *given, "--images", CLEAN, *named, *QUICK, *flags]


def small(
    folder: Path, code: str, state: dict[str, torch.Tensor], *flags: str, side: int = 32
) -> list[str]:
    """Return the arguments that scan a net of the user's own on 40 images of noise."""
    (folder / "net.py").write_text(code)
    save_file(state or {"unused": torch.zeros(1)}, folder / "m.safetensors")
    noise(folder / "x.npz", side)
    return ["scan", "m.safetensors", "--arch", "net.py:Net", "--images", "x.npz", *QUICK, *flags]


def noise(path: Path, side: int, classes: int = 4, channels: int = 3, images: int = 40) -> None:
    """Write images of noise with labels in turn."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (images, side, side, channels), dtype=np.uint8)
    np.savez(path, images=x, labels=np.arange(images) % classes)


def untrained(
    folder: Path,
    arch: str = "lisa_cnn",
    classes: int = 18,
    channels: int = 3,
    image_channels: int | None = None,
    side: int = 28,
) -> None:
    """Write a net of the list with random weights, and images."""
    torch.manual_seed(0)
    net = build(arch, classes, channels)
    save_file(net.state_dict(), folder / "m.safetensors")
    noise(folder / "x.npz", side, max(2, classes), image_channels or channels)


def command(name: str, model: list[str], images: str, *more: str) -> list[str]:
    """Return the arguments of a command on a model, with whatever else it asks for."""
    file, *arch = model
    flags = [*arch, "--images", images, *more]
    return {
        "scan": ["scan", file, *flags, *QUICK],
        "repair": ["repair", file, *flags, "-o", "out.safetensors"],
        "compare-triggers": ["compare-triggers", file, *flags],
        "filter": ["filter", images, "--model", file, *flags],
        "analyze": ["analyze", file, *flags, "-o", "out", "--trigger", TRIGGER],
    }[name]


def on_noise(
    folder: Path, *, name: str = "scan", more: tuple[str, ...] = (), **given: Any
) -> list[str]:
    """Return the arguments of a command on an untrained net and images of noise."""
    untrained(folder, **given)
    return command(name, ["m.safetensors"], "x.npz", *more)


def of_one_logit(folder: Path, name: str) -> list[str]:
    """Return the arguments of a command on a net with one output."""
    return command(name, wrapped(folder, answers("y[:, :1]")), CLEAN)


NEVER = ("NO BACKDOOR FOUND",)


def like_gift(name: str, fed: str, body: str, *says: str, **given: Any) -> Case:
    """A wrapped gift that is scanned like the plain one; so short a search cannot pass it."""
    return Case(
        name,
        fed,
        "scanned as the plain net is",
        partial(scan, body=body, **given),
        (1, 3),
        ("clean accuracy 96.5 %", "43 classes", "pixel_quick", *says),
        NEVER,
    )


def named(name: str, fed: str, body: str, *says: str, **given: Any) -> Case:
    """A wrapped gift of which the report says in words why it cannot be examined."""
    make = partial(scan, body=body, **given)
    return Case(name, fed, "named; no verdict", make, (2, 3), says, (*NEVER, "SUSPICIOUS"))


RECORD = """
@dataclass
class Out:
    logits: torch.Tensor
    loss: object = None

def answer(self, x):
    return self.Out(self.plain(x))
"""
TUPLE = """
Out = namedtuple("Out", ["aux", "logits"])

def answer(self, x):
    y = self.plain(x)
    return self.Out(y[:, :7], y)
"""
STRICT = """
def answer(self, x):
    assert isinstance(x, torch.Tensor)
    return self.plain(x)
"""
MISREAD = """
def answer(self, x):
    y = self.plain(x)
    return y if isinstance(x, torch.Tensor) else y.flip(1)
"""
LAYOUT = """
def answer(self, x):
    for name in self.names:
        x = self.get_submodule(name)(x)
        x = x.view(len(x), -1).view(x.shape)
    return x
"""
TURNED = """
def after(self):
    self.rot_fc = nn.Linear(8, 4)

def answer(self, x):
    return self.plain(x)
"""
HEAD_FIRST = """
def before(self):
    self.top = nn.Conv2d(96, 7, 1)

def answer(self, x):
    return self.plain(x)
"""
MASK = """
def after(self):
    self.register_buffer("mask", torch.zeros(4, 4))

def answer(self, x):
    return self.plain(x)
"""
FROZEN = """
def train(self, mode=True):
    super().train(mode)
    for m in self.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()

answer = Inner.plain
"""
LIGHT = """
answer = Inner.plain

def get_extra_state(self):
    return {"epoch": 3}

def set_extra_state(self, state):
    raise AssertionError

def load_state_dict(self, path):
    raise OSError(path)
"""
LAZY = """
def after(self):
    self.late = nn.LazyLinear(3)

answer = Inner.plain
"""
GRID = """
grid = None

def answer(self, x):
    if self.grid is None:
        self.grid = torch.ones(1, 3, 1, 1)
    return self.plain(x * self.grid)
"""
TOP = {"top.weight": torch.zeros(7, 96, 1, 1), "top.bias": torch.zeros(7)}
ROT = {"rot_fc.weight": torch.zeros(4, 8), "rot_fc.bias": torch.zeros(4)}
FORBIDDEN = {"mask": torch.full((4, 4), -torch.inf).triu(1)}

TAKEN = (
    like_gift(
        "faults 1a", "logits and features, a tuple", answers("(y, x.flatten(1))"), "0 is taken"
    ),
    like_gift(
        "nets: features first", "a list, logits last", answers("[x.flatten(1), y]"), "1 is taken"
    ),
    like_gift(
        "faults 1b", "a dictionary", answers("{'features': x, 'logits': y}"), "logits is taken"
    ),
    like_gift("nets: record", "a data class with logits", RECORD, "logits is taken"),
    like_gift("nets: named tuple", "a named tuple with logits", TUPLE, "logits is taken"),
    like_gift(
        "nets: nested", "a tuple in a dictionary", answers("{'head': (y, None)}"), "head.0 is taken"
    ),
    like_gift(
        "nets: map", "shape (N, K, 1, 1)", answers("y[:, :, None, None]"), "one row an image"
    ),
    like_gift(
        "nets: squeeze", "(K,) for a single image", answers("y.squeeze()"), "one row an image"
    ),
    like_gift("nets: half", "logits in 16 bits", answers("y.half()")),
    like_gift("nets: double", "logits in 64 bits", answers("y.double()")),
    like_gift("nets: log-softmax", "log-probabilities", answers("y.log_softmax(1)")),
    like_gift(
        "nets: softmax", "probabilities", answers("y.softmax(1)"), "their logarithms are taken"
    ),
    like_gift("faults 4a", "a forward that insists on a tensor", STRICT),
    like_gift("nets: misread", "another way through where it is traced", MISREAD),
    like_gift("nets: layout", "a forward that counts on how memory is laid out", LAYOUT),
    like_gift("faults 5a", "a second, smaller head beside the classifier", TURNED, more=ROT),
    like_gift("faults 5c", "a head that is declared before the features", HEAD_FIRST, more=TOP),
    like_gift("faults 6", "a mask of minus infinity", MASK, more=FORBIDDEN),
    like_gift("nets: kept grid", "a forward that keeps what it computes first", GRID),
    like_gift("nets: frozen statistics", "a train() that returns nothing", FROZEN),
    like_gift("nets: extra state", "layers that keep more than tensors, own loading", LIGHT),
)

FIXED = """
def answer(self, x):
    return self.plain(x.view(32, 3, 32, 32))
"""
RAISING = """
def answer(self, x):
    raise KeyError("no such layer")
"""
BATCH_NORM = """
def answer(self, x):
    for m in self.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train()
            m.momentum = 0.0
    return self.plain(x)
"""
TRAINING = """
def answer(self, x):
    self.train()
    return self.plain(x)
"""
NOISE = """
def answer(self, x):
    return self.plain(x + 0.1 * torch.randn_like(x))
"""
COUNTER = """
calls = 0

def answer(self, x):
    self.calls += 1
    return self.plain(x) * (1 + self.calls / 100)
"""
LEARNING = """
def after(self):
    self.register_buffer("seen", torch.zeros(1))

def answer(self, x):
    self.seen += len(x)
    return self.plain(x)
"""
GAMMA = """
mean, std = torch.tensor([0.3403, 0.3121, 0.3214]), torch.tensor([0.2724, 0.2608, 0.2669])

def answer(self, x):
    linear = x.pow(1 / 2.2).pow(2.2)
    return self.plain((linear - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1))
"""
ROUNDED = """
def answer(self, x):
    return self.plain((x * 64).round() / 64)
"""
CUT = """
def answer(self, x):
    return self.plain(x.detach())
"""
NO_GRAD = """
def answer(self, x):
    with torch.no_grad():
        return self.plain(x)
"""
LIE = """
class Lie(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.randn(g.shape, generator=torch.Generator().manual_seed(0)) * 100

def answer(self, x):
    return self.plain(self.Lie.apply(x))
"""
SEVERAL = answers("torch.where(y >= y.topk(3, 1).values[:, 2:], 6 + y / 20, y / 20 - 6)")
ONE_CLASS = answers("y + 1000 * F.one_hot(torch.tensor(5), 43)")
OWN_NORM = answers("(y - y.mean(0)) / y.std(0).clamp(min=1e-3)")
KEPT = load_file(GIFT / "gift.safetensors")
SPOILED = {k: v * torch.nan for k, v in KEPT.items() if k.endswith("0.weight")}
NEGATIVE = {k: -v for k, v in KEPT.items() if k.endswith("running_var")}
COMPANY, PASSES = "depend on the other images", "Two passes over the same images"
BLIND = "No gradient reaches"

REFUSED = (
    named(
        "nets: class numbers", "the class alone", answers("y.argmax(1)"), "class numbers in place"
    ),
    named("nets: nothing", "a forward that returns nothing", answers("None"), "returns no logits"),
    named(
        "nets: wrong batch", "one row less than images", answers("y[:-1]"), "expected a floating"
    ),
    named(
        "nets: fixed batch", "a forward for 32 images", FIXED, "the net fails on images of 32x32"
    ),
    named(
        "nets: several",
        "two tensors of other widths",
        answers("(y[:, :7], y[:, :9])"),
        "told which",
    ),
    replace(
        named("faults 13", "one logit, images of 43 classes", answers("y[:, :1]"), "2 classes"),
        status=(4,),
    ),
    named("nets: raising", "a forward that always raises", RAISING, "32x32", "no such layer"),
    named("nets: not finite", "outputs that are not numbers", answers("y / 0 * 0"), "not finite"),
    named("faults 7", "BatchNorm without running statistics", BATCH_NORM, COMPANY),
    named("nets: own norm", "a normalization over the batch", OWN_NORM, COMPANY),
    named("nets: train mode", "a forward that switches to training", TRAINING, "INCONCLUSIVE"),
    named("nets: dropout", "dropout that is always on", answers("F.dropout(y, 0.5)"), PASSES),
    named("nets: noise", "noise that is added to images", NOISE, PASSES),
    named("nets: counter", "a forward that changes from call to call", COUNTER, PASSES),
    named(
        "nets: learning",
        "a buffer that grows",
        LEARNING,
        "changes its own",
        more={"seen": torch.zeros(1)},
    ),
    named("faults 8", "a sigmoid, clean", answers("y.sigmoid()"), "several labels", weights="twin"),
    named("nets: sigmoid", "a sigmoid, backdoored", answers("y.sigmoid()"), "several labels"),
    named("nets: multi-label", "several logits far above zero at once", SEVERAL, "several labels"),
    named("faults 11", "gamma correction", GAMMA, "are not finite numbers", normalize="none"),
    named("hostile 40", "pixels are rounded in the net", ROUNDED, BLIND),
    named("nets: detached", "the net cuts its input off", CUT, BLIND),
    named("nets: no_grad", "a forward under no_grad", NO_GRAD, BLIND),
    named("nets: lie", "a backward pass of its own that is untrue", LIE, "gradients promise"),
    named(
        "hostile 33", "constant outputs", answers("y * 0 + torch.arange(43.)"), "the same for every"
    ),
    named("nets: one class", "one class for every image", ONE_CLASS, "calls every image class 5"),
    named("nets: NaN", "a weight that is no number", answers("y"), "hold NaN", more=SPOILED),
    named("hostile 32", "variances below zero", answers("y"), "negative variances", more=NEGATIVE),
)

ZERO = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3072, 4)

    def forward(self, x):
        return self.fc(x.flatten(1))
"""


def zero(folder: Path) -> list[str]:
    """Return the arguments that scan a net of zeros."""
    return small(folder, ZERO, {"fc.weight": torch.zeros(4, 3072), "fc.bias": torch.zeros(4)})


COMMANDS = ("scan", "repair", "compare-triggers", "analyze", "filter")
SIZE = ("images of 28x28 pixels", "--input-size 32x32")
FOUR = ("the model takes images of 4 channels", "only gray (1) and color (3)")
POOR = ("Clean accuracy",)
OTHERS = (
    *(
        Case(
            "faults 2c" if name == "filter" else f"faults 2a, {name}",
            f"{name}: images of another size than the net takes",
            "names size and --input-size",
            partial(on_noise, name=name),
            (2, 3, 4),
            SIZE,
            NEVER,
        )
        for name in COMMANDS
    ),
    *(
        Case(
            f"nets: {name} with a size",
            f"{name}: the same with the size that the net takes",
            "the net runs, and is found untrained",
            partial(on_noise, more=("--input-size", "32x32"), name=name),
            (3,),
            POOR,
            NEVER,
        )
        for name in ("scan", "repair", "compare-triggers", "filter")
    ),
    *(
        Case(
            f"nets: {name}, one logit",
            f"{name}: a net with one logit",
            "one sentence",
            partial(of_one_logit, name=name),
            (2, 3, 4),
            ("2 classes",),
        )
        for name in COMMANDS[1:]
    ),
    Case(
        "faults 12",
        "a net with four input channels",
        "the model is said to have four",
        partial(on_noise, arch="tiny", classes=4, channels=4, side=32),
        (2, 3, 4),
        FOUR,
        NEVER,
    ),
    Case(
        "faults 13, of the list",
        "a net of the list with one logit",
        "says that one output is taken for two classes",
        partial(on_noise, arch="tiny", classes=1, side=32),
        (2, 3, 4),
        ("one output",),
        NEVER,
    ),
    Case(
        "hostile 33, zeros",
        "a net of zeros",
        "named; no verdict",
        zero,
        (2, 3),
        ("the same for every image",),
        NEVER,
    ),
)

LATE = Case(
    "nets: lazy",
    "a layer without a width",
    "says which",
    partial(scan, body=LAZY),
    (4,),
    ("without numbers in late.weight",),
)

CASES = (
    LATE,
    Case(
        name="control",
        fed="the shipped gift, cut short",
        right="a verdict that is no pass",
        make=lambda folder: ["scan", str(GIFT / "gift.safetensors"), "--images", CLEAN, *QUICK],
        status=(1, 3),
        seconds=30,
    ),
    *TAKEN,
    *REFUSED,
    *OTHERS,
)
