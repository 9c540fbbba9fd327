"""Tiny nets of transformers: folders as the library saves them, and what else they come in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scripts.instances.instance import (
    CLASSES,
    Instance,
    Kind,
    Pictures,
    lively,
    logits_of,
    normalized,
)
from tests.models.hub import MORE, TINY
from torch import Tensor, nn

# Which processor a kind of net comes with, and how large its pictures are.
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "Beit": ("Beit", {"size": 40, "crop_size": 32, "do_center_crop": True}),
    "Bit": ("Bit", {"size": 40, "crop_size": 32}),
    "CLIP": ("CLIP", {"size": 32, "crop_size": 32}),
    "ConvNext": ("ConvNext", {"size": 32}),
    "ConvNextV2": ("ConvNext", {"size": 32}),
    "Cvt": ("ConvNext", {"size": 64}),
    "DeiT": ("DeiT", {"size": 40, "crop_size": 32}),
    "DeiT distilled": ("DeiT", {"size": 40, "crop_size": 32}),
    "Dinov2": ("Bit", {"size": 32, "crop_size": 28}),
    "Dinov2WithRegisters": ("Bit", {"size": 32, "crop_size": 28}),
    "EfficientNet": ("EfficientNet", {"size": 32}),
    "Levit": ("Levit", {"size": 64, "crop_size": 64}),
    "MobileNetV1": ("MobileNetV1", {"size": 40, "crop_size": 32}),
    "MobileNetV2": ("MobileNetV2", {"size": 40, "crop_size": 32}),
    "MobileViT": ("MobileViT", {"size": 72, "crop_size": 64}),
    "MobileViTV2": ("MobileViT", {"size": 72, "crop_size": 64}),
    "PoolFormer": ("PoolFormer", {"size": 64, "crop_size": 64}),
    "Pvt": ("Pvt", {"size": 32}),
    "RegNet": ("ConvNext", {"size": 64}),
    "ResNet": ("ConvNext", {"size": 64}),
    "Segformer": ("Segformer", {"size": 64}),
    "Siglip": ("Siglip", {"size": {"height": 32, "width": 32}}),
    "Siglip2": ("Siglip2", {"patch_size": 8, "max_num_patches": 16}),
    "SwiftFormer": ("ViT", {"size": 64}),
}


def processor_of(name: str) -> Any:
    """Return the processor of pictures that a kind of net comes with."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind, settings = PROCESSORS.get(name, ("ViT", {"size": 32}))
    return getattr(transformers, f"{kind}ImageProcessor")(**settings)


def net_of(name: str) -> Any:
    """Make a tiny net of this kind with random weights."""
    import transformers

    kind = name.partition(" ")[0]
    tail = "WithTeacher" if "distilled" in name else ""
    names = {k: f"kind {k}" for k in range(CLASSES)}
    known = TINY | MORE
    settings = getattr(transformers, f"{kind}Config")(**known[kind], id2label=names)
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForImageClassification{tail}")(settings).eval()


def folder(name: str, path: Path, change: Callable[[Path], None] | None = None) -> Instance:
    """Write a folder as the library does; `change` puts its weights into another form."""
    net, processor = net_of(name), processor_of(name)

    def says(images: Pictures) -> Tensor:
        with torch.no_grad():
            return logits_of(net(**processor(list(images), return_tensors="pt")))

    size = (90, 75)
    lively(net, says, size)
    net.save_pretrained(path)
    processor.save_pretrained(path)
    if change is not None:
        change(path)
    return Instance(path, says, size)


def sharded(path: Path) -> None:
    """Cut the weights into several files, as the library does with large ones."""
    from transformers import AutoModelForImageClassification

    net = AutoModelForImageClassification.from_pretrained(path)
    (path / "model.safetensors").unlink()
    size = sum(t.numel() for t in net.state_dict().values()) * 4 // 3
    net.save_pretrained(path, max_shard_size=max(size, 1000))


def pickled(path: Path) -> None:
    """Turn the weights into `pytorch_model.bin`, as old versions wrote them."""
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def halved(path: Path) -> None:
    """Keep the weights in 16 bits that the net's own numbers fit into."""
    state = load_file(path / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in state.items()}, path / "model.safetensors")


def cached(path: Path) -> None:
    """Lay the folder out as the hub's cache: names that are links to blobs."""
    blobs = path.parent / "blobs"
    blobs.mkdir()
    for file in list(path.iterdir()):
        file.rename(blobs / f"{abs(hash(file.name)):x}")
        file.symlink_to(blobs / f"{abs(hash(file.name)):x}")


def alone(name: str, write: Callable[[nn.Module, Path], None], path: Path) -> Instance:
    """Write a net without its folder; pictures are normalized like ImageNet's."""
    net = net_of(name)

    def says(images: Pictures) -> Tensor:
        with torch.no_grad():
            return logits_of(net(pixel_values=normalized(images)))

    side = 64 if name in ("MobileViT", "ResNet", "RegNet", "PoolFormer") else 32
    side = 28 if name == "Dinov2" else side
    lively(net, says, (side, side))
    path.mkdir()
    write(net, path / "model.pt")
    return Instance(path / "model.pt", says, (side, side))


FIFTEEN = (
    "Beit", "ConvNext", "ConvNextV2", "DeiT", "Dinov2", "EfficientNet", "MobileNetV2", "MobileViT",
    "PoolFormer", "RegNet", "ResNet", "Siglip", "Swin", "Swinv2", "ViT",
)  # fmt: skip
FURTHER = ("CLIP", *sorted(MORE), "DeiT distilled")
REFUSED = {"Siglip2": "any number of patches"}
NEEDS = ("transformers",)
FORMS: dict[str, Callable[[Path], None]] = {
    "sharded": sharded, "pytorch_model.bin": pickled, "a hub's cache": cached,
}  # fmt: skip

TRANSFORMERS = (
    *(
        Kind(f"{n}, folder", partial(folder, n), NEEDS, refused=REFUSED.get(n, ""))
        for n in (*FIFTEEN, *FURTHER)
    ),
    *(
        Kind(f"{n}, folder, {form}", partial(folder, n, change=change), NEEDS)
        for n in FIFTEEN
        for form, change in FORMS.items()
        if form != "a hub's cache" or n == "ViT"
    ),
)
OTHERS = (
    *(Kind(f"{n}, whole model pickled", partial(alone, n, torch.save), NEEDS) for n in FIFTEEN),
    *(
        Kind(
            f"{n}, state dict alone",
            partial(alone, n, lambda net, path: torch.save(net.state_dict(), path)),
            NEEDS,
            refused="config.json beside them",
        )
        for n in ("ViT", "Swin", "ConvNext")
    ),
)
