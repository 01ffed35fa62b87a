"""What must hold whatever the weights: parts sum to wholes, empty edits do nothing, full patches carry everything over."""

import pytest
import torch
from torch.testing import assert_close

from mechlab.errors import EditError
from mechlab.lens.edit import READ_ONLY, add, patch, pattern, project, route, scale
from mechlab.lens.layout import output_weight

EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def multiplier(lens) -> float:
    """Granite adds so many times what attention and MLP give."""
    return getattr(lens.model.config, "residual_multiplier", 1.0)


def test_i2_edits_that_say_nothing_do_nothing(lens, prompts):
    clean = lens.run(prompts).logits
    assert_close(lens.run(prompts, edits=[]).logits, clean, **EXACT)
    for kind in lens.layout.kinds(1):
        if kind in READ_ONLY:
            continue
        exact = kind not in ("scores", "pattern")  # these leave the fast kernel
        bound = EXACT if exact else CLOSE
        site = f"L1.{kind}"
        for edits in ([scale(site, 1.0)], [add(site, 0.0)], [patch(site)]):
            assert_close(lens.run(prompts, edits=edits, sources={"clean": prompts}).logits, clean, **bound)


def test_i3_a_full_patch_of_the_residual_stream_gives_the_source_run(lens, prompts, others):
    source = lens.run(others).logits
    for layer in range(3):
        for kind in ("resid_pre", "resid_post"):
            run = lens.run(prompts, edits=[patch(f"L{layer}.{kind}")], sources={"clean": others})
            assert_close(run.logits, source, **CLOSE)


def test_i4_parts_sum_to_the_residual_stream(lens, long):
    read = [f"L{layer}.{kind}" for layer in range(3) for kind in ("result", "attn_out", "mlp_out")]
    run = lens.run([long], read=[*read, "L0.resid_pre", "L2.resid_post"])
    parts = [run["L0.resid_pre"], *(run[f"L{layer}.{kind}"] for layer in range(3) for kind in ("attn_out", "mlp_out"))]
    assert_close(sum(parts), run["L2.resid_post"], **CLOSE)
    for layer, block in enumerate(lens.layout.blocks):
        if block.attn_out is block.attn:  # no post-norm
            bias = block.attn_proj.bias if getattr(block.attn_proj, "bias", None) is not None else 0.0
            bias = bias * multiplier(lens)
            assert_close(run[f"L{layer}.result"].sum(2) + bias, run[f"L{layer}.attn_out"], **CLOSE)


def test_i4_neurons_sum_to_the_mlp(lens, long):
    if "mlp_post" not in lens.layout.kinds(1):
        pytest.skip("experts")
    block = lens.layout.blocks[1]
    run = lens.run([long], read=["L1.mlp_post", "L1.mlp_out"])
    bias = block.down.bias if getattr(block.down, "bias", None) is not None else 0.0
    total = (run["L1.mlp_post"] @ output_weight(block.down) + bias) * multiplier(lens)
    assert_close(total if block.mlp_out is block.mlp else block.mlp_out(total), run["L1.mlp_out"], **CLOSE)


@pytest.mark.parametrize("kind", ["resid_post", "z", "q", "mlp_out"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "gpt_oss"])
def test_i6_projection_on_the_whole_space_is_a_full_patch(lens, kind, prompts, others):
    size = lens.run(prompts, read=[f"L1.{kind}"])[f"L1.{kind}"].shape[-1]
    basis = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    whole = lens.run(prompts, edits=[project(f"L1.{kind}", basis, "clean")], sources={"clean": others})
    full = lens.run(prompts, edits=[patch(f"L1.{kind}")], sources={"clean": others})
    assert_close(whole.logits, full.logits, rtol=1e-4, atol=1e-4)


def test_i7_patterns_sum_to_one_also_when_overwritten(lens, family, long):
    rows = torch.tril(torch.ones(19, 19))
    edit = pattern("L1H2.pattern", rows / rows.sum(-1, keepdim=True))
    run = lens.run([long], edits=[edit], read=["L0.pattern", "L1.pattern", "L1.z"])
    clean = lens.run([long], read=["L0.pattern", "L1.pattern", "L1.z"])
    for sums in (run["L0.pattern"].sum(-1), clean["L1.pattern"].sum(-1)):
        if family == "gpt_oss":  # the sink takes the rest
            assert (sums < 1 + 1e-6).all() and (sums < 0.99).any() and (sums > 0).all()
        else:
            assert_close(sums, torch.ones_like(sums), **CLOSE)
    assert_close(run["L1.pattern"][:, 2].sum(-1), torch.ones(1, 19), **CLOSE)
    moved = (run["L1.z"] - clean["L1.z"]).abs().amax(dim=(0, 1, 3))
    assert (moved > 0).tolist() == [False, False, True, False]


def weights_of(lens, prompts, *edits):
    read = ["L1.expert_weights", "L1.router", "L1.mlp_out"]
    run = lens.run(prompts, edits=edits, read=read)
    return run["L1.expert_weights"], run["L1.router"], run["L1.mlp_out"]


def rule(family: str, logits):
    """Weights when the two best of ``logits`` are chosen, by the family's rule."""
    chosen = logits >= logits.topk(2).values[..., -1:]
    share = logits.softmax(-1) * chosen
    return share if family in ("olmoe", "qwen2_moe") else share / share.sum(-1, keepdim=True)


def test_i8_expert_weights_follow_the_familys_rule(lens_of, moe, prompts):
    weights, logits, _ = weights_of(lens_of(moe), prompts)
    assert_close(weights, rule(moe, logits), **CLOSE)
    assert ((weights > 0).sum(-1) == 2).all()


def test_i8_an_expert_that_is_off_is_never_chosen(lens_of, moe, prompts):
    clean, logits, before = weights_of(lens_of(moe), prompts)
    weights, same, after = weights_of(lens_of(moe), prompts, route("L1E1", "off"))
    assert clean[..., 1].any()
    assert not weights[..., 1].any()
    assert_close(same, logits, **EXACT)
    assert_close(weights, rule(moe, logits.index_fill(-1, torch.tensor(1), float("-inf"))), **CLOSE)
    assert ((weights > 0).sum(-1) == 2).all(), "another expert takes its place"
    unchosen = clean[..., 1] == 0
    if moe in ("mixtral", "gpt_oss"):
        assert_close(after[unchosen], before[unchosen], **CLOSE)
    assert (after[~unchosen] - before[~unchosen]).abs().max() > 1e-3


def test_i8_nobody_takes_the_place_of_a_dropped_expert(lens_of, moe, prompts):
    clean, _, before = weights_of(lens_of(moe), prompts)
    weights, _, after = weights_of(lens_of(moe), prompts, route("L1E1", "drop"))
    assert not weights[..., 1].any()
    assert ((weights > 0) <= (clean > 0)).all()
    assert_close(weights.sum(-1), clean.sum(-1), **CLOSE)
    assert_close(after[clean[..., 1] == 0], before[clean[..., 1] == 0], **CLOSE)


def test_i8_all_dropped_leaves_only_what_is_shared(lens_of, moe, prompts):
    lens = lens_of(moe)
    weights, _, after = weights_of(lens, prompts, *(route(f"L1E{e}", "drop") for e in range(4)))
    assert not weights.any()
    if moe != "qwen2_moe":
        assert not after.any()
        return
    block = lens.layout.blocks[1].mlp
    x = lens.run(prompts, read=["L1.mlp_in"])["L1.mlp_in"]
    assert_close(after, block.shared_expert_gate(x).sigmoid() * block.shared_expert(x), **CLOSE)


def test_i8_an_expert_that_is_on_is_always_chosen(lens_of, moe, prompts):
    clean, logits, _ = weights_of(lens_of(moe), prompts)
    weights, _, _ = weights_of(lens_of(moe), prompts, route("L1E1", "on"))
    assert not clean[..., 1].all()
    assert weights[..., 1].all()
    assert ((weights > 0).sum(-1) == 2).all()
    if moe in ("olmoe", "qwen2_moe"):
        assert_close(weights[..., 1], logits.softmax(-1)[..., 1], **CLOSE)
    else:
        assert_close(weights.sum(-1), torch.ones(2, 8), **CLOSE)
    already = clean[..., 1] > 0
    assert_close(weights[already], clean[already], **CLOSE)


def test_i8_switches_at_one_position_leave_the_others(lens_of, moe, prompts):
    clean, _, _ = weights_of(lens_of(moe), prompts)
    weights, _, _ = weights_of(lens_of(moe), prompts, route("L1E1@3", "on"), route("L1E0@3", "off"))
    assert weights[:, 3, 1].all() and not weights[:, 3, 0].any()
    others = [p for p in range(8) if p != 3]
    assert_close(weights[:, others], clean[:, others], **CLOSE)


def test_i8_impossible_switches_are_refused(lens_of, moe, prompts):
    for state, experts in (("off", range(3)), ("on", range(3))):
        with pytest.raises(EditError, match="chooses 2 of 4 experts"):
            lens_of(moe).run(prompts, edits=[route(f"L1E{e}", state) for e in experts])


@pytest.mark.parametrize("moe", ["mixtral", "olmoe", "qwen2_moe", "gpt_oss"])
def test_expert_weights_give_the_mlp_output(lens_of, moe, prompts):
    """The weights that are read are those that the experts' outputs are summed with."""
    lens = lens_of(moe)
    mlp = lens.layout.blocks[1].mlp
    run = lens.run(prompts, edits=[route("L1E2", "on")], read=["L1.mlp_in", "L1.expert_weights", "L1.mlp_out"])
    x, weights = run["L1.mlp_in"].flatten(0, 1), run["L1.expert_weights"].flatten(0, 1)
    total = torch.zeros_like(x)
    for expert in range(4):
        alone = torch.full((len(x), 1), expert)
        total += weights[:, expert, None] * mlp.experts(x, alone, torch.ones(len(x), 1))
    if moe == "qwen2_moe":
        total += mlp.shared_expert_gate(x).sigmoid() * mlp.shared_expert(x)
    assert_close(total, run["L1.mlp_out"].flatten(0, 1), **CLOSE)
