"""The command line, run in this process, on a tiny model in a folder."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from apps.cli.main import main

_SMALL = [f"--set={pair}" for pair in ("n_behaviour=4", "n_discovery=2", "n_evaluation=2", "draws=2")]


class Done(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout: anything before or after it fails."""
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("run", "ioi")`` runs ``mechlab run ioi``."""

    def run(*argv: object) -> Done:
        capsys.readouterr()
        code = main([str(one) for one in argv])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: three layers, random weights, a tokenizer that knows the names of IOI."""
    from mechlab.models import tiny
    from mechlab.models.quiet import quiet

    folder, model = tmp_path_factory.mktemp("models") / "tiny", tiny("llama")
    with quiet():
        model.hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def store(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run, 'first'. Tests read it only."""
    folder = tmp_path_factory.mktemp("store") / "runs"
    assert main(["run", "ioi", "--model", str(tiny_folder), "--out", str(folder), "--name", "first", *_SMALL]) == 0
    return folder


@pytest.fixture
def small() -> list[str]:
    """Settings with which the IOI study takes under a second on the tiny model."""
    return _SMALL


@pytest.fixture(autouse=True)
def _interrupts_arrive() -> Iterator[None]:
    """A shell ignores SIGINT for what it starts in the background, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
