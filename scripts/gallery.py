"""Draw the gallery: one picture an attack, one a detector that shows a trigger, and a page.

python scripts/gallery.py -o out/gallery

An attack is shown by clean images, stamped ones and what changed, with what the net says of them. A
detector is shown by what it recovers from the backdoored net in examples/gift, beside the true
trigger. Nets were trained on a few images for a moment, and searches are short: pictures show what
triggers look like, not how well a method works.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Generator, Tensor

from gifthorse import ATTACKS, DETECTORS, Goal, Inputs, Run, Verdict, open_model
from gifthorse.core.metrics import asr
from gifthorse.core.options import describe, vary
from gifthorse.core.types import Attack, Detector, Images, Labels, Samples, Trigger
from gifthorse.data import split, whole
from gifthorse.report.figures.contact_sheet import (
    SheetLayout,
    contact_sheet,
    plain_sheet,
    write_sheet,
)
from gifthorse.training import predict
from gifthorse.triggers.packing import unpacked
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.prepare import Prepared

GIFT = Path(__file__).parents[1] / "examples" / "gift"
TARGET = 14  # of the gift, and of every attack here
PEERS = (2, 7, TARGET, 21, 28, 35)  # classes of the gift that are searched
SHOWN = 4  # images a picture
# What every attack gets of this that it has: half of 43 images stamped, and little to do.
SHORT: dict[str, object] = {
    "recipe.epochs": 40, "recipe.batch": 32, "recipe.lr": 0.01, "recipe.flip": False,
    "recipe.pad": 2, "recipe.bf16": False, "mixing.rate": 0.5, "search.epochs": 2,
    "candidates": 6, "selected": 3, "rounds": 2, "judge": 20, "masking.epochs": 40, "steps": 20,
    "inverter.config.rounds": 200,
}  # fmt: skip
FEW = {"recipe.epochs": 20, "inner.steps": 10}
OWN: dict[str, dict[str, object]] = {
    **{name: {**FEW} for name in ATTACKS if name.startswith("imc_")},
    "blind": {"wait": 8},
    "imc_abs": {"recipe.epochs": 3, "inner.steps": 3},  # by far the slowest
    "imc_mp": {**FEW, "mp.recipe.epochs": 2},
    "input_aware": {  # as many get the triggers of others
        "mixing.rate": 0.25,
        "recipe.epochs": 8,
        "masking.epochs": 8,
    },
    "invisible": {"recipe.epochs": 8},
    "label_consistent": {"mixing.rate": 0.02},  # images of the target, of which one is there
    "sig": {"mixing.rate": 0.02},
    "wanet": {"mixing.rate": 0.2},  # twice as many get other warps
}
HEAD = """\
# Gallery

Made by `make gallery`. Attacks retrained the clean net of `examples/gift` for a moment on 43
images, so these pictures show what triggers look like, not how well they work: under a tile stands
what the net says, under a change the true class. Detectors searched for {seconds:.0f} seconds
at most at the backdoored net there, and {peers} of its 43 classes where they can be told to.
"""


@dataclass(frozen=True)
class Entry:
    """A picture of the gallery: its file's stem, a line of words, and what is drawn."""

    name: str
    words: str
    picture: Image.Image


def hasty(name: str) -> Attack:
    """Return an attack with little to do."""
    known = describe(ATTACKS[name])
    short = {key: value for key, value in SHORT.items() if key in known}
    return vary(ATTACKS[name], short | OWN.get(name, {}))


def opened(model: str) -> Prepared:
    """Return a net of the example, behind its normalization, and clean images."""
    return open_model(str(GIFT / model), Inputs(str(GIFT / "clean.npz"), device="cpu"))


def attacked(name: str) -> Entry:
    """Implant a backdoor and draw clean images, stamped images and changes."""
    twin, rng, goal = opened("twin.safetensors"), Generator().manual_seed(0), Goal(TARGET)
    train, test = split(twin.samples, 0.5, rng)
    made = hasty(name)(twin.subject, train, goal, rng, Run())
    x, y = others(test)
    z = made.trigger(x)
    said, says = (predict(made.subject, images).argmax(1) for images in (x, z))
    rate, few = asr(says, y, goal).value, slice(0, SHOWN)
    picture = contact_sheet((x[few], said[few]), (z[few], says[few]), y[few])
    words = f"{rate:.0%} of {len(x)} unseen images with the trigger are taken for class {TARGET}"
    return Entry(name, words, picture)


def others(samples: Samples) -> tuple[Images, Labels]:
    """Return images that are not of the target, shuffled alike each time."""
    x, y = whole(samples)
    kept = (y != TARGET).nonzero().flatten()
    kept = kept[torch.randperm(len(kept), generator=Generator().manual_seed(0))]
    return x[kept], y[kept]


def quick(name: str) -> Detector:
    """Return a detector that searches a few classes, where it can be told so."""
    detector = DETECTORS[name]
    return vary(detector, {"classes": PEERS}) if "classes" in describe(detector) else detector


def detected(name: str, seconds: float) -> Entry | None:
    """Scan the gift and draw clean images, the true trigger and the recovered one; None if none."""
    gift, rng = opened("gift.safetensors"), Generator().manual_seed(0)
    verdict = quick(name)(gift.subject, gift.samples, rng, Run(seconds=seconds))
    found = recovered(verdict)
    if found is None:
        return None
    trigger, goal = found
    true = open_trigger(GIFT / "gift.trigger.safetensors")
    x, _ = others(gift.samples)
    rows = ((x, "clean"), (true(x), "true trigger"), (trigger(x), "recovered"))
    tiles, texts = [], []
    for i in range(SHOWN):
        for images, kind in rows:
            says = predict(gift.subject, images[i : i + 1]).argmax(1).item()
            tiles.append(images[i])
            texts.append((str(says), kind))
    marked = torch.tensor([said == str(goal.target) for said, _ in texts])
    picture = plain_sheet(torch.stack(tiles), texts, marked, sheet=SheetLayout(columns=3 * SHOWN))
    words = f"Its clearest trigger is for class {goal.target}; the backdoor is for {TARGET}"
    return Entry(name, words, picture)


def recovered(verdict: Verdict) -> tuple[Trigger, Goal] | None:
    """Return the trigger that a verdict's first finding shows, if it shows one."""
    for finding in verdict.findings:
        packed = finding.evidence.get("packed")
        if isinstance(packed, Tensor):
            return unpacked(bytes(packed.tolist()).decode())
    return None


def entries(kind: str, names: list[str], args: argparse.Namespace) -> Iterator[Entry]:
    """Make each picture of a kind, saying how long it took."""
    for name in names:
        started = time.monotonic()
        entry = attacked(name) if kind == "attack" else detected(name, args.seconds)
        words = entry.words if entry else "shows no trigger"
        print(f"{kind} {name}, {time.monotonic() - started:.0f} s: {words}", flush=True)
        if entry:
            yield entry


def main() -> None:
    """Draw what is asked for, and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder")
    parser.add_argument("--seconds", type=float, default=20, help="limit of a detector")
    parser.add_argument("--attacks", nargs="*", default=sorted(ATTACKS))
    parser.add_argument("--detectors", nargs="*", default=sorted(DETECTORS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    page = [HEAD.format(seconds=args.seconds, peers=len(PEERS))]
    for kind, names in (("attack", args.attacks), ("detector", args.detectors)):
        page.append(f"## {kind.capitalize()}s\n")
        for entry in entries(kind, names, args):
            file = f"{kind}_{entry.name}.png"
            write_sheet(args.out / file, entry.picture)
            page.append(f"### `{entry.name}`\n\n{entry.words}.\n\n![{entry.name}]({file})\n")
    (args.out / "gallery.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
