"""Nets of timm and torchvision: folders, state dicts, and whole models pickled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from scripts.instances.instance import CLASSES, Instance, Kind, Pictures, lively, plain
from torch import Tensor, nn

Write = Callable[[nn.Module, Path], None]
WORDS: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 96}
WINDOWS: dict[str, Any] = {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 16}
STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}

# Nets of timm in folders, with settings that make them small.
FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BEiT": ("beit_base_patch16_224", WORDS),
    "ConvNeXt": ("convnext_atto", STAGES),
    "ConvNeXtV2": ("convnextv2_atto", STAGES),
    "DeiT": ("deit_tiny_patch16_224", WORDS),
    "DeiT distilled": ("deit_tiny_distilled_patch16_224", WORDS),
    "DINOv2": ("vit_small_patch14_dinov2", WORDS | {"img_size": 112}),
    "EfficientNet": ("efficientnet_b0", {}),
    "EfficientNet-Lite": ("efficientnet_lite0", {}),
    "MobileNetV2": ("mobilenetv2_035", {}),
    "MobileNetV3": ("mobilenetv3_small_050", {}),
    "MobileViT": ("mobilevit_xxs", {}),
    "PoolFormer": ("poolformer_s12", {}),
    "RegNet": ("regnetx_002", {}),
    "ResNet": ("resnet10t", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", WORDS),
    "Swin": ("swin_tiny_patch4_window7_224", WINDOWS | {"img_size": 112}),
    "SwinV2": ("swinv2_tiny_window8_256", WINDOWS | {"img_size": 128}),
    "ViT": ("vit_tiny_patch16_224", WORDS),
}  # fmt: skip
# Nets of timm as they are, in files.
WHOLE = (
    "test_convnext2", "test_efficientnet", "mobilenetv2_035", "mobilenetv3_small_050",
    "mobilevit_xxs", "regnetx_002", "resnet10t", "test_vit",
)  # fmt: skip
KNOWN = {"vit_tiny_patch16_224": "vit_tiny_patch16_224", "resnet18": "resnet18"}  # built in here
SIDES = {"vit_b_16": 224, "swin_t": 64, "inception_v3": 139, "maxvit_t": 224, "alexnet": 64}
NETS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_16",
)  # fmt: skip
PICKLED = (
    "convnext_tiny", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf",
    "resnet18", "swin_t", "vit_b_16",
)  # fmt: skip


def weights(net: nn.Module, path: Path) -> None:
    """Write a state dict with torch.save."""
    torch.save(net.state_dict(), path)


def tensors(net: nn.Module, path: Path) -> None:
    """Write the weights as safetensors."""
    save_file(net.state_dict(), path)


def timm_folder(name: str, settings: dict[str, Any], path: Path, *, safe: bool = True) -> Instance:
    """Write a folder as timm pushes it to a hub."""
    import timm
    from timm.models import save_for_hf

    net = timm.create_model(name, pretrained=False, num_classes=CLASSES, **settings)
    side = settings.get("img_size", 96)
    own = {"input_size": (3, side, side)}
    told = timm.data.resolve_data_config(own, model=net)
    transform = timm.data.create_transform(**told, is_training=False)

    def says(images: Pictures) -> Tensor:
        with torch.no_grad():
            logits: Tensor = net(torch.stack([transform(image) for image in images]))
        return logits

    size = (90, 75)
    lively(net, says, size)
    save_for_hf(net, str(path), safe_serialization=safe, data_config=own)
    return Instance(path, says, size)


def timm_file(name: str, write: Write, path: Path, ending: str = "pt") -> Instance:
    """Write a net of timm into a file."""
    import timm

    net = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    return written(net, net.pretrained_cfg["input_size"][-1], write, path, ending)


def torchvision_file(name: str, write: Write, path: Path) -> Instance:
    """Write a net of torchvision into a file."""
    from torchvision.models import get_model

    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    net = get_model(name, weights=None, num_classes=CLASSES, **more)
    return written(net, SIDES.get(name, 64), write, path, "pth")


def written(net: nn.Module, side: int, write: Write, path: Path, ending: str) -> Instance:
    """Write a net into a file; pictures are normalized like ImageNet's."""
    net.eval()
    says = plain(net)
    lively(net, says, (side, side))
    path.mkdir()
    write(net, path / f"model.{ending}")
    return Instance(path / f"model.{ending}", says, (side, side))


TIMM = (
    *(
        Kind(f"timm {title}, folder", partial(timm_folder, name, settings), ("timm",))
        for title, (name, settings) in FOLDERS.items()
    ),
    *(
        Kind(
            f"timm {title}, folder, pytorch_model.bin",
            partial(timm_folder, *FOLDERS[title], safe=False),
            ("timm",),
        )
        for title in FOLDERS
    ),
    *(
        Kind(f"timm {name}, whole model pickled", partial(timm_file, name, torch.save), ("timm",))
        for name in WHOLE
    ),
    *(
        Kind(
            f"timm {name}, state dict",
            partial(timm_file, name, weights),
            ("timm",),
            arch=None if name in KNOWN else f"timm:{name}",
        )
        for name in (*WHOLE, *KNOWN)
    ),
    Kind(
        "timm resnet10t, safetensors alone",
        partial(timm_file, "resnet10t", tensors, ending="safetensors"),
        ("timm",),
        refused="--arch timm:NAME",
    ),
)
TORCHVISION = tuple(
    Kind(f"torchvision {name}, {form}", partial(torchvision_file, name, write), ("torchvision",))
    for form, write, names in (
        ("state dict", weights, NETS),
        ("whole model pickled", torch.save, PICKLED),
    )
    for name in names
)
