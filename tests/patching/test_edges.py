"""Edge patching against plain torch hooks on one projection at a time, and against its closed forms."""

import pytest
import torch
from plain_edges import patched
from toys import toy_task

from mechlab.errors import SiteError, UnknownName
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens
from mechlab.lens.readers import readers
from mechlab.lens.site import Site
from mechlab.models import tiny
from mechlab.patching.edge_sets import edge_set_effects
from mechlab.patching.edges import attention_change, edge_effects, nodes
from mechlab.patching.paths import path_effects
from mechlab.results.metrics import logit_difference


def carried(lens, task, sender):
    """Corrupted minus clean contribution of a sender, from z and the projection's weights."""
    kind, layer, head = sender
    if kind == "input":
        runs = [lens.run(side, read=["L0.resid_pre"])["L0.resid_pre"] for side in (task.clean, task.corrupted)]
    elif kind == "mlp":
        runs = [
            lens.run(side, read=[Site("mlp_out", layer)])[Site("mlp_out", layer)]
            for side in (task.clean, task.corrupted)
        ]
    else:
        at = Site("z", layer, head)
        rows = slice(head * lens.model.d_head, (head + 1) * lens.model.d_head)
        weight = output_weight(lens.layout.blocks[layer].attn_proj)[rows]
        weight = weight * getattr(lens.model.config, "residual_multiplier", 1.0)
        runs = [lens.run(side, read=[at])[at] @ weight for side in (task.clean, task.corrupted)]
    return runs[1] - runs[0]


def by_plain_hooks(lens, task, sender, layer, projection, rows):
    """Llama: one projection's rows computed from the norm of (residual + what the sender carries); everything else as it was."""
    block = lens.model.hf.model.layers[layer]
    delta = carried(lens, task, sender)
    mlp = projection is None
    norm = block.post_attention_layernorm if mlp else block.input_layernorm
    seen = {}
    first = norm.register_forward_pre_hook(lambda _m, args: seen.__setitem__("x", args[0].detach()))

    def replace(module, _args, output):
        inside = norm.forward(seen["x"] + delta)
        if mlp:
            return module.forward(inside)
        new = output.clone()
        new[..., rows] = module.forward(inside)[..., rows]
        return new

    target = block.mlp if mlp else getattr(block.self_attn, projection)
    second = target.register_forward_hook(replace)
    try:
        with torch.no_grad():
            logits = lens.model.hf(input_ids=task.clean.ids, use_cache=False).logits
    finally:
        first.remove()
        second.remove()
    ends = torch.tensor(task.clean.lengths) - 1
    return logit_difference(logits[torch.arange(len(task)), ends], task.answers, task.foils)


EDGES = [
    ("input->a0.h1<q>", ("input", 0, 0), 0, "q_proj", 1),
    ("input->m1", ("input", 0, 0), 1, None, 0),
    ("a0.h3->a2.h0<k>", ("head", 0, 3), 2, "k_proj", 0),
    ("a1.h2->m1", ("head", 1, 2), 1, None, 0),
    ("m0->a1.h1<v>", ("mlp", 0, 0), 1, "v_proj", 1),
    ("m1->a2.h3<q>", ("mlp", 1, 0), 2, "q_proj", 3),
]


def test_edges_are_what_plain_hooks_give() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    names = {name for name, *_ in EDGES}
    found = edge_effects(lens, task, edges=names.__contains__)
    assert set(found["edge"]) == names
    for name, sender, layer, projection, head in EDGES:
        rows = slice(head * lens.model.d_head, (head + 1) * lens.model.d_head)
        expected = by_plain_hooks(lens, task, sender, layer, projection, rows)
        got = torch.tensor(found[found.edge == name]["after"].to_numpy()).float()
        assert torch.allclose(got, expected, atol=1e-4), f"{name}: {(got - expected).abs().max()}"
        assert (got - torch.tensor(found[found.edge == name]["before"].to_numpy()).float()).abs().max() > 1e-4, name


POST_NORM = ("gemma2", "gemma3", "olmo2")


@pytest.mark.parametrize(
    ("family", "base"),
    [
        ("gemma2", "clean"),
        ("gemma3", "clean"),
        ("olmo2", "corrupted"),
        ("granite", "clean"),
        ("granite", "corrupted"),
        ("granitemoe", "clean"),
    ],
)
def test_every_edge_is_what_one_plain_pass_with_it_gives(family: str, base: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens, n=3)
    found = edge_effects(lens, task, base=base)
    moved = 0
    for name, rows in found.groupby("edge"):
        expected = logit_difference(patched(family, lens, task, [name], base), task.answers, task.foils)
        got = torch.tensor(rows["after"].to_numpy()).float()
        assert torch.allclose(got, expected, atol=1e-4, rtol=0), f"{name}: {(got - expected).abs().max()}"
        moved += bool((got - torch.tensor(rows["before"].to_numpy()).float()).abs().max() > 1e-3)
    assert moved > 0.9 * found["edge"].nunique()


@pytest.mark.parametrize("family", [*POST_NORM, "granite", "granitemoe"])
def test_an_edge_is_a_direct_path_with_all_else_frozen(family: str) -> None:
    """Path patching makes the same intervention in another way: the sender's z in a whole pass, later heads and MLPs held."""
    lens = Lens(tiny(family))
    task = toy_task(lens, n=3)
    found = edge_effects(lens, task).set_index("edge")["after"]
    senders, receivers = nodes(lens)
    for receiver in receivers:
        reaching = [s for s in senders if s.depth < receiver.depth and s.kind != "input"]
        if not reaching:
            continue
        sites = [Site("z" if s.kind == "head" else "mlp_out", s.layer, s.head) for s in reaching]
        into = [Site("mlp_in", receiver.site.layer)] if receiver.site.kind == "mlp_out" else [receiver.site]
        into = [] if receiver.node == "logits" else into
        paths = path_effects(lens, task, sites, into, freeze_mlps=True).frame
        for i, sender in enumerate(reaching):
            expected = paths[paths.intervention == i]["after"].to_numpy()
            name = receiver.edge(sender)
            assert abs(found[name].to_numpy() - expected).max() <= 1e-4, name


@pytest.mark.parametrize("family", ["llama", "granite", *POST_NORM])
def test_what_attention_adds_with_heads_replaced(family: str) -> None:
    """All heads: the other side's own. No head's share is lost to the norm: with one it is not the sum of the heads one by one."""
    lens = Lens(tiny(family))
    task = toy_task(lens)
    z, added = Site("z", 1), Site("attn_out", 1)
    here, there = (lens.run(side, read=[z, added]) for side in (task.clean, task.corrupted))
    change = lambda heads: attention_change(lens, 1, here[z], there[z], heads)  # noqa: E731
    real = task.clean.mask
    torch.testing.assert_close(change([0, 1, 2, 3])[real], (there[added] - here[added])[real], atol=1e-5, rtol=0)
    assert not change([])[real].any()
    apart = (change([1, 3]) - change([1]) - change([3]))[real].abs().max()
    assert apart > 1e-2 if family in POST_NORM else apart < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "qwen3", "mixtral", "gpt_oss", "granite"])
def test_edges_to_the_logits_are_direct_effects(family: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    found = edge_effects(lens, task, edges=lambda name: name.endswith("->logits"))
    last = lens.model.n_layers - 1
    final = lens.run(task.clean, read=[Site("resid_post", last, pos=-1)])[Site("resid_post", last, pos=-1)]
    ends = torch.tensor(task.clean.lengths) - 1
    for name, sender in (("a1.h2", ("head", 1, 2)), ("m2", ("mlp", 2, 0)), ("input", ("input", 0, 0))):
        delta = carried(lens, task, sender)[torch.arange(len(task)), ends]
        with torch.no_grad():
            logits = lens.layout.unembed(lens.layout.final_norm(final + delta))
        expected = logit_difference(logits, task.answers, task.foils)
        got = torch.tensor(found[found.edge == f"{name}->logits"]["after"].to_numpy()).float()
        assert torch.allclose(got, expected, atol=1e-4), name


@pytest.mark.parametrize(("family", "parallel"), [("llama", False), ("gpt_neox", True), ("olmo2", False)])
def test_every_edge_once_and_in_order(family: str, parallel: bool) -> None:
    lens = Lens(tiny(family))
    found = edge_effects(lens, toy_task(lens, n=2))
    n_layers, heads, kv = 3, lens.model.n_heads, lens.model.n_kv_heads
    # senders before a layer: the input and every earlier head and MLP; in sequential blocks the layer's own heads reach its MLP
    before = [1 + layer * (heads + 1) for layer in range(n_layers)]
    expected = sum(b * (heads + 2 * kv) + b + (0 if parallel else heads) for b in before) + 1 + n_layers * (heads + 1)
    assert found["edge"].nunique() == expected
    assert len(found) == 2 * expected
    assert not found["after"].isna().any()
    assert ("a1.h0->m1" in set(found["edge"])) != parallel
    assert "a2.h0->a1.h0<q>" not in set(found["edge"])


def test_edges_of_a_sender_that_does_not_differ_change_nothing() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    same = type(task)("same", task.clean, task.clean, task.answers, task.foils)
    found = edge_effects(lens, same, edges=lambda name: name.startswith("m0->"))
    assert (found["after"] == found["before"]).all()


def test_a_block_that_does_not_add_what_its_parts_write_is_refused() -> None:
    model = tiny("granitemoe")
    lens = Lens(model)
    model.hf.model.layers[1].register_forward_hook(lambda _module, _args, stream: stream * 1.01)
    task = toy_task(lens, n=2)
    for call in (
        edge_effects,
        lambda lens, task: edge_set_effects(lens, task, [[]]),
        lambda lens, _task: readers(lens),
    ):
        with pytest.raises(SiteError, match="Layer 1 of tiny-granitemoe adds something else"):
            call(lens, task)


def test_progress_and_errors() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    seen: list[tuple[int, int]] = []
    edge_effects(
        lens, task, edges=lambda name: name == "m0->m2", progress=lambda _l, done, total: seen.append((done, total))
    )
    assert seen == [(i + 1, 4) for i in range(4)]
    with pytest.raises(UnknownName, match="Unknown edge"):
        edge_effects(lens, task, edges=lambda name: name == "m2->m0")
    senders, receivers = nodes(lens)
    assert len(senders) == 1 + 3 * 5
    assert len(receivers) == 3 * (4 + 2 * 2 + 1) + 1
