"""Runs with weighted edges: short cuts change no number, gradients are those of finite differences, and the model comes out clean.

That the plain run (every sender, from the first position) is right is shown by `test_methods_exact` (every edge, another way of making the
intervention) and `test_evaluate` (a Llama written out edge by edge).
"""

from dataclasses import replace
from functools import cache

import pytest
import torch

from circuits import weighted_pass
from circuits.ablation import ablated
from circuits.prepared import Parts
from circuits.weighted_pass import heard
from circuits.wiring import Wiring
from mechlab.lens.hooks import hook_count, intercepted
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.patching.task import Task

FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "mistral", "phi3", "mixtral", "qwen2_moe", "gpt_oss"]
FAMILIES += ["granite", "granitemoe"]
FIRST = 7


def late(lens: Lens) -> Task:
    """Three pairs of 12, 13 and 14 tokens that differ from 7, 8 and 9 on but for their last token.

    Sliding windows of 6 reach into what comes before, but not to its start.
    """
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randint(5, 60, (12 + i,), generator=generator).tolist() for i in range(3)]
    corrupted = [
        [5 + (one - 5 + int(FIRST + i <= at < 11 + i)) % 55 for at, one in enumerate(ids)]
        for i, ids in enumerate(clean)
    ]
    return Task("late", lens.tokens(clean), lens.tokens(corrupted), torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10]))


@cache
def wired(family: str) -> tuple[Wiring, Task, Parts, Parts]:
    """Wiring, task, and what senders write on its clean and its corrupted prompts."""
    lens = Lens(tiny(family))
    task, wiring = late(lens), Wiring.of(lens)
    return wiring, task, wiring.record(task.clean), wiring.record(task.corrupted)


def drawn(wiring: Wiring, share: float, groups: int = 3, seed: int = 0) -> torch.Tensor:
    """Masks with some edges shut and the others of any weight."""
    generator = torch.Generator().manual_seed(seed)
    shape = (groups, *wiring.graph.shape)
    shut = torch.rand(shape, generator=generator) >= share
    return ((torch.rand(shape, generator=generator) + 0.5) * wiring.graph.real).masked_fill(shut, 0)


def plainly(wiring: Wiring, task: Task, away: Parts, masks: torch.Tensor, **how) -> torch.Tensor:
    """Without short cuts: values of unknown origin are run from the first position, and masks that want gradients through every sender."""
    below = how.pop("below", None)
    if below:
        how["below"] = (below[0], replace(below[1], ids=None))
    return wiring.run(task.clean, replace(away, ids=None), masks.clone().requires_grad_(), **how).detach()


def last(wiring: Wiring, task: Task, side: str) -> torch.Tensor:
    found = wiring.lens.run(getattr(task, side), logits="last").last_logits
    assert found is not None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_short_cuts_change_no_logit(family):
    wiring, task, clean, away = wired(family)
    prepared = wiring.prepare(task.clean, away)
    assert prepared.tokens.lengths == (12 - FIRST, 13 - FIRST, 14 - FIRST) and len(prepared.past) == 3
    sides = last(wiring, task, "corrupted"), last(wiring, task, "clean")
    assert (sides[0] - sides[1]).abs().max() > 0.1
    with torch.no_grad():
        ends = wiring.run(task.clean, away, torch.stack([torch.zeros(wiring.graph.shape), wiring.graph.real.float()]))
    torch.testing.assert_close(ends, torch.stack(sides), atol=1e-4, rtol=0)
    for share in (0.05, 0.2, 0.6):
        masks = drawn(wiring, share)
        for below in (None, (1, clean), (3, clean)):
            with torch.no_grad():
                found = wiring.run(task.clean, away, masks, below=below)
            expected = plainly(wiring, task, away, masks, below=below)
            assert share < 0.6 or (expected - sides[0]).abs().max() > 0.05  # something comes through
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_only_what_is_heard_is_computed(family, monkeypatch):
    """One path: input -> MLP 0 -> queries of head 1.2 -> logits."""
    wiring, task, _, away = wired(family)
    mask = wiring.graph.select(["input->m0", "m0->a1.h2<q>", "a1.h2->logits", "m0->m2", "a0.h1->m1"]).float()[None]
    tokens, mixed = {}, []
    counted = [
        (module, lambda hidden, at=(name, layer): tokens.update({at: hidden.flatten(0, -2).shape[0]}) or hidden)
        for layer, block in enumerate(wiring.lens.layout.blocks)
        for name, module in (("attention", block.attn), ("mlp", block.up))
    ]
    mix = weighted_pass.mix
    monkeypatch.setattr(weighted_pass, "mix", lambda *args: mixed.append(args[1].shape[1:]) or mix(*args))
    prepared = wiring.prepare(task.clean, away)
    with torch.no_grad(), intercepted(inputs=counted):
        found = wiring.run_prepared(prepared, mask)
    tail = 3 * (14 - FIRST)
    assert tokens == {("attention", 0): tail, ("mlp", 0): tail, ("attention", 1): tail, ("mlp", 1): 1}
    # slots x receivers: the input into MLP 0; both into query, key and value of head 1.2; these and the head into the logits
    assert mixed == [(1, 1), (2, 3), (3, 1)]
    torch.testing.assert_close(found, plainly(wiring, task, away, mask), atol=1e-4, rtol=0)


def test_heard_are_those_with_a_path_to_the_logits():
    graph = wired("llama")[
        0
    ].graph  # heads 0 and 1 share the keys and values of KV head 0, heads 2 and 3 those of KV head 1
    edges = [
        "a2.h1->logits",
        "m1->a2.h0<v>",
        "a0.h2->m1",
        "input->a0.h1<k>",
        "a0.h0->m2",
        "m0->a2.h3<q>",
        "a1.h0->a2.h1<q>",
    ]
    names = lambda first: [graph.senders[i] for i in heard(graph, graph.select(edges), first).nonzero().flatten()]  # noqa: E731
    assert names(0) == ["input", "a0.h2", "a1.h0", "m1", "a2.h1"]
    assert names(2) == ["a1.h0", "m1", "a2.h1"]  # what these two read is below and not looked at


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_gradients_are_finite_differences(family, first):
    lens = Lens(tiny(family))
    lens.model.hf.double()
    task, wiring = late(lens), Wiring.of(lens)
    away, clean = wiring.record(task.corrupted), wiring.record(task.clean)
    masks = drawn(wiring, 0.7, groups=2).double().requires_grad_()
    generator = torch.Generator().manual_seed(5)

    def value(masks: torch.Tensor) -> torch.Tensor:
        return wiring.run(task.clean, away, masks, below=(first, clean) if first else None).sin().sum()

    value(masks).backward()
    slope = masks.grad
    assert slope is not None and not slope[:, ~wiring.graph.real].any()
    columns = slice(wiring.graph.into(first).start, None)
    assert not slope[..., : columns.start].any()
    for group in (0, 1):
        way = torch.zeros_like(slope)
        way[group, :, columns] = torch.randn(slope[group, :, columns].shape, generator=generator).double()
        way *= wiring.graph.real
        with torch.no_grad():
            up, down = (value(masks + step * way) for step in (1e-5, -1e-5))
        assert abs(float(up - down)) > 1e-6
        assert float((slope * way).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_groups_prompts_and_tokens_do_not_touch_each_other(family):
    wiring, task, _, away = wired(family)
    masks = drawn(wiring, 0.6)
    ids = torch.tensor([40, 3, 17])
    with torch.no_grad():
        together = wiring.run(task.clean, away, masks)
        assert (together[0] - together[1]).abs().max() > 1e-2
        for group in range(3):
            for row in range(3):
                one = task.select([row])  # alone it starts later than beside prompt 0
                alone = wiring.run(
                    one.clean, away.select([row]).map(lambda x, one=one: x[:, : one.clean.width]), masks[[group]]
                )
                torch.testing.assert_close(alone[0, 0], together[group, row], atol=1e-4, rtol=0)
        some = wiring.run(task.clean, away, masks, token_ids=ids)
    torch.testing.assert_close(some, together[..., ids], atol=1e-5, rtol=0)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean-all"])
def test_only_values_that_one_run_wrote_allow_a_later_start(ablation):
    wiring, task, clean, _ = wired("qwen2")
    away = ablated(wiring, task, ablation)
    late_start = 12 - FIRST if ablation == "corrupted" else 12
    assert wiring.prepare(task.clean, away).tokens.lengths[0] == late_start
    assert wiring.prepare(task.clean, away, clean).tokens.lengths[0] == late_start
    assert wiring.prepare(task.clean, away, replace(clean, ids=None)).tokens.lengths[0] == 12
    masks = drawn(wiring, 0.6)
    with torch.no_grad():
        found = wiring.run(task.clean, away, masks)
    torch.testing.assert_close(found, plainly(wiring, task, away, masks), atol=1e-4, rtol=0)


def test_what_is_known_starts_no_later_than_it_differs():
    """Below layer 2 senders write what they write on prompts that differ from position 3 on."""
    wiring, task, _, away = wired("llama")
    ids = task.clean.ids.clone()
    ids[1, 3] = 50
    other = wiring.record(
        wiring.lens.tokens([one[:n].tolist() for one, n in zip(ids, task.clean.lengths, strict=True)])
    )
    assert wiring.prepare(task.clean, away, other).tokens.lengths[0] == 12 - 3
    masks = drawn(wiring, 0.5)
    with torch.no_grad():
        found = wiring.run(task.clean, away, masks, below=(2, other))
    torch.testing.assert_close(found, plainly(wiring, task, away, masks, below=(2, other)), atol=1e-4, rtol=0)


def test_prompts_that_differ_nowhere():
    wiring, task, clean, _ = wired("gpt_oss")
    assert wiring.prepare(task.clean, clean).tokens.lengths == (
        1,
        2,
        3,
    )  # the shortest prompt's last token is still run
    with torch.no_grad():
        found = wiring.run(task.clean, clean, drawn(wiring, 0.6))
    torch.testing.assert_close(found, last(wiring, task, "clean").expand(3, -1, -1), atol=1e-4, rtol=0)


def test_prepared_prompts_can_be_run_again():
    wiring, task, clean, away = wired("qwen2")
    prepared, masks = wiring.prepare(task.clean, away, clean), drawn(wiring, 0.6)
    with torch.no_grad():
        once, higher, again = (wiring.run_prepared(prepared, masks, first=first) for first in (0, 2, 0))
    assert torch.equal(once, again)
    torch.testing.assert_close(higher, plainly(wiring, task, away, masks, below=(2, clean)), atol=1e-4, rtol=0)


def test_nothing_is_left_on_the_model_after_an_exception():
    wiring, task, clean, away = wired("llama")

    def fails(_hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"with {hook_count(wiring.lens.model.hf)} hooks")

    prepared = wiring.prepare(task.clean, away)

    with (
        pytest.raises(RuntimeError, match=r"with \d\d hooks"),
        intercepted(inputs=[(wiring.lens.layout.blocks[1].attn_proj, fails)]),
    ):
        wiring.run_prepared(prepared, drawn(wiring, 0.6))
    assert hook_count(wiring.lens.model.hf) == 0
    torch.testing.assert_close(wiring.record(task.clean).mlp[2], clean.mlp[2])
