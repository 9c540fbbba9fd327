"""Checkpoints of training libraries, whole models and programs, with what they carry beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scripts.instances.instance import (
    CLASSES,
    Instance,
    Kind,
    Pictures,
    lively,
    logits_of,
    pixels,
    plain,
)
from tests.models.pickled import learner, library, lightning, program, saved, ultralytics
from torch import Tensor, nn

from gifthorse.models import build

SIDE = 32
FASTAI = """\
from fastai.vision.learner import create_vision_model
from torchvision.models import resnet18


def net(classes, channels=3):
    return create_vision_model(resnet18, classes, pretrained=False)
"""
Make = Callable[[nn.Module], Any]


def small(arch: str = "resnet20_fc") -> nn.Module:
    """A net that is built in here, with logits that differ between pictures."""
    net = build(arch, CLASSES).eval()
    return lively(net, plain(net), (SIDE, SIDE))


def file(make: Make, path: Path, arch: str = "resnet20_fc", ending: str = "pt") -> Instance:
    """Write a net into a file as `make` says: bytes, or what torch.save takes."""
    net = small(arch)
    path.mkdir()
    target, made = path / f"model.{ending}", make(net)
    target.write_bytes(made) if isinstance(made, bytes) else torch.save(made, target)
    return Instance(target, plain(net), (SIDE, SIDE))


def by_hand(make: Callable[..., Any], net: nn.Module) -> bytes:
    """What torch.save writes of a library's own objects, laid out by hand."""
    net.half().float()  # some keep half of the digits
    with library() as classes:
        return saved(make(classes, deepcopy(net)))


def trojai(path: Path) -> Instance:
    """A folder as TrojAI's rounds have them: a whole model beside its example images."""
    net = small()
    path.mkdir()
    torch.save(net, path / "model.pt")
    (path / "config.json").write_text(json.dumps({"MODEL_ARCHITECTURE": "resnet20", "POISONED": 1}))
    (path / "ground_truth.csv").write_text("1")
    return Instance(path, plain(net), (SIDE, SIDE))


# The libraries themselves ---------------------------------------------------------------------


def of_lightning(path: Path, *, torchvision: bool = False) -> Instance:
    """A checkpoint that Lightning's trainer saves after a step, with Adam and hyper-parameters."""
    import lightning

    net = small()

    class Module(lightning.LightningModule):
        def __init__(self, lr: float = 0.0, net: nn.Module | None = None) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=["net"])
            self.model = net

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.0)

    data = torch.utils.data.TensorDataset(torch.rand(8, 3, SIDE, SIDE), torch.zeros(8).long())
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=path,
    )  # fmt: skip
    net.requires_grad_(True)
    trainer.fit(Module(net=net), torch.utils.data.DataLoader(data, 4))
    trainer.save_checkpoint(path / "last.ckpt")
    net.eval().requires_grad_(False)
    return Instance(path / "last.ckpt", plain(net), (SIDE, SIDE))


def image_of(item: int) -> Tensor:
    """An image of a data set that a learner knows."""
    return torch.full((3, 64, 64), float(item))


def label_of(item: int) -> Tensor:
    """A label of it."""
    return torch.tensor(item % CLASSES)


def of_fastai(path: Path, *, exported: bool) -> Instance:
    """A learner of fastai on one of torchvision's bodies: exported, or its weights saved."""
    from fastai.data.core import DataLoaders, Datasets
    from fastai.learner import Learner
    from fastai.vision.learner import create_vision_model
    from torchvision.models import resnet18

    net = create_vision_model(resnet18, CLASSES, pretrained=False)
    lively(net.eval(), plain(net), (64, 64))
    net.requires_grad_(True)
    data = Datasets(range(8), [[image_of], [label_of]])
    loaders = DataLoaders.from_dsets(data, data, bs=4, device="cpu")
    made = Learner(loaders, net, loss_func=nn.CrossEntropyLoss(), path=path)
    path.mkdir(exist_ok=True)
    if exported:
        made.export("export.pkl")
        target = path / "export.pkl"
    else:
        made.create_opt()
        made.save("saved")
        target = path / "models" / "saved.pth"
    net.eval().requires_grad_(False)
    (path / "net.py").write_text(FASTAI)
    return Instance(target, plain(net), (64, 64))


def of_ultralytics(name: str, path: Path) -> Instance:
    """A `-cls.pt` as the trainer of ultralytics writes it: the averaged model whole, in half."""
    import datetime

    import ultralytics
    from ultralytics.nn.tasks import ClassificationModel

    net = ClassificationModel(f"{name}.yaml", nc=CLASSES, verbose=False).eval()
    net.names = {k: f"thing {k}" for k in range(CLASSES)}

    def says(images: Pictures) -> Tensor:
        with torch.no_grad():
            return logits_of(net(pixels(images)))

    def logits(images: Pictures) -> Tensor:
        with torch.no_grad():
            out: Tensor = net(pixels(images))[1]
        return out

    lively(net, logits, (64, 64))
    net.half().float()  # what is left of the numbers
    net.args = {"task": "classify", "imgsz": 64}
    path.mkdir()
    kept = {
        "epoch": -1, "best_fitness": None, "model": None, "ema": net.half(), "updates": 10,
        "optimizer": None, "scaler": None, "train_args": {"task": "classify", "imgsz": 64},
        "train_metrics": {}, "train_results": {}, "date": datetime.datetime.now().isoformat(),
        "version": ultralytics.__version__, "license": "AGPL-3.0", "docs": "",
    }  # fmt: skip
    torch.save(kept, path / f"{name}.pt")
    net.float()
    return Instance(path / f"{name}.pt", says, (64, 64), normalize="none")


MAKERS: dict[str, Make] = {
    "state dict": lambda net: net.state_dict(),
    "state dict, torch.save before 1.6": lambda net: saved(net.state_dict(), legacy=True),
    "state dict, in wrappers": lambda net: {"epoch": 3, "state_dict": net.state_dict()},
    "state dict, DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "whole model pickled": lambda net: net,
    "whole model pickled, before 1.6": lambda net: saved(net, legacy=True),
    "whole model pickled, DataParallel": nn.DataParallel,
    "torch.compile, whole": lambda net: torch.compile(net),
    "TorchScript, traced": lambda net: program(net, traced=True),
}
BY_HAND: dict[str, Callable[..., Any]] = {
    "Lightning": lightning, "fastai exported": learner, "ultralytics": ultralytics,
}  # fmt: skip
YOLO = ("yolov8n-cls", "yolo11n-cls", "yolo12n-cls", "yolo26n-cls")
KINDS = (
    *(Kind(f"ResNet-20, {name}", partial(file, make)) for name, make in MAKERS.items()),
    *(
        Kind(f"ResNet-20, {name}'s layout", partial(file, partial(by_hand, make)), layout=True)
        for name, make in BY_HAND.items()
    ),
    Kind("ResNet-20, TrojAI folder", trojai, layout=True),
    Kind("TorchScript of tiny, scripted", partial(file, program, arch="tiny")),
    Kind("Our ViT, whole model pickled", partial(file, lambda net: net, arch="vit_cifar")),
    Kind("ResNet-20, Lightning checkpoint", of_lightning, ("lightning",)),
    *(
        Kind(
            f"fastai resnet18, {form}{way}",
            partial(of_fastai, exported=form == "exported"),
            ("fastai",),
            arch=arch,
            refused="" if arch else "--arch path/file.py:function",
        )
        for form in ("saved", "exported")
        for way, arch in ((", its net not named", None), ("", "net.py:net"))
    ),
    *(
        Kind(f"ultralytics {name}", partial(of_ultralytics, name), ("ultralytics",))
        for name in YOLO
    ),
)
