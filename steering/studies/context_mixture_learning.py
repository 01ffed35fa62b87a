"""What a reader who learns from passages would answer: the Rescorla-Wagner rule, and curves without learning to compare it with.

Two cues compete: the relevant answer (1) and the inappropriate one (2). A passage of kind c moves its own strength,
``V_c += rate_c (1 - V_1 - V_2)``; the question is answered with ``p(relevant) = sigmoid(steepness (V_1 - V_2))``. The rule's salience and
learning rate enter as a product (``rate``), its asymptote and the temperature as another (``steepness``): three numbers can be told from
behaviour, not five. Rescorla and Wagner 1972; used on contexts by arXiv 2509.04500, whose exact equation is not known to us.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechlab.errors import MechlabError

Floats = NDArray[np.float64]
RELEVANT, INAPPROPRIATE, NEITHER = 0, 1, 2
_LEAST_VARIANCE = 1e-10
_MOST_STEPS = 50
_STARTS = ((0.05, 0.05, 3.0), (0.4, 0.05, 3.0), (0.05, 0.4, 3.0), (0.3, 0.3, 8.0))
_BOUNDS = ((1e-4, 1e-4, 0.0), (1.0, 1.0, 40.0))


@dataclass(frozen=True)
class Fit:
    """A fitted curve.

    Attributes:
        parameters: as the curve takes them. aic: of Gaussian residuals, ``n log(RSS / n) + 2 (parameters + 1)``. predicted: ``[n]``.
    """

    parameters: tuple[float, ...]
    aic: float
    predicted: Floats


def rescorla_wagner(cues: ArrayLike, rate_1: float, rate_2: float, steepness: float) -> Floats:
    """``p(relevant)`` ``[n]`` after passages ``cues [n, k]`` (0 relevant, 1 inappropriate, 2 neither: nothing is learnt)."""
    read = np.asarray(cues)
    first, second = read == RELEVANT, read == INAPPROPRIATE
    rates = rate_1 * first + rate_2 * second
    # What is left to learn, 1 - V_1 - V_2, shrinks by (1 - rate) at every passage, whichever kind it is.
    left = np.cumprod(np.hstack([np.ones((len(read), 1)), 1 - rates]), axis=1)[:, :-1]
    return _sigmoid(steepness * ((first * rates - second * rates) * left).sum(1))


def fit_rescorla_wagner(cues: ArrayLike, p: ArrayLike) -> Fit:
    """Least squares over the two rates and the steepness, from several starts.

    Raises:
        MechlabError: fewer than four points, a p outside 0 to 1, or unequal numbers of both.
    """
    read, y = np.asarray(cues), _checked(p)
    if read.ndim != 2 or len(read) != len(y):
        raise MechlabError(f"There are {len(y)} answers for passages of shape {list(read.shape)}: give a row each.")
    return _least_squares(lambda x: rescorla_wagner(read, *x), y, _STARTS, _BOUNDS)


def fit_linear(share: ArrayLike, p: ArrayLike) -> Fit:
    """``p = a + b share``, the curve of a reader who counts. Raises MechlabError as ``fit_rescorla_wagner``."""
    x, y = np.asarray(share, dtype=np.float64), _checked(p)
    slope, level = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (0.0, y.mean())
    return _fit((float(level), float(slope)), y, level + slope * x)


def fit_logistic(share: ArrayLike, p: ArrayLike) -> Fit:
    """``p = sigmoid(a + b share)``: bent as the learner's answer is, but nothing is learnt. Raises MechlabError as the others."""
    x, y = np.asarray(share, dtype=np.float64), _checked(p)
    starts = ((0.0, 0.0), (2.0, -4.0), (-2.0, 4.0))
    return _least_squares(lambda ab: _sigmoid(ab[0] + ab[1] * x), y, starts, ((-40.0, -80.0), (40.0, 80.0)))


def _least_squares(
    curve: Callable[[Floats], Floats],
    y: Floats,
    starts: Sequence[Sequence[float]],
    bounds: tuple[Sequence[float], Sequence[float]],
) -> Fit:
    from scipy.optimize import least_squares

    found = [least_squares(lambda x: curve(x) - y, start, bounds=bounds, max_nfev=_MOST_STEPS) for start in starts]
    best = min(found, key=lambda one: float(one.cost))
    return _fit(tuple(map(float, best.x)), y, curve(best.x))


def _fit(parameters: tuple[float, ...], y: Floats, predicted: Floats) -> Fit:
    variance = max(float(((y - predicted) ** 2).mean()), _LEAST_VARIANCE)  # a perfect fit would have no logarithm
    return Fit(parameters, len(y) * float(np.log(variance)) + 2 * (len(parameters) + 1), predicted)


def _checked(p: ArrayLike) -> Floats:
    y = np.asarray(p, dtype=np.float64)
    if y.ndim != 1 or len(y) < 4:
        raise MechlabError(f"A curve of three parameters needs four answers at least, got shape {list(y.shape)}.")
    if not bool(((y >= 0) & (y <= 1)).all()):
        raise MechlabError(f"Answers are probabilities between 0 and 1; these go from {y.min():g} to {y.max():g}.")
    return y


def _sigmoid(x: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(x), dtype=np.float64)
