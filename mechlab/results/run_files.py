"""The files of a run: a report to bytes and back.

manifest.json   findings.json   tables/<key>.parquet   figures/<key>.json   report.html
"""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mechlab.errors import StoreError
from mechlab.results.finding import Finding
from mechlab.results.manifest import MANIFEST, SCHEMA, Item, Manifest
from mechlab.results.report import FigureItem, Report, Table, plain

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

FINDINGS = "findings.json"
PAGE = "report.html"


def run_files(report: Report, name: str) -> Iterator[tuple[str, bytes]]:
    """Path inside the run and content of each file; the manifest, which lists the others' sizes, comes last."""
    sizes: dict[str, int] = {}
    for path, content in _content(report):
        sizes[path] = len(content)
        yield path, content
    yield MANIFEST, _manifest(report, name, sizes).as_json().encode()


def read_report(folder: Path, manifest: Manifest) -> Report:
    """The report in a run folder. Raises StoreError for a file that is not what the manifest says it is."""
    return Report(
        study=manifest.study,
        title=manifest.title,
        summary_text=manifest.summary_text,
        paper=manifest.paper,
        model=manifest.model,
        config=manifest.config,
        findings=_read_findings(folder / FINDINGS),
        tables=tuple(
            Table(item.key, item.title, _read_table(folder / _table_path(item.key)), item.note)
            for item in manifest.tables
        ),
        figures=tuple(
            FigureItem(item.key, item.title, _read_figure(folder / _figure_path(item.key)), item.table, item.note)
            for item in manifest.figures
        ),
        provenance=manifest.provenance,
    )


def _content(report: Report) -> Iterator[tuple[str, bytes]]:
    # The one door from results up to views, opened inside the function: a run carries the page that shows it.
    from mechlab.views.page import report_page

    findings = [finding.as_json() for finding in report.findings]
    yield FINDINGS, json.dumps(findings, ensure_ascii=False, indent=2, allow_nan=False).encode()
    for table in report.tables:
        buffer = io.BytesIO()
        table.frame.reset_index(drop=True).to_parquet(buffer, engine="pyarrow", index=False)
        yield _table_path(table.key), buffer.getvalue()
    for item in report.figures:
        yield _figure_path(item.key), str(item.figure.to_json()).encode()
    yield PAGE, report_page(report).encode()


def _manifest(report: Report, name: str, sizes: dict[str, int]) -> Manifest:
    return Manifest.model_validate(
        {
            "schema": SCHEMA,
            "name": name,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "study": report.study,
            "title": report.title,
            "summary_text": report.summary_text,
            "paper": report.paper,
            "config": plain(report.config),
            "model": report.model,
            "provenance": report.provenance,
            "verdicts": report.verdicts,
            "tables": [Item(key=table.key, title=table.title, note=table.note) for table in report.tables],
            "figures": [Item(key=f.key, title=f.title, note=f.note, table=f.table) for f in report.figures],
            "files": sizes,
        }
    )


def _read_findings(path: Path) -> tuple[Finding, ...]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(records, list):
        raise _damaged(path, "it is not a list")
    return tuple(Finding.from_json(record) for record in records)


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _read_figure(path: Path) -> "go.Figure":
    import plotly.graph_objects as go

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return go.Figure(data=record["data"], layout=record["layout"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> StoreError:
    first_line = next(iter(str(why).strip().splitlines()), type(why).__name__)
    return StoreError(f"{path} cannot be read ({first_line}): restore it, or delete the run.")


def _table_path(key: str) -> str:
    return f"tables/{key}.parquet"


def _figure_path(key: str) -> str:
    return f"figures/{key}.json"
