"""How a model routes text, in tables: load, specialisation by kind of token, position and class of prompt, who goes together."""

from typing import TypeAlias

import numpy as np
import pandas as pd

from mechlab.analyses.experts import (
    TOKEN_CLASSES,
    Routed,
    by_group,
    coactivation,
    load_entropy,
    position_thirds,
    specialisation,
    token_classes,
)
from mechlab.results.report import FigureItem, Table
from mechlab.studies.experts_evidence import Evidence
from mechlab.views.experts import coactivation as coactivation_figure
from mechlab.views.experts import expert_map
from mechlab.views.figures import heatmap

Part: TypeAlias = tuple[Table, list[FigureItem]]


def routing_tables(evidence: Evidence) -> list[Part]:
    """Load and specialisation on neutral text, and of the two classes of prompts."""
    return [_load(evidence.neutral), _layers(evidence), _classes(evidence.neutral), _together(evidence)]


def _load(found: Routed) -> Part:
    used = found.used()
    row, expert = np.indices(used.shape)
    weights = found.maps().sum(axis=0) / max(sum(found.tokens.lengths), 1)
    frame = pd.DataFrame(
        {
            "layer": np.array(found.layers)[row.ravel()],
            "expert": expert.ravel(),
            "share of tokens": used.ravel(),
            "mean weight": weights.ravel(),
        }
    )
    title = "Load: how many tokens of neutral text each expert gets"
    note = (
        "Share of tokens that choose the expert; the shares of a layer sum to the number of experts chosen for a token."
    )
    figure = expert_map(used, found.layers, "share of tokens", diverging=False)
    return Table("load", title, frame, note), [FigureItem("load", title, figure, "load", note)]


def _layers(evidence: Evidence) -> Part:
    text, prompts = evidence.neutral, evidence.model.routed
    n = len(evidence.contrast.selection.behaving)
    classes = np.repeat((np.arange(len(prompts.tokens)) < n).astype(np.int64)[:, None], prompts.tokens.width, axis=1)
    frame = pd.DataFrame(
        {
            "layer": [str(layer) for layer in text.layers],
            "entropy of the load": load_entropy(text.used()),
            "bits about kind of token": specialisation(text, token_classes(text.tokens), len(TOKEN_CLASSES)),
            "bits about position": specialisation(text, position_thirds(text.tokens), 3),
            "bits about class of prompt": specialisation(prompts, classes, 2),
        }
    )
    title = "Load and specialisation by layer"
    note = (
        "Entropy: 1 where all experts are used alike. Bits: what the expert a token is sent to tells of the kind of token, of the third of "
        "the text it stands in, or (selection prompts) of the class of its prompt."
    )
    grid = frame.set_index("layer").T
    grid.columns.name = "layer"
    figure = heatmap(grid, "", "share, or bits", diverging=False)
    return Table("layers", title, frame, note), [FigureItem("layers", title, figure, "layers", note)]


def _classes(found: Routed) -> Part:
    """Which expert gets which kind of token: the share of a kind's tokens less the share of all."""
    groups = token_classes(found.tokens)
    real = found.tokens.mask.numpy()
    present = [i for i in range(len(TOKEN_CLASSES)) if bool((real & (groups == i)).any())]
    shares = by_group(found, np.select([groups == i for i in present], list(range(len(present)))), len(present))
    above = shares - found.used()[..., None]
    rows = [
        (f"L{layer}E{e}", TOKEN_CLASSES[group], float(above[i, e, j]))
        for i, layer in enumerate(found.layers)
        for e in range(above.shape[1])
        for j, group in enumerate(present)
    ]
    frame = pd.DataFrame(rows, columns=["expert", "tokens", "share above the mean"])
    strongest = frame.groupby("expert")["share above the mean"].agg(lambda s: s.abs().max()).nlargest(24).index
    order = [name for name in dict.fromkeys(frame["expert"]) if name in set(strongest)]
    grid = frame.pivot(index="tokens", columns="expert", values="share above the mean")[order]
    title = "Which experts get which kind of token"
    note = "Share of the kind's tokens that choose the expert, less the share of all tokens; the 24 that differ most are drawn."
    figure = heatmap(grid, "", "share above the mean", x_title="expert", y_title="tokens").update_xaxes(tickangle=-45)
    return Table("classes", title, frame, note), [FigureItem("classes", title, figure, "classes", note)]


def _together(evidence: Evidence) -> Part:
    found = evidence.neutral
    pairs = coactivation(found)
    rows = [
        (layer, e, f, float(pairs[i, e, f]))
        for i, layer in enumerate(found.layers)
        for e in range(pairs.shape[1])
        for f in range(e + 1, pairs.shape[1])
    ]
    frame = pd.DataFrame(rows, columns=["layer", "expert", "other", "log2 ratio"])
    layer = evidence.model.top[0][0]
    title = f"Which experts are chosen together, layer {layer}"
    note = "log2 of how much oftener than by chance, on neutral text; pairs that never meet are grey. Layer of the most relevant expert."
    figure = coactivation_figure(pairs[found.layers.index(layer)])
    return Table("together", "Which experts are chosen together", frame, note), [
        FigureItem("together", title, figure, "together", note)
    ]
