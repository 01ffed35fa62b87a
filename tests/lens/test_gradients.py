"""Gradients are slopes: what an edit does, when it is small. Each prompt's gradient is its own."""

import pytest
import torch
from torch.testing import assert_close

from mechlab.errors import SiteError
from mechlab.lens.edit import READ_ONLY, add, scale, zero
from mechlab.lens.layout import output_weight
from mechlab.lens.site import Site

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FAMILIES = ("llama", "gpt_neox", "gemma2", "granite", "mixtral", "gpt_oss")


def metric(logits):
    return (logits[:, 5] - logits[:, 9]) / 4 + logits[:, 20:40].logsumexp(-1)


def sites(lens) -> list[Site]:
    inner = [Site(kind, 1) for kind in lens.layout.kinds(1) if kind not in READ_ONLY]
    return [Site("embed"), *inner, Site("final_norm"), Site("logits")]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_slopes_of_small_edits(lens, short):
    """Central differences through ``run``, at several units of each kind; in float32, so within a few per cent."""
    prompt = [short]
    found = lens.gradients(prompt, metric, sites(lens))
    generator = torch.Generator().manual_seed(0)
    for site, gradient in found.gradients.items():
        last_axis = gradient.shape[-1]
        direction = torch.randn(last_axis, generator=generator)
        direction[len(short) :] = 0 if site.kind in ("scores", "pattern") else direction[len(short) :]
        pos = 5 if site.kind not in ("final_norm", "logits") else -1
        part = Site(site.kind, site.layer, None, pos)
        if site.kind in ("scores", "pattern"):
            direction[6:] = 0  # keys after the query
            slope = float((gradient[0, :, 5] * direction).nan_to_num().sum())
        else:
            slope = float((gradient[0, pos] * direction).sum())
        size = 4e-3 if site.kind == "embed" else 1e-2
        values = [
            metric(lens.run(prompt, [add(part, direction, strength=s)]).last_logits)
            for s in (size, -size, size / 2, -size / 2)
        ]
        coarse, fine = (values[0] - values[1]) / (2 * size), (values[2] - values[3]) / size
        measured = float((4 * fine - coarse) / 3)
        assert measured == pytest.approx(slope, rel=0.02, abs=3e-3), site


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_a_run(lens, long, short):
    prompts = [short, long, long[2:5]]
    expected = metric(lens.run(prompts).last_logits)
    assert_close(lens.gradients(prompts, metric, sites(lens)).metric, expected, **CLOSE)
    edits = [add("L0.resid_post", torch.linspace(-1, 1, 64)), zero("L1H2.z"), scale("L1.result", 2.0)]
    edited = metric(lens.run(prompts, edits).last_logits)
    assert_close(lens.gradients(prompts, metric, sites(lens), edits).metric, edited, **CLOSE)
    assert not torch.allclose(expected, edited)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_prompts_gradient_is_its_own(lens, long, short):
    prompts = [short, long, long[2:5]]
    at = sites(lens)
    together = lens.gradients(prompts, metric, at)
    for row, ids in enumerate(prompts):
        alone = lens.gradients([ids], metric, at)
        for site, gradient in together.gradients.items():
            mine = (
                gradient[row, :, : len(ids), : len(ids)]
                if site.kind in ("scores", "pattern")
                else gradient[row, : len(ids)]
            )
            assert_close(mine, alone[site][0], rtol=1e-4, atol=2e-5, msg=lambda m, s=site: f"{s}: {m}")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "mixtral", "gpt_oss"])
def test_gradients_of_parts_follow_from_those_of_wholes(lens, short):
    g = lens.gradients([short], metric, ["L1.attn_out", "L1.result", "L1.z", "L1.resid_post", "L1.mlp_out"])
    head_by_head = g["L1.attn_out"][:, :, None].expand(-1, -1, 4, -1)  # no post-norm: each head is added as it is
    assert_close(g["L1.result"], head_by_head, **CLOSE)
    weight = output_weight(lens.layout.blocks[1].attn_proj).unflatten(0, (4, -1))
    assert_close(g["L1.z"], torch.einsum("bphm,hdm->bphd", g["L1.result"], weight), **CLOSE)
    assert_close(g["L1.mlp_out"], g["L1.resid_post"], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_for_one_site_does_not_change_another(lens, short):
    at = sites(lens)
    together = lens.gradients([short], metric, at)
    for site in at:
        assert_close(lens.gradients([short], metric, [site])[site], together[site], rtol=1e-4, atol=2e-5)


def test_parts_of_a_site(lens_of, short):
    lens = lens_of("llama")
    g = lens.gradients([short], metric, ["L1.z", "L1H2.z", "L1H2.z@-1", "L1.pattern", "L1H2.pattern@3"])
    assert_close(g["L1H2.z"], g["L1.z"][:, :, 2])
    assert_close(g["L1H2.z@-1"], g["L1.z"][:, -1, 2])
    assert_close(g["L1H2.pattern@3"], g["L1.pattern"][:, 2, 3])


def test_gradients_with_edits_are_taken_after_them(lens_of, short):
    lens = lens_of("llama")
    edits = [scale("L1.resid_post", 0.5)]
    g = lens.gradients([short], metric, ["L1.resid_pre", "L1.resid_post", "L2.resid_pre"], edits)
    assert_close(g["L1.resid_post"], g["L2.resid_pre"], **CLOSE)
    off = lens.gradients(
        [short], metric, ["L1.resid_pre", "L0.resid_post"], [zero("L2.resid_pre@-1"), zero("L2.attn_out@-1")]
    )
    assert not off["L1.resid_pre"].any()


def test_a_site_without_influence_is_refused(lens_of, short):
    with pytest.raises(SiteError, match="has no influence on the metric"):
        lens_of("mixtral").gradients([short], metric, ["L1.expert_weights"])
