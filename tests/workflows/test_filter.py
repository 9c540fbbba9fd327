"""Screening: what a filter is given, what its threshold costs, and the command `filter`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from typer.testing import CliRunner

from gifthorse.cli.commands import app
from gifthorse.core.errors import (
    BadImages,
    BadOption,
    Incomplete,
    NotApplicable,
    UnknownMethod,
    UnreadableModel,
    UsageError,
)
from gifthorse.core.run import Run
from gifthorse.core.types import Samples, Subject
from gifthorse.data import read
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.filtering import STRIP, ActivationClustering, Ensemble
from gifthorse.filtering.scoring import judge, threshold
from gifthorse.models import load
from gifthorse.report.figures.contact_sheet import SheetLayout, plain_sheet
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.filter import cost, fitted, screen, shared, targets
from gifthorse.workflows.opening import Inputs, take_in
from gifthorse.workflows.prepare import Prepared

GIFT = Path(__file__).parents[2] / "examples" / "gift"
MODEL, IMAGES = GIFT / "gift.safetensors", GIFT / "clean.npz"
TARGET = 14


def run(*words: object) -> str:
    got = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return str(got.stdout)


@cache
def received() -> Prepared:
    return take_in(load(str(MODEL)), Inputs(str(IMAGES)))


@cache
def mixed() -> tuple[InMemory, Tensor]:
    """The clean images and those of other classes stamped, and which are stamped."""
    clean = received().samples
    x, y = whole(clean)
    stamped = open_trigger(GIFT / "gift.trigger.safetensors")(x[y != TARGET])
    pixels = torch.cat([clean.images, (stamped * 255).round().byte()])
    truth = torch.arange(len(pixels)) >= len(clean)
    return InMemory(pixels, torch.cat([y, y[y != TARGET]]), clean.classes), truth


def rng() -> Generator:
    return Generator().manual_seed(0)


@dataclass
class Bright:
    """Scores are mean brightness; remembers what it was given."""

    mode: str = "online"
    given: list[Samples] = field(default_factory=list)

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        self.given += [clean, suspects]
        return whole(suspects)[0].mean((1, 2, 3))


def rows(samples: Samples) -> set[bytes]:
    return {x.numpy().tobytes() for x in whole(samples)[0]}


# 1. What the threshold costs ----------------------------------------------------------------------


def test_the_cost_is_what_further_clean_images_pay() -> None:
    """Scores uniform on [0, 1]: the share of further ones above a threshold t is 1 - t."""
    draws = torch.rand(4000, 43, generator=rng())
    limits = torch.tensor([threshold(d, 0.05) for d in draws])
    said = cost(draws[0], limits[0].item())
    assert said.value == pytest.approx(3 / 44)
    assert (1 - limits).mean().item() == pytest.approx(said.value, abs=0.002)
    inside = (1 - limits >= said.low) & (1 - limits <= said.high)
    assert inside.float().mean().item() == pytest.approx(0.95, abs=0.01)


def test_ties_and_few_scores_cost_no_less() -> None:
    assert cost(torch.zeros(9), 0.0).value == pytest.approx(0.1)
    one = cost(torch.zeros(1), 0.0)
    assert (one.low, one.value, one.high) == pytest.approx((0.025, 0.5, 0.975))


# 2. What a filter is given ------------------------------------------------------------------------


def test_scores_come_back_in_order_and_thresholds_from_unused_images() -> None:
    method, (suspects, _) = Bright(), mixed()
    done = screen(received(), suspects, method, rng(), Run(), fpr=0.1)
    assert torch.equal(done.scores, whole(suspects)[0].mean((1, 2, 3)))
    used, every = method.given
    assert len(used) == done.images == 43
    assert done.cost.trials == 43
    assert len(every) == len(suspects) + 43
    held = rows(received().samples) - rows(used)
    every_clean = whole(received().samples)[0]
    bright = torch.stack([x.mean() for x in every_clean if x.numpy().tobytes() in held])
    assert done.threshold == pytest.approx(threshold(bright, 0.1))
    assert torch.equal(done.flagged, done.scores > done.threshold)
    assert done.scores[done.order].diff().max() <= 0
    assert not torch.equal(whole(every)[0][43:], whole(suspects)[0])  # no place gives a part away


def test_a_filter_of_training_sets_gets_some_clean_images_among_the_suspects() -> None:
    method, (suspects, _) = Bright("dataset"), mixed()
    done = screen(received(), suspects, method, rng(), Run())
    reference, every = method.given
    assert (len(reference), done.images) == (0, 0)
    assert 40 <= done.cost.trials <= 44  # a quarter of 170
    assert len(every) == 170 + done.cost.trials
    labels = whole(every)[1].bincount() - suspects.labels.bincount()
    assert labels.max() == 1  # two of each class are there
    unknown = InMemory(suspects.images, suspects.labels.clone().fill_(-1), 43)
    with pytest.raises(BadImages, match="give images with labels"):
        screen(received(), unknown, method, rng(), Run())
    online = screen(received(), unknown, Bright(), rng(), Run())  # needs none
    assert torch.equal(online.scores, done.scores)


def test_clusters_find_the_stamped_images_and_keep_their_promise_on_clean_ones() -> None:
    suspects, truth = mixed()
    done = screen(received(), suspects, ActivationClustering(), rng(), Run())
    got = judge(done.scores[~truth], done.scores[truth], done.scores[~truth])
    assert got.auroc > 0.95
    assert done.flagged[truth].float().mean() > 0.9
    assert done.flagged[~truth].float().mean() < done.cost.high
    assert (done.predicted[truth] == TARGET).float().mean() > 0.9


def test_partners_are_lowered_to_what_is_there() -> None:
    assert fitted(STRIP(64), 86) == STRIP(42)
    lowered, some = fitted(STRIP(64, tails="both"), 12), Subset(mixed()[0], torch.arange(6))
    assert lowered(received().subject, some, some, rng(), Run()).isfinite().all()
    for enough in (STRIP(42), Ensemble(), ActivationClustering()):
        assert fitted(enough, 86) is enough


# 3. What is refused -------------------------------------------------------------------------------


def test_no_image_is_judged_by_a_model_that_fails_its_checks() -> None:
    suspects, _ = mixed()
    opened = load(str(MODEL))
    with torch.no_grad():
        for p in opened.net.parameters():
            p.zero_()
    broken = take_in(opened, Inputs(str(IMAGES)))
    with pytest.raises(Incomplete, match="nothing was scored"):
        screen(broken, suspects, Bright(), rng(), Run())


class Faint(nn.Module):
    """Has no answer for images that are black."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)).log()[:, None].expand(-1, 43)


def test_no_answer_is_no_clean_image() -> None:
    suspects, _ = mixed()
    black = replace(suspects, images=suspects.images.clone())
    black.images[7] = 0
    odd = replace(received(), subject=replace(received().subject, net=Faint()))
    assert len(screen(odd, suspects, Bright(), rng(), Run()).scores) == len(suspects)
    with pytest.raises(Incomplete, match="no finite answer to some images"):
        screen(odd, black, Bright(), rng(), Run())


@pytest.mark.parametrize("fpr", [-0.1, 1.0])
def test_an_impossible_share_is_refused_before_anything_is_scored(fpr: float) -> None:
    method = Bright()
    with pytest.raises(BadOption, match="fpr"):
        screen(received(), mixed()[0], method, rng(), Run(), fpr=fpr)
    assert not method.given


def test_bad_calls_are_named(tmp_path: Path) -> None:
    base = ("filter", IMAGES, "--model", MODEL, "--images", IMAGES)
    with pytest.raises(UnknownMethod, match="did you mean strip"):
        run(*base, "--method", "stripp")
    with pytest.raises(BadOption, match="--most takes"):
        run(*base, "--most", "-1")
    with pytest.raises(BadImages, match="no file or folder"):
        run("filter", tmp_path / "none", "--model", MODEL, "--images", IMAGES)
    with pytest.raises(UnreadableModel):
        run("filter", IMAGES, "--model", IMAGES, "--images", IMAGES)
    with pytest.raises(NotApplicable, match="64 clean images are needed, but there are 43"):
        run(*base, "--method", "strip", "--set", "partners=64")
    with pytest.raises(UsageError, match="its folder does not exist"):
        run(*base, "-o", tmp_path / "far" / "away")


# 4. The command -----------------------------------------------------------------------------------


def listed(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_list_record_and_picture_say_the_same(tmp_path: Path) -> None:
    suspects, truth = mixed()
    source = tmp_path / "mix.npz"
    np.savez(source, images=suspects.images.numpy(), labels=suspects.labels.numpy())
    base = ("filter", source, "--model", MODEL, "--images", IMAGES, "-o", tmp_path / "v1.2")
    said = run(*base, "--method", "activation_clustering", "--most", "10")
    assert "86 of the images are among the clean images, too." in said
    assert "may carry a trigger that this filter cannot see" in " ".join(said.split())
    record: dict[str, Any] = json.loads((tmp_path / "v1.2.json").read_text())
    assert f"{record['flagged']} of 170 images are flagged" in said
    assert record["model"]["sha256"] == received().subject.origin.sha256
    assert record["options"]["mode"] == "online"
    assert (record["method"], record["rule"]) == ("activation_clustering", "DS002")
    assert (record["clean"]["used"], record["clean"]["calibration"]) == (43, 43)
    table, images = listed(tmp_path / "v1.2.csv"), record["images"]
    assert sorted(row["row"] for row in images) == list(range(170))
    assert [int(row["row"]) for row in table] == [row["row"] for row in images]
    assert [np.float32(row["score"]) for row in table] == [np.float32(r["score"]) for r in images]
    flagged = {row["row"] for row in images if row["score"] > record["threshold"]}
    assert flagged == {int(row["row"]) for row in table if row["flagged"] == "true"}
    assert len(flagged) == record["flagged"] == len(flagged & set(range(86, 170))) + 2
    with Image.open(tmp_path / "v1.2.png") as page:
        assert page.size == SheetLayout().size((3, 32, 32), 10, 1)
        zoom, (left, top) = 3, SheetLayout().place((3, 32, 32), 9, 0, 1)
        tile = np.array(page.convert("RGB"))[top : top + 96 : zoom, left : left + 96 : zoom]
    shown = suspects.images[images[9]["row"]].permute(1, 2, 0).numpy()
    assert np.array_equal(tile, shown)
    assert bool(truth[images[0]["row"]])


def test_files_keep_their_names_and_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    folder, pixels = tmp_path / "inbox", received().samples.images[:6]
    (folder / "deep").mkdir(parents=True)
    names = ["a.png", "b.png", "c.png", "deep/=d.png", "deep/e, f.png", "z\n\u202e.png"]
    for name, x in zip(names, pixels, strict=True):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "twin.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:300])
    out = f"{tmp_path / 'new'}/"
    said = run(
        "filter", folder, "--model", MODEL, "--images", IMAGES, "--method", "strip", "-o", out
    )
    assert "1 file could not be used and got no score." in said
    assert "partners lowered" not in said  # on standard output only the result
    assert "\u202e" not in said
    assert max(map(len, said.splitlines())) <= 80
    record = json.loads((tmp_path / "new" / "filter.json").read_text())
    assert record["options"]["partners"] == "42"
    assert record["data"]["not_scored"] == ["torn.png is truncated"]
    scores = {row["file"]: float(row["score"]) for row in listed(tmp_path / "new" / "filter.csv")}
    assert set(scores) == {*names, "twin.png"}
    assert scores["twin.png"] == pytest.approx(scores["a.png"], abs=1e-6)
    assert all(row["label"] is None for row in record["images"])
    assert (tmp_path / "new" / "filter.png").is_file()


def test_without_a_place_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("filter", IMAGES, "--model", MODEL, "--images", IMAGES)
    said = run(*base, "--method", "spectral_signatures", "--fpr", "0.01")
    assert "too few for a share of 1.0%" in said
    assert "No more are flagged than chance allows" in said
    assert not list(tmp_path.iterdir())


def test_places_to_write_to(tmp_path: Path) -> None:
    inside = [tmp_path / f"filter.{end}" for end in ("csv", "json", "png")]
    assert list(targets(str(tmp_path)).values()) == inside
    beside = [tmp_path / f"v1.2.{end}" for end in ("csv", "json", "png")]
    for stem in ("v1.2", "v1.2.csv", "v1.2.png"):
        assert list(targets(str(tmp_path / stem)).values()) == beside


# 5. What it needs of others -----------------------------------------------------------------------


def test_readers_keep_repeats_if_asked(tmp_path: Path) -> None:
    x = received().samples.images[:3].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "x.npz", images=x[[0, 1, 0, 2]])
    assert len(read(str(tmp_path / "x.npz")).samples) == 3
    every = read(str(tmp_path / "x.npz"), repeats=True).samples.images.permute(0, 2, 3, 1)
    assert np.array_equal(every.numpy(), x[[0, 1, 0, 2]])
    first, others = (
        received().samples,
        InMemory(every.permute(0, 3, 1, 2), torch.zeros(4).long(), 1),
    )
    assert shared(first, others) == 4
    assert shared(first, replace(others, images=others.images ^ 1)) == 0


def test_a_plain_sheet_marks_the_words_of_some() -> None:
    x = torch.zeros(2, 1, 12, 12)
    page = np.array(plain_sheet(x, [("one", "1"), ("one", "1")], torch.tensor([True, False])))
    sheet = SheetLayout()
    (left, top), (right, _) = (sheet.place((1, 12, 12), i, 0, 1) for i in (0, 1))
    words = [page[top + 96 : top + 96 + sheet.line, at : at + 96] for at in (left, right)]
    assert (words[0][..., 0].astype(int) - words[0][..., 2] > 100).any()  # orange
    assert (np.ptp(words[1], axis=2) == 0).all()  # black, and gray at its edges
    with pytest.raises(BadImages, match="at least one"):
        plain_sheet(x[:0], [], torch.zeros(0).bool())
