"""Bootstrap intervals for whole tables at once: thousands of interventions on the same prompts.

1. Draw ``n_resamples`` multisets of prompts once, as weights ``[n_resamples, n]``. All rows share them, so one matrix
   product gives every resampled mean. Each row's interval is as valid as its own draw would make it; rows vary
   together, as they do on real prompts.
2. BCa (Efron, "Better bootstrap confidence intervals", JASA 1987): shift the percentiles by the bias z0 (share of
   resamples below the estimate) and the acceleration a (skewness of the leave-one-out values), row by row.
3. Where BCa is undefined (all resamples on one side), the plain percentiles.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechlab.errors import MechlabError

Floats = NDArray[np.float64]
SMALLEST_DENOMINATOR = 1e-6  # as in metrics.recovered
_ROWS_AT_ONCE = 1024  # 16 MB of resampled means at 2,000 resamples


class IntervalTable(NamedTuple):
    """Estimates and interval bounds, each ``[rows]``, in the unit of the data."""

    estimate: Floats
    low: Floats
    high: Floats


def bootstrap_mean_table(
    matrix: ArrayLike, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = 2000
) -> IntervalTable:
    """Mean of each row of ``[rows, n]`` over its n prompts, with bootstrap intervals.

    Constant rows give zero width; n = 1 gives NaN bounds.

    Raises:
        MechlabError: a value is NaN or infinite.
    """
    data = checked_matrix(np.asarray(matrix, dtype=np.float64), "matrix")
    n = data.shape[1]

    def chunk(rows: Floats, weights: Floats) -> IntervalTable:
        leave_one_out = (rows.sum(axis=1, keepdims=True) - rows) / (n - 1)
        table = _bca(rows.mean(axis=1), rows @ weights.T, leave_one_out, confidence)
        constant, value = constant_rows(rows), rows[:, 0]
        return IntervalTable(*(np.where(constant, value, column) for column in table))

    if n < 2:
        return _without_bounds(data.mean(axis=1) if n else np.full(len(data), np.nan))
    weights = _weights(n, seed, n_resamples)
    return _by_chunks(len(data), lambda rows: chunk(data[rows], weights))


def bootstrap_ratio_table(
    numerator: ArrayLike, denominator: ArrayLike, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = 2000
) -> IntervalTable:
    """``mean(numerator) / mean(denominator)`` of each row, both ``[rows, n]``, prompts resampled as pairs.

    The estimate is NaN where the mean denominator is within 1e-6 of zero; the bounds are NaN where it changes sign
    (or vanishes) in more than ``(1 - confidence) / 2`` of the resamples.

    Raises:
        MechlabError: a value is NaN or infinite.
    """
    top = checked_matrix(np.asarray(numerator, dtype=np.float64), "numerator")
    bottom = checked_matrix(np.asarray(denominator, dtype=np.float64), "denominator")
    assert top.shape == bottom.shape, f"Paired tables need one shape, got {top.shape} and {bottom.shape}."
    n = top.shape[1]
    if n < 2:
        return _without_bounds(_ratio(top.sum(axis=1), bottom.sum(axis=1)) if n else np.full(len(top), np.nan))
    weights = _weights(n, seed, n_resamples)

    def chunk(rows: slice) -> IntervalTable:
        upper, lower = top[rows], bottom[rows]
        resampled_lower = lower @ weights.T
        estimate = _ratio(upper.mean(axis=1), lower.mean(axis=1))
        leave_one_out = _ratio(*((x.sum(axis=1, keepdims=True) - x) / (n - 1) for x in (upper, lower)))
        table = _bca(estimate, _ratio(upper @ weights.T, resampled_lower), leave_one_out, confidence)
        side = np.sign(lower.mean(axis=1))[:, None]
        unstable = (resampled_lower * side < SMALLEST_DENOMINATOR).mean(axis=1) > (1 - confidence) / 2
        low, high = (np.where(unstable | np.isnan(estimate), np.nan, bound) for bound in (table.low, table.high))
        return IntervalTable(estimate, low, high)

    return _by_chunks(len(top), chunk)


def checked_matrix(data: Floats, name: str) -> Floats:
    """The data, ``[rows, n]``. Raises MechlabError where a value is NaN or infinite: dropping it silently would change the question."""
    assert data.ndim == 2, f"{name} must be [rows, n], got shape {data.shape}."
    bad = np.argwhere(~np.isfinite(data))
    if len(bad):
        raise MechlabError(
            f"{len(bad)} of {data.size} {name} given to the bootstrap are NaN or infinite (the first at prompt {bad[0][1]}): "
            "leave those prompts out, or find out why the model gave no number."
        )
    return data


def constant_rows(data: Floats) -> NDArray[np.bool_]:
    """Rows of ``[rows, n]`` whose values differ by rounding at most: ``[rows]``."""
    spread = data.max(axis=1) - data.min(axis=1)
    return spread <= 1e-14 * np.abs(data).max(axis=1)


def _weights(n: int, seed: int, n_resamples: int) -> Floats:
    """How often each resample draws each prompt, divided by n: ``[n_resamples, n]``."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return counts.astype(np.float64) / n


def _bca(estimate: Floats, resampled: Floats, leave_one_out: Floats, confidence: float) -> IntervalTable:
    """Bounds from resampled values ``[rows, n_resamples]`` and leave-one-out values ``[rows, n]``."""
    from scipy.special import ndtr, ndtri

    below = (resampled < estimate[:, None]).mean(axis=1) + (resampled == estimate[:, None]).mean(axis=1) / 2
    deviation = leave_one_out.mean(axis=1, keepdims=True) - leave_one_out
    with np.errstate(all="ignore"):  # rows where BCa is undefined come out NaN here and take plain percentiles below
        z0 = ndtri(below)[:, None]
        acceleration = ((deviation**3).sum(axis=1) / (6 * (deviation**2).sum(axis=1) ** 1.5))[:, None]
        z = ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))[None, :]
        shares = ndtr(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))
    plain = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    shares = np.where(np.isfinite(shares).all(axis=1, keepdims=True), shares, plain)
    bounds = _row_quantiles(resampled, shares)
    return IntervalTable(estimate, bounds[:, 0], bounds[:, 1])


def _row_quantiles(values: Floats, shares: Floats) -> Floats:
    """Linear-interpolated quantiles, each row at its own shares: ``[rows, m]``, ``[rows, k]`` -> ``[rows, k]``."""
    ordered = np.sort(values, axis=1)
    place = shares * (values.shape[1] - 1)
    floor = np.floor(place).astype(np.intp)
    ceiling = np.minimum(floor + 1, values.shape[1] - 1)
    lower = np.take_along_axis(ordered, floor, axis=1)
    return lower + (place - floor) * (np.take_along_axis(ordered, ceiling, axis=1) - lower)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return np.where(np.abs(bottom) < SMALLEST_DENOMINATOR, np.nan, top / bottom)


def _without_bounds(estimate: Floats) -> IntervalTable:
    nothing = np.full(len(estimate), np.nan)
    return IntervalTable(estimate, nothing, nothing)


def _by_chunks(n_rows: int, chunk: Callable[[slice], IntervalTable]) -> IntervalTable:
    parts = [chunk(slice(start, start + _ROWS_AT_ONCE)) for start in range(0, n_rows, _ROWS_AT_ONCE)]
    if not parts:
        return _without_bounds(np.empty(0))
    return IntervalTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
