"""Tables and figures of the sinks study: a figure for every table."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd

from mechlab.analyses.sinks_levels import PRIMARY
from mechlab.analyses.sinks_prompts import INPUTS
from mechlab.results.bootstrap_tables import bootstrap_mean_table
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.sinks_causes import removers_of
from mechlab.studies.sinks_claims import value_ratios, with_secondary
from mechlab.studies.sinks_evidence import NOTHING, Evidence
from mechlab.studies.sinks_tables_causal import causal_parts
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.paper import paper_with_intervals
from mechlab.views.sinks import lines

Part = tuple[Table, list[FigureItem]]
_GU = "Gu et al., Table 1"
_PAPER_RATES = {
    "GPT2-XL": (77.00, 70.29, 62.28),
    "LLaMA2-7B": (92.47, 90.13, 0.00),
    "LLaMA3-8B": (99.02, 91.23, 0.00),
    "Mistral-7B": (97.49, 75.21, 0.00),
}
"""Sink_1 at epsilon 0.3 on natural text, random tokens and a repeated token, in percent (Gu et al., arXiv 2410.10781)."""
_PAPER_SHARES = {"DeepSeek-R1-Distill-Qwen-14B": 56.7, "Qwen3-4B-Base": 40.0}
"""Percent of sequences with a secondary sink (from the authors' stored detections of 30 sequences, arXiv 2512.22213)."""


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [
        _paper(evidence),
        _rates(evidence),
        _heads(evidence),
        _profile(evidence),
        _levels(evidence),
        *causal_parts(evidence),
    ]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what, and what the first token does here."""
    of, settings = evidence.model.profile, evidence.settings
    spans = [f"{one.start} to {one.stop}" for one in of.episodes]
    here = (
        f"Here the token at position {of.position} is massive after layers {' and again after layers '.join(spans)} "
        f"(counted from 0; massive: {settings['massive']} times the median norm of the other tokens). "
        if spans
        else "Here the first token is never massive. "
    )
    n_seen, n = len(evidence.discovery), len(evidence.evaluation)
    return (
        f"Texts of {settings['length']} tokens; a token is a sink of a head that gives it more than {settings['epsilon']} of its "
        f"attention, mean over later queries. {here}{_made_again(evidence)}The sink's direction after each layer, the MLPs and neurons "
        f"that write and remove it, and the level of secondary sinks were found on {n_seen} texts; everything was measured on {n} others. "
        "Every claim was written down, with its rule, before the run."
    )


def _made_again(evidence: Evidence) -> str:
    """What the fall between two episodes does to the next one: a description, not a claim."""
    chain, sentences = evidence.causes.chain, []
    for index, (one, later) in enumerate(pairwise(evidence.causes.episodes)):
        if chain is None or removers_of(index) not in chain.outcomes:
            continue
        before, after = (
            chain.outcomes[name].norms[:, later.episode.peak].mean() for name in (NOTHING, removers_of(index))
        )
        layers = " and ".join(str(layer) for layer in sorted(one.parts.removers))
        sentences.append(
            f"With the neurons off that remove it in layers {layers}, its norm in the next episode is {after:,.0f}, "
            f"not {before:,.0f}. "
        )
    return "".join(sentences)


def _paper(evidence: Evidence) -> Part:
    """The paper's numbers are percentages of much larger models; ours are of this one."""
    rows = []
    for at, kind in enumerate(INPUTS):
        ours = bootstrap_mean(100 * evidence.model.rates[kind].first)
        rows += [
            (f"Sink_1, {kind}, %", name, numbers[at], ours.estimate, ours.low, ours.high, ours.n, _GU)
            for name, numbers in _PAPER_RATES.items()
        ]
    ours = bootstrap_mean(100 * with_secondary(evidence.model))
    rows += [
        ("texts with a secondary sink, %", name, share, ours.estimate, ours.low, ours.high, ours.n, "stored detections")
        for name, share in _PAPER_SHARES.items()
    ]
    frame = pd.DataFrame(rows, columns=["measure", "theirs", "paper", "ours", "low", "high", "n", "where"])
    title = "The papers' numbers beside ours"
    note = (
        "Theirs are larger models: read the pattern, not the size. Secondary sinks were measured on generated texts of some 9,500 tokens "
        f"there, on texts of {evidence.settings['length']} here."
    )
    return Table("paper_beside_ours", title, frame, note), [
        FigureItem("paper_beside_ours", title, paper_with_intervals(frame), "paper_beside_ours", note)
    ]


def _rates(evidence: Evidence) -> Part:
    rows = []
    for who, side in (("model", evidence.model), ("random-weight twin", evidence.twin)):
        for kind in INPUTS:
            for what, values in (("first token", side.rates[kind].first), ("best other", side.rates[kind].other)):
                found = bootstrap_mean(values)
                rows.append((who, kind, what, found.estimate, found.low, found.high, found.n))
    frame = pd.DataFrame(rows, columns=["who", "input", "token", "rate", "low", "high", "n"])
    short = frame["who"].map({"model": "", "random-weight twin": " (twin)"})
    labels = frame["input"] + ", " + frame["token"].map({"first token": "first", "best other": "other"}) + short
    figure = bars_with_intervals(
        frame.assign(label=labels),
        "label",
        "rate",
        "low",
        "high",
        title="",
        x_title="input, token",
        y_title="Sink rate: share of heads",
    ).update_xaxes(tickangle=-45)
    title = "How often a token is an attention sink"
    note = "Share of all heads in which the token gets more attention than epsilon; other: the later position that comes highest."
    return Table("rates", title, frame, note), [FigureItem("rates", title, figure, "rates", note)]


def _heads(evidence: Evidence) -> Part:
    maps = {kind: evidence.model.rates[kind].by_head for kind in INPUTS}
    n_layers, n_heads = maps["natural"].shape
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    frame = pd.DataFrame({"layer": layer, "head": head} | {kind: grid.ravel() for kind, grid in maps.items()})
    gap = np.full((n_layers, 1), np.nan)
    columns = [str(at) for at in range(n_heads)]
    grid = pd.DataFrame(
        np.concatenate([maps["natural"], gap, maps["random"], gap, maps["repeated"]], axis=1),
        index=pd.RangeIndex(n_layers, name="layer"),
        columns=[*columns, "", *columns, " ", *columns],
    )
    figure = heatmap(
        grid,
        "",
        "attention",
        diverging=False,
        x_title="head: natural text | random tokens | one token repeated",
        y_title="layer",
    )
    title = "Attention that the first token receives, by head"
    note = "Mean over queries and held-out prompts."
    return Table("heads", title, frame, note), [FigureItem("heads", title, figure, "heads", note)]


def _profile(evidence: Evidence) -> Part:
    model, twin = evidence.model, evidence.twin
    ratios, values = bootstrap_mean_table(model.ratios.T), bootstrap_mean_table(value_ratios(model).T)
    received = model.found.received[..., model.profile.position].mean(axis=2)
    span = model.profile.paper_span
    frame = pd.DataFrame(
        {
            "layer": np.arange(evidence.n_layers),
            "norm_ratio": ratios.estimate,
            "low": ratios.low,
            "high": ratios.high,
            "best_other": model.profile.other_ratios.mean(axis=0),
            "twin": twin.ratios.mean(axis=0),
            "value_ratio": values.estimate,
            "received": received.mean(axis=0),
            "in_paper_span": [span is not None and span[0] <= layer <= span[1] for layer in range(evidence.n_layers)],
        }
    )
    names = {"norm_ratio": "first token", "best_other": "best other position", "twin": "first token (twin)"}
    melted = frame.melt("layer", list(names), "who", "ratio").assign(who=lambda f: f["who"].map(names))
    norm = lines(
        melted, "layer", "ratio", "who", x_title="after layer", y_title="norm / others' median norm", log_y=True
    )
    norm.add_hline(y=evidence.limits.massive, line={"dash": "dash", "width": 1})
    names = {"received": "attention it receives", "value_ratio": "value norm / others' median"}
    melted = frame.melt("layer", list(names), "what", "ratio").assign(what=lambda f: f["what"].map(names))
    drawn = lines(melted, "layer", "ratio", "what", x_title="in layer", y_title="ratio, and share of attention")
    title = "The first token, layer by layer"
    note = (
        "Held-out text. Dashed: from here on it counts as massive. The paper's rule would name one span: see the table."
    )
    beside = "Attention in layer l reads what layer l - 1 left."
    return Table("profile", title, frame, note), [
        FigureItem("profile", title, norm, "profile", note),
        FigureItem("profile_values", "Its values and the attention it draws", drawn, "profile", beside),
    ]


def _levels(evidence: Evidence) -> Part:
    """(creation layer, lifetime) of all sinks; the primary's own are among them."""
    n = len(evidence.evaluation)
    groups: dict[tuple[int, str, int, int], list[tuple[int, str]]] = {}
    for sink in evidence.model.sinks:
        groups.setdefault((sink.episode + 1, sink.kind, sink.start, sink.lifetime), []).append(
            (sink.prompt, sink.piece)
        )
    rows = [
        (*key, len(found), len({prompt for prompt, _ in found}) / n, _commonest([piece for _, piece in found]))
        for key, found in sorted(groups.items())
    ]
    columns = ["episode", "kind", "creation_layer", "lifetime", "sinks", "share_of_texts", "tokens"]
    frame = pd.DataFrame(rows, columns=columns).astype({"tokens": "str", "kind": "str"})
    others = frame[frame["kind"] != PRIMARY]
    grid = others.pivot_table(index="lifetime", columns="creation_layer", values="sinks", aggfunc="sum")
    if grid.empty:
        grid = pd.DataFrame(
            [[0.0]], index=pd.Index(["none"], name="lifetime"), columns=pd.Index(["none"], name="creation_layer")
        )
    figure = heatmap(grid, "", "sinks", diverging=False, x_title="created by layer", y_title="lifetime, layers")
    figure.update_traces(zmin=0)
    title = "Sink levels: where a sink is made, how long it lives"
    limits = evidence.limits
    note = (
        f"Runs of layers with |cos| above {limits.cosine} with the first token's direction, on held-out text. Noise: at most "
        f"{limits.noise_share} of the depth; like the primary: from {limits.primary_share} on. The figure leaves the primary itself out."
    )
    return Table("levels", title, frame, note), [FigureItem("levels", title, figure, "levels", note)]


def _commonest(pieces: list[str]) -> str:
    return ", ".join(f"{piece!r} {count}" for piece, count in Counter(pieces).most_common(4))
