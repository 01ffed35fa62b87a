"""Tables and figures of the snmf study about structure: features of features, and neurons that features share."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.snmf_evidence import Evidence
from mechlab.studies.snmf_family import DAYS, Family, core_rise, own_over_others
from mechlab.studies.snmf_levels import REAL
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.paper import paper_beside_ours

Part = tuple[Table, FigureItem]
# Change of the logits of some days, GPT-2 large: exclusive neurons of a day, or the shared core, amplified.
PUBLISHED = {
    "Monday only": {"Monday": 2.0, "Tuesday": -0.8, "Friday": -0.8, "Sunday": -0.1},
    "Friday only": {"Monday": -2.9, "Tuesday": -2.8, "Friday": 1.3, "Sunday": -2.6},
    "Sunday only": {"Monday": -0.4, "Tuesday": -1.7, "Friday": -0.8, "Sunday": 2.6},
    "core": {"Monday": 5.8, "Tuesday": 5.7, "Friday": 6.0, "Sunday": 4.7},
}


def structure(found: Evidence) -> list[Part]:
    """In reading order."""
    parts = [_levels(found), _coarse(found), _shared(found), _amplified(found), _families(found)]
    return [*parts, _beside_paper(found)] if set(DAYS) <= set(found.family.words) else parts


def _part(table: Table, figure: go.Figure) -> Part:
    return table, FigureItem(table.key, table.title, figure, table.key, table.note)


def _levels(found: Evidence) -> Part:
    levels = found.levels
    frame = levels.table.assign(ties=float("nan"), low=float("nan"), high=float("nan"))
    drawn: list[tuple[str, float, float, float]] = []
    for fit, by_level in levels.ties.items():
        for i, values in enumerate(by_level):
            one = bootstrap_mean(values, seed=found.seed)
            here = (frame["fit"] == fit) & (frame["level"] == i + 1)
            frame.loc[here, ["ties", "low", "high"]] = [one.estimate, one.low, one.high]
            drawn.append((f"level {i + 1}, {fit}", one.estimate, one.low, one.high))
    for i, draws in enumerate(levels.random):
        drawn.append((f"level {i + 1}, random families", float(draws.mean()), float(draws.min()), float(draws.max())))
    bars = pd.DataFrame(sorted(drawn), columns=["families", "ties", "low", "high"])
    figure = bars_with_intervals(
        bars, "families", "ties", "low", "high", title="", x_title="families of features", y_title="correlation gained"
    )
    title = f"Features of features, layer {found.steered_layer}"
    note = (
        "Loadings factored again into half as many features, and again. error: held-out sentences, share of squared norm, neurons scaled "
        "to variance 1. auc: of the feature chosen for a concept, held-out, mean over concepts. ties (drawn, intervals over families): how "
        "much more alike the features that one feature of this level is made of score held-out sentences than unrelated ones do "
        "(difference of correlations). Random families: mean and range of draws. Tuning all levels together took the error of the whole "
        f"product on fitted tokens from {levels.error_before:.3f} to {levels.error:.3f} of the norm."
    )
    return _part(Table("levels", title, frame, note), figure)


def _coarse(found: Evidence) -> Part:
    title = f"What the coarsest features are made of, layer {found.steered_layer}"
    note = (
        "Drawn: weights of the finest features (columns) in the coarsest (rows), shares of each row's largest. In brackets the concept "
        "that a feature tells best on the sentences to choose by; auc is that on held-out ones. made of: features of the level below, the "
        "strongest four with at least 15 % of the largest weight. raises: tokens its direction in the residual stream speaks for."
    )
    figure = heatmap(found.levels.made_of, "", "share of the largest weight")
    return _part(Table("coarse", title, found.levels.coarse, note), figure.update_xaxes(tickangle=-60))


def _shared(found: Evidence) -> Part:
    family = found.family
    frame = pd.DataFrame(
        {
            "word": family.words,
            "neurons": family.kept,
            "for itself": family.exclusive,
            **{word: family.overlap[:, i].astype(int) for i, word in enumerate(family.words)},
        }
    )
    chance = family.kept**2 / family.width
    grid = pd.DataFrame(family.overlap, index=pd.Index(family.words), columns=pd.Index(family.words))
    grid = grid.mask(np.eye(len(grid), dtype=bool))
    figure = heatmap(grid, "", "shared neurons", diverging=False, x_title="feature of", y_title="feature of")
    note = (
        f"Neurons that the features of two words share; {chance:.1f} would be by chance. {family.core} are used by at least half of the "
        f"features (the core; {found.family_shuffled.core} with shuffled activations, {found.family_twin.core} in the twin). On tokens of "
        f"the words in other sentences the right feature has the largest loading in {100 * family.told:.0f} % "
        f"(shuffled {100 * found.family_shuffled.told:.0f} %, twin {100 * found.family_twin.told:.0f} %, "
        f"chance {100 / len(family.words):.0f} %)."
    )
    return _part(
        Table("shared", f"Neurons that features of one family share, layer {found.family_layer}", frame, note), figure
    )


def _amplified(found: Evidence) -> Part:
    family = found.family
    names = _groups(family)
    means = family.changes.mean(1)
    frame = pd.DataFrame(means, columns=pd.Index(family.words)).assign(neurons=[*family.exclusive, family.core])
    frame.insert(0, "amplified", names)
    grid = pd.DataFrame(means[::-1], index=pd.Index(names[::-1]), columns=pd.Index(family.words))
    figure = heatmap(grid, "", "change of logit", x_title="logit of", y_title="neurons amplified")
    note = (
        "Each group of neurons is added at every token with its feature's weights and one norm for all (the mean norm of activations at "
        "the words). Change of each word's logit at the end of prompts that were not fitted on, less the mean change over the vocabulary."
    )
    return _part(Table("amplified", "Exclusive and shared neurons amplified", frame, note), figure)


def _families(found: Evidence) -> Part:
    sets = {REAL: found.family, "shuffled": found.family_shuffled, "twin": found.family_twin}
    rows: list[tuple[str, str, float, float, float]] = []
    for quantity, rise in (("exclusive", own_over_others), ("core", core_rise)):
        for name, family in sets.items():
            one = bootstrap_mean(rise(family.changes), seed=found.seed)
            rows.append((quantity, name, one.estimate, one.low, one.high))
        draws = np.array([rise(changes).mean() for changes in found.family.random])
        rows.append((quantity, "random neurons", float(draws.mean()), float(draws.min()), float(draws.max())))
    frame = pd.DataFrame(rows, columns=["amplified", "of", "rise", "low", "high"])
    bars = frame.assign(label=frame["amplified"] + ", " + frame["of"])
    figure = bars_with_intervals(
        bars, "label", "rise", "low", "high", title="", x_title="neurons amplified", y_title="rise, logits"
    )
    note = (
        "Exclusive neurons: rise of their own word's logit less the mean rise of the others', mean over words. Core: rise of the words' "
        "logits over the vocabulary's mean. Intervals over prompts; of random neurons, mean and range of draws."
    )
    return _part(Table("reuse", "Do shared neurons speak for all, exclusive ones for their own?", frame, note), figure)


def _beside_paper(found: Evidence) -> Part:
    family, rows = found.family, []
    means = family.changes.mean(1)
    for row, name in enumerate(_groups(family)):
        for column, word in enumerate(family.words):
            theirs = PUBLISHED.get(name, {}).get(word)
            if theirs is not None:
                rows.append((f"{name} → {word}", theirs, float(means[row, column])))
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours"])
    note = "Change of a day's logit with neurons amplified. Theirs: GPT-2 large, a strength we do not know; only signs and order compare."
    title = "Neuron reuse: the paper beside ours"
    return _part(Table("reuse_paper", title, frame, note), paper_beside_ours(frame, x_title="change of logit"))


def _groups(family: Family) -> list[str]:
    return [*(f"{word} only" for word in family.words), "core"]
