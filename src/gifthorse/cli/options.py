"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model file.")]
Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Files, folders, hf:ORG/NAME[@REVISION].")
]
Images = Annotated[str, typer.Option(help="Clean images: folder, .npz, NAME[:SPLIT].")]
Arch = Annotated[
    str | None, typer.Option(help="Net, timm:NAME, torchvision:NAME, module:f, file.py:f.")
]
Part = Annotated[
    str | None, typer.Option(metavar="NAME", help="The part that is the net, of a file of several.")
]
SignerKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Refuse what the holder of this public key did not sign."),
]
Normalize = Annotated[str, typer.Option(help="auto, none, cifar10 ... or MEAN/STD.")]
InputSize = Annotated[str | None, typer.Option(help="HxW to resize images to.")]
Device = Annotated[
    str, typer.Option(help="auto (CUDA, then Apple's, then CPU), cpu, cuda, cuda:N or mps.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change an option; repeat as needed."),
]
Seed = Annotated[
    int,
    typer.Option(min=-(2**63), max=2**64 - 1, help="Same seed, same result on the same machine."),
]
TimeLimit = Annotated[str | None, typer.Option(help="Stop searching after 90, 90s, 10m or 1h.")]
Data = Annotated[str, typer.Option(help="Packed data set: a name (with GIFTHORSE_DATA) or path.")]
Net = Annotated[str, typer.Option(help="One of `gifthorse list models`.")]
Output = Annotated[Path, typer.Option("-o", "--out", help="The .safetensors file to write.")]
TrainLimit = Annotated[
    int | None, typer.Option(help="Train on so many images, spread over the classes.")
]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan in TOML.")]
PlanStore = Annotated[
    str | None,
    typer.Option("--store", help="Folder or URL of models and records; default runs/NAME."),
]
