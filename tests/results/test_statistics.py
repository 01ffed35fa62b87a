"""Bootstrap intervals: what they cover, that two ways agree, and what happens at the edges."""

import math
import time

import numpy as np
import pytest
from scipy.stats import bootstrap

from mechlab.errors import MechlabError
from mechlab.results import bootstrap_difference, bootstrap_mean, bootstrap_ratio
from mechlab.results.bootstrap_tables import bootstrap_mean_table, bootstrap_ratio_table

RNG = np.random.default_rng


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_95_percent_intervals_of_a_mean_cover_about_95_percent(draw):
    data = getattr(RNG(1), draw)(size=(3000, 60))
    truth = 0.0 if draw == "normal" else 1.0
    table = bootstrap_mean_table(data)
    above, below = (table.low > truth).mean(), (table.high < truth).mean()
    assert 0.925 < 1 - above - below < 0.965
    assert above < 0.05 and below < 0.06, "misses fall on both sides"


def test_single_intervals_cover_too():
    data = RNG(2).normal(5, 2, size=(300, 60))
    intervals = [bootstrap_mean(row, n_resamples=500) for row in data]
    assert 0.90 < np.mean([item.low <= 5 <= item.high for item in intervals]) < 0.99


def test_intervals_of_a_ratio_cover_the_true_ratio():
    denominator = RNG(3).normal(3, 1.5, size=(3000, 60))
    numerator = 0.4 * denominator + RNG(4).normal(0, 1, size=denominator.shape)
    table = bootstrap_ratio_table(numerator, denominator)
    assert 0.925 < ((table.low <= 0.4) & (table.high >= 0.4)).mean() < 0.965


def test_narrower_confidence_gives_a_narrower_interval():
    data = RNG(5).normal(size=50)
    wide, narrow = bootstrap_mean(data, confidence=0.99), bootstrap_mean(data, confidence=0.5)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_table_and_scipy_agree_row_by_row_on_skewed_data():
    data = RNG(6).exponential(size=(4, 30))
    table = bootstrap_mean_table(data, n_resamples=40_000)
    for i, row in enumerate(data):
        single = bootstrap_mean(row, n_resamples=40_000)
        error = row.std() / math.sqrt(30)
        assert single.estimate == pytest.approx(table.estimate[i])
        assert abs(single.low - table.low[i]) < 0.08 * error and abs(single.high - table.high[i]) < 0.08 * error


def test_ratio_agrees_with_scipys_paired_bootstrap():
    denominator = RNG(7).normal(4, 1, size=40)
    numerator = denominator * RNG(8).normal(0.5, 0.2, size=40)
    ours = bootstrap_ratio(numerator, denominator, n_resamples=40_000)
    reference = bootstrap(
        (numerator, denominator),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=40_000,
        rng=RNG(9),
    )
    assert ours.estimate == pytest.approx(numerator.mean() / denominator.mean())
    assert ours.low == pytest.approx(reference.confidence_interval.low, abs=0.08 * reference.standard_error)
    assert ours.high == pytest.approx(reference.confidence_interval.high, abs=0.08 * reference.standard_error)


def test_rows_beyond_the_first_chunk_are_in_their_places():
    data = np.arange(2500)[:, None] + RNG(10).normal(size=(2500, 20))
    table = bootstrap_mean_table(data, n_resamples=200)
    assert np.allclose(table.estimate, data.mean(axis=1))
    assert ((table.low < table.estimate) & (table.estimate < table.high)).all()


def test_pairing_removes_what_prompts_share():
    shared = RNG(11).normal(0, 100, size=50)
    difference = bootstrap_difference(shared + 1 + RNG(12).normal(0, 0.1, 50), shared)
    assert difference.estimate == pytest.approx(1, abs=0.1) and difference.high - difference.low < 0.1


def test_ratio_of_means_weights_prompts_by_their_denominator():
    # Per-prompt ratios are 0.5 and 50; the second prompt has almost nothing to recover.
    assert bootstrap_ratio([1.0, 0.5], [2.0, 0.01]).estimate == pytest.approx(1.5 / 2.01)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others():
    data = RNG(13).normal(size=30)
    assert bootstrap_mean(data, seed=4) == bootstrap_mean(data, seed=4) != bootstrap_mean(data, seed=5)
    assert bootstrap_ratio(data + 3, data + 4, seed=4) != bootstrap_ratio(data + 3, data + 4, seed=5)


def test_constant_data_give_zero_width():
    for value in (3.0, 0.0, 0.1):
        item = bootstrap_mean([value] * 7)
        assert item.estimate == item.low == item.high == value and item.n == 7
    table = bootstrap_mean_table([[0.1] * 7, [1, 2, 3, 4, 5, 6, 7]])
    assert table.low[0] == table.high[0] == 0.1 and table.low[1] < table.high[1]
    constant_ratio = bootstrap_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert constant_ratio.low == constant_ratio.high == constant_ratio.estimate == 0.5


def test_too_few_prompts_have_no_interval():
    one, none = bootstrap_mean([2.5]), bootstrap_mean([])
    assert one.estimate == 2.5 and math.isnan(one.low) and math.isnan(one.high) and one.n == 1
    assert math.isnan(none.estimate) and math.isnan(none.low) and none.n == 0
    assert bootstrap_ratio([1.0], [2.0]).estimate == 0.5 and math.isnan(bootstrap_ratio([1.0], [2.0]).low)
    assert np.isnan(bootstrap_mean_table([[1.0]]).low).all()


def test_a_denominator_around_zero_gives_no_interval():
    numerator, denominator = RNG(14).normal(1, 1, 20), RNG(15).normal(0.05, 1, 20)
    item = bootstrap_ratio(numerator, denominator)
    assert math.isfinite(item.estimate) and math.isnan(item.low) and math.isnan(item.high)
    assert math.isnan(bootstrap_ratio([1.0, 2.0], [1.0, -1.0]).estimate)
    negative = bootstrap_ratio(RNG(16).normal(1, 0.1, 20), RNG(17).normal(-3, 0.1, 20))
    assert negative.low < -1 / 3 < negative.high, "a safely negative denominator is as good as a positive one"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_errors(bad):
    for call in (
        lambda: bootstrap_mean([1.0, bad]),
        lambda: bootstrap_ratio([1.0, bad], [1.0, 2.0]),
        lambda: bootstrap_mean_table([[1.0, bad]]),
    ):
        with pytest.raises(MechlabError, match="NaN or infinite"):
            call()


def test_confidence_out_of_range_is_an_error():
    with pytest.raises(MechlabError, match=r"0.95"):
        bootstrap_mean([1.0, 2.0], confidence=95)


def test_four_thousand_rows_of_a_hundred_prompts_take_under_two_seconds():
    data = RNG(18).normal(size=(4000, 100))
    start = time.process_time()
    bootstrap_mean_table(data)
    assert time.process_time() - start < 4, "2 s of wall time on two cores"
