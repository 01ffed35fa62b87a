"""Features: figures of a feature's examples, codes and logit effects, and its examples as HTML. Tokens are shown as tokens."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from mechlab.views.style import ABSENT, BLUE, INK, ORANGE, SEQUENTIAL, safe, template, token

Values = Sequence[float | None]
_RGB = (33, 113, 181)


def token_strip(pieces: Sequence[str], values: Values, largest: float | None = None) -> str:
    """Tokens as HTML, the stronger the code the darker the ground; hovering tells the number.

    Args:
        values: a code for each token; None where there is none.
        largest: the code that is darkest; by default the largest here.
    """
    top = largest or max((abs(v) for v in values if v is not None), default=0.0) or 1.0
    return "".join(_span(piece, value, top) for piece, value in zip(pieces, values, strict=True))


def _span(piece: str, value: float | None, top: float) -> str:
    shown = html.escape(piece.replace("\n", "↵").replace("\t", "⇥"), quote=True)
    share = 0.0 if value is None else min(abs(value) / top, 1.0)
    r, g, b = _RGB if value is None or value >= 0 else (178, 24, 43)
    ink = "#fff" if share > 0.6 else INK
    told = "no code" if value is None else f"{value:.3g}"
    style = f"background:rgba({r},{g},{b},{share:.2f});color:{ink};white-space:pre-wrap"
    return f'<span style="{style}" title="{told}">{shown}</span>'


def examples_html(heading: str, strips: Sequence[tuple[Sequence[str], Values]]) -> str:
    """A heading and one line for each example, in one scale."""
    top = max((abs(v) for _, values in strips for v in values if v is not None), default=1.0)
    lines = "".join(f"<li>{token_strip(pieces, values, top)}</li>" for pieces, values in strips)
    return f'<section class="feature"><h3>{html.escape(heading)}</h3><ol>{lines}</ol></section>'


def examples_figure(examples: Sequence[tuple[Sequence[str], Values, int]], title: str = "") -> go.Figure:
    """Examples as rows of tokens around their strongest one, which stands in column 0; the colour is the code.

    Args:
        examples: tokens, their codes, and the place of the strongest; the first is at the top.
    """
    before = max((at for _, _, at in examples), default=0)
    after = max((len(pieces) - at - 1 for pieces, _, at in examples), default=0)
    shape = (len(examples), before + 1 + after)
    z, text = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    for row, (pieces, values, at) in enumerate(examples):
        for i, (piece, value) in enumerate(zip(pieces, values, strict=True)):
            column = before - at + i
            z[row, column] = 0.0 if value is None else value
            text[row, column] = token(_shortened(piece))
    cells = go.Heatmap(
        x=list(range(-before, after + 1)),
        y=list(range(1, len(examples) + 1)),
        z=z,
        text=text,
        texttemplate="%{text}",
        textfont={"size": 10},
        hovertemplate="%{text}<br>code %{z:.3g}<extra></extra>",
        hoverongaps=False,
        colorscale=SEQUENTIAL,
        zmin=0,
        zmax=float(np.nanmax(z, initial=0.0)) or 1.0,  # Plotly takes no zmin without it
        colorbar={"title": {"text": "code", "side": "right"}, "thickness": 14, "outlinewidth": 0},
        xgap=1,
        ygap=2,
    )
    figure = go.Figure(cells)
    figure.update_layout(template=template(), title_text=safe(title), height=120 + 30 * max(len(examples), 2))
    figure.update_layout(plot_bgcolor=ABSENT, margin={"t": 56 if title else 28})
    figure.update_xaxes(title_text="tokens from the strongest one", showgrid=False, zeroline=False)
    return figure.update_yaxes(title_text="example", autorange="reversed", dtick=1, showgrid=False, zeroline=False)


def codes_figure(histogram: Sequence[float], edges: Sequence[float], title: str = "") -> go.Figure:
    """How often a feature's code has each size, zeros left out; the count is on a logarithmic axis."""
    edges_ = np.asarray(edges, dtype=np.float64)
    middles, widths = (edges_[1:] + edges_[:-1]) / 2, np.diff(edges_)
    figure = go.Figure(go.Bar(x=middles, y=np.asarray(histogram), width=widths, marker={"color": BLUE}))
    figure.update_layout(template=template(), title_text=safe(title), height=300, bargap=0)
    figure.update_xaxes(title_text="code, where the feature is active")
    return figure.update_yaxes(title_text="tokens", type="log")


def logits_figure(
    promoted: Sequence[tuple[str, float]], suppressed: Sequence[tuple[str, float]], title: str = ""
) -> go.Figure:
    """The tokens that one unit of a feature promotes and suppresses the most, with the effect on their logits."""
    rows = [*promoted, *reversed(suppressed)]
    figure = go.Figure(
        go.Bar(
            x=[value for _, value in rows],
            y=list(range(len(rows))),
            orientation="h",
            marker={"color": [BLUE if value >= 0 else ORANGE for _, value in rows]},
            hovertemplate="%{x:.3g}<extra></extra>",
        )
    )
    figure.update_layout(template=template(), title_text=safe(title), height=110 + 20 * len(rows), bargap=0.25)
    figure.update_xaxes(title_text="effect on the logit, for one unit of code")
    labels = [token(piece) for piece, _ in rows]
    return figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed", showgrid=False)


def _shortened(piece: str) -> str:
    return piece if len(piece) <= 10 else f"{piece[:9]}…"
