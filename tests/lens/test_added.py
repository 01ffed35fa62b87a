"""Granite multiplies what attention and MLP give before it adds it: its sites hold what the residual stream gets."""

import pytest
import torch
from torch.testing import assert_close
from toys import toy_task

from mechlab.errors import ModelError
from mechlab.lens import Lens
from mechlab.lens.edit import add, clamp, mean, patch, project, scale, zero
from mechlab.lens.site import Site
from mechlab.models import tiny

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TIMES = 0.4
GRANITE = ("granite", "granitemoe")


@pytest.fixture(params=GRANITE)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def by_module(plain, ids, layer: int) -> dict[str, torch.Tensor]:
    """What plain hooks see: the outputs of attention, of its projection and of the MLP, the projection's input, the streams."""
    block, seen = plain.module("", layer), {}
    mlp, proj = plain.module("mlp", layer), block.self_attn.o_proj
    handles = [
        block.self_attn.register_forward_hook(lambda _m, _a, out: seen.update(attn=out[0])),
        mlp.register_forward_hook(lambda _m, _a, out: seen.update(mlp=out)),
        proj.register_forward_pre_hook(lambda _m, args: seen.update(z=args[0])),
        block.register_forward_pre_hook(lambda _m, args: seen.update(pre=args[0])),
        block.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: seen.update(mid=args[0])),
        block.register_forward_hook(lambda _m, _a, out: seen.update(post=out)),
    ]
    plain.logits(ids)
    for handle in handles:
        handle.remove()
    return seen


def heads_by_hand(plain, layer: int, z: torch.Tensor) -> torch.Tensor:
    """``[1, pos, head, d_model]``, not multiplied."""
    weight, size = plain.module("proj", layer).weight.T, z.shape[-1] // plain.n_heads
    rows = [slice(head * size, (head + 1) * size) for head in range(plain.n_heads)]
    return torch.stack([z[..., one] @ weight[one] for one in rows], dim=2)


def test_what_is_read_is_what_the_stream_gets(lens_of, plain_of, family, long):
    lens, kinds = lens_of(family), ("resid_pre", "result", "attn_out", "resid_mid", "mlp_out", "resid_post")
    run = lens.run([long], read=[f"L{layer}.{kind}" for layer in range(3) for kind in kinds])
    for layer, block in enumerate(lens.layout.blocks):
        assert block.scale == TIMES
        pre, result, attn, mid, mlp, post = (run[f"L{layer}.{kind}"] for kind in kinds)
        seen = by_module(plain_of(family), long, layer)
        assert_close(attn, TIMES * seen["attn"], **CLOSE)
        assert_close(mlp, TIMES * seen["mlp"], **CLOSE)
        assert_close(result, TIMES * heads_by_hand(plain_of(family), layer, seen["z"]), **CLOSE)
        bias = plain_of(family).module("proj", layer).bias
        assert_close(result.sum(2) + (0 if bias is None else TIMES * bias), attn, **CLOSE)
        for name, found in (("pre", pre), ("mid", mid), ("post", post)):
            assert_close(found, seen[name], **CLOSE)
        assert torch.equal(mid, pre + attn) and torch.equal(post, mid + mlp)
        assert (attn - seen["attn"]).abs().max() > 0.1  # the multiplier counts


def test_the_parts_of_experts_are_what_the_stream_gets(lens_of, long):
    run = lens_of("granitemoe").run([long], read=["L1.expert_out", "L1.mlp_out"])
    assert_close(run["L1.expert_out"].sum(2), run["L1.mlp_out"], **CLOSE)


def test_edits_that_change_nothing_leave_the_bits(lens_of, family, prompts):
    lens = lens_of(family)
    clean = lens.run(prompts).logits
    for kind in ("attn_out", "mlp_out", "result"):
        assert torch.equal(lens.run(prompts, read=[f"L1.{kind}"]).logits, clean)
        for edit in (scale(f"L1.{kind}", 1.0), add(f"L1.{kind}", 0.0), patch(f"L1.{kind}"), clamp(f"L1.{kind}", -99)):
            assert torch.equal(lens.run(prompts, [edit], sources={"clean": prompts}).logits, clean), edit


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out", "result"])
def test_what_is_written_is_what_the_stream_gets(lens_of, family, kind, prompts, others):
    lens = lens_of(family)
    at, unit = Site(kind, 1), Site(kind, 1, 1)
    vector = torch.linspace(-1, 1, 64)
    edits = [zero(at), scale(at, -1.5), add(at, vector), clamp(at, -0.1, 0.2), patch(at), mean(at), zero(unit)]
    edits += [scale(unit, 3.0), project(at, vector), project(at, vector, "clean")]
    ends = ("resid_mid", "resid_post") if kind == "mlp_out" else ("resid_pre", "resid_mid")
    for edit in edits:
        run = lens.run(prompts, [edit], [at, *(f"L1.{end}" for end in ends)], sources={"clean": others, "pool": others})
        written = run[at].sum(2) if kind == "result" else run[at]
        bias = lens.layout.blocks[1].attn_proj.bias if kind == "result" else None
        written = written if bias is None else written + TIMES * bias
        assert_close(run[f"L1.{ends[1]}"] - run[f"L1.{ends[0]}"], written, **CLOSE, msg=lambda m, e=edit: f"{e}: {m}")


@pytest.mark.parametrize("index", [None, 2])
def test_verbs_at_results_do_what_plain_hooks_do(lens_of, plain_of, family, index, prompts, others):
    lens, plain = lens_of(family), plain_of(family)
    site, vector = Site("result", 1, index), torch.linspace(-1, 1, 64)
    proj = plain.module("proj", 1)
    parts = [TIMES * heads_by_hand(plain, 1, by_module(plain, ids, 1)["z"]) for ids in others]
    mine = slice(None) if index is None else slice(index, index + 1)
    theirs = [part[:, :, mine] for part in parts]
    flat = vector / vector.norm()
    cases = [
        (zero(site), [torch.zeros_like] * 2),
        (scale(site, -1.5), [lambda x: -1.5 * x] * 2),
        (add(site, vector), [lambda x: x + vector] * 2),
        (clamp(site, -0.1, 0.2), [lambda x: x.clamp(-0.1, 0.2)] * 2),
        (patch(site), [lambda _, t=t: t for t in theirs]),
        (mean(site), [lambda _: (theirs[0] + theirs[1]) / 2] * 2),
        (project(site, vector), [lambda x: x - (x @ flat)[..., None] * flat] * 2),
    ]
    clean = lens.run(prompts).logits
    for edit, news in cases:
        logits = lens.run(prompts, [edit], sources={"clean": others, "pool": others}).logits
        assert (logits - clean).abs().max() > 1e-3, edit
        for row, (ids, new) in enumerate(zip(prompts, news, strict=True)):

            def change(_m, args, _out, new=new):
                heads = TIMES * heads_by_hand(plain, 1, args[0])
                heads[:, :, mine] = new(heads[:, :, mine])
                total = heads.sum(2) / TIMES
                return total if proj.bias is None else total + proj.bias

            handle = proj.register_forward_hook(change)
            try:
                expected = plain.logits(ids)
            finally:
                handle.remove()
            assert_close(logits[row], expected, rtol=2e-5, atol=2e-5, msg=lambda m, e=edit: f"{e}: {m}")


def test_gradients_are_those_of_what_the_stream_gets(lens_of, family, long):
    """Reading an output does not move the metric, and adding v to it moves the metric as adding v to the stream after it."""
    lens, metric = lens_of(family), lambda logits: logits[:, 7] - logits[:, 9]
    found = lens.gradients([long], metric, ["L1.result", "L1.attn_out", "L1.mlp_out", "L1.resid_mid", "L1.resid_post"])
    assert_close(found["L1.attn_out"], found["L1.resid_mid"], rtol=1e-4, atol=1e-6)
    assert_close(found["L1.result"], found["L1.resid_mid"][:, :, None].expand(-1, -1, 4, -1), rtol=1e-4, atol=1e-6)
    assert_close(found["L1.mlp_out"], found["L1.resid_post"], rtol=1e-4, atol=1e-6)
    assert float(found["L1.attn_out"].abs().max()) > 1e-3
    assert_close(found.metric, metric(lens.run([long]).last_logits), rtol=0, atol=1e-5)


def test_the_sweep_equals_whole_passes(family):
    lens = Lens(tiny(family))
    task = toy_task(lens, n=3)
    groups = [
        [verb]
        for layer in range(3)
        for kind in ("attn_out", "mlp_out", "result")
        for verb in (patch(Site(kind, layer)), zero(Site(kind, layer, pos=-1)), scale(Site(kind, layer, 1), 2.5))
    ]
    swept, slow = (lens.effects(task, groups, exhaustive=how).frame for how in (False, True))
    assert abs(swept["after"] - slow["after"]).max() <= 1e-4
    assert (swept["after"] != swept["before"]).mean() > 0.9


def test_one_layer_may_differ_from_the_others(long):
    model = tiny("granite")
    model.hf.model.layers[1].residual_multiplier = -1.7
    lens = Lens(model)
    assert [block.scale for block in lens.layout.blocks] == [TIMES, -1.7, TIMES]
    run = lens.run([long], read=["L1.resid_pre", "L1.attn_out", "L1.resid_mid"])
    assert torch.equal(run["L1.resid_pre"] + run["L1.attn_out"], run["L1.resid_mid"])


def test_half_precision_keeps_its_bits(long):
    """Dividing what was multiplied would not: seen here at the multiplier of the published models."""
    model = tiny("granite")
    for block in model.hf.to(torch.bfloat16).model.layers:
        block.residual_multiplier = 0.22
    seen = []
    handle = model.hf.model.layers[1].self_attn.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    lens = Lens(model)
    run = lens.run([long], read=["L1.resid_pre", "L1.attn_out", "L1.resid_mid"])
    handle.remove()
    assert torch.equal(run["L1.resid_pre"] + run["L1.attn_out"], run["L1.resid_mid"])
    assert not torch.equal(seen[-1] * 0.22 / 0.22 * 0.22, run["L1.attn_out"])
    for edit in (scale("L1.attn_out", 1.0), scale("L1D3.attn_out@4", 1.0)):
        assert torch.equal(lens.run([long], [edit]).logits, run.logits)


@pytest.mark.parametrize(
    ("family", "times", "why"), [("granite", 0.0, "leaves nothing"), ("gemma2", 0.5, "after a norm")]
)
def test_multipliers_that_cannot_be_undone_are_refused(family, times, why):
    model = tiny(family)
    model.hf.model.layers[2].residual_multiplier = times
    with pytest.raises(ModelError, match=why):
        Lens(model)
