"""Tables and figures of the relation-neurons study: a figure for every table."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.results.bootstrap_tables import bootstrap_ratio_table
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.relation_neurons_claims import accuracy
from mechlab.studies.relation_neurons_evidence import Evidence
from mechlab.studies.relation_neurons_paper import beside_paper
from mechlab.views.figures import bars_with_intervals, heatmap

Floats = NDArray[np.float64]
Part = tuple[Table, list[FigureItem]]
TOP_UNITS = 20


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [
        beside_paper(evidence, drop_grid(evidence)),
        _facts(evidence),
        _drops(evidence),
        _sweep(evidence),
        _wordings(evidence),
        _units(evidence),
        _overlap(evidence),
        _layers(evidence),
        _cumulative(evidence),
        _versatility(evidence),
        _neutral(evidence),
        *([_languages(evidence)] if evidence.foreign else []),
    ]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what, and what was left out."""
    n = sum(len(one.right) for one in evidence.base.values())
    left_out = "; ".join(f"{name} ({why})" for name, why in evidence.left_out.items())
    return (
        f"{len(evidence.units):,} units were scored by how well their response to a prompt tells one relation from the others (average "
        f"precision); the best {evidence.k} of each relation were switched off. Units were found on facts the model answers right, in one "
        f"wording, and judged on {n} questions about other subjects: the model answers {accuracy(evidence, evidence.base):.0%} of them, "
        f"and {accuracy(evidence, evidence.base_other):.0%} in the second wording. "
        + (f"Left out: {left_out}. " if left_out else "")
        + "Every claim was written down, with its rule, before the run."
    )


def drop_grid(evidence: Evidence) -> pd.DataFrame:
    """Relative drop of each relation (column) without each set (row), with intervals: the paper's drop(i, j)."""
    rows = []
    for relation in evidence.relations:
        before = evidence.base[relation].right
        lost = np.stack([before - evidence.without[source, relation].right for source in evidence.relations])
        table = bootstrap_ratio_table(lost, np.broadcast_to(before, lost.shape), seed=evidence.seed)
        for place, source in enumerate(evidence.relations):
            logs = evidence.base[relation].log_probability - evidence.without[source, relation].log_probability
            numbers = (float(part[place]) for part in (table.estimate, table.low, table.high))
            rows.append((source, relation, *numbers, float(before.mean()), len(before), float(logs.mean())))
    columns = ["units of", "facts of", "drop", "low", "high", "accuracy before", "questions", "log-probability lost"]
    return pd.DataFrame(rows, columns=columns)


def _facts(evidence: Evidence) -> Part:
    rows = []
    for name, (asked, right) in evidence.detected.items():
        tested = name in evidence.relations
        held_out = (evidence.base[name].right, evidence.base_other[name].right) if tested else (np.array([]),) * 2
        first, second = (float(part.mean()) if len(part) else np.nan for part in held_out)
        rows.append((name, asked, right, right / asked, first, second, evidence.left_out.get(name, "")))
    columns = [
        "relation",
        "facts",
        "right",
        "share",
        "held-out share",
        "held-out share, second wording",
        "left out because",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    grid = frame.set_index("relation")[["share", "held-out share", "held-out share, second wording"]].iloc[::-1]
    figure = heatmap(grid, "", "answered right", diverging=False, x_title=" ", y_title=" ")
    note = "Greedy, two tokens. Units are found with detection facts that are answered right; held-out facts have other subjects."
    title = "Facts the model knows"
    return Table("facts", title, frame, note), [FigureItem("facts", title, figure, "facts", note)]


def _drops(evidence: Evidence) -> Part:
    frame = drop_grid(evidence)
    order = list(evidence.relations)
    figures: list[FigureItem] = []
    for column, key, title in (
        ("drop", "drops", "Relative drop of accuracy, held-out facts"),
        ("log-probability lost", "drops_nats", "Log-probability of the answer's first token that is lost, nats"),
    ):
        grid = frame.pivot(index="units of", columns="facts of", values=column).loc[order[::-1], order]
        figure = heatmap(grid, "", column, x_title="facts of", y_title="units switched off")
        figure.update_xaxes(tickangle=-30)
        note = (
            "Blue: lost without these units; red: better without them. The diagonal is the relation's own set. "
            "The table has 95 % intervals over questions."
        )
        figures.append(FigureItem(key, title, figure, "drops", note))
    note = "(before - after) / before, ratio of means over the relation's held-out questions; intervals by resampling questions."
    return Table("drops", "Which set breaks which relation", frame, note), figures


def _sweep(evidence: Evidence) -> Part:
    sizes = sorted({size for _, size in evidence.sweep})
    rows = []
    for name in evidence.relations:
        before = evidence.base[name].right
        for size in sizes:
            after = evidence.sweep[name, size].right
            found = bootstrap_mean(before - after, seed=evidence.seed)
            rows.append((name, size, float(before.mean()), float(after.mean()), found.estimate, found.low, found.high))
    frame = pd.DataFrame(rows, columns=["relation", "k", "before", "after", "lost", "low", "high"])
    grid = frame.pivot(index="relation", columns="k", values="lost").loc[list(evidence.relations)[::-1]]
    figure = heatmap(grid, "", "share lost", x_title="own top units switched off", y_title=" ")
    title = "Facts lost by size of the own set"
    note = f"Held-out questions right before minus right after, share of all. The set of the claims has {evidence.k} units."
    return Table("sweep", title, frame, note), [FigureItem("sweep", title, figure, "sweep", note)]


def _wordings(evidence: Evidence) -> Part:
    held_out = evidence.held_out
    rows = []
    for name in evidence.relations:
        found = evidence.found.precision[name][evidence.found.sets[name]]
        crossed = [
            part[name].mean() if name in part else np.nan for part in (held_out.by_template, held_out.by_subject)
        ]
        rows.append(
            (
                name,
                int((evidence.found.precision[name] >= 1).sum()),
                float(found.mean()),
                float(held_out.same[name].mean()),
                float(held_out.other[name].mean()),
                *map(float, crossed),
                held_out.chance[name],
                float(held_out.template_units(name).mean()),
            )
        )
    measured = ["found on", "other subjects", "other wording", "crossed: template", "crossed: subject"]
    frame = pd.DataFrame(rows, columns=["relation", "units at 1", *measured, "chance (held out)", "template units"])
    grid = frame.set_index("relation")[[*measured, "chance (held out)"]].iloc[::-1]
    figure = heatmap(grid, "", "average precision", diverging=False, x_title=" ", y_title=" ")
    note = (
        "Mean average precision of the set's units; units at 1: how many of all units tell the relation perfectly on the prompts they "
        "were found with. Crossed: subjects of one relation in the template of another; units that read the "
        "template score high for the template's relation, units that read the subject for the subject's. Template units lose over half "
        "of their precision above chance in the other wording."
    )
    title = "Do units follow the relation, its wording or its subjects?"
    return Table("wordings", title, frame, note), [FigureItem("wordings", title, figure, "wordings", note)]


def _units(evidence: Evidence) -> Part:
    """The best units of each relation by name, with the flag for template units."""
    rows = []
    for name in evidence.relations:
        flags = evidence.held_out.template_units(name)
        for rank, unit in enumerate(evidence.found.sets[name][:TOP_UNITS]):
            precision = (
                evidence.found.precision[name][unit],
                evidence.held_out.same[name][rank],
                evidence.held_out.other[name][rank],
            )
            rows.append(
                (name, rank + 1, str(evidence.units.named(int(unit))), *map(float, precision), bool(flags[rank]))
            )
    columns = ["relation", "rank", "unit", "found on", "other subjects", "other wording", "template unit"]
    frame = pd.DataFrame(rows, columns=columns)
    grid = frame.pivot(index="relation", columns="rank", values="other wording").loc[list(evidence.relations)[::-1]]
    figure = heatmap(grid, "", "average precision", diverging=False, x_title="rank of the unit", y_title=" ")
    note = "Average precision of each relation's best units on held-out facts in the other wording."
    title = "The best units of each relation"
    return Table("units", title, frame, note), [FigureItem("units", title, figure, "units", note)]


def _overlap(evidence: Evidence) -> Part:
    sets = {name: set(evidence.found.sets[name].tolist()) for name in evidence.relations}
    rows = [(a, b, len(sets[a] & sets[b]), len(sets[a] & sets[b]) / evidence.k) for a in sets for b in sets]
    frame = pd.DataFrame(rows, columns=["relation", "other", "units in both", "share"])
    order = list(evidence.relations)
    grid = frame.pivot(index="relation", columns="other", values="share").loc[order[::-1], order]
    figure = heatmap(grid, "", "share in both", diverging=False, x_title=" ", y_title=" ")
    figure.update_xaxes(tickangle=-30)
    chance = evidence.k / len(evidence.units)
    note = f"Share of a set's {evidence.k} units that lie in the other set too; two random sets share {chance:.1%}."
    title = "Overlap of the sets"
    return Table("overlap", title, frame, note), [FigureItem("overlap", title, figure, "overlap", note)]


def _layers(evidence: Evidence) -> Part:
    rows = []
    for name in evidence.relations:
        chosen = evidence.found.sets[name]
        kinds = np.array([evidence.units.sites[at].kind for at in evidence.units.site_of(chosen)])
        layers = evidence.units.layers(chosen)
        for kind in sorted({at.kind for at in evidence.units.sites}):
            counts = np.bincount(layers[kinds == kind], minlength=max(at.layer or 0 for at in evidence.units.sites) + 1)
            rows += [(name, kind, layer, int(count)) for layer, count in enumerate(counts)]
    frame = pd.DataFrame(rows, columns=["relation", "site", "layer", "units"])
    grid = frame.groupby(["relation", "layer"])["units"].sum().unstack().loc[list(evidence.relations)[::-1]]
    figure = heatmap(grid, "", "units", diverging=False, x_title="layer", y_title=" ")
    title = "Where the units lie"
    note = "Units of each relation's set by layer, all sites together; the table has them by site."
    return Table("layers", title, frame, note), [FigureItem("layers", title, figure, "layers", note)]


def _cumulative(evidence: Evidence) -> Part:
    rows = []
    steps = sorted({(small, large) for _, small, large in evidence.cumulative})
    for small, large in steps:
        found = {name: evidence.cumulative[name, small, large] for name in evidence.relations}
        for name, (total, affected) in found.items():
            rows.append((name, f"{small} to {large}", total, affected, 1 - affected / total if total else np.nan))
        total, affected = (sum(pair[i] for pair in found.values()) for i in (0, 1))
        rows.append(("all (micro)", f"{small} to {large}", total, affected, 1 - affected / total if total else np.nan))
    frame = pd.DataFrame(
        rows, columns=["relation", "step", "lost between", "lost without the difference alone", "score"]
    )
    order = [f"{small} to {large}" for small, large in steps]
    grid = frame.pivot(index="relation", columns="step", values="score").loc[
        ["all (micro)", *evidence.relations][::-1], order
    ]
    figure = heatmap(grid, "", "cumulativity", diverging=False, x_title="from top k to top k", y_title=" ")
    note = (
        "Among questions that survive without the smaller set and fail without the larger: share that survives when only the units "
        "between the two are off. High: no part of the set does it alone. Grey: no question was lost between the two sizes."
    )
    title = "Cumulativity"
    return Table("cumulativity", title, frame, note), [FigureItem("cumulativity", title, figure, "cumulativity", note)]


def _versatility(evidence: Evidence) -> Part:
    """Cells off the diagonal that are surely above or below zero."""
    drops = drop_grid(evidence)
    others = drops[drops["units of"] != drops["facts of"]]
    rows = []
    for name in evidence.relations:
        own = others[others["units of"] == name]
        rows.append((name, int((own["low"] > 0).sum()), int((own["high"] < 0).sum()), float(own["drop"].mean())))
    frame = pd.DataFrame(rows, columns=["units of", "relations hurt", "relations helped", "mean drop of others"])
    labelled = frame.assign(low=np.nan, high=np.nan)
    figure = bars_with_intervals(
        labelled, "units of", "mean drop of others", "low", "high", title="", y_title="mean relative drop of the others"
    ).update_xaxes(tickangle=-30)
    title = "Versatility and interference"
    note = "Other relations whose 95 % interval lies above 0 (hurt: versatile units) or below 0 (helped: interference)."
    return Table("versatility", title, frame, note), [FigureItem("versatility", title, figure, "versatility", note)]


def _neutral(evidence: Evidence) -> Part:
    base = evidence.neutral["nothing"]
    rows = []
    for name, losses in evidence.neutral.items():
        found = bootstrap_mean(losses - base, seed=evidence.seed)
        rows.append((name, float(np.exp(losses.mean())), found.estimate, found.low, found.high, found.n))
    frame = pd.DataFrame(rows, columns=["units switched off", "perplexity", "rise", "low", "high", "passages"])
    figure = bars_with_intervals(
        frame, "units switched off", "rise", "low", "high", title="", y_title="rise of the loss, nats per token"
    ).update_xaxes(tickangle=-30)
    title = "Neutral text"
    note = "Perplexity of held-out passages of prose, and the rise of their loss; random: one random set of each relation's layers."
    return Table("neutral", title, frame, note), [FigureItem("neutral", title, figure, "neutral", note)]


def _languages(evidence: Evidence) -> Part:
    rows = []
    for one in evidence.foreign:
        lost = None if one.own is None else bootstrap_mean(1 - one.own, seed=evidence.seed)
        numbers = (lost.estimate, lost.low, lost.high) if lost else (np.nan,) * 3
        others = float(1 - one.others.mean()) if one.others is not None else np.nan
        draws = float(1 - one.draws.mean()) if one.draws is not None else np.nan
        verdict = "tested" if lost else "not testable"
        rows.append((one.language, one.relation, one.asked, one.right, *numbers, others, draws, verdict))
    columns = [
        "language",
        "relation",
        "asked",
        "right",
        "lost",
        "low",
        "high",
        "lost (other sets)",
        "lost (random)",
        "state",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    label = [f"{language} {relation}" for language, relation in zip(frame["language"], frame["relation"], strict=True)]
    tested = bool(frame["lost"].notna().any())
    shown = frame.assign(label=label) if tested else frame.assign(label=label, lost=frame["right"] / frame["asked"])
    figure = bars_with_intervals(
        shown,
        "label",
        "lost",
        "low",
        "high",
        title="",
        x_title=" ",
        y_title="share lost" if tested else "answered right",
    ).update_xaxes(tickangle=-30)
    title = "Facts in other languages, without the units found in English"
    note = (
        "Of questions the model answers right in that language; no bar: it answers too few of them (not testable)."
        if tested
        else "Not testable: the model answers too few questions in these languages; bars are the share it answers right."
    )
    return Table("languages", title, frame, note), [FigureItem("languages", title, figure, "languages", note)]
