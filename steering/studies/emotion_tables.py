"""Tables and figures of the emotion study: a figure for every table."""

from typing import Any

import numpy as np
import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_difference, bootstrap_mean
from mechlab.results.wording import three_digits
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.paper import paper_beside_ours
from mechlab.views.steering import dose_response, pareto
from steering.emotion.prompts import EMOTIONS
from steering.studies import emotion_claims as claims
from steering.studies.emotion_evidence import JUDGES, ByEmotion, Evidence, gain, single

Part = tuple[Table, list[FigureItem]]
_Y = {
    "words": "rise of the words' probability",
    "projection": "rise of the projection, in emotions",
    "probe": "rise of the probe's probability",
}
_PUBLISHED = {
    "cosine of an emotion's directions after attention and after the MLP, same layer": 0.77,
    "cosine of an emotion's directions after the MLP, neighbouring layers": 0.81,
    "cosine of two emotions' directions, same layer": 0.24,
    "overlap of two emotions' neurons (Jaccard)": 0.056,
    "overlap of two emotions' heads (Jaccard)": 0.454,
}


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [
        _equal_kl(evidence),
        _by_emotion(evidence),
        _texts(evidence),
        _confusion(evidence),
        _layers(evidence),
        _curve(evidence),
        _allocation(evidence),
        _paper(evidence),
        _accuracy(evidence),
    ]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what, and whether the circuit wins."""
    s = evidence.settings
    return (
        f"{evidence.n_prompts} held-out events are put to the model. Directions, units and circuits of six emotions are made from other "
        "events, and from other words for the emotions. Ways of bringing an emotion out are compared at the strengths at which the next "
        f"token's distribution has moved by {s['kl']} nats on average; prompting, which has no strength, is used in so many replies that "
        f"the KL is the same. {_verdict(evidence)} Every claim was written down, with its rule, before the run."
    )


def _verdict(evidence: Evidence) -> str:
    """Whether the circuit wins, and whether it is the choice of units that wins."""
    told: list[str] = []
    own = gain(single(evidence.methods[claims.CIRCUIT]), "words")
    for rival in (claims.PLAIN, claims.PROMPTING):
        found = bootstrap_difference(own, gain(single(evidence.methods[rival]), "words"))
        how = "beats" if found.low > 0 else "loses to" if found.high < 0 else "does not differ clearly from"
        told.append(f"{how} {rival} ({three_digits(found.estimate)} in the probability of the emotion's words)")
    draws = [float(gain(one, "words").mean()) for one in evidence.methods[claims.RANDOM]]
    ours = bootstrap_mean(own)
    stands = "stands out from" if ours.low > max(draws) else "does not stand out from"
    return (
        f"At this KL the circuit {' and '.join(told)}. With a rise of {three_digits(ours.estimate)} it {stands} random units of the same "
        f"layers, which give {three_digits(min(draws))} to {three_digits(max(draws))}."
    )


def _equal_kl(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    ways: dict[str, list[ByEmotion]] = {
        **evidence.methods,
        claims.TWIN: [evidence.twin_circuit],
        "prompting, all replies": [evidence.prompting_as_is],
    }
    for name, draws in ways.items():
        rows += [_row(name, draw) for draw in draws]
    frame = pd.DataFrame(rows)
    title = f"Ways of bringing out an emotion at a KL of {evidence.settings['kl']} nats"
    note = (
        "Mean over the six emotions; 95 % intervals over held-out prompts, for draws the mean and range of draws. In the table every "
        "draw has its row; strengths of different ways are not comparable (of prompting: the share of replies that are asked). Plain "
        "steering moves the very streams that lead to the readout, so its projection flatters it. The last bar has its own KL."
    )
    figures: list[FigureItem] = []
    for judge in JUDGES:
        drawing = bars_with_intervals(
            _bars(frame, judge), "way", judge, "low", "high", title="", x_title="way", y_title=_Y[judge]
        ).update_xaxes(tickangle=-35)
        figures.append(FigureItem(f"equal_kl_{judge}", f"{title}: {judge}", drawing, "equal_kl", note))
    return Table("equal_kl", title, frame, note), figures


def _row(name: str, draw: ByEmotion) -> dict[str, Any]:
    row: dict[str, Any] = {
        "way": name,
        "strength": float(np.mean([one.strength for one in draw.values()])),
        "kl": float(np.mean([one.kl.mean() for one in draw.values()])),
        "emotions_at_kl": sum(one.reached for one in draw.values()),
    }
    for judge in JUDGES:
        found = bootstrap_mean(gain(draw, judge))
        row |= {judge: found.estimate, f"{judge}_low": found.low, f"{judge}_high": found.high}
    return row


def _bars(frame: pd.DataFrame, judge: str) -> pd.DataFrame:
    """One bar per way; draws together, from the weakest to the strongest."""
    rows: list[dict[str, Any]] = []
    for way, draws in frame.groupby("way", sort=False):
        values = draws[judge]
        alone = len(draws) == 1
        low, high = (
            (draws[f"{judge}_low"].iloc[0], draws[f"{judge}_high"].iloc[0]) if alone else (values.min(), values.max())
        )
        rows.append({"way": way, judge: values.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)


def _by_emotion(evidence: Evidence) -> Part:
    rows: list[dict[str, Any]] = []
    for way in (claims.CIRCUIT, claims.UNIFORM, claims.PLAIN, claims.PROMPTING):
        for emotion, found in single(evidence.methods[way]).items():
            numbers = {judge: float(found.gain(judge).mean()) for judge in JUDGES}
            row = {"way": way, "emotion": emotion, "strength": found.strength, "kl": float(found.kl.mean())}
            rows.append(row | {"at_kl": found.reached} | numbers)
    frame = pd.DataFrame(rows)
    grid = frame.pivot(index="way", columns="emotion", values="words").loc[::-1, list(EMOTIONS)]
    title = "Rise of the words' probability by emotion"
    note = "At equal KL, mean over held-out prompts. Where at_kl is false the KL is reached at no strength."
    figure = heatmap(grid, "", "rise of the probability", x_title="emotion", y_title="way")
    return Table("by_emotion", title, frame, note), [FigureItem("by_emotion", title, figure, "by_emotion", note)]


def _texts(evidence: Evidence) -> Part:
    frame = evidence.texts
    title = "Fluency of the text"
    note = (
        f"{evidence.settings['n_tokens']} greedy tokens after 'I feel'. Loss: nats per token of that text for the unsteered model after "
        "the neutral prompt (fluent text has a low one). distinct_2: share of different word pairs. repetition: share of word pairs said "
        "before. words: share of words from the emotion's lexicon; a judge of words can be pleased by a loop of them."
    )
    figure = pareto(
        frame.assign(point=[str(e) if e != "none" else "" for e in frame["emotion"]]),
        "words",
        "loss",
        "way",
        label="point",
        wanted_title="share of the emotion's words",
        damage_title="loss of the text, nats per token",
    )
    return Table("texts", title, frame, note), [FigureItem("texts", title, figure, "texts", note)]


def _confusion(evidence: Evidence) -> Part:
    shares = evidence.recognition.confusion
    rows = [
        {"emotion": emotion, "direction": other, "share": float(shares[i, j])}
        for i, emotion in enumerate(EMOTIONS)
        for j, other in enumerate(EMOTIONS)
    ]
    frame = pd.DataFrame(rows)
    grid = frame.pivot(index="emotion", columns="direction", values="share").loc[list(EMOTIONS)[::-1], list(EMOTIONS)]
    title = "Which direction an emotion points along most"
    note = f"Held-out events, emotions asked for in words that made no direction, at {evidence.readout}. By chance a sixth."
    figure = heatmap(grid, "", "share of events", diverging=False, x_title="direction", y_title="emotion")
    return Table("confusion", title, frame, note), [FigureItem("confusion", title, figure, "confusion", note)]


def _layers(evidence: Evidence) -> Part:
    frame = evidence.recognition.layers
    title = "Specificity of directions by layer"
    note = (
        "Cosine of what an emotion adds with its own direction minus the mean cosine with the others', on held-out events in other words; "
        "bands are 95 % intervals over events."
    )
    figure = dose_response(
        frame, "layer", "specificity", "site", low="low", high="high", x_title="layer", y_title="specificity", base=0.0
    )
    return Table("layers", title, frame, note), [FigureItem("layers", title, figure, "layers", note)]


def _curve(evidence: Evidence) -> Part:
    frame = pd.concat([one.curve for one in evidence.ablations.values()], ignore_index=True)
    title = "Projection when top units are zeroed or doubled"
    note = (
        f"Change of the projection on the emotion's direction at {evidence.readout}, in mean lengths of an emotion there, on prompts that "
        "ask for it, as k units of each layer are zeroed or doubled at the last token. Random: one draw of as many of the same layers."
    )
    figures: list[FigureItem] = []
    for kind, rows in frame.groupby("kind", sort=False):
        line = [f"{units}, {what}" for units, what in zip(rows["units"], rows["what"], strict=True)]
        drawing = dose_response(
            rows.assign(line=line), "k", "change", "line", low="low", high="high",
            x_title=f"{kind} of each layer", y_title="change of the projection", base=0.0,
        )  # fmt: skip
        figures.append(FigureItem(f"ablation_{kind}", f"{title}: {kind}", drawing, "ablation", note))
    return Table("ablation", title, frame, note), figures


def _allocation(evidence: Evidence) -> Part:
    frame = evidence.allocation
    title = "Causal influence, and the units each layer gives"
    note = (
        "Influence: change of the last stream along the emotion's reference direction per unit pushed into what a sublayer writes. "
        "Units: shared out by influence (negative counts as none), with floors and caps; uniform: all layers alike."
    )
    figures: list[FigureItem] = []
    for kind, rows in frame.groupby("kind", sort=False):
        grid = rows.pivot(index="emotion", columns="layer", values="influence").loc[list(EMOTIONS)[::-1]]
        drawing = heatmap(grid, "", "influence", x_title="layer", y_title="emotion")
        figures.append(
            FigureItem(f"influence_{kind}", f"Causal influence of the layers' {kind}", drawing, "allocation", note)
        )
    return Table("allocation", title, frame, note), figures


def _paper(evidence: Evidence) -> Part:
    rows = [{"quantity": name, "paper": _PUBLISHED[name], "ours": ours} for name, ours in evidence.shapes.items()]
    frame = pd.DataFrame(rows)
    title = "The paper's directions and circuits, and ours"
    note = (
        "The paper's model is Llama-3.2-3B-Instruct, with 480 events. Six directions that sum to nearly zero have a mean cosine of about "
        "-0.2 with each other; the published figure for two emotions must be computed otherwise (how is not told)."
    )
    figure = paper_beside_ours(frame, x_title="cosine, or Jaccard index")
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]


def _accuracy(evidence: Evidence) -> Part:
    """Theirs is a judge's share of accepted replies; the nearest of ours is the share of prompts in which the words gain."""
    rows = [
        {"quantity": "prompting", "paper": 0.9896, "ours": _named(evidence.prompting_as_is)},
        {"quantity": "plain steering", "paper": 0.9122, "ours": _named(single(evidence.methods[claims.PLAIN]))},
        {"quantity": "circuit", "paper": 0.9965, "ours": _named(single(evidence.methods[claims.CIRCUIT]))},
        {"quantity": "circuit, an independent reproduction", "paper": 0.8889, "ours": float("nan")},
    ]
    frame = pd.DataFrame(rows)
    title = "The paper's accuracy of expression, and the rise of our words"
    note = (
        "The paper: share of replies that a large model accepts as expressing the emotion, each way at its own best strength. Ours: "
        f"share of prompts and emotions in which the emotion's words gain more than {claims.MIN_GAIN['words']} of probability, "
        f"at a KL of {evidence.settings['kl']} nats (prompting: in all replies). The two are not the same quantity. In an independent "
        "reproduction (0.9771 prompting, 0.8816 steering) the circuit did not beat prompting. "
        f"Our probe names {evidence.probe_accuracy:.0%} of the held-out prompts in other words; by chance 17 %."
    )
    figure = paper_beside_ours(frame, x_title="share")
    return Table("accuracy", title, frame, note), [FigureItem("accuracy", title, figure, "accuracy", note)]


def _named(found: ByEmotion) -> float:
    """Share of prompts and emotions in which the emotion's words gain more than the claims' threshold."""
    return float(np.mean([one.words > claims.MIN_GAIN["words"] for one in found.values()]))
