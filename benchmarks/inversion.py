"""How fast is one search step, and how soon does a search reach the size of a plain loop?

Prints JSON with ratios measured in one run: (a) a step of our search against the bare forward and
input gradient of the same folded net; (b) our time to the size and success of the plain reference
loop of `reference_pixel.py` on the same model, images and processor; peak memory of both.

    python benchmarks/inversion.py MODEL.safetensors --data cifar10 --source 0 --target 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifthorse.core.device import half
from gifthorse.core.types import Goal
from gifthorse.data.samples import whole
from gifthorse.inversion import PixelBackdoor
from gifthorse.models.folding import frozen
from gifthorse.search import Search, SearchConfig
from gifthorse.triggers import Additive
from reference_pixel import invert
from setting import machine, prepare, success

# Our quick settings: the published objective with a faster controller and smaller steps.
QUICK = PixelBackdoor(
    mode="clip",
    initial=0.05,
    patience=3,
    config=SearchConfig(
        batch=16, success_threshold=0.9, rounds=300, min_rounds=60, patience=50, bf16=True
    ),
)


def paired(bare: Callable[[], object], ours: Callable[[], object]) -> dict[str, float]:
    """Return median times of two calls made in turn, and the median ratio of neighbors."""
    times: list[tuple[float, float]] = []
    for _ in range(42):
        marks = [time.perf_counter()]
        for call in (bare, ours):
            call()
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    kept = times[2:]  # the first calls warm up
    return {
        "bare_ms": statistics.median(t[0] for t in kept) * 1e3,
        "ours_ms": statistics.median(t[1] for t in kept) * 1e3,
        "ratio": statistics.median(t[1] / t[0] for t in kept),
    }


def bare_step(net: nn.Module, x: Tensor, target: int, *, bf16: bool) -> Callable[[], object]:
    """Return one forward and input gradient of a net and nothing else."""
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = torch.full((len(x),), target)

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(x)
        return torch.autograd.grad(F.cross_entropy(logits.float(), y), x)

    return step


def step_ratio(path: str, data: str, source: int, target: int) -> dict[str, Any]:
    """(a) Return our seconds a step over the bare ones, at the same batch and precision."""
    subject, clean, _ = prepare(path, data, source)
    x = whole(clean)[0]
    net = frozen(subject.net)
    out: dict[str, Any] = {}
    for bf16 in (False, True) if half(torch.device("cpu")) else (False,):
        for batch in (32, 96):
            # A bar no trigger reaches: nothing is verified or stored, a round is one step.
            config = SearchConfig(batch=batch, success_threshold=2.0, steps=1, bf16=bf16)
            method = replace(QUICK, config=config)
            inversion = method(
                subject, clean, [Goal(target, source)], torch.Generator().manual_seed(0)
            )
            arm = torch.tensor([0])
            bare = bare_step(net, x[:batch], target, bf16=bf16)
            key = f"batch {batch}, {'bf16' if bf16 else 'float32'}"
            out[key] = paired(bare, partial(inversion.step, arm))
    return out


def reference(path: str, data: str, source: int, target: int, epochs: int) -> dict[str, Any]:
    """(b) Run the plain loop."""
    subject, clean, unseen = prepare(path, data, source)
    goal, started = Goal(target, source), time.perf_counter()
    found = invert(subject.net, whole(clean)[0], target, epochs=epochs)
    return {
        "seconds": time.perf_counter() - started,
        "pixels": found.pixels,
        "asr": success(subject, found.delta, unseen, goal),
        "image_steps": found.image_steps,
        "curve": found.curve[:: max(1, len(found.curve) // 40)] + found.curve[-1:],
    }


def ours(path: str, data: str, source: int, target: int, _: int) -> dict[str, Any]:
    """(b) Run our search with the quick settings, recording size over time."""
    subject, clean, unseen = prepare(path, data, source)
    goal = Goal(target, source)
    started = time.perf_counter()
    inversion = QUICK(subject, clean, [goal], torch.Generator().manual_seed(0))
    assert isinstance(inversion, Search)
    curve: list[tuple[float, float, float]] = []
    while not bool(inversion.done.all()):
        inversion.step(torch.tensor([0]))
        best = inversion.best[0]
        if best.feasible and (not curve or best.size < curve[-1][1]):
            curve.append((time.perf_counter() - started, best.size, inversion.image_steps))
    seconds = time.perf_counter() - started
    best = inversion.best[0]
    assert isinstance(best.trigger, Additive)
    return {
        "seconds": seconds,
        "pixels": best.size,
        "asr": success(subject, best.trigger.delta, unseen, goal),
        "image_steps": inversion.image_steps,
        "rounds": best.rounds,
        "curve": curve,
    }


def alone(call: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Run a part in a fresh process; add its peak memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (call, arguments))


def _measured(call: Callable[..., dict[str, Any]], arguments: tuple[object, ...]) -> dict[str, Any]:
    result = call(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result | {"peak_mib": peak}


def main() -> None:
    """Run both parts and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--source", type=int, default=0)
    parser.add_argument("--target", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--only-step", action="store_true", help="part (a) alone")
    a = parser.parse_args()
    where = (a.model, a.data, a.source, a.target)
    step = step_ratio(*where)
    if a.only_step:
        print(json.dumps({"machine": machine(), "step": step}, indent=1))
        return
    mine, plain = alone(ours, *where, a.epochs), alone(reference, *where, a.epochs)
    bar = plain["pixels"] * 1.03
    reached = next((t for t, size, _ in mine["curve"] if size <= bar), None)
    ratios = {
        "whole_run": plain["seconds"] / mine["seconds"],
        "to_the_same_size": plain["curve"][-1][0] / reached if reached else None,
        "size": mine["pixels"] / plain["pixels"],
        "asr_difference": mine["asr"] - plain["asr"],
        "peak_memory": mine["peak_mib"] / plain["peak_mib"],
    }
    parts = {"machine": machine(), "step": step, "reference": plain, "ours": mine}
    print(json.dumps(parts | {"ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
