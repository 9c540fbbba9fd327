"""Images and labels that mislead: what a verdict may rest on, and what it may not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.cases.case import GIFT, QUICK, Case
from tests.cases.nets import CLEAN, TRIGGER, answers, wrapped

from gifthorse.triggers.storage import open_trigger

Array: TypeAlias = NDArray[Any]
FULL = ("--detector", "pixel_quick")
PASS, UNSURE = "NO BACKDOOR FOUND", (2, 3)
SHORT = {"mm_bd": ("--set", "steps=5")}
NO_LABELS = "no labels, so no accuracy"


def images() -> tuple[Array, Array]:
    """Return the shipped clean images `(86, 32, 32, 3)` and their labels."""
    with np.load(CLEAN) as stored:
        key = next(k for k in stored.files if stored[k].ndim == 4)
        return stored[key], stored["labels"]


def scan(folder: Path, x: Array, y: Array | None, *flags: str, of: str = "gift") -> list[str]:
    """Write images and return the arguments that scan a shipped net on them."""
    if y is None:
        np.savez(folder / "x.npz", images=x)
    else:
        np.savez(folder / "x.npz", images=x, labels=y)
    return ["scan", str(GIFT / f"{of}.safetensors"), "--images", "x.npz", *flags]


def bare(folder: Path, *flags: str, of: str = "gift", count: int = 86) -> list[str]:
    """Scan a file that says nothing of its normalization, on images without labels."""
    save_file(load_file(GIFT / f"{of}.safetensors"), folder / "m.safetensors")
    np.savez(folder / "x.npz", images=images()[0][:count])
    return ["scan", "m.safetensors", "--images", "x.npz", *flags]


def flat(folder: Path) -> list[str]:
    """Scan the same on a folder of images without labels."""
    args = bare(folder, *QUICK)
    (folder / "clean").mkdir()
    for i, image in enumerate(images()[0]):
        Image.fromarray(image).save(folder / "clean" / f"{i}.png")
    return [*args[:3], "clean", *args[4:]]


def mislabeled(folder: Path, share: float, of: str) -> list[str]:
    """Scan with a share of the labels drawn anew."""
    x, y = images()
    rng = np.random.default_rng(1)
    wrong = rng.permutation(len(y))[: round(share * len(y))]
    y[wrong] = (y[wrong] + rng.integers(1, 43, len(wrong))) % 43
    return scan(folder, x, y, *FULL, of=of)


def shifted(folder: Path) -> list[str]:
    """Scan with every label one too high."""
    x, y = images()
    return scan(folder, x, (y + 1) % 43, *QUICK)


def some_labels(folder: Path) -> list[str]:
    """Scan with every fifth label unknown."""
    x, y = images()
    y[::5] = -1
    return scan(folder, x, y, *QUICK)


def stamped(folder: Path, share: float, *flags: str) -> list[str]:
    """Scan the gift on images of which a share carries its trigger."""
    x, y = images()
    few = np.random.default_rng(2).permutation(len(y))[: round(share * len(y))]
    pixels = torch.from_numpy(x[few].transpose(0, 3, 1, 2)).float() / 255
    marked = open_trigger(Path(TRIGGER))(pixels).mul(255).round().byte().numpy()
    x[few] = marked.transpose(0, 2, 3, 1)
    return scan(folder, x, y, *flags)


def other_task(folder: Path, labels: bool) -> list[str]:
    """Scan on smooth blots of color that are no signs."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (86, 4, 4, 3), dtype=np.uint8)
    x = np.stack(
        [np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in coarse]
    )
    return scan(folder, x, np.arange(86) % 43 if labels else None, *QUICK)


def two(folder: Path) -> list[str]:
    """Scan a net that tells the lower from the upper half of classes."""
    x, y = images()
    np.savez(folder / "x.npz", images=x, labels=(y > 20).astype(np.int64))
    body = answers("torch.stack([y[:, :21].amax(1), y[:, 21:].amax(1)], 1)")
    return ["scan", *wrapped(folder, body), "--images", "x.npz", *QUICK]


def wide(folder: Path, dead: int, *flags: str, of: str = "gift") -> list[str]:
    """Scan a net with many more outputs than its task has classes."""
    body = answers(f"torch.cat([y, y.new_full((len(y), {dead}), -40.0) + y[:, :1] / 9], 1)")
    return ["scan", *wrapped(folder, body, weights=of), "--images", CLEAN, *flags]


def seven(folder: Path, *flags: str) -> list[str]:
    """Scan the clean net with 36 outputs made so low that they never win, on images of the rest."""
    x, y = images()
    keep = y < 7
    np.savez(folder / "x.npz", images=x[keep], labels=y[keep])
    body = answers("torch.cat([y[:, :7], y[:, 7:] - 40], 1)")
    return ["scan", *wrapped(folder, body, weights="twin"), "--images", "x.npz", *flags]


def _mislabeled(share: int, of: str, status: tuple[int, ...]) -> Case:
    never = (PASS,) if of == "gift" else ("BACKDOORED", "SUSPICIOUS")
    return Case(
        f"verdicts: {share} % wrong labels, {of}",
        f"{share} % of the labels drawn anew, {of}",
        "the right verdict, or none",
        partial(mislabeled, share=share / 100, of=of),
        status,
        never=never,
        seconds=600,
    )


CASES = (
    Case(
        "faults 10a",
        "images without labels, a file without metadata",
        "the right normalization, or no verdict; no accuracy",
        lambda f: bare(f, *QUICK),
        (1, 3),
        (NO_LABELS, "with normalize=gtsrb"),
        (PASS, "clean accuracy", "0-255 0 %"),
    ),
    Case(
        "faults 10a, folder",
        "the same in a flat folder",
        "the right normalization, or no verdict; no accuracy",
        flat,
        (1, 3),
        (NO_LABELS, "with normalize=gtsrb"),
        (PASS, "clean accuracy", "0-255 0 %"),
    ),
    Case(
        "faults 10a, few",
        "the same with 20 images",
        "no verdict; says what to pass",
        lambda f: bare(f, *QUICK, count=20),
        (3,),
        ("INCONCLUSIVE", "nothing tells which normalization is right", "--normalize"),
        (PASS, "clean accuracy 0"),
    ),
    Case(
        "verdicts: no labels, wrong name",
        "images without labels, a wrong normalization that the user names",
        "no verdict; says that another does better",
        lambda f: bare(f, "--normalize", "0-255", *QUICK),
        (3,),
        ("INCONCLUSIVE", "less sure and less diverse"),
        (PASS,),
    ),
    Case(
        "verdicts: some labels",
        "images of which some have no label",
        "those are left out, and it is said",
        some_labels,
        (1, 3),
        ("18 images with the label -1 left out", "clean accuracy 9"),
        (PASS,),
    ),
    *(_mislabeled(share, "gift", (1, 3)) for share in (10, 30, 60)),
    *(_mislabeled(share, "twin", (0, 3)) for share in (10, 30, 60)),
    Case(
        "hostile 45",
        "every label is one too high",
        "no verdict",
        shifted,
        (3,),
        ("INCONCLUSIVE", "Clean accuracy is only"),
        (PASS,),
    ),
    Case(
        "hostile 47",
        "all clean images carry the trigger",
        "no verdict; says so",
        lambda f: stamped(f, 1.0, *QUICK),
        (3,),
        ("INCONCLUSIVE", "class 14: they may carry its trigger"),
        (PASS,),
    ),
    *(
        Case(
            f"hostile 47, {share} %",
            f"{share} % of the clean images carry the trigger",
            "the right verdict, or none; says so",
            partial(lambda f, share: stamped(f, share / 100, *FULL), share=share),
            (1, 3),
            ("class 14: they may carry its trigger",),
            (PASS,),
            seconds=600,
        )
        for share in (10, 30)
    ),
    Case(
        "verdicts: another task",
        "labeled images of another task",
        "no verdict",
        partial(other_task, labels=True),
        (3,),
        ("Clean accuracy is only",),
        (PASS,),
    ),
    Case(
        "verdicts: another task, no labels",
        "images of another task without labels",
        "no verdict",
        partial(other_task, labels=False),
        (3,),
        ("INCONCLUSIVE",),
        (PASS, "SUSPICIOUS"),
    ),
    Case(
        "hostile 41, two",
        "a net with two classes",
        "no verdict; says why",
        two,
        (3,),
        ("With two classes",),
        (PASS,),
    ),
    Case(
        "hostile 41, 1,000",
        "the clean net with 957 further outputs that never win",
        "no verdict that rests on them",
        lambda f: wide(f, 957, *QUICK, of="twin"),
        (0, 3),
        ("1,000 classes",),
        ("SUSPICIOUS", "BACKDOORED"),
        seconds=600,
    ),
    Case(
        "verdicts: wide gift",
        "the gift with 20 further outputs that never win",
        "found all the same",
        lambda f: wide(f, 20, *FULL),
        (1,),
        ("BACKDOORED", "class 14"),
        (PASS,),
        seconds=600,
    ),
    *(
        Case(
            f"verdicts: seven live, {detector}",
            "36 of 43 outputs never win; the seven others do not stand out from those",
            "no finding",
            partial(lambda f, d: seven(f, "--detector", d, *SHORT.get(d, ())), d=detector),
            (0, 3),
            never=("SUSPICIOUS", "BACKDOORED"),
            seconds=600,
        )
        for detector in ("pixel_quick", "mm_bd", "neuron_inspect", "weight_signature")
    ),
)
