"""Progress without a terminal: a line after a moment, then one now and then."""

from __future__ import annotations

import time

import pytest

from gifthorse.cli.terminal import Lines


def test_a_long_step_is_no_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines("model.pt", every=0.05, first=0.05) as lines:
        lines(0, 1, "reading")
        time.sleep(0.3)  # longer than the step of a large net may take between two lines
        assert capsys.readouterr().err.startswith("model.pt: reading, 0/1, 0 s\nmodel.pt: reading")
        lines(5, 8, "searching")  # what was done before counts for nothing
        lines(6, 8, "searching")
        time.sleep(0.3)
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("model.pt: searching, 6/8, ")
    left = float(told.split(" at most ")[1].split()[0])  # twice what the last one took
    assert left <= 2


def test_what_is_short_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines("model.pt") as lines:
        for done in range(4):
            lines(done, 3, "searching")
    assert not capsys.readouterr().err
