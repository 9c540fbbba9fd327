"""Nets from the user's own code: a function or class in a file or a module, called by its names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from gifthorse.core.errors import BadOption

# What a factory may call them, in lower case and without underscores.
CLASSES = (
    *("numclasses", "nclasses", "classes", "nclass", "numclass", "nbclasses", "nbclass"),
    *("classnum", "classesnum", "classcount", "ncls", "numcls", "numlabels", "nlabels"),
    *("numoutputs", "noutputs", "outputdim", "nout"),
)
CHANNELS = (
    *("channels", "inchans", "inchannels", "inputchannels", "numchannels", "nchannels"),
    *("nbchannels", "channel", "inchannel", "inputchannel", "inch", "imgchannels", "imagechannels"),
)

# Where wrappers of torch keep the net: DataParallel, torch.compile, FSDP.
WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module")


def make_own(source: str, name: str, classes: int, channels: int) -> nn.Module:
    """Make the net of `module:function` or `path/file.py:function`; this runs the user's own code.

    Args:
        source: A module, or a file that ends in `.py`. The file's folder, or the working one,
            is searched first for what it imports.
        name: A function, a class or a net in it.
        classes: Number of logits, given under the name that the function has for it.
        channels: Number of input channels, likewise.

    Raises:
        BadOption: If there is no such thing, whatever its code does wrong, or if it makes no net.
    """
    arch = f"{source}:{name}"
    path = Path(source) if source.endswith(".py") else None
    if path is not None and not path.is_file():
        raise BadOption(f"cannot import {source!r} for --arch: there is no such file")
    folder = Path() if path is None else path.parent
    with _first(folder.resolve()):
        with _in_words(f"cannot import {source!r} for --arch"):
            module = importlib.import_module(source) if path is None else _from_file(path)
        made = getattr(module, name, None)
        if not isinstance(made, nn.Module):
            if not callable(made):
                raise BadOption(f"{source!r} has no function {name!r} that makes a net")
            given = _arguments(made, arch, classes, channels)
            with _in_words(f"{arch!r} could not make a net"):
                made = made(**given)
    if not isinstance(made, nn.Module):
        raise BadOption(f"{arch!r} made a {type(made).__name__}; expected a torch.nn.Module")
    made = _unwrapped(made)
    for key, tensor in (*nn.Module.named_parameters(made), *nn.Module.named_buffers(made)):
        if is_lazy(tensor) or tensor.is_meta:
            raise BadOption(
                f"{arch!r} made a net without numbers in {key}: give lazy layers their widths, "
                "and make it on the CPU, not on the meta device"
            )
    return made


def _unwrapped(net: nn.Module) -> nn.Module:
    """Return the net in a wrapper of torch that answers as it does, such as DataParallel."""
    while type(net).__module__.startswith("torch."):
        inner = dict(net.named_children())
        name = next((name for name in WRAPPED if inner.keys() == {name}), None)
        if name is None:
            break
        net = inner[name]
    return net


@contextmanager
def _first(folder: Path) -> Iterator[None]:
    """Search a folder before all others for modules."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _in_words(front: str) -> Iterator[None]:
    """Turn whatever the user's code raises, an exit included, into one sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        said = f"it called exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f" ({Path(last.filename).name}, line {last.lineno})"
        ours = Path(last.filename) == Path(__file__) or "importlib" in last.filename
        raise BadOption(f"{front}: {kind}{said}{'' if ours else place}") from error


def _from_file(path: Path) -> ModuleType:
    """Import a file; one in a package, or that imports its neighbors by a dot, as a part of it."""
    top, name = path.resolve().parent, path.stem
    while (top / "__init__.py").is_file():
        top, name = top.parent, f"{top.name}.{name}"
    try:
        return _loaded(path, name, top)
    except ImportError as error:
        if "relative import" not in str(error):
            raise
        return _loaded(path, f"{path.resolve().parent.name}.{path.stem}", top.parent)


def _loaded(path: Path, name: str, top: Path) -> ModuleType:
    """Run a file under a name of its own: dataclasses look themselves up by it."""
    if "." in name:
        with _first(top):
            return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        if shadowed is not None:  # a library of that name stays what it is for all others
            sys.modules[name] = shadowed
    return module


def _arguments(
    function: Callable[..., Any], arch: str, classes: int, channels: int
) -> dict[str, int]:
    """Return the arguments to call a function with, by its own names.

    Raises:
        BadOption: If it needs something that is not known here.
    """
    if inspect.getattr_static(function, "__init__", None) is nn.Module.__init__:
        return {}  # a class without a way of its own to be made
    try:
        known: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (ValueError, TypeError) as error:
        raise BadOption(f"{arch!r} is no Python function that makes a net") from error
    named = [p for p in known.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    given: dict[str, int] = {}
    for value, names in ((classes, CLASSES), (channels, CHANNELS)):
        plain = {p.name.lower().replace("_", ""): p.name for p in named}
        own = next((plain[name] for name in names if name in plain), None)
        if own is not None:
            given[own] = value
    taken = any(name.lower().replace("_", "") in CLASSES for name in given)
    if not taken and any(p.kind == p.VAR_KEYWORD for p in known.values()):
        given["num_classes"] = classes  # what most that pass everything on pass it to call it
    needed = [
        p.name
        for p in known.values()
        if p.default is p.empty
        and p.name not in given
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise BadOption(
            f"{arch!r} needs {', '.join(needed)}, which is not known here: the number of classes "
            "is given as num_classes, n_classes or classes, that of channels as in_channels, "
            "in_chans or channels; give the others defaults"
        )
    return given
