"""The store: whole or absent, through kills, full disks, foreign folders and names that try to leave."""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from mechlab.errors import StoreError, UnknownName
from mechlab.results import Store
from mechlab.results.manifest import SCHEMA


@pytest.fixture(autouse=True)
def small_page(monkeypatch):
    """The real page holds 5 MB of plotly.js; most tests here need not write it."""
    monkeypatch.setattr("mechlab.views.page.report_page", lambda report: f"<p>{report.title}</p>")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def edit_manifest(run, **changes):
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_report_comes_back_as_it_was_saved(store, make_report):
    report = make_report()
    path = store.save(report)
    back = store.load(path.name)
    assert back.as_json() == report.as_json()
    for name in ("study", "title", "summary_text", "paper", "model", "provenance"):
        assert getattr(back, name) == getattr(report, name)
    pd.testing.assert_frame_equal(back.tables[0].frame, report.tables[0].frame)
    assert (back.tables[0].title, back.tables[0].note) == ("Heads", "note")
    assert json.loads(back.figures[0].figure.to_json()) == json.loads(report.figures[0].figure.to_json())


def test_contents_of_a_run(store, make_report):
    path = store.save(make_report(), "first")
    files = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert files == {"manifest.json", "findings.json", "tables/heads.parquet", "figures/heads.json", "report.html"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["schema"] == SCHEMA and manifest["verdicts"]["supported"] == 1 and manifest["name"] == "first"
    assert manifest["files"] == {name: (path / name).stat().st_size for name in files - {"manifest.json"}}
    assert manifest["config"] == {"n_prompts": 40, "layers": [0, 2]}


def test_the_page_is_written_with_the_run(tmp_path, make_report, monkeypatch):
    monkeypatch.undo()
    path = Store(tmp_path).save(make_report(title="A title of its own"))
    assert "A title of its own" in (path / "report.html").read_text()


def test_default_names_say_what_ran_and_never_collide(store, make_report, monkeypatch):
    monkeypatch.setattr("mechlab.results.store.datetime", type("Fixed", (), {"now": staticmethod(fixed_time)}))
    names = [store.save(make_report()).name for _ in range(3)]
    assert names == [f"ioi-tiny-model-20260102-030405{suffix}" for suffix in ("", "-2", "-3")]


def fixed_time(_zone):
    from datetime import UTC, datetime

    return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_runs_are_listed_newest_first(store, make_report):
    assert store.runs() == [] and store.problems() == []
    for name in ("b", "c", "a"):
        store.save(make_report(), name)
        time.sleep(0.002)
    assert [run.name for run in store.runs()] == ["a", "c", "b"]
    assert store.runs()[0].model.name == "org/Tiny Model"


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "a\\b", "..", ".", "", ".hidden", "/tmp/x", "a b", "a\0", "-x", "x" * 200, "a\n"]
)
def test_names_stay_inside_the_store(store, make_report, name):
    store.save(make_report(), "fine")
    outside = set(store.root.parent.iterdir())
    for call in (lambda: store.save(make_report(), name), lambda: store.load(name)):
        with pytest.raises(StoreError, match="not allowed"):
            call()
    assert set(store.root.parent.iterdir()) == outside and [run.name for run in store.runs()] == ["fine"]


def test_a_link_out_of_the_store_is_no_run(store, make_report, tmp_path):
    elsewhere = Store(tmp_path / "elsewhere").save(make_report(), "run")
    store.save(make_report(), "fine")
    (store.root / "link").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="not allowed"):
        store.load("link")
    assert [run.name for run in store.runs()] == ["fine"] and "link" in store.problems()[0]


def test_a_taken_name_is_refused_and_the_run_kept(store, make_report):
    store.save(make_report(title="old"), "run")
    with pytest.raises(StoreError, match="already has a run 'run'"):
        store.save(make_report(title="new"), "run")
    assert store.load("run").title == "old"


def test_an_unknown_run_names_near_ones(store, make_report):
    with pytest.raises(StoreError, match="has none yet"):
        store.load("ioi")
    store.save(make_report(), "ioi-first")
    with pytest.raises(UnknownName, match="did you mean ioi-first"):
        store.load("ioi-fist")


def test_a_newer_schema_names_both_numbers(store, make_report):
    edit_manifest(store.save(make_report(), "new"), schema=SCHEMA + 6, anything="else")
    with pytest.raises(StoreError, match=rf"schema {SCHEMA + 6}, .* up to {SCHEMA}: upgrade"):
        store.load("new")
    assert store.runs() == [] and "upgrade" in store.problems()[0]


def break_in_place(path: Path) -> None:
    path.write_bytes(b"\x00" * path.stat().st_size)  # the size still agrees


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, break_in_place], ids=["missing", "cut", "zeroed"])
@pytest.mark.parametrize("name", ["manifest.json", "findings.json", "tables/heads.parquet", "figures/heads.json"])
def test_damaged_runs_are_refused_by_name(store, make_report, name, damage):
    damage(store.save(make_report(), "run") / name)
    store.save(make_report(), "whole")
    with pytest.raises(StoreError, match=re.escape(Path(name).name)):
        store.load("run")
    assert "whole" in [run.name for run in store.runs()]


def test_foreign_folders_and_files_are_reported_not_listed(store, make_report):
    store.save(make_report(), "run")
    (store.root / "photos").mkdir()
    (store.root / "notes.txt").write_text("x")
    for name, text in (
        ("list", "[]"),
        ("text", "x"),
        ("other", '{"schema": 1, "name": 3}'),
        ("odd", '{"schema": "one"}'),
    ):
        (store.root / name).mkdir()
        (store.root / name / "manifest.json").write_text(text)
    assert [run.name for run in store.runs()] == ["run"]
    problems = " ".join(store.problems())
    assert all(name in problems for name in ("photos", "list", "text", "other", "odd")) and len(store.problems()) == 5


def test_a_tampered_verdict_is_refused(store, make_report):
    run = store.save(make_report(), "run")
    path = run / "findings.json"
    path.write_text(path.read_text().replace('"supported"', '"not supported"'))
    with pytest.raises(StoreError, match="manifest says"):
        store.load("run")
    files = json.loads((run / "manifest.json").read_text())["files"]
    edit_manifest(run, files=files | {"findings.json": path.stat().st_size})
    with pytest.raises(StoreError, match="states the verdict 'not supported', but its numbers give 'supported'"):
        store.load("run")


def test_a_manifest_cannot_point_outside_its_run(store, make_report):
    run = store.save(make_report(), "run")
    edit_manifest(run, tables=[{"key": "../../secret", "title": "", "note": "", "table": ""}])
    with pytest.raises(StoreError, match=r"tables\.0\.key"):
        store.load("run")


@pytest.mark.parametrize("fails_at", range(5))
def test_a_full_disk_is_told_and_leaves_nothing(store, make_report, monkeypatch, fails_at):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="is full"):
        store.save(make_report(), "run")
    monkeypatch.undo()
    assert [path.name for path in store.root.iterdir() if path.name != ".lock"] == []


def test_a_failing_rename_and_an_interrupt_leave_nothing(store, make_report, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(make_report(), "run")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_a_store_that_is_a_file_or_cannot_be_written(tmp_path, make_report, monkeypatch):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="is a file"):
            Store(root).save(make_report())
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file").runs()

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StoreError, match=r"cannot be written .Permission denied."):
        Store(tmp_path / "new").save(make_report())


def test_leftovers_of_killed_saves_are_invisible_and_cleaned(store, make_report):
    run = store.save(make_report(), "run")
    shutil.copytree(run, store.root / ".ghost.tmp-01ab")
    (store.root / ".keep").mkdir()
    assert [item.name for item in store.runs()] == ["run"] and store.problems() == []
    store.save(make_report(), "next")
    assert not (store.root / ".ghost.tmp-01ab").exists() and (store.root / ".keep").exists()


KILLED = """
    import os, signal, sys, time
    import pandas as pd, plotly.graph_objects as go
    import mechlab.results.store as module, mechlab.views.page
    from mechlab.results import *
    mechlab.views.page.report_page = lambda report: "page"
    real = module._write
    def slow(path, content):  # so that kills fall between files and inside them
        real(path, content[: len(content) // 2])
        time.sleep(0.003)
        real(path, content)
    module._write = slow
    model = ModelInfo(name="m", source="s", fingerprint="f", n_layers=1, n_heads=1, n_kv_heads=1, d_model=1, dtype="d",
                      device="c", attention="a")
    provenance = Provenance(seed=0, versions={}, platform="", cpu="", started="2026", wall_seconds=0,
                            prompts_sha256="", command="")
    table = Table("t", "t", pd.DataFrame({"x": range(1000)}))
    report = Report("s", "t", "", "", model, {}, (), [table], [FigureItem("t", "t", go.Figure(), "t")], provenance)

    def save_for_ever(root, told):
        while True:
            told.write(Store(root).save(report).name + "\\n")
            told.flush()

    for round_, seconds in enumerate(float(x) for x in sys.argv[2:]):
        root = f"{sys.argv[1]}/{round_}"
        children = []
        for child in range(2):  # forked, because importing pandas takes longer than everything else here
            if not (pid := os.fork()):
                save_for_ever(root, open(f"{root}-told-{child}", "w"))
            children.append(pid)
        time.sleep(seconds)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 is a Unix signal")
def test_kill_9_of_two_savers_at_any_moment_leaves_whole_runs_only(tmp_path, make_report):
    chance = random.Random()  # new moments each time; the claim is about all of them
    moments = [str(chance.uniform(0.02, 0.3)) for _ in range(6)]
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), *moments], check=True, timeout=60)
    leftovers = 0
    for root in (tmp_path / str(round_) for round_ in range(len(moments))):
        told = [(root.parent / f"{root.name}-told-{child}").read_text().split() for child in range(2)]
        leftovers += len(list(root.glob(".*.tmp-*")))
        store = Store(root)
        names = {run.name for run in store.runs()}
        assert store.problems() == [] and names >= {*told[0], *told[1]}, "what was announced is there"
        assert not {*told[0]} & {*told[1]}, "two processes never share a name"
        assert all(len(store.load(name).tables[0].frame) == 1000 for name in names), "what is visible is whole"
        store.save(make_report(), "after")
        assert {path.name for path in root.iterdir()} == names | {"after", ".lock"}, "leftovers are cleaned"
    assert leftovers, "some kill fell into a save, or this test proves nothing"


def test_nothing_is_pickled(store, make_report):
    path = store.save(make_report())
    assert not [p for p in path.rglob("*") if p.suffix in (".pkl", ".pickle", ".pt", ".npy")]
    sources = Path(sys.modules["mechlab.results.store"].__file__).parent.glob("*.py")
    assert not [p for p in sources if re.search(r"import pickle|pickle\.load|torch\.load|read_pickle", p.read_text())]
