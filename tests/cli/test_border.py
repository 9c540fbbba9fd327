"""What nobody foresaw: raised in every package, it is a sentence, a file and exit status 2."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from tests.handlers import own_handlers

from gifthorse.cli import app, border
from gifthorse.cli.scan import gravest
from gifthorse.core.signals import held

ROOT = Path(__file__).parents[2]
GIFT = ROOT / "examples" / "gift"
MODEL, IMAGES = str(GIFT / "gift.safetensors"), str(GIFT / "clean.npz")
QUICK: tuple[str, ...] = ("--detector", "pixel_quick", "--set", "inverter.config.rounds=1")
QUICK += ("--set", "inverter.config.min_rounds=1", "--limit", "43")

# One place in each package that a scan goes through, and what a report is written with.
LAYERS = [
    "gifthorse.models.architectures.build",
    "gifthorse.models.reading.isolation.read",
    "gifthorse.models.normalize.Classifier.forward",
    "gifthorse.data.readers.as_pixels",
    "gifthorse.workflows.opening.prepare",
    "gifthorse.workflows.prepare.predict",
    "gifthorse.workflows.scan.detect",
    "gifthorse.workflows.detect.spawn",
    "gifthorse.detection.inspector.Inspector.__call__",
    "gifthorse.inversion.pixel.PixelBackdoor._form",
    "gifthorse.search.loop.Search.step",
    "gifthorse.search.run._portions",
    "gifthorse.core.run.Run.report",
    "gifthorse.report.render",
    "gifthorse.report.json.collect",
    "gifthorse.cli.scan.bar",
]
ERRORS = [RuntimeError("odd \x1b[31m"), MemoryError(), SystemExit(0), RecursionError("deep")]
EVERY = [
    pytest.param(place, error, marks=() if quick else pytest.mark.slow)
    for place in LAYERS
    for error in ERRORS
    for quick in [(place, error) in [(LAYERS[0], ERRORS[0]), (LAYERS[6], ERRORS[2])]]
]


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status and both streams, in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["gifthorse", *arguments]
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        own_handlers(),
        pytest.raises(SystemExit) as stopped,
    ):
        app.main()
    sys.argv = before
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out.getvalue(), " ".join(err.getvalue().split())


@pytest.mark.parametrize(("place", "error"), EVERY)
def test_an_error_in_any_layer_is_status_2(
    place: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*args: object, **options: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, raises)
    status, out, said = run("scan", MODEL, "--images", IMAGES, *QUICK, "-o", "json=r.json")
    assert status == border.ERROR
    assert "ERROR" in said
    assert "Traceback" not in out + said
    assert "\x1b" not in said
    (log,) = tmp_path.glob("gifthorse-error-*.log")
    assert log.name in said
    assert "command: gifthorse scan" in log.read_text()
    assert "raises" in log.read_text()  # where it happened


def test_the_next_model_is_scanned_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gifthorse.models import load as whole

    asked: list[str] = []

    def once(path: str, *more: Any, **named: Any) -> object:
        asked.append(path)
        if len(asked) == 1:
            raise AssertionError("nobody thought of that")
        return whole(path, *more, **named)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gifthorse.workflows.scan.load", once)
    models = (f"{tmp_path}/gone.pt", MODEL, "no.pt", MODEL)
    (tmp_path / "gone.pt").touch()
    status, out, said = run("scan", *models, "--images", IMAGES, "--limit", "1", "-f", "json")
    assert (status, len(asked)) == (2, 4)
    assert "nobody thought of that" in said
    assert "no.pt: there is no file" in said
    assert out.count('"schema_version"') == 3
    assert '"label": "ERROR"' in out


@pytest.mark.parametrize(
    ("codes", "worst"),
    [(set(), 0), ({0}, 0), ({0, 3}, 3), ({3, 4}, 4), ({4, 2, 3}, 2), ({0, 1, 2, 4}, 1),
     ({1, -1}, 2)],
)  # fmt: skip
def test_a_finding_comes_before_every_error(codes: set[int], worst: int) -> None:
    assert gravest(codes) == worst


def test_a_report_that_cannot_be_written_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gifthorse.core.atomic.os.fsync", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target = tmp_path / "out" / "r.json"
    few = ("--limit", "1", "--fail-on", "inconclusive")
    status, _, said = run("scan", MODEL, "--images", IMAGES, *few, "-o", f"json={target}")
    assert status == 2  # not 1, whatever was found: there is no report where it should be
    assert "No space left on device; it is kept in" in said
    (kept,) = tmp_path.glob("gifthorse-*/r.json")
    assert json.loads(kept.read_text())["verdict"]["label"] == "INCONCLUSIVE"
    assert not target.exists()


@pytest.mark.parametrize(
    ("outs", "models", "words"),
    [
        (["json={name}.json"], ["a/m.pt", "b/m.pt"], "two reports of a/m.pt and b/m.pt would be"),
        (["json=r", "html=r"], ["a/m.pt"], "two reports would be written to r"),
        (["json=x/../r", "html=r"], ["a/m.pt"], "two reports would be written to"),
        (["json=a/m.pt"], ["a/m.pt"], "the report a/m.pt would replace the model"),
        ([f"json={IMAGES}"], ["a/m.pt"], "would replace a file of"),
        (["json=a/config.json"], ["a"], "a/config.json would replace a file of a, which is read"),
        (["json=/dev/null"], ["a/m.pt"], "cannot write /dev/null: it is no file"),
        (["json=a"], ["a/m.pt"], "cannot write a: it is no file, but a folder"),
    ],
)
def test_outputs_that_would_hurt_are_refused_before_any_search(
    outs: list[str], models: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    flags = [flag for out in outs for flag in ("-o", out)]
    status, out, said = run("scan", *models, "--images", IMAGES, *flags)
    assert status in (2, 4)
    assert out == ""
    assert words in said


def test_a_name_leads_to_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rep").mkdir()
    (tmp_path / "...safetensors").write_bytes((GIFT / "gift.safetensors").read_bytes())
    status, _, _ = run(
        "scan", "...safetensors", "--images", IMAGES, "--limit", "1", "-o", "json=rep/{name}.json"
    )
    assert status == 3
    assert [p.name for p in (tmp_path / "rep").iterdir()] == ["model.json"]


# Signals --------------------------------------------------------------------------------------


def test_the_first_signal_waits_for_the_step_and_the_second_does_not() -> None:
    done: list[str] = []

    def step(presses: int) -> None:
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        done.append("whole")

    for presses, left in ((1, ["whole"]), (2, [])):
        done.clear()
        with pytest.raises(KeyboardInterrupt), held():
            step(presses)
        assert done == left


def test_a_signal_at_the_very_end_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)
    with held(kept=False) as hold:  # nothing is saved, so nothing is waited for
        assert not hold.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def started(arguments: list[str], **more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from gifthorse.cli.app import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_imports_ends_in_a_word(number: int) -> None:
    code = (
        "import builtins, os, sys\n"
        "whole = builtins.__import__\n"
        "def tell(name, *rest):\n"
        "    if name == 'typer' or name.startswith('torch'):\n"
        f"        try: os.kill(os.getpid(), {int(number)})\n"
        "        except BaseException: pass\n"  # as libraries do
        "    return whole(name, *rest)\n"
        "builtins.__import__ = tell\n"
        "from gifthorse.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "models"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 128 + number
    assert done.stderr == b"gifthorse: interrupted; nothing was done yet\n"


# Streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_character_fits_every_terminal(encoding: str) -> None:
    code = (
        "from gifthorse.cli import border; import sys; border.open_streams();"
        "print('→ … é 停 \\udcff'); border.say('→ \\x1b[2J\\u202e停 \\udcff'); border.leave(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr
    if encoding == "ascii":
        assert done.stdout.startswith(b"-> ... \\xe9 \\u505c")


def test_a_reader_that_goes_away_changes_no_status() -> None:
    process = started(["list", "models"])
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as said:
        assert said.read() == b""
    assert process.wait() == 0


def test_messages_are_printed_in_one_place() -> None:
    """Each goes through `terminal`, which makes foreign text inert."""
    for path in (ROOT / "src" / "gifthorse" / "cli").glob("*.py"):
        text = path.read_text()
        if path.name not in ("terminal.py", "border.py"):
            for direct in ("typer.echo(", "err.print(", "console.print(", "sys.stderr.write("):
                assert direct not in text, f"{path.name}: {direct}"


def test_a_signal_on_the_way_out_ends_the_process_without_a_traceback() -> None:
    code = (
        "import os, signal\nfrom gifthorse.cli import border\nsignals = border.Signals()\n"
        "signals.listen()\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, b"", b"")


def test_a_signal_at_the_last_moment_does_not_change_the_status() -> None:
    code = (
        "import atexit, os, signal\nfrom gifthorse.cli import border\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "border.Signals().listen()\nborder.leave(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3, b"")
