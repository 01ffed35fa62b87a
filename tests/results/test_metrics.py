"""Metrics against numbers worked out by hand."""

import math

import pytest
import torch

from mechlab.errors import PromptError, UnknownName
from mechlab.results import METRICS, metric
from mechlab.results.metrics import accuracy, kl_nats, log_probability, logit_difference, probability, recovered

# Two prompts, three tokens. Softmax of log-weights (1, 2, 5) is (1/8, 2/8, 5/8); of (4, 4, 2) it is (0.4, 0.4, 0.2).
LOGITS = torch.tensor([[1.0, 2.0, 5.0], [4.0, 4.0, 2.0]]).log()
ANSWERS = torch.tensor([2, 0])


def test_logit_difference_against_one_foil_and_against_the_mean_of_several():
    one = logit_difference(LOGITS, ANSWERS, torch.tensor([0, 2]))
    assert torch.allclose(one, torch.tensor([math.log(5), math.log(2)]))
    several = logit_difference(LOGITS, ANSWERS, torch.tensor([[0, 1], [1, 2]]))
    assert torch.allclose(several, torch.tensor([math.log(5) - math.log(2) / 2, math.log(2) / 2]))


def test_probability_is_over_the_whole_vocabulary():
    assert torch.allclose(probability(LOGITS, ANSWERS), torch.tensor([5 / 8, 0.4]))
    assert torch.allclose(log_probability(LOGITS, ANSWERS), torch.tensor([5 / 8, 0.4]).log())
    assert torch.allclose(probability(LOGITS + 100, ANSWERS), torch.tensor([5 / 8, 0.4])), (
        "a shift of all logits is no change"
    )


def test_half_precision_is_widened_before_subtracting():
    logits = torch.tensor(
        [[300.0, 299.0]], dtype=torch.bfloat16
    )  # bfloat16 has steps of 2 here: both round to 300 or 298
    expected = float(logits[0, 0].float() - logits[0, 1].float())
    result = logit_difference(logits, torch.tensor([0]), torch.tensor([1]))
    assert result.dtype == torch.float32 and float(result) == expected


def test_kl_by_hand_and_its_direction():
    reference, other = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    there = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    back = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(kl_nats(reference, other)) == pytest.approx(there, rel=1e-6)
    assert float(kl_nats(other, reference)) == pytest.approx(back, rel=1e-6)


def test_kl_of_nearly_equal_logits_is_tiny_positive_and_quadratic():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5000, generator=generator)
    step = torch.randn(4, 5000, generator=generator) * 1e-4
    assert (kl_nats(logits, logits) == 0).all()
    small, double = kl_nats(logits, (logits.double() + step)), kl_nats(logits, (logits.double() + 2 * step))
    assert (small > 0).all()
    assert torch.allclose(double / small, torch.full((4,), 4.0, dtype=torch.float64), rtol=1e-3)


def test_kl_ignores_tokens_the_reference_rules_out():
    reference = torch.tensor([[0.0, 0.0, -torch.inf]])
    other = torch.tensor([[0.0, 0.0, 0.0]])
    assert float(kl_nats(reference, other)) == pytest.approx(math.log(1.5))


def test_accuracy_needs_to_beat_every_foil_and_ties_are_wrong():
    assert accuracy(LOGITS, ANSWERS, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    assert accuracy(LOGITS, torch.tensor([1, 0]), torch.tensor([[0, 2], [2, 2]])).tolist() == [0.0, 1.0]
    beats_the_mean_only = torch.tensor([[0, 0, 2], [1, 2, 2]])
    assert accuracy(LOGITS, torch.tensor([1, 0]), beats_the_mean_only).tolist() == [0.0, 0.0]
    assert accuracy(LOGITS, torch.tensor([2, 2])).tolist() == [1.0, 0.0]


def test_recovered_is_0_at_corrupted_1_at_clean_and_linear():
    clean, corrupted = torch.tensor([3.0, 1.0]), torch.tensor([-1.0, -1.0])
    assert recovered(corrupted, clean, corrupted).tolist() == [0.0, 0.0]
    assert recovered(clean, clean, corrupted).tolist() == [1.0, 1.0]
    assert recovered(torch.tensor([1.0, -2.0]), clean, corrupted).tolist() == [0.5, -0.5]


def test_recovered_is_nan_where_one_prompt_has_nothing_and_an_error_where_none_has():
    result = recovered(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 5.0]), torch.tensor([0.0, 5.0]))
    assert result[0] == 0.5 and result[1].isnan()
    with pytest.raises(PromptError, match=r"nothing|score the same"):
        recovered(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]))


def test_gradient_of_the_logit_difference_is_plus_and_minus_one():
    logits = LOGITS.clone().requires_grad_()
    logit_difference(logits, ANSWERS, torch.tensor([0, 2])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]


@pytest.mark.parametrize("item", METRICS, ids=lambda item: item.key)
def test_every_metric_has_the_one_signature(item):
    values = item(LOGITS, ANSWERS, torch.tensor([0, 1]), LOGITS.flip(0))
    assert values.shape == (2,) and values.isfinite().all()
    assert metric(item.key) is item


def test_listed_metrics_compute_what_their_names_say():
    foils, reference = torch.tensor([0, 1]), LOGITS.flip(0)
    assert torch.equal(metric("kl")(LOGITS, ANSWERS, None, reference), kl_nats(reference, LOGITS))
    assert torch.equal(metric("logit_difference")(LOGITS, ANSWERS, foils), logit_difference(LOGITS, ANSWERS, foils))
    assert torch.equal(metric("accuracy")(LOGITS, ANSWERS), accuracy(LOGITS, ANSWERS))


def test_wrong_key_missing_foils_and_wrong_shapes_are_errors():
    with pytest.raises(UnknownName, match="did you mean logit_difference"):
        metric("logit_diff")
    with pytest.raises(PromptError, match="foil"):
        metric("logit_difference")(LOGITS, ANSWERS)
    with pytest.raises(PromptError, match="reference"):
        metric("kl")(LOGITS, ANSWERS)
    with pytest.raises(AssertionError, match=r"\[batch, vocab\]"):
        probability(LOGITS[None], ANSWERS)
    with pytest.raises(AssertionError, match="Answers"):
        probability(LOGITS, torch.tensor([1]))
