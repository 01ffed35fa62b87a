"""Tables and figures of the experts study: a figure for every table."""

import numpy as np
import pandas as pd

from mechlab.results.finding import Finding
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies import experts_claims as claims
from mechlab.studies.experts_evidence import Evidence, Floats
from mechlab.studies.experts_routing import Part, routing_tables
from mechlab.views.experts import dose_response, expert_map, slanted
from mechlab.views.figures import bars_with_intervals
from mechlab.views.paper import paper_beside_ours

_PAPER_EXPERTS, _PAPER_OFF = 58 * 256, 10


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    found = {finding.key: finding for finding in claims.findings(evidence)}
    parts = [
        _replies(evidence),
        _relevance(evidence),
        _suppression(found),
        _doses(evidence),
        _quality(evidence),
        *routing_tables(evidence),
        _examples_of_random_sets(evidence),
        _paper(evidence, found),
    ]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    n, asked = len(evidence.contrast.evaluation.behaving), evidence.contrast
    rule = "nobody takes their place and the remaining weights are rescaled"
    if evidence.settings["off"] == "off":
        rule = "they are masked before the choice, so that others take their place"
    return (
        f"The behaviour is {asked.name}: a reply shows it if it holds one of {', '.join(repr(m.strip()) for m in asked.markers)}. "
        "An activation map of a prompt holds each expert's weights, summed over the prompt's tokens; an expert's relevance is the mean map "
        f"of {len(asked.selection.behaving)} prompts that ask for the behaviour less that of {len(asked.selection.plain)} that do not. The "
        f"{len(evidence.model.top)} most relevant experts are switched off ({rule}) or forced on at all tokens, on {n} + "
        f"{len(asked.evaluation.plain)} other prompts. Random experts of the same layers, used as often, are the control. "
        "Every claim was written down, with its rule, before the run."
    )


def _replies(evidence: Evidence) -> Part:
    model, rows = evidence.model, list[tuple[object, ...]]()
    frequent = evidence.frequent
    for case, shown in {
        "nothing switched": model.base,
        "top experts off": model.suppressed,
        "top experts on": model.activated,
        "most used experts off": frequent,
        "twin, nothing switched": evidence.twin.base,
        "twin, its top experts off": evidence.twin.suppressed,
    }.items():
        for which in ("behaving", "plain"):
            found = bootstrap_mean(getattr(shown, which))
            rows.append((case, which, found.estimate, found.low, found.high, found.n))
    for case, draws in {"random experts off": evidence.matched, "random experts on": evidence.forced}.items():
        for which in ("behaving", "plain"):
            values: Floats = getattr(draws, which)
            found = bootstrap_mean(values.mean(axis=0))
            rows.append((case, which, found.estimate, found.low, found.high, found.n))
    frame = pd.DataFrame(rows, columns=["case", "prompts", "share", "low", "high", "n"])
    title = f"How often replies show the behaviour ({evidence.contrast.name})"
    figure = bars_with_intervals(
        frame.assign(label=frame["case"] + " · " + frame["prompts"]),
        "label",
        "share",
        "low",
        "high",
        title="",
        x_title="switched · prompts that should show it (behaving) or not (plain)",
        y_title="share of replies",
    )
    note = "Prompts that experts were not chosen on; 95 % intervals over prompts, random experts averaged over draws."
    return Table("replies", title, frame, note), [FigureItem("replies", title, slanted(figure), "replies", note)]


def _relevance(evidence: Evidence) -> Part:
    side, twin = evidence.model, evidence.twin
    layers, used = side.routed.layers, side.routed.used()
    row, expert = np.indices(side.relevance.shape)
    frame = pd.DataFrame(
        {
            "layer": np.array(layers)[row.ravel()],
            "expert": expert.ravel(),
            "relevance": side.relevance.ravel(),
            "mean weight per prompt": side.routed.maps().mean(axis=0).ravel(),
            "share of tokens": used.ravel(),
            "relevance (twin)": twin.relevance.ravel(),
        }
    ).sort_values("relevance", ascending=False, kind="stable", ignore_index=True)
    title = "Relevance of every expert"
    note = "Difference of the mean activation maps of the two classes, on the selection prompts. The numbered ones are switched."
    shown = expert_map(side.relevance, layers, "relevance, summed weight", marked=side.top)
    figures = [
        FigureItem("relevance", title, shown, "relevance", note),
        FigureItem(
            "relevance_twin",
            "Relevance on the random-weight twin",
            expert_map(twin.relevance, layers, "relevance, summed weight", marked=twin.top),
            "relevance",
            "The same prompts, weights drawn anew.",
        ),
    ]
    return Table("relevance", title, frame, note), figures


def _suppression(found: dict[str, Finding]) -> Part:
    rows: list[tuple[str, str, float, float, float]] = []
    for key, what in {
        "suppression": "off: behaving prompts that stop",
        "activation": "on: plain prompts that start",
    }.items():
        finding = found[key]
        rows.append((what, "most relevant", finding.estimate, finding.low, finding.high))
        rows += [(what, one.name, one.estimate, one.low, one.high) for one in finding.controls]
    frame = pd.DataFrame(rows, columns=["switched", "experts", "change", "low", "high"])
    labels = frame["experts"] + " · " + frame["switched"].str.partition(":")[0]
    title = "Change of the behaviour: relevant experts against others"
    figure = bars_with_intervals(
        frame.assign(label=labels),
        "label",
        "change",
        "low",
        "high",
        title="",
        x_title="experts",
        y_title="share of prompts",
    )
    note = "Intervals over prompts; for random experts and shuffled labels the range of draws."
    return Table("against", title, frame, note), [FigureItem("against", title, slanted(figure), "against", note)]


def _doses(evidence: Evidence) -> Part:
    rows: list[tuple[object, ...]] = []
    for n, (top, shown, by_draw) in evidence.doses.items():
        behaving, plain = bootstrap_mean(shown.behaving), bootstrap_mean(shown.plain)
        rows.append(
            (
                "most relevant off, behaving prompts",
                n,
                behaving.estimate,
                behaving.low,
                behaving.high,
                claims.named(top),
            )
        )
        means = by_draw.mean(axis=1)
        rows.append(
            ("random off, behaving prompts", n, float(means.mean()), float(means.min()), float(means.max()), "")
        )
        rows.append(("most relevant off, plain prompts", n, plain.estimate, plain.low, plain.high, claims.named(top)))
    for n, shown in evidence.doses_on.items():
        plain, named = bootstrap_mean(shown.plain), claims.named(evidence.model.forced[:n])
        rows.append(("most relevant on, plain prompts", n, plain.estimate, plain.low, plain.high, named))
    frame = pd.DataFrame(rows, columns=["who", "n", "share", "low", "high", "experts"])
    frame = frame.sort_values(["who", "n"], kind="stable", ignore_index=True)
    title = "Dose and response: how many experts are switched"
    figure = dose_response(
        frame, x_title="experts switched", y_title=f"replies that show it ({evidence.contrast.name})"
    )
    note = "Bands: 95 % intervals over prompts; for random experts (used as often, other draws than above) the range of draws."
    return Table("doses", title, frame, note), [FigureItem("doses", title, figure, "doses", note)]


def _quality(evidence: Evidence) -> Part:
    rows: list[tuple[object, ...]] = []
    for who, side in {"model": evidence.model, "twin": evidence.twin}.items():
        for case, found in {"nothing switched": side.quality, "top experts off": side.without}.items():
            for what, values in {"neutral text, nats per token": found.nats, "questions answered": found.right}.items():
                one = bootstrap_mean(values)
                perplexity = float(np.exp(one.estimate)) if "nats" in what else np.nan
                rows.append((who, case, what, one.estimate, one.low, one.high, one.n, perplexity))
    one = bootstrap_mean(evidence.matched.nats.mean(axis=0))
    what = "neutral text, nats per token"
    rows.append(
        ("model", "random experts off", what, one.estimate, one.low, one.high, one.n, float(np.exp(one.estimate)))
    )
    frame = pd.DataFrame(rows, columns=["who", "case", "what", "value", "low", "high", "n", "perplexity"])
    title = "What else changes: neutral text and questions"
    labels = frame["what"].str.partition(",")[0] + " · " + frame["case"]
    ours = frame["who"] == "model"
    figure = bars_with_intervals(
        frame.assign(label=labels)[ours],
        "label",
        "value",
        "low",
        "high",
        title="",
        x_title="measured · switched",
        y_title="nats, or share",
    )
    note = (
        "Neutral text: mean loss per token of each text. Questions: share whose answer's first token is the likeliest."
    )
    return Table("quality", title, frame, note), [FigureItem("quality", title, slanted(figure), "quality", note)]


def _examples_of_random_sets(evidence: Evidence) -> Part:
    """Every control set with what it does, so that a lucky draw can be seen."""
    base, rows = evidence.model.base.behaving, list[tuple[str, int, str, float]]()
    for name, draws in {
        claims.MATCHED: evidence.matched,
        claims.UNIFORM: evidence.uniform,
        claims.SHUFFLED: evidence.shuffled,
    }.items():
        drops = (base - draws.behaving).mean(axis=1)
        rows += [(name, i, claims.named(draws.experts[i]), float(drop)) for i, drop in enumerate(drops)]
    frame = pd.DataFrame(rows, columns=["control", "draw", "experts", "drop"])
    title = "Every control draw"
    figure = bars_with_intervals(
        frame.assign(
            label=frame["control"].str.split(", ").str[-1] + " " + frame["draw"].astype(str), low=np.nan, high=np.nan
        ),
        "label",
        "drop",
        "low",
        "high",
        title="",
        x_title="control set",
        y_title="share of behaving prompts that stop",
    )
    note = "What each control set does when it is off."
    return Table("draws", title, frame, note), [FigureItem("draws", title, slanted(figure), "draws", note)]


def _paper(evidence: Evidence, found: dict[str, Finding]) -> Part:
    side = evidence.model
    shown = float(side.base.behaving.mean())
    ours = found["suppression"].estimate / shown if shown else np.nan
    random = claims.mean_change(evidence.matched, side.base.behaving) / shown if shown else np.nan
    rows = [
        (
            "experts off / all experts",
            _PAPER_OFF / _PAPER_EXPERTS,
            len(side.top) / side.relevance.size,
            "paper: 10 of 14,848",
        ),
        ("behaviour removed, relevant experts", 0.52, ours, "paper: 40 to 52 % of refusals, by prompt set"),
        ("behaviour changed, random experts", 0.09, random, "paper: 10 random experts, about 9 %"),
        (
            "other prompts newly refused",
            0.013,
            float(np.maximum(side.suppressed.plain - side.base.plain, 0).mean()),
            "regression",
        ),
        (
            "answers turned, experts forced on",
            0.10,
            found["activation"].estimate,
            "paper: aligned answers became refusals",
        ),
        (
            "questions answered, after / before",
            1.0,
            float(side.without.right.mean() / side.quality.right.mean()) if side.quality.right.any() else np.nan,
            "paper: MT-Bench not degraded",
        ),
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours", "remark"])
    title = "The paper beside ours"
    note = "DeepSeek-R1 with 58 layers of 256 experts there; here a model whose few experts do more each. Only the shape compares."
    figure = paper_beside_ours(frame, x_title="share")
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]
