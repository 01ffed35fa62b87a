"""Tables and figures of single features in the dictionaries study: labels, seeds, one feature's page."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.dictionaries_evidence import SUBJECT, Evidence, correlations
from mechlab.views.features import codes_figure, examples_figure, logits_figure
from mechlab.views.figures import bars_with_intervals
from mechlab.views.style import template

Part = tuple[Table, list[FigureItem]]


def labels(evidence: Evidence) -> Part:
    """How well labels predict codes."""
    rows: list[tuple[object, ...]] = []
    for name, one in evidence.labelled.items():
        found = bootstrap_mean(correlations(one))
        others = float(np.mean([score.control for score in one.scores]))
        best = max(range(len(one.scores)), key=lambda i: one.scores[i].correlation)
        rows.append((name, found.estimate, found.low, found.high, others, found.n, one.labels[best].text))
    frame = pd.DataFrame(rows, columns=["dictionary", "correlation", "low", "high", "others", "features", "best_label"])
    figure = bars_with_intervals(
        frame,
        "dictionary",
        "correlation",
        "low",
        "high",
        title="",
        x_title="",
        y_title="correlation with held-out codes",
    )
    note = "Labels are tokens that go with a feature's activity; others: by the labels of other features. Intervals over features."
    title = "Codes predicted by labels"
    return Table("labels", title, frame, note), [FigureItem("labels", title, figure, "labels", note)]


def seeds(evidence: Evidence) -> Part:
    """How many features two seeds share."""
    cases = {"two trained SAEs": evidence.seeds, "two untrained SAEs": evidence.untrained_seeds}
    edges = np.linspace(-0.1, 1, 23)
    rows = [
        (case, float((edges[i] + edges[i + 1]) / 2), int(count))
        for case, cosines in cases.items()
        for i, count in enumerate(np.histogram(np.clip(cosines, -0.1, 1), edges)[0])
    ]
    frame = pd.DataFrame(rows, columns=["case", "cosine", "features"])
    figure = go.Figure()
    for case, part in frame.groupby("case", sort=False):
        figure.add_bar(x=part["cosine"], y=part["features"], name=str(case), opacity=0.75)
    figure.update_layout(
        template=template(), barmode="overlay", height=340, margin={"t": 40}, legend={"x": 0, "xanchor": "left"}
    )
    figure.update_xaxes(title_text="cosine with the matched feature of the other seed").update_yaxes(
        title_text="features"
    )
    note = "One-to-one matching that makes the sum of cosines largest."
    title = "Features that two seeds share"
    return Table("seeds", title, frame, note), [FigureItem("seeds", title, figure, "seeds", note)]


def shown(evidence: Evidence) -> Part:
    """The page of one feature."""
    one = evidence.shown
    rows = [
        (i + 1, "".join(pieces), pieces[at], float(values[at] or 0.0))
        for i, (pieces, values, at) in enumerate(one.examples)
    ]
    frame = pd.DataFrame(rows, columns=["example", "text", "token", "code"])
    note = f"Feature {one.feature} of the {SUBJECT}, the one whose label predicts best: {one.label}."
    return Table("feature", f"Feature {one.feature}: where it is most active", frame, note), [
        FigureItem(
            "examples", "Its strongest examples, one for each passage", examples_figure(one.examples), "feature", note
        ),
        FigureItem(
            "logits",
            "What it does to the logits",
            logits_figure(one.promoted, one.suppressed),
            "feature",
            "By the direct path.",
        ),
        FigureItem(
            "codes", "How strong it is", codes_figure(one.histogram, one.edges), "feature", "Tokens where it is active."
        ),
    ]
