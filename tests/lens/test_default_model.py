"""The default pretrained model: exact parity, its known induction heads, and no copies of the residual stream."""

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mechlab.lens import Lens
from mechlab.models import load

pytestmark = pytest.mark.default_model
N_REPEATED, N_PROMPTS = 25, 8


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(load())


def test_it_equals_eager_exactly(lens):
    shared = {id(p): p for p in (*lens.model.hf.parameters(), *lens.model.hf.buffers())}
    hf = copy.deepcopy(lens.model.hf, memo=shared)
    hf.set_attn_implementation("eager")
    tokens = lens.tokens("When Mary and John went to the store, John gave a drink to")
    with torch.no_grad():
        expected = hf(input_ids=tokens.ids, use_cache=False).logits
    eager = lens.run(tokens, read=[f"L{layer}.pattern" for layer in range(lens.model.n_layers)])
    assert_close(eager.logits, expected, rtol=0.0, atol=0.0)
    assert_close(lens.run(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert lens.model.tokenizer.decode([int(expected[0, -1].argmax())]) == " Mary"


def test_reading_the_whole_residual_stream_keeps_no_copies(lens):
    layers = range(lens.model.n_layers)
    run = lens.run(
        "The capital of France is", read=[f"L{n}.{kind}" for n in layers for kind in ("resid_pre", "resid_post")]
    )
    storages = {activation.untyped_storage().data_ptr() for activation in run.activations.values()}
    assert len(storages) == lens.model.n_layers + 1


def induction_scores(lens: Lens, ids: Tensor) -> dict[tuple[int, int], float]:
    """(layer, head) -> mean attention from the second half to the token after the same place in the first half."""
    layers = range(lens.model.n_layers)
    run = lens.run(ids.tolist(), read=[f"L{n}.pattern" for n in layers], logits="none")
    queries = torch.arange(ids.shape[1] - N_REPEATED, ids.shape[1])
    means = [run[f"L{n}.pattern"][:, :, queries, queries - N_REPEATED + 1].mean((0, 2)) for n in layers]
    return {(n, head): float(score) for n in layers for head, score in enumerate(means[n])}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("with_bos", [True, False])
def test_its_induction_heads(lens, seed, with_bos):
    """On random tokens, said twice: heads 18.6, 17.4, 17.3 and 17.5. On random tokens that do not repeat, none."""
    generator = torch.Generator().manual_seed(seed)
    bos = torch.full((N_PROMPTS, int(with_bos)), lens.model.tokenizer.bos_token_id)
    once, other = torch.randint(1000, 40_000, (2, N_PROMPTS, N_REPEATED), generator=generator)
    scores = induction_scores(lens, torch.cat([bos, once, once], 1))
    best = sorted(scores, key=lambda head: -scores[head])[:4]
    assert set(best) == {(18, 6), (17, 4), (17, 3), (17, 5)}
    assert best[0] == (18, 6) and scores[18, 6] > 0.8 and scores[best[3]] > 0.6
    control = induction_scores(lens, torch.cat([bos, once, other], 1))
    assert max(control.values()) < 0.1
