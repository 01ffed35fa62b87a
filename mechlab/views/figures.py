"""Figures: pure functions from frames, findings and arrays to plotly figures, meant for a width of 900-1100 px.

Diverging colours are always centred at zero, layer 0 is at the bottom, tokens are shown as tokens.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from mechlab.results.finding import Finding
from mechlab.results.wording import three_digits
from mechlab.views.style import ABSENT, BLUE, DIVERGING, INK, MUTED, SEQUENTIAL, VERDICT_COLOUR, safe, template, token

_MOST_TICKS = 40


def heatmap(
    grid: pd.DataFrame,
    title: str,
    colour_title: str,
    *,
    diverging: bool = True,
    x_title: str = "",
    y_title: str = "",
) -> go.Figure:
    """A labelled grid as colours; the first row (layer 0) is at the bottom, absent cells are grey.

    Args:
        grid: rows × columns, as `Effects.grid` gives it.
        title: of the figure.
        colour_title: what the colour means, with its unit.
        diverging: red below zero, white at zero, blue above, as far either way. False: white at the smallest value, for
            quantities without a meaningful zero or without a sign.
        x_title, y_title: default: the names of the grid's axes.
    """
    values = grid.to_numpy(dtype=np.float64)
    x_title, y_title = x_title or str(grid.columns.name or ""), y_title or str(grid.index.name or "")
    columns, rows = [safe(label) for label in grid.columns], [safe(label) for label in grid.index]
    figure = _grid_figure(
        values, columns, rows, colour_title, (x_title or "column", y_title or "row"), diverging=diverging
    )
    return _laid_out(figure, title, x_title, y_title, height=_grid_height(len(rows)))


def pattern(tokens: Sequence[str], matrix: ArrayLike, title: str = "Attention pattern") -> go.Figure:
    """One head's attention: how much each token (rows, first at the top) attends to each token (columns).

    Args:
        tokens: the prompt's tokens, ``n`` of them; repeated tokens stay separate rows.
        matrix: ``[query, key]``, probabilities; each row sums to 1.
        title: of the figure.
    """
    values, n = np.asarray(matrix, dtype=np.float64), len(tokens)
    assert values.shape == (n, n), f"A pattern of {n} tokens is [{n}, {n}], got {list(values.shape)}."
    labels = [token(text) for text in tokens]
    future = np.triu(np.ones((n, n), dtype=bool), k=1) & (values == 0)  # what causal attention cannot see is left blank
    shown = np.where(future, np.nan, values)
    figure = _grid_figure(shown, labels, labels, "attention", ("key", "query"), diverging=False, limits=(0.0, 1.0))
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=-45)
    return _laid_out(figure, title, "attends to (key)", "token (query)", height=_grid_height(n))


def bars_with_intervals(
    frame: pd.DataFrame, x: str, y: str, low: str, high: str, *, title: str, x_title: str = "", y_title: str = ""
) -> go.Figure:
    """Bars from zero with their intervals; a bar whose bounds are NaN has none.

    Args:
        frame: one row per bar, in order.
        x, y, low, high: columns with the label, the estimate and its bounds.
        title: of the figure.
        x_title, y_title: default: the column names.
    """
    estimate, bounds = frame[y].to_numpy(dtype=np.float64), frame[[low, high]].to_numpy(dtype=np.float64)
    labels = [safe(label) for label in frame[x]]
    bar = go.Bar(
        x=list(range(len(frame))),
        y=estimate,
        marker={"color": BLUE},
        error_y=_error_bars(estimate, bounds[:, 0], bounds[:, 1], INK),
        customdata=np.column_stack([np.array(labels, dtype=object), _texts(bounds[:, 0]), _texts(bounds[:, 1])]),
        hovertemplate="%{customdata[0]}<br>%{y:.3g} [%{customdata[1]}, %{customdata[2]}]<extra></extra>",
    )
    figure = go.Figure(bar)
    figure.update_xaxes({**_ticks(labels), "showgrid": False})
    return _laid_out(figure, title, x_title or x, y_title or y, height=380)


def intervals_against_controls(finding: Finding) -> go.Figure:
    """The claim's estimate and interval above those of each control, with the rule's threshold as a dashed line."""
    rows = [("this claim", finding.estimate, finding.low, finding.high)]
    rows += [(control.name, control.estimate, control.low, control.high) for control in finding.controls]
    colours = [VERDICT_COLOUR[finding.verdict], *[MUTED] * len(finding.controls)]
    figure = go.Figure()
    for i, ((name, estimate, low, high), colour) in enumerate(zip(rows, colours, strict=True)):
        figure.add_scatter(
            x=[estimate],
            y=[i],
            mode="markers",
            marker={"color": colour, "size": 12 if i == 0 else 9, "symbol": "diamond" if i == 0 else "circle"},
            error_x=_error_bars(np.array([estimate]), np.array([low]), np.array([high]), colour),
            hovertemplate=f"{safe(name)}<br>%{{x:.3g}} [{three_digits(low)}, {three_digits(high)}]<extra></extra>",
            showlegend=False,
        )
    threshold = finding.rule.threshold
    figure.add_vline(x=threshold, line={"color": INK, "dash": "dash", "width": 1.5})
    figure.add_annotation(
        x=threshold, y=1, yref="paper", yanchor="bottom", text=f"threshold {three_digits(threshold)}", showarrow=False
    )
    names = [f"<b>{rows[0][0]}</b>", *(safe(_shortened(row[0])) for row in rows[1:])]
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, range=[len(rows) - 0.5, -0.5])
    figure.update_yaxes(showgrid=False, zeroline=False)
    return _laid_out(figure, "", finding.quantity, "", height=116 + 34 * len(rows))


def _grid_figure(
    values: NDArray[np.float64],
    columns: list[str],
    rows: list[str],
    colour_title: str,
    axes: tuple[str, str],
    *,
    diverging: bool,
    limits: tuple[float, float] | None = None,
) -> go.Figure:
    """Cells at whole-number places, so that equal labels stay separate rows and columns."""
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size and np.abs(finite).max() > 0 else 1.0
    scale = (
        {"colorscale": DIVERGING, "zmid": 0, "zmin": -largest, "zmax": largest}
        if diverging
        else {"colorscale": SEQUENTIAL}
    )
    if limits is not None:
        scale |= {"zmin": limits[0], "zmax": limits[1]}
    names = np.empty((*values.shape, 2), dtype=object)
    names[..., 0], names[..., 1] = np.array(columns, dtype=object)[None, :], np.array(rows, dtype=object)[:, None]
    cells = go.Heatmap(
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        z=values,
        customdata=names,
        hovertemplate=f"{safe(axes[1])} %{{customdata[1]}}<br>{safe(axes[0])} %{{customdata[0]}}"
        f"<br>{safe(colour_title)} %{{z:.3g}}<extra></extra>",
        hoverongaps=False,
        colorbar={"title": {"text": safe(colour_title), "side": "right"}, "thickness": 14, "outlinewidth": 0},
        xgap=1,
        ygap=1,
        **scale,
    )
    figure = go.Figure(cells)
    figure.update_xaxes({**_ticks(columns), "showgrid": False, "zeroline": False})
    figure.update_yaxes({**_ticks(rows), "showgrid": False, "zeroline": False})
    return figure.update_layout(plot_bgcolor=ABSENT)


def _laid_out(figure: go.Figure, title: str, x_title: str, y_title: str, *, height: int) -> go.Figure:
    figure.update_layout(template=template(), height=height, title_text=safe(title))
    if not title:  # the page has its own heading: no room is kept for one
        figure.update_layout(margin={"t": 28})
    figure.update_xaxes(title_text=safe(x_title))
    return figure.update_yaxes(title_text=safe(y_title))


def _error_bars(
    estimate: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], colour: str
) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": high - estimate,
        "arrayminus": estimate - low,
        "color": colour,
        "thickness": 1.6,
        "width": 5,
    }


def _ticks(labels: list[str]) -> dict[str, object]:
    """Every label, or every second, fifth, … where they would collide."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if len(labels) <= s * _MOST_TICKS)
    places = list(range(0, len(labels), step))
    return {"tickvals": places, "ticktext": [labels[i] for i in places]}


def _grid_height(n_rows: int) -> int:
    return int(min(900, max(320, 160 + 20 * n_rows)))


def _texts(numbers: NDArray[np.float64]) -> NDArray[np.object_]:
    return np.array([three_digits(float(number)) for number in numbers], dtype=object)


def _shortened(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:43]}…"
