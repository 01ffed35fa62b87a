"""The lens sees what Hugging Face computes: against plain torch hooks, Hugging Face's own outputs, nnsight and TransformerBridge."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mechlab.lens import Lens, Site
from mechlab.lens.edit import READ_ONLY, scale
from mechlab.lens.layout import output_weight
from mechlab.models import FAMILIES, Model
from mechlab.models.tiny_models import EXPERT_FAMILIES

EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROUTERS = [family for family in EXPERT_FAMILIES if family not in FAMILIES]


@pytest.mark.parametrize("family", [*FAMILIES, *ROUTERS])
def test_with_every_pattern_read_logits_equal_eager_exactly(lens, plain, long, short):
    read = [f"L{layer}.pattern" for layer in range(3)]
    for ids in (long, short, long[:1]):
        output = plain.output(ids, output_attentions=True)
        run = lens.run([ids], read=read)
        assert_close(run.logits[0], output.logits[0], **EXACT)
        for layer in range(3):
            assert_close(run[f"L{layer}.pattern"], output.attentions[layer], **EXACT)


def test_in_bfloat16_too(lens, plain, long):
    half = Lens(Model("half", "tiny", copy.deepcopy(plain.hf).bfloat16(), lens.model.tokenizer))
    expected = replace(plain, hf=copy.deepcopy(plain.hf).bfloat16()).logits(long)
    read = [f"L{layer}.pattern" for layer in range(3)]
    assert_close(half.run([long], read=read).logits[0], expected, **EXACT)
    kinds = [kind for kind in lens.layout.kinds(1) if kind not in ("result", *READ_ONLY)]
    unchanged = half.run([long], edits=[scale(Site(kind, 1), 1.0) for kind in kinds], read=read)
    assert_close(unchanged.logits[0], expected, **EXACT)


def test_the_fast_path_equals_eager_and_sdpa_closely(lens, plain, family, long):
    fast = lens.run([long]).logits[0]
    assert_close(fast, plain.logits(long), **CLOSE)
    if family not in ("gemma2", "gpt_oss"):  # they have no SDPA of their own
        assert_close(fast, plain.logits(long, "sdpa"), **CLOSE)


@pytest.mark.parametrize("family", [*FAMILIES, *ROUTERS])
def test_every_site_equals_a_plain_hook(lens, plain, long):
    layered = [f"L{layer}.{kind}" for layer in range(3) for kind in lens.layout.kinds(layer)]
    run = lens.run([long], read=[*lens.layout.kinds(), *layered])
    for site, seen in run.activations.items():
        if site.kind in ("result", *READ_ONLY):
            continue  # nothing in the model is one: test_invariants checks their sums
        expected = plain.read(long, site.kind, site.layer)
        by_head = site.kind in ("scores", "pattern")
        assert_close(
            seen, expected.transpose(1, 2) if by_head else expected, **CLOSE, msg=lambda m, s=site: f"{s}: {m}"
        )


def test_the_kinds_of_a_family_are_those_of_its_modules(lens, plain):
    for layer in range(3):
        kinds = lens.layout.kinds(layer)
        for kind in ("resid_mid", "mlp_pre", "mlp_pre_linear", "mlp_post", "router"):
            assert (kind in kinds) == plain.has(kind), kind
        assert ("expert_weights" in kinds) == plain.has("router")


def test_residual_streams_equal_hugging_face_hidden_states(lens, plain, long):
    run = lens.run([long], read=["L0.resid_pre", "L0.resid_post", "L1.resid_post", "final_norm"])
    hidden = plain.output(long, output_hidden_states=True).hidden_states
    for at, expected in zip(("L0.resid_pre", "L0.resid_post", "L1.resid_post", "final_norm"), hidden, strict=True):
        assert_close(run[at], expected, **CLOSE)


@pytest.mark.parametrize("moe", ["mixtral", "olmoe", "qwen2_moe"])
def test_router_logits_equal_hugging_face_output(lens_of, plain_of, moe, long):
    run = lens_of(moe).run([long], read=[f"L{layer}.router" for layer in range(3)])
    for layer, expected in enumerate(plain_of(moe).output(long, output_router_logits=True).router_logits):
        assert_close(run[f"L{layer}.router"][0], expected, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_nnsight_reads_the_same(lens, plain, family, long):
    from nnsight import TransformersModel

    plain.hf.set_attn_implementation("eager")
    nn = TransformersModel(plain.hf, tokenizer=lens.model.tokenizer, task="text-generation")
    layer = nn.transformer.h[1] if family == "gpt2" else nn.model.layers[1]
    proj, down = (
        (layer.attn.c_proj, layer.mlp.c_proj) if family == "gpt2" else (layer.self_attn.o_proj, layer.mlp.down_proj)
    )
    with nn.trace(torch.tensor([long])):
        z = proj.input.save()
        neurons = down.input.save()
        after = layer.output.save()
    run = lens.run([long], read=["L1.z", "L1.mlp_post", "L1.resid_post"])
    assert_close(run["L1.z"].flatten(-2), z, **CLOSE)
    assert_close(run["L1.mlp_post"], neurons, **CLOSE)
    assert_close(run["L1.resid_post"], after, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen3", "gemma2", "mixtral"])
def test_transformer_bridge_reads_the_same(lens, long):
    bridge = lens.bridge()
    wanted = {
        "blocks.1.hook_resid_post": "L1.resid_post",
        "blocks.1.attn.hook_z": "L1.z",
        "blocks.1.attn.hook_pattern": "L1.pattern",
        "blocks.1.attn.hook_rot_q": "L1.q",
        "blocks.1.attn.hook_rot_k": "L1.k",
        "blocks.1.attn.hook_v": "L1.v",
    }
    run = lens.run([long], read=wanted)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(torch.tensor([long]))
    assert_close(run.logits, logits, **CLOSE)
    found = [name for name in wanted if name in cache]
    assert {"blocks.1.hook_resid_post", "blocks.1.attn.hook_pattern"} <= set(found)
    for name in found:
        assert_close(run[name], _like(cache[name], run[name]), **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["granite", "granitemoe"])
def test_transformer_bridge_scales_what_is_added_too(lens_of, family, long):
    lens = lens_of(family)
    names = [f"blocks.{layer}.hook_{kind}_out" for layer in range(3) for kind in ("attn", "mlp")]
    run, (_, cache) = lens.run([long], read=names), lens.bridge().run_with_cache(torch.tensor([long]))
    for name in names:
        assert_close(run[name], cache[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def _like(theirs: Tensor, ours: Tensor) -> Tensor:
    """TransformerBridge gives q, k, v by position or by head first, or flat, depending on the family."""
    if theirs.shape == ours.shape:
        return theirs
    return theirs.transpose(1, 2) if theirs.ndim == ours.ndim else theirs.reshape(ours.shape)


def test_the_bridge_shares_weights_and_leaves_the_model_alone(lens_of, long):
    lens = lens_of("llama")
    before = lens.run([long]).logits
    bridge = lens.bridge()
    ours = {p.data_ptr() for p in lens.model.hf.parameters()}
    own = [p for p in bridge.parameters() if p.data_ptr() not in ours]
    assert all(not p.any() for p in own), "TransformerBridge adds a zero bias to the unembedding, and nothing else"
    bridge.add_hook("blocks.0.hook_resid_post", lambda x, hook: x * 0)  # noqa: ARG005
    assert_close(lens.run([long]).logits, before, **EXACT)


def test_output_weight_is_input_by_output(lens, plain, long):
    proj = lens.layout.blocks[1].attn_proj
    z = lens.run([long], read=["L1.z"])["L1.z"].flatten(-2)
    bias = proj.bias if getattr(proj, "bias", None) is not None else 0.0
    assert_close(z @ output_weight(proj) + bias, plain.module("proj", 1)(z), **CLOSE)
