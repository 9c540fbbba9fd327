"""Comparisons of triggers: what they measure is what the parts measure one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tests.toys import BANDS, SIDE, band_images, bands
from torch import Tensor
from typer.testing import CliRunner

from gifthorse.analysis import align_asr, align_size, pixels, robustness, top_k
from gifthorse.cli.compare import commands, read_goals
from gifthorse.core.errors import BadImages, BadOption, Incomplete, UnknownMethod
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Trigger
from gifthorse.data.samples import Subset, split, whole
from gifthorse.inversion import INVERTERS, NeuralCleanse, PixelBackdoor
from gifthorse.report.figures.comparison import _maps
from gifthorse.search import BoundedChange, MaskPattern, OneVariable, Parametrization, SignedPixels
from gifthorse.training import predict
from gifthorse.triggers import Additive, Patch
from gifthorse.workflows.compare import (
    FIGURES,
    Compared,
    ComparisonConfig,
    compare,
    inverters,
    table,
    write,
)
from gifthorse.workflows.compare.judging import Judge, raw

PLANTED = 2
GOALS = (Goal(PLANTED), Goal(0))
PIXEL, CLEANSE, UAP = "pixel_clip", "neural_cleanse_baseline", "uap"
# What the toy needs: see the contract of inverters.
TOY = {"patience": 5, f"{CLEANSE}.jitter": 0.001, "uap.eps": 0.12}
TOYS = ComparisonConfig(GOALS, options=TOY, rounds=150, points=5)
QUICK = replace(TOYS, rounds=12, figures=())


@cache
def compared() -> Compared:
    return compare(bands(PLANTED), band_images(), TOYS, run=Run())


def row(method: str, goal: int = 0) -> dict[str, Any]:
    rows: list[dict[str, Any]] = compared().record["rows"]
    return next(r for r in rows if (r["method"], r["goal"]) == (method, goal))


def halves() -> tuple[Subset, Subset]:
    return split(band_images(), 0.5, torch.Generator().manual_seed(TOYS.seed))


def trigger(method: str, goal: int = 0) -> Trigger:
    """The stored trigger, from its picture."""
    stem = f"{method}.all-to-{GOALS[goal].target}"
    pattern = compared().triggers[f"{stem}.pattern"]
    if method == CLEANSE:
        return Patch(pattern, compared().triggers[f"{stem}.strength"])
    return Additive(2 * pattern - 1)


def untimed(of: Compared) -> str:
    return json.dumps({k: v for k, v in of.record.items() if k != "seconds"}, allow_nan=False)


every = pytest.mark.parametrize("method", [PIXEL, CLEANSE, UAP])
both = pytest.mark.parametrize("goal", [0, 1])


# 1. What is measured --------------------------------------------------------------------------


def test_the_planted_pixel_is_all_that_the_planted_class_needs() -> None:
    planted = row(PIXEL)
    assert (planted["pixels"], planted["smallest"], planted["feasible"]) == (1, 1, True)
    assert planted["asr"]["value"] == 1.0
    assert compared().triggers[f"{PIXEL}.all-to-2.strength"].nonzero().tolist() == [[0, 0, 0]]
    # Neural Cleanse's mask is the same pixel once all else is cut away; a faint change is nothing.
    assert row(CLEANSE)["asr_at_smallest"]["value"] == 1.0
    assert row(CLEANSE)["needed"][PIXEL] == 1
    assert row(UAP)["pixels"] == SIDE * SIDE
    assert row(UAP)["asr"]["value"] == 1.0
    assert row(UAP)["asr_at_smallest"]["value"] == 0.0
    assert min(row(PIXEL, 1)["pixels"], row(CLEANSE, 1)["pixels"]) > 15  # no plant, no shortcut


def test_a_trigger_that_does_nothing_sets_no_size_for_the_others() -> None:
    still = replace(QUICK, methods=(PIXEL, UAP), rounds=40, options={"uap.eps": 1e-6})
    pixel, uap = compare(bands(PLANTED), band_images(), still, Run()).record["rows"][:2]
    assert (uap["pixels"], uap["asr"]["value"]) == (0, 0.0)
    assert pixel["smallest"] == uap["smallest"] == pixel["pixels"] > 0
    assert pixel["asr_at_smallest"] == pixel["asr"]


@every
@both
def test_success_is_that_of_the_stored_trigger_on_the_unseen_half(method: str, goal: int) -> None:
    found, stored, aim = row(method, goal), trigger(method, goal), GOALS[goal]
    net, (_, unseen) = bands(PLANTED), halves()
    x, y = whole(unseen)
    expected = asr(predict(net, stored(x)).argmax(1), y, aim)
    assert found["asr"] == vars(expected)
    assert found["pixels"] == pixels(stored)
    smallest = min(row(m, goal)["pixels"] for m in (PIXEL, CLEANSE, UAP))
    assert found["smallest"] == smallest
    cut = align_size(net, stored, aim, unseen, smallest)
    assert found["asr_at_smallest"] == vars(cut)
    for other in (PIXEL, CLEANSE, UAP):
        reference = row(other, goal)["asr"]["value"]
        assert found["needed"][other] == align_asr(net, stored, aim, unseen, reference)


@every
def test_success_by_source_adds_up_to_success(method: str) -> None:
    found, (_, unseen) = row(method, 1), halves()
    assert sorted(found["by_source"]) == [str(k) for k in range(1, BANDS)]
    for key, of in (("by_source", "asr"), ("by_source_at_smallest", "asr_at_smallest")):
        hits = sum(r["value"] * r["trials"] for r in found[key].values())
        trials = sum(r["trials"] for r in found[key].values())
        assert trials == found[of]["trials"] == int((whole(unseen)[1] != 0).sum())
        assert hits / trials == pytest.approx(found[of]["value"])


@every
def test_robustness_has_the_ten_columns_also_for_the_cut_trigger(method: str) -> None:
    found, stored, (_, unseen) = row(method), trigger(method), halves()
    for key, tried in (
        ("robustness", stored),
        ("robustness_at_smallest", top_k(stored, found["smallest"])),
    ):
        rates = robustness(bands(PLANTED), tried, GOALS[0], unseen)
        assert found[key] == {view: vars(rate) for view, rate in rates.items()}
        assert len(found[key]) == 11  # and their average


@every
def test_strengths_and_sizes_count_pixels(method: str) -> None:
    found = row(method)
    strength = compared().triggers[f"{method}.all-to-2.strength"]
    for i, count in enumerate(found["strengths"]):
        low, high = max(i / 10, 1 / 255 - 1e-6), (i + 1) / 10 if i < 9 else 1.1
        assert count == int(((strength >= low) & (strength < high)).sum())
    assert sum(found["strengths"]) == found["pixels"]
    sizes = [k for k, _ in found["by_size"]]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] >= found["pixels"]
    assert found["by_size"][-1][1] == found["asr"]
    assert row(method, 1)["by_size"] is None  # beyond `detail`


@every
@both
def test_a_curve_ends_with_what_was_found_and_what_it_cost(method: str, goal: int) -> None:
    found = row(method, goal)
    for (steps, size), (later, smaller) in pairwise(found["curve"]):
        assert steps < later
        assert smaller <= size or method == UAP  # which keeps what works more often
    assert found["curve"][-1] == [found["image_steps"], found["size"]]


def test_work_of_all_goals_is_the_work_of_the_session() -> None:
    run = Run()
    made = compare(bands(PLANTED), band_images(), replace(QUICK, rounds=3), run=run)
    spent = sum(r["image_steps"] for r in made.record["rows"])
    assert spent == pytest.approx(run.image_steps)
    assert spent > 0
    assert all(s > 0 for of in made.record["seconds"].values() for s in of)
    assert {r["rounds"] for r in made.record["rows"]} == {3}


@every
def test_the_middle_of_a_landscape_is_the_stored_trigger(method: str) -> None:
    found, (search, _) = row(method)["landscape"], halves()
    x, y = whole(search)
    x = x[y != PLANTED]
    logits = predict(bands(PLANTED), trigger(method)(x))
    entropy = F.cross_entropy(logits, torch.full((len(x),), PLANTED))
    assert found["cross_entropy"][2][2] == pytest.approx(entropy.item(), rel=1e-3, abs=1e-5)
    assert len(found["loss"]) == len(found["loss"][0]) == len(found["axis"]) == 5
    assert (found["axis"][0], found["axis"][2], found["axis"][4]) == (-1, 0, 1)
    if method == CLEANSE:
        mask = compared().triggers[f"{CLEANSE}.all-to-2.strength"]
        assert found["penalty"][2][2] == pytest.approx(mask.sum().item(), abs=0.05)
    assert row(method, 1)["landscape"] is None


FORMS: list[tuple[Parametrization, Trigger]] = [
    (MaskPattern(), Patch(torch.rand(3, 4, 4), torch.rand(1, 4, 4))),
    (SignedPixels("clip"), Additive(torch.rand(3, 4, 4) * 2 - 1)),
    (SignedPixels("tanh"), Additive(torch.rand(3, 4, 4) * 2 - 1)),
    (OneVariable("signed"), Additive(torch.rand(3, 4, 4) * 2 - 1)),
    (BoundedChange(), Additive(torch.rand(3, 4, 4) * 8 / 255)),
]


@pytest.mark.parametrize(("form", "stored"), FORMS, ids=lambda v: type(v).__name__)
def test_raw_variables_decode_to_the_trigger(form: Parametrization, stored: Trigger) -> None:
    found = raw(form, stored)
    assert found is not None
    parts = form.decode(tuple(v[None] for v in found))
    again = form.to_trigger(tuple(p[0] for p in parts))
    for mine, given in zip(again.render(), stored.render(), strict=True):
        assert torch.allclose(mine, given, atol=2e-3)
    other: Trigger = Additive(torch.zeros(3, 4, 4))
    if isinstance(stored, Additive):
        other = Patch(torch.zeros(3, 4, 4), torch.zeros(1, 4, 4))
    assert raw(form, other) is None


# 2. The record --------------------------------------------------------------------------------


def test_a_record_is_plain_and_the_same_for_the_same_seed() -> None:
    assert json.loads(json.dumps(compared().record, allow_nan=False)) == compared().record
    one, again = (compare(bands(PLANTED), band_images(), QUICK, Run()) for _ in range(2))
    other = compare(bands(PLANTED), band_images(), replace(QUICK, seed=1), Run())
    assert untimed(one) == untimed(again)
    assert untimed(one) != untimed(other)
    assert sorted(one.triggers) == sorted(again.triggers)
    assert all(torch.equal(one.triggers[k], again.triggers[k]) for k in one.triggers)


def test_a_method_does_not_depend_on_its_company() -> None:
    one = replace(TOYS, methods=(PIXEL,), figures=(), options={"patience": 5})
    alone = compare(bands(PLANTED), band_images(), one, Run())
    mine = alone.record["rows"][0]
    for key in ("size", "asr", "image_steps", "curve", "rounds"):
        assert mine[key] == row(PIXEL)[key]


def test_what_is_not_asked_for_is_not_measured() -> None:
    made = compare(bands(PLANTED), band_images(), QUICK, Run())
    for r in made.record["rows"]:
        for key in ("by_source", "robustness", "by_size", "landscape"):
            assert r[key] is None


def test_the_table_says_what_the_record_says() -> None:
    lines = table(compared().record).splitlines()
    assert max(map(len, lines)) <= 80
    method, pair, size, value, *interval, least, _, steps = lines[1].split()
    assert (method, pair, size, value, least) == (PIXEL, "*:2", "1", "100", "100")
    assert interval == ["[80,", "100]"]
    assert float(steps.replace(",", "")) == pytest.approx(row(PIXEL)["image_steps"], abs=1)
    means = next(line.split() for line in lines if line.startswith(f"{PIXEL} ") and "mean" in line)
    both_sizes = [row(PIXEL, goal)["pixels"] for goal in (0, 1)]
    assert float(means[2]) == pytest.approx(sum(both_sizes) / 2, abs=0.05)


def test_a_goal_that_nothing_reaches_is_said_and_drawn_around(tmp_path: Path) -> None:
    hopeless = replace(TOYS, methods=(PIXEL, CLEANSE), rounds=1, options={"config.lr": 1e-6})
    made = compare(bands(None), band_images(), hopeless, Run())
    assert [r["feasible"] for r in made.record["rows"]] == [False] * 4
    assert made.record["rows"][0]["asr"] is None
    assert made.record["rows"][0]["curve"] == []
    assert table(made.record).splitlines()[1].split()[:3] == [PIXEL, "*:2", "none"]
    assert [p.name for p in write(made, tmp_path)] == ["compared.json", "triggers.safetensors"]


def test_a_session_that_is_over_stops_the_rest() -> None:
    run = Run(budget=100)
    made = compare(bands(PLANTED), band_images(), TOYS, run=run).record
    assert list(made["stopped"]) == [PIXEL]
    assert made["missed"] == [CLEANSE, UAP]
    assert made["rows"][0]["rounds"] < 150
    assert made["rows"][0]["landscape"] is None
    words = " ".join(table(made).split())
    assert f"{PIXEL} was stopped: the budget of 100 image-steps is spent" in words
    assert "uap did not run" in words


# 3. Requests ----------------------------------------------------------------------------------


def test_options_go_to_the_methods_that_have_them() -> None:
    options = {"patience": "4", "uap.eps": "0.2", "config.lr": "0.3", f"{CLEANSE}.patience": "7"}
    made = inverters(ComparisonConfig(options=options, rounds=20))
    pixel, cleanse = made[PIXEL], made[CLEANSE]
    assert isinstance(pixel, PixelBackdoor)
    assert isinstance(cleanse, NeuralCleanse)
    assert (pixel.patience, cleanse.patience, getattr(made[UAP], "eps")) == (4, 7, 0.2)  # noqa: B009
    assert {getattr(m, "config").lr for m in made.values()} == {0.3}  # noqa: B009
    assert {getattr(m, "config").rounds for m in made.values()} == {20}  # noqa: B009
    few = inverters(ComparisonConfig(methods=("neural_cleanse_zoo",), rounds=500))
    assert few["neural_cleanse_zoo"] == INVERTERS["neural_cleanse_zoo"]  # 10 rounds stay 10


WRONG = [
    ({"methods": ("pixl",)}, UnknownMethod, "no inverter is called 'pixl': did you mean pixel"),
    ({"figures": ("size",)}, UnknownMethod, "no figure is called 'size': did you mean sizes"),
    (
        {"options": {"patienec": 5}},
        BadOption,
        "none of .* has an option patienec: did you mean patience",
    ),
    ({"options": {"uap.wait": 5}}, BadOption, "UAP has no option wait"),
    ({"points": 4}, BadOption, "points of a landscape must be odd, .* 3 or more; got 4"),
    ({"rounds": 0}, BadOption, "rounds must be 1 or more; got 0"),
    ({"goals": ()}, BadOption, "give at least one goal"),
    ({"goals": (Goal(6),)}, BadOption, "there is no class 6: the model has classes 0 to 5"),
    ({"goals": (Goal(1, -1),)}, BadOption, "there is no class -1"),
    ({"goals": (Goal(1, 1),)}, BadOption, "from class 1 must lead to another class"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG)
def test_what_is_wrong_is_named(change: dict[str, Any], error: type, words: str) -> None:
    wrong = replace(QUICK, **change)
    with pytest.raises(error, match=words):
        compare(bands(PLANTED), band_images(), wrong, Run())


def test_too_few_images_of_a_class_are_named() -> None:
    images = band_images()
    kept = (images.labels != 3) | (torch.arange(len(images)) < BANDS)  # one image of class 3
    few = Subset(images, kept.nonzero().flatten())
    with pytest.raises(BadImages, match=r"too few clean images of class 3 .* there are 1, and it"):
        compare(bands(PLANTED), few, replace(QUICK, goals=(Goal(0, 3),)), Run())


def test_goals_are_read_from_flags() -> None:
    assert read_goals(4, None, "0:3, 2:1", False) == (Goal(3, 0), Goal(1, 2))
    assert read_goals(3, None, None, False) == (Goal(0), Goal(1), Goal(2))
    assert read_goals(9, "0,7-8", None, False) == (Goal(0), Goal(7), Goal(8))
    assert read_goals(9, "4,6", None, True) == (Goal(6, 4), Goal(4, 6))
    assert len(read_goals(10, None, None, True)) == 90
    for text in ("0-3", "0:3,", ":", "a:b", ""):
        with pytest.raises(BadOption, match="--pairs takes SOURCE:TARGET"):
            read_goals(4, None, text, False)
    with pytest.raises(BadOption, match="leave --classes and --all-pairs away"):
        read_goals(4, "1", "0:3", False)


# 4. Files and the command ---------------------------------------------------------------------


def test_many_classes_have_numbers_for_names() -> None:
    name = "a long name"
    few, many = ({**compared().record, "classes": [name] * n} for n in (6, 21))
    assert _maps(few, lambda row, source: 1.0)[1] == [name] * 6
    assert _maps(many, lambda row, source: 1.0)[1] == [str(k) for k in range(21)]
    pairs = {**many, "goals": [{"target": 3, "source": 7}], "rows": []}
    assert _maps(pairs, lambda row, source: 1.0)[1] == [name] * 2


def test_maps_have_sources_down_and_targets_across() -> None:
    maps, _ = _maps(compared().record, lambda row, source: row["pixels"] + 1000 * source)
    for method, grid in maps.items():
        assert grid[4, PLANTED] == row(method)["pixels"] + 4000
        assert grid[5, 0] == row(method, 1)["pixels"] + 5000
        assert grid.isfinite().sum() == 2 * (BANDS - 1)
        assert grid.diagonal().isnan().all()


def test_files_are_whole_and_hold_the_comparison(tmp_path: Path) -> None:
    named = compared().record | {"classes": ["0", "a$^b", "\x1b[31m", "x" * 99, "4", "5"]}
    paths = list(write(Compared(named, compared().triggers), tmp_path / "new" / "folder"))
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    stems = {p.stem.partition("-")[0] for p in paths if p.suffix == ".png"}
    assert stems == {*FIGURES, "success_at_smallest"}
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.verify()
                assert image.width == 1600
    assert json.loads(paths[0].read_text()) == named
    kept: dict[str, Tensor] = load_file(paths[1])
    assert kept.keys() == compared().triggers.keys()
    assert all(torch.equal(kept[k], compared().triggers[k]) for k in kept)


GIFT = Path(__file__).parents[2] / "examples" / "gift"
MODEL, IMAGES = str(GIFT / "gift.safetensors"), str(GIFT / "clean.npz")
CALL = [MODEL, "--images", IMAGES, "--arch", "tiny"]


def test_the_command_compares_on_the_shipped_example(tmp_path: Path) -> None:
    flags = ["--pairs", "1:14", "--rounds", "25"]
    flags += ["--method", PIXEL, "--method", CLEANSE]
    flags += ["--figure", "sizes", "--figure", "curves", "-o", str(tmp_path)]
    ran = CliRunner().invoke(commands, [*CALL, *flags], catch_exceptions=False)
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    record = json.loads((tmp_path / "compared.json").read_text())
    for line, r in zip(lines[1:3], record["rows"], strict=True):
        assert line.split()[:3] == [r["method"], "1:14", str(r["pixels"])]
        assert r["feasible"]
    assert record["images"] == {"search": 43, "unseen": 43}
    written = {"compared.json", "triggers.safetensors", "sizes.png", "curves.png"}
    assert {p.name for p in tmp_path.iterdir()} == written


def test_all_else_is_written_before_the_first_landscape_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(judge: Judge, *around: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Judge, "_landscape", interrupted)
    flags = ["--pairs", "1:14", "--rounds", "25", "--method", PIXEL, "-o", str(tmp_path)]
    flags += ["--figure", "landscape", "--figure", "sizes"]
    ran = CliRunner().invoke(commands, [*CALL, *flags])
    assert ran.exit_code != 0
    assert ran.stdout.splitlines()[1].startswith(f"{PIXEL} ")
    rows = json.loads((tmp_path / "compared.json").read_text())["rows"]
    assert (rows[0]["feasible"], rows[0]["landscape"]) == (True, None)
    written = {"compared.json", "triggers.safetensors", "sizes.png"}
    assert {p.name for p in tmp_path.iterdir()} == written


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        (("--figure", "sizes"), BadOption, "--figure draws files: say with --out DIR where to"),
        (("--points", "50"), BadOption, "must be odd"),
        (("--method", "pixl"), UnknownMethod, "did you mean pixel"),
        (("--pairs", "0-3"), BadOption, "SOURCE:TARGET"),
        (("--pairs", "0:43"), BadOption, "there is no class 43: the model has classes 0 to 42"),
        (("--time-limit", "soon"), BadOption, "--time-limit takes a time"),
        (("--limit", "43", "--pairs", "0:3"), BadImages, "too few clean images of class 0"),
        (("--normalize", "0.5/9"), Incomplete, "nothing was compared: "),
    ],
)
def test_the_command_names_what_is_wrong(
    flags: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        CliRunner().invoke(commands, [*CALL, *flags], catch_exceptions=False)
