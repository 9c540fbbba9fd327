"""How commands say things: quiet, plain, into a file; and what helps a newcomer."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from rich.console import Console
from tests.report.examples import backdoored

from gifthorse import __version__
from gifthorse.cli import doctor, terminal
from gifthorse.cli.commands import app, run
from gifthorse.cli.examples import EXAMPLES
from gifthorse.cli.panels import PANELS
from gifthorse.cli.terminal import manner, with_command
from gifthorse.report import WRITERS
from gifthorse.workflows.selftest import TARGET, BandNet, selftest, weights


def leaves() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command with its full name."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {n}", c) for n, c in inner.items()) if inner else [(name, command)]


# 1. Help --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "command"), list(leaves()), ids=[n for n, _ in leaves()])
def test_every_command_shows_an_example_that_fits_it(
    name: str, command: typer.core.TyperCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*name.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith(f"Example: gifthorse {name} {EXAMPLES[name]}")
    words = shlex.split(EXAMPLES[name])
    command.make_context(name, words)  # raises on what it does not know, and on what it lacks


def test_every_option_is_in_a_panel_and_every_panel_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"help"}
    for name, command in leaves():
        own = {p.name for p in command.params if p.param_type_name == "option"}
        assert own <= PANELS.keys(), name
        known |= {str(option) for option in own}
        assert run([*name.split(), "--help"]) == 0
        titles = re.findall(r"^(\w[\w ]*):$", capsys.readouterr().out, re.MULTILINE)
        assert {t for t in titles if t != "Arguments"} == {PANELS[str(o)] for o in {*own, "help"}}
        assert len(titles) == len(set(titles)), name
    assert known == PANELS.keys()


def test_no_example_is_of_nothing() -> None:
    assert set(EXAMPLES) == {name for name, _ in leaves()}


def test_a_call_without_words_shows_help_and_is_no_success(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([]) == 4
    assert capsys.readouterr().out.startswith("Usage: gifthorse")


def test_the_version_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version", "--verbose"]) == 0
    words = capsys.readouterr().out
    assert words.startswith(f"gifthorse {__version__}\n")
    for name in ("python", "torch", "system", "cpu"):
        assert re.search(rf"^  {name} +\S", words, re.MULTILINE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_GIFTHORSE_COMPLETE", f"complete_{shell}")
    for name, value in (("COMP_WORDS", "gifthorse doc"), ("COMP_CWORD", "1"),
                        ("_TYPER_COMPLETE_ARGS", "gifthorse doc"),
                        ("_TYPER_COMPLETE_FISH_ACTION", "get-args")):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert run([]) == 0
    assert "doctor" in capsys.readouterr().out


# 2. Options of all commands -------------------------------------------------------------------


def test_options_of_all_commands_may_stand_anywhere() -> None:
    given = ["scan", "-q", "a.pt", "--log", "x", "--progress=none", "--images", "b", "--", "-q"]
    front = ["-q", "--log", "x", "--progress=none"]
    assert with_command(app, given) == [*front, "scan", "a.pt", "--images", "b", "--", "-q"]
    short = ["a.pt", "--quiet", "--images", "b"]
    assert with_command(app, short) == ["--quiet", "scan", "a.pt", "--images", "b"]
    taken = {flag for _, c in leaves() for p in c.params for flag in p.opts}
    assert not taken & set(terminal.ANYWHERE), "a command has an option of this name"


@pytest.fixture
def told(tmp_path: Path) -> list[str]:
    """A command that prints a result, and notes that it wrote a file."""
    path = tmp_path / "result.json"
    path.write_text(WRITERS["json"](backdoored()))
    return ["report", str(path), "-f", "github", "-o", f"csv={tmp_path / 'x.csv'}"]


def test_quiet_leaves_the_result_and_the_errors(
    told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(told) == 0
    loud = capsys.readouterr()
    assert "wrote " in loud.err
    assert run([*told, "--quiet"]) == 0
    calm = capsys.readouterr()
    assert calm.err == ""
    assert calm.out == loud.out != ""
    assert run(["report", "none.json", "-q"]) == 4
    assert capsys.readouterr().err.startswith("gifthorse: ")
    assert (manner.quiet, manner.progress) == (False, "auto")  # of the next command, as it was


def test_progress_is_lines_a_bar_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for way in ("none", "plain", "rich"):
        manner.progress = way
        try:
            with terminal.bar("a model") as bar:
                if bar is not None:
                    if isinstance(bar, terminal.Lines):
                        bar.first = 0.0
                    bar(1, 2, "rounds")
                    if isinstance(bar, terminal.Lines):
                        bar._print()
        finally:
            manner.progress = "auto"
        shown[way] = capsys.readouterr().err
    assert shown["none"] == ""
    assert "a model: rounds, 1/2" in shown["plain"]
    assert "\x1b[" in shown["rich"]
    assert run(["list", "rules", "--progress", "loud"]) == 4
    assert "no way to show progress is called 'loud'" in capsys.readouterr().err


def test_the_log_holds_what_was_said_with_the_time(
    told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a.log"
    assert run([*told, "--log", str(log), "--quiet"]) == 0
    assert run(["scan", "no\x1b[31m.pt", "--images", "x", "--log", str(log)]) == 4
    lines = log.read_text().splitlines()
    dated = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    assert re.fullmatch(rf"{dated}INFO wrote {re.escape(str(tmp_path))}/x.csv", lines[0])
    assert re.match(rf"{dated}ERROR gifthorse: ", lines[-1])
    assert "\x1b" not in log.read_text()
    assert not [h for h in logging.getLogger("gifthorse").handlers
                if isinstance(h, logging.FileHandler)]  # fmt: skip
    assert run(["list", "rules", "--log", str(tmp_path / "no" / "a.log")]) == 2
    assert "cannot write the log" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("variable", "flags", "colored"),
    [("", (), True), ("1", (), False), ("", ("--no-color",), False)],
)
def test_colors_go_with_the_variable_and_with_the_flag(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    flags: tuple[str, ...],
    colored: bool,
) -> None:
    monkeypatch.setenv("NO_COLOR", variable)
    err = Console(stderr=True, force_terminal=True, color_system="standard")
    monkeypatch.setattr(terminal, "err", err)
    before = err.no_color
    assert run(["explain", "nothing", *flags]) == 4
    assert ("31m" in capsys.readouterr().err) is colored
    assert err.no_color is before


# 3. doctor ------------------------------------------------------------------------------------


def test_the_weights_of_the_self_test_do_as_they_say() -> None:
    import torch

    from gifthorse.workflows.selftest import GRAY, HEIGHT, SIDE

    dark = torch.full((1, 3, SIDE, SIDE), 0.1)
    dark[..., 0, 0] = GRAY
    bright = dark.clone()
    bright[:, :, HEIGHT : 2 * HEIGHT] = 0.4  # class 1
    stamped = bright.clone()
    stamped[..., 0, 0] = 1
    for planted, expected in ((True, [1, TARGET]), (False, [1, 1])):
        net = BandNet(6, 3)
        net.load_state_dict(weights(planted))
        assert net(torch.cat([bright, stamped])).argmax(1).tolist() == expected


def test_the_doctor_tells_the_surroundings_and_passes_its_own_scan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["doctor", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for title in ("versions", "devices", "limits", "extras", "environment", "self-test"):
        assert f"\n{title}\n" in f"\n{out}"
    assert re.search(r"readers +processes of their own, limits, audit hook", out)
    assert out.count("  ok     ") == 3
    assert "to class 3" in out


@pytest.mark.slow
def test_a_scan_that_comes_out_wrong_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gifthorse.workflows import selftest as made

    monkeypatch.setattr(made, "weights", lambda planted: weights(False))
    trials = list(selftest("cpu"))
    assert [t.passed for t in trials] == [True, False, True]
    monkeypatch.setattr(doctor, "sections", lambda: iter(()))
    monkeypatch.setattr(made, "selftest", lambda device: iter(trials))
    assert run(["doctor"]) == 2
    assert "FAILED a planted backdoor is found" in capsys.readouterr().out


def test_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._warned(1 << 20).startswith(" - LITTLE")
    assert doctor._warned(1 << 40) == ""


def test_a_device_that_is_not_there_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "cuda:99"]) == 4
    assert capsys.readouterr().out == ""
