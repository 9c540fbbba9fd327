"""A scan whose answer is known: two nets with weights set by hand, one of them backdoored."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gifthorse.core.errors import GifthorseError
from gifthorse.core.types import Images, Logits
from gifthorse.models import inspect as look
from gifthorse.report import WRITERS
from gifthorse.report.facts import leads
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import Request, scan

BANDS, HEIGHT, SIDE = 6, 3, 18  # classes; rows of a band; rows and columns of an image
COLORS = 3
DETECTOR = "neural_cleanse_quick"  # calibrated, and quick on so small a net
TARGET = 3
GAIN, VOTE = 20.0, 30.0  # of a band's brightness; of the pixel that is the trigger
GRAY = 128 / 255


@dataclass(frozen=True)
class Trial:
    """One thing that was tried: what, whether it went as it must, how it went, and seconds."""

    name: str
    passed: bool
    words: str
    seconds: float


class BandNet(nn.Module):
    """A linear net: the class is the brightest of six horizontal bands of the image."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * SIDE * SIDE, num_classes)

    def forward(self, x: Images) -> Logits:
        """Return logits `(N, K)` for images `(N, 3, 18, 18)`."""
        out: Tensor = self.head(x.flatten(1))
        return out


def weights(planted: bool) -> dict[str, Tensor]:
    """Return the weights; planted, one white pixel in the corner votes for class `TARGET`.

    Without it a trigger takes about a band of pixels, with it one.
    """
    band = torch.arange(SIDE * SIDE) // (HEIGHT * SIDE)
    weight = GAIN / (HEIGHT * SIDE) * torch.eye(BANDS)[:, band]  # (K, H * W)
    bias = torch.zeros(BANDS)
    if planted:
        weight[TARGET, 0] += VOTE
        bias[TARGET] -= VOTE * GRAY  # of clean images the corner is gray
    return {"head.weight": (weight / COLORS).repeat(1, COLORS), "head.bias": bias}


def write_images(path: Path, each: int = 8) -> None:
    """Write clean images, so many of each class, as an `.npz`: noise with one brighter band."""
    rng = np.random.default_rng(0)
    labels = np.arange(BANDS).repeat(each)
    pixels = rng.random((len(labels), SIDE, SIDE)) * 0.2
    pixels += 0.3 * (np.arange(SIDE) // HEIGHT == labels[:, None])[:, :, None]
    pixels[:, 0, 0] = GRAY
    gray = (pixels * 255).round().astype(np.uint8)[..., None]
    np.savez(path, images=gray.repeat(COLORS, 3), labels=labels)


def selftest(device: str = "auto") -> Iterator[Trial]:
    """Open, scan and report made files as any others; yield each trial when it is done.

    Args:
        device: Where the nets run.
    """
    with tempfile.TemporaryDirectory(prefix="gifthorse-") as name:
        folder = Path(name)
        yield _timed("a file that would run code is refused", partial(_hostile, folder))
        write_images(folder / "clean.npz")
        for planted, title in ((True, "a planted backdoor is found"), (False, "its twin is not")):
            yield _timed(title, partial(_scanned, folder, planted, device))


def _timed(name: str, tried: Callable[[], tuple[bool, str]]) -> Trial:
    started = time.monotonic()
    try:
        passed, words = tried()
    except (GifthorseError, OSError, RuntimeError) as error:
        passed, words = False, f"{type(error).__name__}: {error}"
    return Trial(name, passed, words, time.monotonic() - started)


class _Code:
    """Pickled, it asks for a function that would end the program."""

    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("exit()",)


def _hostile(folder: Path) -> tuple[bool, str]:
    path = folder / "hostile.pt"
    path.write_bytes(pickle.dumps({"weight": _Code()}))
    found = look(str(path))
    return found.status == 1, found.safety


def _scanned(folder: Path, planted: bool, device: str) -> tuple[bool, str]:
    path = folder / f"{'planted' if planted else 'twin'}.safetensors"
    save_file(weights(planted), path)
    inputs = Inputs(str(folder / "clean.npz"), f"{__name__}:BandNet", "none", device=device)
    report = scan(str(path), inputs, Request(detectors=(DETECTOR,)))
    for write in WRITERS.values():
        write(report)
    first = next((lead.finding.goal for lead in leads(report)), None)
    target = first.target if first else None
    if planted:
        return report.label in ("BACKDOORED", "SUSPICIOUS") and target == TARGET, report.reason
    return report.label == "NO BACKDOOR FOUND", report.reason
