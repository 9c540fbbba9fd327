"""A patch whose colors, and opacity if wanted, are still free."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.tensors import from_box, to_box
from gifthorse.core.types import Images
from gifthorse.triggers.patch import Patch

Opacity: TypeAlias = Literal["fixed", "shared", "free"]


class Learned:
    """A patch whose variables an attack moves; colors stay in (0, 1) by a change of variables.

    Args:
        start: Where to begin: its mask says which pixels are stamped, and how strongly.
        opacity: Whether the mask is `fixed`, one number for all its pixels (`shared`), or a number
            a pixel (`free`).
    """

    def __init__(self, start: Patch, opacity: Opacity = "fixed") -> None:
        self.support = (start.mask > 0).float()
        self.opacity = opacity
        self._fixed = start.mask
        self.colors = to_box(start.pattern).requires_grad_()  # (C, H, W)
        strength = start.mask.max().view(1, 1, 1) if opacity == "shared" else start.mask
        self.strength = to_box(strength).requires_grad_()
        self.variables = (self.colors,) if opacity == "fixed" else (self.colors, self.strength)

    @property
    def mask(self) -> Tensor:
        """Opacity of each pixel `(1, H, W)`, with gradients."""
        if self.opacity == "fixed":
            return self._fixed
        return from_box(self.strength) * self.support

    def stamp(self, x: Images) -> Images:
        """Return stamped copies of `(N, C, H, W)` images, with gradients on the variables."""
        mask = self.mask.to(x.device)
        return x + mask * (from_box(self.colors).to(x.device) - x)

    def frozen(self) -> Patch:
        """Return the patch as it is now."""
        with torch.no_grad():
            return Patch(from_box(self.colors) * self.support, self.mask.detach().clone())

    @torch.no_grad()
    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(N, C, H, W)` images, without gradients."""
        return self.stamp(x)

    def shuffled(self, rng: Generator, /) -> Patch:
        """Return the patch as it is now, with its pixels shuffled."""
        return self.frozen().shuffled(rng)

    def render(self) -> tuple[Tensor, Tensor]:
        """Return pattern and mask as they are now."""
        return self.frozen().render()

    def state_dict(self) -> dict[str, Any]:
        """Return the variables."""
        return {"colors": self.colors.detach().clone(), "strength": self.strength.detach().clone()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the variables."""
        self.colors.copy_(state["colors"])
        self.strength.copy_(state["strength"])
