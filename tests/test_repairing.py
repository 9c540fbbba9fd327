"""The command `repair` on the shipped gift: figures, files, refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator
from typer.testing import CliRunner

from gifthorse import examine
from gifthorse.cli import app
from gifthorse.data.samples import whole
from gifthorse.errors import BadOption, Incomplete, UnknownMethod, UsageError
from gifthorse.intake import Received
from gifthorse.models import load
from gifthorse.repairing import open_truth, repair
from gifthorse.triggers import Stamp
from gifthorse.triggers.storage import pack
from gifthorse.types import Goal, Samples, Session, Subject

GIFT = Path(__file__).parents[1] / "examples" / "gift"
MODEL, IMAGES = GIFT / "gift.safetensors", GIFT / "clean.npz"
TRUTH = GIFT / "gift.trigger.safetensors"


def run(*words: object) -> str:
    got = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return got.output


def received() -> Received:
    return examine.take_in(load(str(MODEL)), examine.Request(str(IMAGES)), None, None)


@dataclass
class Watching:
    """A remedy that changes nothing and remembers what it saw."""

    seen: Samples | None = None

    def __call__(
        self, subject: Subject, clean: Samples, rng: Generator, *, session: Session | None = None
    ) -> Subject:
        self.seen = clean
        return subject


def test_a_repair_writes_a_model_and_says_what_it_cost(tmp_path: Path) -> None:
    out = tmp_path / "fixed.safetensors"
    said = run("repair", MODEL, "--images", IMAGES, "--method", "clp", "--truth", TRUTH, "-o", out)
    assert "accuracy" in said
    assert "asr" in said
    assert "A repair is no proof" in said
    with safe_open(out, "pt") as file:
        claims = file.metadata()
    assert claims["description"].startswith("Repaired by gifthorse with clp")
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["images"]["used"] + record["images"]["judged"] == 86
    assert record["before"]["asr"]["value"] > 0.9
    again = load(str(out))
    assert again.classes == 43


def test_what_does_nothing_costs_nothing_and_sees_no_judge() -> None:
    watching, given = Watching(), received()
    done = repair(given, watching, Generator().manual_seed(0), truth=open_truth(TRUTH))
    assert done.before == done.after
    assert done.drop.value == 0.0
    assert watching.seen is not None
    used = whole(watching.seen)[0]
    assert len(used) == done.images == len(given.samples) - done.judged


def test_a_remedy_that_reforms_inputs_is_no_file(tmp_path: Path) -> None:
    out = tmp_path / "fixed.safetensors"
    with pytest.raises(BadOption, match="smoothing reforms the inputs"):
        run("repair", MODEL, "--images", IMAGES, "--method", "smoothing", "-o", out)
    assert not out.exists()


def test_bad_calls_are_named(tmp_path: Path) -> None:
    out = tmp_path / "fixed.safetensors"
    with pytest.raises(UnknownMethod, match="did you mean fine_pruning"):
        run("repair", MODEL, "--images", IMAGES, "--method", "fine_prunning", "-o", out)
    with pytest.raises(BadOption, match="share must lie between"):
        repair(received(), Watching(), Generator(), share=1.0)


def test_a_model_that_fails_the_checks_is_not_repaired(tmp_path: Path) -> None:
    request = examine.Request(str(IMAGES))
    opened = load(str(MODEL))
    with torch.no_grad():
        for p in opened.net.parameters():
            p.zero_()
    with pytest.raises(Incomplete, match="nothing was repaired"):
        repair(examine.take_in(opened, request, None, None), Watching(), Generator())


def test_a_truth_must_say_its_class(tmp_path: Path) -> None:
    assert open_truth(TRUTH).goal == Goal(14)
    parts, claims = pack(Stamp().fixed((3, 32, 32), Generator().manual_seed(0)))
    save_file(parts, tmp_path / "silent", claims)
    with pytest.raises(UsageError, match="does not say which class"):
        open_truth(tmp_path / "silent")
