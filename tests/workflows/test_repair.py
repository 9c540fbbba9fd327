"""The command `repair` on the shipped gift: figures, files, scans, refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.toys import band_images, bands, corner, wired, wired_images
from torch import Generator
from typer.testing import CliRunner

from gifthorse.cli.commands import app
from gifthorse.cli.repair import inverter
from gifthorse.core.errors import BadOption, Incomplete, UnknownMethod, UsageError
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Finding,
    Goal,
    Label,
    Report,
    RunRecord,
    Samples,
    Severity,
    Subject,
    Trigger,
    Verdict,
)
from gifthorse.data.samples import whole
from gifthorse.detection.confirmation import evidence as shown
from gifthorse.inversion import NeuralCleanse
from gifthorse.models import load
from gifthorse.remedies import REMEDIES, FineTuning, Projection, Unlearning
from gifthorse.remedies.down_up import Reformed
from gifthorse.remedies.projection import DenoisingAutoencoder
from gifthorse.report import WRITERS, repairs
from gifthorse.report.json import plain
from gifthorse.search import SearchConfig
from gifthorse.training import Recipe, predict
from gifthorse.triggers import Stamp
from gifthorse.triggers.packing import unpacked
from gifthorse.triggers.storage import pack
from gifthorse.workflows import repair as repairing
from gifthorse.workflows.opening import Inputs, take_in
from gifthorse.workflows.prepare import Prepared
from gifthorse.workflows.repair import Order, Repaired, open_scan, open_truth, repair, spread

GIFT = Path(__file__).parents[2] / "examples" / "gift"
MODEL, IMAGES = GIFT / "gift.safetensors", GIFT / "clean.npz"
TRUTH = GIFT / "gift.trigger.safetensors"

# What `gifthorse scan` recovers from the gift with the default options.
RECOVERED = (
    "eNrt17FKw1AUBuBO4hZBBF1EDtihZrCpQ4nFW0GqbsWKS1PCpfc2DcZGkltLjXkJF0d3n0CcfAAHF1/ATUQcBHFwML"
    "c+g0TK/xEIPydwbkiW/7bwKyHXPZGKC66465KdkIp8z5MR2ZQ4dOwPhEP2ikPbQvjKP5MOmVnq+TIQsZ4kqc5eyINJ"
    "ckjxyJNKh/KGHsXhMOpKnQfDIEhTSk0SMlBcLxNqfCqzVY2KRSbFfa5Tu2JWrOzqZA/qY4W9XixVnA3WzbJlVaudNC"
    "0AAAAAAAAA/AFrfo/pe4O6LI/9T3WLvcwcsbzev140ag/jVfa6cMDwNwAAAAAAAMC0urnen/Te+1E/l/5bNJZYdNjK"
    "rXvfPX9tfX6X2PljC/0fAAAAAAAAplbpYnfSey/VZi79t/m+xpbndnLr3h/tWfZ2ZbDCYrP2H77HD1RaWWg="
)


def run(*words: object) -> str:
    got = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return got.output


@cache
def received() -> Prepared:
    return take_in(load(str(MODEL)), Inputs(str(IMAGES)))


@dataclass
class Watching:
    """A remedy that changes nothing and remembers what it saw."""

    seen: Samples | None = None

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        self.seen = clean
        return subject


def test_a_repair_writes_a_model_and_says_what_it_cost(tmp_path: Path) -> None:
    out = tmp_path / "fixed.safetensors"
    said = run("repair", MODEL, "--images", IMAGES, "--method", "clp", "--truth", TRUTH, "-o", out)
    assert "clean accuracy" in said
    assert "true trigger" in said
    assert "A repair is no proof" in said
    assert max(map(len, said.replace(str(tmp_path), "").splitlines())) <= 80
    with safe_open(out, "pt") as file:
        claims = file.metadata()
    assert claims["description"].startswith("Repaired by gifthorse with clp")
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["images"]["used"] + record["images"]["judged"] == 86
    assert [t["whose"] for t in record["triggers"]] == ["true"]
    assert record["triggers"][0]["before"]["asr"]["value"] > 0.9
    assert "command" not in json.loads(claims["gifthorse"])
    again = load(str(out))
    assert again.classes == 43


def test_what_does_nothing_costs_nothing_and_sees_no_judge() -> None:
    watching, given = Watching(), received()
    done = repair(given, watching, Generator().manual_seed(0), Run(), truth=open_truth(TRUTH))
    assert done.before == done.after
    assert [t.before for t in done.effects] == [t.after for t in done.effects]
    assert done.drop.value == 0.0
    assert done.unchanged
    assert watching.seen is not None
    used = whole(watching.seen)[0]
    assert len(used) == done.images == len(given.samples) - done.judged


def test_a_remedy_that_reforms_inputs_is_judged_though_it_is_no_file(tmp_path: Path) -> None:
    out = tmp_path / "fixed.safetensors"
    options = ("--method", "smoothing", "--set", "copies=2", "--truth", TRUTH)
    said = run("repair", MODEL, "--images", IMAGES, *options, "-o", out)
    assert {p.name for p in tmp_path.iterdir()} == {"fixed.json"}
    assert "as they were: smoothing reforms images" in " ".join(said.split())
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["reforms"]
    assert not record["unchanged"]
    assert record["triggers"][0]["after"]["asr"]["value"] > 0.9  # an opaque patch stays


def test_what_a_reformer_learned_is_kept_and_can_be_put_before_the_net(tmp_path: Path) -> None:
    out, remedy = tmp_path / "fixed.safetensors", Projection(recipe=Recipe(epochs=1, batch=8))
    given, rng = received(), Generator().manual_seed(0)
    done = repair(given, remedy, rng, Run())
    said = repairing.record(Order("projection", remedy, 0), given, done)
    paths = repairing.write(out, done, said)
    assert [p.name for p in paths] == ["fixed.reformer.safetensors", "fixed.json"]
    reform = DenoisingAutoencoder(3, remedy.width, remedy.noise, remedy.pool)
    reform.load_state_dict(load_file(paths[0]))
    again = replace(given.subject, net=Reformed(reform, given.subject.net).eval())
    x, _ = whole(done.unseen)
    assert torch.allclose(predict(again, x), predict(done.subject, x), atol=1e-4)


def test_bad_calls_are_named(tmp_path: Path) -> None:
    out = tmp_path / "fixed.safetensors"
    with pytest.raises(UnknownMethod, match="did you mean fine_pruning"):
        run("repair", MODEL, "--images", IMAGES, "--method", "fine_prunning", "-o", out)
    with pytest.raises(BadOption, match="share must lie between"):
        repair(received(), Watching(), Generator(), Run(), share=1.0)


def test_a_model_that_fails_the_checks_is_not_repaired(tmp_path: Path) -> None:
    inputs = Inputs(str(IMAGES))
    opened = load(str(MODEL))
    with torch.no_grad():
        for p in opened.net.parameters():
            p.zero_()
    with pytest.raises(Incomplete, match="nothing was repaired"):
        repair(take_in(opened, inputs), Watching(), Generator(), Run())


def test_a_truth_must_say_its_class(tmp_path: Path) -> None:
    assert open_truth(TRUTH).goal == Goal(14)
    parts, claims = pack(Stamp().fixed((3, 32, 32), Generator().manual_seed(0)))
    save_file(parts, tmp_path / "silent", claims)
    with pytest.raises(UsageError, match="does not say which class"):
        open_truth(tmp_path / "silent")


# A scan that came before ----------------------------------------------------------------------


def result(
    path: Path,
    label: Label = "BACKDOORED",
    severity: Severity = "CRITICAL",
    evidence: Mapping[str, Any] | None = None,
) -> Path:
    """The JSON result of a scan of the gift, written as a scan writes it, without the search."""
    given = received()
    trigger, goal = unpacked(RECOVERED)
    if evidence is None:
        evidence = shown(given.subject, trigger, goal, given.samples, Run())
    found = Finding("BD001", severity, 10.5, "A trigger.", goal, evidence=evidence)
    verdict = Verdict("pixel_quick", 10.5, 3.0, label, (found,))
    report = Report(
        label=label, reason="", origin=given.subject.origin, preparation=given.preparation,
        verdicts=(verdict,), checks=(), not_covered=(), next_steps=(), confidence=None,
        run=RunRecord("", 0, "cpu", 1.0, "2026-01-01"),
    )  # fmt: skip
    path.write_text(WRITERS["json"](report))
    return path


def test_a_repair_with_a_scan_takes_the_backdoor_out_and_keeps_the_accuracy(tmp_path: Path) -> None:
    out, page = tmp_path / "fixed.safetensors", tmp_path / "page.html"
    said = run(
        "repair", MODEL, "--images", IMAGES, "--scan", result(tmp_path / "scan.json"),
        "--truth", TRUTH, "-o", out, "--report", f"html={page}",
    )  # fmt: skip
    record = json.loads(out.with_suffix(".json").read_text())
    true, recovered = record["triggers"]
    assert (true["whose"], recovered["whose"]) == ("true", "recovered")
    assert true["before"]["asr"]["value"] > 0.9
    assert recovered["before"]["asr"]["value"] > 0.8
    assert recovered["before"]["control"]["value"] < 0.05
    assert true["after"]["asr"]["value"] <= 0.05
    assert recovered["after"]["asr"]["value"] <= 0.05
    assert record["accuracy"]["drop"]["value"] <= 0.02
    assert record["scan"]["label"] == "BACKDOORED"
    assert record["mirroring"]["harmless"] is False
    assert record["options"]["recipe.flip"] == "False"
    assert "REPAIRED. No trigger that is known works any more." in said
    assert page.read_text().startswith("<!doctype html>")
    assert load(str(out)).classes == 43


def test_a_scan_of_another_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """One bit of one weight is another file."""
    scan, model = result(tmp_path / "scan.json"), tmp_path / "model.safetensors"
    tensors = load_file(MODEL)
    with safe_open(MODEL, "pt") as file:
        claims = file.metadata()
    name = next(n for n, t in tensors.items() if t.is_floating_point())
    tensors[name].view(torch.int32).view(-1)[0] ^= 1
    save_file(tensors, model, claims)
    before = set(tmp_path.iterdir())
    with pytest.raises(
        UsageError, match=r"is the result of a scan of .*gift.safetensors .*scan it"
    ):
        run("repair", model, "--images", IMAGES, "--scan", scan, "-o", tmp_path / "fixed")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("label", ["NO BACKDOOR FOUND", "NOT SCANNED", "ERROR", "INCONCLUSIVE"])
def test_a_scan_that_found_nothing_leaves_nothing_to_unlearn(label: Label, tmp_path: Path) -> None:
    scan = open_scan(result(tmp_path / "scan.json", label))
    assert (scan.classes, scan.triggers) == ((), ())
    with pytest.raises(UsageError, match=f"says {label}, so there is no trigger to unlearn"):
        scan.inform(REMEDIES["unlearning"])
    assert scan.inform(REMEDIES["clp"]) is REMEDIES["clp"]


def test_a_remedy_without_a_trigger_runs_with_a_note(tmp_path: Path) -> None:
    out, scan = tmp_path / "fixed.safetensors", result(tmp_path / "scan.json", "NO BACKDOOR FOUND")
    said = run("repair", MODEL, "--images", IMAGES, "--scan", scan, "--method", "clp", "-o", out)
    assert "says NO BACKDOOR FOUND; clp needs no trigger" in " ".join(said.split())
    assert out.exists()


def test_a_remedy_without_a_trigger_is_judged_by_those_of_the_scan(tmp_path: Path) -> None:
    scan = open_scan(result(tmp_path / "scan.json"))
    done = repair(received(), Watching(), Generator().manual_seed(0), Run(), known=scan.recovered)
    assert [(t.whose, t.goal) for t in done.effects] == [("recovered", Goal(14))]
    assert done.effects[0].after.asr.value > 0.8


@pytest.mark.parametrize("change", [{"target": 999}, {"target": -1}, {"source": 77}])
def test_a_scan_that_names_no_class_of_the_model_is_refused(
    tmp_path: Path, change: dict[str, int]
) -> None:
    path = result(tmp_path / "scan.json")
    told = json.loads(Path(path).read_text())
    told["findings"][0]["goal"] |= change
    Path(path).write_text(json.dumps(told))
    (wrong,) = change.values()
    origin = load(MODEL).origin
    with pytest.raises(UsageError, match=f"names class {wrong}, but the model has classes 0 to 42"):
        open_scan(path).check(origin, 43)


def test_a_suspicion_without_a_trigger_says_which_class_to_search(tmp_path: Path) -> None:
    scan = open_scan(result(tmp_path / "scan.json", "SUSPICIOUS", "MEDIUM", {}))
    informed = scan.inform(vary(REMEDIES["unlearning_quick"], {}))
    assert isinstance(informed, Unlearning)
    assert (informed.classes, informed.triggers) == ((14,), ())


def test_what_does_not_stand_out_is_not_unlearned(tmp_path: Path) -> None:
    assert open_scan(result(tmp_path / "scan.json", "SUSPICIOUS", "INFO")).triggers == ()


def test_what_is_no_scan_is_refused(tmp_path: Path) -> None:
    for name, words in (("text", "no JSON at all"), ("other", "{}")):
        (tmp_path / name).write_text(words)
    for name in ("text", "other", "missing"):
        with pytest.raises(UsageError, match=r"is no result of a scan|there is no file"):
            open_scan(tmp_path / name)


def test_a_result_of_an_older_form_says_so(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema_version": "1", "findings": []}))
    with pytest.raises(UsageError, match=r"older gifthorse .*: scan the model again"):
        open_scan(path)


def test_a_record_never_takes_the_place_of_the_scan(tmp_path: Path) -> None:
    scan = result(tmp_path / "fixed.json")
    kept = scan.read_bytes()
    with pytest.raises(BadOption, match="would replace"):
        run(
            "repair", MODEL, "--images", IMAGES, "--scan", scan, "-o",
            tmp_path / "fixed.safetensors",
        )  # fmt: skip
    assert scan.read_bytes() == kept


@pytest.mark.parametrize("text", ["page.html", "html=", "html=nowhere/page.html"])
def test_bad_reports_are_refused_before_the_work(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadOption):
        run("repair", MODEL, "--images", IMAGES, "--report", text, "-o", tmp_path / "fixed")
    with pytest.raises(UnknownMethod, match="no format is called 'pdf'"):
        run("repair", MODEL, "--images", IMAGES, "--report", "pdf=x", "-o", tmp_path / "fixed")


# Mirroring and distances ----------------------------------------------------------------------


def test_signs_are_not_mirrored_unless_the_user_says_so() -> None:
    short = vary(FineTuning(), {"recipe.epochs": 0})
    rng = Generator().manual_seed(0)
    assert repair(received(), short, rng, Run(), mirror=False).mirroring is None
    found = repair(received(), short, rng, Run()).mirroring
    assert found is not None
    assert found.mirrored.value < found.plain.value - 0.3
    assert not found.harmless
    assert repair(received(), vary(short, {"recipe.flip": False}), rng, Run()).mirroring is None
    assert repair(received(), REMEDIES["clp"], rng, Run()).mirroring is None


@dataclass(frozen=True)
class Noting:
    """A remedy with a recipe that remembers whether it may mirror."""

    recipe: Recipe = Recipe()
    noted: list[bool] = field(default_factory=list, compare=False)

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        self.noted.append(self.recipe.flip)
        return subject


@pytest.mark.parametrize(
    ("sided", "mirror", "flips"), [(True, True, False), (True, False, True), (False, True, True)]
)
def test_what_the_net_knows_of_left_and_right_decides(
    sided: bool, mirror: bool, flips: bool
) -> None:
    subject, samples = (wired(), wired_images(8)) if sided else (bands(), band_images(8))
    noting = Noting()
    given = replace(received(), subject=subject, samples=samples, checks=())
    repair(given, noting, Generator().manual_seed(0), Run(), mirror=mirror)
    assert noting.noted == [flips]


@dataclass(frozen=True)
class Replacing:
    """A remedy that knows the trigger of the bands, and puts a clean net in their place."""

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        return self.recovering(subject, clean, rng, run)[0]

    def recovering(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> tuple[Subject, tuple[tuple[Trigger, Goal], ...]]:
        return bands(), ((corner(), Goal(2)),)


def replaced() -> tuple[Prepared, Repaired]:
    given = replace(received(), subject=bands(2), samples=band_images(12), checks=())
    return given, repair(given, Replacing(), Generator().manual_seed(0), Run())


def test_what_the_remedy_recovered_is_tried_before_and_after() -> None:
    _, done = replaced()
    (trial,), (shown,) = done.effects, done.exhibits
    assert (trial.whose, trial.goal) == ("recovered", Goal(2))
    assert (trial.before.asr.value, trial.after.asr.value) == (1.0, 0.0)
    assert trial.before.asr.trials == done.judged * 5 // 6
    assert trial.before.control.value == trial.after.control.value == 0.0
    assert torch.as_tensor(shown["after_label"]).tolist() == [2] * 8
    healed = torch.as_tensor(shown["healed_after_label"])
    assert torch.equal(healed, torch.as_tensor(shown["true_label"]))
    assert not done.unchanged


def test_classes_lie_further_from_the_target_without_its_backdoor() -> None:
    """One pixel in the corner against about a band of them."""
    given, done = replaced()
    search = NeuralCleanse(
        config=SearchConfig(batch=6, success_threshold=0.9, rounds=60, steps=2, patience=20)
    )
    before, after = spread(given.subject, done, search, Generator().manual_seed(0), Run())
    assert before.goals == tuple(Goal(2, s) for s in (0, 1, 3, 4, 5))
    assert before.mean < 6
    assert after.mean > 15
    record = repairing.record(Order("replacing", Replacing(), 0), given, done, (before, after))
    told = plain(record)["distances"]
    assert told["mean"] == {"before": before.mean, "after": after.mean}
    assert told["pairs"][0]["source"] == 0
    assert told["increase"] > 1
    assert "the mean of 5 pairs of classes" in " ".join(repairs.WRITERS["text"](record).split())


def test_distances_need_a_target() -> None:
    given = received()
    done = repair(given, Watching(), Generator().manual_seed(0), Run())
    with pytest.raises(BadOption, match="--scan or --truth"):
        spread(given.subject, done, NeuralCleanse(), Generator(), Run())


def test_distances_are_measured_by_the_search_of_the_remedy() -> None:
    own = Unlearning(NeuralCleanse(initial=0.5))
    assert inverter(own) is own.inverter
    quick = REMEDIES["unlearning_quick"]
    assert isinstance(quick, Unlearning)
    assert inverter(FineTuning()) is quick.inverter
