"""Exit codes: our faults, interrupts, and a pipe whose reader has left."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch):
    """``fails(error)`` makes ``mechlab models`` raise it."""

    def install(error: BaseException) -> None:
        def raiser() -> None:
            raise error

        monkeypatch.setattr("mechlab.models.cache.cached_models", raiser)

    return install


def test_our_fault_is_told_in_one_line_with_a_file(cli, fails, monkeypatch, tmp_path: Path):
    monkeypatch.delenv("MECHLAB_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fails(ZeroDivisionError("first line\nsecond line"))
    done = cli("models")
    assert (done.code, done.out) == (3, "")
    [line] = done.err.splitlines()
    assert "a fault in mechlab, not in your input (ZeroDivisionError: first line)" in line
    [kept] = tmp_path.iterdir()
    assert str(kept) in line
    assert "Traceback" in kept.read_text() and "second line" in kept.read_text()


def test_debug_shows_the_traceback(cli, fails, monkeypatch):
    monkeypatch.setenv("MECHLAB_DEBUG", "1")
    fails(ZeroDivisionError("why"))
    done = cli("models", "--json")
    assert done.code == 3
    assert "Traceback" in done.err and "ZeroDivisionError: why" in done.err
    assert done.document["error"]["kind"] == "Bug"


def test_interrupted(cli, fails):
    fails(KeyboardInterrupt())
    done = cli("models", "--json")
    assert done.code == 130
    assert done.document["error"]["kind"] == "Interrupted"
    assert "nothing half-written" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_foreign_code_turns_into_another_error(cli, monkeypatch, number):
    def foreign() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            raise RuntimeError("a callback failed") from None

    before = signal.signal(number, signal.SIG_DFL)  # a shell ignores SIGINT for what it starts in the background
    try:
        monkeypatch.setattr("mechlab.models.cache.cached_models", foreign)
        assert cli("models").code == 130
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("asked", [["studies", "--json"], ["run", "--help"]])
def test_a_pipe_whose_reader_has_left(asked: list[str]):
    program = f"import sys; from apps.cli.main import main; sys.exit(main({asked}))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout and running.stderr
        running.stdout.close()
        assert (running.wait(), running.stderr.read()) == (0, b"")


def test_usage_errors_are_one_line(cli):
    done = cli("run")
    assert done.code == 2
    assert re.fullmatch(r"Missing argument 'STUDY'\. Add --help to see what the command takes\.\n", done.err)
