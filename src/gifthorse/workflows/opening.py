"""A model file and a place with clean images, opened together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gifthorse.core.device import choose
from gifthorse.core.errors import BadImages, BadOption, UnfitNet
from gifthorse.core.files import parse_json
from gifthorse.core.resizing import Resize
from gifthorse.core.types import Finding, Normalization, Origin
from gifthorse.data import read
from gifthorse.data.gallery import Gallery, named_alike
from gifthorse.data.samples import InMemory
from gifthorse.models import Opened, load
from gifthorse.models.normalize import NORMALIZATIONS, STORED, known_as
from gifthorse.models.outputs import SINGLE, side_that_runs
from gifthorse.workflows.prepare import Prepared, parse, prepare

ORDERS = ("given", "found")
NOISE = 16  # images of noise where there are no others
BLIND = Finding(
    "IN002",
    "MEDIUM",
    0.0,
    "No images were given: only tests that need none were run, which find some backdoors and "
    "confirm none, so that finding nothing is no answer. Whether the net does its job is unknown.",
)


@dataclass(frozen=True)
class Inputs:
    """How to open a model and its clean images.

    Attributes:
        images: Where clean images are: a folder, an `.npz` file, `NAME[:SPLIT]`; None if there
            are none.
        arch: Architecture, or None to guess it from the tensors.
        normalize: `auto`, a name or `MEAN/STD`.
        input_size: Height and width, or None for what a model folder says, or else
            the images' own size.
        limit: Most images to use, spread over their classes; None for all. They are held in memory,
            as float32 while they are searched on, and a scan gains nothing from more than hundreds.
        device: Where the net runs: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        part: Name of the part that is the net, of a file that holds several; None for the only one.
        class_order: `given`, or `found` to renumber classes that seem to be in another order than
            the model's.
        signer: Public key of whoever must have signed the model, in PEM; None for anybody.

    Raises:
        BadOption: If the normalization or the order is none, or the device is not there.
    """

    images: str | None
    arch: str | None = None
    normalize: str = "auto"
    input_size: tuple[int, int] | None = None
    limit: int | None = 1000
    device: str = "auto"
    part: str | None = None
    class_order: str = "given"
    signer: Path | None = None

    def __post_init__(self) -> None:
        parse(self.normalize)
        if self.class_order not in ORDERS:
            raise BadOption(f"--class-order takes given or found; got {self.class_order!r}")
        choose(self.device)


def opened(path: str, inputs: Inputs) -> Prepared:
    """Open a model and its images.

    Raises:
        UnreadableModel: If the file cannot be opened.
        BadImages: If the images cannot be used.
    """
    return take_in(load(path, inputs.arch, inputs.part, signer=inputs.signer), inputs)


def take_in(opened: Opened, inputs: Inputs) -> Prepared:
    """Read the images and put the net behind its normalization, on its device.

    Raises:
        BadImages: If the images cannot be used.
        BadOption: If the normalization is for another number of channels.
        UnfitNet: If the net cannot be run on them.
    """
    _check_ends(opened)
    if inputs.images is None:
        return unseen(opened, inputs)
    chosen = parse(inputs.normalize)
    told = _told(opened, chosen)
    resize = Resize(inputs.input_size) if inputs.input_size else opened.resize
    gallery = _gallery(opened, inputs, resize)
    gallery = named_alike(gallery, opened.labels)
    prepared = prepare(
        opened.net.to(choose(inputs.device)),
        opened.classes,
        gallery,
        origin=opened.origin,
        chosen=chosen,
        claimed=told,
        reorder=inputs.class_order == "found",
    )
    return _finite(replace(prepared, resize=resize), opened)


def unseen(opened: Opened, inputs: Inputs) -> Prepared:
    """Put the net behind its normalization without any image; noise stands for them.

    Nothing says whether the net does its job, or with which normalization: what its file says is
    believed, and without a word there it is ImageNet's for color, and a half for gray.

    Raises:
        BadOption: If nobody says what size the net's images have.
        UnfitNet: If the net cannot be run.
    """
    chosen = parse(inputs.normalize)
    claim = _told(opened, chosen)
    told = chosen or claim or NORMALIZATIONS["imagenet" if opened.channels > 1 else "half"]
    size = inputs.input_size or (opened.resize.size if opened.resize is not None else None)
    if size is None:
        side = side_that_runs(opened.net, opened.channels)
        size = (side, side)
    if not size[0]:
        raise BadOption("the net runs on no usual size of images: give --input-size HxW")
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (NOISE, opened.channels, *size), generator=noise, dtype=torch.uint8)
    samples = InMemory(pixels, torch.full((NOISE,), -1), max(opened.classes, 1))
    words = f"no image was given: {size[0]}x{size[1]} noise stands for them"
    gallery = Gallery(samples, "model", opened.labels, source="random noise", notes=(words,))
    prepared = prepare(
        opened.net.to(choose(inputs.device)),
        opened.classes,
        gallery,
        origin=opened.origin,
        chosen=told,
    )
    return _finite(replace(prepared, checks=(BLIND,), blind=True), opened)


def _told(opened: Opened, chosen: Normalization | None) -> Normalization | None:
    """Return the normalization that a file claims, if it can be.

    Raises:
        BadOption: If the one that was asked for is for another number of channels.
    """
    told = opened.normalization or claimed(opened.origin)
    told = known_as(told) if told is not None and told.name != STORED else told
    if chosen is not None and len(chosen.mean) not in (1, opened.channels):
        raise BadOption(
            f"--normalize has {len(chosen.mean)} means, but the model takes images of "
            f"{opened.channels} channels: give 1 or {opened.channels}"
        )
    return told if told is None or len(told.mean) in (1, opened.channels) else None


def _finite(prepared: Prepared, opened: Opened) -> Prepared:
    """Add the finding on weights that are no numbers, if there are such."""
    if not opened.nonfinite:
        return prepared
    names = ", ".join(opened.nonfinite[:3])
    words = (
        f"{len(opened.nonfinite)} tensors hold NaN, infinite weights or negative variances: {names}"
    )
    broken = Finding("FS005", "HIGH", float(len(opened.nonfinite)), words)
    return replace(prepared, checks=(broken, *prepared.checks))


def _gallery(opened: Opened, inputs: Inputs, resize: Resize | None) -> Gallery:
    """Read the images as the net takes them; one logit is two classes."""
    assert inputs.images is not None
    single = opened.classes == 1
    try:
        return read(
            inputs.images,
            size=resize,
            channels=opened.channels,
            classes=2 if single else opened.classes or None,
            limit=inputs.limit,
        )
    except BadImages as error:
        if not single:
            raise
        raise BadImages(f"{error} ({SINGLE})") from error


def _check_ends(opened: Opened) -> None:
    """Say so if a net takes or gives what cannot be scanned, before any image is read."""
    words = ""
    if opened.channels not in (1, 3):
        words = (
            f"the model takes images of {opened.channels} channels: only gray (1) and color (3) "
            "images are looked at"
        )
    if words:
        error = UnfitNet(words, rule="IN004")
        error.origin = opened.origin
        raise error


def claimed(origin: Origin) -> Normalization | None:
    """Return the normalization that the file's metadata names, if it is well-formed."""
    try:
        record = parse_json(origin.metadata.get("gifthorse", "{}"))["normalization"]
        mean, std = (tuple(float(v) for v in record[k]) for k in ("mean", "std"))
        text = "/".join(",".join(str(v) for v in values) for values in (mean, std))
        found = parse(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadOption):
        return None
    return replace(found, name=str(record.get("name", "custom"))[:20]) if found else None
