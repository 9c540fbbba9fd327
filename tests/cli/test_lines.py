"""Progress without a terminal: a first line at once, then one now and then."""

from __future__ import annotations

import time

import pytest

from gifthorse.cli.terminal import Lines


def test_a_long_step_is_no_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines("model.pt", every=0.05) as lines:
        lines(0, 1, "reading")
        assert capsys.readouterr().err == "model.pt: reading\n"
        lines(5, 8, "searching")  # what was done before counts for nothing
        lines(6, 8, "searching")
        time.sleep(0.3)  # longer than the step of a large net may take between two lines
    told = capsys.readouterr().err.splitlines()
    assert len(told) >= 2
    assert all(line.startswith("model.pt: searching, 6/8, 0 s, at most ") for line in told)
    assert float(told[0].split()[-5]) <= 2  # seconds: twice what the last one took


def test_what_is_short_says_little(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines("model.pt") as lines:
        for done in range(4):
            lines(done, 3, "searching")
    assert capsys.readouterr().err == "model.pt: searching\n"
