"""Make a test model with a backdoor and see whether a scan finds it: seconds on one core.

python examples/implant_and_scan.py
"""

from __future__ import annotations

import torch
from torch import Generator

from gifthorse.attacks import BadNet
from gifthorse.attacks.poisoning import Mixing
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject, Verdict
from gifthorse.data import InMemory, whole
from gifthorse.detection import Inspector
from gifthorse.inversion import PixelBackdoor
from gifthorse.models import NORMALIZATIONS, Classifier, build
from gifthorse.search import PatchInit, SearchConfig
from gifthorse.training import Recipe, predict
from gifthorse.triggers import Stamp

CLASSES, SIDE = 6, 16


def discs(each: int, seed: int) -> InMemory:
    """Return dark noise with a disc somewhere; the class is the disc's color."""
    rng = Generator().manual_seed(seed)
    y = torch.arange(CLASSES).repeat(each)
    bits = torch.stack([(y + 1) >> b & 1 for b in range(3)], 1).float()  # (N, 3)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    center = torch.randint(5, SIDE - 5, (2, len(y), 1, 1), generator=rng)
    inside = ((row - center[0]) ** 2 + (column - center[1]) ** 2 < 16)[:, None]  # (N, 1, H, W)
    noise = torch.randint(0, 90, (len(y), 3, SIDE, SIDE), generator=rng).float()
    x = torch.where(inside, noise + 150 * bits[:, :, None, None], noise)
    return InMemory(x.byte(), y, CLASSES)


def main(target: int = 2) -> Verdict:
    """Implant a 2x2 patch, measure what the net does, then scan it knowing nothing of that."""
    torch.manual_seed(0)
    rng = Generator().manual_seed(0)
    net = Classifier(build("tiny", CLASSES), NORMALIZATIONS["half"], 3).eval()
    victim = Subject(net, (3, SIDE, SIDE), CLASSES)
    recipe = Recipe(epochs=8, batch=32, lr=0.1, pad=0, flip=False, bf16=False)
    attack = BadNet(Stamp(size=2), mixing=Mixing(rate=0.1), recipe=recipe)
    made = attack(victim, discs(100, seed=1), Goal(target), rng, Run())

    x, y = whole(discs(20, seed=2))
    clean = accuracy(predict(made.subject, x).argmax(1), y)
    stamped = asr(predict(made.subject, made.trigger(x)).argmax(1), y, made.goal)
    print(f"clean accuracy {clean.value:.0%}, attack success {stamped.value:.0%}")

    config = SearchConfig(batch=16, success_threshold=0.9, steps=2, rounds=80)
    quick = PixelBackdoor(initial=0.02, patience=3, config=config, probe=PatchInit())
    verdict = Inspector(quick)(made.subject, discs(10, seed=3), rng, Run())
    print(verdict.label, *(f.message for f in verdict.findings), sep="\n  ")
    return verdict


if __name__ == "__main__":
    main()
