"""Massive activations: the rule, the places, the interventions; by hand and on the planted model."""

import numpy as np
import pytest
import torch

from mechlab.analyses.massive import Place, choose, is_massive, loss_nats, set_to, survey, zeroed
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.models.planted_sink import MASSIVE_DIMENSIONS, SIZE, planted_sinks
from mechlab.results.study import silent


def test_the_rule_by_hand() -> None:
    hidden = torch.full((4, 5), 0.1)
    hidden[0, 2], hidden[1, 1], hidden[3, 4] = -150.0, 100.0, 99.0
    assert is_massive(hidden, 100.0, 1000.0).nonzero().tolist() == [[0, 2]]  # 100 is not above 100
    hidden *= 1.01
    assert is_massive(hidden, 100.0, 1000.0).nonzero().tolist() == [[0, 2], [1, 1]]
    assert is_massive(hidden, 100.0, 1200.0).nonzero().tolist() == [[0, 2]]  # 101 is 1,000 medians
    both = torch.stack([hidden, hidden * 0.5])
    # each matrix has its own median, and the floor cuts the second one's 50.5
    assert is_massive(both, 70.0, 1000.0).nonzero().tolist() == [[0, 0, 2], [0, 1, 1], [1, 0, 2]]


def test_places_by_hand() -> None:
    """Others stand at other tokens and in other dimensions than the massive ones."""
    hidden = torch.linspace(0.1, 2.0, 30).reshape(5, 6)
    hidden[0, 3], hidden[2, 3] = 5000.0, -3000.0
    kinds = {(3, True): np.array([1.0]), (3, False): np.array([2.0])}
    chosen = choose(hidden, 100.0, 1000.0, kinds, 4, 0)
    assert chosen.massive == (Place(0, 3), Place(2, 3))
    assert chosen.next_largest == (Place(4, 5), Place(4, 4))
    for places in (chosen.median_sized, *chosen.random):
        assert len(places) == 2 and all(at.position not in (0, 2) and at.dimension != 3 for at in places)
    sizes = [float(hidden[at]) for at in chosen.median_sized]
    assert all(abs(size - float(hidden.abs().median())) < 0.3 for size in sizes)
    assert len({places for places in chosen.random}) > 1
    assert choose(hidden, 100.0, 1000.0, {(3, True): np.array([1.0])}, 2, 0).massive == (
        Place(0, 3),
    )  # of a kind seen before


def test_the_planted_dimension_and_layers_are_found() -> None:
    lens = Lens(planted_sinks())
    rows = np.random.default_rng(0).integers(4, 30, (5, 20)).tolist()
    found = survey(lens, lens.tokens(rows), 100.0, 1000.0, silent)
    first = found.entries[found.entries["position"] == 0]
    assert set(first["layer"]) == {1, 2, 3, 4, 5, 7, 8, 9}
    assert set(found.entries["dimension"]) == set(MASSIVE_DIMENSIONS)
    assert found.first_layer() == 1
    means = found.means(1)
    assert set(means) == {(at, True) for at in MASSIVE_DIMENSIONS}
    assert means[MASSIVE_DIMENSIONS[0], True].mean() == pytest.approx(SIZE, rel=2e-3)
    assert len(means[MASSIVE_DIMENSIONS[0], True]) == 5
    assert found.with_massive.mean(axis=0).tolist() == [0, 1, 1, 1, 1, 1, 0, 1, 1, 1]
    top, median = found.top[:, 1, 0], found.median[:, 1]
    assert top == pytest.approx(SIZE, rel=2e-3) and median == pytest.approx(0.05, abs=1e-4)


def test_sizes_agree_with_plain_sorting() -> None:
    lens = Lens(tiny("gemma2", seed=3))
    tokens = lens.tokens(np.random.default_rng(1).integers(5, 60, (6, 9)).tolist())
    found = survey(lens, tokens, 1.0, 3.0, silent)
    hidden = lens.run(tokens, read=["L1.resid_post"], logits="none")["L1.resid_post"]
    for row in range(6):
        sizes = hidden[row].abs().flatten().sort(descending=True).values
        assert found.top[row, 1] == pytest.approx(sizes[:3].numpy())
        mine = found.entries[(found.entries["prompt"] == row) & (found.entries["layer"] == 1)]
        assert len(mine) == int(((sizes > 1) & (sizes >= 3 * hidden[row].abs().median())).sum()) > 0
    assert found.first_layer() is not None
    assert survey(lens, tokens, 1e6, 3.0, silent).first_layer() is None


def test_entries_are_set_and_the_loss_is_the_plain_one() -> None:
    lens = Lens(tiny("llama", seed=2))
    tokens = lens.tokens([[5, 9, 20, 33, 7, 8, 41]])
    edits = [*zeroed(1, [Place(2, 7)]), *set_to(1, {Place(0, 3): 4.5, Place(6, 60): -2.0})]
    run = lens.run(tokens, edits, read=["L1.resid_post"])
    hidden = run["L1.resid_post"][0]
    assert [float(hidden[at]) for at in (Place(2, 7), Place(0, 3), Place(6, 60))] == [0.0, 4.5, -2.0]
    logs = run.logits[0].log_softmax(-1)
    plain = -np.mean([float(logs[at, tokens.ids[0, at + 1]]) for at in range(6)])
    assert loss_nats(lens, tokens, edits) == pytest.approx(plain, abs=1e-6)
    assert loss_nats(lens, tokens, []) != pytest.approx(plain, abs=1e-4)
