"""Every verb at every kind of site does what a hand-written torch hook does."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mechlab.errors import EditError
from mechlab.lens import Edit
from mechlab.lens.edit import READ_ONLY, add, clamp, mean, patch, pattern, project, resample, route, scale, zero
from mechlab.lens.site import KINDS, Site

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
LAYER, POS, INDEX = 1, -2, 1


def site_of(kind: str, index: int | None = None, pos: int | None = None) -> Site:
    return Site(kind, LAYER if KINDS[kind].per_layer else None, index, pos)


def editable(lens) -> list[str]:
    return [k for k in (*lens.layout.kinds(), *lens.layout.kinds(LAYER)) if k not in ("result", *READ_ONLY)]


def cells(x: Tensor, site: Site):
    """The part of ``x [1, pos, ...]`` that a site names, as an index."""
    at = slice(None) if site.pos is None else slice(x.shape[1] + site.pos, x.shape[1] + site.pos + 1)
    if site.kind in ("scores", "pattern"):  # the reference hands these over as [1, query, head, key] too
        return (slice(None), at) if site.index is None else (slice(None), at, site.index)
    return (slice(None), at) if site.index is None else (slice(None), at, site.index)


def expected(plain, ids, site: Site, new) -> Tensor:
    def change(x: Tensor) -> Tensor:
        x, where = x.clone(), cells(x, site)
        hidden = x.isneginf()
        x[where] = new(x[where])
        return x.masked_fill(hidden, float("-inf"))

    return plain.edited(ids, site.kind, site.layer, change)


def same_at_every_prompt(lens, plain, edit: Edit, prompts, news, **sources) -> None:
    run = lens.run(prompts, edits=[edit], sources=sources)
    clean = lens.run(prompts)
    if edit.verb != "add" or edit.site.kind not in ("k", "scores"):  # one vector for all keys moves all scores alike
        assert (run.logits - clean.logits).abs().max() > 1e-4, f"{edit} changes nothing"
    for row, (ids, new) in enumerate(zip(prompts, news, strict=True)):
        want = expected(plain, ids, edit.site, new)
        assert_close(run.logits[row], want, **CLOSE, msg=lambda m: f"{edit} at prompt {row}: {m}")  # noqa: B023


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("result", *READ_ONLY)])
def test_patch_and_scale_at_every_kind_of_every_family(lens, plain, kind, prompts, others):
    if kind not in editable(lens):
        pytest.skip("not in this family")
    site = site_of(kind)
    theirs = [plain.read(ids, kind, site.layer) for ids in others]
    same_at_every_prompt(lens, plain, patch(site), prompts, [lambda _, t=t: t for t in theirs], clean=others)
    unit = site_of(kind, INDEX, POS)
    if kind == "router":  # one row of two, so that the choice surely changes somewhere
        unit = site_of(kind, INDEX)
    same_at_every_prompt(lens, plain, scale(unit, -1.5), prompts, [lambda x: -1.5 * x] * 2)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "granite", "granitemoe"])
def test_every_verb_at_every_kind(lens, plain, family, prompts, others):
    for kind in editable(lens):
        where = [site_of(kind, pos=POS), site_of(kind, INDEX), site_of(kind)]
        for site in where if family == "llama" else where[:2] if kind == "router" else where[1:2]:
            if kind == "logits" and site.index is not None:
                site = site_of(kind, 7)
            ours = [plain.read(ids, kind, site.layer) for ids in prompts]
            theirs = [plain.read(ids, kind, site.layer) for ids in others]
            for edit, news in verbs(kind, site, ours, theirs):
                same_at_every_prompt(lens, plain, edit, prompts, news, clean=others, pool=others)


def verbs(kind: str, site: Site, ours: list[Tensor], theirs: list[Tensor]):
    """(edit, what it does at each of two prompts) for the verbs that ``kind`` allows, but patch and scale."""
    parts = [t[cells(t, site)] for t in theirs]
    ties = kind == "router" and site.index is None  # equal logits leave the choice of experts open
    if kind not in ("pattern", "router"):
        size = float(ours[0][ours[0].isfinite()].std())
        yield clamp(site, -size / 2, size), [lambda x: x.clamp(-size / 2, size)] * 2
    if kind != "pattern":
        vector = torch.linspace(-1, 1, 1 if site.index is not None and ours[0].ndim == 3 else ours[0].shape[-1])
        value = vector.item() if len(vector) == 1 else vector
        yield add(site, value, strength=0.5), [lambda x: x + 0.5 * (value if isinstance(value, float) else vector)] * 2
    if not ties:
        yield zero(site), [torch.zeros_like] * 2
    average = (parts[0] + parts[1]) / 2
    yield mean(site), [lambda _: average] * 2
    draws = torch.randint(2, (2,), generator=torch.Generator().manual_seed(3)).tolist()
    yield resample(site, seed=3), [lambda _, d=d: parts[d] for d in draws]
    if kind in ("scores", "pattern", "router"):
        return
    everything = torch.cat([t[cells(t, Site(kind, site.layer, site.index))] for t in theirs]).flatten(0, 1)
    if site.pos is None:
        yield mean(site, over="tokens"), [lambda x: everything.mean(0).expand_as(x)] * 2
    if site.index is not None and ours[0].ndim == 3:
        return
    basis = torch.randn(2, ours[0].shape[-1], generator=torch.Generator().manual_seed(0))
    span = basis.T @ torch.linalg.inv(basis @ basis.T) @ basis
    yield project(site, basis), [lambda x: x - x @ span] * 2
    yield project(site, basis, "clean"), [lambda x, p=p: x + (p - x) @ span for p in parts]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_pattern_overwrite(lens, plain, prompts):
    rows = torch.tril(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
    rows = rows / rows.sum(-1, keepdim=True)
    edit = pattern("L1H2.pattern", rows)
    same_at_every_prompt(lens, plain, edit, prompts, [lambda _: rows[None]] * 2)
    first = [1.0, 0, 0]
    same_at_every_prompt(
        lens, plain, pattern("L1H2.pattern@-2", first), prompts, [lambda x: torch.eye(8)[0].expand_as(x)] * 2
    )


def test_result_edits_equal_z_edits(lens, prompts, others):
    by_result = lens.run(prompts, edits=[patch("L1H2.result")], sources={"clean": others})
    by_z = lens.run(prompts, edits=[patch("L1H2.z")], sources={"clean": others})
    assert_close(by_result.logits, by_z.logits, **CLOSE)
    off = lens.run(prompts, edits=[zero("L1H2.result@-2"), scale("L1H0.result", 2.0)], read=["L1.result"])
    same = lens.run(prompts, edits=[zero("L1H2.z@-2"), scale("L1H0.z", 2.0)], read=["L1.result"])
    assert_close(off.logits, same.logits, **CLOSE)
    assert_close(off["L1.result"], same["L1.result"], **CLOSE)


def test_scores_edits_never_open_what_is_masked(lens, plain, long):
    edits = [zero("L0.scores"), clamp("L1.scores", low=-1.0), scale("L2.scores", 0.0), scale("L2.scores", -1.0)]
    run = lens.run([long], edits=edits, read=["L0.pattern", "L1.pattern", "L2.pattern", "L2.scores"])
    for layer in range(3):
        hidden = plain.read(long, "pattern", layer).transpose(1, 2) == 0
        assert run[f"L{layer}.pattern"].isfinite().all()
        assert not run[f"L{layer}.pattern"][hidden].any()
    assert not run["L2.scores"].isnan().any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_pattern_edits_may_not_attend_to_later_tokens(lens, prompts, others):
    later = [0.0] * 7 + [1.0]
    bad = (
        add("L1.pattern", 0.1),
        clamp("L1H1.pattern@2", low=0.1),
        pattern("L1H1.pattern@3", later),
        patch("L1.pattern@2", source_pos=6),
    )
    for edit in bad:
        with pytest.raises(EditError, match="later tokens"):
            lens.run(prompts, edits=[edit], sources={"clean": others})
    with pytest.raises(EditError, match="later tokens"):  # also where the batch is too narrow to show it
        lens.run([prompts[0][:3]], edits=[patch("L1.pattern@2", source_pos=6)], sources={"clean": [others[0]]})


def test_scores_from_a_shorter_source_mask_the_keys_it_lacks(lens_of, prompts, others):
    lens = lens_of("llama")
    edit = patch("L1.scores@-1", source_pos=-1)
    run = lens.run(prompts, edits=[edit], sources={"clean": [others[0][:3]]}, read=["L1.pattern@-1"])
    assert not run["L1.pattern@-1"][..., 3:].any()
    assert_close(run["L1.pattern@-1"].sum(-1), torch.ones(2, 4))


def test_resid_mid_edits_reach_both_branches(lens, prompts):
    if "resid_mid" not in lens.layout.kinds(1):
        pytest.skip("parallel")
    edit = add("L1.resid_mid", torch.linspace(-2, 2, 64))
    run = lens.run(prompts, edits=[edit], read=["L1.resid_mid", "L1.mlp_out", "L1.resid_post", "L1.attn_out"])
    clean = lens.run(prompts, read=["L1.resid_mid", "L1.mlp_out", "L1.attn_out"])
    assert_close(run["L1.resid_mid"], clean["L1.resid_mid"] + torch.linspace(-2, 2, 64), **CLOSE)
    assert (run["L1.mlp_out"] - clean["L1.mlp_out"]).abs().max() > 1e-3
    assert_close(run["L1.resid_post"], run["L1.resid_mid"] + run["L1.mlp_out"], **CLOSE)
    assert_close(run["L1.attn_out"], clean["L1.attn_out"], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_edits_apply_in_order_and_add_up(lens, prompts):
    v = torch.linspace(-1, 1, 64)
    site = "L1.resid_post@-2"
    clean = lens.run(prompts, read=[site])[site]
    one = lens.run(prompts, edits=[scale(site, 3.0), add(site, v)], read=[site])[site]
    two = lens.run(prompts, edits=[add(site, v), scale(site, 3.0)], read=[site])[site]
    assert_close(one, 3 * clean + v, **CLOSE)
    assert_close(two, 3 * (clean + v), **CLOSE)
    same = add("L2.resid_mid@1", v)
    twice = lens.run(prompts, edits=[same, same]).logits
    assert_close(twice, lens.run(prompts, edits=[add("L2.resid_mid@1", v, strength=2.0)]).logits, **CLOSE)
    apart = lens.run(prompts, edits=[zero("L1.mlp_in"), add("L1.resid_mid", v)], read=["L1.mlp_in", "L1.resid_mid"])
    assert not apart["L1.mlp_in"].any(), "mlp_in comes after resid_mid, whatever the order of the edits"
    assert_close(apart["L1.resid_mid"], lens.run(prompts, read=["L1.resid_mid"])["L1.resid_mid"] + v, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss"])
@pytest.mark.parametrize("kind", ["k", "v"])
def test_a_kv_head_reaches_exactly_its_group(lens, kind, prompts, others):
    run = lens.run(prompts, edits=[patch(f"L1KV1.{kind}")], sources={"clean": others}, read=["L1.z"])
    moved = (run["L1.z"] - lens.run(prompts, read=["L1.z"])["L1.z"]).abs().amax(dim=(0, 1, 3))
    assert not moved[:2].any()
    assert (moved[2:] > 1e-3).all()


def test_an_index_touches_its_unit_alone(lens, prompts):
    for kind in ("q", "k", "v", "z", "result", "mlp_pre", "mlp_post", "router", "resid_post"):
        if kind not in lens.layout.kinds(1):
            continue
        site = f"L1.{kind}"
        run = lens.run(prompts, edits=[add(Site(kind, 1, 1, 3), 5.0)], read=[site])
        difference = run[site] - lens.run(prompts, read=[site])[site]
        assert_close(difference[:, 3, 1], torch.full_like(difference[:, 3, 1], 5.0), **CLOSE)
        difference[:, 3, 1] = 0
        assert difference.abs().max() < 1e-5 if kind == "result" else not difference.any(), kind


def test_route_needs_a_router_of_its_own(lens_of, prompts):
    with pytest.raises(EditError, match="needs one expert"):
        lens_of("mixtral").run(prompts, edits=[route("L1.router", "off")])
