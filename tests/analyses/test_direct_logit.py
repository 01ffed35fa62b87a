"""Direct logit attribution: the terms add up to the logit difference, and each is what its definition says."""

import pytest
import torch

from mechlab.analyses.direct_logit import direct_logit
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import FAMILIES, tiny
from mechlab.patching.task import Task
from mechlab.results.metrics import logit_difference


def some_task(lens: Lens) -> Task:
    prompts = lens.tokens([[11, 12, 13, 14, 15], [21, 22, 23], [31, 32, 33, 34]])
    return Task("some", prompts, prompts, torch.tensor([5, 6, 7]), torch.tensor([[8, 9], [9, 10], [11, 12]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_add_up_to_the_logit_difference(family: str) -> None:
    lens = Lens(tiny(family))
    task = some_task(lens)
    split = direct_logit(lens, task)
    assert torch.allclose(split.heads.sum((1, 2)) + split.mlps.sum(1) + split.rest, split.total, atol=1e-4)
    logits = lens.run(task.clean, logits="last").last_logits
    cap = getattr(lens.model.config, "final_logit_softcapping", None)
    before_cap = logits if cap is None else torch.atanh(logits.double() / cap).float() * cap
    assert torch.allclose(split.total, logit_difference(before_cap, task.answers, task.foils), atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3", "phi3", "mixtral", "gemma2", "olmo2"])
def test_heads_match_the_norm_held_at_its_scale(family: str) -> None:
    """By definition: scale one head's part of the final residual by a little, keep the norm's scale, and look at the logit difference."""
    lens = Lens(tiny(family))
    task = some_task(lens)
    split = direct_logit(lens, task)
    layer, n = 1, lens.model.n_layers
    result, out = Site("result", layer, pos=-1), Site("attn_out", layer, pos=-1)
    run = lens.run(task.clean, read=[result, out, Site("resid_post", n - 1, pos=-1)], logits="none")
    norm, x = lens.layout.final_norm, run[Site("resid_post", n - 1, pos=-1)].double()
    # Attention's whole contribution, linearised by the norm's own derivative without the change of its scale.
    weight = lens.layout.unembed.weight.double()
    direction = weight[task.answers] - weight[task.foils].mean(1)
    part = run[out].double()
    if isinstance(norm, torch.nn.LayerNorm):
        scaled = (part - part.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
        expected = (scaled * norm.weight.double() * direction).sum(-1)
    else:
        gain = (norm(x.float()).double() / x) * x.pow(2).mean(-1, keepdim=True).sqrt()
        expected = (part * gain / x.pow(2).mean(-1, keepdim=True).sqrt() * direction).sum(-1)
    bias = getattr(lens.layout.blocks[layer].attn_proj, "bias", None)
    if bias is None:
        assert torch.allclose(split.heads[:, layer].sum(1).double(), expected, atol=1e-3, rtol=1e-3)
    else:  # the bias of the output projection belongs to no head
        assert not torch.allclose(split.heads[:, layer].sum(1).double(), expected, atol=1e-3)
