"""Attention received, sink rates, episodes, levels, writes: by hand, and against plain transformers."""

import math

import numpy as np
import pytest
import torch

from mechlab.analyses.sinks import attention_received, observe, other_rate, received, sink_rate
from mechlab.analyses.sinks_interventions import SINK, TARGET, Watch, outcome
from mechlab.analyses.sinks_levels import (
    NOISE,
    PRIMARY_LIKE,
    SECONDARY,
    Episode,
    Thresholds,
    episodes,
    label,
    paper_span,
    profile,
    ratios_at,
)
from mechlab.analyses.sinks_links import over_prompts, partial_spearman, shuffled
from mechlab.analyses.sinks_mlp import mapped_components, mlp_alone
from mechlab.analyses.sinks_prompts import characters_for, knows_positions, natural, random_tokens, repeated_token
from mechlab.analyses.sinks_writers import Writes, parts, random_units, top_units, unit_writes, writes
from mechlab.errors import PromptError, SiteError
from mechlab.lens.edit import zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import tiny
from mechlab.results.study import silent


def some_tokens(lens: Lens, n: int, length: int):
    return random_tokens(lens, n, length, seed=3)


def test_received_by_hand() -> None:
    pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.2, 0.3]])
    assert received(pattern).tolist() == pytest.approx([1.75 / 3, 0.95 / 2, 0.3])


def test_sink_rates_by_hand() -> None:
    alpha = np.zeros((2, 2, 2, 8))
    alpha[0, 0, 0, 0] = 0.31
    alpha[1, :, 1, 0] = 0.9
    alpha[1, 1, 0, 0] = 0.3  # not above
    alpha[:, 0, :, 5] = 0.4
    alpha[:, :, :, 7] = 1.0  # the last quarter does not count
    assert sink_rate(alpha, 0, 0.3).tolist() == [0.25, 0.5]
    assert other_rate(alpha, 0.3).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "gpt_neox"])
def test_observed_is_what_transformers_gives(family: str) -> None:
    """Seven prompts in batches of four; sliding windows included."""
    model = tiny(family, seed=2)
    lens = Lens(model)
    tokens = some_tokens(lens, 7, 13)
    direction = torch.nn.functional.normalize(
        torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)), dim=0
    )
    found = observe(lens, tokens, {1: direction}, {2: direction}, silent)
    assert found.received.shape == (7, 3, model.n_heads, 13)
    plain = tiny(family, seed=2).hf
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        out = plain(tokens.ids, output_attentions=True, output_hidden_states=True)
    weights = torch.stack(out.attentions, dim=1)
    by_hand = weights.sum(-2) / (13 - torch.arange(13))
    assert np.allclose(found.received, by_hand.numpy(), atol=1e-6)
    assert np.allclose(attention_received(lens, tokens, silent), found.received, atol=1e-6)
    hidden = out.hidden_states[2]  # after layer 1
    assert np.allclose(found.norms[:, 1], hidden.norm(dim=-1).numpy(), atol=1e-4)
    assert np.allclose(found.cosines[:, 1], ((hidden @ direction) / hidden.norm(dim=-1)).numpy(), atol=1e-5)
    assert np.isnan(found.cosines[:, 0]).all()
    mlp = lens.run(tokens, read=["L2.mlp_out"], logits="none")["L2.mlp_out"]
    assert np.allclose(found.mlp_norms[2], mlp.norm(dim=-1).numpy(), atol=1e-5)


def test_episodes_by_hand() -> None:
    ratio = np.array([1.0, 3.0, 9.0, 5.0, 1.1, 2.9, 40.0, 50.0, 3.5])
    assert episodes(ratio, 3.0) == (Episode(1, 3, 2), Episode(6, 8, 7))
    assert Episode(6, 8, 7).lifetime == 3
    assert list(Episode(6, 8, 7).reading(9)) == [7, 8]
    assert list(Episode(1, 3, 2).reading(9)) == [2, 3, 4]
    assert episodes(np.ones(4), 3.0) == ()


def test_paper_span_by_hand() -> None:
    assert paper_span(np.array([1.0, 2.0, 100.0, 101.0, 90.0, 3.0, 2.0])) == (2, 4)
    assert paper_span(np.array([5.0, 4.0, 3.0])) is None
    assert paper_span(np.array([1.0, 9.0, 9.5])) == (1, 2)  # never falls


def test_labels_are_shares_of_depth() -> None:
    limits = Thresholds(noise_share=0.1, primary_share=0.65)
    assert [label(n, 20, limits) for n in (1, 2, 3, 12, 13)] == [NOISE, NOISE, SECONDARY, SECONDARY, PRIMARY_LIKE]
    assert [label(n, 48, Thresholds(noise_share=4 / 48, primary_share=33 / 48)) for n in (4, 5, 32, 33)] == [
        NOISE,
        SECONDARY,
        SECONDARY,
        PRIMARY_LIKE,
    ]


def test_profile_takes_the_candidate_with_the_largest_norm() -> None:
    lens = Lens(tiny("llama", seed=1))
    tokens = some_tokens(lens, 5, 9)
    of = profile(lens, tokens, Thresholds(candidates=3), silent)
    run = lens.run(tokens, read=[f"L{layer}.resid_post" for layer in range(3)], logits="none")
    stream = torch.stack([run[f"L{layer}.resid_post"] for layer in range(3)], dim=1)
    assert of.position == int(stream.norm(dim=-1)[:, :, :3].mean(dim=(0, 1)).argmax())
    others = [at for at in range(9) if at != of.position]
    norms = stream.norm(dim=-1).numpy()
    by_hand = norms[:, :, of.position] / np.median(norms[:, :, others], axis=-1)
    assert np.allclose(of.ratios, by_hand, rtol=1e-5)
    assert np.allclose(ratios_at(norms, of.position), by_hand)
    units = stream[:, 2, of.position] / stream[:, 2, of.position].norm(dim=-1, keepdim=True)
    mean = units.mean(dim=0)
    assert torch.allclose(of.directions[2], mean / mean.norm(), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "granite"])
def test_writes_add_up(family: str) -> None:
    """Stream after a layer = stream before + attention + MLP; an MLP = its neurons + its bias."""
    lens = Lens(tiny(family, seed=4))
    tokens = some_tokens(lens, 5, 9)
    directions = torch.nn.functional.normalize(torch.randn(2, lens.model.d_model), dim=-1)
    for direction, found in zip(directions, writes(lens, tokens, 3, list(directions)), strict=True):
        before = lens.run(tokens, read=["L0.resid_pre@3"], logits="none")["L0.resid_pre@3"] @ direction
        total = before.numpy()[:, None] + np.cumsum(found.attention + found.mlp, axis=1)
        assert np.allclose(total, found.stream, atol=1e-4)
    units = unit_writes(lens, tokens, 3, {1: directions[1], 2: directions[1]})
    for layer in (1, 2):
        bias = getattr(lens.layout.blocks[layer].down, "bias", None)
        constant = 0.0 if bias is None else float(bias @ directions[1])
        constant *= getattr(lens.model.config, "residual_multiplier", 1.0)
        assert np.allclose(units[layer].sum(axis=1) + constant, found.mlp[:, layer], atol=1e-4)


def test_parts_by_hand() -> None:
    mlp = np.array([[0.0, 1.0, 8.0, 0.5, -5.0, -0.5, 60.0, -7.0]])
    stream = np.cumsum(mlp, axis=1)
    found = Writes(attention=np.zeros_like(mlp), mlp=mlp, stream=stream)
    spans = (Episode(1, 4, 3), Episode(6, 7, 6))
    assert parts(found, spans, 0, 0.1).writers == (2, 1)
    assert parts(found, spans, 0, 0.1).removers == (4,)
    assert parts(found, spans, 1, 0.1).writers == (6,)
    assert parts(found, spans, 1, 0.1).removers == (7,)
    assert parts(found, spans, 1, 0.5).removers == ()


def test_top_units_by_hand() -> None:
    assert top_units(np.array([0.1, 5.0, -2.0, 4.0]), 0.9) == [1, 3]  # the sum is 7.1, of which 5 is not enough
    assert top_units(np.array([0.1, 5.0, -2.0, 4.0]), 0.5) == [1]
    assert top_units(np.array([-1.0, -6.0, 3.0, -0.5]), 0.9) == [1]  # -6 of -4.5
    assert top_units(np.ones(50), 0.9, most=4) == [0, 1, 2, 3]
    drawn = random_units({2: [0, 1, 2], 5: [7]}, 9, draws=20, seed=1)
    assert all(len(one[2]) == 3 and not {0, 1, 2} & set(one[2]) and one[5] != [7] for one in drawn)
    assert len({tuple(one[2]) for one in drawn}) > 5


def test_partial_spearman() -> None:
    generator = np.random.default_rng(0)
    held = np.arange(200.0)
    noise = generator.normal(size=200)
    assert partial_spearman(noise, np.exp(noise), np.zeros(200)) == pytest.approx(1)
    assert partial_spearman(held + 5 * noise, held + 5 * generator.normal(size=200), held) == pytest.approx(0, abs=0.2)
    from scipy.stats import spearmanr

    mixed = noise + generator.normal(size=200)
    assert partial_spearman(noise, mixed, np.zeros(200)) == pytest.approx(spearmanr(noise, mixed).statistic)
    assert math.isnan(partial_spearman([1, 2, 3], [1, 2, 3], [0, 0, 0]))
    assert math.isnan(partial_spearman(np.ones(9), noise[:9], held[:9]))


def test_the_prompt_is_what_is_resampled() -> None:
    """Ten copies of each token, all in the token's prompt, leave the interval as wide as it was."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=12)
    y = x + generator.normal(size=12)
    once = over_prompts(x, y, np.zeros(12), range(12))
    tenfold = over_prompts(np.repeat(x, 10), np.repeat(y, 10), np.zeros(120), np.repeat(range(12), 10))
    assert once.n == tenfold.n == 12
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, abs=0.05)
    dealt = shuffled(x, x, np.zeros(12), draws=30)
    assert dealt is not None and abs(dealt.mean()) < 0.2
    assert shuffled([1.0], [1.0], [1.0], draws=2) is None


def test_an_mlp_alone_is_the_mlp() -> None:
    for family in ("gpt2", "gemma2", "granite"):
        lens = Lens(tiny(family, seed=3))
        tokens = some_tokens(lens, 2, 8)
        run = lens.run(tokens, read=["L1.mlp_in", "L1.mlp_out"], logits="none")
        assert torch.allclose(mlp_alone(lens, 1, run["L1.mlp_in"][0]), run["L1.mlp_out"][0], atol=1e-5)


def test_components_that_cannot_be_had() -> None:
    lens = Lens(tiny("llama"))
    same = torch.ones(6, lens.model.d_model)
    assert mapped_components(lens, 1, 2, same, same, 3, 2, 0) is None
    assert mapped_components(lens, 1, 2, torch.randn(2, lens.model.d_model), same[:2], 3, 2, 0) is None
    low_rank = torch.randn(6, 2) @ torch.randn(2, lens.model.d_model)
    found = mapped_components(lens, 1, 2, low_rank, same, 5, 4, 0)
    assert found is not None
    assert found.explained.shape == (2,)  # no more components than the inputs have
    assert found.explained.sum() == pytest.approx(1, abs=1e-5)
    assert found.random.shape == (4, 2)


def test_outcomes_agree_with_plain_formulas() -> None:
    lens = Lens(tiny("llama", seed=6))
    tokens = some_tokens(lens, 5, 11).labelled(**{SINK: [2, 0, 1, 3, 2], TARGET: [5, 6, 4, 5, 7]})
    direction = torch.nn.functional.normalize(torch.randn(lens.model.d_model), dim=-1)
    watch = Watch({0: direction, 1: direction, 2: direction}, 0, range(1, 3), 0.05)
    edit = zero(Site("mlp_out", 0, pos=SINK))
    found = outcome(lens, tokens, [edit], watch)
    run = lens.run(tokens, [edit], read=["L1.pattern", "L2.pattern", *(f"L{at}.resid_post" for at in range(3))])
    for row, (sink, target) in enumerate(zip(tokens.labels[SINK], tokens.labels[TARGET], strict=True)):
        patterns = torch.stack([run["L1.pattern"][row], run["L2.pattern"][row]])
        assert found.received[row] == pytest.approx(float(patterns[:, :, sink:, sink].mean()), abs=1e-6)
        assert found.target_received[row] == pytest.approx(float(patterns[:, :, target:, target].mean()), abs=1e-6)
        logs = run.logits[row].log_softmax(-1)
        losses = [-float(logs[at, tokens.ids[row, at + 1]]) for at in range(target + 1, 10)]
        assert found.loss[row] == pytest.approx(np.mean(losses), abs=1e-5)
        cosines = [
            float(torch.cosine_similarity(run[f"L{at}.resid_post"][row, sink], direction, dim=0)) for at in range(3)
        ]
        alive = 0
        while alive < 3 and abs(cosines[alive]) > 0.05:
            alive += 1
        assert found.lifetime[row] == alive
    assert not np.allclose(outcome(lens, tokens, [], watch).norms, found.norms)


def test_inputs() -> None:
    lens = Lens(tiny("llama"), prepend_bos=True)
    bos = lens.model.tokenizer.bos_token_id
    drawn = random_tokens(lens, 3, 12, seed=1)
    assert drawn.lengths == (12,) * 3
    assert set(drawn.ids[:, 0].tolist()) == {bos} and len(set(drawn.ids[0, 1:].tolist())) > 3
    said = repeated_token(lens, 3, 12, seed=1)
    assert [len(set(row)) for row in said.ids.tolist()] == [1, 1, 1]
    assert bos not in said.ids
    text = natural(lens, ["the cat sat on the mat and the dog sat on the cat ."] * 2, 9)
    assert text.lengths == (9, 9) and len(text.pieces[0]) == 9
    assert characters_for(64) > 500
    assert knows_positions(Lens(tiny("gpt2"))) and not knows_positions(Lens(tiny("gemma3")))


def test_inputs_that_cannot_be_used() -> None:
    lens = Lens(tiny("gpt2"))
    with pytest.raises(
        PromptError, match=r"1 of 2 texts are shorter than the window of 20 tokens \(the shortest has 3\)"
    ):
        natural(lens, ["the cat sat " * 9, "the cat sat"], 20)
    with pytest.raises(PromptError, match="A window of 2 tokens"):
        repeated_token(lens, 2, 2)
    with pytest.raises(PromptError, match=r"choose 8 to 96"):
        random_tokens(lens, 2, 97)
    with pytest.raises(SiteError, match="mlp_post"):
        unit_writes(Lens(tiny("mixtral")), some_tokens(lens, 2, 8), 0, {0: torch.ones(64)})
