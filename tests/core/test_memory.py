"""How many images fit: what a net keeps of one of them, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gifthorse.core.memory import fitting, footprint, room


def test_a_net_keeps_what_its_layers_need_for_their_way_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    x = torch.rand(1, 3, 8, 8)
    image, maps, logits = 3 * 64, 8 * 64, 4
    # The convolution keeps the image, ReLU its output, which the linear layer shares.
    assert footprint(net.requires_grad_(False), x) == 4 * (image + maps + logits)


@pytest.mark.parametrize(("side", "most"), [(32, 512), (224, 27), (4096, 1)])
def test_large_images_go_forward_a_few_at_a_time(side: int, most: int) -> None:
    assert fitting(torch.empty(1, 3, side, side), 512) == most


def test_there_is_some_room_on_every_machine() -> None:
    assert 1 << 27 <= room(torch.device("cpu")) <= 1 << 31
