"""An attack of your own: a frozen dataclass whose call returns an implant.

python examples/add_an_attack.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.run import Run
from gifthorse.core.types import Attack, Goal, Implant, Samples, Subject
from gifthorse.data import read, split, whole
from gifthorse.models import load
from gifthorse.training import Recipe, predict
from gifthorse.triggers import Patch
from gifthorse.workflows.prepare import prepare

GIFT = Path(__file__).parent / "gift"


@dataclass(frozen=True)
class Stripes:
    """Blend faint vertical stripes into part of the images, by fine-tuning a trained net.

    Source: Barni et al., ICIP 2019 (SIG). Differs: stamped images get the target's label.
    """

    strength: float = 0.3
    waves: int = 4
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.5)
    recipe: Recipe = Recipe(epochs=40, batch=32, lr=0.01, pad=2, flip=False, bf16=False)
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the fine-tuned net with its trigger."""
        _, height, width = shape = victim.shape
        wave = torch.sin(torch.arange(width) * 2 * torch.pi * self.waves / width) / 2 + 0.5
        trigger = Patch(wave.expand(shape), torch.full((1, height, width), self.strength))
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)


def main() -> tuple[float, float]:
    """Fine-tune the clean twin on half of its images; return accuracy and success on the rest."""
    opened, rng = load(GIFT / "twin.safetensors"), Generator().manual_seed(0)
    prepared = prepare(opened.net, opened.classes, read(str(GIFT / "clean.npz")))
    train, test = split(prepared.samples, 0.5, rng)
    attack: Attack = Stripes()  # mypy checks it here; a line in ATTACKS does the same
    made = attack(prepared.subject, train, Goal(target=7), rng, Run())
    x, y = whole(test)
    clean = accuracy(predict(made.subject, x).argmax(1), y)
    success = asr(predict(made.subject, made.trigger(x)).argmax(1), y, made.goal)
    print(f"clean accuracy {clean.value:.0%}, attack success {success.value:.0%}")
    return clean.value, success.value


if __name__ == "__main__":
    main()
