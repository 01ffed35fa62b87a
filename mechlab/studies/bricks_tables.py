"""Tables and figures of the bricks study: a figure for every table."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_mean
from mechlab.studies.bricks_evidence import Evidence
from mechlab.views.figures import bars_with_intervals, heatmap
from mechlab.views.paper import paper_beside_ours

Floats = NDArray[np.float64]
Part = tuple[Table, list[FigureItem]]
_PAPER_OWN = {
    "coding": 112.0,
    "ethics": 210.0,
    "knowledge": 122.0,
    "linguistic": 59.0,
    "math": 147.0,
    "translation": 444.0,
    "writing": 32.0,
}
"""Rise of perplexity in %, Llama-3-8B-Instruct, own brick (Xiao et al.)."""


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_paper(evidence), _matrix(evidence), _controls(evidence), _scores(evidence), _overlap(evidence)]
    return [table for table, _ in parts], [figure for _, figures in parts for figure in figures]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    n, size = sum(map(len, evidence.base.values())), len(next(iter(evidence.found.sets.values())))
    return (
        f"{len(evidence.units):,} neurons were scored by how well their mean absolute activation on a prompt tells one of "
        f"{len(evidence.functions)} functions from the others. Each function's best {size:,} ({evidence.settings['share']:.0%}, by "
        f"{evidence.settings['ranking']}) were switched off, and the loss measured on the continuations of {n} other prompts. "
        "Every claim was written down, with its rule, before the run."
    )


def percent(rise: Floats) -> float:
    """Rise of the perplexity in %, from rises of the loss per prompt in nats."""
    return float(100 * np.expm1(rise.mean()))


def _paper(evidence: Evidence) -> Part:
    """In nats: percentages of perplexity span four orders of magnitude."""
    rows = []
    for name in evidence.functions:
        theirs, rise = _PAPER_OWN.get(name, np.nan), evidence.own_rise(name)
        rows.append((f"{name}: own brick", float(np.log1p(theirs / 100)), float(rise.mean()), theirs, percent(rise)))
    others = evidence.joined({name: evidence.rise_by_others(name) for name in evidence.functions})
    rows.append(("other bricks", np.nan, float(others.mean()), np.nan, percent(others)))
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours", "paper, % of perplexity", "ours, % of perplexity"])
    figure = paper_beside_ours(frame, x_title="rise of the loss, nats per token")
    title = "The paper beside ours"
    note = (
        "Paper: Llama-3-8B-Instruct, 1,000 prompts per function from another data set; other bricks there mostly raise the perplexity by 3 "
        "to 26 %, and the knowledge brick by 67 to 296 %."
    )
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]


def _matrix(evidence: Evidence) -> Part:
    rows = []
    for brick in evidence.functions:
        for name in evidence.functions:
            rise = evidence.without[brick, name] - evidence.base[name]
            found = bootstrap_mean(rise, seed=evidence.seed)
            rows.append((brick, name, percent(rise), found.estimate, found.low, found.high, found.n))
    frame = pd.DataFrame(
        rows, columns=["brick off", "function", "rise of perplexity, %", "nats", "low", "high", "prompts"]
    )
    order = list(evidence.functions)
    grid = frame.pivot(index="brick off", columns="function", values="nats").loc[order[::-1], order]
    figure = heatmap(grid, "", "nats per token", x_title="texts of", y_title="brick switched off")
    title = "Which brick breaks which function"
    note = "Rise of the loss on held-out continuations; the table has it as % of the perplexity, with 95 % intervals over prompts."
    return Table("matrix", title, frame, note), [FigureItem("matrix", title, figure, "matrix", note)]


def _controls(evidence: Evidence) -> Part:
    rows = []
    for name in evidence.functions:
        base = evidence.base[name]
        random_rise = evidence.draws[name].mean(axis=1) - base.mean()
        rows += [
            _row(evidence, name, "own brick", evidence.own_rise(name)),
            _row(evidence, name, "other bricks", evidence.rise_by_others(name)),
            (name, "random neurons", float(random_rise.mean()), float(random_rise.min()), float(random_rise.max())),
            _row(evidence, name, "shuffled labels", evidence.shuffled_off[name] - base),
            _row(evidence, name, "largest activations", evidence.largest_off[name] - base),
            _row(evidence, name, "twin, own brick", evidence.twin_off[name] - evidence.twin_base[name]),
        ]
    frame = pd.DataFrame(rows, columns=["function", "switched off", "rise", "low", "high"])
    kinds = list(dict.fromkeys(frame["switched off"]))
    grid = frame.pivot(index="function", columns="switched off", values="rise").loc[
        list(evidence.functions)[::-1], kinds
    ]
    figure = heatmap(grid, "", "nats per token", x_title=" ", y_title=" ")
    title = "Own brick beside its controls"
    note = "Rise of the loss; intervals over prompts, for random neurons the range of draws."
    return Table("controls", title, frame, note), [FigureItem("controls", title, figure, "controls", note)]


def _row(evidence: Evidence, name: str, what: str, rise: Floats) -> tuple[str, str, float, float, float]:
    found = bootstrap_mean(rise, seed=evidence.seed)
    return name, what, found.estimate, found.low, found.high


def _scores(evidence: Evidence) -> Part:
    rows = []
    for name in evidence.functions:
        scores, held_out = evidence.found.precision[name], evidence.held_out[name]
        brick = scores[evidence.found.sets[name]]
        rows.append(
            (
                name,
                scores.max(),
                brick.mean(),
                scores.mean(),
                evidence.found.prevalence[name],
                held_out.max(),
                held_out.mean(),
            )
        )
    measured = ["best neuron", "brick", "all neurons", "chance", "best, held out", "brick, held out"]
    frame = pd.DataFrame(rows, columns=["function", *measured])
    grid = frame.set_index("function").iloc[::-1]
    figure = heatmap(grid, "", "average precision", diverging=False, x_title=" ", y_title=" ")
    title = "FuncScores"
    note = "Average precision of mean |activation|. The paper: best above 0.8 for coding, math and translation; mean near chance."
    return Table("scores", title, frame, note), [FigureItem("scores", title, figure, "scores", note)]


def _overlap(evidence: Evidence) -> Part:
    names = list(evidence.functions)
    frame = pd.DataFrame(
        [(a, b, evidence.overlap(a, b)) for a in names for b in names], columns=["brick", "other", "share in both"]
    )
    grid = frame.pivot(index="brick", columns="other", values="share in both").loc[names[::-1], names]
    np.fill_diagonal(values := grid.to_numpy(copy=True)[::-1], np.nan)
    grid = pd.DataFrame(values[::-1], index=grid.index, columns=grid.columns)
    figure = heatmap(grid, "", "share in both", diverging=False, x_title=" ", y_title=" ")
    title, chance = "Overlap of the bricks", evidence.settings["share"]
    note = f"Share of a brick that lies in another too; random sets: {chance:.2f}. The paper: at most 0.09."
    bars = pd.DataFrame(
        {"brick": names, "share": [float(np.nanmean(row)) for row in values], "low": np.nan, "high": np.nan}
    )
    means = bars_with_intervals(bars, "brick", "share", "low", "high", title="", y_title="mean share in others")
    mean_title = "Overlap of each brick, mean over the others"
    return Table("overlap", title, frame, note), [
        FigureItem("overlap", title, figure, "overlap", note),
        FigureItem("overlap_means", mean_title, means, "overlap", note),
    ]
