"""The command `analyze`: what a known trigger does inside a model, as pictures and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Generator

from gifthorse.analysis.attribution import MISSING
from gifthorse.cli import options, parsing
from gifthorse.cli.terminal import tell
from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.types import Rate, Subject
from gifthorse.workflows.analyze import AnalysisResult, TriggerAnalysis, write_case
from gifthorse.workflows.repair import Truth, open_known

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from


@commands.command()
def analyze(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    model: options.Model,
    images: options.Images,
    trigger: Annotated[
        Path, typer.Option(help="NAME.trigger.safetensors, or the .json of a scan.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write to.")],
    against: Annotated[
        str | None, typer.Option(help="A clean model of the same images, to compare with.")
    ] = None,
    arch: options.Arch = None,
    part: options.Part = None,
    signer_key: options.SignerKey = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
    changes: options.Options = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Draw what a known trigger does inside a model: where it looks, features, neurons, channels.

    Writes pictures, and the numbers of each as JSON beside it. None of them is a verdict.
    """
    from gifthorse.core.options import vary
    from gifthorse.workflows.compare.showing import make
    from gifthorse.workflows.opening import Inputs
    from gifthorse.workflows.opening import opened as taken

    analysis = vary(TriggerAnalysis(), parsing.pairs(changes))
    size = parsing.size(input_size)
    inputs = Inputs(images, arch, normalize, size, device=device, part=part, signer=signer_key)
    prepared = taken(model, inputs)
    known = open_known(trigger)
    fit(known, prepared.subject, trigger)
    alone = replace(inputs, part=None, signer=None)
    other = taken(against, alone).subject if against is not None else None
    make(out)
    rng = Generator().manual_seed(seed)
    case = analysis(
        prepared.subject, prepared.samples, known.trigger, known.goal, rng, against=other
    )
    written = write_case(case, out, prepared.preparation.class_names)
    for word, line in summary(case):
        tell(f"{word:11} {line}")
    for path in written:
        tell(f"{'wrote':11} {path}")


def fit(known: Truth, subject: Subject, path: Path) -> None:
    """Say so if a trigger is not for images and classes of this net.

    Raises:
        ShapeMismatch: If it is not.
    """
    size, most = known.trigger.render()[0].shape, subject.classes
    if known.goal.target >= most or (known.goal.source or 0) >= most:
        raise ShapeMismatch(f"{path} is for class {known.goal.target}; the net has {most} classes")
    try:
        known.trigger(torch.zeros(1, *subject.shape))
    except RuntimeError as error:
        raise ShapeMismatch(
            f"{path} holds a trigger for images of {tuple(size)}; the net takes {subject.shape}"
        ) from error


def summary(case: AnalysisResult) -> list[tuple[str, str]]:
    """Return the figures that matter most: a word and a line of at most 68 characters each."""
    lines = [("success", f"{_spoken(case.asr)} of {case.pairs} stamped images")]
    if case.attention is None:
        lines.append(("Grad-CAM", f"left out: {MISSING.removeprefix('Grad-CAM ')}"))
    else:
        moved = case.attention.shift
        lines.append(("Grad-CAM", f"the target's map moves by {_spoken(moved.distance)}"))
        for name, row in case.attention.table.items():
            both = [f"{row[k].distance.value:.2%} ({k})" for k in ("original", "target")]
            lines.append(("Table 19", f"{name}: {', '.join(both)}"))
    view, curve = case.view, case.curves["model"]
    apart = "" if view.silhouette is None else f"silhouette {view.silhouette:.2f} (1 is apart), "
    told = "" if view.probe is None else f"probe AUROC {view.probe.auroc:.3f} (0.5 is chance)"
    lines.append(("features", apart + told or "too few images of the target class to compare"))
    half = curve[-1]
    words = f"{half.value:.2f} over {half.units} neurons (chance {half.chance:.2f})"
    others = [f"{c[-1].value:.2f} {name}" for name, c in case.curves.items() if name != "model"]
    lines.append(("NSR", ", ".join([words, *others])))
    if case.likeness.mmd is not None:
        far = case.likeness.mmd
        lines.append(("MMD^2", f"{far.value:.3g} from the target class, p = {far.p:.3g}"))
    for word, row_of in (
        ("CKA stamped", case.likeness.cka),
        ("CKA against", case.likeness.against),
    ):
        shown = [f"{v:.2f}" for v in row_of.values()][-8:]
        lines += [(word, f"{' '.join(shown)} (stages, 1 is alike)")] if shown else []
    left = case.silenced
    count = len(case.path.nodes)
    words = (
        f"success {left.path.value:.1%} without {count} channels, {left.random.value:.1%} at random"
    )
    return [*lines, ("path", words)]


def _spoken(rate: Rate) -> str:
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
