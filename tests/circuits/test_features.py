"""Contributions of features add up, are linear, and are what changing a feature does to a frozen network; weights say the same."""

import pytest
import torch
from feature_toys import PROMPT, ReluTranscoder, mlp_as_transcoder, random_transcoder, relu_gpt2

from circuits.features.attribution import attribute
from circuits.features.explained import explain
from circuits.features.frozen import FINAL, freeze
from circuits.features.norms import freeze_norm, norm_form
from circuits.features.steps import back, reading_of, step
from circuits.features.target import feature_target, logit_target
from circuits.features.transcoder import by_layer, shown
from circuits.features.weights import connections, de_embeddings, ov, token_table, unembeddings
from mechlab.errors import MechlabError, PromptError, SiteError
from mechlab.lens.edit import patch, splice
from mechlab.lens.hooks import hook_count
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import FAMILIES, tiny


@pytest.fixture(scope="module")
def llama() -> Lens:
    return Lens(tiny("llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_add_up_in_every_family(family):
    """Plain, skip and TopK transcoders, a layer without one; features and logits as targets; norms before and after sublayers."""
    lens = Lens(tiny(family))
    some = [random_transcoder(lens, 0, top=9), random_transcoder(lens, 1, n=55, skip=True)]
    explained = explain(lens, PROMPT, some)
    targets = [logit_target(lens, 7, [9, 4]), logit_target(lens, 3, pos=4)]
    targets += [explained.target_of(i) for i in range(0, len(explained.active), 29)]
    found = attribute(explained, targets)
    assert torch.allclose(found.totals().float(), found.values, atol=1e-4, rtol=1e-5)
    assert found.values[:2].abs().min() > 0.01 and len(targets) > 4
    # the values are those of a run without any of this
    run = lens.run(PROMPT, read=["final_norm", "L1.mlp_in"])
    plain = lens.layout.unembed(run["final_norm"][0]).detach()
    assert float(found.values[0]) == pytest.approx(float(plain[-1, 7] - plain[-1, [9, 4]].mean()), abs=1e-4)
    assert float(found.values[1]) == pytest.approx(float(plain[4, 3]), abs=1e-4)
    codes = some[1].encode(run["L1.mlp_in"][0])
    here = explained.active.layer == 1
    assert torch.allclose(
        codes[explained.active.pos[here], explained.active.feature[here]], explained.active.value[here], atol=1e-5
    )
    assert int(here.sum()) == int((codes[1:] > 0).sum())  # the first token has none
    assert hook_count(lens.model.hf) == 0


def test_a_frozen_run_is_the_run_with_patterns_and_norms_put_back():
    """Changing a feature by hand, with patterns patched from the clean run and norm scales fixed, moves targets by its contribution."""
    lens = Lens(tiny("gemma2"))  # norms before and after sublayers
    one = random_transcoder(lens, 0)
    explained = explain(lens, PROMPT, [one])
    active = explained.active
    i = int(active.value.argmax())
    token, feature = int(active.pos[i]), int(active.feature[i])
    clean = lens.run(PROMPT, read=[Site(kind, layer) for layer in range(3) for kind in ("pattern", "mlp_out")])
    keep = [patch(Site("pattern", layer), "clean") for layer in range(3)]
    keep += [patch(Site("mlp_out", layer), "clean") for layer in (1, 2)]
    double = splice(Site("mlp_out", 0, pos=token), "tc", keep_error=True, features=[(feature, "scale", 2.0)])
    norms = explained.run.norms
    old = {module: module.forward for module in norms}
    try:
        for module, frozen in norms.items():
            module.forward = frozen
        moved = lens.run(PROMPT, [double, *keep], ["final_norm"], sources={"clean": clean}, dictionaries={"tc": one})
    finally:
        for module in old:
            module.__dict__.pop("forward")
    target = logit_target(lens, 7, 9)
    change = (moved["final_norm"][0, -1] - explained.run.at[FINAL][-1]) @ target.vector
    found = attribute(explained, [target])
    assert float(change) == pytest.approx(float(found.features[0, i]), abs=1e-5)
    assert abs(float(change)) > 1e-3


def test_doubling_a_code_doubles_its_term_and_no_other(llama):
    one = random_transcoder(llama, 1)
    explained = explain(llama, PROMPT, [one])
    targets = [logit_target(llama, 7, 9)]
    before, i = attribute(explained, targets).features, 5
    explained.active.value[i] *= 2
    after = attribute(explained, targets)
    assert torch.allclose(after.features[:, i], 2 * before[:, i]) and float(before[0, i].abs()) > 1e-3
    others = torch.arange(len(explained.active)) != i
    assert torch.equal(after.features[:, others], before[:, others])
    assert not torch.allclose(after.totals().float(), after.values, atol=1e-4)  # so the check on the sum can fail


def test_a_transcoder_that_is_the_mlp_leaves_no_error():
    lens = relu_gpt2()
    explained = explain(lens, PROMPT, [mlp_as_transcoder(lens, layer) for layer in range(3)])
    found = attribute(explained, [logit_target(lens, 7, 9), explained.target_of(100)])
    assert float(explained.rest[:, 1:].abs().max()) < 1e-5
    assert float(found.rest[:, :, 1:].abs().max()) < 1e-5
    assert float(found.rest[0, :, 0].abs().max()) > 1e-3  # the first token's MLPs stay whole
    assert torch.allclose(found.totals().float(), found.values, atol=1e-4)
    table = found.table()
    assert set(table.kind) == {"feature", "error", "mlp", "embedding", "decoder bias", "bias"}
    assert float(table.contribution.sum()) == pytest.approx(float(found.values[0]), abs=1e-4)
    assert list(table.contribution.abs()) == sorted(table.contribution.abs(), reverse=True)


def test_every_token_can_be_told_in_features(llama):
    explained = explain(llama, PROMPT, [random_transcoder(llama, 0)], start=0)
    assert 0 in explained.active.pos.tolist() and explained.has_features(0, 0) and not explained.has_features(1, 3)
    found = attribute(explained, [logit_target(llama, 7)])
    assert torch.allclose(found.totals().float(), found.values, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "through"),
    [
        ("llama", None),
        ("llama", (1, 3)),
        ("gpt_neox", (1, 2)),
        ("gemma2", (1, 1)),
        ("gpt2", (2, 0)),
        ("granite", (1, 3)),
    ],
)
def test_connections_are_what_contributions_are_made_of(family, through):
    """Weights alone, times activation, norm scales and attention, give the contribution of a feature of layer 0 to one of layer 2.

    Only routes through the one head are counted: it is cut, and what is lost must be its part.
    """
    lens = Lens(tiny(family))
    lower, upper = random_transcoder(lens, 0), random_transcoder(lens, 2, n=33)
    explained = explain(lens, PROMPT, [lower, upper])
    run, active = explained.run, explained.active
    pos, source = 6, 6 if through is None else 3
    feature = int(active.feature[(active.layer == 2) & (active.pos == pos)][0])
    invariant = connections(lens, lower, upper, through=through, features=[feature])[:, 0]
    assert invariant.shape == (40,)
    ln2 = lens.layout.blocks[2].ln2
    assert ln2 is not None
    factor = float(run.norms[ln2].scale[pos])
    if through is not None:
        block = lens.layout.blocks[through[0]]
        assert block.ln1 is not None
        factor *= float(run.patterns[through[0]][through[1], pos, source] * run.norms[block.ln1].scale[source])
        if block.attn_out is not block.attn:
            factor *= float(run.norms[block.attn_out].scale[pos])
    reading = reading_of(explained, feature_target(upper, feature, pos))
    if through is not None:
        first = step(explained, reading)
        part = next(p for p in first.parts if (p.kind, p.layer, p.head, p.pos) == ("head", *through, source))
        after = back(explained, reading, part)
        assert after is not None
        reading = after
    terms = step(explained, reading)
    own = {
        p.feature: float(c)
        for p, c in zip(terms.parts, terms.contributions, strict=True)
        if p.kind == "feature" and p.layer == 0
    }
    here = (active.layer == 0) & (active.pos == source)
    expected = active.value[here] * invariant[active.feature[here]] * factor
    assert len(own) > 5
    assert torch.allclose(expected, torch.tensor([own[f] for f in active.feature[here].tolist()]), atol=1e-5)


def test_ov_by_hand(llama):
    """Llama: gain, W_V of the group, W_O of the head."""
    layer, head = 1, 3
    attn, ln1 = llama.model.hf.model.layers[layer].self_attn, llama.model.hf.model.layers[layer].input_layernorm
    width, group = llama.model.d_head, llama.model.n_heads // llama.model.n_kv_heads
    own, shared = (slice(i * width, (i + 1) * width) for i in (head, head // group))
    expected = (ln1.weight[:, None] * attn.v_proj.weight[shared].T) @ attn.o_proj.weight[:, own].T
    assert torch.allclose(ov(llama, layer, head), expected, atol=1e-6)


def test_de_embeddings_and_unembeddings_by_hand(llama):
    one = random_transcoder(llama, 1)
    hf = llama.model.hf
    gain = hf.model.layers[1].post_attention_layernorm.weight
    read = one.encoder[[4, 2]] * gain
    assert torch.allclose(de_embeddings(llama, one, [4, 2]), read @ hf.model.embed_tokens.weight.T, atol=1e-5)
    found = de_embeddings(llama, one, [4, 2], through=(1, 2))
    assert torch.allclose(found, read @ ov(llama, 1, 2).T @ hf.model.embed_tokens.weight.T, atol=1e-4)
    logits = (one.directions[[3]] * hf.model.norm.weight) @ hf.lm_head.weight.T
    assert torch.allclose(unembeddings(llama, one, [3]), logits, atol=1e-5)
    table = token_table(llama, logits, [3], k=4)
    assert list(table["rank"]) == [1, 2, 3, 4] and table.score[0] == pytest.approx(float(logits.max()))


@pytest.mark.parametrize("width", [4, 5, 7])
def test_norms_are_recognised(width):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(1, 3, width, generator=generator)
    weight, bias = torch.randn(2, width, generator=generator)
    layer_norm, rms = torch.nn.LayerNorm(width), torch.nn.RMSNorm(width, eps=1e-5)
    with torch.no_grad():
        layer_norm.weight.copy_(weight)
        layer_norm.bias.copy_(bias)
        rms.weight.copy_(weight)
    for norm, centred, expected_bias in ((layer_norm, True, bias), (rms, False, torch.zeros(width))):
        form = norm_form(norm, width, "A norm")
        assert form.centred is centred
        assert torch.allclose(form.gain, weight, atol=1e-5) and torch.allclose(form.bias, expected_bias, atol=1e-5)
        frozen = freeze_norm(form, x, norm(x), "A norm")
        assert torch.allclose(frozen(x), norm(x), atol=1e-5)
        spread = (x - x.mean(-1, keepdim=True) if centred else x).square().mean(-1).sqrt()[0]
        assert torch.allclose(frozen.scale, 1 / spread, rtol=1e-3)
    with pytest.raises(SiteError, match="A tanh is no norm"):
        norm_form(torch.nn.Tanh(), width, "A tanh")


def test_a_model_that_stays_nonlinear_is_refused_by_name():
    """Attention output through a nonlinearity: frozen patterns do not make it affine."""
    lens = Lens(tiny("llama", seed=3))
    handle = lens.layout.blocks[1].attn_proj.register_forward_hook(lambda _m, _i, output: torch.tanh(output))
    try:
        with pytest.raises(SiteError, match=r"tiny-llama-3 is not affine"):
            freeze(lens, PROMPT)
    finally:
        handle.remove()


def test_what_does_not_fit_is_refused(llama):
    one = random_transcoder(llama, 1)
    other = Lens(tiny("llama", seed=1))
    with pytest.raises(MechlabError, match=r"tiny-llama .*tiny-llama-1"):
        by_layer(other, [one])
    with pytest.raises(MechlabError, match="Two transcoders stand for the MLP of layer 1"):
        by_layer(llama, [one, one])
    wrong = random_transcoder(llama, 1)
    wrong.origin = wrong.origin.model_copy(update={"target": "L2.mlp_out"})
    with pytest.raises(MechlabError, match=r"L1\.mlp_in to L2\.mlp_out is no transcoder"):
        by_layer(llama, [wrong])
    small = random_transcoder(llama, 1)
    small.encoder = small.encoder[:, :5]
    with pytest.raises(MechlabError, match=r"encoder of the transcoder of layer 1 has shape \(40, 5\)"):
        by_layer(llama, [small])
    with pytest.raises(MechlabError, match="Feature 40 is not in"):
        feature_target(one, 40, -1)
    with pytest.raises(MechlabError, match="Token -1 is outside"):
        logit_target(llama, -1)
    with pytest.raises(PromptError, match="2 prompts"):
        freeze(llama, [[5, 6], [7, 8]])
    with pytest.raises(PromptError, match="Position 7 is outside"):
        attribute(explain(llama, PROMPT, [one]), [feature_target(one, 0, 7)])
    with pytest.raises(MechlabError, match="choose a lower layer"):
        connections(llama, one, random_transcoder(llama, 0))
    with pytest.raises(MechlabError, match="Head L2H0 does not write"):
        de_embeddings(llama, one, [0], through=(2, 0))
    with pytest.raises(SiteError, match="Head L3H0 is not in"):
        ov(llama, 3, 0)


class Gated(ReluTranscoder):
    def encode(self, activations):
        return super().encode(activations) * 1.5


class Shifted(ReluTranscoder):
    def decode(self, codes):
        return super().decode(codes) + 1.0


@pytest.mark.parametrize(("kind", "says"), [(Gated, "off its pre-activation"), (Shifted, "not what its decoder shows")])
def test_a_dictionary_that_is_not_what_it_shows_is_refused(llama, kind, says):
    honest = random_transcoder(llama, 1)
    maps = {name: getattr(honest, name) for name in ("encoder", "encoder_bias", "directions", "decoder_bias")}
    with pytest.raises(MechlabError, match=says):
        explain(llama, PROMPT, [kind(llama, 1, maps)])


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_transcoders_of_sae_lens_show_their_maps(llama, architecture):
    from sae_lens.registry import get_sae_class

    from mechlab.dictionaries.sae import SaeDictionary

    cls, config = get_sae_class(architecture)
    sae = cls(config(d_in=64, d_sae=50, d_out=64, apply_b_dec_to_input=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    origin = random_transcoder(llama, 1).origin
    explained = explain(llama, PROMPT, [SaeDictionary(sae, origin)])
    found = attribute(explained, [logit_target(llama, 7, 9)])
    assert len(explained.active) > 20
    assert torch.allclose(found.totals().float(), found.values, atol=1e-4)
    assert shown(SaeDictionary(sae, origin)).encoder.shape == (50, 64)
