"""Weights before and after, time and memory."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median

import torch
from safetensors.torch import load, save
from torch import nn

from gifthorse.analysis.separation import HALF, Separation, compared
from gifthorse.core.errors import NotApplicable
from gifthorse.core.types import Images, Subject
from gifthorse.models.features import features
from gifthorse.workflows.evaluate import EvalImages


def digest(net: nn.Module) -> str:
    """Return a hash of all that a net's state dict holds: names, types, shapes and bytes."""
    out = hashlib.sha256()
    for name, value in net.state_dict().items():
        plain = value.detach().cpu().contiguous()
        out.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        out.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def resaved(net: nn.Module, like: nn.Module) -> nn.Module | None:
    """Return a net as it would come out of a file of weights, in evaluation mode.

    Args:
        net: The net to save.
        like: A net of the architecture that the file would be read into; it stays as it was.

    Returns:
        The net that was read; None if its kind or the shapes of its weights are others, so that
        weights alone would not bring it back.
    """
    state, place = net.state_dict(), like.state_dict()
    shapes, wanted = ({k: v.shape for k, v in d.items()} for d in (state, place))
    if type(net) is not type(like) or shapes != wanted:
        return None
    plain = {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}
    read = deepcopy(like).eval()
    read.load_state_dict(load(save(plain)))
    return read


def separation_of(subject: Subject, images: EvalImages) -> Separation | None:
    """Return how far apart neurons are on images and the same with a trigger, or None.

    There is no such figure without stamped images, and of a net without features.

    Source: TrojanZoo sec. 4.2, eq. 4, over the half of the neurons that is most active; see
    `analysis.separation`.
    """
    applies = images.applies_to
    if images.stamped is None or not bool(applies.any()):
        return None
    try:
        with torch.no_grad():
            seen = [
                torch.cat(
                    [
                        features(subject, part.to(subject.device)).cpu()
                        for part in x[applies].split(512)
                    ]
                )
                for x in (images.x, images.stamped)
            ]
    except NotApplicable:
        return None
    before, after = (inside.double().mean(0) for inside in seen)
    return compared(before, after, [HALF])[0]


def seconds(run: Callable[[Images], object], x: Images, repeats: int) -> float:
    """Return the median seconds an image, after one run to warm up; it must wait for its device."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run(x)  # what it returns is on the CPU, so that nothing is left to be done elsewhere
        times.append(time.perf_counter() - started)
    return median(times[1:]) / len(x)


def peak_bytes() -> int | None:
    """Return the most memory that the process has held so far, if the system tells."""
    try:
        import resource  # late: not everywhere
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
