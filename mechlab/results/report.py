"""Reports: the tables, figures and findings of one run of a study, with where they came from."""

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mechlab.results.finding import VERDICTS, Finding
from mechlab.results.provenance import ModelInfo as ModelInfo
from mechlab.results.provenance import Provenance as Provenance

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# Keys become file names on every system.
KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,79}")


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a report.

    Attributes:
        key: its file name without ending.
        title: what it shows.
        frame: columns with text names, one type each; the index is not kept.
        note: how to read it.
    """

    key: str
    title: str
    frame: "pd.DataFrame"
    note: str = ""

    def __post_init__(self) -> None:
        from pandas.api.types import infer_dtype

        _check_key("table", self.key)
        names = list(self.frame.columns)
        assert all(isinstance(name, str) for name in names) and len(set(names)) == len(names), (
            f"Table {self.key!r} needs distinct text column names, got {names}: melt or rename first."
        )
        mixed = [name for name in names if infer_dtype(self.frame[name], skipna=True).startswith("mixed")]
        assert not mixed, f"Table {self.key!r} mixes types in {mixed}: a column holds numbers or text, not both."


@dataclass(frozen=True, eq=False)
class FigureItem:
    """A figure of a report.

    Attributes:
        key: its file name without ending.
        title: what it shows.
        figure: plotly figure.
        table: key of the table it draws.
        note: how to read it.
    """

    key: str
    title: str
    figure: "go.Figure"
    table: str
    note: str = ""

    def __post_init__(self) -> None:
        _check_key("figure", self.key)


@dataclass(frozen=True, eq=False)
class Report:
    """One run of a study. Every table has a figure; keys are unique.

    Attributes:
        study: name of the study.
        title: heading.
        summary_text: what was asked, in a few plain sentences.
        paper: whose claims they are.
        model: the model they were tested on.
        config: the study's settings, JSON-ready.
        findings, tables, figures: what came out, in reading order.
        provenance: circumstances of the run.
    """

    study: str
    title: str
    summary_text: str
    paper: str
    model: ModelInfo
    config: dict[str, object]
    findings: tuple[Finding, ...]
    tables: tuple[Table, ...]
    figures: tuple[FigureItem, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        for name in ("findings", "tables", "figures"):  # lists are welcome, and kept as tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
            keys = [item.key for item in getattr(self, name)]
            assert len(set(keys)) == len(keys), f"Report of {self.study!r} repeats keys among its {name}: {keys}."
        tables, drawn = {table.key for table in self.tables}, {figure.table for figure in self.figures}
        assert tables <= drawn, f"Report of {self.study!r} has tables without a figure: {sorted(tables - drawn)}."
        assert drawn <= tables, f"Report of {self.study!r} has figures of tables it lacks: {sorted(drawn - tables)}."

    @property
    def verdicts(self) -> dict[str, int]:
        """How many findings have each verdict, all three named."""
        return {verdict: sum(finding.verdict == verdict for finding in self.findings) for verdict in VERDICTS}

    def as_dict(self, path: str | None = None) -> dict[str, object]:
        """JSON-ready: study, model, config, findings, tables as lists of records, path. NaN and infinity become None."""
        return {
            "study": self.study,
            "model": self.model.model_dump(),
            "config": plain(self.config),
            "findings": [finding.as_json() for finding in self.findings],
            "tables": {table.key: plain(table.frame.to_dict(orient="records")) for table in self.tables},
            "path": None if path is None else str(path),
        }

    def as_json(self, path: str | None = None) -> str:
        """`as_dict` as text that any JSON parser reads; ``path`` is where the run is stored."""
        return json.dumps(self.as_dict(path), ensure_ascii=False, indent=2, allow_nan=False)


def plain(value: object) -> object:
    """The value as JSON can hold it: NumPy numbers as Python's, missing and infinite numbers as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    missing = value != value or type(value).__name__ in ("NAType", "NaTType")
    return None if missing else str(value)


def _check_key(what: str, key: str) -> None:
    assert KEY.fullmatch(key), f"The {what} key {key!r} must be lower-case letters, digits, - and _: it names a file."
