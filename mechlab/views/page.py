"""The report page: one HTML file that opens offline, asks nothing of any server, and holds the whole report.

plotly.js is inlined once and figures travel as JSON. All text goes through jinja2's escaping; a content-security
policy in the page forbids every outside request, so a report that someone sends is safe to open.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mechlab.results.finding import Finding
from mechlab.results.report import FigureItem, Report, Table
from mechlab.results.wording import interval_text, three_digits
from mechlab.views.figures import intervals_against_controls

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ROWS_SHOWN = 50


def report_page(report: Report) -> str:
    """The whole report as one self-contained HTML page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = {table.key: table for table in report.tables}
    return environment.get_template("report.html").render(
        report=report,
        verdicts=[(verdict, count, _css_class(verdict)) for verdict, count in report.verdicts.items()],
        date=report.provenance.started.replace("T", " ").replace("+00:00", " UTC"),
        findings=[_finding_card(finding) for finding in report.findings],
        figures=[
            _figure_block(
                item, tables[item.table], first=item.table not in {other.table for other in report.figures[:i]}
            )
            for i, item in enumerate(report.figures)
        ],
        settings=[(key, _setting(value)) for key, value in report.config.items()],
        model=_model_rows(report),
        provenance=_provenance_rows(report),
        plotly_js=Markup(get_plotlyjs()),
    )


def _finding_card(finding: Finding) -> dict[str, object]:
    return {
        "finding": finding,
        "css": _css_class(finding.verdict),
        "estimate": three_digits(finding.estimate),
        "interval": interval_text(finding.low, finding.high),
        "notes": [(control.name, control.note) for control in finding.controls if control.note],
        "figure": _embedded(intervals_against_controls(finding)),
    }


def _figure_block(item: FigureItem, table: Table, *, first: bool) -> dict[str, object]:
    """A figure with its table, which stands under the first figure that draws it."""
    block: dict[str, object] = {"item": item, "figure": _embedded(item.figure), "table": table, "first": first}
    return block | (_table_rows(table.frame) if first else {})


def _table_rows(frame: "pd.DataFrame") -> dict[str, object]:
    """What the page shows of a table: the first rows, and no column without a single value."""
    names = [name for name in frame.columns if frame[name].notna().any()]
    numeric = [frame[name].dtype.kind in "iuf" for name in names]
    shown = frame[names].head(ROWS_SHOWN)
    return {
        "columns": list(zip(names, numeric, strict=True)),
        "rows": [
            [(_cell(value), right) for value, right in zip(row, numeric, strict=True)]
            for row in shown.itertuples(index=False, name=None)
        ],
        "n_rows": len(frame),
        "n_hidden": len(frame) - len(shown),
    }


def _cell(value: object) -> str:
    """Numbers to 3 significant digits, integers in full, missing values as a dash."""
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) else three_digits(float(value))


def _embedded(figure: "go.Figure") -> object:
    """Plotly JSON that cannot close the script element it stands in. The page gives the width; the figure keeps its height."""
    from markupsafe import Markup

    record = json.loads(str(figure.to_json()))
    record["layout"].pop("width", None)
    text = json.dumps({"data": record["data"], "layout": record["layout"]}, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _css_class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _model_rows(report: Report) -> list[tuple[str, str]]:
    model = report.model
    heads = f"{model.n_heads} heads" + (f" ({model.n_kv_heads} KV heads)" if model.n_kv_heads != model.n_heads else "")
    return [
        ("model", model.name),
        ("source", model.source),
        ("shape", f"{model.n_layers} layers, {heads}, d_model {model.d_model}"),
        ("ran as", f"{model.dtype} on {model.device}, attention {model.attention}"),
        ("fingerprint", model.fingerprint),
    ]


def _provenance_rows(report: Report) -> list[tuple[str, str]]:
    source = report.provenance
    return [
        ("started", source.started),
        ("wall time", f"{three_digits(source.wall_seconds)} s"),
        ("seed", str(source.seed)),
        ("prompts (SHA-256)", source.prompts_sha256),
        ("machine", f"{source.cpu}; {source.platform}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in source.versions.items())),
    ]
