"""Tables and figures of the snmf study: a figure for every table."""

import pandas as pd
import plotly.graph_objects as go

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean, bootstrap_ratio
from mechlab.studies.snmf_evidence import DIFFERENCE, RANDOM, SAE, SNMF, TWIN, Evidence
from mechlab.studies.snmf_tables_structure import structure
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.style import template

# Steering scores by a judge (0 to 2), Llama-3.1-8B, layer 23: the paper, as reported by others.
PUBLISHED = {SNMF: 0.45, SAE: 0.37, DIFFERENCE: 0.40}
Part = tuple[Table, FigureItem]


def tables_and_figures(found: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_detection(found), _together(found), _steering(found), _beside_paper(found), _features(found)]
    parts += structure(found)
    return [table for table, _ in parts], [figure for _, figure in parts]


def summary(found: Evidence) -> str:
    """What was asked, on what."""
    layers = ", ".join(map(str, found.layers))
    return (
        f"The neurons of one MLP, on {found.tokens} tokens of sentences and passages, are written as non-negative sums of sparse "
        f"groups of neurons (layers {layers}). Do single groups say what a sentence is about, do they hold neurons that fire together, "
        "and does adding one make the model write about its concept? Groups were chosen for concepts on half of the sentences and "
        "judged on the other half. Are features made of features that go with the same sentences, and do the neurons that features of "
        "one family of words share speak for all of them? The random directions, the shuffled activations and the random-weight "
        "twin say how much of that comes for nothing. Every claim was written down, with its rule, before the run."
    )


def _detection(found: Evidence) -> Part:
    frames = [one.detection.assign(layer=layer) for layer, one in found.layers.items()]
    frames += [one.detection.assign(layer=layer, method=TWIN) for layer, one in found.twin.items()]
    every = pd.concat(frames, ignore_index=True)
    every["detected"] = (every["s_cd"] > 0).astype(float)
    frame = every.groupby(["method", "layer"], sort=False)[["auc", "s_cd", "detected"]].mean().reset_index()
    grid = frame.pivot_table(index="method", columns="layer", values="auc", sort=False)
    grid.columns = pd.Index([f"L{layer}" for layer in grid.columns], name="layer")
    title = "Concept detection on held-out sentences"
    note = (
        "Mean over concepts. auc (drawn): of the largest cosine in a sentence with the direction chosen for the concept. s_cd: log of the "
        "concept's mean score over the others'. detected: share of concepts with s_cd above 0. The two rank methods differently. The "
        "difference in means is supervised."
    )
    figure = heatmap(grid, "", "AUC", diverging=False, x_title="layer", y_title="directions")
    return Table("detection", title, frame, note), FigureItem("detection", title, figure, "detection", note)


def _together(found: Evidence) -> Part:
    rows = []
    for layer, one in found.layers.items():
        for name, errors in one.errors.items():
            ratio = bootstrap_ratio(errors, one.power, seed=found.seed)
            rows.append((f"L{layer}, {name}", ratio.estimate, ratio.low, ratio.high))
    frame = pd.DataFrame(rows, columns=["fitted on", "error", "low", "high"])
    title = "Error on held-out sentences, by what SNMF was fitted on"
    note = (
        "Squared error as a share of squared norm, neurons scaled to variance 1. Features of shuffled activations know how much each "
        "neuron varies but not which fire together."
    )
    figure = bars_with_intervals(
        frame, "fitted on", "error", "low", "high", title="", y_title="error, share of squared norm"
    )
    return Table("together", title, frame, note), FigureItem(
        "together", title, figure.update_xaxes(tickangle=-45), "together", note
    )


def _steering(found: Evidence) -> Part:
    title = f"Steering in layer {found.steered_layer} at a KL of {found.kl:g} nats"
    note = (
        "gain (drawn, mean and interval over concepts): rise of the probability of the concept's words over the unsteered model, less "
        "that of the other concepts' words. fluency: change of the texts' mean log-probability under the unsteered model, nats. "
        "strength: of the unit direction. distinct: share of distinct pairs of tokens."
    )
    rows = []
    for method, here in found.steered.groupby("method", sort=False):
        interval = bootstrap_mean(here["gain"].to_numpy(), seed=found.seed)
        rows.append((str(method), interval.estimate, interval.low, interval.high))
    drawn = pd.DataFrame(rows, columns=["method", "gain", "low", "high"])
    figure = bars_with_intervals(drawn, "method", "gain", "low", "high", title="", y_title="gain of probability")
    return Table("steering", title, found.steered, note), FigureItem("steering", title, figure, "steering", note)


def _beside_paper(found: Evidence) -> Part:
    ours = found.steered.groupby("method")["gain"].mean()
    methods = [*PUBLISHED, RANDOM]
    frame = pd.DataFrame(
        {
            "method": methods,
            "paper, judge's score": [PUBLISHED.get(method, float("nan")) for method in methods],
            "ours, gain of probability": [float(ours.get(method, float("nan"))) for method in methods],
        }
    )
    figure = go.Figure()
    for column in frame.columns[1:]:
        figure.add_bar(x=frame["method"], y=frame[column] / frame[column].abs().max(), name=column)
    figure.update_layout(template=template(), height=380, barmode="group", margin={"t": 28})
    figure.update_yaxes(title_text="share of the largest")
    title = "Steering: the paper beside ours"
    note = (
        "The paper's scores are a language model's judgement of concept and fluency (Llama-3.1-8B, layer 23); ours is a probability, on a "
        "small model. Only the order can be compared; bars are shares of each column's largest."
    )
    return Table("paper", title, frame, note), FigureItem("paper", title, figure, "paper", note)


def _features(found: Evidence) -> Part:
    title = f"The SNMF features chosen for the concepts, layer {found.steered_layer}"
    note = "raises, lowers: the tokens that the feature's direction in the residual stream speaks for and against, through the final norm."
    frame = found.readable.assign(low=float("nan"), high=float("nan"))
    figure = bars_with_intervals(frame, "concept", "auc", "low", "high", title="", y_title="AUC, held-out sentences")
    return Table("features", title, found.readable, note), FigureItem("features", title, figure, "features", note)
