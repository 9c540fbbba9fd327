"""The command line in process: what it prints, how it fails, what it exits with."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.handlers import own_handlers

from gifthorse import __version__
from gifthorse.attacks import ATTACKS
from gifthorse.cli import app as cli
from gifthorse.cli import catalog
from gifthorse.core.errors import Halted, UsageError
from gifthorse.detection import BESIDE, DETECTORS, PRESETS, SECOND
from gifthorse.inversion import INVERTERS
from gifthorse.report.words import RULES
from gifthorse.search import Search
from gifthorse.workflows import scan as scanning
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import Request, chosen, further

GIFT = Path(__file__).parents[2] / "examples" / "gift"
REFUSED = 2  # NOT SCANNED: an unreadable or hostile file is an error
MODEL, IMAGES = str(GIFT / "gift.safetensors"), str(GIFT / "clean.npz")


@dataclass(frozen=True)
class Ran:
    """What a command left: status, standard output, and both streams with single spaces."""

    code: int
    out: str
    words: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["gifthorse", *arguments])
        with own_handlers(), pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        code = stopped.value.code
        assert code is None or isinstance(code, int)
        return Ran(code or 0, out, " ".join(out.split()), " ".join(err.split()))

    return call


# 1. Without a model ---------------------------------------------------------------------------


def test_version(run: Run) -> None:
    assert run("--version").out == f"gifthorse {__version__}\n"


def test_help_names_every_command(run: Run) -> None:
    words = run("--help").words
    makes = ("sample", "train", "attack", "repair", "filter", "analyze", "bench")
    for command in ("scan", "inspect", "list", "explain", "compare-triggers", *makes):
        assert f" {command} " in words


@pytest.mark.parametrize("kind", sorted(catalog.KINDS))
def test_list_prints_every_name_of_a_kind(run: Run, kind: str) -> None:
    ran = run("list", kind)
    lines = ran.out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert (ran.code, names) == (0, sorted(catalog.KINDS[kind]))
    assert max(map(len, lines)) <= 80


def test_an_unknown_name_is_answered_with_each_known_one_once(run: Run) -> None:
    known = run("explain", "zzzzzz").err.strip().split("known: ")[1].split(", ")
    assert len(known) == len(set(known))


@pytest.mark.parametrize("name", sorted({*ATTACKS, *DETECTORS, *INVERTERS}))
def test_explain_gives_source_and_options_of_every_method(run: Run, name: str) -> None:
    ran = run("explain", name)
    assert ran.code == 0
    assert ran.out.startswith(f"{name} (")
    assert "Source: " in ran.out
    assert "Options (--set NAME=VALUE):" in ran.out


def test_explain_says_what_inner_options_mean(run: Run) -> None:
    ran = run("explain", "badnet")
    assert "Side of the square, in pixels" in ran.out
    assert "Passes over the training set." in ran.out
    assert "[at least 1] Side of the square" in ran.out
    assert "\n      [pca or ica]\n" in run("explain", "activation_clustering").out
    assert max(len(line) for line in ran.out.splitlines()) <= 100


def test_explain_prints_defaults_and_rules(run: Run) -> None:
    defaults = [line.split() for line in run("explain", "badnet").out.splitlines()]
    assert ["mixing.rate", "0.01"] in defaults
    assert run("explain", "BD001").out == f"BD001: {RULES['BD001']}\n"


UNKNOWN = [
    (("list", "detectrs"), "no kind is called 'detectrs': did you mean detectors?"),
    (("explain", "pixel_quik"), "no method or rule is called 'pixel_quik': did you mean"),
    (("explain", "pixel_quik"), "pixel_quick"),
    (("scan", MODEL, "--images", IMAGES, "--detector", "pixl"), "no detector is called 'pixl'"),
    (("scan", MODEL, "--images", IMAGES, "--detector", "pixl"), "did you mean pixel"),
    (("scan", MODEL, "--images", IMAGES, "--preset", "quik"), "no preset is called 'quik'"),
    (("scan", MODEL, "--images", IMAGES, "--preset", "quik"), "did you mean quick?"),
    (("scan", MODEL, "--images", IMAGES, "--preset", "paranoid"), "quick, standard, thorough"),
    (("scan", MODEL, "--images", IMAGES, "--arch", "resnt20"), "did you mean resnet20"),
    (("scan", MODEL, "--images", IMAGES, "-f", "htm"), "did you mean html?"),
    (
        ("attack", "badnett", "--data", "gtsrb", "--net", "tiny", "-o", "x.safetensors"),
        "no attack is called 'badnett': did you mean badnet",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), UNKNOWN)
def test_unknown_names_are_answered_with_near_ones(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (4, "")
    assert "gifthorse: " in ran.err  # behind what a slow machine says of its progress
    assert message in ran.err


# 2. Flags -------------------------------------------------------------------------------------

FLAGS = [
    (("--normalize", "foo"), "--normalize takes auto, none, imagenet"),
    (("--normalize", "0.5/0"), "got '0.5/0'"),
    (("--input-size", "32"), "--input-size takes HxW such as 32x32; got '32'"),
    (("--set", "rounds"), "--set takes NAME=VALUE; got 'rounds'"),
    (("--set", "treshold=2"), "Inspector has no option treshold: did you mean threshold?"),
    (("--set", "threshold=high"), "option threshold of Inspector cannot be 'high'"),
    (("--fail-on", "always"), "--fail-on takes backdoored, suspicious, inconclusive"),
    (("--out", "html"), "--out takes FORMAT=PATH such as html=report.html; got 'html'"),
    (
        ("--out", "pdf=x.pdf"),
        "no format is called 'pdf': known: csv, cyclonedx, github, html, json",
    ),
    (("--out", "html=no/such/folder/x.html"), "its folder does not exist"),
    (("--time-limit", "soon"), "--time-limit takes a time such as 90, 90s, 10m or 1h; got 'soon'"),
    (("--time-limit", "10 days"), "got '10 days'"),
    (("--time-limit", "0"), "got '0'"),
    (("--time-limit", "-5"), "got '-5'"),
    (("--budget", "0"), "--budget takes 1 image-step or more; got 0"),
    (("--classes", "0,x"), "--classes takes numbers and ranges such as 0,3,7-9; got '0,x'"),
    (("--classes", "9-7"), "got '9-7'"),
    (("--classes", "0-99999999999"), "got '0-99999999999'"),
    (("--classes", "0,1"), "classes must name three or more of 0 to 42"),
    (("--classes", "40-43"), "or a class has nothing to stand out from; got 40, 41, 42, 43"),
    (("--resume", IMAGES), f"--resume takes a folder; {IMAGES}"),
    (("--limit", "0"), "limit must be 1 or more; got 0"),
    (("--images", "nowhere"), "'nowhere' is no file or folder, and no packed data set"),
    (("--images", "{empty}"), "no usable image in {empty}: it is empty"),
]


@pytest.mark.parametrize(("arguments", "message"), FLAGS)
def test_a_wrong_flag_is_named_with_what_it_takes(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    empty = str(tmp_path)
    ran = run("scan", MODEL, "--images", IMAGES, *(a.replace("{empty}", empty) for a in arguments))
    assert (ran.code, ran.out) == (4, "")
    # A long path is folded by columns, so spaces do not count.
    assert "".join(message.replace("{empty}", empty).split()) in "".join(ran.err.split())


def test_two_models_do_not_write_one_file(run: Run) -> None:
    ran = run("scan", MODEL, MODEL, "--images", IMAGES, "-o", "json=x.json")
    assert ran.code == 4
    assert "2 models would write x.json: put {name} into the path" in ran.err


def test_formats_that_hold_many_models_take_them_all(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    models = (str(tmp_path / "empty.pt"), MODEL, str(tmp_path / "none.pt"))
    outs = [f"sarif={tmp_path}/all.sarif", f"csv={tmp_path}/all.csv", f"md={tmp_path}/{{name}}.md"]
    flags = [flag for out in outs for flag in ("-o", out)]
    ran = run("scan", *models, "--images", IMAGES, "--limit", "1", "-f", "github", *flags)
    assert ran.code == 2
    lines = ran.out.splitlines()
    assert [line.split("title=")[1].split("%3A")[0].split("::")[0] for line in lines] == [
        "NOT SCANNED", "INCONCLUSIVE", "ERROR",
    ]  # fmt: skip
    assert "see the messages of the run" in lines[2]
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == list(models)
    (sarif,) = json.loads((tmp_path / "all.sarif").read_text())["runs"]
    assert [i["exitCode"] for i in sarif["invocations"]] == [2, 3, 2]
    assert {p.name for p in tmp_path.glob("*.md")} == {"empty.md", "gift.md"}
    same = run("scan", *models, "--images", IMAGES, "-o", f"csv={models[0]}")
    assert (same.code, "would replace" in same.err) == (4, True)


def test_an_interrupted_run_writes_what_it_has(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pt").touch()
    whole = scanning.scan

    def once(path: str, *rest: Any) -> Any:
        if path == MODEL:
            raise KeyboardInterrupt
        return whole(path, *rest)

    monkeypatch.setattr(scanning, "scan", once)
    out = f"csv={tmp_path}/all.csv"
    ran = run("scan", str(tmp_path / "empty.pt"), MODEL, "--images", IMAGES, "-o", out)
    assert ran.code == 130
    rows = (tmp_path / "all.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rows[1:]] == ["NOT SCANNED", "ERROR"]


# 3. Inputs that no verdict can come of --------------------------------------------------------


class Touch:
    """Pickled, it is a command that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def scanned(run: Run, model: str | Path, *flags: str) -> Ran:
    return run("scan", str(model), "--images", IMAGES, *flags)


def test_a_path_that_is_not_there(run: Run) -> None:
    ran = scanned(run, "no.pt")
    assert ran.code == 4
    assert ran.err == "gifthorse: there is no file 'no.pt': check the path"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty: the download failed, or nothing was saved"),
        (b"Dear reader,\n" * 9, "the file is not a model; expected safetensors or a state dict"),
        (b"<!DOCTYPE html>" * 9, "it is a web page: the download failed"),
        (b"PK\x03\x04" + bytes(99), "the file is truncated, or something was appended"),
    ],
)
def test_a_file_that_is_no_model(run: Run, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    ran = scanned(run, path)
    assert ran.code == REFUSED
    assert "NOT SCANNED" in ran.words
    assert "NO BACKDOOR" not in ran.words
    assert "FS003" in ran.words
    assert message in ran.words


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare pickle", "torch.save"])
def test_a_pickle_that_would_run_a_command_is_named_and_not_run(
    run: Run, tmp_path: Path, wrapped: bool
) -> None:
    path, marker = tmp_path / "model.pt", tmp_path / "ran"
    if wrapped:
        torch.save({"weight": Touch(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Touch(marker)))
    ran = scanned(run, path)
    assert ran.code == REFUSED
    assert "NOT SCANNED" in ran.words
    assert "FS001" in ran.words
    assert "the file would run code when opened: it asks for posix.system" in ran.words
    looked = run("inspect", str(path))
    assert looked.code == 1
    assert "dangerous: opening it as usual would run commands" in looked.words
    assert "asks for dangerous: posix.system" in looked.words
    assert "Do not open this file with torch.load or pickle" in looked.words
    assert not marker.exists()


def test_a_whole_pickled_model_without_weights_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.ReLU(), path)
    ran = scanned(run, path)
    assert ran.code == REFUSED
    assert "FS002" in ran.words
    assert "the file holds a whole pickled model, not weights alone" in ran.words
    assert 'save_file(model.state_dict(), "weights.safetensors")' in ran.words


def test_a_wrong_architecture_names_the_nearest(run: Run) -> None:
    ran = scanned(run, MODEL, "--arch", "resnet20")
    assert ran.code == REFUSED
    assert "NOT SCANNED" in ran.words
    assert "the file's tensors do not fit resnet20" in ran.words
    assert "Nearest: tiny (100% of names: fits)" in ran.words


def test_a_wrong_normalization_is_inconclusive(run: Run, tmp_path: Path) -> None:
    ran = scanned(run, MODEL, "--normalize", "none", "-o", f"json={tmp_path / 'r.json'}")
    assert ran.code == 3
    assert "INCONCLUSIVE With normalize=none the clean accuracy is" in ran.words
    assert "with normalize=gtsrb: the normalization is wrong" in ran.words
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["verdict"]["label"] == "INCONCLUSIVE"
    assert (result["partial"], result["exit_code"]) == (True, 3)


def test_fail_on_inconclusive_and_exit_zero(run: Run) -> None:
    few = ("--limit", "1", "--fail-on", "inconclusive")
    assert scanned(run, MODEL, *few).code == 1
    assert scanned(run, MODEL, *few, "--exit-zero").code == 0


def test_one_image_is_inconclusive_and_scan_may_be_left_out(run: Run, tmp_path: Path) -> None:
    with np.load(IMAGES) as whole:
        np.savez(tmp_path / "one.npz", images=whole["images"][:1], labels=whole["labels"][:1])
    ran = run(MODEL, "--images", str(tmp_path / "one.npz"))
    assert ran.code == 3
    assert "INCONCLUSIVE Only 1 clean image: at least 10" in ran.words


@pytest.mark.slow
def test_a_scan_takes_a_thousand_images_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    with np.load(IMAGES) as whole:
        shape = whole["images"].shape[1:]
    noise = np.random.default_rng(0).integers(256, size=(1010, *shape), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", images=noise, labels=np.arange(1010) % 43)
    ran = run("scan", MODEL, "--images", str(tmp_path / "many.npz"))
    assert ran.code == 3  # noise is not recognized
    assert "1,000 of 1,010 images taken, evenly over the classes" in " ".join(ran.words.split())


def test_images_of_too_many_classes_are_refused(run: Run, tmp_path: Path) -> None:
    with np.load(IMAGES) as whole:
        np.savez(tmp_path / "off.npz", images=whole["images"], labels=whole["labels"] + 1)
    ran = run("scan", MODEL, "--images", str(tmp_path / "off.npz"))
    assert ran.code == 4
    assert "the labels go up to 43, but the model has 43 classes (0 to 42)" in ran.err


def test_nan_weights_are_inconclusive_and_named(run: Run, tmp_path: Path) -> None:
    state = load_file(MODEL)
    name = next(n for n in state if n.endswith("weight"))
    state[name].view(-1)[0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    ran = scanned(run, tmp_path / "nan.safetensors")
    assert ran.code == 3
    assert (
        f"INCONCLUSIVE 1 tensors hold NaN, infinite weights or negative variances: {name}"
        in ran.words
    )
    assert "FS005" in ran.words


def test_the_gravest_status_of_several_models_wins(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    few = ("--limit", "1", "--fail-on", "inconclusive")
    ran = run("scan", str(tmp_path / "empty.pt"), MODEL, "--images", IMAGES, *few)
    assert ran.code == 1


@pytest.mark.parametrize(
    "executor",
    ["serial", pytest.param("pool", marks=pytest.mark.slow)],  # processes of their own
)
def test_many_models_end_in_one_table_and_one_json(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_text(f"no model {name}")
    (tmp_path / "list").write_text("# mine\nb.pt\n\ngone.pt\na.pt\n")
    given = ("--images", IMAGES, "--executor", executor, "--resume", "state")
    ran = run(
        "scan", "a.pt", "--from", "list", *given, "-o", "json=all.json", "-o", "json={name}.json"
    )
    assert ran.code == 2
    assert "3 models: 2 NOT SCANNED, 1 ERROR" in ran.words
    assert "there is no file 'gone.pt'" in ran.words
    told = json.loads((tmp_path / "all.json").read_text())
    assert [Path(s["target"]["path"]).name for s in told["scans"]] == ["a.pt", "b.pt", "gone.pt"]
    assert told["scans"][0] == json.loads((tmp_path / "a.json").read_text())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a.pt\n")))
    ran = run("scan", "--from", "-", *given, "-f", "json")
    assert json.loads(ran.out)["scans"] == told["scans"][:1]  # what was kept


LISTED = "models.txt"


def test_more_jobs_than_models_and_a_list_as_editors_save_it_are_fine(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_text("no model")
    (tmp_path / LISTED).write_bytes(b"\xef\xbb\xbfa.pt\r\n")
    (tmp_path / "images" / "0").mkdir(parents=True)
    (tmp_path / "images" / "0" / "gone.png").symlink_to("nowhere")
    many = ("--executor", "serial", "--jobs", "1" + "0" * 30)
    ran = run("scan", "--from", LISTED, "--images", "images", *many, "-o", "json=all")
    assert ran.code == 2
    assert "1 model: 1 NOT SCANNED" in ran.words
    assert len(json.loads((tmp_path / "all").read_text())["scans"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "nowhere"), "--from takes a text file of paths"),
        (("--from", MODEL), "--from takes a text file of paths"),
        (("--jobs", "2"), "there is no model to scan"),
        ((), "there is no model to scan"),
        ((MODEL, "--jobs", "2", "--truth", "t"), "--truth is of one model"),
        ((MODEL, "--jobs", "2", "-f", "html"), "of many models the format is text"),
        ((MODEL, "b.pt", "--jobs", "2", "-o", "html=a.html"), "put {name} into the path"),
        ((MODEL, "--executor", "magic"), "magic"),
        (("--from", LISTED, "-o", f"json={LISTED}"), "would replace a file of"),
        (("--from", LISTED, "-o", "json=x", "-o", "sarif=./x"), "two reports would be written"),
        ((MODEL, "--input-size", "²x²"), "--input-size takes HxW"),
        ((MODEL, "--input-size", f"{'1' * 5000}x3"), "--input-size takes HxW"),
    ],
)
def test_what_cannot_be_asked_of_many_models_is_said(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / LISTED).write_text(MODEL)
    ran = run("scan", *arguments, "--images", IMAGES)
    assert ran.code == 4
    assert words in ran.err


# 4. Limits, and going on ----------------------------------------------------------------------

SHORT: tuple[str, ...] = (
    "--detector",
    "neural_cleanse",
    "--classes",
    "12-14",
    "--normalize",
    "gtsrb",
)
SHORT += ("--set", "inverter.config.rounds=8", "--set", "inverter.config.success_threshold=0.2")
SHORT += ("--set", "inverter.config.steps=0", "--set", "inverter.config.min_steps=0")
SHORT += ("--set", "inverter.warmup=0", "--set", "inverter.initial=0.02", "--set", "diffuse=0.9")


def result(run: Run, folder: Path, *flags: str) -> tuple[Ran, dict[str, Any]]:
    ran = scanned(run, MODEL, *SHORT, *flags, "-o", f"json={folder / 'result.json'}")
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return ran, loaded


def rows(got: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all detectors' tables."""
    return [arm for detector in got["detectors"] for arm in detector["arms"]]


def test_a_scan_over_its_limit_goes_on_with_the_same_command(run: Run, tmp_path: Path) -> None:
    ran, whole = result(run, tmp_path)
    assert (ran.code, whole["verdict"]["label"]) == (0, "NO BACKDOOR FOUND")
    folder = tmp_path / "made" / "state"
    resume = ("--resume", str(folder), "--time-limit", "0.001")
    for rounds in (1, 2):
        ran, part = result(run, tmp_path, *resume)
        assert (ran.code, part["verdict"]["label"], part["partial"]) == (3, "INCONCLUSIVE", True)
        assert {row["rounds"] for row in rows(part)} == {rounds}
        assert "the time limit of 0.001 s is reached" in part["verdict"]["reason"]
        assert part["verdict"]["next_steps"][0].startswith("Go on where it stopped: gifthorse scan")
        assert " ".join(resume) in part["verdict"]["next_steps"][0]
        assert "what neural_cleanse finds in more rounds: a limit stopped it" in ran.words
        digest = part["target"]["sha256"][:12]
        names = [path.name for path in folder.iterdir()]
        assert names == [f"{digest}-neural_cleanse.safetensors"]
    (folder / "another.safetensors").touch()
    ran, end = result(run, tmp_path, *resume[:2])
    assert (ran.code, end["verdict"]["label"]) == (0, "NO BACKDOOR FOUND")
    assert rows(end) == rows(whole)
    steps = whole["detectors"][0]["image_steps"]
    assert end["detectors"][0]["image_steps"] == pytest.approx(steps, abs=2)  # kept in whole steps
    assert f"{round(end['detectors'][0]['image_steps']):,} image-steps" in ran.words
    assert [path.name for path in folder.iterdir()] == ["another.safetensors"]


def test_a_detector_that_did_not_get_its_turn_is_named(run: Run, tmp_path: Path) -> None:
    ran, part = result(run, tmp_path, "--detector", "neural_cleanse_quick", "--budget", "200")
    assert (ran.code, part["verdict"]["label"]) == (3, "INCONCLUSIVE")
    assert [d["method"] for d in part["detectors"]] == ["neural_cleanse"]
    message = "neural_cleanse_quick did not run: the budget of 200 image-steps is spent."
    assert [c["message"] for c in part["checks"]] == [message]
    missing = part["verdict"]["not_covered"]
    assert "what neural_cleanse_quick looks for: it did not run" in missing
    assert "target classes other than 12-14" in missing
    first = part["verdict"]["next_steps"][0]
    assert first.startswith("Raise the limit, or scan with --resume DIR")


def test_pairs_are_searched_and_then_covered(run: Run, tmp_path: Path) -> None:
    _, got = result(run, tmp_path, "--pairs", "--set", "inverter.config.rounds=1")
    goals = [(row["goal"]["target"], row["goal"]["source"]) for row in rows(got)]
    assert goals == [(t, s) for t in (12, 13, 14) for s in range(43) if s != t]
    first, second = got["verdict"]["not_covered"][:2]
    assert first == "target classes other than 12-14"
    assert second.endswith("126 of 1,806 pairs were searched")  # 3 targets with 42 sources each


@pytest.mark.parametrize(("flag", "value"), [("--pairs", ()), ("--classes", ("1-5",))])
def test_a_flag_that_no_detector_knows_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, flag: str, value: tuple[str, ...]
) -> None:
    @dataclass(frozen=True)
    class Deaf:
        """A detector without these options."""

    monkeypatch.setitem(DETECTORS, "deaf", Deaf())
    ran = scanned(run, MODEL, "--detector", "deaf", flag, *value)
    assert ran.code == 4
    assert f"{flag} means nothing to deaf: leave it away" in ran.err


def test_a_preset_is_what_runs_without_detector() -> None:
    for preset, names in PRESETS.items():
        assert tuple(chosen(Request(preset=preset))) == names
    assert tuple(chosen(Request())) == PRESETS["standard"]
    named = Request(preset="thorough", detectors=("pixel",))
    assert chosen(named) == {"pixel": DETECTORS["pixel"]}


def test_only_the_default_as_it_was_calibrated_asks_a_second_detector() -> None:
    assert list(further(Request(), BESIDE)) == ["mm_bd_quick"]
    assert list(further(Request(), SECOND)) == ["neural_cleanse_quick"]
    changes: tuple[dict[str, Any], ...] = (
        {"preset": "quick"},
        {"preset": "thorough"},
        {"detectors": ("pixel_quick",)},
        {"options": {"threshold": "2"}},
        {"classes": (1, 2, 3, 4)},
        {"pairs": True},
    )
    for change in changes:
        assert further(Request(**change), SECOND) == {}


def test_flags_reach_the_request(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Request] = []

    def ask(path: str, inputs: Inputs, request: Request, progress: object) -> None:
        assert inputs == Inputs(IMAGES, device="cpu")
        asked.append(request)
        raise UsageError("enough")

    monkeypatch.setattr(scanning, "scan", ask)
    limits = ("--time-limit", "2m", "--budget", "9", "--resume", str(tmp_path))
    flags = ("--device", "cpu", "--preset", "quick", "--classes", "1-4", "--pairs", *limits)
    assert scanned(run, MODEL, *flags).code == 4
    command = shlex.join(["gifthorse", "scan", MODEL, "--images", IMAGES, *flags])
    assert asked == [
        Request(
            preset="quick",
            classes=(1, 2, 3, 4),
            pairs=True,
            time_limit=120.0,
            budget=9,
            resume=tmp_path,
            command=command,
        )
    ]


def test_ctrl_c_keeps_the_search_and_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, step = tmp_path / "state", Search.step

    def pressed(self: Search, arms: torch.Tensor, /) -> None:
        if int(self.rounds.max()) == 1:
            signal.raise_signal(signal.SIGINT)  # in the middle: the step is left at its next batch
        step(self, arms)

    monkeypatch.setattr(Search, "step", pressed)
    ran = scanned(run, MODEL, *SHORT, "--resume", str(folder))
    assert (ran.code, ran.out) == (130, "")
    said = "".join(ran.err.split())
    assert f"thesearchiskeptin{folder}.Goonwith:gifthorsescan" in said
    (kept,) = folder.iterdir()
    state = torch.load(io.BytesIO(load_file(kept)["run"].numpy().tobytes()), weights_only=True)
    assert state["rounds"].tolist() == [1, 1, 1]  # what was left in the middle is put back
    ran = scanned(run, MODEL, *SHORT)
    assert ran.code == 130
    assert ran.err.endswith("gifthorse: interrupted; nothing was written for the file at hand")


def test_what_a_search_left_is_kept_however_it_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, step = tmp_path / "state", Search.step
    ends: list[BaseException] = [Halted("the time is over"), RuntimeError("out of luck")]

    def ended(self: Search, arms: torch.Tensor, /) -> None:
        if ends and int(self.rounds.max()) == 1:
            raise ends.pop(0)
        step(self, arms)

    monkeypatch.setattr(Search, "step", ended)
    monkeypatch.chdir(tmp_path)  # where the record of an error goes
    for said in ((3, "INCONCLUSIVE"), (2, "ERROR")):
        ran, loaded = result(run, tmp_path, "--resume", str(folder))
        assert (ran.code, loaded["verdict"]["label"]) == said
        assert len(list(folder.glob("*.safetensors"))) == 1
    ran, loaded = result(run, tmp_path, "--resume", str(folder))
    assert loaded["verdict"]["label"] not in ("INCONCLUSIVE", "ERROR")
    assert not list(folder.glob("*.safetensors"))


# 5. inspect -----------------------------------------------------------------------------------


def test_inspect_describes_a_good_file(run: Run) -> None:
    ran = run("inspect", MODEL)
    state = load_file(MODEL)
    numbers = sum(t.numel() for t in state.values())
    assert ran.code == 0
    assert "safety weights only: nothing in it can run" in ran.words
    assert f"tensors {len(state)} with {numbers:,} numbers (float32, int64)" in ran.words
    assert "network tiny, guessed from 32 tensors: 43 classes, 3 input channels" in ran.words
    assert "description: BACKDOORED test model made by gifthorse" in ran.words
    assert "gifthorse scan" in ran.words
    assert max(map(len, ran.out.splitlines())) <= 80


def test_inspect_cleans_what_a_file_claims(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    claims = {"name": "\x1b[2J\x1b]0;owned\x07[red]ok[/red] \u202edrowssap " + "x" * 5000}
    save_file({"odd.weight": torch.zeros(2)}, path, metadata=claims)
    ran = run("inspect", str(path))
    assert ran.code == 0
    assert all(c.isprintable() or c == "\n" for c in ran.out)
    assert "[red]ok[/red] " in ran.words
    assert "x" * 300 not in "".join(ran.out.split())
    assert "no known architecture fits" in ran.words
    assert "--arch NAME" in ran.words
    assert max(map(len, ran.out.splitlines())) <= 80


def test_inspect_shows_a_few_of_many_claims(run: Run, tmp_path: Path) -> None:
    claims = {f"key{i}": "value" for i in range(50)}
    save_file({"odd.weight": torch.zeros(2)}, tmp_path / "m.safetensors", metadata=claims)
    words = run("inspect", str(tmp_path / "m.safetensors")).words
    assert words.count(": value") == 8
    assert "and 42 more" in words


def test_inspect_lists_wrappers_and_what_was_left_aside(run: Run, tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in load_file(MODEL).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "model.pt")
    words = run("inspect", str(tmp_path / "model.pt")).words
    assert "format pytorch" in words
    assert "wrapped in state_dict" in words
    assert "left aside: 'epoch' (int)" in words
    assert "stripped the prefix 'module.' from all names" in words
    assert "network tiny, guessed" in words
    assert "harmless: torch.FloatStorage" in words


def test_inspect_of_nothing(run: Run) -> None:
    assert run("inspect", "no.pt").code == 4
