"""What the mp-sae study claims, written before its run: Costa et al., arXiv 2506.03093.

On the hierarchy: matching pursuit learns parents and children apart where L1 absorbs; where a child is tied to its parent it must
absorb too. On a model: a learned dictionary beats random atoms under the same pursuit; the error keeps falling beyond the number of
features trained with, where a TopK autoencoder's does not; and, the paper's disputed claim, lower error than TopK at equal sparsity.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import claim, control
from mechlab.results.statistics import Interval, bootstrap_mean, bootstrap_ratio
from mechlab.studies.mp_sae_activations import MP, MP_ON_TOPK, RANDOM, RANDOM_SHUFFLED, SHUFFLED, TOPK, Floats, OnModel
from mechlab.studies.mp_sae_toys import NAMES

MOST_ABSORPTION, LEAST_ABSORPTION, LEAST_COSINE, LEAST_FVU, LEAST_AGREEMENT = 0.05, 0.3, 0.97, 0.02, 0.3


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything measured.

    ``cosines``: those of the toys; ``k``: features a token trained with; ``random``: matched cosine of random atoms.
    """

    toys: pd.DataFrame
    model: OnModel
    cosines: tuple[float, ...]
    k: int
    random: float
    seed: int


def findings(found: Evidence) -> list[Finding]:
    """In reading order."""
    first, last = f"cosine {found.cosines[0]:g}", f"cosine {found.cosines[-1]:g}"
    return [
        _parts(found, first),
        _absorbs(found, first),
        _recovers(found, last),
        _tied(found, first),
        _learned(found),
        _beyond(found),
        _falls(found),
        _beats_topk(found),
        _agrees(found),
    ]


def _parts(found: Evidence, case: str) -> Finding:
    return claim(
        "parts",
        "Matching pursuit learns children apart from their parents.",
        f"absorption of MP-SAE's atoms at {case}, mean cosine of a child's atom with its parent",
        _over_seeds(found, case, "matching_pursuit", "absorption"),
        [_toy_control(found, case, "relu", "absorption")],
        Rule(direction="<", threshold=MOST_ABSORPTION),
    )


def _absorbs(found: Evidence, case: str) -> Finding:
    return claim(
        "l1_absorbs",
        "With an L1 penalty, a child's atom takes its parent in.",
        f"absorption of ReLU + L1's atoms at {case}, mean cosine of a child's atom with its parent",
        _over_seeds(found, case, "relu", "absorption"),
        [
            control(
                "another child's parent",
                _over_seeds(found, case, "relu", "permuted"),
                "the same atoms, parents permuted",
            ),
            _toy_control(found, case, "matching_pursuit", "absorption"),
        ],
        Rule(direction=">", threshold=LEAST_ABSORPTION),
    )


def _recovers(found: Evidence, case: str) -> Finding:
    return claim(
        "recovers",
        "Matching pursuit finds the true directions also where those of a level are correlated.",
        f"mean cosine of true directions with MP-SAE's matched atoms at {case}",
        _over_seeds(found, case, "matching_pursuit", "cosine"),
        [
            *(_toy_control(found, case, method, "cosine") for method in ("relu", "batchtopk")),
            Control(name="random atoms", estimate=found.random, n=1, note="as many random unit vectors, at cosine 0"),
        ],
        Rule(direction=">", threshold=LEAST_COSINE),
    )


def _tied(found: Evidence, case: str) -> Finding:
    return claim(
        "tied",
        "Where a child's strength is tied to its parent's, matching pursuit absorbs: one atom is then the sparser code.",
        "absorption of MP-SAE's atoms with tied strengths, mean cosine of a child's atom with its parent",
        _over_seeds(found, "tied", "matching_pursuit", "absorption"),
        [
            _toy_control(found, case, "matching_pursuit", "absorption", "strengths independent"),
            control("another child's parent", _over_seeds(found, "tied", "matching_pursuit", "permuted")),
        ],
        Rule(direction=">", threshold=0.1),
    )


def _learned(found: Evidence) -> Finding:
    at, model = found.model.ks.index(found.k), found.model
    return claim(
        "learned",
        "A learned dictionary explains more than random atoms do under the same pursuit.",
        f"FVU with random atoms less FVU with MP-SAE's, {found.k} features, held-out passages",
        _fvu(model.errors[RANDOM][at] - model.errors[MP][at], model.spread, found.seed),
        [
            control(
                "dimensions shuffled",
                _fvu(model.errors[RANDOM_SHUFFLED][at] - model.errors[SHUFFLED][at], model.shuffled_spread, found.seed),
                "the same on activations whose dimensions were permuted over tokens, one by one",
            )
        ],
        Rule(direction=">", threshold=LEAST_FVU),
    )


def _beyond(found: Evidence) -> Finding:
    return claim(
        "topk_rises",
        "Read with more features than it was trained with, a TopK autoencoder gets worse.",
        f"rise of FVU from {found.k} to {_more(found)} features, held-out passages",
        _change(found, TOPK, 1),
        [control("MP-SAE", _change(found, MP, 1)), control("random atoms, pursuit", _change(found, RANDOM, 1))],
        Rule(direction=">", threshold=0.0),
    )


def _falls(found: Evidence) -> Finding:
    return claim(
        "mp_falls",
        "Read with more features than it was trained with, MP-SAE gets better.",
        f"fall of FVU from {found.k} to {_more(found)} features, held-out passages",
        _change(found, MP, -1),
        [
            control("TopK-SAE", _change(found, TOPK, -1)),
            control("random atoms, pursuit", _change(found, RANDOM, -1), "falls by construction"),
        ],
        Rule(direction=">", threshold=0.0, beats=("TopK-SAE",)),
    )


def _beats_topk(found: Evidence) -> Finding:
    at, model = found.model.ks.index(found.k), found.model
    return claim(
        "lower_error",
        "At equal sparsity MP-SAE has a lower error than a TopK autoencoder (reported for vision; disputed for language models).",
        f"FVU of TopK less FVU of MP-SAE, {found.k} features, held-out passages",
        _fvu(model.errors[TOPK][at] - model.errors[MP][at], model.spread, found.seed),
        [
            control(
                "TopK's atoms, pursuit",
                _fvu(model.errors[TOPK][at] - model.errors[MP_ON_TOPK][at], model.spread, found.seed),
                "what pursuit alone gains on TopK's atoms",
            )
        ],
        Rule(direction=">", threshold=0.0),
    )


def _agrees(found: Evidence) -> Finding:
    cosines = {kind: bootstrap_mean(values, seed=found.seed) for kind, values in found.model.agreement.items()}
    return claim(
        "agrees",
        "Two seeds of MP-SAE find the same atoms.",
        "cosine of the matched atoms of two seeds, mean over atoms",
        cosines["matching_pursuit"],
        [
            control("TopK-SAE", cosines["topk"], "two seeds of it, for comparison"),
            control("random atoms", cosines["random"], "two draws"),
        ],
        Rule(direction=">", threshold=LEAST_AGREEMENT, beats=("random atoms",)),
    )


def _over_seeds(found: Evidence, case: str, method: str, score: str) -> Interval:
    rows = found.toys[(found.toys["case"] == case) & (found.toys["method"] == method)]
    return bootstrap_mean(rows[score].dropna().to_numpy(dtype=np.float64), seed=found.seed)


def _toy_control(found: Evidence, case: str, method: str, score: str, note: str = "same data") -> Control:
    return control(NAMES[method], _over_seeds(found, case, method, score), note)


def _more(found: Evidence) -> int:
    return max(found.model.ks)


def _change(found: Evidence, reader: str, sign: int) -> Interval:
    """Of FVU from the training k to the largest, passages resampled."""
    model = found.model
    errors = model.errors[reader]
    return _fvu(sign * (errors[-1] - errors[model.ks.index(found.k)]), model.spread, found.seed)


def _fvu(error: Floats, spread: Floats, seed: int) -> Interval:
    return bootstrap_ratio(error, spread, seed=seed)
