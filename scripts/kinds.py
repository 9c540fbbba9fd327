"""Build every kind of model file with the framework that writes it, open it, compare logits.

    python scripts/kinds.py [WORD ...]     # kinds whose name holds a word; all by default
    python scripts/kinds.py --page         # writes docs/kinds.md from what is kept

A kind is built in a folder of its own and opened as `gifthorse scan FILE --images DIR` does, with
no other option unless its row names one. The images are labeled by the framework's own answers, so
that a normalization or an order of classes that is not the model's shows. What came is kept in
`evidence/kinds.json`, so that rows from several environments meet in one page: a kind whose
libraries are not installed keeps its row.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from scripts.instances import graphs, hub_folders, libraries, pickles
from scripts.instances.instance import Instance, Kind, Pictures, pictures
from torch import Tensor

from gifthorse.core.errors import GifthorseError
from gifthorse.data.samples import whole
from gifthorse.models import inspect
from gifthorse.models.outputs import sums_to_one
from gifthorse.training import predict
from gifthorse.workflows.opening import Inputs, opened
from gifthorse.workflows.prepare import Prepared

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "evidence" / "kinds.json", ROOT / "docs" / "kinds.md"
CLOSE = 1e-4
LONG = 500  # characters of a refusal
GROUPS: dict[str, Sequence[Kind]] = {
    "Folders of transformers": hub_folders.TRANSFORMERS,
    "Nets of transformers in other files": hub_folders.OTHERS,
    "Folders and files of timm": libraries.TIMM,
    "Files of torchvision": libraries.TORCHVISION,
    "Checkpoints, whole models and programs": pickles.KINDS,
    "Keras": graphs.KERAS,
    "ONNX": graphs.ONNX,
}
HEAD = """\
# Kinds of files

What opens, and how. Each row is a tiny or small instance with random weights, written by the
framework that users write it with (or laid out by hand as that framework does, where it says so),
and opened as `gifthorse scan FILE --images DIR` opens it, with no other option than the row names.
The images are labeled by the framework's own answers. *Difference* is the largest one between its
logits and ours on 16 pictures (of log-probabilities, where the model ends in a softmax), over the
largest logit if that is over 1, preprocessing included; it is *right* below 1e-4. *Seconds* are for
opening, reading the images and finding the normalization, on one busy core. Where a file does not
say how pictures are normalized, several normalizations may answer alike; where another one was
found than the framework was fed with, the row says so and names the right one. The page is made by
`python scripts/kinds.py --page` from `evidence/kinds.json`, which `python scripts/kinds.py` fills.
"""


def versions(kind: Kind) -> str | None:
    """Return the packages of a kind with their versions; None if one is not installed."""
    known = packages_distributions()  # one may be shipped under several names
    if any(name not in known for name in kind.needs):
        return None
    return ", ".join(f"{name} {version(known[name][0])}" for name in kind.needs)


def labeled(folder: Path, images: Pictures, labels: Tensor) -> Path:
    """Write images with a table of labels into a folder."""
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "label"))
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            image.save(folder / f"{i:03}.png")
            table.writerow((f"{i:03}.png", label))
    return folder


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of logits over the largest logit, if that is over 1.

    Where theirs are probabilities, their logarithms are compared.
    """
    if theirs.shape[1] == 1:
        theirs = torch.cat([1 - theirs, theirs], 1)
    if sums_to_one(theirs):
        ours, theirs = ours.log_softmax(1), theirs.clamp(min=1e-30).log()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


def how(prepared: Prepared) -> str:
    """Say how a model was opened."""
    origin, did = prepared.subject.origin, prepared.preparation
    size = f"; images {prepared.resize.words}" if prepared.resize else ""
    value = f"{did.accuracy.value:.0%} of the framework's own answers"
    normal = f"normalization {did.normalization.name} ({did.how}), {value}"
    return f"{origin.format}: {origin.arch}, {origin.how}{size}; {normal}"


def tried(kind: Kind, folder: Path) -> dict[str, Any]:
    """Build a kind, open it and say what came."""
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        made: Instance = kind.make(folder / "model")
        images = pictures(made.size, gray=made.gray)
        theirs = made.says(images).float()
    answers = theirs.argmax(1) if theirs.shape[1] > 1 else (theirs[:, 0] > 0.5).long()
    source = labeled(folder / "images", images, answers)
    looked = inspect(made.path)
    row: dict[str, Any] = {"inspect": looked.safety, "size": size_of(made.path)}
    file = kind.arch is not None and ".py" in kind.arch  # of the folder that was made
    asked = Inputs(str(source), arch=f"{folder}/model/{kind.arch}" if file else kind.arch)
    begun = time.perf_counter()
    try:
        prepared = opened(str(made.path), asked)
        row["seconds"] = round(time.perf_counter() - begun, 1)
        found = prepared.preparation
        if "best of" in found.how and found.normalization.name != made.normalize:
            row["normalize"] = f"{made.normalize} (found: {found.normalization.name})"
            prepared = opened(str(made.path), replace(asked, normalize=made.normalize))
        if not torch.equal(prepared.samples.labels, answers):
            raise RuntimeError("the images came in another order")
        ours = predict(prepared.subject, whole(prepared.samples)[0])
    except GifthorseError as error:
        fine = bool(kind.refused) and kind.refused in str(error)
        return row | {
            "opened": shortened(str(error)),
            "verdict": "refused" if fine else "WRONG: refused",
        }
    row["opened"] = how(prepared)
    row["difference"] = float(f"{difference(ours, theirs):.1e}")
    row["answers"] = len(answers.unique())
    right = row["difference"] < CLOSE and not kind.refused
    return row | {"verdict": "right" if right else "WRONG"}


def shortened(words: str) -> str:
    """Return a refusal without its middle, if it is long."""
    return words if len(words) < LONG else f"{words[: LONG // 2]} ... {words[-LONG // 2 :]}"


def size_of(path: Path) -> int:
    """Return the bytes of a file or of the files of a folder."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in files)


def kept() -> dict[str, dict[str, Any]]:
    """Return the rows that are kept, by name."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def keep(name: str, row: dict[str, Any]) -> None:
    """Keep a row, in the order of the kinds."""
    rows = kept() | {name: row}
    order = [kind.name for kinds in GROUPS.values() for kind in kinds]
    ordered = {name: rows[name] for name in order if name in rows}
    KEPT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def line(kind: Kind, row: dict[str, Any]) -> str:
    """Return a kind's row of the page."""
    named = f"; with `--arch {kind.arch}`" if kind.arch else ""
    if "normalize" in row:
        named += f"; with `--normalize {row['normalize'].replace(' ', '` ', 1)}"
    by_hand = ", laid out by hand" if kind.layout else ""
    cells = (
        kind.name,
        f"{row['built']}{by_hand}",
        f"{row['opened']}{named}",
        f"{row['seconds']:.1f}" if "seconds" in row else "",
        f"{row['difference']:.0e}" if "difference" in row else "",
        row["verdict"],
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(rows: dict[str, dict[str, Any]]) -> str:
    """Return docs/kinds.md."""
    counts = [row["verdict"] for row in rows.values()]
    parts = [HEAD, f"{len(rows)} kinds: {counts.count('right')} right, "
             f"{counts.count('refused')} refused with what to do, "
             f"{sum(v.startswith('WRONG') for v in counts)} wrong.\n"]  # fmt: skip
    for title, kinds in GROUPS.items():
        parts.append(f"## {title}\n")
        parts.append("| kind | built with | opened | seconds | difference | verdict |\n"
                     "|---|---|---|---|---|---|")  # fmt: skip
        parts += [line(kind, rows[kind.name]) for kind in kinds if kind.name in rows]
        parts.append("")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Try kinds, or write the page; return 1 if a kind is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args(arguments)
    if given.page:
        PAGE.write_text(page(kept()))
        return 0
    wrong = 0
    for kind in (k for kinds in GROUPS.values() for k in kinds):
        built = versions(kind)
        if built is None or not any(word in kind.name for word in given.words or [""]):
            continue
        try:
            with tempfile.TemporaryDirectory() as name:
                row = tried(kind, Path(name))
        except Exception:
            traceback.print_exc()
            row = {"opened": "", "verdict": "WRONG: not built"}
        row = {"built": built, **row}
        wrong += row["verdict"].startswith("WRONG")
        print(line(kind, row), flush=True)
        keep(kind.name, row)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
