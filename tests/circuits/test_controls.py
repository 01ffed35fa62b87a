"""Matched random heads: same layers, none of the chosen, different draws."""

from collections import Counter

import pytest

from circuits.controls import matched_random_heads
from mechlab.errors import MechlabError


def test_same_layer_histogram_and_no_chosen_head() -> None:
    heads = [(2, 0), (2, 5), (7, 1)]
    sets = matched_random_heads(heads, 8, draws=50, seed=1)
    assert len(sets) == 50
    for drawn in sets:
        assert Counter(layer for layer, _ in drawn) == {2: 2, 7: 1}
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(heads)
    assert {head for drawn in sets for layer, head in drawn if layer == 7} == {0, 2, 3, 4, 5, 6, 7}
    assert matched_random_heads(heads, 8, seed=1) == sets[:10]
    assert matched_random_heads(heads, 8, seed=2) != sets[:10]


def test_a_layer_with_too_few_heads_left() -> None:
    with pytest.raises(MechlabError, match="Layer 3 has 1 heads left for a random control of 3"):
        matched_random_heads([(3, 0), (3, 1), (3, 2)], 4)
