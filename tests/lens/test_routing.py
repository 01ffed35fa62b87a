"""Experts switched in every family: against the router's definition written out token by token, idle to the bit, under every kernel."""

import copy
import importlib
import inspect
import re
from itertools import product

import pytest
import torch
from torch.testing import assert_close
from toys import toy_task

from mechlab.errors import EditError, SiteError
from mechlab.lens import Lens
from mechlab.lens.edit import Edit, add, route, scale, zero
from mechlab.lens.experts import shared_output
from mechlab.lens.routing import COPIES, KNOWN_ROUTERS, Rule, Switches, choose, rule_of
from mechlab.models import Model, tiny
from mechlab.models.tiny_models import EXPERT_FAMILIES

EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TOTAL = {"mixtral": 1.0, "gpt_oss": 1.0, "qwen3_moe": 1.0, "granitemoe": 1.0, "deepseek_v3": 2.5}
"""What the weights sum to, where that is configured."""


@pytest.fixture(params=EXPERT_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def routing_of(lens: Lens, prompts, *edits: Edit):
    run = lens.run(prompts, edits, read=["L1.expert_weights", "L1.router", "L1.mlp_out"])
    return run["L1.expert_weights"], run["L1.router"], run["L1.mlp_out"]


# The definitions, one token at a time: (scores, the order in which experts are preferred).
def scores_of(router, logits: torch.Tensor) -> torch.Tensor:
    if "Deepseek" in type(router).__name__ and "V3" in type(router).__name__:
        return 1 / (1 + (-logits).exp())
    return logits.exp() / logits.exp().sum()


def preferred(router, family: str, scores: list[float], off: set[int], on: set[int]) -> list[int]:
    value = {e: s for e, s in enumerate(scores) if e not in off}
    if family == "deepseek_v3":
        value = {e: s + float(router.e_score_correction_bias[e]) for e, s in value.items()}
    if family.startswith("deepseek"):
        size = router.num_experts // router.num_group
        by_group: dict[int, list[float]] = {}
        for e, v in value.items():
            by_group.setdefault(e // size, []).append(v)
        n = 2 if family == "deepseek_v3" else 1
        totals = {g: sum(sorted(vs)[-n:]) if len(vs) >= n else float("-inf") for g, vs in by_group.items()}
        best = sorted(totals, key=lambda g: -totals[g])[: router.topk_group]
        value = {e: v for e, v in value.items() if e // size in best}
    value |= dict.fromkeys(on, float("inf"))
    return sorted(value, key=lambda e: -value[e])[: router.top_k]


def expected(router, family: str, logits: torch.Tensor, edits: list[Edit]) -> dict[int, float]:
    """Expert -> weight of one token, by the family's definition and the edits' docstrings."""
    by = {state: {e.site.index for e in edits if e.state == state} for state in ("off", "drop", "on")}
    stated = {e.site.index: e.weight for e in edits if e.weight is not None}
    rescales = all(e.renormalise for e in edits)
    logits = logits.double()
    left = logits.clone()
    left[list(by["off"])] = float("-inf")
    before = preferred(router, family, scores_of(router, logits).tolist(), set(), set())
    chosen = preferred(router, family, scores_of(router, left).tolist(), by["off"], by["on"])
    scores = scores_of(router, left if rescales else logits)
    among = chosen if rescales else before
    normal = family in TOTAL
    divisor = float(scores[among].sum()) if normal else 1.0
    factor = float(getattr(router, "routed_scaling_factor", 1.0)) if family.startswith("deepseek") else 1.0
    weights = {e: float(scores[e]) / divisor * factor for e in chosen}
    total = sum(weights.values())
    if stated:
        others = sum(w for e, w in weights.items() if e not in stated)
        share = (total - sum(stated.values())) / others if rescales else 1.0
        weights = {e: stated.get(e, w * share) for e, w in weights.items()}
        total = sum(weights.values())
    if by["drop"]:
        weights = {e: w for e, w in weights.items() if e not in by["drop"]}
        if rescales and weights:
            weights = {e: w * total / sum(weights.values()) for e, w in weights.items()}
    return weights


CASES = {
    "off": [route("L1E1", "off")],
    "off, kept": [route("L1E1", "off", renormalise=False)],
    "two off": [route("L1E1", "off"), route("L1E2", "off")],
    "drop": [route("L1E1", "drop")],
    "drop, kept": [route("L1E1", "drop", renormalise=False)],
    "on": [route("L1E1", "on")],
    "on, kept": [route("L1E1", "on", renormalise=False)],
    "on, stated": [route("L1E1", "on", weight=0.125)],
    "on, stated, kept": [route("L1E1", "on", weight=0.75, renormalise=False)],
    "on beside off and drop": [route("L1E1", "on"), route("L1E0", "off"), route("L1E3", "drop")],
}


@pytest.mark.parametrize("case", CASES)
def test_switches_follow_the_definition_token_by_token(lens_of, family, case, long, short):
    lens, edits = lens_of(family), CASES[case]
    router = lens.layout.blocks[1].router
    assert router is not None
    weights, logits, _ = routing_of(lens, [short, long[:8]], *edits)
    for row, at in product(range(2), range(8)):
        want = expected(router, family, logits[row, at], edits)
        dense = torch.zeros_like(weights[row, at])
        for expert, weight in want.items():
            dense[expert] = weight
        assert_close(weights[row, at], dense, rtol=1e-4, atol=1e-6, msg=lambda m, w=(row, at): f"{w}: {m}")


def test_i8_an_expert_that_is_off_is_never_chosen_and_weights_sum_to_the_configured_total(lens_of, family, long):
    lens = lens_of(family)
    chosen = lens.run([long], read=["L1.expert_choice"])["L1.expert_choice"]
    for expert in chosen.unique().tolist():
        run = lens.run([long], [route(f"L1E{expert}", "off")], read=["L1.expert_choice", "L1.expert_weights"])
        assert (run["L1.expert_choice"] != expert).all()
        assert run["L1.expert_choice"].shape == chosen.shape
        if family in TOTAL:
            sums = run["L1.expert_weights"].sum(-1)
            assert_close(sums, torch.full_like(sums, TOTAL[family]), **CLOSE)


def test_i8_all_dropped_leaves_the_shared_experts_or_zero(lens_of, family, long):
    lens = lens_of(family)
    block, n = lens.layout.blocks[1], lens.layout.n_experts or 0
    run = lens.run([long], [route(f"L1E{e}", "drop") for e in range(n)], read=["L1.mlp_in", "L1.mlp_out"])
    shared = shared_output(block.mlp, run["L1.mlp_in"])
    assert_close(run["L1.mlp_out"], shared, **CLOSE)
    assert bool(shared.any()) == (family in ("qwen2_moe", "deepseek_v2", "deepseek_v3"))


def test_nothing_switched_is_the_model_to_the_bit(lens_of, family, long, short):
    """Read, edited by nothing, and chosen again by mechlab's rule: no bit of the logits moves."""
    lens = lens_of(family)
    plain = copy.deepcopy(lens.model.hf)
    plain.set_attn_implementation("eager")
    layers = [layer for layer in range(3) if lens.layout.blocks[layer].router is not None]
    assert layers == ([1, 2] if family.startswith("deepseek") else [0, 1, 2])
    kinds = ("router", "expert_weights", "expert_choice", "expert_out")
    read = [f"L{layer}.{kind}" for layer in layers for kind in kinds]
    for prompts in ([long], [short, long[:8]]):
        expect = plain(torch.tensor(prompts)).logits
        patterns = [f"L{layer}.pattern" for layer in range(3)]
        idle = [scale(f"L{layer}.router", 1.0) for layer in layers] + [add(f"L{layer}.router", 0.0) for layer in layers]
        assert_close(lens.run(prompts, read=[*patterns, *read]).logits, expect, **EXACT)
        assert_close(lens.run(prompts, idle, patterns).logits, expect, **EXACT)


def test_the_choice_made_again_has_the_routers_bits(lens_of, family):
    router = lens_of(family).layout.blocks[1].router
    hidden = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) * 3
    logits, weights, indices = router(hidden)
    again, idle = choose(router, logits), choose(router, logits, Switches.none(200, logits.shape[1]))
    for found in (again, idle):
        assert_close(found.indices, indices, **EXACT)
        assert_close(found.weights.to(weights.dtype), weights, **EXACT)


def test_in_bfloat16_too(lens_of, family, long):
    hf = copy.deepcopy(lens_of(family).model.hf).bfloat16()
    half = Lens(Model("half", "tiny", hf, lens_of(family).model.tokenizer))
    clean = half.run([long]).logits
    assert_close(half.run([long], [scale("L1.router", 1.0)]).logits, clean, **EXACT)
    assert not torch.equal(half.run([long], [route("L1E1", "drop"), route("L2E1", "off")]).logits, clean)


def by_slices(experts, family: str, hidden: torch.Tensor, expert: int) -> torch.Tensor:
    """One expert's output from its slices of the fused weights, written out."""
    if family == "gpt_oss":
        both = hidden @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[:, 0::2].clamp(max=experts.limit), both[:, 1::2].clamp(-experts.limit, experts.limit)
        inner = (up + 1) * gate * torch.sigmoid(experts.alpha * gate)
        return inner @ experts.down_proj[expert] + experts.down_proj_bias[expert]
    half = experts.gate_up_proj.shape[1] // 2
    gate, up = experts.gate_up_proj[expert][:half], experts.gate_up_proj[expert][half:]
    return (torch.nn.functional.silu(hidden @ gate.T) * (hidden @ up.T)) @ experts.down_proj[expert].T


def test_the_parts_of_experts_and_of_what_is_shared_sum_to_the_output(lens_of, family, long, short):
    lens, edits = lens_of(family), [route("L1E2", "on"), route("L1E0", "off")]
    block = lens.layout.blocks[1]
    read = ["L1.mlp_in", "L1.expert_weights", "L1.expert_out", "L1.mlp_out"]
    run = lens.run([long, short], edits, read)
    for row, n in enumerate((19, 8)):
        hidden, parts = run["L1.mlp_in"][row, :n], run["L1.expert_out"][row, :n]
        total = parts.sum(1) + shared_output(block.mlp, hidden)
        assert_close(total, run["L1.mlp_out"][row, :n], **CLOSE)
        for expert in range(lens.layout.n_experts or 0):
            weight = run["L1.expert_weights"][row, :n, expert, None]
            alone = weight * by_slices(block.experts, family, hidden, expert)
            assert_close(parts[:, expert], alone * getattr(lens.model.config, "residual_multiplier", 1.0), **CLOSE)
        assert not run["L1.expert_out"][row, n:].any()
    at = lens.run([long, short], edits, ["L1E2.expert_out@-1"])["L1E2.expert_out@-1"]
    assert_close(at, torch.stack([run["L1.expert_out"][0, 18, 2], run["L1.expert_out"][1, 7, 2]]), **EXACT)


def test_grouped_kernel_and_eager_loop_agree(family, long):
    """The same switches under transformers' kernels for fused experts."""
    lens, runs = Lens(tiny(family)), []
    edits = [route("L1E1", "off"), route("L2E0", "drop"), route("L1E2", "on", weight=0.2), route("L2E3", "on")]
    for kernel in ("eager", "grouped_mm", "batched_mm"):
        lens.model.hf.set_experts_implementation(kernel)
        runs.append(lens.run([long], edits, ["L2.expert_out"]))
        assert_close(lens.run([long]).logits, Lens(tiny(family)).run([long]).logits, **CLOSE)
    for run in runs[1:]:
        assert_close(run.logits, runs[0].logits, **CLOSE)
        assert_close(run["L2.expert_out"], runs[0]["L2.expert_out"], **CLOSE)


def test_switches_hold_while_text_is_generated(lens_of, family, long):
    lens = lens_of(family)
    for edits in (
        [route("L1E1", "off"), route("L2E0", "drop")],
        [route("L1E2", "on", weight=0.3), route("L2E1", "on")],
    ):
        ids = long[:5]
        for made in lens.generate([long[:5]], 4, edits, stop_at_eos=False)[0].ids:
            logits = lens.run([ids], edits, logits="last").last_logits
            assert logits is not None and int(logits.argmax()) == made
            ids = [*ids, made]
    late = lens.generate([long[:5]], 4, [route("L1E1", "off", phase="generated")], stop_at_eos=False)[0]
    plain = lens.run([long[:5]], logits="last").last_logits
    assert plain is not None and late.ids[0] == int(plain.argmax())


def test_a_switch_on_one_row_leaves_the_other_rows_of_the_batch(lens_of, family, long, short):
    """Routers see batch and positions in one axis; a tool that forgets it edits its neighbours (nnsight 0.8, pull request 722)."""
    lens = lens_of(family)
    ids = [short, long[:8], long[4:12]]
    tokens = lens.tokens(ids).labelled(HERE=[2, 5, 7])
    clean = lens.run(tokens, read=["L1.expert_weights", "L1.mlp_out"])
    run = lens.run(tokens, [route("L1E1@HERE", "drop")], ["L1.expert_weights", "L1.mlp_out"])
    touched = torch.zeros(3, 8, dtype=torch.bool)
    touched[range(3), [2, 5, 7]] = True
    for site in ("L1.expert_weights", "L1.mlp_out"):
        assert_close(run[site][~touched], clean[site][~touched], **EXACT)
    assert not run["L1.expert_weights"][touched][:, 1].any()


def test_rows_with_different_switches_share_a_sweep_and_no_numbers(lens_of, family):
    """In the packed sweep the rows of one pass have different edits: an idle one keeps the base run's numbers."""
    lens = lens_of(family)
    task = toy_task(lens, n=3)
    groups = [[scale("L1.router", 1.0)], [route("L1E1", "drop")], [route("L1E1", "off")], [route("L1E2", "on")]]
    frame = lens.effects(task, groups, base="clean").frame
    idle = frame[frame.intervention == 0]
    assert_close(torch.tensor(idle["after"].to_numpy()), torch.tensor(idle["clean"].to_numpy()), rtol=0, atol=1e-5)
    for group in (1, 2, 3):
        moved = frame[frame.intervention == group]
        assert (moved["after"] - moved["clean"]).abs().max() > 1e-4


def test_the_packed_sweep_equals_one_run_per_switch(lens_of, family):
    """With labels, positions, options and several switches in one intervention."""
    lens = lens_of(family)
    task = toy_task(lens, n=2)
    groups = [
        *(edits for edits in CASES.values()),
        *([route(f"L{layer}E{e}", state)] for layer in (1, 2) for e in range(4) for state in ("off", "drop", "on")),
        [route("L1E0@3", "on", weight=0.5, renormalise=False), route("L2E1@-1", "drop")],
        [route("L1E1", "off"), zero("L2.attn_out@4")],
        [add("L1.router@2", 0.5), route("L1E3@2", "on")],
    ]
    swept, slow = (lens.effects(task, groups, exhaustive=how).frame["after"].to_numpy() for how in (False, True))
    assert abs(swept - slow).max() <= 1e-4


def test_what_cannot_be_is_refused(lens_of, family, long):
    lens = lens_of(family)
    n, k = lens.layout.n_experts or 0, lens.run([long], read=["L1.expert_choice"])["L1.expert_choice"].shape[-1]
    with pytest.raises(EditError, match=f"chooses {k} of {n} experts: leave at least {k} available"):
        lens.run([long], [route(f"L1E{e}", "off") for e in range(n - k + 1)])
    with pytest.raises(EditError, match="force at most"):
        lens.run([long], [route(f"L1E{e}", "on") for e in range(k + 1)])
    with pytest.raises(EditError, match="Expert 1 is forced on and switched off at the same token"):
        lens.run([long], [route("L1E1", "on"), route("L1E1", "drop")])
    with pytest.raises(EditError, match=r"Stated weights sum to 7.*renormalise=False"):
        lens.run([long], [route("L1E1", "on", weight=7.0)])
    with pytest.raises(EditError, match="with and without renormalise"):
        lens.run([long], [route("L1E1", "off"), route("L1E2", "drop", renormalise=False)])
    with pytest.raises(SiteError, match=f"this model has expert 0 to {n - 1}"):
        lens.run([long], [route(f"L1E{n}", "off")])
    with pytest.raises(SiteError, match="this model has layers 0 to 2"):
        lens.run([long], [route("L3E0", "off")])
    assert (
        lens.run([long], [route(f"L1E{e}", "on") for e in range(k)], ["L1.expert_choice"])["L1.expert_choice"].max() < k
    )


def test_groups_left_with_too_few_experts_are_refused(lens_of, long):
    """DeepSeek-V3 here: 2 groups of 4, experts of the best one only; 3 of each off leave 1 where 2 are chosen."""
    with pytest.raises(EditError, match="from 1 of 2 groups"):
        lens_of("deepseek_v3").run([long], [route(f"L1E{e}", "off") for e in (0, 1, 2, 4, 5, 6)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: route("L1E1", "off", weight=0.5), "a weight of 0 or more belongs to an expert forced on"),
        (lambda: route("L1E1", "on", weight=-1.0), "has the weight -1.0"),
        (lambda: route("L1E1", "on", weight=float("nan")), "has the weight nan"),
        (lambda: Edit("zero", route("L1E1", "on").site, renormalise=False), "takes no renormalise"),
        (lambda: Edit("zero", route("L1E1", "on").site, weight=0.5), "takes no weight"),
        (lambda: zero("L1.expert_out"), "can be read but not edited"),
        (lambda: scale("L1.expert_choice", 2.0), "can be read but not edited"),
    ],
)
def test_edits_that_make_no_sense(make, message):
    with pytest.raises(EditError, match=re.escape(message)):
        make()


def test_switches_are_data():
    edit = route("L1E1@-1", "on", weight=0.25, renormalise=False)
    assert Edit.from_dict(edit.to_dict()) == edit
    assert str(edit) == "route L1E1@-1 (state=on, weight=0.25, renormalise=False)"
    assert set(route("L1E1", "off").to_dict()) == {"verb", "site", "state"}


def test_a_dense_model_has_no_experts_to_switch(lens_of, long):
    with pytest.raises(SiteError, match="is absent in this model: layer 1 has"):
        lens_of("llama").run([long], [route("L1E0", "off")])
    with pytest.raises(SiteError, match="has no units"):
        lens_of("mixtral").run([long], read=["L1H0.expert_choice"])


def test_an_unknown_router_is_refused_by_name(long):
    model = tiny("mixtral")

    class NovelTopKRouter(type(model.hf.model.layers[1].mlp.gate)):
        pass

    model.hf.model.layers[1].mlp.gate.__class__ = NovelTopKRouter
    lens = Lens(model)
    assert lens.run([long], read=["L1.expert_weights"])["L1.expert_weights"].any()  # reading needs no rule
    for edits in ([route("L1E1", "off")], [scale("L1.router", 0.5)]):
        with pytest.raises(EditError, match="How NovelTopKRouter chooses its experts is not known here"):
            lens.run([long], edits)
    assert lens.run([long], [route("L2E1", "off")]).logits is not None


_MODULES = {
    "MiniMax": "minimax",
    "Qwen2Moe": "qwen2_moe",
    "Qwen3Moe": "qwen3_moe",
    "Qwen3Next": "qwen3_next",
    "FlexOlmo": "flex_olmo",
    "GraniteMoeShared": "granitemoeshared",
    "GraniteMoeHybrid": "granitemoehybrid",
    "Glm4Moe": "glm4_moe",
    "Glm4MoeLite": "glm4_moe_lite",
    "Dots1": "dots1",
    "Mixtral": "mixtral",
    "Olmoe": "olmoe",
    "GptOss": "gpt_oss",
    "GraniteMoe": "granitemoe",
    "DeepseekV3": "deepseek_v3",
    "DeepseekV2": "deepseek_v2",
}


@pytest.mark.parametrize("names", COPIES, ids=lambda names: names[0])
def test_routers_taken_for_copies_have_the_same_code(names):
    """A new version of transformers that changes one of them is seen here."""
    sources = set()
    for name in names:
        file = _MODULES[re.sub(r"Top[Kk]Router$", "", name)]
        module = importlib.import_module(f"transformers.models.{file}.modeling_{file}")
        text = inspect.getsource(getattr(module, name).forward)
        sources.add(re.sub(r"\s+", " ", re.sub(r"-> [^:]*:", ":", re.sub(r"#.*", "", text))))
    assert len(sources) == 1
    assert set(names) <= set(KNOWN_ROUTERS)


def test_rules_by_hand(lens_of):
    def rule(family: str) -> Rule:
        router = lens_of(family).layout.blocks[1].router
        assert router is not None
        return rule_of(router)

    assert rule("mixtral") == Rule(2, normalised=True)
    assert rule("olmoe") == rule("qwen2_moe") == Rule(2)
    assert rule("gpt_oss") == rule("granitemoe") == Rule(2, "chosen")
    assert (rule("deepseek_v2").groups, rule("deepseek_v2").top_groups, rule("deepseek_v2").scale) == (4, 2, 1.5)
    three = rule("deepseek_v3")
    assert (three.scores, three.groups, three.top_groups, three.group_by) == ("sigmoid", 2, 1, "two largest")
