"""Tables and figures of the activation-reasoning study: a figure for every table."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.views.figures import bars_with_intervals
from mechlab.views.paper import paper_beside_ours
from mechlab.views.steering import dose_response
from steering.studies import activation_reasoning_claims as claims
from steering.studies.activation_reasoning_evidence import ByHops, Evidence, Floats, Steered, Suite, Told
from steering.studies.activation_reasoning_tasks import CHAINS, INDIRECT, NAMED

Part = tuple[Table, list[FigureItem]]
BASE, RULES, ORACLE = "the model itself", "rules over detected concepts", "rules over true concepts"
DIRECT, TWIN_BASE, TWIN_RULES = "detector of the answer, no rules", "twin itself", "rules over the twin's concepts"
_PUBLISHED = {
    (CHAINS, BASE): {1: 51.0, 3: 50.8, 5: 50.3},
    (CHAINS, RULES): {1: 95.0, 3: 95.6, 5: 95.3},
    (NAMED, BASE): {1: 41.0},
    (NAMED, RULES): {1: 74.7},
    (INDIRECT, BASE): {1: 29.7},
    (INDIRECT, RULES): {1: 62.7},
}
"""Llama-3.1-8B: PrOntoQA (true or false) by hops; Rail2Country, explicit and meta cues (which country)."""


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_accuracy(evidence), _controls(evidence), _detection(evidence), _action(evidence), _proofs(evidence)]
    parts += [_rules(evidence), _paper(evidence)]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    sizes = ", ".join(f"{len(one.told.hit)} of {one.name}" for one in evidence.suites)
    return (
        f"Concepts are detected at the last token of a statement, at the output of layer {evidence.layer}, by "
        f"{_judged(evidence)} directions with thresholds set on other statements. Rules given as data are chained forward from "
        f"the concept detected. Statements tested: {sizes}; none of them made a detector or set a threshold. A question has a right answer "
        "and one foil. The model is asked it after the statement; by rules it is right where the right answer follows and the foil does "
        "not, and a guess, half right, where neither or both follow. The rules are given to the chain in all suites; to the model they are "
        f"told in the statement for {CHAINS} only. Every claim was written down, with its rule, before the run."
    )


def _judged(evidence: Evidence) -> str:
    """The first kind of detectors of the settings."""
    return next(iter(evidence.suites[0].by_detector))


def _accuracy(evidence: Evidence) -> Part:
    rows = [
        _mean({"suite": one.name, "way": way, "hops": hops}, values, "accuracy")
        for one in evidence.suites
        for way, by_hops in _ways(one).items()
        for hops, values in by_hops.items()
    ]
    frame, title = pd.DataFrame(rows), "Accuracy by number of hops"
    note = (
        "Right answer against one foil: a guess is right half the time. 95 % intervals over statements are in the table. For invented "
        "kinds what the rules get wrong was detected wrong, so their line is flat by construction. A wrong country may still lie on the "
        "right continent."
    )
    figures = [
        FigureItem(
            f"accuracy_{i}",
            f"{title}: {one.name}",
            dose_response(
                frame[frame["suite"] == one.name],
                "hops",
                "accuracy",
                "way",
                x_title="hops",
                y_title="accuracy",
                base=0.5,
            ).update_xaxes(tickvals=sorted(one.base)),
            "accuracy",
            note,
        )
        for i, one in enumerate(evidence.suites)
    ]
    return Table("accuracy", title, frame, note), figures


def _ways(one: Suite) -> dict[str, ByHops]:
    return {
        BASE: one.base,
        RULES: one.told.right,
        ORACLE: one.oracle.right,
        DIRECT: one.direct,
        TWIN_BASE: one.twin_base,
        TWIN_RULES: one.twin.right,
    }


def _mean(row: dict[str, Any], values: Floats, name: str) -> dict[str, Any]:
    found = bootstrap_mean(values)
    return row | {name: found.estimate, "low": found.low, "high": found.high, "n": found.n}


def _controls(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for one in evidence.suites:
        hops = max(one.base)
        rows.append(_mean({"suite": one.name, "way": BASE}, one.base[hops], "accuracy"))
        rows.append(_mean({"suite": one.name, "way": RULES}, one.told.right[hops], "accuracy"))
        for way, draws in _drawn(one).items():
            rows += [_mean({"suite": one.name, "way": way}, draw.right[hops], "accuracy") for draw in draws]
        rows.append(_mean({"suite": one.name, "way": TWIN_RULES}, one.twin.right[hops], "accuracy"))
    frame, title = pd.DataFrame(rows), "Accuracy at the most hops, and controls"
    note = "95 % intervals over statements; for draws the mean and range of draws, which have a row each in the table."
    figure = _tall_bars(_bars(frame, "suite", "way", "accuracy"), "accuracy", "suite and way")
    return Table("controls", title, frame, note), [FigureItem("controls", title, figure, "controls", note)]


def _drawn(one: Suite) -> dict[str, list[Told]]:
    return {claims.LABELS: one.shuffled_labels, claims.RANDOM: one.random, claims.RULES: one.shuffled_rules}


def _tall_bars(frame: pd.DataFrame, y: str, x_title: str) -> Any:
    figure = bars_with_intervals(frame, "label", y, "low", "high", title="", x_title=x_title, y_title=y)
    figure.update_xaxes(tickangle=-45)
    return figure.update_layout(height=560, margin={"l": 170})  # the first labels lean out to the left


def _bars(frame: pd.DataFrame, first: str, then: str, y: str) -> pd.DataFrame:
    """One bar per pair of names; draws together, from the weakest to the strongest."""
    rows: list[dict[str, Any]] = []
    for (a, b), draws in frame.groupby([first, then], sort=False):
        values, alone = draws[y], len(draws) == 1
        low, high = (draws["low"].iloc[0], draws["high"].iloc[0]) if alone else (values.min(), values.max())
        rows.append({"label": f"{a}: {b}" if a else b, y: values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def _detection(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for one in evidence.suites:
        ways = {**{f"{kind} detectors": [told] for kind, told in one.by_detector.items()}, **_drawn(one)}
        ways = {way: draws for way, draws in ways.items() if way != claims.RULES} | {claims.TWIN: [one.twin]}
        rows += [
            _mean({"suite": one.name, "way": way}, draw.hit, "detected")
            for way, draws in ways.items()
            for draw in draws
        ]
    frame, title = pd.DataFrame(rows), "How often a statement's own concept is the one detected"
    note = (
        "The clearest concept above its threshold must be the right one; where none is above, it is a miss. Countries: 1 in 12 by "
        f"chance; kinds: 1 in {evidence.settings['chains']}. 95 % intervals; for draws mean and range of draws."
    )
    figure = _tall_bars(_bars(frame, "suite", "way", "detected"), "detected", "suite and detectors")
    return Table("detection", title, frame, note), [FigureItem("detection", title, figure, "detection", note)]


def _action(evidence: Evidence) -> Part:
    found = evidence.actions
    ways: dict[str, Sequence[Steered | None]] = {
        "vector of the fact that follows": [found.own],
        claims.RANDOM: found.random,
        claims.OTHERS: found.others,
        claims.TWIN: [found.twin],
    }
    rows: list[dict[str, Any]] = []
    for way, draws in ways.items():
        for one in draws:
            values = {"gain": math.nan, "low": math.nan, "high": math.nan, "n": 0} if one is None else {}
            row = {"suite": "", "way": way, "kl": math.nan if one is None else float(one.kl.mean())}
            rows.append(row | values if one is None else _mean(row, one.gain, "gain"))
    frame = pd.DataFrame(rows).drop(columns="suite")
    title = f"Acting on what follows, at a KL of {evidence.settings['kl']} nats"
    note = (
        "Indirect cues from which a continent follows; rise of the right continent's share among the four. What follows may be wrong: then "
        "the action is wrong too. 95 % intervals over prompts; for draws mean and range. No number: the KL is reached at no strength."
    )
    figure = _tall_bars(_bars(frame.assign(suite=""), "suite", "way", "gain"), "gain", "direction")
    return Table("action", title, frame, note), [FigureItem("action", title, figure, "action", note)]


def _proofs(evidence: Evidence) -> Part:
    rows = [
        {
            "suite": one.name,
            "statement": row.statement,
            "concept": row.concept,
            "detected": row.detected,
            "derived": row.derived,
            "steps": row.steps,
            "proof": row.proof,
            "flaw": row.flaw,
        }
        for one in evidence.suites
        for row in one.proofs
    ]
    frame, title = pd.DataFrame(rows), "What was detected, what follows, and its proof"
    counts: list[dict[str, Any]] = []
    for suite, found in frame.groupby("suite", sort=False):
        right = found["detected"] == found["concept"]
        none = found["detected"] == ""
        for label, rows_of in (("right", right), ("another concept", ~right & ~none), ("nothing detected", none)):
            counts.append({"label": f"{suite}: {label}", "statements": float(rows_of.sum())})
    note = (
        f"Longest proof of each statement; every proof was checked step by step ({int((frame['flaw'] != '').sum())} flawed). A proof shows "
        "that the conclusion follows from what was detected, not that what was detected is so."
    )
    bars = pd.DataFrame(counts).assign(low=math.nan, high=math.nan)
    return Table("proofs", title, frame, note), [
        FigureItem("proofs", title, _tall_bars(bars, "statements", "suite and outcome"), "proofs", note)
    ]


def _rules(evidence: Evidence) -> Part:
    frame = pd.DataFrame(
        [{"suites": suites, "rules": text.count("name: "), "text": text} for suites, text in evidence.rules.items()]
    )
    title, note = (
        "The rules, as data",
        "Number of rules by rule base; the table holds their text, which the chain reads.",
    )
    bars = frame.rename(columns={"suites": "label"}).assign(low=math.nan, high=math.nan)
    figure = bars_with_intervals(bars, "label", "rules", "low", "high", title="", x_title="suites", y_title="rules")
    return Table("rules", title, frame, note), [FigureItem("rules", title, figure, "rules", note)]


def _paper(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for (name, way), published in _PUBLISHED.items():
        one = evidence.suite(name)
        ours = one.base if way == BASE else one.told.right
        for hops in sorted({*published, *ours}):
            mean = 100 * float(ours[hops].mean()) if hops in ours else math.nan
            quantity = f"{name}, {hops} hop{'s' * (hops > 1)}: {way}"
            rows.append({"quantity": quantity, "paper": published.get(hops, math.nan), "ours": mean})
    frame, title = pd.DataFrame(rows), "The paper's numbers beside ours"
    note = (
        "Per cent right. The paper: Llama-3.1-8B with features of a sparse autoencoder; PrOntoQA (true or false), and Rail2Country with "
        "explicit and with meta cues (which country; chance is far below one half). Ours: one answer against one foil, chance 50 %."
    )
    figure = paper_beside_ours(frame, x_title="per cent right")
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]
