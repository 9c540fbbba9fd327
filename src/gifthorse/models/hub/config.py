"""`config.json` of a hub folder, read as data: which net, how large, what its classes are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gifthorse.core.errors import UnreadableModel, UnsafeModel, UsageError
from gifthorse.core.files import read_file
from gifthorse.models.reading.entries import shown

# Types of transformers whose classes for images take pixels and return logits, and nothing else.
TYPES = frozenset({
    "beit", "bit", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2",
    "dinov2_with_registers", "efficientformer", "efficientnet", "focalnet", "hiera", "ijepa",
    "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt",
    "pvt_v2", "regnet", "resnet", "segformer", "siglip", "swiftformer", "swin", "swinv2",
    "vit", "vit_msn", "clip",
})  # fmt: skip
REFUSED = {  # what else there is for images, and why it is not scanned
    "siglip2": "its images come cut into any number of patches (NaFlex); nets of SigLIP 2 for one "
    "size are of type 'siglip'",
}
HEAD = "ForImageClassification"
TAILS = (HEAD, f"{HEAD}WithTeacher")
NAMES = ("id2label", "label_names")  # one a class
CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
LARGEST = 1 << 20  # bytes of a JSON file, and the largest number in it
DEEPEST = 512  # of anything that counts layers
MOST_CLASSES = 100_000
MOST_VALUES = 1000  # of a list
COUNTS = ("layers", "depth", "blocks", "stages", "num_encoder")
PLAIN = str | int | float | bool | None


@dataclass(frozen=True)
class HubConfig:
    """What a folder says of its net.

    Attributes:
        library: `transformers` or `timm`.
        name: Class of `transformers`, or net of timm.
        kind: Its `model_type`; empty for timm.
        fields: The configuration, checked field by field.
        labels: Names of the classes, by number; empty if there are none of use.
        classes: Number of logits.
        channels: Input channels.
        side: Height and width of the images that it takes, or None.
        notes: What was left out.
    """

    library: str
    name: str
    kind: str
    fields: Mapping[str, Any]
    labels: tuple[str, ...]
    classes: int
    channels: int
    side: tuple[int, int] | None
    notes: tuple[str, ...] = ()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a folder.

    Raises:
        UnreadableModel: If it is too large, or no JSON object.
    """
    try:
        found = json.loads(read_file(path, LARGEST), parse_constant=_refuse)
    except UsageError as error:
        raise UnreadableModel(str(error), rule="FS003") from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"is no JSON ({shown(str(error))})") from error
    if not isinstance(found, dict):
        raise _unreadable(path, "holds no object")
    return found


def read_config(path: Path) -> HubConfig:
    """Read `config.json`.

    Raises:
        UnsafeModel: If it names code of its own.
        UnreadableModel: If it is no configuration of a net for images, or a field is not
            believable.
    """
    found = read_json(path)
    code = [name for name in CODE if found.get(name)]
    if code:
        raise UnsafeModel(
            f"{path.name} asks for Python code that comes with the model ({', '.join(code)}): it "
            "is not run; scan weights whose net is in transformers or timm",
            rule="FS002",
        )
    timm = found.get("architecture")
    return _timm(path, found) if isinstance(timm, str) else of_fields(path, found)


def of_fields(path: Path, found: dict[str, Any]) -> HubConfig:
    """Return what the fields of a configuration of transformers say; see `read_config`."""
    kind, named = found.get("model_type"), found.get("architectures")
    if not isinstance(kind, str) or kind not in TYPES:
        why = REFUSED.get(str(kind), "no known net for images")
        raise _unreadable(path, f"has model_type {kind!r:.60}: {why}", "IN004")
    names = named if isinstance(named, list) else []
    heads = [n for n in names if isinstance(n, str) and n.endswith(TAILS) and n.isidentifier()]
    if names and not heads:
        raise _unreadable(path, f"is of {names[0]!r:.60}, which is no image classifier", "IN004")
    if found.get("problem_type") == "multi_label_classification":
        raise _unreadable(path, "is of a multi-label net: its outputs are no classes", "IN004")
    fields = checked(path, found)
    labels, notes = _labels(path, found.get("id2label"))
    classes = len(labels) or _count(path, "num_labels", found.get("num_labels", 2))
    vision = found.get("vision_config")
    side = vision.get("image_size") if isinstance(vision, dict) else found.get("image_size")
    return HubConfig(
        "transformers",
        heads[0] if heads else "",
        kind,
        fields,
        () if notes or all(n == f"LABEL_{i}" for i, n in enumerate(labels)) else labels,
        classes,
        _count(path, "num_channels", found.get("num_channels", 3)),
        square(side),
        notes,
    )


def _timm(path: Path, found: dict[str, Any]) -> HubConfig:
    own = found.get("pretrained_cfg")
    own = own if isinstance(own, dict) else found
    names = found.get("label_names") or own.get("label_names")
    labels = tuple(shown(str(name), 100) for name in names) if isinstance(names, list) else ()
    shape = own.get("input_size", (3, 224, 224))
    if not (isinstance(shape, list | tuple) and len(shape) == 3):
        raise _unreadable(path, f"has input_size {shape!r:.60}: expected three numbers")
    channels, height, width = (_count(path, "input_size", v) for v in shape)
    classes = _count(path, "num_classes", found.get("num_classes", own.get("num_classes")))
    given = found.get("model_args") or {}
    if not isinstance(given, dict):
        raise _unreadable(path, "has model_args that are no settings")
    fields = checked(path, {**own, **given})
    labels = labels if len(labels) == classes else ()
    name = found["architecture"]
    if not name.isidentifier():
        raise _unreadable(
            path, f"names the net {shown(name, 60)!r}, which no net of timm is called"
        )
    return HubConfig(
        "timm",
        name,
        "",
        {**fields, "model_args": given},
        labels,
        classes,
        channels,
        (height, width),
    )


def square(side: object) -> tuple[int, int] | None:
    """Return height and width from the forms that configurations have for them, or None.

    Example:
        >>> square(224), square([64, 32]), square({"height": 8, "width": 9}), square("big")
        ((224, 224), (64, 32), (8, 9), None)
    """
    if isinstance(side, dict):
        side = [side.get("height"), side.get("width")]
    if isinstance(side, int) and not isinstance(side, bool):
        side = [side, side]
    if isinstance(side, list) and len(side) == 2 and all(type(v) is int and v > 0 for v in side):
        return side[0], side[1]
    return None


def _labels(path: Path, names: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of `id2label` in the order of their numbers, and notes.

    Numbers with gaps count classes and name none: so does the library.
    """
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        numbered = {int(k): shown(str(v), 100) for k, v in (names or {}).items()}  # type: ignore[attr-defined]
    except (AttributeError, ValueError) as error:
        raise _unreadable(path, "has an id2label that does not name numbers") from error
    if len(numbered) > MOST_CLASSES:
        raise _unreadable(path, f"names more than {MOST_CLASSES:,} classes")
    odd = sorted(numbered) != list(range(len(numbered)))
    notes = ("left aside class names that do not count from 0 on",) if odd else ()
    return tuple(numbered[k] for k in sorted(numbered)), notes


def checked(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings if all are plain values of believable size.

    Raises:
        UnreadableModel: If one is not.
    """
    return {name: _checked(path, name, value) for name, value in found.items()}


def _checked(path: Path, name: str, value: object, depth: int = 0) -> Any:
    """Return a field if it is a plain value of believable size; refuse it otherwise."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return _number(path, name, value)
    if isinstance(value, str):
        return value[:1000]
    most = MOST_CLASSES if isinstance(value, dict) or name in NAMES else MOST_VALUES
    if depth > 2 or not isinstance(value, list | dict) or len(value) > most:
        raise _unreadable(path, f"has {shown(name)!r} that is no plain setting")
    if isinstance(value, dict):
        return {k: _checked(path, k, v, depth + 1) for k, v in value.items()}
    return [_checked(path, name, v, depth + 1) for v in value]


def _number(path: Path, name: str, value: object) -> int | float:
    most = DEEPEST if any(word in name for word in COUNTS) else LARGEST
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not abs(value) <= most:  # type: ignore[arg-type]
        raise _unreadable(path, f"has {shown(name)!r} of {value!r:.40}: expected at most {most:,}")
    return value  # type: ignore[return-value]


def _count(path: Path, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise _unreadable(path, f"has {shown(name)!r} of {value!r:.40}: expected 1 to {LARGEST:,}")
    return value


def _unreadable(path: Path, words: str, rule: str = "FS003") -> UnreadableModel:
    return UnreadableModel(f"{path.name} {words}", rule=rule)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")
