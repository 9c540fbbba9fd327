"""A frozen net that can be asked in 16 bits and that remembers what one of its layers said."""

from __future__ import annotations

import logging

import torch
from torch import Size, Tensor, nn

from gifthorse.core.device import half
from gifthorse.core.types import Logits
from gifthorse.models.outputs import reason
from gifthorse.models.places import hook
from gifthorse.models.scaling import grad_scale

log = logging.getLogger("gifthorse")
ALIKE = 0.9  # share of images that a net must call the same in 16 bits
SCALE = 256.0  # lifts gradients in float16 above its smallest numbers


class HookedModel:
    """Ask a net for logits, in 16 bits where that is fast; keep what is at one place in it.

    Args:
        net: A frozen net on raw images.
        layer: The place to remember, as `models.places` names it; empty for none.

    Raises:
        BadOption: If the net has no such layer.
    """

    def __init__(self, net: nn.Module, layer: str = "") -> None:
        self.net = net
        self._seen: Tensor | None = None
        self._lifted = False  # whether gradients inside the net are larger by SCALE
        if layer:
            hook(net, layer, self._remember)  # the net is a private copy

    def __call__(self, x: Tensor, *, bf16: bool = False) -> Logits:
        """Return logits `(N, K)`, float32 or better, for images `(N, C, H, W)`."""
        kind = half(x.device) if bf16 else None
        self._lifted = kind == torch.float16
        x = grad_scale(x, 1 / SCALE) if self._lifted else x
        with torch.autocast(x.device.type, kind or torch.bfloat16, enabled=kind is not None):
            logits: Tensor = self.net(x)
        return self._exact(logits)

    def halves(self, x: Tensor) -> bool:
        """Whether the net gives much the same answers to images in 16 bits.

        16 bits keep 8 of a number, so that a close call may fall the other way; a tenth of the
        images may. A net that computes with some types of its own fails. This counts for no
        image-steps.
        """
        with torch.no_grad():
            said = self(x).argmax(1)
            try:
                short = self(x, bf16=True)
            except Exception as error:
                log.debug("searched in float32, since 16 bits failed: %s", reason(error))
                return False
        same = (short.argmax(1) == said).float().mean() >= ALIKE
        return bool(same) and bool(short.isfinite().all())

    def seen(self, shape: Size) -> Tensor | None:
        """Return the layer's last output with the leading dimensions `(a, B)`, or None."""
        return None if self._seen is None else self._exact(self._seen).unflatten(0, shape)

    def _remember(self, seen: Tensor) -> None:
        self._seen = seen

    def _exact(self, values: Tensor) -> Tensor:
        """Return half precision as float32 and anything better as it is."""
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        return grad_scale(exact, SCALE) if self._lifted else exact
