"""What the benchmarks share: a model with its images, success on unseen images, the machine."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.device import half
from gifthorse.core.metrics import asr
from gifthorse.core.types import Goal, Subject, Trigger
from gifthorse.data.samples import InMemory, whole
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.training import predict
from gifthorse.triggers import Additive
from gifthorse.workflows.make import divide

GENERATION, UNSEEN = 100, 1000


def prepare(path: str, data: str, source: int) -> tuple[Subject, InMemory, InMemory]:
    """Return the model, 100 generation images of the source class and 1000 unseen ones."""
    splits, opened = divide(data), load(path)
    net = Classifier(opened.net, splits.normalization, opened.channels).eval()
    subject = Subject(net, splits.train.shape, opened.classes, opened.origin)

    def only(samples: InMemory, count: int) -> InMemory:
        index = (samples.labels == source).nonzero().flatten()[:count]
        return InMemory(samples.images[index], samples.labels[index], samples.classes)

    return subject, only(splits.validation, GENERATION), only(splits.test, UNSEEN)


def success(subject: Subject, delta: Tensor, unseen: InMemory, goal: Goal) -> float:
    """Return the success of a change on unseen images."""
    x, y = whole(unseen)
    return asr(predict(subject, Additive(delta)(x)).argmax(1), y, goal).value


def unseen_success(subject: Subject, trigger: Trigger, unseen: InMemory, goal: Goal) -> float:
    """Return the success of any trigger on unseen images."""
    x, y = whole(unseen)
    return asr(predict(subject, trigger(x)).argmax(1), y, goal).value


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result whole or not at all, so that an interrupted run goes on where it stopped."""
    with atomic(path) as file:
        file.write(json.dumps(result, indent=1).encode())


def kept(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """Return the result that an earlier run kept, or the one to begin with."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else otherwise
    return found


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "amx": str(torch.cpu._is_amx_tile_supported()),
        "bf16": str(half(torch.device("cpu")) is not None),
        "torch": torch.__version__,
        "commit": commit,
    }
