"""Tables and figures of the transcoder study: units kept alone, and what feeds a feature over plain text."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from circuits.studies.transcoder_evidence import FEATURES, KEPT_NEURONS, RANDOM_FEATURES, WITH_ERRORS, Evidence, Kept
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.views.style import BLUE, INK, MUTED, ORANGE, safe, template

Part = tuple[Table, list[FigureItem]]
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
_COLOURS = {FEATURES: BLUE, WITH_ERRORS: "#8fb8de", KEPT_NEURONS: ORANGE, RANDOM_FEATURES: MUTED}


def kept_part(evidence: Evidence) -> Part:
    """The logit difference by how many units are kept."""
    kept, base = evidence.kept, float(evidence.model.base.mean())
    rows = []
    for name, by_count in kept.found.items():
        for count, values in by_count.items():
            one = bootstrap_mean(values)
            rows.append((name, count, one.estimate, one.low, one.high, one.estimate / base))
    for name, by_count in kept.draws.items():
        for count, draws in by_count.items():
            means = draws.mean(axis=1)
            rows.append((name, count, means.mean(), means.min(), means.max(), means.mean() / base))
    frame = pd.DataFrame(rows, columns=["kept", "units", "logit difference", "low", "high", "share"])
    title = "Only a few units kept"
    note = (
        f"Evaluation prompts, MLPs of layers {', '.join(map(str, evidence.layers))}: all units but the strongest are set to their mean "
        f"over discovery prompts. The whole model's logit difference is {base:.2f} (dashed); with all {kept.features} features kept "
        "transcoders stand in the MLPs' places. Features: largest contributions on discovery prompts, without the transcoders' errors and "
        "with them; neurons: gradient times activation there; random features: of the same layers, active on those prompts. 95 % intervals "
        "over prompts; of random draws, mean and range."
    )
    return Table("kept", title, frame, note), [FigureItem("kept", title, _curves(frame, base), "kept", note)]


def _curves(frame: pd.DataFrame, base: float) -> go.Figure:
    counts = sorted(set(frame["units"]))
    figure = go.Figure()
    for name, here in frame.groupby("kept", sort=False):
        colour = _COLOURS[str(name)]
        figure.add_scatter(
            x=[counts.index(count) for count in here["units"]],
            y=here["logit difference"],
            name=str(name),
            mode="lines+markers",
            line={"color": colour},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": here["high"] - here["logit difference"],
                "arrayminus": here["logit difference"] - here["low"],
                "color": colour,
                "thickness": 1.4,
            },
            customdata=here["units"],
            hovertemplate="%{customdata} kept: %{y:.2f}<extra></extra>",
        )
    figure.add_hline(y=base, line={"color": INK, "dash": "dash", "width": 1.5})
    figure.update_xaxes(tickvals=list(range(len(counts))), ticktext=[f"{count:,}" for count in counts])
    figure.update_xaxes(title_text="units kept", zeroline=False)
    figure.update_layout(template=template(), height=420, margin={"t": 52}, legend=_LEGEND)
    return figure.update_yaxes(title_text="logit difference")


def features_ahead(kept: Kept) -> int:
    """The largest number kept at which features leave more of the logit difference than neurons; 0 for none."""
    both = set(kept.found[FEATURES]) & set(kept.found[KEPT_NEURONS]) - {0}
    ahead = [n for n in both if kept.found[FEATURES][n].mean() > kept.found[KEPT_NEURONS][n].mean()]
    return max(ahead, default=0)


def feeding_part(evidence: Evidence) -> Part:
    """Input-invariant connections beside their mean use over plain text."""
    frame = evidence.feeding.table
    title = "What feeds a feature over plain text"
    note = (
        "For the strongest features of the highest layer that are active on held-out text: the lower features that feed them most by the "
        "direct path, mean over the tokens at which the target is active (mean use), where it is above 0, and the share of those tokens at "
        "which the lower feature is active. By weights: decoder times encoder, from weights alone, and its rank among all features of "
        f"the layer. {_agreement(evidence)}"
    )
    figure = go.Figure()
    for (target, colour), symbol in zip(
        zip(dict.fromkeys(frame["target"]), (BLUE, ORANGE, MUTED), strict=False),
        ("circle", "diamond", "square"),
        strict=False,
    ):
        here = frame[frame["target"] == target]
        figure.add_scatter(
            x=here["by weights"],
            y=here["mean use"],
            mode="markers+text",
            name=safe(target),
            text=[safe(one) if one in set(here.nlargest(2, "mean use")["feature"]) else "" for one in here["feature"]],
            textposition="top center",
            textfont={"size": 10},
            customdata=[safe(one) for one in here["feature"]],
            marker={"color": colour, "size": 9, "symbol": symbol},
            hovertemplate="%{customdata}: %{x:.3g} by weights, %{y:.3g} used<extra></extra>",
        )
    figure.update_xaxes(title_text="connection by weights")
    figure.update_yaxes(title_text="mean contribution to the pre-activation")
    figure.update_layout(
        template=template(), height=460, margin={"t": 52}, legend={**_LEGEND, "title": {"text": "target"}}
    )
    return Table("feeding", title, frame, note), [FigureItem("feeding", title, figure, "feeding", note)]


def _agreement(evidence: Evidence) -> str:
    parts = []
    for one in evidence.feeding.agreement:
        drawn = np.array(one["permuted"], dtype=np.float64)
        parts.append(
            f"{one['target']} from layer {one['from layer']} ({one['tokens']} tokens) {one['weights and use']:.2f} "
            f"(permuted {np.nanmean(drawn) if np.isfinite(drawn).any() else float('nan'):.2f})"
        )
    if not parts:
        return "No feature of the highest layer was active often enough."
    return f"Rank correlation of the two over all active features, and with permuted decoder rows: {'; '.join(parts)}."
