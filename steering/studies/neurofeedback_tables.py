"""Tables and figures of the neurofeedback study: a figure for every table."""

import math
from typing import Any

import numpy as np
import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.views.figures import bars_with_intervals
from mechlab.views.steering import dose_response
from steering.studies import neurofeedback_claims as claims
from steering.studies.neurofeedback_directions import PROBE, RANDOM, SHUFFLED, component_name, sentences
from steering.studies.neurofeedback_evidence import TWIN, Evidence

Part = tuple[Table, list[FigureItem]]


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_curve(evidence), _late(evidence), _control(evidence), _paper(evidence), *_texts(evidence)]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    settings = evidence.settings
    return (
        f"Sentences about pleasant and unpleasant events are scored 1 or 0 by the model's own mean activation at the output of layer "
        f"{evidence.layer}, projected on a direction: above the median or not. Directions come from other sentences: a logistic probe, "
        f"principal components, random ones. The model reads {settings['examples']} scored sentences and tells the next one's score "
        "(report); or it is asked to reach a score with a sentence that is given (implicit control) or that it writes (explicit control). "
        "Sentences and scores are plain lines, not turns of a chat as in the paper. A random direction, and a shuffling of labels, is "
        "drawn anew for every context. Every claim was written down, with its rule, before the run."
    )


def _curve(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for name, one in evidence.measured.items():
        for slot in range(one.reported.right.shape[1]):
            right = bootstrap_mean(one.reported.right[:, slot])
            rows.append(
                {
                    "target": name,
                    "examples": slot,
                    "accuracy": right.estimate,
                    "low": right.low,
                    "high": right.high,
                    "loss": float(one.reported.loss[:, slot].mean()),
                }
            )
    frame = pd.DataFrame(rows)
    ranks = (component_name(k) for k in {min(claims.components(evidence)), max(claims.components(evidence))})
    shown = frame[frame["target"].isin([PROBE, SHUFFLED, TWIN, *ranks])]
    title = "Reports by number of examples"
    note = (
        "Accuracy of the reported score (chance 0.5; in the table with 95 % intervals over contexts) and loss between the two scores' "
        "tokens, nats (chance 0.69). The table holds every target; the figures leave some out."
    )
    items = [
        FigureItem(
            key,
            f"{what} by number of examples",
            dose_response(shown, "examples", key, "target", y_title=what.lower(), base=base),
            "curve",
            note,
        )
        for key, what, base in (("accuracy", "Accuracy", 0.5), ("loss", "Loss", math.log(2)))
    ]
    return Table("curve", title, frame, note), items


def _late(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for name, one in evidence.measured.items():
        for reader, values in (("model", claims.accuracy(one)), ("bag of words", one.bag.mean(1))):
            mean = bootstrap_mean(values)
            rows.append(
                {
                    "target": name,
                    "reader": reader,
                    "accuracy": mean.estimate,
                    "low": mean.low,
                    "high": mean.high,
                    "variance": one.variance,
                }
            )
    frame = pd.DataFrame(rows)
    title = "Reports after the second half of the examples"
    note = (
        "Beside the model a bag-of-words classifier fitted to the same examples: what can be told from words needs no look inside. In the "
        "table also the share of the sentences' variance along the direction."
    )
    shown = frame.assign(label=[f"{t}: {r}" for t, r in zip(frame["target"], frame["reader"], strict=True)])
    figure = bars_with_intervals(
        shown, "label", "accuracy", "low", "high", title="", x_title="target and reader", y_title="accuracy"
    ).update_xaxes(tickangle=-45)
    figure.update_layout(height=520)
    return Table("late", title, frame, note), [FigureItem("late", title, figure, "late", note)]


def _control(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for name, one in evidence.measured.items():
        for kind, found in (("implicit", one.implicit), ("explicit", one.explicit)):
            if found is not None:
                mean = claims.moved(found)
                rows.append(
                    {
                        "target": name,
                        "control": kind,
                        "effect": mean.estimate,
                        "low": mean.low,
                        "high": mean.high,
                        "cohens_d": claims.cohens_d(found.effect),
                    }
                )
    frame = pd.DataFrame(rows)
    title = "Control: how far a wanted score moves the activation"
    note = (
        "Score when 1 is asked for minus when 0 is, in standard deviations of the sentences' scores, with 95 % intervals over contexts. "
        "Implicit: over a sentence that is given. Explicit: a sentence that the model writes, read alone. With flipped labels a true "
        "effect changes its sign. In the table also Cohen's d of the paired differences."
    )
    shown = frame.assign(label=[f"{c}: {t}" for t, c in zip(frame["target"], frame["control"], strict=True)])
    figure = bars_with_intervals(
        shown, "label", "effect", "low", "high", title="", x_title="control and target", y_title="standard deviations"
    ).update_xaxes(tickangle=-45)
    figure.update_layout(height=520)
    return Table("control", title, frame, note), [FigureItem("control", title, figure, "control", note)]


def _texts(evidence: Evidence) -> list[Part]:
    """What was written; a bar for how long the lines are."""
    written = evidence.measured[PROBE].explicit
    if written is None:
        return []
    given = {one for side in sentences("held-out") for one in side}
    rows = [
        {
            "asked_for": text[0],
            "text": text[3:],
            "words": float(len(text[3:].split())),
            "copied": text[3:].strip() in given,
        }
        for text in written.texts
    ]
    frame = pd.DataFrame(rows)
    means = [bootstrap_mean(group["words"]) for _, group in frame.groupby("asked_for", sort=True)]
    shown = pd.DataFrame(
        {
            "asked_for": sorted(set(frame["asked_for"])),
            "words": [m.estimate for m in means],
            "low": [m.low for m in means],
            "high": [m.high for m in means],
        }
    )
    title = "What the model wrote for a score"
    note = "Greedy text up to the end of its line, and whether it repeats a given sentence; the figure shows how many words."
    figure = bars_with_intervals(shown, "asked_for", "words", "low", "high", title="", x_title="score asked for")
    return [(Table("texts", title, frame, note), [FigureItem("texts", title, figure, "texts", note)])]


def _paper(evidence: Evidence) -> Part:
    """The paper's shapes beside ours: it has curves, and no table that we know of."""
    found, ks = evidence.measured, sorted(claims.components(evidence))
    reported = {name: float(claims.accuracy(one).mean()) for name, one in found.items()}
    early = float(claims.accuracy(found[PROBE], claims.EARLY).mean())
    effects = {
        kind: claims.moved(x).estimate for kind, x in (("i", found[PROBE].implicit), ("e", found[PROBE].explicit))
    }
    rows = [
        ("reports improve with examples", "above 0", reported[PROBE] - early),
        ("probe better than a late component", "above 0", reported[PROBE] - reported[component_name(ks[-1])]),
        (
            "early component better than a late one",
            "above 0",
            reported[component_name(ks[0])] - reported[component_name(ks[-1])],
        ),
        ("probe better than random directions", "above 0", reported[PROBE] - reported[RANDOM]),
        ("implicit control of the probe, SD", "above 0, small", effects["i"]),
        ("explicit beyond implicit control, SD", "above 0 (expected, not checked)", effects["e"] - effects["i"]),
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours"])
    title = "The paper's shapes and ours"
    note = (
        "The paper (Llama-3 1B to 8B, Qwen2.5; up to 256 examples as turns of a chat) gives curves; the signs of its differences stand "
        "beside ours. Accuracies are differences of shares, control is in standard deviations of sentences."
    )
    bars = frame.assign(low=math.nan, high=math.nan, ours=np.asarray(frame["ours"], dtype=np.float64))
    figure = bars_with_intervals(
        bars, "quantity", "ours", "low", "high", title="", x_title="", y_title="ours"
    ).update_xaxes(tickangle=-30)
    figure.update_layout(height=520)
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]
