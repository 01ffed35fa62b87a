"""The planted circuit does induction, by the two planted heads and by nothing else."""

import pytest
import torch

from mechlab.models import PLANTED_INDUCTION, PLANTED_PREVIOUS_TOKEN, planted_induction
from mechlab.models.planted import D_MODEL, N_CONTEXT, N_HEADS, N_VOCAB, head_weights


@pytest.fixture(scope="module")
def model():
    planted = planted_induction()
    planted.hf.set_attn_implementation("eager")
    return planted


def sequences(n, seed):
    """Random sequences `.. A B .. A` in which A comes nowhere else: ids, the place of the first A, and B."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    for _ in range(n):
        length = draw(3, N_CONTEXT + 1)
        first, a = draw(0, length - 2), draw(0, N_VOCAB)
        ids = torch.randint(0, N_VOCAB - 1, (length,), generator=generator)
        ids += ids >= a  # never A
        ids[first] = ids[-1] = a
        yield ids, first, int(ids[first + 1])


def test_sizes(model):
    assert (model.n_layers, model.n_heads, model.vocab_size, model.context_length) == (2, N_HEADS, N_VOCAB, N_CONTEXT)
    assert len(model.tokenizer) == N_VOCAB
    assert model.d_model == D_MODEL
    assert model.fingerprint == planted_induction().fingerprint


def test_predicts_what_came_after_the_token_before(model):
    for ids, first, after in sequences(200, seed=0):
        out = model.hf(ids[None], output_attentions=True)
        assert out.logits[0, -1].argmax() == after
        assert out.logits[0, -1].softmax(-1)[after] > 0.99
        layer, head = PLANTED_PREVIOUS_TOKEN
        assert out.attentions[layer][0, head].diagonal(-1).min() > 0.99
        layer, head = PLANTED_INDUCTION
        assert out.attentions[layer][0, head, -1, first + 1] > 0.99


def test_a_token_twice_in_a_row(model):
    assert model.hf(torch.tensor([[9, 5, 5, 8, 5, 5]])).logits[0, 2].argmax() == 5


def test_only_the_planted_heads_write(model):
    for layer in range(2):
        for head in range(N_HEADS):
            *_, value, out = head_weights(model.hf, layer, head)
            writes = bool((value @ out).any())
            assert writes == ((layer, head) in (PLANTED_PREVIOUS_TOKEN, PLANTED_INDUCTION))
        assert not any(parameter.any() for parameter in model.hf.transformer.h[layer].mlp.parameters())


@pytest.mark.parametrize("planted", [PLANTED_PREVIOUS_TOKEN, PLANTED_INDUCTION])
def test_each_planted_head_is_needed(planted):
    model = planted_induction()
    head_weights(model.hf, *planted)[3].zero_()
    right = [model.hf(ids[None]).logits[0, -1].argmax() == after for ids, _, after in sequences(60, seed=1)]
    assert sum(right) < 30


def test_the_residual_stream_has_mean_zero(model):
    hidden = model.hf(torch.arange(20)[None], output_hidden_states=True).hidden_states[:-1]
    assert all(state.mean(-1).abs().max() < 1e-6 for state in hidden)
