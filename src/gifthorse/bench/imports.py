"""Models of other benchmarks as cells to judge: what their files say, kept in a store.

| format | imported | left aside | refused |
|---|---|---|---|
| BackdoorBench `attack_result.pt` of 2023 and later: stamped images by path | net, target, stamped test images in `bd_test_dataset` | `bd_train`; several targets | - |
| the first version: stamped images as one tensor | the same, if it says which test images they were | `bd_train` | - |
| versions with PIL images or data sets inside | - | - | all of it: they are objects, which need code |
| TrojanZoo `MARK_tarN_alphaN_mark(H,W).pth` with `.npy`, or `.npz` of before 2022 | net, target, mark | where the mark lies, if it is an `.npy`: give `place` | - |
| input-aware TrojanZoo (`tarN poisonN crossN.pth`) | net, target | the trigger, which is a net of its own | - |
| TrojanZoo's TrojanNet | - | - | its file is of a part that is no classifier of images |
| TrojAI folders of image classification | clean examples, poisoned or not, targets, kinds of triggers | poisoned examples, which belong to no clean ones | `model.pt`, a whole pickled module, which needs code |
| a TrojAI folder whose `model.*` is a state dict or safetensors | net, too | the same | - |

A zip of torch.save is read from its opcodes and never unpickled; older files and those of TrojAI go
through `models.load`, which opens state dicts alone, in a process of its own. A file that asks for
anything but tensors, arrays and plain values is refused by name, never run. A model that was
refused is kept as an entry of its own, so that every cell of it says `unsupported`, and why. Nets
must be ones that this package can build.
"""  # noqa: E501 - a table

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from gifthorse.bench import tasks as cells
from gifthorse.bench.foreign import NORMALIZED, Foreign, Stamps, backdoorbench, trojai, trojanzoo
from gifthorse.bench.protocol import Sizes, Splits
from gifthorse.bench.store import Store
from gifthorse.core.errors import (
    BadImages,
    BadOption,
    GifthorseError,
    NotApplicable,
    UnknownMethod,
    UnreadableModel,
    UsageError,
)
from gifthorse.core.types import Goal, Images, Implant, Normalization, Subject, Trigger
from gifthorse.data.archive import arrays, peek
from gifthorse.data.gallery import balanced
from gifthorse.data.packed import PACKED
from gifthorse.data.readers import read
from gifthorse.data.samples import InMemory, Subset, split
from gifthorse.models.load import save
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.opening import load
from gifthorse.models.reading.files import digest, open_file
from gifthorse.triggers.storage import open_trigger, pack

Kind: TypeAlias = Literal["auto", "backdoorbench", "trojanzoo", "trojai"]
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}

MODEL, TRIGGER = "model.safetensors", "model.trigger.safetensors"
CLEAN, STAMPED = "clean.npz", "stamped.npz"
PARTS = ("_generator", "_mask", "_mark")  # nets that attacks of TrojanZoo keep beside the victim
FEW = 2000  # clean images below which the defender gets half of them, not a quarter


@dataclass(frozen=True)
class Adopted:
    """What became of a model.

    Attributes:
        key: Its key in the store; a plan names it.
        path: The file of its weights.
        label: What was done to it, as tables call it; empty if it is clean.
        net: Its architecture.
        data: The data it was trained on.
        poisoned: Whether it has a backdoor.
        goal: What that does, if it has one target.
        images: Clean images that it can be judged on.
        stamped: Whether its trigger, or stamped images, are there, for filters and remedies.
        error: Why it cannot be judged; empty if it can.
        notes: What was done or left out.
    """

    key: str
    path: str
    label: str
    net: str
    data: str
    poisoned: bool
    goal: Goal | None
    images: int
    stamped: bool
    error: str
    notes: tuple[str, ...]

    @property
    def status(self) -> str:
        """`ok` or `unsupported`."""
        return "unsupported" if self.error else "ok"


@dataclass(frozen=True, eq=False)
class Stamped:
    """A trigger that is known by what it did to some images, and does nothing else.

    Attributes:
        clean: Images, `(M, C, H, W)` uint8.
        stamped: The same with the trigger.
    """

    clean: Tensor
    stamped: Tensor

    @cached_property
    def _known(self) -> Mapping[bytes, int]:
        return {image.numpy().tobytes(): i for i, image in enumerate(self.clean)}

    def __call__(self, x: Images, /) -> Images:
        """Return the stamped copies of `(N, C, H, W)` images.

        Raises:
            BadImages: If an image is not one of the clean ones.
        """
        pixels = (x * 255).round().to(torch.uint8).cpu()
        rows = [self._known.get(image.numpy().tobytes(), -1) for image in pixels]
        if -1 in rows:
            raise BadImages("a trigger that came as stamped images can stamp no others")
        return self.stamped[torch.tensor(rows, dtype=torch.long)].to(x) / 255

    def shuffled(self, rng: Generator, /) -> Stamped:
        """Return a trigger that makes the same changes at shuffled pixels."""
        change = (self.stamped.int() - self.clean.int()).flatten(2)
        order = torch.randperm(change.shape[-1], generator=rng)
        moved = self.clean.int() + change[..., order].view_as(self.clean)
        return replace(self, stamped=moved.clamp(0, 255).to(torch.uint8))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the mean stamped image, and where any image was changed."""
        touched = (self.stamped != self.clean).amax((0, 1))[None]
        return self.stamped.float().mean(0) / 255, touched.float()


# 1. Adopting ----------------------------------------------------------------------------------


def adopt(
    path: Path,
    kind: Kind,
    store: Store,
    *,
    data: str = "",
    arch: str | None = None,
    normalize: str = "",
    place: tuple[int, int] = (0, 0),
    images: int | None = None,
) -> list[Adopted]:
    """Put the models of a file or folder of another benchmark into a store.

    Args:
        path: A file, a model's folder, or a folder of many.
        kind: Of which benchmark; `auto` goes by names.
        store: Where to.
        data: Clean images, as `gifthorse scan` takes them; by default those that come along, or
            the test images of the packed set that the format names. BackdoorBench tells stamped
            images by their number, so it needs test images in the order of torchvision.
        arch: A net of this package, `timm:NAME` or `torchvision:NAME`; guessed by default.
        normalize: A name of `NORMALIZATIONS`; by default what the benchmark uses for the data.
        place: Top and left of TrojanZoo's mark, which its files do not keep.
        images: At most so many clean images, spread over the classes.

    Returns:
        What became of each model, also of those that were refused.

    Raises:
        UsageError: If nothing of that kind is there, or an option does not fit.
    """
    if normalize and normalize not in NORMALIZATIONS:
        raise UnknownMethod.among("normalization", normalize, NORMALIZATIONS)
    if arch is not None and not _harmless(arch):
        raise BadOption(f"an imported net must be one of this package, timm or torchvision: {arch}")
    out = []
    for told in _found(path, kind, arch, place):
        table = NORMALIZED.get(told.kind, {"": Normalization()})
        usual = table.get(told.data if len(table) > 1 else "")
        if usual is None and not normalize:
            note = f"how pixels of {told.data!r} were normalized is not known: took none"
            told = replace(told, notes=(*told.notes, note))
        chosen = NORMALIZATIONS.get(normalize, usual or Normalization())
        out.append(_kept(told, chosen, data, images, store))
    return out


def _harmless(arch: str) -> bool:
    """Whether making a net runs no code but that of installed libraries."""
    return ":" not in arch or arch.startswith(("timm:", "torchvision:"))


def _found(path: Path, kind: Kind, arch: str | None, place: tuple[int, int]) -> Iterator[Foreign]:
    """Yield what the models at a path say, of the first benchmark that has any there."""
    tried: dict[str, tuple[str, Callable[[Path], Foreign]]] = {
        "backdoorbench": ("attack_result.pt", lambda p: backdoorbench(p, arch)),
        "trojai": ("ground_truth.csv", lambda p: trojai(p.parent, arch)),
        "trojanzoo": ("*.pth", lambda p: trojanzoo(p, arch, place)),
    }
    if not path.exists():
        raise UsageError(f"there is no {path}: check the path")
    for name, (pattern, tell) in tried.items():
        if kind not in ("auto", name):
            continue
        files = sorted(path.rglob(pattern)) if path.is_dir() else []
        if path.is_file() and (path.match(pattern) or kind == name):
            files = [path]
        elif path.is_file() and name == "trojai":
            files = sorted(path.parent.glob(pattern))
        files = [f for f in files if not f.stem.endswith(PARTS)]
        if files:
            yield from (_surely(name, tell, file) for file in files)
            return
    raise UsageError(
        f"{path} has no attack_result.pt, ground_truth.csv beside a model, or .pth: name the kind, "
        "and the folder or file that it is about"
    )


def _surely(kind: str, tell: Callable[[Path], Foreign], path: Path) -> Foreign:
    """Return what a model's files say; whatever is odd about them concerns no other model."""
    try:
        return tell(path)
    except Exception as error:  # they hold anything
        return Foreign(kind, path, kind, True, error=_said(error))


def _said(error: Exception) -> str:
    odd = f"its files are malformed: {type(error).__name__}: {str(error)[:200]}"
    return str(error) if isinstance(error, GifthorseError) else odd


def _kept(
    told: Foreign, normalization: Normalization, data: str, images: int | None, store: Store
) -> Adopted:
    """Keep a model, or word of why there is none."""
    count, stamped, error = 0, False, told.error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if told.opened is not None:
                clean, stamps = _images(told, data, images)
                count, stamped = len(clean), _write(folder, told, clean, stamps)
        except Exception as reason:  # images and labels of any kind
            error = _said(reason)
        if error:
            for file in folder.iterdir():
                file.unlink()
        spec = _spec(told, count, stamped, error) | {"normalization": asdict(normalization)}
        sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        key = cells.digest("import", [spec, sorted(sums.items())], [])
        store.put(key, folder, {"key": key, **spec})
    net = spec["cell"]["net"]
    about = (told.label, net, told.data, told.poisoned, told.goal)
    return Adopted(key, str(told.path), *about, count, stamped, error, told.notes)


def _spec(told: Foreign, images: int, stamped: bool, error: str) -> dict[str, Any]:
    """Return what is known of a model: where it is from, the truth, and its part of a record."""
    net = told.opened.origin.arch if told.opened else told.facts.get("model_architecture", "")
    goal = None if told.goal is None else asdict(told.goal)
    attack = {
        "family": "attack",
        "name": "imported",
        "label": told.label or told.kind,
        "options": {**told.facts, "target": str(told.goal.target if told.goal else "")},
    }
    return {
        "cell": {
            "data": f"{told.kind}:{told.data}",
            "net": net,
            "attack": attack if told.poisoned else None,
            "defense": None,
        },
        "error": error or None,
        "origin": {"kind": told.kind, "file": told.path.name, "sha256": _sha256(told.path)},
        "truth": {"poisoned": told.poisoned, "goal": goal, **told.facts},
        "images": images,
        "stamped": stamped,
        "notes": list(told.notes),
    }


def _sha256(path: Path) -> str:
    try:
        with open_file(path) as stream:
            return digest(stream)
    except GifthorseError:
        return ""


def _images(told: Foreign, data: str, count: int | None) -> tuple[InMemory, Stamps | None]:
    """Return clean images, and the stamped ones with their places among them.

    Raises:
        BadImages: If there are none, they are unlabeled, or not those that were stamped.
        UnreadableModel: If the target is no class.
    """
    net = told.opened
    if net is not None and told.goal is not None and told.goal.target not in range(net.classes):
        raise UnreadableModel(f"its target {told.goal.target} is none of its {net.classes} classes")
    clean = _clean(told, data)
    if len(clean) and int(clean.labels.min()) < 0:
        raise BadImages("the clean images have no labels: name labeled ones as data")
    chosen, stamps = torch.from_numpy(balanced(clean.labels.numpy(), count)), told.stamps
    kept = InMemory(clean.images[chosen], clean.labels[chosen], clean.classes)
    if stamps is None:
        return kept, None
    if int(stamps.index.min()) < 0 or int(stamps.index.max()) >= len(clean):
        raise BadImages(f"stamped images are of test images beyond the {len(clean):,} of the data")
    if not clean.labels[stamps.index].equal(stamps.labels):
        raise BadImages(
            "the clean images are not those that were stamped: their labels differ; name as data "
            "the test images in the order that torchvision has them in"
        )
    if stamps.images.shape[1:] != clean.images.shape[1:]:
        raise BadImages("the stamped images have another shape than the clean ones")
    at = torch.full((len(clean),), -1).index_copy(0, chosen, torch.arange(len(chosen)))
    among = at[stamps.index] >= 0
    index = at[stamps.index][among]
    return kept, replace(stamps, images=stamps.images[among], index=index)


def _clean(told: Foreign, data: str) -> InMemory:
    assert told.opened is not None
    if told.gallery is not None and not data:
        return told.gallery.samples
    source = data or (f"{told.data}:test" if told.data in PACKED else "")
    if not source:
        raise BadImages(f"it comes without clean images of {told.data!r}: name some as data")
    size, net = None if told.shape is None else told.shape[1:], told.opened
    found = read(source, size=size, channels=net.channels, classes=net.classes, repeats=True)
    return found.samples


def _write(folder: Path, told: Foreign, clean: InMemory, stamps: Stamps | None) -> bool:
    """Write a model's files; return whether stamped images can be had."""
    assert told.opened is not None
    where, sha256 = f"{told.kind} file {told.path.name}", _sha256(told.path)
    words = f"{'BACKDOORED' if told.poisoned else 'Clean'} model, imported from {where}, sha256 "
    words += f"{sha256}; not made by gifthorse. For testing defenses only; do not deploy."
    metadata = {"description": words}
    save(folder / MODEL, told.opened.net, metadata)
    _pack(folder / CLEAN, images=clean.images, labels=clean.labels)
    if stamps is not None and len(stamps.index):
        _pack(folder / STAMPED, images=stamps.images, index=stamps.index)
        return True
    if told.trigger is None or told.goal is None:
        return False
    parts, kind = pack(told.trigger(clean.shape))
    save(folder / TRIGGER, parts, metadata | kind)
    return True


def _pack(path: Path, images: Tensor, **vectors: Tensor) -> None:
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    np.savez_compressed(path, images=pixels, **{k: v.numpy() for k, v in vectors.items()})  # type: ignore[arg-type]


# 2. Judging -----------------------------------------------------------------------------------


def imported(
    store: Store, key: str, rng: Generator, sizes: Sizes, test: int | None = None
) -> tuple[Implant | Subject, Splits]:
    """Return an imported model with images to judge it on.

    Of the clean images a quarter is the defender's, half of fewer than 2,000; all others are
    judged on. If the trigger is known from stamped images alone, these are only images that were
    stamped, and those of the target class, which stay as they are.

    Args:
        store: Where it is.
        key: Its key.
        rng: Source of who gets which image.
        sizes: How the defender's images are shared: `fit` to `calibration`.
        test: At most so many images to judge on, spread over the classes.

    Returns:
        An implant; a subject alone if the model is clean, or no trigger of it is known.

    Raises:
        NotApplicable: If it could not be imported, or with too few images.
        UsageError: If it is not in the store.
    """
    spec = known(store, key)
    if spec["error"]:
        raise NotApplicable(f"the imported model cannot be judged: {spec['error']}")
    arch, goal = str(spec["cell"]["net"]), spec["truth"]["goal"]
    if not _harmless(arch):
        raise UsageError(f"the imported model {key} names a net that is not of a library: {arch}")
    with store.open(key) as folder:
        opened = load(folder / MODEL, arch)
        pixels, labels = _unpacked(folder / CLEAN, "labels")
        clean = InMemory(pixels, labels, opened.classes)
        trigger: Trigger | None = None
        applies = torch.ones(len(clean), dtype=torch.bool)
        if spec["stamped"] and (folder / STAMPED).is_file():
            images, index = _unpacked(folder / STAMPED, "index")
            trigger = Stamped(pixels, pixels.index_copy(0, index, images))
            applies = (labels == goal["target"]).index_fill(0, index, True)
        elif spec["stamped"]:
            trigger = open_trigger(folder / TRIGGER)
    n = Normalization(**{k: _tuple(v) for k, v in spec["normalization"].items()})
    net = Classifier(opened.net, n, opened.channels).eval()
    subject = Subject(net, clean.shape, opened.classes, opened.origin)
    apart = _splits(clean, applies, rng, sizes, test)
    if trigger is None or not spec["truth"]["poisoned"]:
        return subject, apart
    return Implant(subject, trigger, Goal(**goal)), apart


def _splits(
    clean: InMemory, applies: Tensor, rng: Generator, sizes: Sizes, test: int | None
) -> Splits:
    mine, others = split(clean, 0.25 if len(clean) >= FEW else 0.5, rng)
    fit, calibration = split(mine, sizes.fit / (sizes.fit + sizes.calibration), rng)
    rows = others.index[applies[others.index]].sort().values
    rows = rows[torch.from_numpy(balanced(clean.labels[rows].numpy(), test))]
    if not len(fit) or not len(calibration) or not len(rows):
        raise NotApplicable(f"{len(clean)} clean images are too few to judge on: import more")
    none = Subset(clean, torch.empty(0, dtype=torch.long))
    return Splits(none, fit, calibration, Subset(clean, rows))


def _unpacked(path: Path, vector: str) -> tuple[Tensor, Tensor]:
    peek(path)
    kept = arrays(path, ("images", vector))
    pixels = torch.from_numpy(kept["images"]).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.from_numpy(kept[vector]).long()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def known(store: Store, key: str) -> dict[str, Any]:
    """Return what is known of an imported model.

    Raises:
        UsageError: If there is none of that key.
    """
    spec = store.spec(key)
    if spec is None or "truth" not in spec:
        raise UsageError(f"there is no imported model {key} in {store.root}: import it first")
    return spec


def spoken(store: Store, cell: cells.Cell) -> dict[str, Any]:
    """Return the cell of an imported model for its record: what the model is, not its key alone.

    Imported models of the same attack, net and data are told apart by their seeds, which are made
    from their keys, so that tables count them as one population.
    """
    said, key = cells.spoken(cell), cell.data.removeprefix(cells.IMPORTED)
    spec = store.spec(key)
    if spec is None or "truth" not in spec:
        return said
    own = {part: spec["cell"][part] for part in ("data", "net", "attack")}
    return said | own | {"seed": int(key[:7], 16) * 100 + cell.seed}
