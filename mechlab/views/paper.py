"""A paper's numbers beside ours, as a figure: bars in one unit, or marks with our intervals."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechlab.views.style import BLUE, INK, MUTED, safe, template

_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"}


def paper_beside_ours(frame: pd.DataFrame, *, x_title: str) -> go.Figure:
    """Grouped bars, one pair per row, first row at the top; a number that is not there has no bar.

    Args:
        frame: columns ``quantity``, ``paper`` and ``ours``, all in one unit.
        x_title: that unit.
    """
    places = np.arange(len(frame))
    figure = go.Figure()
    for column, colour in (("paper", MUTED), ("ours", BLUE)):
        figure.add_bar(
            x=frame[column],
            y=places,
            orientation="h",
            name=column,
            marker={"color": colour},
            customdata=[safe(text) for text in frame["quantity"]],
            hovertemplate=f"%{{customdata}}<br>{column} %{{x:.3g}}<extra></extra>",
        )
    figure.update_yaxes(
        tickvals=places, ticktext=[safe(text) for text in frame["quantity"]], autorange="reversed", showgrid=False
    )
    figure.update_layout(template=template(), barmode="group", height=130 + 44 * len(frame), margin={"t": 48})
    figure.update_layout(legend=_LEGEND)
    return figure.update_xaxes(title_text=safe(x_title))


def paper_with_intervals(frame: pd.DataFrame) -> go.Figure:
    """A row per measure and model of the paper: its number (circle) and ours with its interval (diamond), in the measure's own unit.

    Args:
        frame: columns ``measure``, ``theirs`` (whose number), ``paper``, ``ours``, ``low``, ``high``; a missing number has no mark.
    """
    shown = frame.iloc[::-1]
    places = list(range(len(shown)))
    figure = go.Figure()
    figure.add_scatter(
        x=shown["paper"],
        y=places,
        mode="markers",
        name="paper",
        marker={"color": MUTED, "size": 10},
        hovertemplate="paper %{x:.4g}<extra></extra>",
    )
    figure.add_scatter(
        x=shown["ours"],
        y=places,
        mode="markers",
        name="ours",
        marker={"color": BLUE, "size": 11, "symbol": "diamond"},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": shown["high"] - shown["ours"],
            "arrayminus": shown["ours"] - shown["low"],
            "color": INK,
            "thickness": 1.4,
        },
        hovertemplate="ours %{x:.4g}<extra></extra>",
    )
    labels = [f"{safe(a)}<br><i>{safe(b)}</i>" for a, b in zip(shown["measure"], shown["theirs"], strict=True)]
    figure.update_layout(template=template(), height=110 + 40 * len(shown), margin={"t": 40}, legend=_LEGEND)
    figure.update_yaxes(tickvals=places, ticktext=labels, range=[-0.6, len(shown) - 0.4])
    return figure.update_xaxes(title_text="in each measure's own unit")
