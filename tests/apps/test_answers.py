"""What each command answers with, for people and as JSON."""

import json
import sys
from pathlib import Path

import pytest

from mechlab.lens.check import Check


def test_a_run_as_json(cli, small: list[str], tiny_folder: Path, tmp_path: Path):
    done = cli("run", "ioi", "--model", tiny_folder, "--out", tmp_path, "--name", "one", "--json", *small)
    assert done.code == 0
    document = done.document
    assert list(document) == ["study", "model", "config", "findings", "tables", "path"]
    assert document["study"] == "ioi"
    assert document["model"]["name"] == str(tiny_folder)
    assert document["config"]["n_discovery"] == 2 and document["config"]["corruption"] == "swap"
    assert document["findings"]
    for finding in document["findings"]:
        assert {"statement", "estimate", "ci", "n", "controls", "rule", "verdict"} <= set(finding)
        assert finding["verdict"] in ("supported", "not supported", "inconclusive")
        assert len(finding["ci"]) == 2 and finding["controls"]
    assert all(isinstance(rows, list) for rows in document["tables"].values())
    assert Path(document["path"]) == tmp_path / "one"
    assert "loading model" in done.err
    # what is shown later is what was printed now
    assert cli("show", "one", "--out", tmp_path, "--json").document == document


def test_a_run_for_people(cli, store: Path):
    done = cli("show", "first", "--out", store)
    assert done.code == 0
    assert "Which heads do indirect-object identification?" in done.out
    assert "Closest control" in done.out and "supported" in done.out
    assert f"Report: {store / 'first' / 'report.html'}\n" in done.out


def test_a_random_twin_has_its_own_fingerprint(cli, small: list[str], store: Path, tiny_folder: Path, tmp_path: Path):
    twin = cli("run", "ioi", "--model", f"{tiny_folder}@random:3", "--out", tmp_path, "--json", *small).document
    trained = cli("show", "first", "--out", store, "--json").document
    assert twin["model"]["fingerprint"] != trained["model"]["fingerprint"]
    assert Path(twin["path"]).name.startswith("ioi-")


def test_prepended_bos_reaches_the_study(cli, small: list[str], tiny_folder: Path, tmp_path: Path):
    argv = ("run", "ioi", "--model", tiny_folder, "--out", tmp_path, *small, "--json")
    plain, with_bos = cli(*argv, "--no-prepend-bos").document, cli(*argv, "--prepend-bos").document
    assert plain["findings"][0]["estimate"] != with_bos["findings"][0]["estimate"]


def test_the_page_of_a_run(cli, store: Path):
    page = store / "first" / "report.html"
    assert cli("show", "first", "--out", store, "--html").out == f"{page}\n"
    assert cli("show", "first", "--out", store, "--html", "--json").document == {"html": str(page)}
    assert page.is_file()


def test_runs(cli, store: Path, tmp_path: Path):
    [one] = cli("runs", "--out", store, "--json").document
    assert (one["name"], one["study"], one["path"]) == ("first", "ioi", str(store / "first"))
    assert "first" in cli("runs", "--out", store).out
    empty = cli("runs", "--out", tmp_path / "none", "--json")
    assert (empty.code, empty.document) == (0, [])
    assert not (tmp_path / "none").exists()


def test_studies(cli):
    listed = cli("studies", "--json").document
    assert all(set(one) == {"name", "paper", "line"} for one in listed)
    settings = {one["name"]: one for one in cli("studies", "ioi", "--json").document["settings"]}
    assert settings["corruption"]["type"] == "one of swap, abc"
    assert settings["seed"] == {
        "name": "seed",
        "type": "an integer",
        "default": 0,
        "description": "of prompts, draws, intervals and the twin",
    }
    assert "n_discovery" in cli("studies", "ioi").out


def test_the_default_model_is_listed_before_it_is_obtained(cli, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    [one] = [one for one in cli("models", "--json").document if one["default"]]
    assert (one["name"], one["obtained"], one["size_bytes"]) == ("smollm2-135m", False, None)
    assert "not obtained yet" in cli("models").out


def test_models_with_size_and_source(cli, monkeypatch, tmp_path: Path):
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "mechlab-source.json").write_text("{}")
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path))
    [one] = [one for one in cli("models", "--json").document if one["default"]]
    assert (one["obtained"], one["size_bytes"], one["path"]) == (True, 2, str(folder))
    assert "smollm2-135m (default)" in cli("models").out


def test_check_holds_on_a_sound_model(cli, tiny_folder: Path):
    document = cli("check", tiny_folder, "--json").document
    assert document["ok"] is True
    assert {"name", "value", "bound", "ok"} == set(document["checks"][0])


def test_check_says_plainly_what_failed(cli, monkeypatch, tiny_folder: Path):
    measured = [
        Check("logits", 0.0, "exactly 0", True),
        Check("rows", float("nan"), "≤ 1e-05", False),
        Check("bf16", 0.3, "measured", None),
    ]
    monkeypatch.setattr("mechlab.lens.check.parity", lambda *_: measured)
    people = cli("check", tiny_folder)
    assert people.code == 0
    assert "1 of 2 bounds FAIL: rows." in people.out
    document = cli("check", tiny_folder, "--json").document
    assert document["ok"] is False
    assert [one["ok"] for one in document["checks"]] == [True, False, None]
    assert document["checks"][1]["value"] is None


def test_tokens(cli, tiny_folder: Path):
    document = cli("tokens", tiny_folder, "Mary and John", "--json").document
    assert document["pieces"] == ["Mary", "and", "John"]
    assert len(document["ids"]) == document["length"] == 3
    first = cli("tokens", tiny_folder, "Mary and John", "--prepend-bos", "--json").document
    assert first["pieces"] == ["<bos>", "Mary", "and", "John"]
    assert "'Mary'" in cli("tokens", tiny_folder, "Mary and John").out


def test_nothing_but_the_document_reaches_stdout(cli, monkeypatch, tiny_folder: Path):
    from mechlab.models import loading

    load = loading.load

    def noisy(*args, **options):
        sys.stdout.write("a library's remark")
        return load(*args, **options)

    monkeypatch.setattr(loading, "load", noisy)
    done = cli("tokens", tiny_folder, "Mary", "--json")
    assert json.loads(done.out)["pieces"] == ["Mary"]
    assert "a library's remark" in done.err


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help(cli, argv: list[str]):
    done = cli(*argv)
    assert done.code == 0
    for command in ("demo", "run", "studies", "runs", "show", "models", "check", "tokens"):
        assert f" {command} " in done.out


def test_version(cli):
    assert cli("--version").out == "mechlab 0.1.0\n"
