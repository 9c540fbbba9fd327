"""How many images go through a net at once: as many as memory has room for."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

ROOM = 1 << 31  # bytes that images under way may take, where there are as many
SHARE = 4  # of what is free, the part that they may take
VALUES = 1 << 22  # numbers in the images of one forward pass without gradients


def room(device: torch.device) -> int:
    """Return how many bytes images under way may take on a device."""
    if device.type == "cuda":
        on_card: int = torch.cuda.mem_get_info(device)[0]
        return on_card // 2
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # not every system tells
        return ROOM
    return min(ROOM, max(free // SHARE, ROOM // 16))


def footprint(net: nn.Module, x: Tensor) -> int:
    """Return the bytes that a net keeps of one image on its way forward, for its way back.

    Args:
        net: A frozen net; its own parameters do not count.
        x: One image, `(1, C, H, W)`.

    Example:
        >>> footprint(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 8, 8)) >= 8 * 8 * 4
        True
    """
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = net(x.detach().requires_grad_())  # alive until all was counted
    given: int = out.numel() * out.element_size()
    return given + sum(kept.values())


def fitting(x: Tensor, most: int) -> int:
    """Return how many of these images `(N, C, H, W)` go forward at once, at most `most`.

    Example:
        >>> fitting(torch.zeros(1, 3, 32, 32), 512), fitting(torch.zeros(1, 3, 224, 224), 512)
        (512, 27)
    """
    return max(1, min(most, VALUES // max(1, x[:1].numel())))
