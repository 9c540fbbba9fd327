"""Makes files that bring code as libraries write them, by stand-ins for classes that are gone."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gifthorse.models import build

Make = Callable[..., type[Any]]


@contextmanager
def library() -> Iterator[Make]:
    """Lend a maker of classes by full names; the modules that they seem to be of go with it."""
    made: list[str] = []

    def make(name: str, *bases: type[Any], **members: object) -> type[Any]:
        module, _, own = name.rpartition(".")
        parts = module.split(".")
        for front in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if front not in sys.modules:
                sys.modules[front] = ModuleType(front)
                made.append(front)
        cls = type(own, bases or (object,), {"__module__": module, **members})
        setattr(sys.modules[module], own, cls)
        return cls

    try:
        yield make
    finally:
        for name in made:
            del sys.modules[name]


def net(arch: str = "tiny", classes: int = 10) -> nn.Module:
    """An untrained net in eval mode, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(arch, classes).eval()


def saved(value: object, *, legacy: bool = False) -> bytes:
    """What torch.save writes, also in the form from before version 1.6."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of sources that are not to be had
        torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def program(module: nn.Module, *, traced: bool = False, side: int = 32) -> bytes:
    """What torch.jit.save writes of a scripted or traced net."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # that it is deprecated
        images = torch.rand(1, 3, side, side)
        made: Any = torch.jit.trace(module, images) if traced else torch.jit.script(module)  # type: ignore[no-untyped-call]
        torch.jit.save(made, buffer)
    return buffer.getvalue()


def own(make: Make, inside: nn.Module, name: str = "gone.nets.Net") -> nn.Module:
    """A module of a class of somebody's own that holds a net's layers as its own."""
    cls = make(name, nn.Module, forward=lambda self, x: x)
    module: nn.Module = cls()
    for key, child in inside.named_children():
        module.add_module(key, child)
    for key, tensor in inside.named_parameters(recurse=False):
        module.register_parameter(key, nn.Parameter(tensor))
    return module.eval()


# Libraries ------------------------------------------------------------------------------------


def lightning(make: Make, inside: nn.Module) -> dict[str, object]:
    """A checkpoint of Lightning with hyper-parameters of OmegaConf and a callback's class as key.

    Source: lightning, `checkpoint_connector.py`, for the keys.
    """
    import argparse
    import typing

    node = make("omegaconf.nodes.AnyNode")
    config = make("omegaconf.dictconfig.DictConfig")
    about = make("omegaconf.base.ContainerMetadata")
    callback = make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    value, told, parameters = node(), about(), config()
    value.__dict__.update(_val=0.1)
    told.__dict__.update(ref_type=typing.Any, object_type=dict, key_type=typing.Any)
    parameters.__dict__.update(_metadata=told, _content={"lr": value})
    return {
        "epoch": 3,
        "global_step": 99,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in inside.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {callback: {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4, 3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "config",
        "hyper_parameters": parameters,
        "datamodule_hyper_parameters": argparse.Namespace(root="/data", batch=32),
    }


def learner(make: Make, inside: nn.Module) -> object:
    """What fastai's `export` writes: the whole learner, in which objects know each other.

    Source: fastai, `learner.py`: the model, a partial optimizer, callbacks that know the learner.
    """
    import functools
    import pathlib

    def one_batch(self: object) -> None:
        """A method, which pickles look up by its name."""

    made = make("fastai.learner.Learner", one_batch=one_batch)
    callback = make("fastai.callback.core.TrainEvalCallback")
    whole, call = made(), callback()
    call.__dict__.update(learn=whole, run=True)
    adam: Any = make("fastai.optimizer.Optimizer")
    loss = make("fastai.losses.CrossEntropyLossFlat")()
    loss.__dict__.update(func=nn.CrossEntropyLoss(torch.ones(10)), axis=1)
    whole.__dict__.update(
        path=pathlib.PurePosixPath("."),
        cbs=[call],
        opt=None,
        loss_func=loss,
        opt_func=functools.partial(adam, mom=0.9),
        model=inside,
        lr=0.001,
        hook=MethodType(one_batch, whole),
    )
    return whole


def ultralytics(make: Make, inside: nn.Module) -> dict[str, object]:
    """A `-cls.pt`: the averaged model whole and in half precision, beside what training tells.

    Source: ultralytics, `engine/trainer.py`, for the keys.
    """
    cls = make("ultralytics.nn.tasks.ClassificationModel", nn.Module)
    whole = cls()
    whole.add_module("model", inside)
    whole.yaml, whole.names = {"nc": 10}, {i: f"thing {i}" for i in range(10)}
    return {
        "epoch": -1,
        "best_fitness": None,
        "model": None,
        "ema": whole.half(),
        "updates": 100,
        "optimizer": None,
        "train_args": {"task": "classify", "imgsz": 224},
        "date": "2026-01-01T00:00:00",
        "version": "8.3.0",
    }


def logits(module: nn.Module, side: int = 32) -> Tensor:
    """What a net says of three random images."""
    x = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: Tensor = module(x)
    return out
