"""The whole command on the default model: a run with its report, and one that is interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.default_model

# A shell that starts this in the background would make it ignore interrupts.
PROGRAM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from apps.cli.main import main; sys.exit(main())"
)


def start(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )


def test_a_run_with_its_report(small: list[str], tmp_path: Path):
    with start("run", "ioi", "--out", str(tmp_path), "--name", "small", "--json", *small) as running:
        out, err = running.communicate()
    assert running.returncode == 0, err
    document = json.loads(out)
    behaviour = next(one for one in document["findings"] if one["key"] == "behaviour_logit_difference")
    assert behaviour["estimate"] > 1, "the default model prefers the indirect object"
    assert document["model"]["name"] == "smollm2-135m"
    page = Path(document["path"]) / "report.html"
    assert page.stat().st_size > 100_000 and "plotly" in page.read_text(encoding="utf-8")
    assert "heads: " in err, "work of over two seconds is told"


def test_interrupted_in_the_middle(tmp_path: Path):
    with start("run", "ioi", "--out", str(tmp_path / "runs"), "--json") as running:
        assert running.stderr and running.stdout
        for line in running.stderr:
            if line.startswith(("behaviour: ", "heads: ")):  # steps of the study itself
                break
        running.send_signal(signal.SIGINT)
        rest, out = running.stderr.read(), running.stdout.read()
    assert running.returncode == 130
    assert "Interrupted" in rest and "Traceback" not in rest
    assert json.loads(out)["error"]["kind"] == "Interrupted"
    assert not (tmp_path / "runs").exists()
