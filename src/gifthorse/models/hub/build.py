"""Nets of `transformers` and timm from a checked configuration and checked tensors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gifthorse.core.errors import BadOption, UnknownArch, UnreadableModel
from gifthorse.core.types import Images, Logits
from gifthorse.models.hub.config import HEAD, HubConfig
from gifthorse.models.reading.entries import shown

# What a configuration may hold beside the fields of its class.
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
    _believable(cls, fields, state)
    with tempfile.TemporaryDirectory(prefix="gifthorse-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(fields))
        plain = {key: value.contiguous() for key, value in state.items()}
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        model, said = cls.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    _complete(said, config)
    unused = sorted(said["unexpected_keys"])
    notes = [f"left out unknown settings: {', '.join(dropped[:10])}"] if dropped else []
    notes += [f"left aside tensors without a place: {', '.join(unused[:5])}"] if unused else []
    return HubNet(model).eval().requires_grad_(False), tuple(notes)


def _library() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a scan makes no connection
    try:
        import transformers
    except ImportError as error:
        raise BadOption(
            "this folder holds a net of transformers: run pip install 'gifthorse[hub]' to open it"
        ) from error
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
    kept["num_labels" if "id2label" not in kept else "architectures"] = (
        config.classes if "id2label" not in kept else [config.name]
    )
    aside = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", *KEPT}
    return kept, sorted(shown(name) for name in set(config.fields) - known - aside)


def _believable(cls: Any, fields: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Refuse sizes that the tensors do not bear out, before anything is allocated."""
    try:
        with torch.device("meta"):
            net = cls(cls.config_class.from_dict(dict(fields)))
    except Exception as error:  # whatever a library says of settings that make no net
        raise UnreadableModel(
            f"config.json makes no net: {shown(str(error))[:200]}", rule="FS003"
        ) from error
    asked, there = sum(p.numel() for p in net.parameters()), sum(t.numel() for t in state.values())
    if asked > 2 * there:
        raise UnreadableModel(
            f"config.json asks for {asked:,} parameters, but the weights hold {there:,}",
            rule="FS004",
        )


def _complete(said: Mapping[str, Any], config: HubConfig) -> None:
    """Refuse a net of which parts stay at random."""
    lacking, odd = sorted(said["missing_keys"]), list(said["mismatched_keys"])
    if lacking or odd:
        words = ", ".join(map(str, (*lacking, *odd)))
        raise UnknownArch(
            f"the weights do not fit the {config.kind} that config.json describes: {words:.300}",
            rule="IN004",
        )


def _timm(config: HubConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    from gifthorse.models import architectures

    given = {k: v for k, v in config.fields["model_args"].items() if isinstance(k, str)}
    net = architectures.timm_net(config.name, config.classes, config.channels, **given)
    filled = architectures.fill(net, state, f"timm:{config.name}")
    return filled.eval().requires_grad_(False), ()
