"""Open a model file that nobody trusts: checked by its bytes, read in a process of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadOption, UnknownArch, UnreadableModel, UsageError
from gifthorse.core.resizing import Resize
from gifthorse.core.types import Normalization, Origin
from gifthorse.models import architectures as archs
from gifthorse.models import structure
from gifthorse.models.graphs.build import build_graph
from gifthorse.models.graphs.graph import Graph, described
from gifthorse.models.hub.build import HubNet, build_net
from gifthorse.models.hub.config import HubConfig
from gifthorse.models.normalize import STORED
from gifthorse.models.outputs import ends
from gifthorse.models.parts import Chosen, choose
from gifthorse.models.reading import isolation
from gifthorse.models.reading.entries import PLAIN, CheckpointEntry, shown
from gifthorse.models.reading.isolation import DEADLINE, MEMORY, PrivateCopy, private_copy
from gifthorse.models.reading.pickles import Layer
from gifthorse.models.reading.survey import Survey, refusal
from gifthorse.models.zoo import NETS

RUNNING = re.compile(r"running_(mean|var)$")
GRAPHS = ("onnx", "keras", "hdf5")  # formats that describe their own nets
LEAST_TORCH = (2, 10)  # before, its restricted reader could be broken: CVE-2026-24747


@dataclass(frozen=True, eq=False)
class Opened:
    """A net read from a file.

    Attributes:
        net: In eval mode, float32, its weights without gradient; normalization is not part of it.
        classes: Number of logits; 0 for a net of the user's that ran on no usual size of images.
        channels: Number of input channels.
        origin: The file and how it was opened.
        nonfinite: Names of weights with NaN or infinity and of variances that are negative, for
            rule `FS005`.
        normalization: What the file holds as a layer before the net, or says beside it; a claim,
            to be checked.
        resize: How images come to the net's size, as a model folder says; None for files.
        labels: The classes' own names, by number; empty where a file keeps none.
        files: Names of the files whose bytes `origin.sha256` is of.
    """

    net: nn.Module
    classes: int
    channels: int
    origin: Origin
    nonfinite: tuple[str, ...] = ()
    normalization: Normalization | None = None
    resize: Resize | None = None
    labels: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def writable(self) -> Opened:
        """Return the same if weights of its net, once written, can be opened again.

        Raises:
            BadOption: If the file describes its own net, whose weights fit none that has a name.
        """
        if isinstance(self.net, HubNet) and "folder" not in self.origin.format:
            raise BadOption(
                f"the net of {shown(self.origin.path)!r} is described by a configuration within "
                "the file: changed weights of it could not be opened again. Write it with "
                "save_pretrained first, and name that folder"
            )
        if self.origin.format in GRAPHS:
            raise BadOption(
                f"the net of {shown(self.origin.path)!r} is a graph that only its file describes: "
                "changed weights of it could not be opened again. Load its weights into a net of "
                "torch, save these as safetensors and name the net with --arch"
            )
        return self


def load_file(
    path: str | Path,
    arch: str | None = None,
    part: str | None = None,
    *,
    memory: int = MEMORY,
    deadline: float = DEADLINE,
) -> Opened:
    """Open a model file without running anything in it.

    Args:
        path: The file, of `safetensors`, `torch.save`, TorchScript or ONNX.
        arch: Name for `build`; guessed from the tensors if None. ONNX describes its own net.
        part: Name of the part that is the net, of a file that holds several.
        memory: Bytes that the file, and its reader beyond torch itself, may take.
        deadline: Seconds of processor time that reading may take.

    Raises:
        UnsafeModel: If the file brings code; nothing of it was run.
        UnreadableModel: If it is damaged, too large, no model, or takes its reader too long.
        UnknownArch: If no net fits its tensors.
        SeveralNets: If several parts of it are whole nets, and none is named.
        UsageError: If there is no such file, or no such architecture.
    """
    check_torch()
    path = Path(path)
    with private_copy(path, memory) as copy:
        bytes_read = Origin(path=str(path), sha256=copy.sha256, bytes=copy.size)
        try:
            return _opened(copy, bytes_read, (arch, part), memory, deadline)
        except UnreadableModel as error:  # its report is of these bytes, whatever lies there now
            error.origin = error.origin or bytes_read
            raise


def _opened(
    copy: PrivateCopy,
    bytes_read: Origin,
    named: tuple[str | None, str | None],
    memory: int,
    deadline: float,
) -> Opened:
    found, path = isolation.survey(copy, deadline), Path(bytes_read.path)
    bytes_read = replace(bytes_read, format=found.kind)
    try:
        with isolation.lent_beside(path, found, memory - copy.size) as beside:
            sha256 = isolation.digest_with(path, copy, beside)
            size = copy.size + (beside.size if beside else 0)
            bytes_read = replace(bytes_read, sha256=sha256, bytes=size)
            tensors = read_tensors(copy, found, memory, deadline, beside)
        opened = _built(found, tensors, *named)
    except UnreadableModel as error:
        error.origin = bytes_read
        raise
    origin = opened.origin
    origin = replace(origin, path=bytes_read.path, sha256=bytes_read.sha256, bytes=bytes_read.bytes)
    return replace(opened, origin=origin, files=isolation.names_with(path, beside))


def _built(
    found: Survey, tensors: Sequence[Tensor | None], arch: str | None, part: str | None = None
) -> Opened:
    """Return the net among the tensors of a surveyed file."""
    if found.graph is not None:
        _check_unnamed(arch, part)
        return _of_graph(found, found.graph, tensors)
    fits = archs.within if arch is None else archs.Named(arch)
    chosen = choose(found.entries, fits, part)
    by_path = dict(zip((e.path for e in found.entries), tensors, strict=True))
    state, casts = to_float32(_picked(chosen, by_path))
    stub = structure.own_net(found.layers, chosen.entries)
    fitted = _fit(state, chosen, fits, stub)
    unlike = structure.unlike(stub.kind, fitted.arch)
    adopted = structure.adopt(fitted.net, found.layers, chosen.entries)
    origin = _origin(found, chosen, fitted, (*casts, *fitted.notes, *unlike, *adopted))
    beside = [by_path[e.path] for e in chosen.normalization or ()]
    return Opened(
        fitted.net,
        fitted.classes,
        fitted.channels,
        origin,
        nonfinite(fitted.net),
        _normalization(beside),
        resize=Resize(fitted.side) if fitted.side else None,
        labels=fitted.labels or structure.labels(found.layers, fitted.classes),
    )


def _check_unnamed(arch: str | None, part: str | None) -> None:
    if arch is not None or part is not None:
        raise BadOption("the file describes its own net: leave out --arch and --part")


def _of_graph(found: Survey, graph: Graph, tensors: Sequence[Tensor | None]) -> Opened:
    """Return the net that a file describes itself."""
    by_name: dict[str, Tensor] = {}
    for entry, tensor in zip(found.entries, tensors, strict=True):
        check_plain(entry)
        if tensor is not None:
            by_name[entry.path[0]] = tensor
    state, casts = to_float32(by_name)
    built = build_graph(graph, state)
    origin = Origin(
        format=found.kind,
        arch=found.kind,
        how=described(graph),
        tensors=len(state),
        params=sum(p.numel() for p in built.net.parameters()),
        dtypes=tuple(sorted({e.type for e in found.entries})),
        notes=(*(f.message for f in found.findings), *casts, *built.notes),
        metadata=found.metadata,
    )
    resize = Resize(built.size) if built.size else None
    broken = nonfinite(built.net)
    return Opened(built.net, built.classes, built.channels, origin, broken, resize=resize)


def from_state(state: object, path: Path, arch: str | None) -> Opened:
    """Return the net that a state dict is which was read out of a file, see `isolation.checkpoint`.

    Args:
        state: Tensors by name, or whatever stood in their place.
        path: The file.
        arch: Name for `build`; guessed from the tensors if None.

    Raises:
        UnreadableModel: If it is no state dict.
        UnknownArch: If no net fits it.
    """
    tensors = state if isinstance(state, dict) else {}
    plain = all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items())
    if not tensors or not plain:
        raise UnreadableModel("the file holds no state dict of tensors", rule="FS003")
    entries = tuple(CheckpointEntry((k,), _word(t), tuple(t.shape)) for k, t in tensors.items())
    opened = _built(Survey("pytorch", entries=entries), list(tensors.values()), arch)
    return replace(opened, origin=replace(opened.origin, path=str(path)))


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _origin(found: Survey, chosen: Chosen, fitted: _Fitted, casts: tuple[str, ...]) -> Origin:
    return Origin(
        format="safetensors" if found.kind == "safetensors" else "pytorch",
        arch=fitted.arch,
        how=fitted.how,
        tensors=sum(e.shape is not None for e in found.entries),
        params=sum(p.numel() for p in fitted.net.parameters()),
        dtypes=tuple(sorted({e.type for e in chosen.entries.values()})),
        notes=(*(f.message for f in found.findings), *chosen.notes, *casts),
        metadata=found.metadata,
    )


def check_torch() -> None:
    """Refuse a PyTorch whose restricted reader is known to be broken.

    Raises:
        UsageError: If it is.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST_TORCH:
        raise UsageError(
            f"torch {torch.__version__} cannot open untrusted files safely (CVE-2026-24747): "
            "install torch 2.10 or newer"
        )


def read_tensors(
    copy: PrivateCopy,
    found: Survey,
    memory: int,
    deadline: float,
    beside: PrivateCopy | None = None,
) -> list[Tensor | None]:
    """Read the tensors of a surveyed file if nothing speaks against it.

    Raises:
        UnreadableModel: If something does.
    """
    reason = refusal(found)
    if reason is not None:
        raise reason
    if found.full > memory:
        raise UnreadableModel(
            f"its tensors take {found.full:,} bytes, more than the limit of {memory:,}: allow "
            "more memory if you expect a file that large",
            rule="FS004",
        )
    return isolation.read(
        *(copy, found.reader, found.entries), memory=memory, deadline=deadline, beside=beside
    )


def _picked(chosen: Chosen, by_path: Mapping[tuple[str, ...], Tensor | None]) -> dict[str, Tensor]:
    """Return the net's tensors."""
    for entry in chosen.entries.values():
        check_plain(entry)
    picked = {name: by_path[entry.path] for name, entry in chosen.entries.items()}
    return {name: tensor for name, tensor in picked.items() if tensor is not None}


def check_plain(entry: CheckpointEntry) -> None:
    """Refuse a tensor of numbers that cannot be searched, such as quantized ones.

    Raises:
        UnreadableModel: If it is one.
    """
    if entry.type not in PLAIN:
        raise UnreadableModel(
            f"tensor {shown(entry.path[-1])!r} is {shown(entry.type)}: only plain floating point "
            "weights can be examined; save the float model",
            rule="IN004",
        )


def _normalization(stored: Sequence[Tensor | None]) -> Normalization | None:
    """Return the normalization that a mean and a std say, on the 0-1 scale also if they are not."""
    if len(stored) != 2 or stored[0] is None or stored[1] is None:
        return None
    mean, std = (tensor.double().flatten() for tensor in stored if tensor is not None)
    scale = 255.0 if mean.abs().max() > 2 else 1.0
    numbers = torch.cat([mean, std])
    if len(mean) != len(std) or not numbers.isfinite().all() or (std <= 0).any():
        return None
    return Normalization(STORED, tuple((mean / scale).tolist()), tuple((std / scale).tolist()))


def to_float32(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Cast all floating point tensors to float32; return them and notes on it.

    Example:
        >>> to_float32({"w": torch.ones(2).half()})
        ({'w': tensor([1., 1.])}, ('cast 1 tensor(s) from float16 to float32',))
    """
    foreign = [t.dtype for t in state.values() if t.is_floating_point()]
    counts = Counter(str(d).removeprefix("torch.") for d in foreign if d != torch.float32)
    notes = tuple(f"cast {n} tensor(s) from {d} to float32" for d, n in sorted(counts.items()))
    return {k: t.float() if t.is_floating_point() else t for k, t in state.items()}, notes


def nonfinite(net: nn.Module) -> tuple[str, ...]:
    """Return the names of weights and statistics that hold NaN, infinity or a negative variance.

    An infinite buffer is no weight: attention masks are made of infinities.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> net.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
        >>> net.running_var.fill_(-1)
        tensor([-1., -1.])
        >>> nonfinite(net)
        ('running_var',)
    """
    weights = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    named = chain(net.named_parameters(), net.named_buffers())
    return tuple(
        name
        for name, t in named
        if t.isnan().any()
        or ((name in weights or RUNNING.search(name)) and t.isinf().any())
        or (name.endswith("running_var") and (t < 0).any())
    )


# Architecture ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fitted:
    net: nn.Module
    arch: str
    classes: int
    channels: int
    how: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    side: tuple[int, int] | None = None


def _fit(
    state: Mapping[str, Tensor],
    chosen: Chosen,
    fits: Callable[[archs.Shapes], archs.Guess | None],
    stub: Layer,
) -> _Fitted:
    """Make the net that the tensors are, of the class that the file names, and fill it."""
    shapes = archs.shapes_of(state)
    told = structure.of_transformers(stub) if chosen.fit is None else None
    if told is not None and not isinstance(fits, archs.Named):
        return _described(state, told)
    if not isinstance(fits, archs.Named):
        guess = chosen.fit or structure.of_library(stub, shapes) or _match(shapes, stub.kind)
        net = archs.fill(archs.build(guess.arch, guess.classes, guess.channels), state, guess.arch)
        how = f"guessed from {len(state)} tensors"
        if guess.ties:
            how += f" ({', '.join(guess.ties)} would fit as well)"
        return _Fitted(net, guess.arch, guess.classes, guess.channels, how)
    net = archs.fill(fits.built(shapes), state, fits.arch)
    classes, channels = fits.ends if fits.arch in NETS else ends(net, fits.ends[0])
    return _Fitted(net, fits.arch, classes, channels, "named with --arch")


def _described(state: Mapping[str, Tensor], told: HubConfig) -> _Fitted:
    """Make the net of transformers that a configuration in the file describes, and fill it."""
    net, notes = build_net(told, state)
    ends = told.classes, told.channels
    how = "described by the configuration in the file"
    return _Fitted(net, told.name, *ends, how, notes, told.labels, told.side)


def _match(shapes: archs.Shapes, kind: str) -> archs.Guess:
    try:
        return archs.match(shapes)  # which raises, naming what comes near
    except UnknownArch as error:
        raise UnknownArch(f"{error}{structure.hint(kind, shapes)}") from error


# Saving ---------------------------------------------------------------------------------------


def save(
    path: str | Path, net_or_state: nn.Module | Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write weights and texts as safetensors: all or nothing, by an atomic rename.

    Args:
        path: Where to; an old file of that name is replaced.
        net_or_state: A net, or tensors by name.
        metadata: Texts for the header.

    Raises:
        UsageError: If the file cannot be written; the old one is still there then.
    """
    state = net_or_state.state_dict() if isinstance(net_or_state, nn.Module) else net_or_state
    # Copies, since the format has no views and no shared memory.
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in state.items()}
    with atomic(Path(path)) as file:
        file.write(to_bytes(plain, metadata=dict(sorted(metadata.items()))))
