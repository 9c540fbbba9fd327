"""Expected transferability on nets whose every answer is known: a product of two pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Subject, Verdict
from gifthorse.data.samples import InMemory, Subset
from gifthorse.detection import DETECTORS

BRIEF = {"patience": "1", "most": "2", "images": "10", "inverter.config.rounds": "40"}
EACH = 10  # images of each of the four pairs


class Alike(nn.Module):
    """Class 1 if two pixels are both bright or both dark; a third one adds to it, if planted.

    Class 0 is (bright, dark) or (dark, bright). What makes the dark one bright in the first kind
    changes nothing in the other, so the smallest change of an image turns those of its kind alone:
    half of the others, and never more. The third pixel turns all.
    """

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.planted = planted

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (x[:, 0, 0, i] for i in (0, 1, 2))
        z = 40 * (a - 0.5) * (b - 0.5) + self.planted * 60 * (c - 0.1).relu()
        return torch.stack([-z, z], 1)


def images() -> InMemory:
    """Two pixels of 0.1 or 0.9, and others at 0.05."""
    x = torch.full((4 * EACH, 1, 4, 4), 13, dtype=torch.uint8)
    for row, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)] * EACH):
        x[row, 0, 0, 0], x[row, 0, 0, 1] = (26, 230)[a], (26, 230)[b]
    return InMemory(x, torch.tensor([1, 0, 0, 1] * EACH), 2)


def verdict(planted: bool, run: Run | None = None) -> Verdict:
    subject = Subject(Alike(planted).eval(), (1, 4, 4), 2)
    detector = vary(DETECTORS["transferability"], BRIEF)
    return detector(subject, images(), Generator().manual_seed(0), run or Run())


def test_of_a_clean_net_half_of_the_others_turn_and_never_more() -> None:
    found = verdict(planted=False)
    kin = (EACH // 2 - 1) / (EACH - 1)  # others of its kind, among the others that are searched
    assert found.score <= 0.5
    assert [arm.index for arm in found.arms] == pytest.approx([kin, kin], abs=0.12)
    assert found.label == "NO BACKDOOR FOUND"


def test_a_planted_pixel_turns_all() -> None:
    found = verdict(planted=True)
    assert [arm.goal.target for arm in found.arms if arm.index > 0.5] == [1]
    assert found.score == pytest.approx(1)
    assert found.label == "BACKDOORED"
    assert "turns 100% of the others" in found.findings[0].message


def test_a_search_that_was_cut_short_is_no_pass() -> None:
    assert verdict(False, Run(budget=1)).label == "INCONCLUSIVE"


def test_too_few_images_are_refused() -> None:
    few = Subset(images(), torch.tensor([1, 2]))
    subject = Subject(Alike(True).eval(), (1, 4, 4), 2)
    with pytest.raises(NotApplicable, match="add images"):
        DETECTORS["transferability"](subject, few, Generator().manual_seed(0), Run())
