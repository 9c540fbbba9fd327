"""The pattern against scipy's cosine transform of an image's colors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from gifthorse.attacks.ftrojan import frequencies
from gifthorse.core.errors import NotApplicable

# Red, green and blue from YUV, BT.601.
RGB = np.array([[1.0, 0.0, 1.140], [1.0, -0.395, -0.581], [1.0, 2.032, 0.0]])


@pytest.mark.parametrize(("side", "blocks"), [(32, 1), (64, 2)])
def test_it_raises_two_coefficients_of_u_and_v_in_every_block(side: int, blocks: int) -> None:
    image = np.full((3, side, side), 120.0)
    yuv = np.einsum("ij,jhw->ihw", np.linalg.inv(RGB), image)
    for channel in (1, 2):
        for i in range(blocks):
            for j in range(blocks):
                part = np.s_[channel, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
                raised = dctn(yuv[part], norm="ortho")
                raised[31, 31] += 30
                raised[15, 15] += 30
                yuv[part] = idctn(raised, norm="ortho")
    stamped = np.einsum("ij,jhw->ihw", RGB, yuv) / 255
    trigger = frequencies((3, side, side), 30.0, 32)
    ours = trigger(torch.from_numpy(image / 255).float()[None])[0]
    assert torch.allclose(ours.double(), torch.from_numpy(stamped), atol=1e-6)


def test_it_is_faint_and_fits_any_side() -> None:
    change = frequencies((3, 28, 40), 30.0, 32).delta
    assert change.shape == (3, 28, 40)
    assert float(change.abs().max()) <= 2 * 2.032 * 30 * 2 / 32 / 255 + 1e-6


def test_gray_images_have_no_colors() -> None:
    with pytest.raises(NotApplicable, match="1 channel"):
        frequencies((1, 28, 28), 30.0, 32)
