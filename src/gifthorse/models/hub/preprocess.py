"""`preprocessor_config.json`: how images become what the net takes, in the model's own words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from gifthorse.core.resizing import Kernel, Resize
from gifthorse.core.types import Normalization
from gifthorse.models.hub.config import HubConfig, read_json, square

FILES = ("preprocessor_config.json", "processor_config.json")
KERNELS: tuple[Kernel, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
CROPPED = 384  # pixels below which ConvNeXt's processor crops
LARGEST = 4096  # pixels a side


def read_preprocessing(folder: Path, config: HubConfig) -> tuple[Normalization | None, Resize]:
    """Return the normalization and the resizing that a folder claims.

    Args:
        folder: The model's folder.
        config: Its configuration, which says how large images are where nothing else does.
    """
    if config.library == "timm":
        return _normalization(config.fields, "mean", "std"), _timm(config)
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    found = read_json(path) if path is not None else {}
    nested = found.get("image_processor")
    own: dict[str, Any] = nested if isinstance(nested, dict) else found
    claim = _claim(own) if own else None
    return claim, _resize(own, config.side or (224, 224))


def _claim(own: Mapping[str, Any]) -> Normalization | None:
    """Return the normalization, if pixels are brought to 0 to 1 first."""
    if own.get("do_normalize") is False:
        factor = own.get("rescale_factor", 1 / 255)
        plain = own.get("do_rescale", True) and abs(factor * 255 - 1) < 1e-6
        return Normalization("none") if plain else None
    claim = _normalization(own, "image_mean", "image_std")
    if claim is None or own.get("do_rescale") is False:
        return None
    if "Efficient" in str(own.get("image_processor_type", "")) and own.get("include_top"):
        claim = Normalization("custom", claim.mean, tuple(s * s for s in claim.std))  # twice
    bgr = bool(own.get("do_flip_channel_order"))
    return Normalization(claim.name, claim.mean, claim.std, bgr=bgr)


def _normalization(own: Mapping[str, Any], mean: str, std: str) -> Normalization | None:
    means, stds = ([v] if isinstance(v := own.get(k), float) else v for k in (mean, std))
    if not (isinstance(means, list | tuple) and isinstance(stds, list | tuple)):
        return None
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (*means, *stds))
    if not numbers or len(means) != len(stds) or len(means) not in (1, 3) or min(stds) <= 0:
        return None
    return Normalization("custom", tuple(map(float, means)), tuple(map(float, stds)))


def _resize(own: Mapping[str, Any], side: tuple[int, int]) -> Resize:
    """Return what a processor of transformers does, its own defaults where it says nothing."""
    kernel = _kernel(own.get("resample", 2))
    size, cropped = own.get("size"), square(own.get("crop_size"))
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    edge = edge if isinstance(edge, int) and 0 < edge <= LARGEST else None
    whole = square(size)
    if own.get("crop_pct") and edge is not None and not cropped:  # ConvNeXt, PoolFormer
        if edge >= CROPPED:
            return Resize((edge, edge), kernel=kernel)
        return Resize((edge, edge), shortest=int(edge / float(own["crop_pct"])), kernel=kernel)
    if own.get("do_resize") is False:
        return Resize(cropped or side, resized=None, kernel=kernel)
    out = cropped if own.get("do_center_crop", cropped is not None) and cropped else None
    if edge is not None:
        return Resize(_bounded(out or (edge, edge)), shortest=edge, kernel=kernel)
    return Resize(_bounded(out or whole or side), resized=_bounded(whole or side), kernel=kernel)


def _timm(config: HubConfig) -> Resize:
    side = config.side or (224, 224)
    share = config.fields.get("crop_pct") or 0.875
    kernel = _kernel(config.fields.get("interpolation", "bicubic"))
    return Resize(_bounded(side), shortest=int(side[0] / float(share)), kernel=kernel)


def _kernel(named: object) -> Kernel:
    """Return the filter of Pillow by its number or name."""
    if isinstance(named, int) and 0 <= named < len(KERNELS):
        return KERNELS[named]
    return next((k for k in get_args(Kernel) if k == named), "bilinear")


def _bounded(size: tuple[int, int]) -> tuple[int, int]:
    return min(size[0], LARGEST), min(size[1], LARGEST)
