"""Tables and figures of the massive-activations study: a figure for every table."""

import math

import numpy as np
import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.massive_claims import top_dimensions
from mechlab.studies.massive_evidence import MEAN, RANDOM, ZERO, Evidence
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.paper import paper_with_intervals
from mechlab.views.sinks import lines

Part = tuple[Table, list[FigureItem]]
_SUN = "Sun et al."
_HIDDEN = "Gallego-Feliciano et al."
_PAPER_R2 = {"Pythia-14M": 0.931, "Pythia-160M": 0.983, "Pythia-12B": 0.983, "mean of 188 layers": 0.984}
_PAPER_PREDICTED = {"a": 0.476, "decay": 0.664, "gamma": 0.056, "t0": 0.447, "k": 0.847}


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order; what there is nothing of is left out."""
    parts = [_paper(evidence), _layers(evidence)]
    if len(evidence.held_out.entries):
        parts.append(_entries(evidence))
    if evidence.interventions is not None:
        parts.append(_interventions(evidence))
    parts += [_growth(evidence), _fits(evidence)]
    if evidence.predicted is not None:
        parts.append(_predicted(evidence))
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    settings, layer = evidence.settings, evidence.layer
    here = (
        "No layer has one in half of the texts here."
        if layer is None
        else f"Here they first appear after layer {layer} (counted from 0), in dimensions {', '.join(map(str, top_dimensions(evidence)))}."
    )
    trained = ", ".join(trace.name for trace in evidence.traces)
    return (
        f"An entry of the residual stream is massive if its size is above {settings['floor']} and at least {settings['ratio']} times the "
        f"median size of that hidden state. {here} Layer, dimensions and means were found on {len(evidence.discovery)} texts, and the "
        f"entries set to zero or to those means on {len(evidence.evaluation)} others. Growth over training: {trained}. "
        "Every claim was written down, with its rule, before the run."
    )


def _paper(evidence: Evidence) -> Part:
    top = (
        evidence.held_out.top[..., 0].max(axis=1)
        / evidence.held_out.median[np.arange(len(evidence.evaluation)), evidence.held_out.top[..., 0].argmax(axis=1)]
    )
    rows = [("largest entry over the median", "LLaMA2-7B (about 2,300 / 0.2)", 11500.0, *_interval(top), _SUN)]
    found = evidence.interventions
    if found is not None:
        base = found.base
        rows += [
            ("perplexity, nothing changed", "LLaMA2-7B, WikiText", 5.47, *_perplexity(base), _SUN),
            (f"perplexity, {MEAN}", "LLaMA2-7B, WikiText", 5.47, *_perplexity(found.changed[MEAN]), _SUN),
            (f"perplexity, {ZERO}", "LLaMA2-7B, WikiText: infinite", math.nan, *_perplexity(found.changed[ZERO]), _SUN),
        ]
    r2 = np.array([one.fit.r2 for one in evidence.fits if not math.isnan(one.fit.r2)])
    rows += [
        ("R2 of the curve over training", name, value, *_interval(r2), _HIDDEN) for name, value in _PAPER_R2.items()
    ]
    if evidence.predicted is not None:
        ours = evidence.predicted.set_index("target")["r2"]
        rows += [
            (f"R2 of {name} from architecture", "188 layers of Pythia", value, float(ours[name]), math.nan, math.nan,
             int(evidence.predicted["n"].iloc[0]), _HIDDEN)
            for name, value in _PAPER_PREDICTED.items()
        ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["measure", "theirs", "paper", "ours", "low", "high", "n", "where"])
    title = "The papers' numbers beside ours"
    note = (
        "Theirs are other, larger models and other texts: read the pattern. "
        "The figure is logarithmic and leaves out what is not above zero."
    )
    figure = paper_with_intervals(
        frame.assign(**{name: frame[name].where(frame[name] > 0) for name in ("paper", "ours", "low", "high")})
    )
    figure.update_xaxes(type="log")
    return Table("paper_beside_ours", title, frame, note), [
        FigureItem("paper_beside_ours", title, figure, "paper_beside_ours", note)
    ]


def _interval(values: np.ndarray) -> tuple[float, float, float, int]:
    found = bootstrap_mean(values)
    return found.estimate, found.low, found.high, found.n


def _perplexity(losses: np.ndarray) -> tuple[float, float, float, int]:
    """exp of the mean loss and of its bounds."""
    found = bootstrap_mean(losses)
    return math.exp(found.estimate), math.exp(found.low), math.exp(found.high), found.n


def _layers(evidence: Evidence) -> Part:
    top, median = evidence.held_out.top.mean(axis=0), evidence.held_out.median.mean(axis=0)
    frame = pd.DataFrame(
        {
            "layer": np.arange(evidence.n_layers),
            **{f"top_{at + 1}": top[:, at] for at in range(top.shape[1])},
            "median": median,
            "texts_with_massive": evidence.held_out.with_massive.mean(axis=0),
            "twin_top_1": evidence.twin.top[..., 0].mean(axis=0),
            "twin_median": evidence.twin.median.mean(axis=0),
        }
    )
    names = {
        "top_1": "largest",
        "top_2": "second",
        "top_3": "third",
        "median": "median",
        "twin_top_1": "largest (twin)",
        "twin_median": "median (twin)",
    }
    melted = frame.melt("layer", list(names), "what", "size").assign(what=lambda f: f["what"].map(names))
    figure = lines(melted, "layer", "size", "what", x_title="after layer", y_title="size of the entry", log_y=True)
    title = "The largest entries, layer by layer"
    note = f"Means over {len(evidence.evaluation)} held-out texts; texts_with_massive: share of texts with a massive entry."
    return Table("layers", title, frame, note), [FigureItem("layers", title, figure, "layers", note)]


def _entries(evidence: Evidence) -> Part:
    rows = evidence.held_out.entries
    rows = rows.assign(token=rows["piece"].map(repr).where(rows["position"] > 0, "first token"))
    groups = rows.groupby(["layer", "dimension", "token"], as_index=False).agg(
        texts=("prompt", "nunique"),
        entries=("value", "size"),
        mean=("value", "mean"),
        smallest=("value", "min"),
        largest=("value", "max"),
    )
    frame = groups.sort_values(["layer", "entries"], ascending=[True, False]).reset_index(drop=True)
    counts = rows.assign(place="dimension " + rows["dimension"].astype(str) + ", " + rows["token"])
    kept = counts["place"].value_counts().index[:25]
    grid = counts[counts["place"].isin(kept)].pivot_table(
        index="place", columns="layer", values="prompt", aggfunc="nunique", fill_value=0
    )
    layers = pd.RangeIndex(evidence.n_layers, name="after layer")
    grid = grid.reindex(columns=layers, fill_value=0).reindex(index=kept[::-1])
    figure = heatmap(grid, "", "texts", diverging=False, x_title="after layer", y_title="dimension and token")
    figure.update_yaxes(title_text="")
    title = "Where massive entries are"
    note = "Held-out texts. The figure shows the 25 commonest places."
    return Table("entries", title, frame, note), [FigureItem("entries", title, figure, "entries", note)]


def _interventions(evidence: Evidence) -> Part:
    found = evidence.interventions
    assert found is not None
    cases = [("nothing", found.base), *found.changed.items()]
    rows = [(name, *_change(values - found.base), *_perplexity(values)[:3], len(values)) for name, values in cases]
    means = (found.random - found.base).mean(axis=1)
    perplexities = np.exp(found.random.mean(axis=1))
    rows.append(
        (RANDOM, float(means.mean()), float(means.min()), float(means.max()),
         float(perplexities.mean()), float(perplexities.min()), float(perplexities.max()), found.random.shape[1])
    )  # fmt: skip
    columns = ["changed", "rise", "low", "high", "perplexity", "perplexity_low", "perplexity_high", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    figure = bars_with_intervals(
        frame.iloc[1:],
        "changed",
        "rise",
        "low",
        "high",
        title="",
        x_title="after layer " + str(found.layer),
        y_title="rise of the loss, nats",
    )
    figure.update_xaxes(tickangle=-35)
    title = "Massive entries set to zero, to a constant, and others set to zero"
    note = (
        f"After layer {found.layer}, {found.entries.mean():.1f} entries per text; {len(found.base)} held-out texts have some. "
        "Intervals over texts; for random entries the range of draws."
    )
    return Table("interventions", title, frame, note), [
        FigureItem("interventions", title, figure, "interventions", note)
    ]


def _change(values: np.ndarray) -> tuple[float, float, float]:
    found = bootstrap_mean(values)
    return found.estimate, found.low, found.high


def _growth(evidence: Evidence) -> Part:
    rows = [
        (
            one.trace.name,
            one.layer,
            int(step),
            float(ratio),
            math.nan if one.fit.curve is None else float(one.fit.curve([step])[0]),
        )
        for one in evidence.fits
        for step, ratio in zip(one.trace.steps, one.trace.ratios[:, one.layer], strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["model", "layer", "step", "ratio", "fitted"])
    figures = []
    title = "The largest entry over the median, over training"
    note = "Mean over ten texts after each layer, at checkpoints; dashed: the fitted curve. Step 0 is left out of the figure."
    for index, trace in enumerate(evidence.traces):
        part = frame[(frame["model"] == trace.name) & (frame["step"] > 0)]
        names = "layer " + part["layer"].astype(str)
        figure = lines(
            part.assign(line=names),
            "step",
            "ratio",
            "line",
            x_title="training step",
            y_title="largest / median",
            log_x=True,
        )
        colours = ["#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b7791f", "#4a5568"]
        for layer in sorted(part["layer"].unique()):
            one = part[part["layer"] == layer]
            figure.add_scatter(
                x=one["step"], y=one["fitted"], mode="lines", showlegend=False, hoverinfo="skip",
                line={"dash": "dash", "width": 1, "color": colours[int(layer) % len(colours)]},
            )  # fmt: skip
        figures.append(FigureItem(f"growth_{index + 1}", f"{title}: {trace.name}", figure, "growth", note))
    return Table("growth", title, frame, note), figures


def _fits(evidence: Evidence) -> Part:
    rows = []
    for one in evidence.fits:
        found = one.fit.curve
        parameters = [math.nan] * 5 if found is None else list(found)
        peak = math.nan if found is None or not found.has_peak else found.t_peak
        rivals = [one.rivals[name].r2 for name in one.rivals]
        better = min([one.fit, *one.rivals.values()], key=lambda fit: fit.aic).name
        inside = bool(0 < peak <= one.trace.steps[-1])
        rows.append((one.trace.name, one.layer, one.fit.r2, *rivals, better, peak, inside, *parameters))
    names = [f"r2 {name}" for name in (evidence.fits[0].rivals if evidence.fits else {})]
    columns = [
        "model",
        "layer",
        "r2",
        *names,
        "best_by_aic",
        "peak_step",
        "peak_seen",
        "a",
        "decay",
        "gamma",
        "t0",
        "k",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    labels = frame["model"].str.removeprefix("small-") + ", layer " + frame["layer"].astype(str)
    melted = frame.assign(at=labels).melt("at", ["r2", *names], "curve", "value")
    melted["curve"] = melted["curve"].str.removeprefix("r2 ").replace("r2", "modulated log")
    figure = lines(melted, "at", "value", "curve", x_title="model and layer", y_title="R2").update_xaxes(tickangle=-45)
    figure.update_layout(
        legend={"y": 1.02, "yanchor": "bottom"}, margin={"t": 60}
    )  # slanted labels need the room below
    title = "Curves fitted to the growth"
    note = (
        "The modulated logarithm has five parameters, as have two steps and the spline; best_by_aic weighs fit against parameters. "
        "peak_step: where the curve is largest, seen if within training; missing where it only rises or only falls."
    )
    return Table("fits", title, frame, note), [FigureItem("fits", title, figure, "fits", note)]


def _predicted(evidence: Evidence) -> Part:
    assert evidence.predicted is not None
    frame = evidence.predicted
    ours = frame.assign(label=frame["target"], value=frame["r2"], low=math.nan, high=math.nan)
    dealt = frame.assign(
        label=frame["target"] + ", shuffled", value=frame["shuffled"], low=math.nan, high=frame["shuffled_high"]
    )
    both = pd.concat([ours, dealt])[["label", "value", "low", "high"]].sort_values("label")
    figure = bars_with_intervals(
        both,
        "label",
        "value",
        "low",
        "high",
        title="",
        x_title="parameter of the curve",
        y_title="R2 on left-out layers",
    )
    title = "The curve's parameters predicted from architecture"
    note = (
        f"Ranks of the parameters of {int(frame['n'].iloc[0])} layers, predicted by trees from depth, layers, width and heads, five-fold "
        "cross-validated. Shuffled: the same for parameters dealt out anew."
    )
    return Table("predicted", title, frame, note), [FigureItem("predicted", title, figure, "predicted", note)]
