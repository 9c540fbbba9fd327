"""The command `filter`: which of these images carry a trigger."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer
from torch import Generator

from gifthorse.cli import options, parsing
from gifthorse.cli.terminal import bar, note, tell
from gifthorse.core.atomic import check_writable
from gifthorse.core.errors import UnknownMethod
from gifthorse.core.run import Run

if TYPE_CHECKING:
    from gifthorse.core.types import Filter

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from
LISTED = 8  # images named on the terminal


@commands.command("filter")
def filter_(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Images to judge: folder, .npz, NAME[:SPLIT].")
    ],
    model: Annotated[str, typer.Option(help="The model file that they are, or were, given to.")],
    images: options.Images,
    method: Annotated[
        str, typer.Option(help="One of `gifthorse list filters`.")
    ] = "activation_clustering",
    arch: options.Arch = None,
    part: options.Part = None,
    signer_key: options.SignerKey = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
    fpr: Annotated[float, typer.Option(help="Share of clean images that may be flagged.")] = 0.05,
    changes: options.Options = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: Annotated[
        str | None,
        typer.Option(
            "-o", "--out", metavar="PATH", help="Write list, record and picture: DIR/ or stem."
        ),
    ] = None,
    most: Annotated[int, typer.Option(help="Images on the picture; 0 for none.")] = 24,
) -> None:
    """Say which images carry a trigger, and what share of clean ones is flagged with them.

    One part of the clean images is for the filter, the other one, hidden among the images to judge,
    sets the threshold. The default judges all images together, so it finds a trigger that several
    of them carry; `strip` and `neo` judge each by itself.
    """
    from gifthorse.workflows import filter as screening
    from gifthorse.workflows.opening import Inputs, opened

    chosen = _method(method, changes)
    size = parsing.size(input_size)
    inputs = Inputs(images, arch, normalize, size, device=device, part=part, signer=signer_key)
    screening.check_most(most)
    paths = screening.targets(out) if out is not None else {}
    parsing.keep(paths.values(), (data, model, images, arch, signer_key))
    for path in paths.values():
        check_writable(path)
    prepared = opened(model, inputs)
    if "partners" not in parsing.pairs(changes):
        chosen = screening.fitted(chosen, len(prepared.samples))
    gallery = screening.take_in(data, prepared, chosen)
    rng = Generator().manual_seed(seed)
    with bar(f"{method} on {Path(data).name}") as progress:
        run = Run(progress, device=prepared.subject.device)
        done = screening.screen(prepared, gallery.samples, chosen, rng, run, fpr=fpr)
    said = screening.record(method, seed, prepared, gallery, done)
    tell(told(said))
    if paths:
        names = prepared.preparation.class_names
        for path in screening.write(paths, said, gallery.samples, names, most):
            note(f"wrote {path}")


def _method(name: str, changes: list[str] | None) -> Filter:
    from gifthorse.core.options import vary
    from gifthorse.filtering import FILTERS

    if name not in FILTERS:
        raise UnknownMethod.among("filter", name, FILTERS)
    return vary(FILTERS[name], parsing.pairs(changes))


def told(said: Any) -> str:
    """Return what a record says, as text of at most 80 columns."""
    n, k, cost = said["data"]["scored"], said["flagged"], said["cost"]
    images = f"{n:,} image{'s' * (n != 1)}"
    paragraphs = [
        f"{k:,} of {images} {'is' if k == 1 else 'are'} flagged ({k / n:.1%}): "
        f"{said['method']} scores above {said['threshold']:.4g}.",
        f"That flags about {cost['value']:.1%} of clean images, between {cost['low']:.1%} and "
        f"{cost['high']:.1%} with 95 % confidence, going by {cost['trials']} clean images that "
        f"were hidden among them: about {n * cost['value']:,.0f} of {n:,} even if none carried a "
        "trigger.",
        *_caveats(said),
    ]
    return "\n".join([*(fill(p, 80) for p in paragraphs), "", *_top(said)])


def _caveats(said: Any) -> list[str]:
    n, k, cost, data = said["data"]["scored"], said["flagged"], said["cost"], said["data"]
    out = []
    if 1 / (cost["trials"] + 1) > said["fpr"]:
        out.append(
            f"{cost['trials']} clean images are too few for a share of {said['fpr']:.1%}: the "
            "threshold is the highest of their scores. Give more clean images."
        )
    if k <= n * cost["high"]:
        out.append("No more are flagged than chance allows among clean images.")
    if data["not_scored"]:
        count = len(data["not_scored"])
        out.append(f"{count:,} file{'s' * (count != 1)} could not be used and got no score.")
    if data["among_clean"]:
        out.append(f"{data['among_clean']:,} of the images are among the clean images, too.")
    out.append("An image that is not flagged may carry a trigger that this filter cannot see.")
    return out


def _top(said: Any) -> list[str]:
    from gifthorse.workflows.filter import title

    lines = [f"{'score':>10}  {'class':>5}  {'flagged':7}  image, the most suspicious first"]
    for row in said["images"][:LISTED]:
        flag, name = "yes" if row["flagged"] else "no", title(row)
        name = name if len(name) <= 50 else f"\u2026{name[-49:]}"
        lines.append(f"{row['score']:10.4g}  {row['predicted']:5}  {flag:7}  {name}")
    return lines
