"""NEO on hand-set nets whose trigger and its place are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.filtering.points import seeded
from tests.toys import BANDS, GRAY, HEIGHT, SIDE, band_images, bands
from torch import Tensor, nn

from gifthorse.core.errors import BadImages, NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Images, Shape, Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.filtering import NEO
from gifthorse.filtering.neo import main_color, windows


class Cornered(nn.Module):
    """Bands, and 50 for class 3 once a white 3 x 3 square stands whole at `(top, left)`."""

    def __init__(self, top: int, left: int) -> None:
        super().__init__()
        self.top, self.left = top, left

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = bands().net(x)
        square = x[:, 0, self.top : self.top + 3, self.left : self.left + 3]
        fired = (square.amin((1, 2)) > 0.95).float() * 50
        return logits + nn.functional.one_hot(torch.tensor(3), BANDS) * fired[:, None]


def cornered(top: int, left: int) -> Subject:
    return Subject(Cornered(top, left).eval(), (1, SIDE, SIDE), BANDS)


def stamped(samples: InMemory, top: int, left: int) -> InMemory:
    x = samples.images.clone()
    x[:, :, top : top + 3, left : left + 3] = 255
    return InMemory(x, samples.labels, BANDS)


CLEAN, TEST = band_images(5), band_images(1, seed=1)
OTHERS = Subset(TEST, (TEST.labels != 3).nonzero().flatten())


@pytest.mark.parametrize(("top", "left"), [(0, 0), (15, 15), (4, 9)])
def test_a_trigger_is_found_wherever_it_stands_and_clean_images_are_not(
    top: int, left: int
) -> None:
    """The lower right corner counts, too: the last row and column are places."""
    bad = stamped(TEST, top, left)
    bad = InMemory(bad.images[OTHERS.index], bad.labels[OTHERS.index], BANDS)
    method, subject = NEO(images=20, most=25), cornered(top, left)  # 25 places touch it
    assert (method(subject, CLEAN, bad, seeded(), Run()) == 1).all()
    assert (method(subject, CLEAN, OTHERS, seeded(), Run()) == 0).all()


def test_the_size_may_be_one_of_several() -> None:
    bad = stamped(TEST, 15, 15)
    first = Subset(bad, torch.tensor([0]))
    small = NEO(sizes=(2,), images=20)(cornered(15, 15), CLEAN, first, seeded(), Run())
    both = NEO(sizes=(2, 3), images=20)(cornered(15, 15), CLEAN, first, seeded(), Run())
    assert small.tolist() == [0.0]  # a square of two holds no trigger of three
    assert both.tolist() == [1.0]


def test_a_coarse_grid_is_refined() -> None:
    """No place of stride 2 covers the trigger exactly; the best of those that touch it leads on."""
    bad, subject = Subset(stamped(TEST, 5, 7), torch.tensor([0])), cornered(5, 7)
    found = NEO(stride=2, images=20, most=25)(subject, CLEAN, bad, seeded(), Run())
    assert found.tolist() == [1.0]


def test_random_places_may_miss_and_cost_no_more_than_asked() -> None:
    bad, subject = Subset(stamped(TEST, 5, 7), torch.tensor([0])), cornered(5, 7)
    run = Run()
    rare = NEO(grid="random", places=3, images=20)
    scores = {float(rare(subject, CLEAN, bad, seeded(s), run=run)) for s in range(3)}
    assert 0.0 in scores
    assert run.image_steps <= 3 * (20 + 1 + 3 + 3 * 20) / 2


class Dark(nn.Module):
    """Class 1 if the middle pixel is dark, else class 2 if the first one is, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        middle, first = (x[:, 0, 2, 2] < 0.5).float(), (x[:, 0, 0, 0] < 0.5).float()
        return torch.stack([torch.full_like(first, 0.5), middle * 2, first], 1)


def test_only_moves_to_the_answer_count_unless_any_does() -> None:
    """The suspect is class 1 by its middle; pasted, its middle moves all that are not class 1."""
    dark = Subject(Dark().eval(), (1, 5, 5), 3)
    x = torch.full((4, 1, 5, 5), 255, dtype=torch.uint8)
    x[0, :, 2, 2] = 0  # class 1
    x[1, :, 0, 0] = 0  # class 2
    clean = InMemory(x, torch.zeros(4).long(), 3)
    suspect = Subset(clean, torch.tensor([0]))
    every: dict[Any, list[float]] = {
        confirm: NEO(sizes=(1,), confirm=confirm)(dark, clean, suspect, seeded(), Run()).tolist()
        for confirm in ("to_pred", "any")
    }
    assert every == {"to_pred": [1.0], "any": [0.75]}  # one of four is class 1 already


def test_clean_images_of_one_class_confirm_nothing_about_it() -> None:
    dark = Subject(Dark().eval(), (1, 5, 5), 3)
    x = torch.full((2, 1, 5, 5), 255, dtype=torch.uint8)
    x[:, :, 2, 2] = 0
    clean = InMemory(x, torch.zeros(2).long(), 3)
    assert NEO(sizes=(1,))(dark, clean, clean, seeded(), Run()).tolist() == [0.0, 0.0]


def test_the_main_color_is_that_of_most_pixels() -> None:
    image = torch.zeros(3, 4, 5)
    image[:, 0] = torch.tensor([1.0, 0.0, 0.5])[:, None]
    image[:, 1:] = torch.tensor([0.2, 0.4, 0.6])[:, None, None]
    assert torch.allclose(main_color(image, 3, 0).flatten(), torch.tensor([0.2, 0.4, 0.6]))
    assert torch.allclose(main_color(image, 1, 0).flatten(), image.mean((1, 2)))
    assert main_color(image[:1], 3, 0).shape == (1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 4, 7)])
def test_all_places_are_covered_up_to_the_last_row_and_column(shape: Shape) -> None:
    seen: list[Images] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.new_zeros(len(x), 2)

    _, H, W = shape
    white = InMemory(torch.full((1, *shape), 255, dtype=torch.uint8), torch.zeros(1).long(), 2)
    NEO(sizes=(2,), clusters=1)(Subject(Watch(), shape, 2), white, white, seeded(), Run())
    assert len(seen[-1]) == (H - 1) * (W - 1)


def test_windows_lie_where_they_should() -> None:
    masks = windows(torch.tensor([[0, 0], [2, 3]]), 2, (4, 5))
    assert masks.shape == (2, 1, 4, 5)
    assert masks.sum((1, 2, 3)).tolist() == [4, 4]
    assert bool(masks[0, 0, :2, :2].all())
    assert bool(masks[1, 0, 2:, 3:].all())


def test_regions_must_fit_and_clean_images_be_there() -> None:
    with pytest.raises(NotApplicable, match="at most 18"):
        NEO(sizes=(3, 19))(bands(), CLEAN, TEST, seeded(), Run())
    none = Subset(CLEAN, torch.empty(0, dtype=torch.long))
    with pytest.raises(BadImages, match="none"):
        NEO()(bands(), none, TEST, seeded(), Run())


def test_the_toy_is_what_it_says() -> None:
    """Clean images come out right, and stamped ones as the target."""
    x, y = whole(TEST)
    assert torch.equal(cornered(4, 9)(x).argmax(1), y)
    assert (cornered(4, 9)(whole(stamped(TEST, 4, 9))[0]).argmax(1) == 3).all()
    assert (x[:, 0, 0, 0] == GRAY).all()
    assert HEIGHT == 3
