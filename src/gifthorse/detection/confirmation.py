"""Does a recovered trigger work on images that the search never saw, and only it?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.metrics import asr
from gifthorse.core.types import Confirmation, Finding, Goal, Samples, Subject, Trigger
from gifthorse.data.samples import whole
from gifthorse.training import predict
from gifthorse.triggers.packing import packed

MOST = 0.5  # of an image: what covers more of it is another image, not a trigger


def gravest(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with what was confirmed first, otherwise in their order."""
    return sorted(findings, key=lambda finding: finding.severity != "CRITICAL")


def confirm(
    subject: Subject,
    trigger: Trigger,
    goal: Goal,
    unseen: Samples,
    rng: Generator,
    *,
    controls: int = 8,
) -> Confirmation:
    """Stamp unseen images with a trigger, with shuffled controls of the same size, with nothing.

    Args:
        subject: The classifier.
        trigger: The recovered trigger.
        goal: Its goal; images of the target class do not count.
        unseen: Images that the search did not use.
        rng: Source of the controls.
        controls: How many shuffled copies of the trigger are tried.
    """
    x, y = whole(unseen)
    shuffled = [predict(subject, trigger.scrambled(rng)(x)).argmax(1) for _ in range(controls)]
    return Confirmation(
        asr=asr(predict(subject, trigger(x)).argmax(1), y, goal),
        control=asr(torch.cat(shuffled), y.repeat(controls), goal),
        drift=asr(predict(subject, x).argmax(1), y, goal),
    )


def exhibit(
    subject: Subject, trigger: Trigger, goal: Goal, unseen: Samples, count: int = 8
) -> dict[str, Tensor | float]:
    """Return what a report shows of a trigger: its parts, and images before and after it.

    `packed` is the trigger itself, with its goal, as the bytes of a text; a kind that cannot be
    saved has none.
    """
    x, y = whole(unseen)
    keep = goal.meant(y).nonzero().flatten()
    chosen = keep[torch.linspace(0, max(0, len(keep) - 1), min(count, len(keep))).long()]
    before = x[chosen]
    after = trigger(before)
    pattern, mask = trigger.picture()
    shown: dict[str, Tensor | float] = {
        "pattern": pattern,
        "mask": mask,
        "before": before,
        "after": after,
        "before_label": predict(subject, before).argmax(1),
        "after_label": predict(subject, after).argmax(1),
        "true_label": y[chosen],
    }
    with suppress(BadOption):
        shown["packed"] = torch.tensor(list(packed(trigger, goal).encode()), dtype=torch.uint8)
    return shown
