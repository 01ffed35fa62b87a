"""Figures of the sink and massive-activation studies: lines over layers or steps, points of tokens, a paper's numbers beside ours."""

import pandas as pd
import plotly.graph_objects as go

from mechlab.views.style import MUTED, ORANGE, safe, template, token

_LEGEND_LEFT = {"x": 0, "xanchor": "left"}
_DASHES = ("solid", "dash", "dot", "dashdot")


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    *,
    x_title: str = "",
    y_title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marks: bool = True,
) -> go.Figure:
    """One line per value of ``by``, in order of appearance; dashes tell lines apart where colours come round again.

    Args:
        frame: long form; on a logarithmic axis, values that are not above zero are left out.
        x, y, by: column names; text in ``x`` gives places in order of appearance.
        marks: whether points are marked.
    """
    figure = go.Figure()
    names = list(dict.fromkeys(frame[by]))
    for index, name in enumerate(names):
        rows = frame[frame[by] == name]
        values = rows[y].where(rows[y] > 0) if log_y else rows[y]
        figure.add_scatter(
            x=rows[x],
            y=values,
            name=safe(name),
            mode="lines+markers" if marks else "lines",
            marker={"size": 5},
            line={"width": 2, "dash": _DASHES[index // 6 % len(_DASHES)]},
            hovertemplate=f"{safe(name)}<br>{safe(x_title or x)} %{{x}}<br>%{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(template=template(), height=400 + 10 * len(names), margin={"t": 28})
    figure.update_layout(legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"})
    figure.update_xaxes(title_text=safe(x_title or x), type="log" if log_x else "-")
    figure.update_yaxes(title_text=safe(y_title or y), type="log" if log_y else "linear", exponentformat="power")
    return figure


def token_points(
    frame: pd.DataFrame, x: str, y: str, highlighted: str, *, x_title: str, y_title: str, name: str, others: str
) -> go.Figure:
    """A point per token; those whose column ``highlighted`` is true stand out and bear their token.

    Args:
        frame: with a column ``piece``, the token's text.
        name, others: of the two groups, in the legend.
    """
    figure = go.Figure()
    for flag, label, colour, size in ((False, others, MUTED, 4), (True, name, ORANGE, 8)):
        rows = frame[frame[highlighted].astype(bool) == flag]
        figure.add_scatter(
            x=rows[x],
            y=rows[y],
            mode="markers",
            name=safe(label),
            marker={"color": colour, "size": size, "opacity": 0.9 if flag else 0.35},
            text=[token(str(piece)) for piece in rows["piece"]],
            hovertemplate="%{text}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
        )
    figure.update_layout(template=template(), height=440, margin={"t": 40}, legend=_LEGEND_LEFT)
    figure.update_xaxes(title_text=safe(x_title))
    return figure.update_yaxes(title_text=safe(y_title))
