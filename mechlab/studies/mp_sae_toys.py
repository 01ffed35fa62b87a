"""The mp-sae study on the synthetic hierarchy: toys of four kinds trained on data whose features are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from mechlab.dictionaries.dictionary import Dictionary
from mechlab.dictionaries.scorecard_truth import Truth, recovery
from mechlab.dictionaries.synthetic import (
    FIGURE,
    TABLE_CHILD_MEANS,
    Magnitudes,
    directions,
    gram_errors,
    resampled,
    shuffled_hierarchy,
)
from mechlab.dictionaries.synthetic_training import Method, Run, train_toys
from mechlab.results.study import Progress, named

METHODS: tuple[Method, ...] = ("matching_pursuit", "matryoshka", "relu", "batchtopk")
NAMES = {"matching_pursuit": "MP-SAE", "matryoshka": "Matryoshka", "relu": "ReLU + L1", "batchtopk": "BatchTopK"}
CHILD_STD = 1 / 40  # the row of the published table that is repeated here
_ROWS, _JUDGED_BY = 2000, 50_000


@dataclass(frozen=True)
class Case:
    """One setting of the data."""

    name: str
    cosine: float
    magnitudes: Magnitudes


def cases(cosines: Sequence[float]) -> list[Case]:
    """The figure's setting at each cosine, children tied to parents, and one row of the table."""
    found = [Case(f"cosine {cosine:g}", cosine, FIGURE) for cosine in cosines]
    found.append(Case("tied", 0.0, Magnitudes(parent_mean=1.5, child_mean=1.5, tied=True)))
    return found + [
        Case(f"child mean {mean:g}", 0.0, Magnitudes(child_mean=mean, child_std=CHILD_STD))
        for mean in TABLE_CHILD_MEANS
    ]


def toys(among: Sequence[Case], seeds: int, steps: int, seed: int, progress: Progress) -> pd.DataFrame:
    """A row for each case, method and seed: how much of the truth was found, judged on fresh samples."""
    runs = [
        (case, Run(directions(case.cosine, seed + i).float(), case.magnitudes, seed + i))
        for case in among
        for i in range(seeds)
    ]
    rows: list[dict[str, object]] = []
    for method in METHODS:
        trained = train_toys(
            method, [run for _, run in runs], steps=steps, progress=named(progress, f"toys, {NAMES[method]}")
        )
        for (case, run), dictionary in zip(runs, trained, strict=True):
            truth = resampled(run.directions, _ROWS, run.magnitudes, run.seed + _JUDGED_BY)
            rows.append({"case": case.name, "method": method, "seed": run.seed, **_scores(dictionary, truth)})
    return pd.DataFrame(rows)


def _scores(dictionary: Dictionary, truth: Truth) -> dict[str, float]:
    found, codes = recovery(dictionary, truth), dictionary.encode(truth.activations)
    errors = gram_errors(dictionary.directions, truth, codes)
    error = (truth.activations - dictionary.decode(codes)).square().sum() / truth.activations.square().sum()
    return {
        "absorption": found.absorption,
        "permuted": recovery(dictionary, shuffled_hierarchy(truth, 0)).absorption,
        "cosine": found.cosine,
        "mcc": found.mcc,
        "flat": errors.flat,
        "hierarchical": errors.hierarchical,
        "error": float(error),
        "l0": float((codes != 0).float().sum(1).mean()),
    }


def random_cosine(seed: int) -> float:
    """What random atoms reach: the matched cosine of as many random directions with the true ones."""
    from mechlab.dictionaries.baselines import random_units
    from mechlab.dictionaries.scorecard_truth import matched_cosine

    true = directions(0.0, seed).float()
    return matched_cosine(random_units(*torch.Size(true.shape), seed=seed + 1), true)
