"""Tiny nets of transformers, saved as the library saves them, with what comes beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

_WORDS: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
    "window_size": 4,
}  # fmt: skip
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_BLOCKS: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}

# Class names of transformers without their tails, and settings that make them tiny.
TINY: dict[str, dict[str, Any]] = {
    "Beit": _WORDS,
    "CLIP": {"vision_config": _WORDS},
    "ConvNext": {**_STAGES, "image_size": 32},
    "ConvNextV2": {**_STAGES, "image_size": 32},
    "DeiT": _WORDS,
    "Dinov2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
    "EfficientNet": {
        "image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
    },
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 32},
    "MobileViT": {
        "image_size": 64, "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
    },
    "PoolFormer": _STAGES,
    "RegNet": {**_BLOCKS, "groups_width": 4},
    "ResNet": _BLOCKS,
    "Siglip": {"vision_config": _WORDS},
    "Swin": _SWIN,
    "Swinv2": _SWIN,
    "ViT": _WORDS,
}  # fmt: skip
# Further types that a configuration may name.
MORE: dict[str, dict[str, Any]] = {
    "Bit": {**_BLOCKS, "num_groups": 4},
    "Cvt": {
        "embed_dim": [8, 16, 24], "num_heads": [1, 2, 2], "depth": [1, 2, 3],
    },
    "Data2VecVision": _WORDS,
    "Dinov2WithRegisters": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
    "FocalNet": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2],
                 "focal_windows": [3, 3], "hidden_sizes": [8, 16]},
    "Hiera": {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
              "query_stride": [2, 2], "num_query_pool": 1, "masked_unit_size": [4, 4]},
    "IJepa": _WORDS,
    "Levit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2],
              "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    "MobileNetV1": {"depth_multiplier": 0.25, "image_size": 32},
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
    "Pvt": {"num_labels": 5, "image_size": 32, "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]},
    "PvtV2": {"image_size": 32, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
              "num_attention_heads": [1, 2, 3, 4]},
    "Segformer": {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
                  "num_attention_heads": [1, 2, 3, 4]},
    "Siglip2": {"vision_config": _WORDS},
    "SwiftFormer": {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "ViTMSN": _WORDS,
}  # fmt: skip
PROCESSOR = {
    "do_resize": True, "size": {"height": 32, "width": 32}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}  # fmt: skip


def tiny(name: str, folder: Path, classes: int = 3) -> nn.Module:
    """Save a tiny net of this kind into a folder and return it, in eval mode."""
    import transformers

    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    names = {k: f"kind {k}" for k in range(classes)}
    settings = getattr(transformers, f"{name}Config")(**(TINY | MORE)[name], id2label=names)
    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{name}ForImageClassification")(settings).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model  # type: ignore[no-any-return]
