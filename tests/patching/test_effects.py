"""Effects against one full forward pass per intervention, on every family; the planted circuit is named exactly."""

from math import prod

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toys import toy_task

from mechlab.errors import EditError, ModelError, PromptError, SiteError, UnknownName
from mechlab.lens import edit
from mechlab.lens.edit import Edit, patch
from mechlab.lens.hooks import hook_count
from mechlab.lens.lens import Lens
from mechlab.lens.products import available
from mechlab.lens.site import Site
from mechlab.models import FAMILIES, PLANTED_INDUCTION, PLANTED_PREVIOUS_TOKEN, planted_induction, tiny
from mechlab.patching import effects as engine
from mechlab.patching import plan as planning
from mechlab.patching import prepared
from mechlab.patching.rows import Row, rows
from mechlab.patching.task import Task
from mechlab.results.metrics import metric


def interventions(lens: Lens) -> list[list[Edit]]:
    """Every verb, several kinds and layers, single and joint, early and late positions."""
    kinds = lens.layout.kinds(1)
    groups = [
        [patch("L0.resid_pre@1")],
        [patch("L1.resid_pre@LATE")],
        [patch("L2.resid_post")],
        [patch("L2H3@-1")],
        [patch("L1H1")],
        [patch("L1KV0.k")],
        [patch("L2.pattern")],
        [patch("L1.attn_out@LATE"), patch("L2H0")],
        [edit.zero("L1H2"), edit.zero("L0H0")],
        [edit.mean("L1.mlp_out@LATE", "clean")],
        [edit.resample("L1H1@-1", "clean", seed=3)],
        [edit.scale("L2.mlp_out", 0.5)],
        [edit.add("L1.resid_post@-1", torch.linspace(-1, 1, lens.model.d_model))],
        [edit.clamp("L1.resid_post", -0.5, 0.5)],
        [edit.project("L1.resid_post", torch.eye(2, lens.model.d_model))],
        [edit.project("L1.resid_post@LATE", torch.eye(2, lens.model.d_model), "clean")],
        [patch("embed@LATE")],
        [edit.scale("embed@-1", 0.5), patch("L0.resid_pre@-1")],
        [edit.zero("embed")],
        [edit.clamp("embed@1", -0.1, 0.1), edit.zero("L2H1")],
        [edit.mean("embed@LATE", "clean")],
        [patch("final_norm@-1")],
        [edit.scale("logits", 2.0)],
    ]
    if "mlp_post" in kinds:
        groups.append([patch("L1N5"), patch("L2N2")])
    if "router" in kinds:
        groups += [[edit.route("L1E1", "off")], [edit.route("L0E2", "on")], [edit.route("L2E0", "drop")]]
    return groups


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base", ["clean", "corrupted"])
def test_effects_equal_one_forward_pass_per_intervention(
    family: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_one_by_one", lambda *_: pytest.fail("not swept"))
    lens = Lens(tiny(family))
    task = toy_task(lens)
    groups = interventions(lens)
    found = lens.effects(task, groups, base=base)  # pyright: ignore[reportArgumentType]
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    measure = metric("logit_difference")
    for i, group in enumerate(groups):
        run = lens.run(sides[base], group, sources=sides, logits="last")
        expected = measure(run.last_logits, task.answers, task.foils)
        got = torch.tensor(found.frame[found.frame.intervention == i]["after"].to_numpy())
        assert torch.allclose(got.float(), expected, atol=1e-4), f"{group[0]}: {(got - expected).abs().max()}"
    for side in ("clean", "corrupted"):
        plain = measure(lens.run(sides[side], logits="last").last_logits, task.answers, task.foils)
        assert torch.allclose(
            torch.tensor(found.frame[found.frame.intervention == 0][side].to_numpy()).float(), plain, atol=1e-5
        )


def test_embeddings_that_are_normed_first_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    groups = [[edit.scale("embed@LATE", 3.0)], [patch("L1H1")]]
    assert prepared.enters(lens, [tuple(group) for group in groups])
    norm = torch.nn.LayerNorm(lens.model.d_model)  # where BLOOM has one
    handle = lens.layout.blocks[0].block.register_forward_pre_hook(lambda _module, args: (norm(args[0]), *args[1:]))
    try:
        assert not prepared.enters(lens, [tuple(group) for group in groups])
        assert prepared.enters(lens, [(patch("L1H1"),)])
        found, slow = (lens.effects(task, groups, exhaustive=how).frame["after"] for how in (False, True))
        assert (found - slow).abs().max() < 1e-5
        monkeypatch.setattr(engine, "enters", lambda *_: True)
        assert (lens.effects(task, groups).frame["after"] - slow).abs().max() > 1e-3  # it would have been wrong
    finally:
        handle.remove()


@pytest.mark.parametrize("metric_key", ["probability", "kl", "accuracy", "log_probability"])
def test_other_metrics(metric_key: str) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    edits = [patch("L1.resid_pre@LATE"), patch("L0.resid_pre@0")]
    found = lens.effects(task, edits, metric_key)
    base = lens.run(task.corrupted, logits="last").last_logits
    run = lens.run(task.corrupted, [edits[0]], sources={"clean": task.clean}, logits="last").last_logits
    expected = metric(metric_key)(run, task.answers, task.foils, base)
    assert torch.allclose(
        torch.tensor(found.frame["after"].to_numpy()[: len(task)]).float(), expected.float(), atol=1e-5
    )
    unchanged = found.frame[found.frame.intervention == 1]  # position 0 is before the pair differs
    pd.testing.assert_series_equal(unchanged["after"], unchanged["before"], check_names=False)


def test_nothing_patched_is_corrupted_and_everything_patched_is_clean() -> None:
    lens = Lens(tiny("gemma3"))
    task = toy_task(lens)
    frame = lens.effects(task, [patch("L1.resid_post"), patch("L1.resid_post", source="corrupted")]).frame
    everything, nothing = frame[frame.intervention == 0], frame[frame.intervention == 1]
    assert (everything["after"] - everything["clean"]).abs().max() < 1e-5
    assert (nothing["after"] - nothing["corrupted"]).abs().max() == 0


def test_cells_left_out_as_unchanged_really_are() -> None:
    lens = Lens(tiny("mistral"))
    task = toy_task(lens)
    edits = [patch(Site("resid_pre", layer, pos=pos)) for layer in range(3) for pos in range(9)]
    plan = rows([(e,) for e in edits], task, "corrupted", 3)
    assert len(edits) * len(task) - len(plan) == 3 * sum(task.first_difference())
    short = lens.effects(task, edits).frame["after"]
    full = lens.effects(task, edits, exhaustive=True).frame["after"]
    assert (short - full).abs().max() < 1e-5


def test_equal_interventions_are_computed_once_and_reported_each() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    groups = [(patch("L1H1"),), (patch("L2H0"),), (patch("L1H1"),)]
    assert len(rows(groups, task, "corrupted", 3)) == 2 * len(task)
    after = lens.effects(task, groups).frame["after"].to_numpy().reshape(3, -1)
    assert (after[0] == after[2]).all()
    assert (after[0] != after[1]).any()


def test_each_interventions_own_order_counts() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    a, b, c = (
        edit.scale("L1.resid_post@-1", 2.0),
        edit.clamp("L1.resid_post@-1", -0.3, 0.3),
        edit.zero("L1D4.resid_post"),
    )
    groups = [(a, b), (b, a), (c, a, b), (b, c, a)]
    swept, slow = (lens.effects(task, groups, exhaustive=how).frame["after"] for how in (False, True))
    assert (swept - slow).abs().max() < 1e-5
    after = slow.to_numpy().reshape(4, -1)
    assert abs(after[0] - after[1]).max() > 1e-3


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "gemma2"])
def test_results_do_not_depend_on_what_is_swept_together(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    edits = [patch(Site("z", layer, head)) for layer in range(3) for head in range(4)]
    together = lens.effects(task, edits).frame["after"]
    monkeypatch.setattr(prepared, "tokens_per_wave", lambda _lens: 3)
    apart = lens.effects(task, edits).frame["after"]
    assert (together - apart).abs().max() < 1e-5
    order = torch.randperm(len(edits), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = lens.effects(task, [edits[i] for i in order]).frame["after"].to_numpy().reshape(len(edits), -1)
    assert abs(shuffled - together.to_numpy().reshape(len(edits), -1)[order]).max() < 1e-5


def test_planted_induction_heads_are_named_exactly() -> None:
    lens = Lens(planted_induction())
    generator = torch.Generator().manual_seed(0)
    clean, corrupted, answers, foils = [], [], [], []
    for _ in range(12):
        a, b, c, *rest = torch.randperm(20, generator=generator)[:8].add(4).tolist()
        # clean: ... a b ... a -> b; corrupted: ... a c ... a -> c
        clean.append([rest[0], a, b, *rest[1:], a])
        corrupted.append([rest[0], a, c, *rest[1:], a])
        answers.append(b)
        foils.append(c)
    task = Task("induction", lens.tokens(clean), lens.tokens(corrupted), torch.tensor(answers), torch.tensor(foils))
    heads = [(layer, head) for layer in range(2) for head in range(3)]
    # Denoising one head of a chain restores nothing alone where the other reads the patched token itself: noising finds both.
    ablated = lens.effects(
        task, [edit.mean(Site("z", *at), "clean", over="tokens") for at in heads], base="clean"
    ).points()
    found = {at for at, change in zip(heads, ablated["change"], strict=True) if abs(change) > 1e-3}
    assert found == {PLANTED_PREVIOUS_TOKEN, PLANTED_INDUCTION}
    patched = lens.effects(task, [patch(Site("z", *at)) for at in heads]).points()
    restored = {at: value for at, value in zip(heads, patched["recovered"], strict=True)}
    assert restored[PLANTED_INDUCTION] == pytest.approx(1, abs=1e-3)
    assert all(
        abs(value) < 1e-3 for at, value in restored.items() if at not in (PLANTED_INDUCTION, PLANTED_PREVIOUS_TOKEN)
    )


def test_transformer_lens_head_patching_agrees() -> None:
    from transformer_lens import patching as reference

    lens = Lens(tiny("llama"))
    task = toy_task(lens, n=1)
    bridge = lens.bridge()
    _, cache = bridge.run_with_cache(task.clean.ids)
    measure = metric("logit_difference")
    theirs = reference.get_act_patch_attn_head_out_all_pos(
        bridge, task.corrupted.ids, cache, lambda logits: measure(logits[:, -1], task.answers, task.foils)[0]
    )
    edits = [patch(Site("z", layer, head)) for layer in range(3) for head in range(4)]
    ours = torch.tensor(lens.effects(task, edits).frame["after"].to_numpy()).reshape(3, 4)
    assert torch.allclose(ours.float(), theirs, atol=1e-5)


def test_out_of_memory_halves_the_wave_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    edits = [patch(Site("z", layer, head)) for layer in range(3) for head in range(4)]
    expected = lens.effects(task, edits).frame["after"]
    real, sizes = prepared.sweep, []

    def small_device(lens_: Lens, wave: list[Row], *rest: object) -> torch.Tensor:
        if len(wave) > 7:
            raise torch.OutOfMemoryError
        sizes.append(len(wave))
        return real(lens_, wave, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(prepared, "sweep", small_device)
    assert (lens.effects(task, edits).frame["after"] - expected).abs().max() < 1e-5
    assert max(sizes) <= 7
    assert sum(sizes) == len(edits) * len(task)
    monkeypatch.setattr(prepared, "sweep", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(ModelError, match="does not fit in this device's memory"):
        lens.effects(task, edits)


def test_short_memory_splits_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    edits = [patch(Site("z", layer, head)) for layer in range(3) for head in range(4)]
    whole = lens.effects(task, edits)
    per_prompt = task.clean.width * planning._kept_floats(lens, [(e,) for e in edits], [0, 1, 2]) * 4
    monkeypatch.setattr(planning, "_free", lambda _lens: int(2.5 * per_prompt / planning._SHARE_OF_FREE))
    assert planning.prompts_at_once(lens, task, [(e,) for e in edits], [0, 1, 2]) == 2
    split = lens.effects(task, edits)
    assert (whole.frame[["intervention", "prompt"]] == split.frame[["intervention", "prompt"]]).all().all()
    assert (whole.frame["after"] - split.frame["after"]).abs().max() < 1e-5
    means = [(edit.mean("L1H1", "clean"),)]  # needs all prompts at once, so it is never split
    assert planning.prompts_at_once(lens, task, means, [1]) == len(task)


def test_ctrl_c_keeps_what_was_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    edits = [
        patch(Site("z", layer, head)) for layer in (2, 1, 0) for head in range(4)
    ]  # the sweep's order is the other way
    edits.append(patch("L0H0"))
    expected = lens.effects(task, edits).frame
    monkeypatch.setattr(prepared, "tokens_per_wave", lambda _lens: 40)

    def stop(_label: str, done: int, _total: int) -> None:
        if done > 25:
            raise KeyboardInterrupt

    with pytest.raises(engine.Interrupted) as caught:
        lens.effects(task, edits, progress=stop)
    kept = caught.value.completed
    assert kept is not None
    assert 0 < len(kept) < len(edits)
    for number in kept.frame["intervention"].unique():
        ours, theirs = (f[f.intervention == number]["after"].to_numpy() for f in (kept.frame, expected))
        assert abs(ours - theirs).max() < 1e-5


def test_plan_counts_what_the_sweep_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    edits = [patch(Site("resid_pre", layer, pos=p)) for layer in range(3) for p in range(9)]
    plan = lens.plan(task, edits)
    seen: list[tuple[int, int]] = []
    real = prepared.sweep

    def counted(lens_: Lens, wave: list[Row], *rest: object) -> torch.Tensor:
        seen.extend((row.stop - row.start, 3 - row.entry) for row in wave)
        return real(lens_, wave, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(prepared, "sweep", counted)
    lens.effects(task, edits)
    assert plan.rows == len(seen)
    assert plan.token_layers == sum(n * (layers - 1) + 1 for n, layers in seen)
    # by hand: weights of q, k, v, o and the gated MLP, two operations each, per token and layer; in the last only q, k, v, but for the end
    model = lens.model
    d, h, kv, dh = model.d_model, model.n_heads, model.n_kv_heads, model.d_head
    qkv, rest = d * dh * (h + 2 * kv), d * dh * h + 3 * d * (lens.layout.d_mlp or 0)
    swept = sum(n * ((qkv + rest) * (layers - 1) + qkv) + qkv + rest for n, layers in seen)
    sides = 2 * len(task) * max(task.clean.lengths)
    unembed = 2 * 2 * len(task) * d * model.vocab_size
    assert plan.flops == 2 * (swept + 3 * sides * (qkv + rest)) + unembed
    assert f"{plan.rows:,} rows" in str(plan)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_plan_counts_the_products_that_torch_counts(family: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    edits = [patch(Site("z", layer, head, at)) for layer in range(3) for head in range(4) for at in (None, 1, "LATE")]
    plan = lens.plan(task, edits)
    by_onednn = lambda x, weight, *_rest, **_shape: 2 * prod(x) * weight[0]  # noqa: E731
    onednn = {torch.ops.mkldnn._linear_pointwise: by_onednn} if available() else {}
    with FlopCounterMode(display=False, custom_mapping=onednn) as counter:
        lens.effects(task, edits)
    products = counter.get_flop_counts()["Global"]
    counted = sum(n for kind, n in products.items() if kind in (torch.ops.aten.mm, torch.ops.aten.addmm, *onednn))
    assert plan.flops == pytest.approx(counted, rel=0.01)  # the rows' answer tokens are not planned


def test_plan_estimates_time_from_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    plan = lens.plan(toy_task(lens), [patch("L1H1")])
    assert plan.gflops_per_second == planning.matmul_speed(lens) > 0  # measured once: the same number again
    monkeypatch.setattr(planning, "matmul_speed", lambda _lens: 2e-3)
    plan = lens.plan(toy_task(lens), [patch("L1H1")])
    assert plan.seconds == plan.flops / 2e6
    assert f"at least {plan.seconds:.2g} s at 0 GFLOP/s" in str(plan)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    plain = lens.run(task.clean, logits="last").last_logits
    assert plain is not None
    edits = [patch("L1.resid_pre@LATE"), patch("L2H0"), patch("L1.pattern")]
    lens.effects(task, edits)
    wrong_size = edit.add("L1.resid_post@-1", [1.0, 2.0, 3.0])
    with pytest.raises(EditError, match="does not fit"):
        lens.effects(task, [*edits, wrong_size])
    assert hook_count(lens.model.hf) == 0
    assert torch.equal(plain, lens.run(task.clean, logits="last").last_logits)  # pyright: ignore


def test_table_names_what_was_done() -> None:
    lens = Lens(tiny("llama"))
    frame = lens.effects(toy_task(lens), [patch("L2H3@LATE"), patch("L1N5"), [patch("L0H0"), edit.zero("L1H1")]]).frame
    rows = frame.drop_duplicates("intervention").set_index("intervention")
    assert rows.loc[0, ["site", "kind", "layer", "head", "pos", "verb"]].tolist() == [
        "L2H3@LATE",
        "z",
        2,
        3,
        "LATE",
        "patch",
    ]
    assert rows.loc[1, "unit"] == 5
    assert rows.loc[2, "site"] == "L0H0 + L1H1"
    assert rows.loc[2, "verb"] == "patch + zero"
    assert pd.isna(rows.loc[2, "layer"])


def test_progress_reaches_its_total() -> None:
    lens = Lens(tiny("gpt2"))
    seen: list[tuple[int, int]] = []
    task = toy_task(lens)
    lens.effects(
        task, [patch("L0.resid_pre@0"), patch("L2H1")], progress=lambda _label, done, total: seen.append((done, total))
    )
    assert seen[-1] == (len(task), len(task))  # the first intervention changes nothing and is not run


def test_bad_input_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    monkeypatch.setattr(lens, "run", lambda *_a, **_k: pytest.fail("ran"))
    with pytest.raises(EditError, match="No intervention"):
        lens.effects(task, [])
    with pytest.raises(UnknownName, match="metric 'logit_diff'"):
        lens.effects(task, [patch("L0H0")], "logit_diff")
    with pytest.raises(SiteError, match="layers 0 to 2"):
        lens.effects(task, [patch("L7H0")])
    with pytest.raises(EditError, match=r"'pool'.*sources 'clean' and 'corrupted'"):
        lens.effects(task, [edit.mean("L1H0")])
    with pytest.raises(PromptError, match="unknown: these prompts have LATE"):
        lens.effects(task, [patch("L1H0@S2")])


def test_tasks_refuse_what_cannot_be_compared() -> None:
    lens = Lens(tiny("llama"))
    three, four = lens.tokens([[7, 8, 9]]), lens.tokens([[7, 8, 9, 10]])
    one, two = torch.tensor([5]), torch.tensor([6])
    with pytest.raises(PromptError, match="3 clean and 4 corrupted tokens"):
        Task("t", three, four, one, two)
    with pytest.raises(PromptError, match="same token as answer and foil"):
        Task("t", three, three, one, one)
    with pytest.raises(PromptError, match="1 clean and 1 corrupted prompts, 2 answers"):
        Task("t", three, three, torch.tensor([5, 6]), two)


def test_shuffled_answers_are_always_another_pairs() -> None:
    lens = Lens(tiny("llama"))
    toy = toy_task(lens, n=5)
    task = Task("toy", toy.clean, toy.corrupted, torch.arange(10, 15), torch.arange(20, 25))
    for seed in range(20):
        shuffled = task.shuffled_answers(seed)
        assert (shuffled.answers != task.answers).all()
        assert sorted(shuffled.answers.tolist()) == sorted(task.answers.tolist())
        pairs = set(zip(task.answers.tolist(), task.foils.tolist(), strict=True))
        assert set(zip(shuffled.answers.tolist(), shuffled.foils.tolist(), strict=True)) == pairs
    with pytest.raises(PromptError, match="at least two"):
        task.select([0]).shuffled_answers()
