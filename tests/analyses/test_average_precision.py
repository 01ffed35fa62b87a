"""Average precision of many units equals scikit-learn's, one at a time."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mechlab.analyses import average_precision as home
from mechlab.analyses.average_precision import average_precision, prevalence
from mechlab.errors import MechlabError


def labels(seed: int, n: int, k: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    found = generator.random((k, n)) < 0.3
    found[:, :2] = [True, False]
    return found


@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equals_sklearn_with_many_few_and_no_ties(levels: int, dtype: type) -> None:
    scores = (np.random.default_rng(levels).integers(levels, size=(37, 23)) - levels / 2).astype(dtype)
    scores[:, 3] = 0  # one threshold alone
    positive = labels(1, 37)
    found = average_precision(scores, positive)
    for row, label in enumerate(positive):
        for unit in range(23):
            assert found[row, unit] == pytest.approx(average_precision_score(label, scores[:, unit]), abs=1e-12)
    assert np.allclose(found[:, 3], prevalence(positive))


def test_equals_sklearn_on_the_prompts_that_count_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).integers(6, size=(41, 17)).astype(np.float32)
    positive, among = labels(2, 41), labels(3, 41) | labels(4, 41)
    whole = average_precision(scores, positive, among)
    monkeypatch.setattr(home, "_CELLS_AT_ONCE", 100)  # two units at a time
    assert np.array_equal(average_precision(scores, positive, among), whole)
    for row in range(3):
        own = (positive & among)[row][among[row]]
        for unit in range(17):
            want = average_precision_score(own, scores[among[row], unit])
            assert whole[row, unit] == pytest.approx(want, abs=1e-12)


def test_by_hand() -> None:
    """Positives first: 1. Ranks 1 and 3 of 4: (1/1 + 2/3) / 2. A tie of one positive and one negative at the top: 1/2."""
    label = np.array([[True, True, False, False]])
    scores = np.array([[4, 3, 2, 1], [4, 2, 3, 1], [2, 1, 2, 0]], dtype=float).T
    assert average_precision(scores, label)[0].tolist() == pytest.approx([1, 5 / 6, (1 / 2) / 2 + (2 / 3) / 2])


def test_random_scores_are_at_prevalence() -> None:
    positive = np.arange(500) < 100
    found = average_precision(np.random.default_rng(0).random((500, 400)), positive)
    assert prevalence(positive)[0] == 0.2
    assert found.mean() == pytest.approx(0.2, abs=0.015)  # a small bias upwards, as scikit-learn has it


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        (np.zeros((4, 2)), [[True] * 4], "4 positives among 4"),
        (np.zeros((4, 2)), [[False] * 4], "0 positives among 4"),
        (np.zeros((4, 2)), [[True, False]], "needs scores"),
        (np.array([[np.nan], [0.0]]), [[True, False]], "NaN or infinite"),
    ],
)
def test_what_cannot_be_scored(scores: np.ndarray, positive: list[list[bool]], message: str) -> None:
    with pytest.raises(MechlabError, match=message):
        average_precision(scores, positive)
