"""Tables and figures of the IOI study: a figure for every table."""

import numpy as np
import pandas as pd

from circuits.heads import CLASSES, class_table
from circuits.studies.ioi_evidence import Evidence
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.results.bootstrap_tables import bootstrap_mean_table
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.views.figures import bars_with_intervals, heatmap, pattern

Pair = tuple[Table, FigureItem]


def tables_and_figures(lens: Lens, evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    pairs = [
        _behaviour(evidence),
        _residual(evidence),
        _heads(evidence),
        _direct(evidence),
        _classes(evidence),
        _claims(evidence),
        *_patterns(lens, evidence),
    ]
    return [table for table, _ in pairs], [figure for _, figure in pairs]


def summary(lens: Lens, evidence: Evidence) -> str:
    """What was asked, on what."""
    task, held_out = evidence.discovery.task, evidence.evaluation
    ids = held_out.clean.ids[0, : held_out.clean.lengths[0]].tolist()
    example = str(lens.model.tokenizer.decode(ids))
    answer = lens.model.tokenizer.decode([int(held_out.answers[0])])
    return (
        "Two names appear, one of them again; the model should answer with the other one, the indirect object. Example: "
        f"“{example}” → “{str(answer).strip()}”. Heads were chosen on {len(task)} prompt pairs and tested on {len(held_out)} "
        "others, with other templates and other names. Patching copies activations from the clean run into a corrupted one, "
        f"{task.name}; 0 restores nothing, the clean minus the corrupted logit difference everything. "
        "Every claim was written down, with its rule, before the run."
    )


def _behaviour(evidence: Evidence) -> Pair:
    rows = []
    for name, found in evidence.behaviour.items():
        difference, right = (bootstrap_mean(values) for values in (found.logit_difference, found.accuracy))
        rows.append(
            (name, difference.estimate, difference.low, difference.high, right.estimate, right.low, right.high, right.n)
        )
    columns = ["case", "logit_difference", "low", "high", "accuracy", "accuracy_low", "accuracy_high", "prompts"]
    frame = pd.DataFrame(rows, columns=columns)
    title = "Behaviour on held-out prompts"
    figure = bars_with_intervals(
        frame, "case", "logit_difference", "low", "high", title="", y_title="logit difference, logits"
    )
    note = "Logit difference (IO − S) and share of prompts with IO above S, with 95 % intervals over prompts."
    return Table("behaviour", title, frame, note), FigureItem("behaviour", title, figure, "behaviour", note)


def _residual(evidence: Evidence) -> Pair:
    effects = evidence.discovery.by_residual
    assert effects is not None
    title = "Where the information is: patching the residual stream"
    figure = heatmap(effects.grid("layer", "pos"), "", "fraction recovered", x_title="position", y_title="layer")
    note = "Residual stream entering each layer, at one labelled position, copied from the clean run. 0: nothing restored; 1: everything."
    return Table("residual", title, _shown(effects.summary()), note), FigureItem(
        "residual", title, figure, "residual", note
    )


def _heads(evidence: Evidence) -> Pair:
    effects = evidence.discovery.by_head
    title = "Which heads restore the answer: patching each head"
    figure = heatmap(effects.grid("layer", "head"), "", "fraction recovered", x_title="head", y_title="layer")
    note = "Each head's output (z, all positions) copied from the clean run. Blue restores the answer, red works against it."
    return Table("heads", title, _shown(effects.summary()), note), FigureItem("heads", title, figure, "heads", note)


def _shown(summary: pd.DataFrame) -> pd.DataFrame:
    """Columns that say something here."""
    dropped = [name for name in ("intervention", "kind", "unit", "verb") if name in summary]
    return summary.drop(columns=dropped).dropna(axis=1, how="all")


def _direct(evidence: Evidence) -> Pair:
    direct = evidence.discovery.direct
    n, n_layers, n_heads = direct.shape
    found = bootstrap_mean_table(direct.reshape(n, -1).T)
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    frame = pd.DataFrame({"layer": layer, "head": head, "direct": found.estimate, "low": found.low, "high": found.high})
    grid = frame.pivot(index="layer", columns="head", values="direct")
    title = "Which heads write the answer: direct logit attribution"
    figure = heatmap(grid, "", "logits", x_title="head", y_title="layer")
    note = "What each head adds to the logit difference at END through the unembedding alone, the final norm held at its scale."
    return Table("direct", title, frame, note), FigureItem("direct", title, figure, "direct", note)


def _classes(evidence: Evidence) -> Pair:
    found = evidence.discovery
    attention = found.attention.mean(axis=1)
    frame = class_table(found.qualified, found.sets, attention, found.effects)
    title = "Head classes found on the discovery prompts"
    best = pd.DataFrame(
        attention.max(axis=2),
        index=pd.Index([c.title for c in CLASSES], name="class"),
        columns=pd.RangeIndex(attention.shape[1], name="layer"),
    )
    figure = heatmap(best, "", "attention", diverging=False, x_title="layer", y_title="class")
    note = (
        "Heads that attend as their class should (at least the threshold, on average), with their effect; the strongest with the "
        "class's sign of effect are chosen. The figure shows, for each class's query and key, the most attentive head of each layer."
    )
    return Table("classes", title, frame, note), FigureItem("classes", title, figure, "classes", note)


_TITLES = {of_class.name: of_class.title for of_class in CLASSES} | {
    "top_heads": "Strongest heads",
    "resid_s2": "Residual at S2",
    "resid_end": "Residual at END",
    "resid_s2_elsewhere": "Residual at S1+1, early",
    "resid_end_elsewhere": "Residual at S1+1, late",
}


def _claims(evidence: Evidence) -> Pair:
    rows = []
    for name, change in evidence.changes.items():
        found = bootstrap_mean(change)
        rows.append((_TITLES[name], "chosen", found.estimate, found.low, found.high))
        if name in evidence.random_changes:
            means = evidence.random_changes[name].mean(axis=1)
            rows.append((_TITLES[name], "random, same layers", means.mean(), means.min(), means.max()))
    frame = pd.DataFrame(rows, columns=["claim", "heads", "restored", "low", "high"])
    frame["label"] = np.where(frame["heads"] == "chosen", frame["claim"], "… random instead")
    title = "Logit difference restored on held-out prompts"
    figure = bars_with_intervals(
        frame, "label", "restored", "low", "high", title="", x_title="patched together", y_title="logits"
    )
    note = (
        "Chosen sites patched together, with 95 % intervals over prompts; beside each, random heads of the same layers "
        "(mean and range of draws)."
    )
    return Table("claims", title, frame.drop(columns="label"), note), FigureItem(
        "claims", title, figure, "claims", note
    )


def _patterns(lens: Lens, evidence: Evidence) -> list[Pair]:
    """The pattern of each class's strongest head on the first evaluation prompt."""
    tokens = evidence.evaluation.clean.select([0])
    pairs: list[Pair] = []
    for of_class in CLASSES:
        heads = evidence.discovery.sets[of_class.name]
        if not heads:
            continue
        (layer, head), key = heads[0], f"pattern_{of_class.name}"
        matrix = (
            lens.run(tokens, read=[Site("pattern", layer, head)], logits="none")[Site("pattern", layer, head)][0]
            .float()
            .cpu()
            .numpy()
        )
        frame = pd.DataFrame(
            [(q, k, float(matrix[q, k])) for q in range(len(matrix)) for k in range(q + 1)],
            columns=["query", "key", "attention"],
        )
        title = f"{of_class.title}: attention of L{layer}H{head}"
        note = f"First held-out prompt. The class attends from {of_class.query} to {of_class.key}."
        figure = pattern(tokens.pieces[0], matrix, "")
        pairs.append((Table(key, title, frame, note), FigureItem(key, title, figure, key, note)))
    return pairs
