"""Rank correlation between two properties of tokens with a third held fixed, and its interval over prompts."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechlab.results.statistics import Interval

Floats = NDArray[np.float64]
MIN_TOKENS = 5


def partial_spearman(x: ArrayLike, y: ArrayLike, held: ArrayLike) -> float:
    """Correlation of the ranks of ``x`` and ``y`` once the ranks of ``held`` are regressed out of both, all ``[n]``.

    NaN where nothing is left to correlate: fewer than 5 tokens, or no variation.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(np.asarray(values, dtype=np.float64)) for values in (x, y, held)]
    if len(ranks[0]) < MIN_TOKENS:
        return math.nan
    a, b, c = (one - one.mean() for one in ranks)
    if float(c @ c) > 0:
        a, b = a - c * float(a @ c) / float(c @ c), b - c * float(b @ c) / float(c @ c)
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 1e-9 * len(a) else math.nan


def over_prompts(
    x: ArrayLike, y: ArrayLike, held: ArrayLike, prompts: ArrayLike, *, seed: int = 0, n_resamples: int = 1000
) -> Interval:
    """``partial_spearman`` over tokens, with its 95 % interval over prompts: whole prompts are drawn again, percentiles taken."""
    columns = [np.asarray(values, dtype=np.float64) for values in (x, y, held)]
    owner = np.asarray(prompts)
    names = np.unique(owner)
    estimate = partial_spearman(*columns)
    if len(names) < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, len(names))
    rows = [np.flatnonzero(owner == name) for name in names]
    generator = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(n_resamples):
        picked = np.concatenate([rows[at] for at in generator.integers(len(rows), size=len(rows))])
        drawn.append(partial_spearman(*(column[picked] for column in columns)))
    found = np.array(drawn)[np.isfinite(drawn)]
    if len(found) < n_resamples / 2:
        return Interval(estimate, math.nan, math.nan, len(names))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(estimate, float(low), float(high), len(names))


def shuffled(x: ArrayLike, y: ArrayLike, held: ArrayLike, *, draws: int, seed: int = 0) -> Floats | None:
    """``[draw]``: the correlation with ``x`` dealt out anew among all tokens; None where there is none to begin with."""
    generator, values = np.random.default_rng(seed), np.asarray(x, dtype=np.float64)
    found = [partial_spearman(generator.permutation(values), y, held) for _ in range(draws)]
    return None if any(map(math.isnan, found)) else np.array(found)
