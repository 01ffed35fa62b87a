"""Tables and figures of the dictionaries study: a figure for every table."""

import numpy as np
import pandas as pd

from mechlab.dictionaries.scorecard import table as score_table
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies import dictionaries_tables_features as features
from mechlab.studies.dictionaries_evidence import (
    SUBJECT,
    UNSTEERED,
    Evidence,
    Floats,
    aucs,
    completed,
    probes,
)
from mechlab.studies.dictionaries_paper import beside
from mechlab.views.figures import bars_with_intervals, heatmap

Part = tuple[Table, list[FigureItem]]
RANDOM = "random directions"
MOST_COST = 2.0
"""A text whose tokens are less likely than unsteered ones by more than this, in nats, counts as broken."""


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [
        _scorecard(evidence),
        _losses(evidence),
        _concepts(evidence),
        _steering(evidence),
        features.labels(evidence),
        features.seeds(evidence),
        _truth(evidence),
        features.shown(evidence),
        _beside(evidence),
    ]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    settings = evidence.settings
    return (
        f"Activations at {evidence.site} of {settings['n_texts']} passages ({evidence.rows:,} tokens) are taken apart by dictionaries of "
        f"{settings['n_features']} features, trained for {settings['training_tokens']} tokens with at most {settings['k']} features a "
        "token, and by baselines. All are judged on passages of other documents: variance unexplained, the model's loss with the "
        "dictionary in the activation's place, concepts found by single directions, steering at equal KL, seeds, labels; methods also on "
        "data whose features are known. The dictionaries are small and briefly trained: the study compares them with their controls on "
        "equal terms, not with large ones. Every claim was written down, with its rule, before the run."
    )


def _scorecard(evidence: Evidence) -> Part:
    families = [*evidence.families.values(), evidence.twin]
    frame = score_table([completed(evidence, one) for one in families])
    frame.insert(1, "kind", [one.kind for one in families])
    frame["seconds"] = [one.seconds for one in families]
    note = (
        "fvu: variance unexplained. ce: next-token loss in nats, with zeros in place (zeroed) or the dictionary (spliced). s_cd and AUC: "
        "the best direction for a concept. probe_auc_k: probes on k codes. Babel: summed overlap of 8 directions, of all and of those one "
        "token uses. Every measure is on held-out text; signed directions count with both signs. steering and seed_agreement where "
        "measured; absorption, true_cosine and mcc of the same method on the synthetic hierarchy. The twin is another model: its losses "
        "and errors are its own."
    )
    figure = bars_with_intervals(
        _with_intervals({one.name: one.unexplained for one in families}, "share"),
        "case",
        "share",
        "low",
        "high",
        title="",
        x_title="dictionary",
        y_title="variance unexplained",
    )
    figure.update_xaxes(tickangle=-35)
    figure.update_yaxes(range=[0, min(2.0, max(1.05, *(float(one.unexplained.mean()) * 1.1 for one in families)))])
    return Table("scorecard", "Scorecard", frame, note), [
        FigureItem(
            "unexplained", "Variance unexplained on held-out text", figure, "scorecard", "95 % intervals over texts."
        )
    ]


def _losses(evidence: Evidence) -> Part:
    losses = {name: np.asarray(one.score.loss.spliced) for name, one in evidence.families.items() if one.score.loss}
    base = evidence.families[SUBJECT].score.loss
    assert base is not None
    frame = _with_intervals(
        {"the model itself": np.asarray(base.clean), **losses, "zeros": np.asarray(base.zeroed)}, "loss"
    )
    figure = bars_with_intervals(
        frame,
        "case",
        "loss",
        "low",
        "high",
        title="",
        x_title="in the activation's place",
        y_title="next-token loss, nats",
    ).update_xaxes(tickangle=-35)
    note = "Held-out texts, from the third token on; 95 % intervals over texts."
    title = "The model's loss with each dictionary in place"
    return Table("losses", title, frame, note), [FigureItem("losses", title, figure, "losses", note)]


def _concepts(evidence: Evidence) -> Part:
    families = [*evidence.families.values(), evidence.twin]
    rows: list[tuple[object, ...]] = []
    for one in families:
        found, probe = bootstrap_mean(aucs(one.score)), probes(one.score)
        ratios = np.array([detection.s_cd for detection in one.score.detections])
        rows.append(
            (
                one.name,
                found.estimate,
                found.low,
                found.high,
                _mean(ratios),
                float((ratios > 0).mean()),
                float(probe.mean()),
            )
        )
    draws = evidence.random_auc.mean(1)
    rows.append(
        (
            f"{RANDOM}, best of as many",
            float(draws.mean()),
            float(draws.min()),
            float(draws.max()),
            _mean(evidence.random_s_cd),
            float((evidence.random_s_cd > 0).mean()),
            float("nan"),
        )
    )
    columns = ["dictionary", "auc", "low", "high", "s_cd", "s_cd_above_0", "probe_auc"]
    frame = pd.DataFrame(rows, columns=columns)
    figure = bars_with_intervals(
        frame, "dictionary", "auc", "low", "high", title="", x_title="", y_title="AUC of the best direction"
    ).update_xaxes(tickangle=-35)
    figure.add_hline(y=0.5, line={"dash": "dot", "width": 1})
    note = (
        "Mean over concepts; directions were chosen on other sentences. Intervals over concepts; for random directions the range of draws. "
        "The best of many random directions has a positive S_CD too: a positive one alone says nothing."
    )
    title = "Concepts found by single directions"
    per_concept = pd.DataFrame(
        [aucs(one.score) for one in families],
        index=pd.Index([one.name for one in families], name="dictionary"),
        columns=pd.Index(evidence.concepts, name="concept"),
    )
    grid = heatmap(per_concept, "", "AUC", diverging=False)
    return Table("concepts", title, frame, note), [
        FigureItem("concepts", title, figure, "concepts", note),
        FigureItem("by_concept", "The same for every concept", grid, "concepts", "AUC on sentences to judge by."),
    ]


def judged(evidence: Evidence) -> dict[str, Floats]:
    """``[concepts]`` for each family: harmonic mean of its ranks by words said and by likelihood, 0 (broken text) to 1 (best)."""
    names = list(evidence.steering)
    gains = np.stack([evidence.steering[name].gains for name in names])
    likely = np.stack([evidence.steering[name].log_probability for name in names])
    ranks = [(x.argsort(0, kind="stable").argsort(0) + 1) / len(names) for x in (gains, likely)]
    harmonic = 2 * ranks[0] * ranks[1] / (ranks[0] + ranks[1])
    broken = likely < evidence.unsteered_log_probability - MOST_COST
    return {name: np.where(broken[i], 0.0, harmonic[i]) for i, name in enumerate(names)}


def _steering(evidence: Evidence) -> Part:
    scores, rows = judged(evidence), list[tuple[object, ...]]()
    for name, one in evidence.steering.items():
        found = bootstrap_mean(one.gains)
        likely, strength = float(one.log_probability.mean()), float(one.strengths.mean())
        numbers = (
            found.estimate,
            found.low,
            found.high,
            likely,
            float(one.distinct.mean()),
            float(one.kl.mean()),
            strength,
        )
        rows.append((name, *numbers, float(scores[name].mean()), one.texts[0]))
    draws = evidence.random_gains.mean(1)
    likely = float(evidence.random_log_probability.mean())
    kl = float(str(evidence.settings["kl"]))
    nan = float("nan")
    rows.append((RANDOM, float(draws.mean()), float(draws.min()), float(draws.max()), likely, nan, kl, nan, nan, ""))
    rows.append((UNSTEERED, 0.0, nan, nan, evidence.unsteered_log_probability, nan, 0.0, 0.0, nan, ""))
    columns = ["direction", "gain", "low", "high", "log_probability", "distinct", "kl", "strength", "judged", "sample"]
    frame = pd.DataFrame(rows, columns=columns)
    figure = bars_with_intervals(
        frame,
        "direction",
        "gain",
        "low",
        "high",
        title="",
        x_title="",
        y_title="probability gained",
    ).update_xaxes(tickangle=-20)
    note = (
        f"Concepts {', '.join(evidence.steered)}; every direction costs {kl:g} nats at the first new token. gain: over unsteered text, at "
        "a new token. log_probability: of a token under the unsteered model. judged: harmonic mean of the ranks by both among the chosen "
        "directions. Intervals over concepts; for random directions the range of draws. sample: a text toward the first concept."
    )
    title = "Steering at equal cost"
    return Table("steering", title, frame, note), [FigureItem("steering", title, figure, "steering", note)]


def _truth(evidence: Evidence) -> Part:
    rows = [
        (
            method,
            *(float(np.nanmedian([getattr(one, what) for one in found])) for what in ("absorption", "cosine", "mcc")),
            len(found),
        )
        for method, found in evidence.truth.items()
    ]
    frame = pd.DataFrame(rows, columns=["method", "absorption", "cosine", "mcc", "seeds"])
    worst = [
        [float(bound([one.absorption for one in found])) for bound in (np.nanmin, np.nanmax)]
        for found in evidence.truth.values()
    ]
    drawn = frame.assign(low=[low for low, _ in worst], high=[high for _, high in worst])
    figure = bars_with_intervals(
        drawn, "method", "absorption", "low", "high", title="", x_title="", y_title="absorption"
    )
    note = (
        "Synthetic hierarchy of 20 features (parents and children); medians over seeds, lines from the smallest to the largest. "
        "absorption: cosine of children's atoms with their parents. cosine: of true directions with matched atoms. mcc: correlation of "
        "codes."
    )
    title = "Known features recovered"
    return Table("truth", title, frame, note), [FigureItem("truth", title, figure, "truth", note)]


def _beside(evidence: Evidence) -> Part:
    frame = beside(evidence, judged(evidence))
    frame_ours = frame.assign(label=frame["what"] + ", " + frame["method"], low=np.nan, high=np.nan)
    figure = bars_with_intervals(
        frame_ours, "label", "ours", "low", "high", title="", x_title="", y_title="ours"
    ).update_xaxes(tickangle=-35)
    figure.add_scatter(
        x=list(range(len(frame))),
        y=frame["paper"],
        mode="markers",
        marker={"color": "#c05621", "size": 9},
        name="paper",
        showlegend=True,
    )
    note = "Papers' numbers are of other models, larger dictionaries and other judges: compare their order, not their size."
    title = "Papers beside ours"
    return Table("papers", title, frame, note), [FigureItem("papers", title, figure, "papers", note)]


def _with_intervals(cases: dict[str, Floats], value: str) -> pd.DataFrame:
    rows = [(case, *(lambda f: (f.estimate, f.low, f.high))(bootstrap_mean(values))) for case, values in cases.items()]
    return pd.DataFrame(rows, columns=["case", value, "low", "high"])


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
