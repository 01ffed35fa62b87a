"""Progress: a line per label with the time left, and no line for what is quick."""

import io
import re

import pytest

from apps.cli import progress as module
from apps.cli.progress import Bars, Lines, duration, reporter


@pytest.fixture
def lines():
    """Lines on a clock that the test turns: ``written, turn(seconds), progress``."""
    written: list[str] = []
    now = [0.0]

    def turn(seconds: float) -> None:
        now[0] += seconds

    return written, turn, Lines(written.append, lambda: now[0])


def test_the_time_left(lines):
    written, turn, progress = lines
    progress("heads", 0, 100)
    turn(10)
    progress("heads", 25, 100)
    turn(1)
    progress("heads", 26, 100)  # too soon after the last line
    turn(9)
    progress("heads", 50, 100)
    turn(20)
    progress("heads", 100, 100)
    assert written == [
        "heads: 25 of 100, about 30 s left",
        "heads: 50 of 100, about 20 s left",
        "heads: 100 of 100, done in 40 s",
    ]


def test_what_is_quick_is_not_told(lines):
    written, turn, progress = lines
    progress("behaviour", 0, 2)
    turn(1.9)
    progress("behaviour", 1, 2)
    progress("behaviour", 2, 2)
    assert written == []


def test_a_label_that_begins_anew(lines):
    written, turn, progress = lines
    progress("heads", 0, 1)
    progress("heads", 1, 1)
    turn(100)
    progress("heads", 0, 1)
    turn(3)
    progress("heads", 1, 1)
    assert written == ["heads: 1 of 1, done in 3 s"]


def test_nothing_to_do(lines):
    written, _, progress = lines
    progress("heads", 0, 0)
    assert written == []


def test_bars_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(module.sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with reporter() as progress:
        assert isinstance(progress, Bars)
        progress.stage("loading")
        progress("heads", 1, 4)
        progress("residual stream", 0, 2)
        progress("heads", 4, 4)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "loading" in shown and "4/4" in shown and "residual stream" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")])
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text
