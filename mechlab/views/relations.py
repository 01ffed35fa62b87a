"""Figures of relation-specific units: where they lie, and what is known without them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechlab.results.wording import measured_text
from mechlab.views.figures import heatmap
from mechlab.views.style import BLUE, MUTED, ORANGE, safe, template

_SERIES = (("before", "all units", BLUE, "circle"), ("after", "without the units", ORANGE, "diamond"))
_RANDOM = ("random", "without random units", MUTED, "square")
_APART = 0.22


def units_by_layer(frame: pd.DataFrame, n_layers: int) -> go.Figure:
    """How many units of each relation lie in each layer.

    Args:
        frame: one row per unit: ``relation`` and ``layer``.
        n_layers: of the model.
    """
    names = list(dict.fromkeys(frame["relation"]))
    counts = pd.crosstab(frame["relation"], frame["layer"]).reindex(index=names, columns=range(n_layers), fill_value=0)
    counts.index.name, counts.columns.name = "relation", "layer"
    figure = heatmap(counts, "", "units", diverging=False).update_layout(height=170 + 34 * len(names))
    every = max(1, round(n_layers / 10))
    return figure.update_xaxes(
        tickvals=list(range(0, n_layers, every)), ticktext=list(range(0, n_layers, every)), tickangle=0
    )


def accuracy_without_units(frame: pd.DataFrame, own: str) -> go.Figure:
    """Accuracy of every relation with all units, without those of ``own``, and without as many random ones, with intervals.

    Args:
        frame: one row per tested relation: ``relation``, and for each of ``before``, ``after`` and ``random`` the columns ``NAME``,
            ``NAME_low`` and ``NAME_high``. The row of ``own`` stands first and is set in bold.
    """
    figure = go.Figure()
    order = [own, *(name for name in frame["relation"] if name != own)]
    rows = frame.set_index("relation").loc[order]
    for i, (column, name, colour, symbol) in enumerate((*_SERIES, _RANDOM)):
        _add_points(figure, rows, column, name, colour, symbol, (i - 1) * _APART)
    labels = [f"<b>{safe(name)}</b>" if name == own else safe(name) for name in order]
    figure.update_layout(
        template=template(), height=150 + 62 * len(order), margin={"t": 40}, legend={"x": 0, "xanchor": "left"}
    )
    figure.update_xaxes(title_text="accuracy on facts not used to find the units (share right)", range=[-0.03, 1.03])
    ticks = {"tickvals": list(range(len(order))), "ticktext": labels, "range": [len(order) - 0.5, -0.5]}
    return figure.update_yaxes({**ticks, "showgrid": False, "zeroline": False})


def _add_points(
    figure: go.Figure, rows: pd.DataFrame, column: str, name: str, colour: str, symbol: str, shift: float
) -> None:
    value, low, high = (rows[key].to_numpy(dtype=np.float64) for key in (column, f"{column}_low", f"{column}_high"))
    figure.add_scatter(
        x=value,
        y=np.arange(len(rows)) + shift,
        mode="markers",
        name=name,
        marker={"color": colour, "size": 10, "symbol": symbol},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": high - value,
            "arrayminus": value - low,
            "color": colour,
            "thickness": 1.6,
            "width": 4,
        },
        hovertext=[
            f"{safe(relation)}<br>{name}: {text}"
            for relation, text in zip(rows.index, _texts(value, low, high), strict=True)
        ],
        hoverinfo="text",
    )


def _texts(value: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[str]:
    return [measured_text(float(v), float(a), float(b)) for v, a, b in zip(value, low, high, strict=True)]
