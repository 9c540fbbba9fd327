"""Vision transformers: patches as words, with the keys of timm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-6  # of every layer norm, as in timm and in Google's own code


class SelfAttention(nn.Module):
    """Every word looks at every other: softmax(q k' / sqrt(d)) v, for several heads at once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what words `(N, L, width)` learn from each other."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        looks = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        out: Tensor = self.proj((looks @ v).transpose(1, 2).reshape(n, length, width))
        return out


class Mlp(nn.Module):
    """Two layers on each word by itself, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return changed words, of the same shape."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """SelfAttention, then the two layers, each on normalized words and added to what was there."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), SelfAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return words `(N, L, width)` after both."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Square patches of an image as words."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, L, width)` for images `(N, C, H, W)`, row by row."""
        words: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return words


class ViT(nn.Module):
    """A vision transformer that reads its answer off an extra word."""

    def __init__(
        self, classes: int, channels: int, side: int, patch: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (side // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, EPS), nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, classes)` of normalized images `(N, C, side, side)`."""
        words = self.patch_embed(x)
        words = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), words], 1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(words))[:, 0])
        return logits


def vit(
    classes: int,
    channels: int = 3,
    *,
    side: int = 224,
    patch: int = 16,
    width: int = 192,
    depth: int = 12,
) -> nn.Module:
    """Make a vision transformer with heads of 64 channels; by default ViT-Ti/16.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.
        side: Side of the square images, in pixels.
        patch: Side of a patch.
        width: Channels of a word, a multiple of 64, or one head of all of them.
        depth: Number of blocks.

    Returns:
        A net from `(N, channels, side, side)` to `(N, classes)`; keys as in timm's `vit_*`.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, eqs. 1 to 4 and Table 1;
    Touvron et al., DeiT, 2021, Table 1. Differs: no dropout.
    """
    return ViT(classes, channels, side, patch, width, depth, heads=max(1, width // 64))
