"""The command line lists cached models without importing torch, and each public name is found."""

import subprocess
import sys

import pytest

import mechlab.models


def test_the_cache_needs_no_torch():
    code = (
        "import sys; from mechlab.models import cached_models, load; import mechlab.models.default; cached_models(); "
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", mechlab.models.__all__)
def test_names(name):
    assert getattr(mechlab.models, name) is not None


def test_no_file_hides_a_function():
    import mechlab.models.loading
    import mechlab.models.tiny_models

    assert callable(mechlab.models.load) and callable(mechlab.models.tiny)
    with pytest.raises(AttributeError):
        _ = mechlab.models.nonsense
