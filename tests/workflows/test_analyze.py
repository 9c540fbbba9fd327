"""The command `analyze` on the shipped gift, and where a net looks in a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.report.examples import backdoored
from torch import Generator
from typer.testing import CliRunner

from gifthorse.analysis import attribution
from gifthorse.cli import analyze as cli_analyze
from gifthorse.cli.commands import app
from gifthorse.core.errors import BadImages, ShapeMismatch, UsageError
from gifthorse.core.types import Finding, Goal, Report, Subject, Trigger
from gifthorse.data.samples import InMemory
from gifthorse.models import load
from gifthorse.models.zoo import NETS
from gifthorse.report import WRITERS
from gifthorse.report.pictures import gaze
from gifthorse.triggers import Additive, Stamp
from gifthorse.triggers.packing import packed, unpacked
from gifthorse.triggers.storage import pack
from gifthorse.workflows import analyze as analyzing
from gifthorse.workflows.analyze import TriggerAnalysis
from gifthorse.workflows.opening import Inputs, take_in
from gifthorse.workflows.prepare import Prepared
from gifthorse.workflows.repair import Truth, open_known, open_scan, open_truth
from gifthorse.workflows.scan import illustrated

GIFT = Path(__file__).parents[2] / "examples" / "gift"
MODEL, TWIN, IMAGES = GIFT / "gift.safetensors", GIFT / "twin.safetensors", GIFT / "clean.npz"
TRUTH = GIFT / "gift.trigger.safetensors"
FAST = ("--set", "permutations=19", "--set", "draws=3", "--set", "method=pca", "--set", "shown=2")


def run(*words: object) -> str:
    got = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return got.output


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return take_in(load(str(MODEL)), Inputs(str(IMAGES)))


def test_the_gift_beside_its_twin(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    said = run(
        "analyze",
        MODEL,
        "--images",
        IMAGES,
        "--trigger",
        TRUTH,
        "--against",
        TWIN,
        "-o",
        out,
        *FAST,
    )
    figures = [line for line in said.splitlines() if not line.startswith("wrote")]
    assert max(map(len, figures)) <= 80
    stems = {"attribution", "features", "separation", "path", "table19"}
    assert {p.stem for p in out.glob("*.png")} == stems
    assert {p.stem for p in out.glob("*.json")} == stems | {"similarity"}
    for path in out.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width == 1600
    read = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    assert read["path"]["goal"] == {"target": 14, "source": None}
    assert read["path"]["asr"]["value"] > 0.9
    cells = read["table19"]["table19"]
    distance = {(n, k): c["distance"]["value"] for n, row in cells.items() for k, c in row.items()}
    largest = distance.pop(("trojan", "target"))
    assert largest > 5 * max(distance.values())  # the order of TrojanZoo's Table 19
    left = read["path"]["path"]["silenced"]
    assert left["path"]["value"] < left["random"]["value"]
    curves = read["separation"]["separation"]
    assert curves["model"][2]["value"] > curves["against"][2]["value"]
    assert read["similarity"]["similarity"]["mmd"]["permutations"] == 19
    assert len(read["features"]["features"]["points"]) == 84 + 2 + 84


def test_without_captum_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared
) -> None:
    monkeypatch.setattr(analyzing, "available", lambda: False)
    few = InMemory(prepared.samples.images[:40], prepared.samples.labels[:40], 43)
    known = open_truth(TRUTH)
    plan = TriggerAnalysis(permutations=5, draws=1, method="pca")
    case = plan(prepared.subject, few, known.trigger, known.goal, Generator().manual_seed(0))
    assert case.attention is None
    lines = dict(cli_analyze.summary(case))
    assert lines["Grad-CAM"] == "left out: needs captum: run pip install 'gifthorse[explain]'"
    assert max(len(line) for line in lines.values()) <= 68


def scan_of(path: Path, trigger: Trigger | None) -> Path:
    """The JSON result of a scan that recovered this trigger for class 14, or none."""
    report, goal = backdoored(), Goal(14)
    first, verdict = report.verdicts
    (finding,) = verdict.findings
    kept: dict[str, torch.Tensor | float] = {}
    if trigger is not None:
        text = torch.tensor(list(packed(trigger, goal).encode()), dtype=torch.uint8)
        kept["pattern"], kept["mask"] = trigger.render()
        kept["packed"] = text
    found = replace(verdict, findings=(replace(finding, evidence=kept),))
    path.write_text(WRITERS["json"](replace(report, verdicts=(first, found))))
    return path


def test_the_very_trigger_of_a_scan_is_taken(tmp_path: Path, prepared: Prepared) -> None:
    """Additions between two steps of 8 bits are the same to a picture, but not to a net."""
    truth, rng = open_truth(TRUTH), Generator().manual_seed(0)
    x = prepared.samples[torch.arange(4)][0]
    for trigger in (truth.trigger, Additive((torch.rand(3, 32, 32, generator=rng) - 0.5) / 100)):
        path = scan_of(tmp_path / "scan.json", trigger)
        got = open_known(path)
        assert got.goal == Goal(14)
        assert type(got.trigger) is type(unpacked(packed(trigger, got.goal))[0])
        torch.testing.assert_close(got.trigger(x), trigger(x), atol=1e-6, rtol=0)
        repaired, goal = open_scan(path).recovered[0]  # what a repair unlearns
        assert torch.equal(got.trigger(x), repaired(x))
        assert got.goal == goal


def test_bad_triggers_are_named(tmp_path: Path, prepared: Prepared) -> None:
    subject = prepared.subject
    with pytest.raises(UsageError, match="recovered no trigger"):
        open_known(scan_of(tmp_path / "none.json", None))
    odd = tmp_path / "odd.json"
    for text in ("{", "[]", '{"findings": 1}', '{"findings": [{"trigger": {"image": "x"}}]}'):
        odd.write_text(text)
        with pytest.raises(UsageError, match=r"odd\.json is no result"):
            open_known(odd)
    small, claims = pack(Stamp().fixed((3, 8, 8), Generator().manual_seed(0)))
    goal = {"gifthorse": json.dumps({"goal": {"target": 14, "source": None}})}
    save_file(small, tmp_path / "small", claims | goal)
    with pytest.raises(ShapeMismatch, match="images of"):
        run("analyze", MODEL, "--images", IMAGES, "--trigger", tmp_path / "small", "-o", tmp_path)
    far = Truth(open_truth(TRUTH).trigger, Goal(43))
    with pytest.raises(ShapeMismatch, match="the net has 43 classes"):
        cli_analyze.fit(far, subject, TRUTH)


def test_bad_calls_are_named(prepared: Prepared) -> None:
    known = open_truth(TRUTH)
    few = InMemory(prepared.samples.images[:3], prepared.samples.labels[:3], 43)
    rng = Generator().manual_seed(0)
    with pytest.raises(BadImages, match="at least 4 needed"):
        TriggerAnalysis()(prepared.subject, few, known.trigger, known.goal, rng)
    other = Subject(prepared.subject.net, (3, 32, 32), 10)
    with pytest.raises(ShapeMismatch, match="to 10: they must agree"):
        TriggerAnalysis()(prepared.subject, few, known.trigger, known.goal, rng, against=other)


def net() -> Subject:
    return Subject(NETS["tiny"](43).eval(), (3, 32, 32), 43)


def lead(report: Report) -> Finding:
    return next(f for v in report.verdicts for f in v.findings)


def test_a_report_shows_where_the_net_looks() -> None:
    report = illustrated(backdoored(), net())
    found = lead(report)
    assert found.evidence.keys() - lead(backdoored()).evidence.keys() == {
        "looks_before",
        "looks_after",
        "attention_shift",
        "neuron_separation",
        "neuron_separation_chance",
    }
    plain, drawn = (WRITERS["html"](r) for r in (backdoored(), report))
    shown = found.evidence["looks_after"]
    assert isinstance(shown, torch.Tensor)
    assert drawn.count("<img") == plain.count("<img") + 3 * len(shown)
    assert "Looks at, with trigger" in drawn
    assert "Looks at" not in plain
    assert len(drawn) - len(plain) < 45_000
    told = json.loads(WRITERS["json"](report))["findings"][0]["evidence"]
    assert told["attention_shift"] == pytest.approx(found.evidence["attention_shift"])


def test_a_report_without_captum_or_maps_or_a_suspect_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 43))
    shown = illustrated(backdoored(), Subject(linear, (3, 32, 32), 43))
    assert lead(shown).evidence.keys() == lead(backdoored()).evidence.keys()
    calm = replace(
        backdoored(),
        verdicts=tuple(
            replace(v, findings=tuple(replace(f, severity="INFO") for f in v.findings))
            for v in backdoored().verdicts
        ),
    )
    assert illustrated(calm, net()) is calm
    monkeypatch.setattr(attribution, "available", lambda: False)
    shown = illustrated(backdoored(), net())
    assert lead(shown).evidence.keys() == lead(backdoored()).evidence.keys()


def test_a_gaze_is_small_and_brightest_where_the_net_looks() -> None:
    picture, looks = torch.rand(3, 96, 60), torch.zeros(96, 60)
    looks[72:, 40:] = 1
    got = gaze(picture, looks)
    assert got.shape == (3, 48, 30)
    assert 0 <= float(got.min()) <= float(got.max()) <= 1
    assert float(got[:, 37:, 21:].mean()) > 0.7
    assert torch.equal(got[0, :35, :19], got[1, :35, :19])  # gray elsewhere
