"""How a massive activation grows in training: the exponentially modulated logarithm, its peak, and simpler curves to compare it with.

Gallego-Feliciano et al., "Hidden Dynamics of Massive Activations in Transformer Training", arXiv 2508.03616:

    f(t) = A exp(-lambda x) ln(x) + K,    x = gamma t + t0,    lambda > 0

The curve has its peak where 1 / x = lambda ln x: x* = exp(W(1 / lambda)) with Lambert's W, so t_peak = (x* - t0) / gamma; it can be
seen only where x* > t0. A, gamma and t0 trade off against each other: the curve is determined by data, the parameters hardly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechlab.errors import MechlabError

Floats = NDArray[np.float64]
MIN_POINTS = 7
"""Five parameters need more points than that."""
_STARTS, _EVALUATIONS = 4, 300
_PERFECT = 1e-8
"""Residual sum of squares, of data scaled to 0..1, at which no other start is tried."""
_SMALLEST = 1e-9


class Curve(NamedTuple):
    """Parameters of f, with t as given (steps) and f in the data's unit."""

    a: float
    decay: float
    gamma: float
    t0: float
    k: float

    def __call__(self, t: ArrayLike) -> Floats:
        """``[n]`` values at times ``[n]``."""
        return curve(np.asarray(t, dtype=np.float64), *self)

    @property
    def t_peak(self) -> float:
        """Where f is largest (for A > 0), in the unit of t; negative where the peak lies before the start."""
        from scipy.special import lambertw

        return (math.exp(float(lambertw(1 / self.decay).real)) - self.t0) / self.gamma

    @property
    def has_peak(self) -> bool:
        """Whether the curve rises to a peak after t = 0."""
        return self.a > 0 and self.t_peak > 0


@dataclass(frozen=True)
class Fit:
    """A curve fitted to points.

    Attributes:
        r2: 1 - residual / total sum of squares; NaN for constant data.
        aic: n ln(residual / n) + 2 parameters: smaller is better, to be compared on the same points.
    """

    name: str
    parameters: int
    r2: float
    aic: float
    curve: Curve | None = None


def curve(t: Floats, a: float, decay: float, gamma: float, t0: float, k: float) -> Floats:
    """f(t) as in the module's text."""
    x = np.maximum(gamma * t + t0, _SMALLEST)
    return a * np.exp(-decay * x) * np.log(x) + k


def slopes(t: Floats, a: float, decay: float, gamma: float, t0: float, k: float) -> Floats:  # noqa: ARG001 (curve_fit passes it)
    """``[n, 5]``: derivatives of f by A, lambda, gamma, t0, K."""
    x = np.maximum(gamma * t + t0, _SMALLEST)
    fading, logarithm = np.exp(-decay * x), np.log(x)
    by_x = a * fading * (1 / x - decay * logarithm)
    return np.stack([fading * logarithm, -a * x * fading * logarithm, t * by_x, by_x, np.ones_like(t)], axis=1)


def check_count(n_checkpoints: int) -> None:
    """Raises MechlabError for fewer points than a curve can be fitted to."""
    if n_checkpoints < MIN_POINTS:
        raise MechlabError(
            f"A curve of five parameters needs {MIN_POINTS} checkpoints or more, and there are {n_checkpoints}: add some."
        )


def fit(t: ArrayLike, y: ArrayLike) -> Fit:
    """Least squares with the analytic Jacobian (scipy, trust region reflective), on data scaled to 0..1, from several starts.

    The first start is the paper's (A the range of y, K its middle, lambda 1 / std(t), gamma 1 / range(t), t0 1). The others are the best of
    a grid over lambda, gamma and t0, for each of which the best A and K follow by linear regression.

    Raises:
        MechlabError: fewer than 7 points, times that do not grow, or values that are not finite.
    """
    from scipy.optimize import least_squares

    times, values = _checked(t, y)
    span, low, height = float(times[-1] - times[0]), float(values.min()), float(np.ptp(values))
    if height == 0:
        return Fit("modulated log", 5, math.nan, math.nan)
    scaled_t, scaled_y = (times - times[0]) / span, (values - low) / height
    best, least = None, math.inf
    for start in [np.array([1.0, 1 / float(scaled_t.std()), 1.0, 1.0, 0.5]), *_grid_starts(scaled_t, scaled_y)]:
        found = least_squares(
            lambda p: curve(scaled_t, *p) - scaled_y,
            start,
            jac=lambda p: slopes(scaled_t, *p),
            bounds=([-np.inf, _SMALLEST, _SMALLEST, _SMALLEST, -np.inf], np.inf),
            x_scale="jac",
            max_nfev=_EVALUATIONS,
        )
        if 2 * found.cost < least:
            best, least = found.x, 2 * found.cost
        if least < _PERFECT:
            break
    assert best is not None, "every start gives a finite residual"
    a, decay, gamma, t0, k = (float(value) for value in best)
    in_steps = Curve(a * height, decay, gamma / span, t0 - gamma * float(times[0]) / span, k * height + low)
    return _judged("modulated log", 5, values, curve(scaled_t, *best) * height + low, in_steps)


def _grid_starts(t: Floats, y: Floats) -> list[Floats]:
    """The best ``_STARTS`` points of a grid, by the residual with their best A and K."""
    decay, gamma, t0 = (
        part.ravel()
        for part in np.meshgrid(np.geomspace(1e-3, 30, 14), np.geomspace(1e-2, 1e3, 14), np.geomspace(1e-3, 10, 9))
    )
    x = gamma[:, None] * t + t0[:, None]
    shapes = np.exp(-decay[:, None] * x) * np.log(x)  # [point, n]
    centred, target = shapes - shapes.mean(axis=1, keepdims=True), y - y.mean()
    power = (centred**2).sum(axis=1)
    slope = np.divide(centred @ target, power, out=np.zeros_like(power), where=power > 1e-18)
    residual = ((target - slope[:, None] * centred) ** 2).sum(axis=1)
    order = np.argsort(residual, kind="stable")[:_STARTS]
    level = y.mean() - slope * shapes.mean(axis=1)
    return [np.array([slope[at], decay[at], gamma[at], t0[at], level[at]]) for at in order]


def rivals(t: ArrayLike, y: ArrayLike) -> list[Fit]:
    """Simpler curves on the same points: a logarithm, an exponential approach, one step, two steps, a cubic spline of five parameters."""
    times, values = _checked(t, y)
    if not np.ptp(values):
        return []
    shapes: list[tuple[str, int, Callable[[Floats, Floats], Floats]]] = [
        ("log", 2, _logarithm),
        ("exponential", 3, _exponential),
        ("one step", 3, lambda x, v: _steps(x, v, 1)),
        ("two steps", 5, lambda x, v: _steps(x, v, 2)),
        ("cubic spline", 5, _spline),
    ]
    return [_judged(name, parameters, values, shape(times, values)) for name, parameters, shape in shapes]


def _checked(t: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    times, values = np.asarray(t, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert times.shape == values.shape and times.ndim == 1, (
        f"times and values are [n] both, got {times.shape}, {values.shape}"
    )
    check_count(len(times))
    if not (np.isfinite(times).all() and np.isfinite(values).all() and (np.diff(times) > 0).all()):
        raise MechlabError("A curve needs growing steps and finite values: check the checkpoints' order and numbers.")
    return times, values


def _judged(name: str, parameters: int, values: Floats, fitted: Floats, found: Curve | None = None) -> Fit:
    residual = float(((values - fitted) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    smallest = max(residual, 1e-24 * total)  # a perfect fit has no logarithm
    return Fit(
        name, parameters, 1 - residual / total, len(values) * math.log(smallest / len(values)) + 2 * parameters, found
    )


def _linear(columns: list[Floats], values: Floats) -> Floats:
    design = np.stack(columns, axis=1)
    return design @ np.linalg.lstsq(design, values, rcond=None)[0]


def _logarithm(times: Floats, values: Floats) -> Floats:
    return _linear([np.log1p(times), np.ones_like(times)], values)


def _exponential(times: Floats, values: Floats) -> Floats:
    """``b + c exp(-t / s)`` with the best of many rates s."""
    fits = [
        _linear([np.exp(-times / scale), np.ones_like(times)], values)
        for scale in np.geomspace(np.ptp(times) / 100, np.ptp(times) * 10, 60)
    ]
    return min(fits, key=lambda fitted: float(((values - fitted) ** 2).sum()))


def _steps(times: Floats, values: Floats, count: int) -> Floats:
    """Constant pieces with the best places for ``count`` jumps."""
    from itertools import combinations

    def pieces(cuts: tuple[int, ...]) -> Floats:
        parts = np.split(values, cuts)
        return np.concatenate([np.full(len(part), part.mean()) for part in parts])

    fits = [pieces(cuts) for cuts in combinations(range(1, len(times)), count)]
    return min(fits, key=lambda fitted: float(((values - fitted) ** 2).sum()))


def _spline(times: Floats, values: Floats) -> Floats:
    """A cubic spline with one knot, in the middle of the points: five coefficients."""
    knot = float(np.median(times))
    x = (times - knot) / np.ptp(times)
    return _linear([np.ones_like(x), x, x**2, x**3, np.maximum(x, 0) ** 3], values)
