"""Tables and figures of the transcoder study: a figure for every table."""

import numpy as np
import pandas as pd

from circuits.features.drawing import graph_figure
from circuits.studies import transcoder_claims as claims
from circuits.studies.transcoder_evidence import Evidence
from circuits.studies.transcoder_kept import SIZES
from circuits.studies.transcoder_tables_kept import features_ahead, feeding_part, kept_part
from mechlab.results.finding import Finding
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.views.figures import bars_with_intervals
from mechlab.views.paper import paper_beside_ours

Part = tuple[Table, list[FigureItem]]
_NAN = float("nan")


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    found = {finding.key: finding for finding in claims.findings(evidence)}
    parts = [
        _importance(evidence),
        _fits(evidence),
        _losses(evidence),
        _ablation(evidence, found),
        kept_part(evidence),
        _connections(found["invariant"]),
        feeding_part(evidence),
        _features(evidence),
        _paths(evidence),
        _graph(evidence),
        _paper(evidence, found),
    ]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    settings = evidence.settings
    return (
        f"Transcoders of the MLPs of layers {', '.join(map(str, evidence.layers))} were trained on {settings['tokens']} "
        f"tokens of plain text, "
        f"{settings['features']} features wide with about {settings['k']} active per token. A feature's contribution to "
        f"the logit difference of the "
        f"task {settings['task']!r} is what it adds with attention patterns and norms frozen. Layers and features were chosen on "
        f"{settings['n_discovery']} prompts and tested on {settings['n_evaluation']} others. So few tokens make weak "
        f"transcoders: what they miss is "
        "kept as error terms and reported. Every claim was written down, with its rule, before the run."
    )


def _one(table: Table, figure: object) -> Part:
    return table, [FigureItem(table.key, table.title, figure, table.key, table.note)]  # pyright: ignore[reportArgumentType]


def _importance(evidence: Evidence) -> Part:
    frame = evidence.importance
    bars = pd.DataFrame({"layer": [str(layer) for layer in frame.layer], "fall": frame.fall, "low": _NAN, "high": _NAN})
    figure = bars_with_intervals(
        bars, "layer", "fall", "low", "high", title="", x_title="layer", y_title="fall of the logit difference"
    )
    title = "Which MLPs matter"
    note = (
        "Discovery prompts: fall of the logit difference when an MLP's output is taken from the corrupted prompt. The "
        "largest ones were chosen."
    )
    return _one(Table("importance", title, frame, note), figure)


def _fits(evidence: Evidence) -> Part:
    frame = evidence.fits.reset_index(drop=True)
    shown = frame[frame.stand_in != "zeroed"]
    bars = pd.DataFrame(
        {
            "label": [f"L{a} {b}" for a, b in zip(shown.layer, shown.stand_in, strict=True)],
            "fvu": shown.fvu.clip(upper=2.0),
        }
    )
    figure = bars_with_intervals(
        bars.assign(low=_NAN, high=_NAN),
        "label",
        "fvu",
        "low",
        "high",
        title="",
        x_title="in the MLP's place",
        y_title="variance missed",
    ).update_xaxes(tickangle=-35)
    note = (
        "On text that was not trained on: share of the variance of the MLP's output that is missed (1: as the mean "
        "does; bars end at 2), features "
        "active per token, features that never were."
    )
    return _one(Table("fits", "How well they stand in for the MLPs", frame, note), figure)


def _losses(evidence: Evidence) -> Part:
    rows = []
    for name, nats in evidence.losses.items():
        found = bootstrap_mean(nats)
        rows.append((name, found.estimate, found.low, found.high, found.n))
    frame = pd.DataFrame(rows, columns=["in the MLPs' place", "loss", "low", "high", "passages"])
    figure = bars_with_intervals(
        frame, "in the MLPs' place", "loss", "low", "high", title="", x_title="in the MLPs' place", y_title="loss, nats"
    )
    note = (
        "Mean next-token loss on held-out passages; 95 % intervals over passages. The first token's MLPs always stay."
    )
    return _one(Table("losses", "Loss with the MLPs replaced", frame, note), figure)


def _ablation(evidence: Evidence, found: dict[str, Finding]) -> Part:
    finding, model = found["ablation"], evidence.model
    rows = [("chosen features", finding.estimate, finding.low, finding.high)]
    rows += [(control.name, control.estimate, control.low, control.high) for control in finding.controls]
    own = bootstrap_mean(model.falls[claims.NEURONS])
    rows.append(("as many neurons", own.estimate, own.low, own.high))
    drawn = model.draws["random neurons"].mean(axis=1)
    rows.append(("random neurons", float(drawn.mean()), float(drawn.min()), float(drawn.max())))
    frame = pd.DataFrame(rows, columns=["ablated", "fall", "low", "high"])
    figure = bars_with_intervals(
        frame, "ablated", "fall", "low", "high", title="", x_title="ablated", y_title="fall of the logit difference"
    ).update_xaxes(tickangle=-25)
    note = (
        f"Evaluation prompts; the logit difference is {model.base.mean():.2f} as it is. 95 % intervals over prompts; of "
        f"random draws, mean and range."
    )
    return _one(Table("ablation", "Features ablated, errors kept", frame, note), figure)


def _connections(finding: Finding) -> Part:
    rows = [("by weights", finding.estimate, finding.low, finding.high)]
    rows += [(control.name, control.estimate, control.low, control.high) for control in finding.controls]
    frame = pd.DataFrame(rows, columns=["picked", "share", "low", "high"])
    figure = bars_with_intervals(
        frame, "picked", "share", "low", "high", title="", x_title="picked", y_title="share of contributions"
    )
    note = (
        "What ten features of the lower layer contribute to a feature of the highest, over the sizes of all that "
        "layer's contributions."
    )
    return _one(Table("connections", "Features picked by weights alone", frame, note), figure)


def _features(evidence: Evidence) -> Part:
    frame = evidence.features
    bars = frame.head(20).assign(low=_NAN, high=_NAN)
    figure = bars_with_intervals(
        bars, "feature", "evaluation", "low", "high", title="", x_title="feature", y_title="contribution, logits"
    ).update_xaxes(tickangle=-45)
    note = (
        "Mean contribution to the logit difference on the prompts they were chosen on and on others, and the share of "
        "those on which they are "
        "active. Tokens: those whose embeddings excite the feature, and those whose logits it raises, by weights alone."
    )
    return _one(Table("features", "The chosen features", frame, note), figure)


def _paths(evidence: Evidence) -> Part:
    frame = evidence.paths
    bars = frame.head(24).assign(low=_NAN, high=_NAN, label=[f"{i + 1}" for i in range(min(24, len(frame)))])
    figure = bars_with_intervals(
        bars, "label", "capped", "low", "high", title="", x_title="path (row of the table)", y_title="contribution"
    )
    note = (
        "From one of the chosen features of the highest layer at the last token of an evaluation prompt. Contributions "
        "of the last part of each path "
        "to the feature's pre-activation; capped by the features on the path."
    )
    return _one(Table("paths", "Greedy paths", frame, note), figure)


def _graph(evidence: Evidence) -> Part:
    graph = evidence.graph
    frame, scores = graph.table(), graph.scores()
    title = "A circuit of features on one evaluation prompt"
    note = (
        f"{int(graph.kept.sum())} nodes hold most of the influence. Of what reaches the logit difference, a share of "
        f"{scores['replacement']:.2f} "
        f"begins at embeddings rather than at errors or whole MLPs (most layers have no transcoder); a share of "
        f"{scores['completeness']:.2f} of all "
        "inputs is no error."
    )
    return _one(Table("graph", title, frame, note), graph_figure(graph))


def _paper(evidence: Evidence, found: dict[str, Finding]) -> Part:
    losses = {name: float(nats.mean()) for name, nats in evidence.losses.items()}
    base = float(evidence.model.base.mean())
    rows = [
        ("loss, model", 3.59, losses["model"], "paper: GPT-2 small"),
        ("loss, transcoders in place", 4.23, losses["transcoders"], f"paper: all 12 MLPs; here {len(evidence.layers)}"),
        ("loss, MLPs zeroed", 10.94, losses["zeroed"], f"paper: all 12 MLPs; here {len(evidence.layers)}"),
        ("loss saved, share", (10.94 - 4.23) / (10.94 - 3.59), found["replacement"].estimate, "of what zeroing costs"),
        ("task, whole model", 0.883, base, "paper: probability difference; here logit difference"),
        (
            "features over neurons, fall",
            _NAN,
            float(np.mean(evidence.model.falls["transcoders"] - evidence.model.falls[claims.NEURONS])),
            "when ablated",
        ),
        (
            "features beat neurons up to",
            24.0,
            float(features_ahead(evidence.kept)),
            f"number kept; paper: of one layer, by variance; here of {len(evidence.layers)} layers, tried {', '.join(map(str, SIZES))}",
        ),
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours", "remark"])
    note = (
        "Their transcoders saw 60 million tokens and stand for every MLP; ours saw thousands and stand for a few. Only "
        "the shape compares."
    )
    return _one(Table("paper", "The paper beside ours", frame, note), paper_beside_ours(frame, x_title="as named"))
