"""Tables and figures of the reasoning-vectors study: a figure for every table."""

import math
from typing import Any

import numpy as np
import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_difference, bootstrap_mean
from mechlab.views.figures import bars_with_intervals
from mechlab.views.steering import dose_response, pareto
from steering.studies import reasoning_vectors_claims as claims
from steering.studies.reasoning_vectors_evidence import Answered, Evidence, Matched, TaskEvidence

Part = tuple[Table, list[FigureItem]]


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_equal_kl(evidence), _strengths(evidence), _growth(evidence), _paper(evidence)]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    settings = evidence.settings
    negatives = (
        "as many random tokens" if settings["negatives"] == "random" else "the same question with a wrong answer"
    )
    return (
        f"For each kind of question a vector is made by {settings['method']} from the activations after {settings['n_fit']} "
        f"questions with their right answers and after {negatives}, at the output of layer {evidence.layer}. It is added to every token "
        f"but the first, and {settings['n_evaluation']} other questions are asked. Strength 1 is the vector's own length. Vectors are "
        f"compared at the strengths at which the next token's distribution has moved by {settings['kl']} nats on average. "
        "Every claim was written down, with its rule, before the run."
    )


def _equal_kl(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for one in evidence.tasks:
        own: list[tuple[str, Matched | None, Answered]] = [
            ("its own vector", one.own, one.base),
            *([(f"vector of {one.cross_name}", one.cross, one.base)] if one.cross_name else []),
            (claims.WRONG_LAYER, one.wrong_layer, one.base),
            *((claims.RANDOM, draw, one.base) for draw in one.random),
            *((claims.SHUFFLED, draw, one.base) for draw in one.shuffled),
            (claims.TWIN, one.twin, one.twin_base),
        ]
        rows += [_matched_row(one.task, name, found, base) for name, found, base in own]
    frame = pd.DataFrame(rows)
    title = f"Gain at a KL of {evidence.settings['kl']} nats"
    note = (
        "Rise of the right answer's share among the candidates; 95 % intervals over questions, for draws the mean and range of draws. In "
        "the table every draw has its row; no strength means that the KL is reached at none."
    )
    figure = bars_with_intervals(
        _bars(frame),
        "label",
        "gain",
        "low",
        "high",
        title="",
        x_title="task and vector",
        y_title="rise of the right answer's share",
    ).update_xaxes(tickangle=-45)
    figure.update_layout(height=560)
    return Table("equal_kl", title, frame, note), [FigureItem("equal_kl", title, figure, "equal_kl", note)]


def _matched_row(task: str, name: str, found: Matched | None, base: Answered) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task, "vector": name}
    numbers = ("strength", "kl", "gain", "low", "high", "accuracy", "accuracy_before", "entropy_rise")
    if found is None:
        return row | dict.fromkeys(numbers, math.nan)
    gain, after = bootstrap_difference(found.answered.share, base.share), found.answered
    means = (after.right.mean(), base.right.mean(), (after.entropy - base.entropy).mean())
    values = (found.strength, after.kl.mean(), gain.estimate, gain.low, gain.high, *means)
    return row | dict(zip(numbers, map(float, values), strict=True))


def _bars(frame: pd.DataFrame) -> pd.DataFrame:
    """One bar per task and vector; draws together, from the weakest to the strongest."""
    rows: list[dict[str, Any]] = []
    for (task, vector), draws in frame.groupby(["task", "vector"], sort=False):
        gain = draws["gain"]
        single = len(draws) == 1
        low, high = (draws["low"].iloc[0], draws["high"].iloc[0]) if single else (gain.min(), gain.max())
        rows.append({"label": f"{task}: {vector}", "gain": gain.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def _strengths(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for one in evidence.tasks:
        for strength, found in sorted({0.0: one.base, **one.by_strength}.items()):
            right = bootstrap_mean(found.right)
            rows.append(
                {
                    "task": one.task,
                    "strength": strength,
                    "accuracy": right.estimate,
                    "low": right.low,
                    "high": right.high,
                    "share": float(found.share.mean()),
                    "kl": float(found.kl.mean()),
                    "kl_variance": float(found.kl.var()),
                    "entropy": float(found.entropy.mean()),
                }
            )
    frame = pd.DataFrame(rows)
    note = "Held-out questions; strength 1 is the vector's own length, 0 is the model as it is. Bands are 95 % intervals over questions."
    shown = [
        (
            "accuracy",
            "Accuracy by strength",
            dose_response(frame, "strength", "accuracy", "task", low="low", high="high", y_title="right answers"),
        ),
        (
            "kl",
            "KL by strength",
            dose_response(frame, "strength", "kl", "task", y_title="KL from the unsteered model, nats"),
        ),
        (
            "entropy",
            "Entropy by strength",
            dose_response(frame, "strength", "entropy", "task", y_title="entropy of the next token, bits"),
        ),
        (
            "tradeoff",
            "Effect and damage",
            pareto(
                frame.assign(name=[f"{s:g}" for s in frame["strength"]]),
                "share",
                "kl",
                "task",
                label="name",
                wanted_title="right answer's share",
                damage_title="KL from the unsteered model, nats",
                log_damage=True,
            ),
        ),
    ]
    figures = [FigureItem(key, title, figure, "strengths", note) for key, title, figure in shown]
    return Table("strengths", "Accuracy, KL and entropy by strength", frame, note), figures


def _growth(evidence: Evidence) -> Part:
    """Near 0 a KL grows as the square of the strength, whatever the vector."""
    rows = [{"task": one.task, "exponent": kl_exponent(one), "separation": one.separation} for one in evidence.tasks]
    frame = pd.DataFrame(rows)
    note = (
        "Exponent of the KL's growth between the two smallest sizes of strength, the two signs averaged (2: as the square); and, in the "
        "table, how well the vector tells solved questions it was not made from apart from the negatives (AUROC of the projection)."
    )
    figure = bars_with_intervals(
        frame.assign(low=math.nan, high=math.nan),
        "task",
        "exponent",
        "low",
        "high",
        title="",
        x_title="task",
        y_title="exponent",
    )
    title = "How fast the KL grows"
    return Table("growth", title, frame, note), [FigureItem("growth", title, figure, "growth", note)]


def kl_exponent(one: TaskEvidence) -> float:
    """``log(KL(b) / KL(a)) / log(b / a)`` for the two smallest sizes a < b of strength; NaN with fewer."""
    by_size: dict[float, list[float]] = {}
    for strength, found in one.by_strength.items():
        if strength:
            by_size.setdefault(abs(strength), []).append(float(found.kl.mean()))
    sizes = sorted(by_size)[:2]
    if len(sizes) < 2 or min(min(by_size[size]) for size in sizes) <= 0:
        return math.nan
    small, large = (float(np.mean(by_size[size])) for size in sizes)
    return math.log(large / small) / math.log(sizes[1] / sizes[0])


def _paper(evidence: Evidence) -> Part:
    """The paper's shapes beside ours."""
    rows = [row for one in evidence.tasks for row in _shapes(one)]
    frame = pd.DataFrame(rows)
    note = (
        "The paper (Pythia 14M to 2.8B, Mistral-7B; IOI, bAbI 15, GSM8K) gives curves and no full table; its shapes stand beside ours. "
        "The gain of the best strength is chosen and measured on the same questions, as in the paper: it flatters; no claim rests on it."
    )
    bars = frame[frame["quantity"] == "best gain in accuracy over strengths"].rename(columns={"ours": "gain"})
    figure = bars_with_intervals(
        bars.assign(low=math.nan, high=math.nan),
        "task",
        "gain",
        "low",
        "high",
        title="",
        x_title="task",
        y_title="best gain in accuracy",
    )
    title = "The paper's shapes and ours"
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]


def _shapes(one: TaskEvidence) -> list[dict[str, Any]]:
    gains = {s: float((x.right - one.base.right).mean()) for s, x in one.by_strength.items()}
    best = max(gains, key=lambda s: (gains[s], -abs(s)))
    largest = max(abs(s) for s in gains)
    rise = np.mean([(x.entropy - one.base.entropy).mean() for s, x in one.by_strength.items() if abs(s) == largest])
    shapes = [
        ("best gain in accuracy over strengths", "up to about 0.15", gains[best]),
        ("strength of the best gain", "small, not 0; negative at times", best),
        ("exponent of the KL's growth", "about 2", kl_exponent(one)),
        (f"rise of the entropy at size {largest:g}, bits", "above 0", float(rise)),
        ("accuracy unsteered", "IOI 0.65 to 0.86 over strengths (Pythia-2.8B)", float(one.base.right.mean())),
    ]
    return [{"task": one.task, "quantity": name, "paper": paper, "ours": ours} for name, paper, ours in shapes]
