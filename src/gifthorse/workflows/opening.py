"""A model file and a place with clean images, opened together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gifthorse.core.device import choose
from gifthorse.core.errors import BadImages, BadOption, UnfitNet
from gifthorse.core.files import parse_json
from gifthorse.core.resizing import Resize
from gifthorse.core.types import Finding, Normalization, Origin
from gifthorse.data import read
from gifthorse.data.gallery import Gallery, named_alike
from gifthorse.models import Opened, load
from gifthorse.models.normalize import STORED, known_as
from gifthorse.models.outputs import SINGLE
from gifthorse.workflows.prepare import Prepared, parse, prepare

ORDERS = ("given", "found")


@dataclass(frozen=True)
class Inputs:
    """How to open a model and its clean images.

    Attributes:
        images: Where clean images are: a folder, an `.npz` file, `NAME[:SPLIT]`.
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

    Raises:
        BadOption: If the normalization or the order is none, or the device is not there.
    """

    images: str
    arch: str | None = None
    normalize: str = "auto"
    input_size: tuple[int, int] | None = None
    limit: int | None = 1000
    device: str = "auto"
    part: str | None = None
    class_order: str = "given"

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
    return take_in(load(path, inputs.arch, inputs.part), inputs)


def take_in(opened: Opened, inputs: Inputs) -> Prepared:
    """Read the images and put the net behind its normalization, on its device.

    Raises:
        BadImages: If the images cannot be used.
        BadOption: If the normalization is for another number of channels.
        UnfitNet: If the net cannot be run on them.
    """
    _check_ends(opened)
    chosen = parse(inputs.normalize)
    told = opened.normalization or claimed(opened.origin)
    told = known_as(told) if told is not None and told.name != STORED else told
    if chosen is not None and len(chosen.mean) not in (1, opened.channels):
        raise BadOption(
            f"--normalize has {len(chosen.mean)} means, but the model takes images of "
            f"{opened.channels} channels: give 1 or {opened.channels}"
        )
    if told is not None and len(told.mean) not in (1, opened.channels):
        told = None  # whatever the file means by it
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
    prepared = replace(prepared, resize=resize)
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
