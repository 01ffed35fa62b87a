"""The paper's numbers beside ours (Liu et al., arXiv 2502.17355, Llama-2-7B; those it gives as numbers, the others as NaN)."""

import numpy as np
import pandas as pd

from mechlab.results.report import FigureItem, Table
from mechlab.studies.relation_neurons_evidence import Evidence
from mechlab.views.paper import paper_beside_ours

_PERPLEXITY_7B = (
    (87.67, 95.18), (34.42, 45.54), (62.71, 84.31), (63.97, 61.27), (100.65, 95.37), (141.31, 146.99),
    (90.14, 83.54), (90.19, 73.82), (58.57, 51.12), (102.32, 110.71), (69.97, 63.91), (47.12, 57.48),
)  # fmt: skip
"""Of sentences that end with the gold object, before and after the own set is switched off."""


def beside_paper(evidence: Evidence, drops: pd.DataFrame) -> tuple[Table, list[FigureItem]]:
    """Shares and nats, so that models of any size can be compared."""
    own = drops[drops["units of"] == drops["facts of"]]["drop"]
    others = drops[drops["units of"] != drops["facts of"]]["drop"]
    overlaps = [
        len(np.intersect1d(evidence.found.sets[a], evidence.found.sets[b])) / evidence.k
        for place, a in enumerate(evidence.relations)
        for b in evidence.relations[place + 1 :]
    ]
    base = evidence.neutral["nothing"].mean()
    rises = [float(evidence.neutral[name].mean() - base) for name in evidence.relations]
    paper_rises = [float(np.log(after / before)) for before, after in _PERPLEXITY_7B]
    random_lost = evidence.lost_to_draws(evidence.draws, evidence.base).mean() / _accuracy(evidence)
    last = max(at.layer or 0 for at in evidence.units.sites)
    depth = np.concatenate([evidence.units.layers(chosen) for chosen in evidence.found.sets.values()]).mean() / max(
        last, 1
    )
    rows = [
        ("units in a set / all units", 3000 / 835_584, evidence.k / len(evidence.units), "chosen alike"),
        (
            "relative drop, own set",
            np.nan,
            float(own.mean()),
            "paper: clear on every relation, to 0 for none (figures only)",
        ),
        ("relative drop, other sets", np.nan, float(others.mean()), "paper: largely unaffected up to 3,000 units"),
        ("relative drop, random sets", 0.0, float(random_lost), "paper: no visible change, 10 seeds"),
        (
            "cells below 0 off the diagonal, share",
            np.nan,
            float((others < 0).mean()),
            "paper: some, e.g. person_mother under 5 of 11 sets",
        ),
        ("largest overlap of two sets", 2053 / 3000, max(overlaps), "paper: father and mother"),
        ("smallest overlap of two sets", np.nan, min(overlaps), "paper: e.g. occupation and sport_position 0.10"),
        ("mean depth of the units", np.nan, float(depth), "paper: mass in the middle layers"),
        (
            "rise of the loss, own set, median (nats)",
            float(np.median(paper_rises)),
            float(np.median(rises)),
            "log of the perplexities' ratio; paper: gold sentences; ours: neutral prose",
        ),
    ]
    frame = pd.DataFrame(rows, columns=["quantity", "paper", "ours", "remark"])
    title, note = (
        "The paper beside ours",
        "Paper: Llama-2-7B, 12 relations. A missing bar: the paper shows it in a figure only.",
    )
    figure = paper_beside_ours(frame, x_title="share, or nats")
    return Table("paper", title, frame, note), [FigureItem("paper", title, figure, "paper", note)]


def _accuracy(evidence: Evidence) -> float:
    return max(float(np.concatenate([evidence.base[name].right for name in evidence.relations]).mean()), 1e-9)
