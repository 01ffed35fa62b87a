"""A paper's numbers beside ours, as a figure."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechlab.views.style import BLUE, MUTED, safe, template


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
    figure.update_layout(legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"})
    return figure.update_xaxes(title_text=safe(x_title))
