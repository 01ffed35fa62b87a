"""Tables and figures of the vocabulary study: a figure for every table."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.results.bootstrap_tables import bootstrap_mean_table
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.vocabulary_evidence import DEPTHS, Clamped, Evidence
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.paper import paper_beside_ours

Floats = NDArray[np.float64]
Part = tuple[Table, list[FigureItem]]


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_paper(evidence), _meaningful(evidence)]
    if evidence.clamped:
        parts += [_clusters(evidence), _shifts(evidence), _doses(evidence)]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    n = {depth: len(evidence.of(depth)) for depth in DEPTHS}
    return (
        f"The value vectors of {len(evidence.units):,} MLP neurons (layers {_listed(evidence.by_depth['early'])} and "
        f"{_listed(evidence.by_depth['late'])}) were projected on the unembedding. A neuron is meaningful if at least 4 of its 30 highest "
        f"words lie in one of {evidence.settings['n_themes']} themes. {n['early']} early and {n['late']} late clusters of neurons with one "
        f"theme were clamped to {evidence.settings['strength']} times their RMS at every token of {evidence.settings['n_texts']} held-out "
        "passages. Every claim was written down, with its rule, before the run."
    )


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _paper(evidence: Evidence) -> Part:
    shares = [
        (depth, np.concatenate([evidence.meaningful[at] for at in layers]))
        for depth, layers in evidence.by_depth.items()
    ]
    rows = [(f"meaningful neurons, {depth} layers (share)", np.nan, float(found.mean()), "") for depth, found in shares]
    for depth in DEPTHS:
        found = evidence.of(depth)
        remark = "paper: compares displacement of a robot's arm for early and late clusters; no values were found"
        if found:
            own = float(np.mean([one.shift.mean() for one in found]))
            random = float(np.mean([one.draws.mean() for one in found]))
            rows.append((f"words' log-probability, {depth} clusters (nats)", np.nan, own, remark))
            rows.append((f"the same, random clusters, {depth} (nats)", np.nan, random, remark))
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours", "remark"])
    figure = paper_beside_ours(frame, x_title="share, or nats")
    title = "The paper beside ours"
    note = (
        "The paper steers a robot, and its result values were not found: what can be laid beside it is the procedure."
    )
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]


def _meaningful(evidence: Evidence) -> Part:
    rows = []
    for layer, found in evidence.meaningful.items():
        own = bootstrap_mean(found.astype(float), seed=evidence.seed)
        rows.append(
            (f"L{layer}", own.estimate, own.low, own.high, float(evidence.twin_meaningful[layer].mean()), own.n)
        )
    for depth, found in evidence.directions.items():
        own = bootstrap_mean(found.astype(float), seed=evidence.seed)
        rows.append((f"{depth}, random", own.estimate, own.low, own.high, np.nan, own.n))
    frame = pd.DataFrame(rows, columns=["layer", "share", "low", "high", "twin", "neurons"])
    figure = bars_with_intervals(
        frame, "layer", "share", "low", "high", title="", x_title=" ", y_title="share of meaningful neurons"
    ).update_xaxes(tickangle=-60)
    title = "Neurons that write related words"
    note = "By layer: at least 4 of the 30 highest words in one theme. Random: directions with the covariance of the value vectors."
    return Table("meaningful", title, frame, note), [FigureItem("meaningful", title, figure, "meaningful", note)]


def _clusters(evidence: Evidence) -> Part:
    rows = [
        (one.name, ", ".join(one.words[:12]), len(one.neurons), float(one.counts.mean()), ", ".join(one.neurons))
        for one in evidence.clamped
    ]
    frame = pd.DataFrame(rows, columns=["cluster", "words", "neurons", "words of the theme per neuron", "which"])
    figure = bars_with_intervals(
        frame.assign(low=np.nan, high=np.nan),
        "cluster",
        "words of the theme per neuron",
        "low",
        "high",
        title="",
        y_title="of 30 highest words, in the theme",
    ).update_xaxes(tickangle=-20)
    title = "The clusters"
    note = "Words are those of the theme among the neurons' highest words, most shared first."
    return Table("clusters", title, frame, note), [FigureItem("clusters", title, figure, "clusters", note)]


def _shifts(evidence: Evidence) -> Part:
    rows = []
    for one in evidence.clamped:
        for case, values in (
            ("clamped", one.shift),
            ("at their mean", one.at_mean),
            ("constants shuffled", one.shuffled),
        ):
            found = bootstrap_mean(values, seed=evidence.seed)
            loss = float(one.loss.mean()) if case == "clamped" else np.nan
            rows.append((one.name, case, found.estimate, found.low, found.high, loss))
        by_draw = one.draws.mean(axis=1)
        numbers = float(by_draw.mean()), float(by_draw.min()), float(by_draw.max()), float(one.draw_losses.mean())
        rows.append((one.name, "random clusters", *numbers))
    frame = pd.DataFrame(rows, columns=["cluster", "case", "shift", "low", "high", "rise of the loss"])
    kinds = ["clamped", "random clusters", "at their mean", "constants shuffled"]
    order = [one.name for one in evidence.clamped]
    grid = frame.pivot_table(index="cluster", columns="case", values="shift", sort=False).loc[order[::-1], kinds]
    figure = heatmap(grid, "", "nats", x_title=" ", y_title=" ")
    title = "Does clamping a cluster make its words likelier?"
    note = "Rise of the log-probability of the cluster's words together; intervals over texts, for random clusters the range of draws."
    return Table("shifts", title, frame, note), [FigureItem("shifts", title, figure, "shifts", note)]


def _doses(evidence: Evidence) -> Part:
    rows = []
    for one in evidence.clamped:
        for strength, (shift, loss) in sorted(_all_doses(evidence, one).items()):
            table = bootstrap_mean_table(np.stack([shift, loss]), seed=evidence.seed)
            rows.append(
                (
                    one.name,
                    strength,
                    *(float(part[0]) for part in (table.estimate, table.low, table.high)),
                    float(loss.mean()),
                )
            )
    frame = pd.DataFrame(rows, columns=["cluster", "strength", "shift", "low", "high", "rise of the loss"])
    order = [one.name for one in evidence.clamped][::-1]
    figures: list[FigureItem] = []
    for column, key, title in (
        ("shift", "doses", "Shift of the cluster's words by strength"),
        ("rise of the loss", "doses_loss", "Rise of the loss by strength"),
    ):
        grid = frame.pivot_table(index="cluster", columns="strength", values=column, sort=False).loc[order]
        figure = heatmap(grid, "", "nats", x_title="set to (in each neuron's RMS)", y_title=" ")
        figures.append(
            FigureItem(key, title, figure, "doses", "A shift that costs as much loss as it gains words is no steering.")
        )
    note = "Each neuron set to so many times its RMS on other text; intervals over texts."
    return Table("doses", "Strength", frame, note), figures


def _all_doses(evidence: Evidence, one: Clamped) -> dict[float, tuple[Floats, Floats]]:
    return {**one.doses, float(str(evidence.settings["strength"])): (one.shift, one.loss)}
