"""A scan that asks for a signature: told in every format if it holds, refused if it does not."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.handlers import own_handlers

from gifthorse.bench.scanning import jobs_of
from gifthorse.cli import app as cli
from gifthorse.report import WRITERS, exit_code
from gifthorse.report.reading import checked
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import Request, scan

pytest.importorskip("model_signing", reason="needs gifthorse[signing]")

from tests.models.signers import Pair

GIFT = Path(__file__).parents[2] / "examples" / "gift"
IMAGES = str(GIFT / "clean.npz")
QUICK = Request(detectors=("weight_signature",))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("keys"), "author")


@pytest.fixture
def model(tmp_path: Path, pair: Pair) -> Path:
    (tmp_path / "model").mkdir()
    model = tmp_path / "model" / "twin.safetensors"
    shutil.copy(GIFT / "twin.safetensors", model)
    pair.sign(model.parent, model.parent / "model.sig")
    return model


def test_a_verified_signature_stands_in_every_report(model: Path, pair: Pair) -> None:
    report = scan(str(model), Inputs(IMAGES, device="cpu", signer=pair.public), QUICK)
    assert report.origin.signer is not None
    words, key = report.origin.signer.words, report.origin.signer.key
    assert words == f"signed by the holder of the key SHA-256 {key}; the file that model.sig " + (
        "covers matches"
    )
    for form in ("text", "html"):
        assert words in re.sub(r"\s+", " ", WRITERS[form](report)), form
    told = json.loads(WRITERS["json"](report))
    assert told["target"]["signer"] == {"key": key, "signature": "model.sig", "files": 1}
    assert words in told["target"]["notes"]
    sarif = json.loads(WRITERS["sarif"](report))["runs"][0]["artifacts"][0]
    assert sarif["description"]["text"] == words
    assert sarif["properties"]["signer"] == key
    assert checked(told).target.signer == report.origin.signer
    del told["target"]["signer"]  # as versions before wrote it
    assert checked(told).target.signer is None


def test_what_is_not_signed_is_not_scanned(model: Path, pair: Pair) -> None:
    with model.open("r+b") as file:
        file.seek(300_000)
        file.write(b"\0")
    report = scan(str(model), Inputs(IMAGES, device="cpu", signer=pair.public), QUICK)
    assert (report.label, exit_code(report)) == ("NOT SCANNED", 2)
    assert [(c.rule, c.severity) for c in report.checks] == [("FS010", "HIGH")]
    assert report.origin.signer is None
    assert report.origin.sha256
    (found,) = json.loads(WRITERS["sarif"](report))["runs"][0]["results"]
    assert (found["ruleId"], found["level"]) == ("FS010", "error")


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["gifthorse", *arguments])
    with own_handlers(), pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), re.sub(r"\s+", " ", out + err)


def test_commands_take_the_key(
    model: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ("--signer-key", str(pair.public))

    def run(*arguments: str) -> tuple[int, str]:
        return said(monkeypatch, capsys, *arguments)

    code, words = run("inspect", str(model), *key)
    assert code == 0
    assert "the file that model.sig covers matches" in words
    code, words = run("inspect", "hf:org/name", *key)
    assert code == 4
    assert "hf download ORG/NAME --local-dir DIR" in words
    code, words = run("scan", "hf:org/name", "--images", IMAGES, *key)
    assert (code, "hf download" in words) == (4, True)
    code, words = run("scan", str(model), "--images", IMAGES, "--signer-key", str(pair.private))
    assert code == 4
    assert "takes a public key in PEM" in words
    (model.parent / "model.sig").unlink()
    code, words = run("inspect", str(model), *key)
    assert code == 1
    assert "FS010 HIGH, signature missing or not valid: no signature lies beside it" in words
    asked = (str(model), "--images", IMAGES, "--device", "cpu", *key)
    for command in (
        ("filter", IMAGES, "--model", *asked),
        ("repair", *asked, "-o", str(model.with_name("out.safetensors"))),
        ("compare-triggers", *asked, "--classes", "0"),
        ("scan", *asked, "--detector", "weight_signature"),
        ("scan", *asked, "--detector", "weight_signature", "--executor", "serial"),
    ):
        code, words = run(*command)
        assert (code, "no signature lies beside it" in words) == (2, True), command
    assert not model.with_name("out.safetensors").exists()


def test_what_was_kept_of_a_scan_is_of_its_key_and_its_signature(
    model: Path, pair: Pair, tmp_path: Path
) -> None:
    def key(signer: Path | None) -> Any:
        inputs = Inputs(IMAGES, device="cpu", signer=signer)
        return jobs_of([str(model)], inputs, QUICK, ((),))[0].key

    keys = [key(None), key(pair.public)]
    other = Pair(tmp_path, "other")
    keys.append(key(other.public))
    (model.parent / "model.sig").unlink()
    keys.append(key(pair.public))
    pair.public.write_bytes(other.public.read_bytes())
    keys.append(key(pair.public))
    assert len(set(keys)) == len(keys)
