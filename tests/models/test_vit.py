"""The vision transformer against PyTorch's own encoder with the same weights."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from gifthorse.models.nets.vit import ViT, vit


def reference(net: ViT) -> nn.TransformerEncoder:
    width = net.cls_token.shape[-1]
    layer = nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
    )
    ours = nn.TransformerEncoder(layer, len(net.blocks), net.norm, enable_nested_tensor=False)
    for theirs, block in zip(ours.layers, net.blocks, strict=True):
        named = {
            "self_attn.in_proj_weight": "attn.qkv.weight",
            "self_attn.in_proj_bias": "attn.qkv.bias",
            "self_attn.out_proj.weight": "attn.proj.weight",
            "self_attn.out_proj.bias": "attn.proj.bias",
            "linear1.weight": "mlp.fc1.weight", "linear1.bias": "mlp.fc1.bias",
            "linear2.weight": "mlp.fc2.weight", "linear2.bias": "mlp.fc2.bias",
        }  # fmt: skip
        state = block.state_dict()
        plain = {key: state[key] for key in state if key.startswith("norm")}
        theirs.load_state_dict(plain | {a: state[b] for a, b in named.items()})
    return ours


def test_it_computes_what_pytorchs_encoder_computes(rng: Generator) -> None:
    net = vit(5, side=16, patch=4, width=128, depth=2).double().eval()
    assert isinstance(net, ViT)
    x = torch.rand(3, 3, 16, 16, generator=rng, dtype=torch.float64)
    proj = net.patch_embed.proj
    assert proj.bias is not None
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(3, 16, 48)
    words = patches @ proj.weight.flatten(1).T + proj.bias
    words = torch.cat([net.cls_token.expand(3, -1, -1), words], 1) + net.pos_embed
    expected: Tensor = net.head(reference(net).double().eval()(words)[:, 0])
    assert torch.allclose(net(x), expected, atol=1e-12)
