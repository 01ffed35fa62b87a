"""Head detectors: scores by hand, sequences that are what they say, planted heads found."""

import numpy as np
import pytest
import torch

from circuits import detectors
from circuits.detectors import DETECTORS, TWO_BEFORE, mean_attention, scores, sequences
from mechlab.errors import PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.vocabulary import ordinary_tokens
from mechlab.models import PLANTED_INDUCTION, PLANTED_PREVIOUS_TOKEN, planted_induction, tiny
from mechlab.models.words import SPECIAL

INDUCTION, PREVIOUS, DUPLICATE = range(3)


def test_mean_attention_by_hand() -> None:
    pattern = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0],
            [0.9, 0.1, 0.0, 0.0],
            [0.2, 0.5, 0.3, 0.0],
            [0.4, 0.1, 0.2, 0.3],
        ]
    )
    assert mean_attention(pattern, 1, range(1, 4)) == pytest.approx((0.9 + 0.5 + 0.2) / 3)
    assert mean_attention(pattern, 2, range(2, 4)) == pytest.approx((0.2 + 0.1) / 2)
    assert mean_attention(pattern, 0, range(1, 3)) == pytest.approx((0.1 + 0.3) / 2)
    stacked = torch.stack([pattern, pattern.flip(0)])[None]
    assert mean_attention(stacked, 1, range(3, 4)).tolist() == [[pytest.approx(0.2), 0.0]]


def test_distances_for_copies_of_five() -> None:
    assert [one.distance(5) for one in (*DETECTORS, TWO_BEFORE)] == [4, 1, 5, 2]


def test_sequences_repeat_exactly_and_controls_never() -> None:
    lens = Lens(tiny("llama"))
    ids = ordinary_tokens(lens)
    among = sequences(lens, ids, 7, 6, seed=3)
    assert (among.start, list(among.second_half)) == (0, [6, 7, 8, 9, 10, 11])
    repeated, unrepeated = among.repeated.ids, among.unrepeated.ids
    assert repeated.shape == unrepeated.shape == (7, 12)
    assert torch.equal(repeated[:, :6], repeated[:, 6:])
    assert torch.equal(repeated[:, :6], unrepeated[:, :6])
    assert [len(set(row)) for row in repeated.tolist()] == [6] * 7
    assert [len(set(row)) for row in unrepeated.tolist()] == [12] * 7
    assert len({tuple(row) for row in repeated.tolist()}) == 7
    assert torch.equal(sequences(lens, ids, 7, 6, seed=3).unrepeated.ids, unrepeated)
    assert not torch.equal(sequences(lens, ids, 7, 6, seed=4).unrepeated.ids, unrepeated)


def test_special_tokens_stand_first_and_are_never_drawn() -> None:
    plain, with_bos = Lens(planted_induction()), Lens(planted_induction(), prepend_bos=True)
    ids = ordinary_tokens(plain)
    assert ids == list(range(len(SPECIAL), 24))
    among = sequences(with_bos, ids, 3, 5)
    assert among.start == 1
    assert among.repeated.ids[:, 0].tolist() == [0, 0, 0]
    assert torch.equal(among.repeated.ids[:, 1:6], among.repeated.ids[:, 6:])
    assert int(among.unrepeated.ids[:, 1:].min()) >= len(SPECIAL)
    assert torch.equal(sequences(plain, ids, 3, 5).repeated.ids, among.repeated.ids[:, 1:])


def test_planted_heads_by_hand() -> None:
    """The induction head spreads evenly over all positions but the first where nothing repeats: 1/i at position i."""
    lens = Lens(planted_induction())
    found = scores(lens, sequences(lens, ordinary_tokens(lens), 3, 5, seed=1))
    assert found.shape == (3, 2, 3, 2, 3)
    layer, head = PLANTED_INDUCTION
    assert np.allclose(found[INDUCTION, 0, :, layer, head], 1, atol=1e-4)
    assert np.allclose(found[INDUCTION, 1, :, layer, head], np.mean([1 / i for i in range(5, 10)]), atol=1e-4)
    assert np.allclose(found[[PREVIOUS, DUPLICATE], 0, :, layer, head], 0, atol=1e-4)
    layer, head = PLANTED_PREVIOUS_TOKEN
    assert np.allclose(found[PREVIOUS, :, :, layer, head], 1, atol=1e-4)
    assert np.allclose(found[[INDUCTION, DUPLICATE], :, :, layer, head], 0, atol=1e-4)


def test_scores_are_attention_between_equal_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys found by looking tokens up in the prompt, not by distance; and batches change nothing."""
    lens = Lens(tiny("qwen2"), prepend_bos=True)
    among = sequences(lens, ordinary_tokens(lens), 5, 4, seed=2)
    found = scores(lens, among)
    for prompt, ids in enumerate(among.repeated.ids.tolist()):
        first = {token: at for at, token in reversed(list(enumerate(ids)))}
        pairs = {
            INDUCTION: [(q, first[ids[q]] + 1) for q in range(5, 9)],
            PREVIOUS: [(q, q - 1) for q in range(5, 9)],
            DUPLICATE: [(q, first[ids[q]]) for q in range(5, 9)],
        }
        for layer in range(lens.model.n_layers):
            pattern = lens.run([ids], read=[Site("pattern", layer)])[Site("pattern", layer)][0].double().numpy()
            for detector, cells in pairs.items():
                expected = np.mean([pattern[:, q, k] for q, k in cells], axis=0)
                assert np.allclose(found[detector, 0, prompt, layer], expected, atol=1e-6)
    monkeypatch.setattr(detectors, "_BYTES_AT_ONCE", 2 * 4 * lens.model.n_layers * lens.model.n_heads * 9**2)
    told: list[tuple[str, int, int]] = []
    assert np.allclose(scores(lens, among, progress=lambda *step: told.append(step)), found, atol=1e-6)
    assert [done for label, done, _ in told if label == "attention on repeated tokens"] == [0, 2, 4, 5]


@pytest.mark.parametrize(
    ("n_ids", "n", "k", "said"),
    [
        (20, 3, 3, "Copies of 3 tokens are too short"),
        (11, 3, 6, "12 different tokens are needed and there are 11"),
        (20, 0, 5, "No prompt was given"),
        (40, 2, 19, "38 tokens and planted-induction reads at most 36"),
    ],
)
def test_bad_input_is_told_in_a_sentence(n_ids: int, n: int, k: int, said: str) -> None:
    lens = Lens(planted_induction())
    ids = [4 + i % 20 for i in range(n_ids)]
    with pytest.raises(PromptError, match=said):
        sequences(lens, ids, n, k)
