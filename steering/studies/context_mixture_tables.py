"""Tables and figures of the context-mixture study: a figure for every table."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.views.figures import bars_with_intervals
from mechlab.views.paper import paper_beside_ours
from mechlab.views.steering import dose_response
from steering.studies import context_mixture_claims as claims
from steering.studies.context_mixture_evidence import Condition, Evidence
from steering.studies.context_mixture_learning import Fit, fit_linear, fit_logistic, fit_rescorla_wagner

Part = tuple[Table, list[FigureItem]]
_PUBLISHED = {0.0: 74.1, 0.05: 61.9, 0.1: 59.2, 0.15: 54.6, 0.2: 57.1, 0.5: 55.2, 0.95: 47.8}
"""Quality of Qwen2's answers by share of inappropriate content, of 100, judged by a model."""
LINEAR, LOGISTIC, LEARNER = "straight line", "logistic curve", "Rescorla-Wagner learner"
_SHORT = {LINEAR: "line", LOGISTIC: "logistic", LEARNER: "learner"}


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_curve(evidence), _contexts(evidence), _fits(evidence), _parameters(evidence), _paper(evidence)]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    settings = evidence.settings
    return (
        f"{len(evidence.countries)} countries' capitals are asked for after {settings['passages']} short passages. Some passages name the "
        "right city, the others another country's capital: false, but harmless. Measured is the probability of the right answer's first "
        "token as a share of both answers'. Controls: the same contexts with passages on other things in place of the wrong ones, wrong "
        "ones all first or all last, and the random-weight twin. The study asks how a model as it is behaves; the paper's fine-tuning is "
        "not repeated. Every claim was written down, with its rule, before the run."
    )


def _rows(evidence: Evidence) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for model, mixtures in (("model", evidence.answered), (claims.TWIN, evidence.twin)):
        for one, found in mixtures.items():
            mean = bootstrap_mean(found.follows)
            rows.append(
                {
                    "model": model,
                    "context": one.name,
                    "share": math.nan if one.empty else one.share,
                    "other": "" if one.empty else one.other,
                    "order": "" if one.empty else one.order,
                    "follows": mean.estimate,
                    "low": mean.low,
                    "high": mean.high,
                    "p_relevant": float(found.relevant.mean()),
                    "p_inappropriate": float(found.inappropriate.mean()),
                }
            )
    return pd.DataFrame(rows)


def _curve(evidence: Evidence) -> Part:
    """Mixed contexts, and what the pooled fits say of them."""
    rows = _rows(evidence)
    mixed = rows[rows["order"] == "mixed"]
    frame = mixed.assign(curve=mixed["other"].where(mixed["model"] == "model", claims.TWIN))
    frame = frame[["curve", "share", "follows", "low", "high"]]
    start = frame[(frame["curve"] == "inappropriate") & (frame["share"] == 0)]
    frame = pd.concat([frame, start.assign(curve="off-topic"), _fitted(evidence)], ignore_index=True)
    shown = ["inappropriate", "off-topic", claims.TWIN, *(f"fit: {_SHORT[name]}" for name in _SHORT)]
    frame = frame.sort_values(
        ["curve", "share"], key=lambda x: x.map(shown.index) if x.name == "curve" else x, ignore_index=True
    )
    title = "The right answer's share by share of other passages"
    note = (
        "Means over questions with 95 % intervals; off-topic passages take the wrong ones' places. The fitted curves are least squares "
        "over all questions at once; the learner reads every passage in its place."
    )
    figure = dose_response(
        frame,
        "share",
        "follows",
        "curve",
        low="low",
        high="high",
        x_title="share of other passages",
        y_title="right answer's share",
    )
    return Table("curve", title, frame, note), [FigureItem("curve", title, figure, "curve", note)]


def _fitted(evidence: Evidence) -> pd.DataFrame:
    share, mixed = _pooled(evidence)[0], _is_mixed(evidence)
    rows: list[dict[str, Any]] = []
    for name, fit in pooled_fits(evidence).items():
        for at in np.unique(share[mixed]):
            mean = float(fit.predicted[mixed & (share == at)].mean())
            rows.append(
                {
                    "curve": f"fit: {_SHORT[name]}",
                    "share": float(at),
                    "follows": mean,
                    "low": math.nan,
                    "high": math.nan,
                }
            )
    return pd.DataFrame(rows)


def _pooled(evidence: Evidence) -> claims.Curve:
    curves = claims.curves(evidence.answered)
    share, cues, follows = (np.concatenate([one[i] for one in curves]) for i in range(3))
    return share, cues, follows


def _is_mixed(evidence: Evidence) -> np.ndarray[Any, np.dtype[np.bool_]]:
    used = [one for one in evidence.answered if one.other == "inappropriate" and not one.empty]
    return np.array([one.order == "mixed" for one in used] * len(evidence.countries))


@lru_cache(maxsize=1)
def pooled_fits(evidence: Evidence) -> dict[str, Fit]:
    """Each curve fitted to all questions at once."""
    share, cues, follows = _pooled(evidence)
    return {
        LINEAR: fit_linear(share, follows),
        LOGISTIC: fit_logistic(share, follows),
        LEARNER: fit_rescorla_wagner(cues, follows),
    }


def _contexts(evidence: Evidence) -> Part:
    frame = _rows(evidence)
    title = "Every context"
    note = (
        "The right answer's share in the two answers' probability, with 95 % intervals over questions; in the table also the "
        "probabilities themselves. First and last say where the other passages stand."
    )
    shown = frame.assign(
        label=[f"{c} (twin)" if m == claims.TWIN else c for m, c in zip(frame["model"], frame["context"], strict=True)]
    )
    figure = bars_with_intervals(
        shown, "label", "follows", "low", "high", title="", x_title="context", y_title="right answer's share"
    ).update_xaxes(tickangle=-45)
    figure.update_layout(height=520)
    return Table("contexts", title, frame, note), [FigureItem("contexts", title, figure, "contexts", note)]


def _fits(evidence: Evidence) -> Part:
    """Per question: by how much each curve beats the line."""
    rows: list[dict[str, Any]] = []
    for model, mixtures in (("model", evidence.answered), (claims.TWIN, evidence.twin)):
        curves = claims.curves(mixtures)
        gains = {
            LEARNER: claims.learner_gain(curves),
            LOGISTIC: np.array([fit_linear(x, p).aic - fit_logistic(x, p).aic for x, _, p in curves]),
        }
        for name, gain in gains.items():
            mean = bootstrap_mean(gain)
            rows.append(
                {
                    "model": model,
                    "curve": name,
                    "aic_gain": mean.estimate,
                    "low": mean.low,
                    "high": mean.high,
                    "better_on": float((gain > 0).mean()),
                }
            )
    frame = pd.DataFrame(rows)
    title = "Fits to each question against a straight line"
    note = (
        "AIC of the straight line minus that of the curve, mean over questions with 95 % interval: above 0 the curve is better, its "
        "parameters paid for. In the table, the share of questions on which it is."
    )
    short = ["twin" if model == claims.TWIN else model for model in frame["model"]]
    shown = frame.assign(label=[f"{m}: {_SHORT[c]}" for m, c in zip(short, frame["curve"], strict=True)])
    figure = bars_with_intervals(
        shown, "label", "aic_gain", "low", "high", title="", x_title="model and curve", y_title="AIC gained"
    )
    return Table("fits", title, frame, note), [FigureItem("fits", title, figure, "fits", note)]


def _parameters(evidence: Evidence) -> Part:
    names = {
        LINEAR: ("level", "slope"),
        LOGISTIC: ("level, log odds", "slope, log odds"),
        LEARNER: ("rate, relevant", "rate, inappropriate", "steepness"),
    }
    rows = [
        {"curve": curve, "parameter": name, "value": value, "aic": fit.aic, "r_squared": _r_squared(evidence, fit)}
        for curve, fit in pooled_fits(evidence).items()
        for name, value in zip(names[curve], fit.parameters, strict=True)
    ]
    frame = pd.DataFrame(rows)
    title = "Curves fitted to all questions at once"
    note = (
        "Rates are the rule's salience times its learning rate; steepness is its asymptote times the temperature: only these products "
        "can be told from answers. Lower AIC is better; questions are pooled, so it rests on answers that are not independent."
    )
    shown = frame.drop_duplicates("curve").assign(low=math.nan, high=math.nan)
    figure = bars_with_intervals(
        shown, "curve", "r_squared", "low", "high", title="", x_title="", y_title="variance explained"
    )
    return Table("parameters", title, frame, note), [FigureItem("parameters", title, figure, "parameters", note)]


def _r_squared(evidence: Evidence, fit: Fit) -> float:
    follows = _pooled(evidence)[2]
    return float(1 - ((follows - fit.predicted) ** 2).mean() / max(float(follows.var()), 1e-12))


def _paper(evidence: Evidence) -> Part:
    rows = [
        {
            "quantity": f"{share:.0%} inappropriate",
            "paper": _PUBLISHED.get(share, math.nan),
            "ours": 100 * float(evidence.answered[Condition(share)].follows.mean()),
        }
        for share in claims.shares(evidence)
    ]
    frame = pd.DataFrame(rows)
    title = "The paper's curve and ours"
    note = (
        "The paper's number is the quality of Qwen2's answers as a larger model judges it, on a testbed with hateful, private and false "
        "text; ours is the right answer's share. The shapes can be compared, the heights cannot: steepest at the first few per cent there."
    )
    figure = paper_beside_ours(frame, x_title="of 100")
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]
