"""Where pictures are cut, against the rules of the two libraries that cut them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gifthorse.core.resizing import Resize


@pytest.mark.parametrize(
    ("height", "even", "first"),
    [(7, False, 1), (7, True, 2), (9, False, 2), (9, True, 2), (8, True, 2), (8, False, 2)],
)
def test_an_odd_pixel_is_cut_as_the_models_library_does(
    height: int, even: bool, first: int
) -> None:
    rows = np.arange(height, dtype=np.uint8)[:, None].repeat(4, 1)  # row i is of gray i
    cut = Resize((4, 4), shortest=4, even=even)(Image.fromarray(rows))
    assert np.array(cut)[:, 0].tolist() == list(range(first, first + 4))
