"""A small whole report, made by hand."""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechlab.results import Control, FigureItem, Finding, ModelInfo, Provenance, Report, Rule, Table


@pytest.fixture
def make_finding() -> Callable[..., Finding]:
    def make(estimate: float = 0.4, low: float = 0.3, high: float = 0.5, **changes: object) -> Finding:
        fields: dict[str, object] = {
            "key": "movers",
            "statement": "Three heads restore the answer.",
            "quantity": "fraction recovered",
            "n": 40,
            "controls": [Control(name="random heads", estimate=0.02, low=-0.01, high=0.06, n=10)],
            "rule": Rule(direction=">", threshold=0.05),
        }
        return Finding.model_validate(fields | {"estimate": estimate, "low": low, "high": high} | changes)

    return make


@pytest.fixture
def make_report(make_finding: Callable[..., Finding]) -> Callable[..., Report]:
    def make(**changes: object) -> Report:
        frame = pd.DataFrame({"head": ["L0H1", "L2H0"], "layer": [0, 2], "recovered": [0.25, float("nan")]})
        figure = go.Figure(go.Bar(x=["L0H1", "L2H0"], y=[0.25, 0.5]))
        provenance = Provenance(
            seed=3,
            versions={"python": "3.11"},
            platform="Linux",
            cpu="a cpu",
            started="2026-01-02T03:04:05+00:00",
            wall_seconds=1.5,
            prompts_sha256="00",
            command="mechlab run ioi",
        )
        model = ModelInfo(
            name="org/Tiny Model",
            source="built in code",
            fingerprint="f00d",
            n_layers=3,
            n_heads=2,
            n_kv_heads=1,
            d_model=8,
            dtype="float32",
            device="cpu",
            attention="mechlab",
        )
        fields: dict[str, object] = {
            "study": "ioi",
            "title": "Which heads?",
            "summary_text": "What was asked.",
            "paper": "A paper",
            "model": model,
            "config": {"n_prompts": 40, "layers": (0, 2)},
            "findings": [make_finding()],
            "tables": [Table("heads", "Heads", frame, "note")],
            "figures": [FigureItem("heads", "Heads", figure, "heads")],
            "provenance": provenance,
        }
        return Report(**(fields | changes))

    return make
