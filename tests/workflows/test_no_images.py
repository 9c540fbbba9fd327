"""A scan without images: what runs, what it says, and that it never says that nothing is there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cli.test_border import run

from gifthorse.core.errors import BadOption
from gifthorse.core.options import vary
from gifthorse.core.resizing import Resize
from gifthorse.core.run import Run
from gifthorse.core.types import Origin
from gifthorse.detection import DATA_FREE, DETECTORS
from gifthorse.models.load import Opened
from gifthorse.models.zoo import NETS
from gifthorse.workflows.opening import Inputs, take_in

GIFT = Path(__file__).parents[2] / "examples/gift"


def fresh(channels: int = 1, classes: int = 10) -> Opened:
    torch.manual_seed(0)
    return Opened(NETS["basic"](classes, channels).eval(), classes, channels, Origin("a"))


def blind(size: tuple[int, int] | None = None, normalize: str = "auto") -> Inputs:
    return Inputs(None, None, normalize, size, device="cpu")


def test_noise_stands_for_images_of_the_size_that_the_net_says_or_runs_on() -> None:
    assert take_in(fresh(), blind((28, 28))).subject.shape == (1, 28, 28)
    told = Opened(**(vars(fresh()) | {"resize": Resize((28, 28))}))
    prepared = take_in(told, blind())
    assert prepared.subject.shape == (1, 28, 28)
    assert prepared.blind
    assert [check.rule for check in prepared.checks] == ["IN002"]
    assert prepared.preparation.normalization.name == "half"
    assert take_in(fresh(3), blind((28, 28))).preparation.normalization.name == "imagenet"
    with pytest.raises(BadOption, match="3 means, but the model takes images of 1"):
        take_in(told, blind(normalize="cifar10"))


@pytest.mark.parametrize("name", sorted({*DATA_FREE, "mm_bd"}))
def test_what_runs_without_images_never_reads_any(name: str) -> None:
    prepared = take_in(fresh(), blind((28, 28)))
    options = {"steps": "3"} if name != "weight_signature" else {}
    detector = vary(DETECTORS[name], options)
    rng = [torch.Generator().manual_seed(0) for _ in range(2)]
    other = replace(prepared.samples, images=prepared.samples.images.flip(0))
    images = (prepared.samples, other)
    seen = [detector(prepared.subject, x, r, Run()) for x, r in zip(images, rng, strict=True)]
    assert seen[0].score == seen[1].score


def test_nothing_found_without_images_is_no_verdict(tmp_path: Path) -> None:
    save_file(fresh().net.state_dict(), tmp_path / "m.safetensors")
    model = str(tmp_path / "m.safetensors")
    command = ("scan", model, "--no-images", "--input-size", "28x28", "--arch", "basic")
    status, out, _ = run(*command, "--detector", "weight_signature", "-f", "json")
    report = json.loads(out)
    assert (status, report["verdict"]["label"]) == (3, "INCONCLUSIVE")
    assert report["verdict"]["reason"].startswith("No images were given")
    assert report["verdict"]["not_covered"][0].startswith("triggers of any kind")


def test_a_gift_raises_suspicion_by_its_weights_alone() -> None:
    status, out, _ = run(
        "scan", str(GIFT / "gift.safetensors"), "--no-images", "--detector", "weight_signature",
        "-f", "json",
    )  # fmt: skip
    report = json.loads(out)
    assert (status, report["verdict"]["label"]) == (1, "SUSPICIOUS")
    assert report["findings"][0]["goal"]["target"] == 14


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "clean images are missing: .* --no-images"),
        (("--no-images", "--images", "x"), "exclude each other"),
        (("--no-images", "--detector", "usb"), "usb cannot run without images"),
    ],
)
def test_what_does_not_fit_together_is_said(more: tuple[str, ...], words: str) -> None:
    status, _, said = run("scan", str(GIFT / "gift.safetensors"), *more)
    assert status == 4
    assert re.search(words, said)
