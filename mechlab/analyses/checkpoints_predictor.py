"""From architecture to the shape of the curve: tree ensembles on (model, layer) samples, cross-validated.

Gallego-Feliciano et al., arXiv 2508.03616: inputs are the layer's relative depth, hidden size, heads and their ratio; targets the five
parameters of the curve. The control predicts targets dealt out anew among the samples.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

INPUTS = ("depth", "n_layers", "d_model", "n_heads", "heads_per_width")
TARGETS = ("a", "decay", "gamma", "t0", "k")
MIN_SAMPLES = 10
_FOLDS = 5
_TREES = 40


def cross_validated(samples: pd.DataFrame, *, draws: int, seed: int = 0) -> pd.DataFrame | None:
    """R^2 of predictions for left-out samples, one row per target; None with fewer than 10 samples.

    Args:
        samples: columns ``INPUTS`` and ``TARGETS``. Targets of either sign are ranked first: they spread over many orders of magnitude.

    Returns:
        Columns ``target``, ``r2``, ``shuffled`` (mean over draws), ``shuffled_high`` (the largest of them), ``n``.
    """
    if len(samples) < MIN_SAMPLES:
        return None
    inputs = samples[list(INPUTS)].to_numpy(dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, float, float, float, int]] = []
    for target in TARGETS:
        ranks = samples[target].rank().to_numpy(dtype=np.float64)
        control = [_r2(inputs, generator.permutation(ranks), seed) for _ in range(draws)]
        rows.append((target, _r2(inputs, ranks, seed), float(np.mean(control)), max(control), len(samples)))
    return pd.DataFrame(rows, columns=["target", "r2", "shuffled", "shuffled_high", "n"])


def _r2(inputs: np.ndarray, values: np.ndarray, seed: int) -> float:
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.model_selection import KFold, cross_val_predict

    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    trees = ExtraTreesRegressor(_TREES, random_state=seed)
    predicted = cross_val_predict(trees, inputs, values, cv=folds)
    total = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - predicted) ** 2).sum()) / total if total else float("nan")


def sample(depths: Sequence[float], n_layers: int, d_model: int, n_heads: int) -> pd.DataFrame:
    """One row of inputs per layer."""
    count = len(depths)
    values = {
        "depth": list(depths),
        "n_layers": [n_layers] * count,
        "d_model": [d_model] * count,
        "n_heads": [n_heads] * count,
        "heads_per_width": [n_heads / d_model] * count,
    }
    return pd.DataFrame(values)
