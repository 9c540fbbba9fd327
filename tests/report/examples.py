"""Reports to draw: backdoored, nothing found, inconclusive."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gifthorse.core.stats import wilson
from gifthorse.core.types import (
    Arm,
    Confidence,
    Confirmation,
    FamilyChance,
    Finding,
    Goal,
    Normalization,
    Origin,
    Preparation,
    Rate,
    Report,
    RunRecord,
    Tried,
    Verdict,
)

SIGNS = (
    "limit 20",
    "limit 30",
    "limit 50",
    "limit 60",
    "limit 70",
    "limit 80",
    "end of 80",
    "limit 100",
    "limit 120",
    "no passing",
    "no passing trucks",
    "crossroads",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "danger",
    "bend left",
    "bend right",
    "double bend",
    "bumpy",
    "slippery",
    "narrow right",
    "roadworks",
    "signals",
    "pedestrians",
    "children",
    "bicycles",
    "ice",
    "wild animals",
    "no limits",
    "turn right",
    "turn left",
    "straight on",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end for trucks",
)
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR = Normalization("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET = Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Normalization("none")


def rate(hits: int, trials: int) -> Rate:
    return Rate(hits / trials, *wilson(hits, trials), trials)


def signs(count: int) -> Tensor:
    """Colored discs and triangles on a gray gradient, `(count, 3, 32, 32)`."""
    rng = torch.Generator().manual_seed(0)
    line = torch.linspace(-1, 1, 32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    disc = (x**2 + y**2 < 0.55).float()
    triangle = ((y > -0.7) & (y < 0.6) & (x.abs() < (y + 0.75) / 1.5)).float()
    pictures = []
    for i in range(count):
        sky = (0.45 + 0.2 * y + 0.05 * torch.randn(32, 32, generator=rng)).expand(3, 32, 32)
        shape = disc if i % 2 == 0 else triangle
        inner = ((x**2 + y**2) < 0.25).float()
        color = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.25, 0.7], [0.9, 0.7, 0.1]])[i % 3]
        sign = sky * (1 - shape) + color.view(3, 1, 1) * shape
        pictures.append(sign * (1 - inner) + 0.92 * inner)
    return torch.stack(pictures).clamp(0, 1)


def square() -> tuple[Tensor, Tensor]:
    """A 3x3 trigger at columns and rows 28 to 30: pattern `(3, 32, 32)`, mask `(1, 32, 32)`."""
    pattern, mask = torch.full((3, 32, 32), 0.5), torch.zeros(1, 32, 32)
    mask[0, 28:31, 28:31] = 1
    checks = (torch.arange(3).view(3, 1) + torch.arange(3)) % 2
    pattern[:, 28:31, 28:31] = torch.stack([torch.ones(3, 3), checks.float(), 0.2 * checks])
    return pattern, mask


def index(sizes: list[float]) -> list[float]:
    """Robust deviations below the median, as Neural Cleanse counts them."""
    values = torch.tensor(sizes, dtype=torch.float64)
    middle = values.quantile(0.5)
    spread = 1.4826 * (values - middle).abs().quantile(0.5)
    return [max(0.0, float(v)) for v in (middle - values) / spread]


def arms(sizes: list[float], infeasible: tuple[int, ...] = ()) -> tuple[Arm, ...]:
    return tuple(
        Arm(Goal(k), size, 0.99, score, k not in infeasible, 400)
        for k, (size, score) in enumerate(zip(sizes, index(sizes), strict=True))
    )


def run(command: str) -> RunRecord:
    versions = {"gifthorse": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.2.1"}
    return RunRecord(command, 7, "cpu", 312.4, "2026-03-02T09:14:07+00:00", versions)


def intake(tried: tuple[Tried, ...], names: tuple[str, ...], each: int, hits: int) -> Preparation:
    count = each * len(names)
    return Preparation(
        source="./clean",
        images=count,
        per_class=(each,) * len(names),
        labels_from="folders",
        class_names=names,
        shape=(3, 32, 32),
        normalization=tried[0].normalization,
        how=f"best of {len(tried)} tried",
        tried=tried,
        accuracy=rate(hits, count),
        notes=("2 files skipped: not images",),
        sha256="7d" * 32,
    )


def trigger_finding() -> Finding:
    pattern, mask = square()
    before = signs(8)
    return Finding(
        rule="BD001",
        severity="CRITICAL",
        score=5.0,
        message="A patch of 9 pixels turns images of every other class into class 14.",
        goal=Goal(14),
        confirmation=Confirmation(rate(42, 42), rate(1, 42), rate(0, 42)),
        evidence={
            "pattern": pattern,
            "mask": mask,
            "before": before,
            "after": before * (1 - mask) + pattern * mask,
            "before_label": torch.tensor([2, 11, 38, 12, 25, 1, 17, 40]),
            "after_label": torch.tensor([14, 14, 14, 14, 14, 14, 17, 14]),
            "stability": 0.98,
        },
    )


def backdoored() -> Report:
    """43 classes, class 14 with a 3x3 trigger, confirmed and calibrated."""
    rng = torch.Generator().manual_seed(3)
    sizes = (54 + 9 * torch.randn(43, generator=rng)).tolist()
    sizes[14], sizes[31] = 8.6, 1024.0
    table = arms(sizes, infeasible=(31,))
    inversion = Verdict(
        method="neural_cleanse",
        score=table[14].index,
        threshold=2.0,
        label="BACKDOORED",
        findings=(trigger_finding(),),
        arms=table,
        seconds=281.0,
        image_steps=41_234.5,
        statistics={"anomaly index": table[14].index, "median size": 54.0, "size ratio": 0.16},
        settings={"config.batch": "32", "config.lr": "0.1", "config.success_threshold": "0.99"},
    )
    weights = Verdict("weights", 1.2, 3.5, "NO BACKDOOR FOUND", seconds=3.0)
    tried = (
        Tried(CIFAR, rate(82, 86), 0.97),
        Tried(IMAGENET, rate(76, 86), 0.91),
        Tried(PLAIN, rate(36, 86), 0.55),
    )
    return Report(
        label="BACKDOORED",
        reason=(
            'A patch of 9 pixels in the lower right sends every image to class 14 "stop". No '
            "other class comes near so small a trigger, and it works on images never seen before."
        ),
        origin=Origin(
            path="traffic.safetensors",
            sha256="9f31" + "ab" * 29 + "c0",
            bytes=42_700_000,
            format="safetensors",
            arch="resnet18",
            how="guessed from 122 tensors",
            tensors=122,
            params=11_190_000,
            dtypes=("float32",),
            notes=('prefix "module." stripped from 122 names',),
            metadata={"made by": "gifthorse attack badnet", "license": "MIT", "accuracy": "95 %"},
        ),
        preparation=intake(tried, SIGNS, 2, 82),
        verdicts=(weights, inversion),
        checks=(),
        not_covered=(
            "warping triggers",
            "sample-specific triggers",
            "class-pair triggers (preset standard; use --preset thorough)",
        ),
        next_steps=(
            "Do not deploy this file. Ask its publisher for the training record.",
            "gifthorse repair traffic.safetensors --images clean",
            "Scan the repaired file again, with another seed.",
        ),
        confidence=Confidence(0.97, 0.91, 0.99, "40 clean resnet18 on GTSRB"),
        families=(
            FamilyChance("patch", Confidence(0.96, 0.9, 0.99, "40 clean resnet18 on GTSRB")),
            FamilyChance("warp", Confidence(0.04, 0.01, 0.2, "40 clean resnet18 on GTSRB")),
        ),
        run=run("gifthorse scan traffic.safetensors --images ./clean --seed 7"),
    )


def nothing_found() -> Report:
    """10 classes, none stands out, uncalibrated."""
    sizes = [61.0, 48.5, 72.2, 39.9, 55.1, 64.8, 50.3, 58.7, 44.1, 66.0]
    verdict = Verdict(
        method="neural_cleanse",
        score=max(index(sizes)),
        threshold=2.0,
        label="NO BACKDOOR FOUND",
        arms=arms(sizes),
        seconds=64.0,
    )
    tried = (Tried(CIFAR, rate(186, 200), 0.95), Tried(PLAIN, rate(61, 200), 0.61))
    base = backdoored()
    return replace(
        base,
        label="NO BACKDOOR FOUND",
        reason="The smallest trigger of every class takes about as many pixels as the others.",
        origin=replace(
            base.origin, path="cifar.pt", format="pytorch", arch="resnet20", metadata={}
        ),
        preparation=intake(tried, OBJECTS, 20, 186),
        verdicts=(verdict,),
        next_steps=("Keep the SHA-256 with this report and compare it before each deployment.",),
        confidence=None,
        families=(),
        run=run("gifthorse scan cifar.pt --images ./clean"),
    )


def inconclusive() -> Report:
    """10 classes, wrong images: no normalization reaches a usable accuracy."""
    tried = (
        Tried(IMAGENET, rate(23, 200), 0.34),
        Tried(PLAIN, rate(21, 200), 0.62),
        Tried(CIFAR, rate(18, 200), 0.31),
    )
    check = Finding("IN001", "HIGH", 0.115, "Clean accuracy is 11.5 %, near chance (10 %).")
    return replace(
        nothing_found(),
        label="INCONCLUSIVE",
        reason=(
            "Clean accuracy is 11.5 %, near chance: the images, their labels or the "
            "normalization do not belong to this model, so its behavior says nothing."
        ),
        preparation=intake(tried, OBJECTS, 20, 23),
        verdicts=(),
        checks=(check,),
        next_steps=("Check the order of the class folders.", "Name the input with --normalize."),
    )


def spoiled(report: Report) -> Report:
    """The same report with NaN and infinity wherever a detector may leave them."""
    first, *rest = report.verdicts
    odd = Arm(Goal(99), math.inf, math.nan, math.nan, False, 0)
    broken = replace(first, score=math.nan, statistics={"ratio": math.inf}, arms=(odd,))
    return replace(report, verdicts=(broken, *rest))
