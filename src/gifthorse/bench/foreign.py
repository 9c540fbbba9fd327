"""What files of other benchmarks say of a model, read without running anything in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.bench.decoding import TEXT, examples, named, some_arrays, stamped, table, whole_array
from gifthorse.core.errors import (
    BadImages,
    GifthorseError,
    UnknownArch,
    UnreadableModel,
)
from gifthorse.core.files import read_file
from gifthorse.core.types import Goal, Normalization, Shape, Trigger
from gifthorse.data.decode import as_pixels
from gifthorse.data.gallery import Gallery
from gifthorse.data.isolation import decoded, together
from gifthorse.models import architectures as archs
from gifthorse.models.load import Opened, from_state
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.models.opening import load
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.isolation import checkpoint, sniff
from gifthorse.triggers import Patch, Wandering

T = TypeVar("T")

Placing: TypeAlias = Callable[[Shape], Trigger]

MARK = 64 << 20  # bytes of a mark

_CIFAR10 = (0.4914, 0.4822, 0.4465)

# What each benchmark turns the pixels of its data into.
NORMALIZED: Mapping[str, Mapping[str, Normalization]] = {
    "backdoorbench": {
        "cifar10": Normalization("custom", _CIFAR10, (0.247, 0.243, 0.261)),
        "cifar100": NORMALIZATIONS["cifar100"],
        "mnist": NORMALIZATIONS["half"],
        "tiny": Normalization("custom", (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        "imagenet": NORMALIZATIONS["imagenet"],
        "gtsrb": NORMALIZATIONS["none"],
        "celeba": NORMALIZATIONS["none"],
    },
    "trojanzoo": {n: NORMALIZATIONS[n] for n in ("cifar10", "gtsrb", "mnist", "imagenet")},
}
NAME = re.compile(r"(.+)_tar(\d+)_alpha([\d.]+)_mark\((\d+),(\d+)\).*")
DYNAMIC = re.compile(r"tar(\d+) poison[\d.]+ cross[\d.]+")


@dataclass(frozen=True, eq=False)
class Stamps:
    """Stamped copies of some test images.

    Attributes:
        images: `(M, C, H, W)` uint8.
        index: Which clean test images they were, `(M,)`.
        labels: What those are, `(M,)`.
        targets: What they are to come out as, `(M,)`.
    """

    images: Tensor
    index: Tensor
    labels: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model of another benchmark.

    Attributes:
        kind: `backdoorbench`, `trojanzoo` or `trojai`.
        path: File of its weights.
        label: What was done to it, as tables call it.
        poisoned: Whether it has a backdoor.
        goal: What that does, if it has one target.
        data: Name of the data that it was trained on; may be empty.
        shape: Of its images, if known.
        opened: The net; None if it cannot be opened.
        error: Why not.
        stamps: Stamped test images, if they come along.
        trigger: Makes the trigger for images of a shape, if it comes along.
        gallery: Clean images, if they come along.
        facts: What else is known, as text by name.
        notes: What was done or left out, in words.
    """

    kind: str
    path: Path
    label: str
    poisoned: bool
    goal: Goal | None = None
    data: str = ""
    shape: Shape | None = None
    opened: Opened | None = None
    error: str = ""
    stamps: Stamps | None = None
    trigger: Placing | None = None
    gallery: Gallery | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# 1. BackdoorBench -----------------------------------------------------------------------------


def backdoorbench(path: Path, arch: str | None = None) -> Foreign:
    """Return what an `attack_result.pt` says, and the images in the folder `bd_test_dataset`."""
    base = Foreign("backdoorbench", path, shown(path.resolve().parent.name), True)
    keys = ("model", "model_name", "img_size", "clean_data", "bd_test")
    try:
        said = checkpoint(path, keys)
        net = from_state(said.get("model"), path, arch)
        stamps, notes = _stamps(said.get("bd_test"), path.parent, net.channels)
    except GifthorseError as error:
        return replace(base, error=str(error))
    data = str(said.get("clean_data", ""))
    targets = [] if stamps is None else stamps.targets.unique().tolist()
    if len(targets) > 1:
        notes = (*notes, f"{len(targets)} targets: stamped images are left aside")
    shape: Shape | None = None
    match said.get("img_size"):
        case [int() as height, int() as width, *_]:
            shape = (net.channels, height, width)
    return replace(
        base,
        goal=Goal(int(targets[0])) if len(targets) == 1 else None,
        data=data,
        shape=shape,
        opened=net,
        stamps=stamps if len(targets) == 1 else None,
        facts={"model_name": shown(str(said.get("model_name", "")))},
        notes=notes,
    )


def _stamps(test: Any, folder: Path, channels: int) -> tuple[Stamps | None, tuple[str, ...]]:
    """Return stamped images, kept by path (since 2023) or as one tensor (the first version)."""
    if not isinstance(test, dict):
        return None, ("no stamped images",)
    try:
        if isinstance(test.get("x"), Tensor):
            return _whole(test)
        kept = test["bd_data_container"]["data_dict"]
        among = set(_list(test.get("original_index_array", list(kept))))
        rows = [(i, e["other_info"], str(e["path"])) for i, e in kept.items() if i in among]
        marks = torch.tensor([[i, info[1], info[0]] for i, info, _ in rows], dtype=torch.int32)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise UnreadableModel(f"its list of stamped images is malformed: {error!r}") from error
    return _files(marks.long(), [path for _, _, path in rows], folder, channels)


def _list(part: Any) -> list[Any]:
    return part if isinstance(part, list) else list(part.tolist())


def _whole(test: Mapping[str, Any]) -> tuple[Stamps | None, tuple[str, ...]]:
    parts = [test.get(key) for key in ("original_index", "original_targets", "y")]
    if any(part is None for part in parts):
        return None, ("stamped images are left aside: which images they were is not said",)
    pixels = torch.from_numpy(as_pixels(test["x"].numpy())[0])
    vectors = [torch.tensor(_list(part), dtype=torch.long) for part in parts]
    if any(v.shape != (len(pixels),) for v in vectors):
        raise ValueError("images and labels differ in number")
    return Stamps(pixels, *vectors), ()


def _files(
    marks: Tensor, paths: Sequence[str], folder: Path, channels: int
) -> tuple[Stamps | None, tuple[str, ...]]:
    """Read images `FOLDER/PART/LABEL/NUMBER.png`, by the last three parts of the paths given."""
    good, pixels = decoded(stamped, [str(folder), list(paths), channels], folder)
    missing = len(paths) - len(good)
    note = (f"{missing:,} of {len(paths):,} stamped images cannot be read",) if missing else ()
    if not pixels:
        return None, note or ("no stamped images of one size",)
    return Stamps(pixels[0], *marks[good].T), note


# 2. TrojanZoo ---------------------------------------------------------------------------------


def trojanzoo(path: Path, arch: str | None = None, place: tuple[int, int] = (0, 0)) -> Foreign:
    """Return what a `.pth` says, by its name, and the mark beside it (`.npy`, formerly `.npz`)."""
    found, dynamic = NAME.fullmatch(path.stem), DYNAMIC.match(path.stem)
    folders = [*(shown(p.name) for p in path.resolve().parents), "", ""]
    clean = folders[2:3] == ["model"]  # model/image/cifar10/resnet18.pth
    data, attack = folders[0 if clean else 2], "" if clean else folders[0]
    target = found[2] if found else dynamic[1] if dynamic else ""
    base = Foreign(
        "trojanzoo",
        path,
        attack,
        not clean,
        Goal(int(target)) if target else None,
        data,
        facts={} if found is None else {"mark": shown(found[1]), "alpha": found[3]},
    )
    if not clean and not target:
        return replace(base, error="its name tells no target: expected ..._tarN_alphaN_mark(H,W)")
    try:
        net = _renamed(path, arch)
        if clean or not found:
            return replace(base, opened=net)
        trigger, note = _mark(path, found, place)
    except GifthorseError as error:
        return replace(base, error=str(error))
    return replace(base, opened=net, trigger=trigger, notes=(note,))


def _renamed(path: Path, arch: str | None) -> Opened:
    """Open weights under the names that TrojanZoo gives them, or under those of our nets."""
    if sniff(path) != "pytorch":
        return load(path, arch)
    state = checkpoint(path)
    plain = state and all(isinstance(t, Tensor) for t in state.values())
    tried = list(renamings(state)) if plain else [state]
    if arch is None and plain:
        tried = [s for s in tried if archs.find(archs.shapes_of(s))] or tried[:1]
    for names in tried[:-1]:
        with suppress(UnknownArch):
            return from_state(names, path, arch)
    return from_state(tried[-1], path, arch)


def renamings(state: Mapping[str, T]) -> Iterator[Mapping[str, T]]:
    """Yield a state dict as it is, with our names for its head, and without its two parts.

    Example:
        >>> [list(s) for s in renamings({"features.conv1.bias": 1, "classifier.fc.bias": 2})][1:]
        [['features.conv1.bias', 'classifier.bias'], ['conv1.bias', 'fc.bias']]
    """
    yield state
    heads = {"fc": "classifier.", **{f"fc{i + 1}": f"classifier.{3 * i}." for i in range(3)}}
    for head in (r"classifier[.](fc\d?)[.]", "(features|classifier)[.]"):
        yield {re.sub(f"^{head}", lambda m: heads.get(m[1], ""), k): v for k, v in state.items()}


def _mark(path: Path, found: re.Match[str], place: tuple[int, int]) -> tuple[Placing | None, str]:
    """Return what makes the trigger for images of some shape, and a note on it."""
    new, old = path.with_name(path.stem + ".npy"), path.with_name(path.stem + ".npz")
    wanders = re.match("(scattered_)?random_?pos_", path.stem) is not None
    try:
        if new.is_file() and new.stat().st_size <= MARK:
            _, (mark,) = decoded(whole_array, [str(new)], new)
            parts = mark[:-1], mark[-1:] * float(found[3])
            note = "the mark wanders" if wanders else f"its place is not kept: took {place}"
        elif old.is_file():
            keys = [("org_" if wanders else "") + key for key in ("mark", "mask", "alpha_mask")]
            _, (pattern, *masks) = decoded(some_arrays, [str(old), keys], old)
            parts = pattern, (masks[0] * masks[1]).reshape(1, *pattern.shape[1:])
            place, note = (0, 0), "the mark is of the form before 2022"
        else:
            return None, "there is no mark beside it"
        if any(p.ndim != 3 or not ((p >= 0) & (p <= 1)).all() for p in parts):
            return None, "the mark cannot be read: expected numbers in 0-1, (C + 1, H, W)"
    except (BadImages, ValueError, IndexError, TypeError, RuntimeError, OSError) as error:
        return None, f"the mark cannot be read: {error}"
    return partial(_placed, *parts, None if wanders else place), note


def _placed(pattern: Tensor, mask: Tensor, place: tuple[int, int] | None, shape: Shape) -> Trigger:
    (c, h, w), (channels, H, W) = pattern.shape, shape
    top, left = place or (0, 0)
    if c != channels or min(top, left) < 0 or top + h > H or left + w > W:
        raise BadImages(f"a mark of {c} x {h} x {w} at {top}, {left} does not fit into {shape}")
    if place is None:
        return Wandering(pattern, mask, Generator().manual_seed(0))
    around = (left, W - left - w, top, H - top - h)
    return Patch(F.pad(pattern, around), F.pad(mask, around))


# 3. TrojAI ------------------------------------------------------------------------------------


def trojai(folder: Path, arch: str | None = None) -> Foreign:
    """Return what a model folder of a TrojAI round of image classification says."""
    path = next((p for p in sorted(folder.glob("model.*")) if p.is_file()), folder / "model.pt")
    base = Foreign("trojai", path, "trojai", True)
    try:
        config = table(folder / "config.json")
        truth = folder / "ground_truth.csv"
        said = read_file(truth, TEXT).decode()[:100].split() if truth.exists() else []
        words = said or [str(config.get("poisoned"))]
        poisoned = {"1": True, "0": False, "true": True, "false": False}
        base = replace(base, poisoned=poisoned[str(words[0]).lower().removesuffix(".0")])
        base = _told(base, config)
        base = replace(base, gallery=_examples(folder, ""))
        with suppress(BadImages):
            poison = _examples(folder, "poisoned")
            note = f"{len(poison.samples):,} poisoned examples, not paired with clean ones"
            base = replace(base, notes=(*base.notes, note))
        return replace(base, opened=load(path, arch))
    except (OSError, UnicodeDecodeError, LookupError) as error:
        reason = f"{folder.name} has no ground_truth.csv or config.json that can be read: {error!r}"
        return replace(base, error=reason)
    except GifthorseError as error:
        return replace(base, error=str(error))


_GOALS = (("target_class", "trigger_target_class"), ("source_class", "triggered_classes"))
_KINDS = ("type", "trigger_type", "py/object")


def _told(base: Foreign, config: Mapping[str, Any]) -> Foreign:
    """Add what a `config.json` says of data, architecture and triggers."""
    said = {str(k).lower(): v for k, v in config.items()}
    names = ("model_architecture", "number_classes", "source_dataset", "cnn_img_size_pixels")
    facts = {n: shown(str(said[n])) for n in names if said.get(n) is not None}
    targets, sources = (
        sorted({v for v in named(config, keys) if isinstance(v, int)}) for keys in _GOALS
    )
    kinds = sorted({v for v in named(config, _KINDS) if isinstance(v, str)})
    kinds = [k for k in kinds if re.search("trigger|polygon|instagram", k, re.IGNORECASE)]
    short = "+".join(shown(k.rpartition(".")[2], 40) for k in kinds) or "trojai"
    if not base.poisoned:
        return replace(base, label="", data=facts.get("source_dataset", ""), facts=facts)
    facts |= {"targets": ", ".join(map(str, targets)), "sources": ", ".join(map(str, sources))}
    goal = (
        Goal(targets[0], sources[0] if len(sources) == 1 else None) if len(targets) == 1 else None
    )
    return replace(base, label=short, goal=goal, data=facts.get("source_dataset", ""), facts=facts)


def _examples(folder: Path, kind: str) -> Gallery:
    return together(decoded(examples, [str(folder), kind], folder))
