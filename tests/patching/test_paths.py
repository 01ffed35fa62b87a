"""Path patching against its definition, spelled out with one run at a time; its two extremes have closed forms."""

import pytest
import torch
from toys import toy_task

from mechlab.errors import EditError, SiteError
from mechlab.lens.edit import patch
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import FAMILIES, tiny
from mechlab.patching.paths import path_effects
from mechlab.patching.task import Task
from mechlab.results.metrics import logit_difference


def spelled_out(lens: Lens, task: Task, sender: Site, receivers: list[Site], freeze_mlps: bool) -> torch.Tensor:
    """The definition, run by run: freeze, record, patch in."""
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    layer, n = sender.layer or 0, lens.model.n_layers
    edits = [patch(sender, source="corrupted")]
    edits += [patch(Site("z", above), source="clean") for above in range(layer + 1, n)]
    if freeze_mlps:
        edits += [
            patch(Site("mlp_out", above), source="clean") for above in range(layer + (sender.kind == "mlp_out"), n)
        ]
    first = lens.run(task.clean, edits, [receiver.whole for receiver in receivers], sources=sides, logits="last")
    if not receivers:
        return logit_difference(first.last_logits, task.answers, task.foils)
    above = [
        r
        for r in receivers
        if (r.layer or 0) > layer or (r.kind == "mlp_in" and r.layer == layer and sender.kind == "z")
    ]
    second = lens.run(
        task.clean, [patch(r, source="recorded") for r in above], sources={"recorded": first}, logits="last"
    )
    return logit_difference(second.last_logits, task.answers, task.foils)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_path_patching_is_its_definition(family: str, freeze_mlps: bool) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    senders = [Site("z", 0, 1), Site("z", 1, 2, -1), Site("mlp_out", 0), Site("z", 2, 0)]
    for receivers in (
        [],
        [Site("q", 2, 1, -1), Site("v", 2, 0)],
        [Site("k", 1, 1), Site("mlp_in", 1), Site("resid_pre", 2, pos=-1)],
    ):
        found = path_effects(lens, task, senders, receivers, freeze_mlps=freeze_mlps).frame
        for i, sender in enumerate(senders):
            expected = spelled_out(lens, task, sender, receivers, freeze_mlps)
            got = torch.tensor(found[found.intervention == i]["after"].to_numpy()).float()
            assert torch.allclose(got, expected, atol=1e-4), f"{sender} -> {[str(r) for r in receivers]}"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_everything_frozen_is_the_direct_path(family: str) -> None:
    """I9: final norm and unembedding of (clean final residual - z_clean W_O + z_corrupted W_O)."""
    lens = Lens(tiny(family))
    task = toy_task(lens)
    layer, head, last = 1, 2, lens.model.n_layers - 1
    at, final = Site("z", layer, head, -1), Site("resid_post", last, pos=-1)
    clean, corrupted = (lens.run(side, read=[at, final], logits="none") for side in (task.clean, task.corrupted))
    rows = slice(head * lens.model.d_head, (head + 1) * lens.model.d_head)
    weight = output_weight(lens.layout.blocks[layer].attn_proj)[rows]
    with torch.no_grad():
        logits = lens.layout.unembed(lens.layout.final_norm(clean[final] + (corrupted[at] - clean[at]) @ weight))
    expected = logit_difference(logits, task.answers, task.foils)
    found = path_effects(lens, task, [at], freeze_mlps=True).frame["after"]
    assert torch.allclose(torch.tensor(found.to_numpy()).float(), expected, atol=1e-4)


def test_a_last_layer_head_has_only_its_direct_path() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    senders = [Site("z", 2, head) for head in range(4)]
    paths = path_effects(lens, task, senders).frame["after"]
    whole = lens.effects(task, [patch(sender, source="corrupted") for sender in senders], base="clean").frame["after"]
    assert (paths - whole).abs().max() < 1e-5


def test_many_senders_in_chunks_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechlab.patching import paths

    lens = Lens(tiny("qwen3"))
    task = toy_task(lens)
    senders = [Site("z", layer, head) for layer in range(2) for head in range(4)] + [Site("z", 0, 1)]
    receivers = [Site("q", 2, 0), Site("k", 2, 1)]
    together = path_effects(lens, task, senders, receivers).frame["after"].to_numpy().reshape(9, -1)
    monkeypatch.setattr(paths, "_SENDERS_AT_ONCE", 3)
    apart = path_effects(lens, task, senders, receivers).frame["after"].to_numpy().reshape(9, -1)
    assert abs(together - apart).max() < 1e-5
    assert (together[1] == together[8]).all()


def test_what_cannot_send_or_receive() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    with pytest.raises(EditError, match="No sender"):
        path_effects(lens, task, [])
    with pytest.raises(SiteError, match=r"L1.resid_pre cannot send.*use one of z"):
        path_effects(lens, task, [Site("resid_pre", 1)])
    with pytest.raises(SiteError, match="L1H0 cannot receive"):
        path_effects(lens, task, [Site("z", 0, 0)], [Site("z", 1, 0)])
    with pytest.raises(SiteError, match="head 0 to 3"):
        path_effects(lens, task, [Site("z", 0, 9)])
