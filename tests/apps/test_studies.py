"""The list of studies says what the studies say, and can be read without torch."""

import subprocess
import sys

import pytest

from apps.studies import STUDIES, StudyEntry, study
from mechlab.errors import UnknownName


@pytest.mark.parametrize("one", STUDIES, ids=lambda one: one.name)
def test_the_list_agrees_with_the_study(one: StudyEntry):
    itself = study(one.name)
    assert (itself.name, itself.paper, itself.line) == (one.name, one.paper, one.line)


def test_names_are_distinct():
    assert len({one.name for one in STUDIES}) == len(STUDIES)


def test_an_unknown_study_is_told_its_neighbours():
    with pytest.raises(UnknownName, match=r"Unknown study 'iio': did you mean ioi\?"):
        study("iio")


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["--version"], ["studies"], ["studies", "--json"]])
def test_light_commands_import_nothing_heavy(argv: list[str]):
    code = (
        "import sys; from apps.cli.main import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'transformer_lens', 'pandas', 'numpy', 'plotly', 'scipy'} & set(sys.modules); "
        "sys.exit(code or ' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_openmp_is_told_not_to_spin_before_torch_is_imported():
    code = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); from apps.cli.main import main; "
        "assert 'torch' not in sys.modules; main(['--version']); assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
