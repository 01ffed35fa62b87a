"""A feature graph as a figure: tokens across, layers up, features of one place side by side."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from circuits.features.graph import FeatureGraph
from mechlab.errors import MechlabError
from mechlab.results.wording import three_digits
from mechlab.views.style import BLUE, GRID_LINE, INK, MUTED, ORANGE, safe, template

_MARKS = {
    "feature": ("circle", BLUE, "feature"),
    "error": ("diamond-open", ORANGE, "transcoder error"),
    "mlp": ("square-open", MUTED, "whole MLP"),
    "embedding": ("square", MUTED, "embedding"),
    "target": ("star", INK, "target"),
}
_ACROSS = 0.8  # of a token's column that marks of one layer may take
_FEW_IN_A_COLUMN = 3  # marks that fit a token's column as it is
_FEW_LABELS = 8


def graph_figure(graph: FeatureGraph, title: str = "", *, max_edges: int = 150) -> go.Figure:
    """What pruning left of a graph, the largest edges drawn. Blue edges add to their target, red ones take from it.

    Raises:
        MechlabError: a graph without edges.
    """
    nodes, edges = graph.table(), graph.edge_table()
    if edges.empty or max_edges < 1:
        raise MechlabError("There is nothing to draw: this graph has no edges; prune less.")
    left_out, edges = max(0, len(edges) - max_edges), edges.head(max_edges)
    joined = {*edges.source, *edges.target}
    nodes = nodes[[name in joined for name in nodes.node]].reset_index(drop=True)
    rows = {layer: i for i, layer in enumerate(sorted(set(nodes.layer)))}
    tokens = graph.explained.run.tokens.pieces[0]
    columns = _columns(nodes, len(tokens))
    places = _places(nodes, rows, columns)
    figure = go.Figure()
    largest = float(edges.contribution.abs().max())
    for edge in edges.iloc[::-1].to_dict("records"):
        figure.add_trace(_edge(edge, places, largest))
    for kind, rows_of_kind in nodes.groupby("kind", sort=False):
        figure.add_trace(_marks(str(kind), rows_of_kind, places))
    figure.update_layout(
        template=template(), title_text=safe(title), height=190 + 62 * len(rows), hovermode="closest", margin={"b": 90}
    )
    figure.update_xaxes(
        tickvals=columns,
        ticktext=[safe(piece) for piece in tokens],
        range=[columns[0] - 0.8, max(columns[-1], *(x for x, _ in places.values())) + 0.6],
        zeroline=False,
    )
    top = graph.explained.run.n_layers
    words = {-1: "embedding", top: "logits"}
    figure.update_yaxes(
        tickvals=list(rows.values()),
        ticktext=[words.get(layer, f"layer {layer}") for layer in rows],
        range=[-0.5, len(rows) - 0.3],
        gridcolor=GRID_LINE,
        zeroline=False,
    )
    if left_out:
        figure.add_annotation(
            x=0, xref="paper", y=0, yref="paper", yshift=-70, xanchor="left", showarrow=False, font={"color": MUTED},
            text=f"The {left_out} smallest edges are not drawn.",
        )  # fmt: skip
    return figure


def _columns(nodes: pd.DataFrame, n_tokens: int) -> list[float]:
    """Where each token stands across: crowded ones take more room."""
    crowd = nodes.groupby(["layer", "pos"]).size().groupby("pos").max().reindex(range(n_tokens), fill_value=0)
    widths = np.maximum(1.0, crowd.to_numpy() / _FEW_IN_A_COLUMN)
    return (np.cumsum(widths) - widths / 2 - 0.5).tolist()


def _places(nodes: pd.DataFrame, rows: dict[int, int], columns: list[float]) -> dict[str, tuple[float, float]]:
    """Where each node stands: side by side within its token's column."""
    at: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, layer, pos in zip(nodes.node, nodes.layer, nodes.pos, strict=True):
        at[layer, pos].append(name)
    found: dict[str, tuple[float, float]] = {}
    for (layer, pos), names in at.items():
        gap = _ACROSS / _FEW_IN_A_COLUMN
        for i, name in enumerate(names):
            found[name] = (columns[pos] + gap * (i - (len(names) - 1) / 2), rows[layer])
    return found


def _edge(edge: dict[Any, Any], places: dict[str, tuple[float, float]], largest: float) -> go.Scatter:
    contribution = float(edge["contribution"])
    (x0, y0), (x1, y1) = places[edge["source"]], places[edge["target"]]
    strength = abs(contribution) / largest
    return go.Scatter(
        x=[x0, (x0 + x1) / 2, x1],
        y=[y0, (y0 + y1) / 2, y1],
        mode="lines",
        line={"color": "#0b3d91" if contribution > 0 else "#8c1420", "width": 0.6 + 4 * strength},
        opacity=0.2 + 0.6 * strength,
        text=f"{safe(edge['source'])} → {safe(edge['target'])}<br>adds {three_digits(contribution)}",
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _marks(kind: str, nodes: pd.DataFrame, places: dict[str, tuple[float, float]]) -> go.Scatter:
    symbol, colour, name = _MARKS[kind]
    labelled = nodes.nlargest(_FEW_LABELS, "influence").node.tolist() if kind == "feature" else []
    sides = ["top center" if i % 2 else "bottom center" for i in range(len(nodes))]  # neighbours' labels stand apart
    return go.Scatter(
        x=[places[node][0] for node in nodes.node],
        y=[places[node][1] for node in nodes.node],
        mode="markers+text",
        marker={"symbol": symbol, "color": colour, "size": 13 if kind == "target" else 9},
        text=[safe(node.partition("@")[0]) if node in labelled else "" for node in nodes.node],
        textposition=sides,
        textfont={"size": 9},
        hovertext=[
            f"<b>{safe(node)}</b><br>{name}<br>influence {three_digits(influence)}"
            for node, influence in zip(nodes.node, nodes.influence, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        name=name,
    )
