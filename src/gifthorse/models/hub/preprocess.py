"""`preprocessor_config.json`: how images become what the net takes, in the model's own words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.resizing import Kernel, Resize
from gifthorse.core.types import Normalization
from gifthorse.models.hub.config import HubConfig, checked, read_json, square

FILES = ("preprocessor_config.json", "processor_config.json")
USED = (
    "crop_pct", "crop_size", "do_center_crop", "do_flip_channel_order", "do_normalize",
    "do_rescale", "do_resize", "image_mean", "image_processor_type", "image_std", "include_top",
    "feature_extractor_type", "resample", "rescale_factor", "size",
)  # fmt: skip
SHORTEST = ("Bit", "CLIP", "ConvNext", "Levit", "MobileNet", "MobileViT", "PoolFormer")  # a size is
KERNELS: tuple[Kernel, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
CROPPED = 384  # pixels below which ConvNeXt's processor crops
LEAST_STD = 1e-6  # of a deviation; less is no scale of pixels
LARGEST = 1024  # pixels a side: an image of more takes over 12 MB
LEAST_SHARE = 0.1  # of an image that a crop keeps


def read_preprocessing(folder: Path, config: HubConfig) -> tuple[Normalization | None, Resize]:
    """Return the normalization and the resizing that a folder claims.

    Args:
        folder: The model's folder.
        config: Its configuration, which says how large images are where nothing else does.

    Raises:
        UnreadableModel: If a setting is not believable.
    """
    if config.library == "timm":
        return _normalization(config.fields, "mean", "std"), _timm(config)
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    found = read_json(path) if path is not None else {}
    nested = found.get("image_processor")
    own = nested if isinstance(nested, dict) else found
    own = checked(path or folder, {name: own[name] for name in USED if name in own})
    claim = _claim(own) if own else None
    return claim, _resize(own, config.side or (224, 224))


def _claim(own: Mapping[str, Any]) -> Normalization | None:
    """Return the normalization, if pixels are brought to 0 to 1 first."""
    claim = _normalization(own, "image_mean", "image_std")
    bgr = bool(own.get("do_flip_channel_order"))
    if not own.get("do_normalize", not bgr):
        claim = Normalization("none")
    factor = own.get("rescale_factor", 1 / 255)
    numbers = isinstance(factor, int | float) and factor > 0
    if claim is None or own.get("do_rescale") is False or not numbers:
        return None
    if _is(own, "Efficient") and own.get("include_top"):
        claim = Normalization("custom", claim.mean, tuple(s * s for s in claim.std))  # twice
    if abs(255 * factor - 1) > 1e-6:  # means and deviations of pixels that come larger than 0 to 1
        mean, std = (tuple(v / factor / 255 for v in values) for values in (claim.mean, claim.std))
        claim = Normalization("custom", mean, std)
    return Normalization(claim.name, claim.mean, claim.std, bgr=bgr)


def _is(own: Mapping[str, Any], *words: str) -> bool:
    """Whether the processor's type, by its new key or its old one, has a word in it."""
    named = f"{own.get('image_processor_type')} {own.get('feature_extractor_type')}"
    return any(word in named for word in words)


def _normalization(own: Mapping[str, Any], mean: str, std: str) -> Normalization | None:
    means, stds = ([v] if isinstance(v := own.get(k), int | float) else v for k in (mean, std))
    if not (isinstance(means, list | tuple) and isinstance(stds, list | tuple)):
        return None
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (*means, *stds))
    if not numbers or len(means) != len(stds) or len(means) not in (1, 3) or min(stds) < LEAST_STD:
        return None
    return Normalization("custom", tuple(map(float, means)), tuple(map(float, stds)))


def _resize(own: Mapping[str, Any], side: tuple[int, int]) -> Resize:
    """Return what a processor of transformers does, its own defaults where it says nothing."""
    kernel = _kernel(own.get("resample", 2))
    size, cropped = own.get("size"), square(own.get("crop_size"))
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    edge = size if type(size) is int and _is(own, *SHORTEST) else edge
    edge = edge if type(edge) is int and edge > 0 else None
    whole = square(size)
    if own.get("do_resize") is False:
        return Resize(_bounded(cropped or side), kernel=kernel)
    out = cropped if own.get("do_center_crop", cropped is not None) and cropped else None
    if edge is not None:
        if own.get("crop_pct") and not out and edge >= CROPPED:  # ConvNeXt
            return Resize(_bounded((edge, edge)), kernel=kernel)
        grown = int(256 / 224 * edge) if _is(own, "Levit") else int(edge / _share(own))
        return Resize(_bounded(out or (edge, edge)), shortest=grown, kernel=kernel)
    return Resize(_bounded(out or whole or side), resized=_bounded(whole or side), kernel=kernel)


def _timm(config: HubConfig) -> Resize:
    side = config.side or (224, 224)
    share = _share({"crop_pct": 0.875, **config.fields})
    kernel = _kernel(config.fields.get("interpolation", "bicubic"))
    if config.fields.get("crop_mode") == "squash":
        grown = int(side[0] / share), int(side[1] / share)
        return Resize(_bounded(side), resized=_bounded(grown), kernel=kernel, even=True)
    return Resize(_bounded(side), shortest=int(side[0] / share), kernel=kernel, even=True)


def _share(own: Mapping[str, Any]) -> float:
    """Return the share of a resized image's shorter edge that the crop keeps."""
    share = own.get("crop_pct") or 1.0
    if isinstance(share, bool) or not isinstance(share, int | float) or share < LEAST_SHARE:
        raise UnreadableModel(f"crop_pct is {share!r:.40}: expected a share", rule="FS003")
    return float(share)


def _kernel(named: object) -> Kernel:
    """Return the filter of Pillow by its number or name."""
    if type(named) is int and 0 <= named < len(KERNELS):
        return KERNELS[named]
    return next((k for k in get_args(Kernel) if k == named), "bilinear")


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    if max(size) > LARGEST:
        raise UnreadableModel(
            f"the folder asks for images of {size[0]}x{size[1]}: at most {LARGEST} pixels a side "
            "are looked at",
            rule="FS004",
        )
    return size
