"""One arm a round, by a bandit: the arm that is small already or shrinks fast goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import NotNegative, Positive, Share, method
from gifthorse.core.types import Inversion, Progress

Mode: TypeAlias = Literal["global", "every", "pair", "back"]
PIXELS = 224 * 224  # of the images that the published constants are for

# An arm that had more than so many rounds and never reached this success rate is given up.
_HOPELESS: dict[str, tuple[tuple[int, float], ...]] = {
    "global": (),
    "every": ((10, 1e-9), (20, 0.3), (200, 0.8)),
    "pair": ((10, 1e-9), (20, 0.3), (200, 0.8)),
    "back": ((200, 1.0),),
}


@method
class KArm:
    """Step one arm a round; which one, a bandit decides from how the arms shrink.

    An arm gains by a round that works and whose penalty is smaller than any before. Every arm is
    first stepped until it has gained `warmup` times. From then on the arm that just gained hands
    over to the one with the largest `v + beta / size`, with
    `v = (first - size) / (n + rounds / 2)` as of its last gain; n counts an arm's gains. An arm
    stops when it is hopeless, has gained often enough or, with all classes as victims, gains no
    more; when that happens to the smallest arm, all is done, except in mode `every`, where every
    arm goes on to its own end. Arms that the inversion calls done count as stopped.

    Assumes penalties that shrink from about `H * W` and compare between arms; they are the sizes
    of the rule.

    Attributes:
        mode: `global` for one arm from all classes, `every` for one arm a class, `pair` for class
            pairs, `back` for the reversed pair of the symmetric check: they differ in when an arm
            is given up.
        rounds: Most rounds of all arms together.
        each: In mode `every`, as many rounds times the arms where that is more than `rounds`, so
            that a small net's target is not starved by the others.
        success: Least success of a round that may be a gain, in [0, 1].
        seed: Of the generator of random turns.
        warmup: Gains that every arm has before the bandit starts.
        first: What counts as an arm's size at the start, in pixels of 224 x 224.
        beta: Weight of being small, in squared pixels of 224 x 224.
        random: Share of the handovers that go to a random arm, in [0, 1].
        gains: An arm stops after more than this many gains.
        patience: In the modes `global` and `every`, an arm stops after more than this many rounds
            without a gain once the weight of its size moved both up and down.

    Source: Shen et al., Backdoor Scanning for Deep Neural Networks through K-Arm Optimization,
    ICML 2021, and its released code, whose 2500 takes the place of an arm's first size. Differs:
    penalties are converted to pixels of a 224 x 224 image first, so the constants serve every image
    size; a stopped arm is never chosen; the mode `every`, as the code has one arm from all classes.
    """

    mode: Mode = "global"
    rounds: Annotated[int, NotNegative] = 1000
    each: Annotated[int, NotNegative] = 200
    success: Annotated[float, Share] = 0.99
    seed: Annotated[int, NotNegative] = 0
    warmup: Annotated[int, NotNegative] = 2
    first: Annotated[float, Positive] = 2500.0
    beta: Annotated[float, NotNegative] = 1e4
    random: Annotated[float, Share] = 0.3
    gains: Annotated[int, NotNegative] = 60
    patience: Annotated[int, NotNegative] = 10

    def __call__(self, inversion: Inversion) -> Iterator[Progress]:
        """Step one arm after another and yield how all stand, until the race is over."""
        rng = torch.Generator().manual_seed(self.seed)
        race, now = _Race(self, inversion), inversion.progress
        arm: int | None = race.newcomer(0)
        most = max(self.rounds, self.each * len(now.rounds) * (self.mode == "every"))
        while arm is not None and int(now.rounds.sum()) < most:
            inversion.step(torch.tensor([arm]))
            now = inversion.progress
            race.update(arm, now)
            yield now
            arm = race.following(arm, inversion.done, rng)


class _Race:
    """What the bandit remembers of its arms; sizes in pixels of 224 x 224.

    Attributes:
        gained: Gains of each arm so far (n).
        speed: How fast each arm shrank as of its last gain (v).
        size: Least penalty of each arm's rounds that worked.
        success: Best success rate of each arm.
        idle: Rounds of each arm without a gain since the warm-up ended (c).
        stopped: Arms that are never stepped again.
        warm: Whether the warm-up is over.
        over: Whether the smallest arm has come to its end.
    """

    def __init__(self, rules: KArm, inversion: Inversion) -> None:
        self.rules = rules
        self.whole = inversion.best[0].trigger.render()[1].numel()  # H * W
        now = inversion.progress
        # Of an inversion that goes on after a break, arms that have a trigger are warm already.
        found = (now.size < self.whole) & now.penalty.isfinite()
        penalty = torch.where(found, now.penalty, torch.full_like(now.penalty, self.whole))
        self.size = penalty.double() * (PIXELS / self.whole)
        self.gained = found.long() * rules.warmup
        self.speed = (rules.first - self.size) / (self.gained + now.rounds / 2).clamp(min=1)
        self.success = now.success
        self.idle = torch.zeros_like(self.gained)
        self.stopped = inversion.done
        self.better, self.warm, self.over = False, False, False

    def update(self, arm: int, now: Progress) -> None:
        """Take in what the last round of an arm brought, and stop it if its time has come."""
        rules, rounds = self.rules, int(now.rounds[arm])
        size = now.penalty[arm].item() * PIXELS / self.whole
        self.success[arm] = max(self.success[arm].item(), now.success[arm].item())
        works = now.success[arm].item() >= rules.success - 1e-6
        self.better = works and size < self.size[arm].item()
        if self.better:
            self.gained[arm] += 1
            self.speed[arm] = (rules.first - size) / (int(self.gained[arm]) + rounds / 2)
            self.size[arm] = size
        bars = _HOPELESS[rules.mode]
        if any(rounds > limit and self.success[arm] < bar for limit, bar in bars):
            self.stopped[arm] = True
        if not self.warm:
            return
        self.idle[arm] = 0 if self.better else self.idle[arm] + 1
        stale = (
            rules.mode in ("global", "every")
            and bool(now.turned[arm])
            and self.idle[arm] > rules.patience
        )
        if self.gained[arm] > rules.gains or stale:
            self.stopped[arm] = True
            self.over = rules.mode != "every" and bool(self.size[arm] <= self.size.min())

    def following(self, arm: int, done: Tensor, rng: Generator) -> int | None:
        """Return whose turn it is after an arm, or None when the race is over."""
        self.stopped |= done
        running = (~self.stopped).nonzero().flatten()
        if self.over or not len(running):
            return None
        if self.stopped[arm]:
            fresh = running[self.gained[running] == 0]
            return int(fresh[0]) if len(fresh) else _pick(running, rng)
        if not self.better or self.gained[arm] < self.rules.warmup:
            return arm
        if (self.gained[running] < self.rules.warmup).any():
            return self.newcomer(self.rules.warmup - 1)
        self.warm = True
        if torch.rand(1, generator=rng).item() < self.rules.random:
            return _pick(running, rng)
        worth = self.speed + self.rules.beta / self.size.clamp(min=1e-6)
        return int(running[worth[running].argmax()])

    def newcomer(self, most: int) -> int | None:
        """Return the first arm with at most so many gains, else the first that may step."""
        running = (~self.stopped).nonzero().flatten()
        new = running[self.gained[running] <= most]
        return int(new[0]) if len(new) else int(running[0]) if len(running) else None


def _pick(arms: Tensor, rng: Generator) -> int:
    return int(arms[torch.randint(len(arms), (1,), generator=rng)])
