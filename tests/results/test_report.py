"""Reports: what they insist on, their JSON, and provenance."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mechlab.results import FigureItem, Provenance, Table
from mechlab.results.provenance import hash_prompts
from mechlab.results.report import plain


def test_every_table_has_a_figure_and_every_figure_a_table(make_report):
    report = make_report()
    other = Table("other", "Other", report.tables[0].frame)
    with pytest.raises(AssertionError, match=r"tables without a figure: \['other'\]"):
        make_report(tables=[*report.tables, other])
    with pytest.raises(AssertionError, match="tables it lacks"):
        make_report(tables=[])
    with pytest.raises(AssertionError, match="repeats keys"):
        make_report(findings=[*report.findings, *report.findings])
    assert make_report(tables=[], figures=[]).tables == ()


@pytest.mark.parametrize("key", ["../heads", "Heads", "", "a/b", "a b", "-a", "a.b", "a\n"])
def test_keys_are_file_names(key):
    with pytest.raises(AssertionError, match="names a file"):
        Table(key, "t", pd.DataFrame({"a": [1]}))
    with pytest.raises(AssertionError, match="names a file"):
        FigureItem(key, "t", go.Figure(), "heads")


def test_tables_that_parquet_could_not_hold_are_refused_early():
    with pytest.raises(AssertionError, match=r"mixes types in \['pos'\]"):
        Table("t", "t", pd.DataFrame({"pos": pd.Series([1, "S2"], dtype=object)}))
    with pytest.raises(AssertionError, match="text column names"):
        Table("t", "t", pd.DataFrame([[1, 2]]))
    Table("t", "t", pd.DataFrame({"pos": [None, "S2"], "x": pd.array([1, None], dtype="Int64")}))


def test_verdicts_count_all_three(make_report):
    assert make_report().verdicts == {"supported": 1, "not supported": 0, "inconclusive": 0}


def test_json_has_exactly_the_promised_fields_and_null_for_nan(make_report):
    record = json.loads(make_report().as_json("runs/x"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(record) == ["study", "model", "config", "findings", "tables", "path"]
    assert record["path"] == "runs/x" and record["config"] == {"n_prompts": 40, "layers": [0, 2]}
    assert record["tables"] == {
        "heads": [{"head": "L0H1", "layer": 0, "recovered": 0.25}, {"head": "L2H0", "layer": 2, "recovered": None}]
    }
    finding = record["findings"][0]
    assert (
        finding["verdict"] == "supported" and finding["ci"] == [0.3, 0.5] and finding["controls"][0]["estimate"] == 0.02
    )
    assert record["model"]["fingerprint"] == "f00d"


def test_plain_values():
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "t": pd.to_datetime(["2026-01-01", None])})
    assert plain(frame.to_dict(orient="records"))[1] == {"a": None, "t": None}
    assert plain({"a": np.float32("inf"), "b": np.arange(2), 3: np.bool_(True), "d": (float("nan"), None)}) == {
        "a": None,
        "b": [0, 1],
        "3": True,
        "d": [None, None],
    }


def test_provenance_reads_versions_clock_and_prompts():
    started = datetime.now(UTC) - timedelta(seconds=90)
    source = Provenance.gather(seed=1, started=started, prompt_ids=[[1, 23], [4]])
    assert 90 <= source.wall_seconds < 95 and source.started.endswith("+00:00")
    assert source.versions["torch"] != "absent" and set(source.versions) >= {"mechlab", "python", "transformer-lens"}
    assert source.prompts_sha256 == hash_prompts([[1, 23], [4]]) and source.cpu and source.command


def test_prompt_hash_sees_ids_order_and_boundaries():
    variants = [[[1, 23], [4]], [[12, 3], [4]], [[1], [23, 4]], [[4], [1, 23]], [[1, 23, 4]], [[1, 23], [4], []]]
    assert len({hash_prompts(variant) for variant in variants}) == len(variants)


def test_only_metrics_imports_torch_and_names_are_lazy():
    code = (
        "import sys, mechlab.results, mechlab.views\n"
        "assert not {'pandas', 'plotly', 'scipy', 'torch', 'pydantic'} & set(sys.modules), 'importing a package does nothing'\n"
        "from mechlab.results import Store, Study, parse_settings, Manifest\n"
        "Store('nowhere').runs()\n"
        "assert not {'pandas', 'plotly', 'scipy', 'torch', 'pyarrow', 'jinja2'} & set(sys.modules), 'listing runs is light'\n"
        "from mechlab.results import Effects, Finding, Report, bootstrap_mean\n"
        "from mechlab.views import heatmap, report_page\n"
        "bootstrap_mean([1.0, 2.0, 4.0])\n"
        "assert 'torch' not in sys.modules\n"
        "from mechlab.results import metric\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_public_names_resolve():
    import mechlab.results
    import mechlab.views

    for package in (mechlab.results, mechlab.views):
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError):
            _ = package.nothing
