"""KL-matched strengths: the cost is computed here by hand from the logits, and by a closed form where the edit acts on logits."""

import math

import pytest
import torch

from mechlab.analyses.kl_matched import kl_matched, last_token_kl
from mechlab.errors import MechlabError
from mechlab.lens.edit import add, clamp, scale
from mechlab.lens.lens import Lens
from mechlab.models.tiny_models import tiny

PROMPTS = [[5, 9, 2, 31], [7, 1], [3, 3, 8, 40, 11]]


@pytest.fixture(scope="module")
def lens():
    return Lens(tiny("llama", seed=3))


def vectors(lens):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, lens.model.d_model, generator=generator)


def kl_by_hand(lens, edits):
    base = lens.run(PROMPTS, logits="last").last_logits.double().softmax(-1)
    edited = lens.run(PROMPTS, edits, logits="last").last_logits.double().softmax(-1)
    return torch.tensor(
        [sum(float(p * math.log(p / q)) for p, q in zip(b, e, strict=True)) for b, e in zip(base, edited, strict=True)]
    )


def test_kl_of_each_prompt_is_the_sum_over_the_vocabulary(lens):
    edits = [add("L0.resid_post", vectors(lens)[0], strength=3.0)]
    assert last_token_kl(lens, PROMPTS, edits) == pytest.approx(kl_by_hand(lens, edits), rel=1e-6)


def test_scaled_logits_cost_what_the_closed_form_says(lens):
    """Tempered logits: KL(p || p_b) = (1 - b) E_p[logit] + logZ(b) - logZ(1)."""
    logits = lens.run(PROMPTS, logits="last").last_logits.double()

    def closed(b):
        mean = (logits.softmax(-1) * logits).sum(-1)
        return float(((1 - b) * mean + (b * logits).logsumexp(-1) - logits.logsumexp(-1)).mean())

    (found,) = kl_matched(lens, PROMPTS, lambda s: [scale("logits", 1 + s)], [closed(2.7)], tolerance=1e-4)
    assert found.strength == pytest.approx(1.7, rel=1e-3)
    assert found.kl == pytest.approx(closed(1 + found.strength), rel=1e-5)


def test_different_vectors_and_lengths_pay_the_same(lens):
    targets = [0.1, 0.025, 0.4]
    lengths = (0.3, 1.0, 8.0)
    found = []
    for vector, length in zip(vectors(lens), lengths, strict=True):
        strengths = kl_matched(
            lens, PROMPTS, lambda s, v=vector * length: [add("L1.resid_post", v, strength=s)], targets, most=1e5
        )
        assert [one.target for one in strengths] == targets
        for one in strengths:
            paid = kl_by_hand(lens, [add("L1.resid_post", vector * length, strength=one.strength)]).mean()
            assert float(paid) == pytest.approx(one.target, rel=0.021)
        found.append(strengths)
    by_target = [sorted((one.target, one.strength) for one in strengths) for strengths in found]
    assert all(a < b < c for (_, a), (_, b), (_, c) in by_target)  # more KL, more strength
    (same,) = kl_matched(lens, PROMPTS, lambda s: [add("L1.resid_post", vectors(lens)[0], strength=s)], [0.1])
    assert same.strength == pytest.approx(0.3 * found[0][0].strength, rel=0.03)  # a vector's length does not matter


def test_the_first_crossing_counts_where_the_kl_comes_back(lens):
    """A KL that rises to its peak and falls again: sin(strength) of a vector; 0.1 is crossed many times."""
    vector = vectors(lens)[0]
    found = kl_matched(
        lens, PROMPTS, lambda s: [add("L1.resid_post", vector, strength=5 * math.sin(s))], [0.01], start=0.1
    )
    assert found[0].strength < math.pi / 2


def test_a_target_out_of_reach_is_refused_with_the_largest_kl(lens):
    largest = float(kl_by_hand(lens, [add("L1.resid_post", vectors(lens)[0], strength=2.0)]).mean())
    with pytest.raises(MechlabError, match=rf"No strength up to 2 costs .* 50 nats.* {largest:.4g}"):
        kl_matched(lens, PROMPTS, lambda s: [add("L1.resid_post", vectors(lens)[0], strength=s)], [50.0], most=2.0)


def test_a_jump_over_the_target_is_refused(lens):
    """A clamp that switches on at strength 3 costs nothing before and much after."""

    def edits(strength):
        return [clamp("L1.resid_post", low=5.0 if strength >= 3 else None, high=1e6)]

    with pytest.raises(MechlabError, match=r"jumps from 0 to .* at strength 3"):
        kl_matched(lens, PROMPTS, edits, [0.01])


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ([0.0], {}, "KL target 0.0 must be positive"),
        ([math.nan], {}, "KL target nan must be positive"),
        ([0.1], {"start": 5.0, "most": 2.0}, "Strengths from 5.0 to 2.0"),
        ([0.1], {"tolerance": 1.0}, "tolerance between 0 and 1"),
    ],
)
def test_bad_input(lens, targets, options, message):
    with pytest.raises(MechlabError, match=message):
        kl_matched(lens, PROMPTS, lambda s: [add("L1.resid_post", 1.0, strength=s)], targets, **options)


def test_edits_that_cost_at_strength_0_are_refused(lens):
    with pytest.raises(MechlabError, match="Strength 0 already costs"):
        kl_matched(lens, PROMPTS, lambda s: [add("L1.resid_post", vectors(lens)[0], strength=s + 50)], [0.001])
