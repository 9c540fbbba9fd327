"""Nets of `transformers` and timm from a checked configuration and checked tensors."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gifthorse.core.errors import BadOption, GifthorseError, UnknownArch, UnreadableModel
from gifthorse.core.types import Images, Logits
from gifthorse.models.hub.config import HEAD, HubConfig
from gifthorse.models.reading.entries import shown

# Of timm's own settings: what would fetch or read other files, or make another kind of net.
OTHERS = frozenset({
    "cache_dir", "checkpoint_path", "exportable", "features_only", "hf_hub_id", "in_chans",
    "model_name", "no_jit", "num_classes", "out_indices", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_strict", "scriptable",
})  # fmt: skip
# What a configuration may hold beside the fields of its class.
TABLES = 1 << 24  # numbers that a net may work out for itself, such as places of pixels
KEPT = ("architectures", "id2label", "label2id", "model_type", "problem_type")


class HubNet(nn.Module):
    """A net of transformers as a map from normalized images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Images) -> Logits:
        """Return logits `(N, K)`."""
        out: Logits = self.model(pixel_values=x).logits
        return out


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a net under the names that its folder has for them."""
    return dict((net.model if isinstance(net, HubNet) else net).state_dict())


def build_net(config: HubConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    """Make the net of a configuration and fill it with tensors, all of which it must take.

    Returns:
        The net in eval mode, float32, without gradients; and notes.

    Raises:
        BadOption: If the library is not installed.
        UnknownArch: If the tensors do not fit.
    """
    if config.library == "timm":
        return _timm(config, state)
    transformers = _library()
    cls = _model_class(transformers, config)
    fields, dropped = _known_fields(cls.config_class, config)
    _believable(lambda: cls(cls.config_class.from_dict(dict(fields))), state)
    with tempfile.TemporaryDirectory(prefix="gifthorse-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(fields))
        plain = {key: value.contiguous() for key, value in state.items()}
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        try:
            model, said = cls.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation="eager",
                ignore_mismatched_sizes=True,  # told below, in words
                output_loading_info=True,
            )
        except Exception as error:  # whatever a library says of tensors that it cannot place
            raise UnknownArch(
                f"the weights do not fit the {config.kind} of config.json: {shown(str(error))}",
                rule="IN004",
            ) from error
    _complete(said, config)
    unused = sorted(said["unexpected_keys"])
    notes = [*config.notes]
    notes += [f"left out unknown settings: {', '.join(dropped[:10])}"] if dropped else []
    notes += [f"left aside tensors without a place: {', '.join(unused[:5])}"] if unused else []
    return HubNet(model).eval().requires_grad_(False), tuple(notes)


def _library() -> Any:
    given = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = given or "1"  # read once: to open a net makes no connection
    try:
        import transformers
    except ImportError as error:
        raise BadOption(
            "this folder holds a net of transformers: run pip install 'gifthorse[hub]' to open it"
        ) from error
    finally:
        if given is None:
            del os.environ["HF_HUB_OFFLINE"]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _model_class(transformers: Any, config: HubConfig) -> Any:
    """Return the class that the folder names, or the one for images of its type."""
    settings = transformers.AutoConfig.for_model(config.kind)
    auto = transformers.AutoModelForImageClassification._model_mapping
    known = auto.get(type(settings), None) or ()
    every = {cls.__name__: cls for cls in (known if isinstance(known, tuple) else (known,))}
    if config.name in every:
        return every[config.name]
    own = [cls for name, cls in every.items() if name.endswith(HEAD)]
    if config.name or not own:
        raise UnknownArch(
            f"transformers {transformers.__version__} has no {config.name or HEAD} of type "
            f"{config.kind!r}",
            rule="IN004",
        )
    return own[0]


def _known_fields(settings: Any, config: HubConfig) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that the type has, and the names of the others."""
    known = {*settings().to_dict(), *KEPT}
    kept = {name: value for name, value in config.fields.items() if name in known}
    kept["id2label"] = {str(k): f"LABEL_{k}" for k in range(config.classes)}
    kept.pop("label2id", None)
    if "num_labels" in known:  # of types that have a number of classes by default
        kept["num_labels"] = config.classes
    aside = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", *KEPT}
    return kept, sorted(shown(name) for name in set(config.fields) - known - aside)


def _believable(make: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> None:
    """Refuse sizes that the tensors do not bear out, before anything is allocated."""
    try:
        with torch.device("meta"), _no_more_than(state):
            net = make()
    except GifthorseError:
        raise
    except Exception as error:  # whatever a library says of settings that make no net
        raise UnreadableModel(
            f"config.json makes no net: {shown(str(error))[:200]}", rule="FS003"
        ) from error
    asked, there = sum(p.numel() for p in net.parameters()), sum(t.numel() for t in state.values())
    tables = sum(b.numel() for b in net.buffers())
    if asked > 2 * there:
        raise _too_large(f"{asked:,} parameters", f"{there:,}")
    if tables > 2 * there + TABLES:
        raise _too_large(f"tables of {tables:,} numbers", f"{there:,}")


def _too_large(asked: str, there: str) -> UnreadableModel:
    return UnreadableModel(
        f"config.json asks for {asked}, but the weights hold {there}", rule="FS004"
    )


@contextmanager
def _no_more_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop the making of a net that has far more parts than there are tensors, as it is made."""
    most, made, own = 4 * len(state) + 100, [0], threading.get_ident()

    def count(_module: nn.Module, _name: str, value: object) -> None:
        made[0] += value is not None and threading.get_ident() == own
        if made[0] > most:
            raise _too_large(f"more than {most:,} tensors", f"{len(state):,}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _complete(said: Mapping[str, Any], config: HubConfig) -> None:
    """Refuse a net of which parts stay at random."""
    lacking = [f"{shown(name)} is missing" for name in sorted(said["missing_keys"])]
    odd = [
        f"{shown(name)} is {_sides(there)}, expected {_sides(asked)}"
        for name, there, asked in sorted(said["mismatched_keys"])
    ]
    if lacking or odd:
        raise UnknownArch(
            f"the weights do not fit the {config.kind} with {config.classes} classes that "
            f"config.json describes: {'; '.join([*odd, *lacking][:5])}",
            rule="IN004",
        )


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _timm(config: HubConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    from gifthorse.models import architectures

    told = config.fields["model_args"]
    given = {name: value for name, value in told.items() if name not in OTHERS}
    dropped = ", ".join(sorted(shown(name) for name in told if name in OTHERS))

    def make() -> nn.Module:
        return architectures.timm_net(config.name, config.classes, config.channels, **given)

    _believable(make, state)
    filled = architectures.fill(make(), state, f"timm:{config.name}")
    notes = (f"left out settings that are not the net's: {dropped}",) if dropped else ()
    return filled.eval().requires_grad_(False), notes
