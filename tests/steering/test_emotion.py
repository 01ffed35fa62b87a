"""Emotion circuits: the data, directions and contributions with planted truth, allocation by hand, edits of the last token."""

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mechlab.errors import EditError, MechlabError, ModelError, PromptError, SiteError
from mechlab.lens.edit import add, scale, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.steer import Steer
from mechlab.lens.tokens import Tokens
from mechlab.models import tiny
from mechlab.models.model import Model
from steering.emotion.allocation import HEAD_FLOOR, HEAD_SHARE, NEURON_FLOOR, NEURON_SHARE, allocate, budget
from steering.emotion.circuit import (
    at_other_layers,
    budgets,
    counts,
    modulation,
    only,
    plain_steering,
    random_values,
)
from steering.emotion.contributions import (
    check_sums,
    contributions,
    mean_overlap,
    of_heads,
    of_kind,
    of_neurons,
    overlap,
    random_parts,
    scaled,
    strongest,
)
from steering.emotion.directions import (
    AFTER_ATTENTION,
    AFTER_MLP,
    HEADS,
    NEURONS,
    centred,
    check,
    differences,
    directions,
    recognised,
    specificity,
    spread,
)
from steering.emotion.influence import influence, reference, sizes
from steering.emotion.last_token import LastTokenLens
from steering.emotion.plan import plan
from steering.emotion.prompts import EMOTIONS, examples, instruction, neutral, text
from steering.emotion.scenarios import VALENCES, forbidden_words, items, lexicon
from steering.emotion.words import mass, share_of_words
from steering.examples import Examples, read

UNEQUAL = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18, 19], [20, 21]]


# --- data


def test_the_set_is_as_large_as_its_rule_says_and_complete() -> None:
    everything = items()
    themes = {item.theme for item in everything}
    assert len(themes) == 8 and len(everything) == 240
    for theme in themes:
        of_theme = [item for item in everything if item.theme == theme]
        assert len({item.scenario for item in of_theme}) == 10
        assert all({i.valence for i in of_theme if i.number == n} == set(VALENCES) for n in range(1, 11))
    assert len({item.text for item in everything}) == len({item.group for item in everything}) == 240


def test_no_scenario_is_in_both_parts() -> None:
    fit, held = items("fit"), items("held-out")
    assert (len(fit), len(held)) == (8 * 6 * 3, 8 * 4 * 3)
    assert not {item.scenario for item in fit} & {item.scenario for item in held}
    assert {item.part for item in fit} == {"fit"} and {item.part for item in held} == {"held-out"}


def test_no_scenario_names_an_emotion() -> None:
    never = forbidden_words()
    assert {"angry", "joy", "feel"} <= never
    for item in items():
        assert not set(re.findall(r"[a-z]+", item.text.lower())) & never, item.text


def test_lexicons_are_apart_and_leave_out_no_emotion() -> None:
    words = lexicon()
    assert set(words) == set(EMOTIONS)
    assert sum(map(len, words.values())) == len(set().union(*words.values()))
    assert all(instruction(e, "adjective").split()[2].strip(".") in words[e] for e in EMOTIONS)


def test_per_theme_takes_the_first_scenarios_and_refuses_too_many() -> None:
    few = items("held-out", 1)
    assert len(few) == 24 and {item.number for item in few} == {7}
    with pytest.raises(MechlabError, match="Themes have 4 scenarios in part held-out, not 5: ask for 1 to 4"):
        items("held-out", 5)


def test_prompts_differ_by_the_instruction_alone(lens: Lens) -> None:
    item = items("fit", 1)[0]
    asked, plain = (text(lens.model, item, emotion).splitlines() for emotion in ("fear", None))
    assert asked[1:] == plain[1:] == [item.text, "I feel"] and asked[0] != plain[0]
    made = examples(lens, items("fit", 1)[:2], "noun")
    assert made.classes == EMOTIONS * 2 and len(made.complete_groups()) == 2
    assert len(neutral(lens, items("fit", 1)[:2])) == 2


# --- allocation


def test_allocation_by_hand() -> None:
    # Floors of 1 leave 7: 7 * (5, 3, 2) / 10 = 3.5, 2.1, 1.4; floors 3, 2, 1; the missing one goes to .5.
    assert allocate([5, 3, 2], 10, floor=1) == [5, 3, 2]
    assert allocate([5, 3, 2], 7) == [4, 2, 1]
    # Cap 4 cuts 8 * .9 = 7.2 down; what is left goes round by influence.
    assert allocate([9, 1, 0], 8, cap=4) == [4, 3, 1]
    assert allocate([-3, 0, 2], 6, floor=1) == [1, 1, 4]
    assert allocate([0.0, -1.0, 0.0], 7, floor=1) == [3, 2, 2]


@pytest.mark.parametrize("seed", range(40))
def test_allocation_sums_to_k_within_floors_and_caps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 30, (1,), generator=generator))
    floor, room = (int(torch.randint(0, 5, (1,), generator=generator)) for _ in range(2))
    cap = floor + room + 1
    k = int(torch.randint(n * floor, n * cap + 1, (1,), generator=generator))
    weights = (torch.randn(n, generator=generator) ** 5).tolist()
    given = allocate(weights, k, floor=floor, cap=cap)
    assert sum(given) == k and all(floor <= one <= cap for one in given)
    order = sorted(range(n), key=lambda i: weights[i])
    assert all(given[a] <= given[b] for a, b in pairwise(order) if weights[b] > max(weights[a], 0))


def test_impossible_allocations_are_refused() -> None:
    for k, floor, cap in ((3, 1, 9), (20, 0, 4), (8, 3, 2)):
        with pytest.raises(MechlabError, match="units do not fit 4 sublayers"):
            allocate([1, 2, 3, 4], k, floor=floor, cap=cap)
    with pytest.raises(MechlabError, match="finite number"):
        allocate([1, float("nan")], 3)


def test_the_papers_budget_is_its_own() -> None:
    neurons, heads = budget(28, 8192, NEURON_SHARE, NEURON_FLOOR), budget(28, 24, HEAD_SHARE, HEAD_FLOOR)
    assert (neurons.k, neurons.floor, neurons.cap) == (392, 4, 156)
    assert (heads.k, heads.floor, heads.cap) == (168, 2, 24)  # no layer gives more than it has


# --- directions


def _grouped(n_groups: int, d: int = 20) -> tuple[Tensor, Examples, dict[str, Tensor]]:
    """Activations that are a group's own large vector, the emotion's planted one and a little noise; rows in another order than groups."""
    generator = torch.Generator().manual_seed(1)
    planted = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q[: len(EMOTIONS)]
    group = 30 * torch.randn(n_groups, 1, d, generator=generator)
    x = (group + planted + 0.1 * torch.randn(n_groups, len(EMOTIONS), d, generator=generator)).flatten(0, 1)
    classes = EMOTIONS * n_groups
    groups = tuple(str(i // len(EMOTIONS)) for i in range(len(x)))
    order = torch.randperm(len(x), generator=generator)
    picked = [int(i) for i in order]
    made = Examples(
        "planted", _dummy(len(x)), tuple(classes[i] for i in picked), EMOTIONS[0], tuple(groups[i] for i in picked)
    )
    return x[order], made, dict(zip(EMOTIONS, planted - planted.mean(0), strict=True))


def _dummy(n: int) -> Tokens:
    return Tokens(torch.zeros(n, 1, dtype=torch.long), (1,) * n, ((),) * n)


def test_planted_directions_are_recovered_through_large_group_offsets() -> None:
    x, made, planted = _grouped(12)
    by = directions(differences({Site(AFTER_MLP, 1): x}, made))[Site(AFTER_MLP, 1)]
    for emotion in EMOTIONS:
        assert float(by[emotion] @ torch.nn.functional.normalize(planted[emotion], dim=0)) > 0.95
        assert float(by[emotion].norm()) == pytest.approx(1, abs=1e-6)


def test_i11_a_vector_added_to_a_whole_group_changes_nothing() -> None:
    x, made, _ = _grouped(5)
    at = Site(AFTER_ATTENTION, 0)
    assert made.groups is not None
    offset = 50 * torch.randn(5, x.shape[1], generator=torch.Generator().manual_seed(2))
    moved = x + offset[[int(group) for group in made.groups]]
    before, after = (directions(differences({at: one}, made))[at] for one in (x, moved))
    for emotion in EMOTIONS:
        torch.testing.assert_close(after[emotion], before[emotion], atol=1e-4, rtol=0)
    plain = [one[[c == "fear" for c in made.classes]].mean(0) for one in (x, moved)]
    assert float((plain[0] - plain[1]).norm()) > 1  # a plain mean does change


def test_specificity_and_recognition_by_hand() -> None:
    eye = torch.eye(len(EMOTIONS))
    by = dict(zip(EMOTIONS, eye - eye.mean(0), strict=True))
    by = {e: row / row.norm() for e, row in by.items()}
    x = torch.cat([eye, 3 * eye + 7])  # two groups; the second is longer and offset
    # Own cosine 1; the cosine of two centred corners of a simplex of six is -1/5.
    torch.testing.assert_close(specificity(x, by), torch.full((2,), 1.2))
    torch.testing.assert_close(recognised(x, by), torch.eye(len(EMOTIONS), dtype=torch.float64))
    torch.testing.assert_close(spread(x), torch.full((6,), 2 * (5 / 6) ** 0.5))
    assert centred(x).shape == (2, 6, 6)
    # Of the two that are swapped, own is -.2 and the others (1 - 4 * .2) / 5: -.24 each.
    swapped = dict(zip(EMOTIONS, by.values(), strict=True)) | {"anger": by["fear"], "fear": by["anger"]}
    assert float(recognised(x, swapped)[0, 3]) == 1 and float(specificity(x, swapped)[0]) == pytest.approx(0.72)


# --- contributions


@pytest.fixture(scope="module")
def run_on() -> dict[str, Lens]:
    return {family: Lens(tiny(family, seed=5)) for family in ("llama", "gpt2", "qwen2", "granite")}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "granite"])
def test_a_heads_contribution_is_what_zeroing_it_takes_away(run_on: dict[str, Lens], family: str) -> None:
    lens, layer = run_on[family], 1
    direction = torch.randn(lens.model.d_model, generator=torch.Generator().manual_seed(0))
    z = read(lens, UNEQUAL, [Site(HEADS, layer)])[Site(HEADS, layer)]
    found = of_heads(lens, layer, z, direction)
    where = Site(AFTER_ATTENTION, layer, pos=-1)
    before = lens.run(UNEQUAL, read=[where])[where]
    for head in range(lens.layout.n_heads):
        after = lens.run(UNEQUAL, [zero(Site(HEADS, layer, head, -1))], [where])[where]
        torch.testing.assert_close(found[:, head], (before - after) @ direction, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "granite"])
def test_a_neurons_contribution_is_what_zeroing_it_takes_away(run_on: dict[str, Lens], family: str) -> None:
    lens, layer = run_on[family], 2
    direction = torch.randn(lens.model.d_model, generator=torch.Generator().manual_seed(0))
    at, where = Site(NEURONS, layer), Site(AFTER_MLP, layer, pos=-1)
    found = of_neurons(lens, layer, read(lens, UNEQUAL, [at])[at], direction)
    before = lens.run(UNEQUAL, read=[where])[where]
    for neuron in (0, 17):
        after = lens.run(UNEQUAL, scaled(lens, {at: (neuron,)}, 0.0), [where])[where]
        torch.testing.assert_close(found[:, neuron], (before - after) @ direction, atol=1e-4, rtol=1e-4)


@dataclass(frozen=True, eq=False)
class Planted:
    """Layer 1 has a neuron per emotion (40 + its number) that fires on the emotion's token and writes its own direction."""

    lens: Lens
    examples: Examples
    written: Tensor


@pytest.fixture(scope="module")
def planted_emotions() -> Planted:
    source, n, first = tiny("llama", seed=4), len(EMOTIONS), 100
    hf, d = source.hf, source.d_model
    generator = torch.Generator().manual_seed(3)
    early, written = torch.linalg.qr(torch.randn(d, 2 * n, generator=generator)).Q.T.split(n)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.zero_()
            layer.post_attention_layernorm.weight.fill_(1.0)
        embed = hf.model.embed_tokens.weight
        embed[first : first + n] = embed[first] + 4 * early
        mlp = hf.model.layers[1].mlp
        for i in range(n):
            mlp.gate_proj.weight[40 + i] = mlp.up_proj.weight[40 + i] = 2 * early[i]
            mlp.down_proj.weight[:, 40 + i] = written[i]
    lens = Lens(Model("planted-emotions", "planted", hf, source.tokenizer))
    starts = torch.randint(10, 90, (8, 3), generator=generator).tolist()
    prompts = [[*start, first + i] for start in starts for i in range(n)]
    groups = tuple(str(g) for g in range(8) for _ in EMOTIONS)
    made = Examples("planted", lens.tokens(prompts), EMOTIONS * 8, EMOTIONS[0], groups)
    return Planted(lens, made, written)


def _labelled(
    planted: Planted,
) -> tuple[dict[Site, dict[str, Tensor]], dict[Site, dict[str, Tensor]], dict[Site, Tensor]]:
    wanted = [Site(kind, layer) for layer in (0, 1) for kind in (HEADS, AFTER_ATTENTION, NEURONS, AFTER_MLP)]
    x = read(planted.lens, planted.examples.prompts, wanted)
    found = differences(x, planted.examples)
    return found, directions(found), x


def test_planted_neurons_are_found_and_carry_the_direction(planted_emotions: Planted) -> None:
    lens = planted_emotions.lens
    found, by, x = _labelled(planted_emotions)
    at, after = Site(NEURONS, 1), Site(AFTER_MLP, 1, pos=-1)
    for i, emotion in enumerate(EMOTIONS):
        given = contributions(lens, {at: x[at]}, planted_emotions.examples, by, emotion)
        top = strongest(given, {at: 1})
        assert top == {at: (40 + i,)}
        rows = planted_emotions.examples.prompts.select(range(i, 48, 6))
        before = lens.run(rows, read=[after])[after] @ planted_emotions.written[i]
        ablated, doubled = (lens.run(rows, scaled(lens, top, f), [after])[after] for f in (0.0, 2.0))
        assert float((ablated @ planted_emotions.written[i]).abs().max()) < 0.25 * float(before.min())
        other = lens.run(rows, scaled(lens, {at: (50,)}, 0.0), [after])[after] @ planted_emotions.written[i]
        torch.testing.assert_close(other, before)
        torch.testing.assert_close(
            doubled @ planted_emotions.written[i] - before, before - ablated @ planted_emotions.written[i],
            atol=1e-3, rtol=1e-3,
        )  # fmt: skip
        assert found[at][emotion].argmax() == 40 + i


def test_modulation_adds_the_differences_on_the_chosen_units_alone(planted_emotions: Planted) -> None:
    lens = planted_emotions.lens
    found, _, _ = _labelled(planted_emotions)
    values = {at: by["fear"] for at, by in found.items() if at.kind in (NEURONS, HEADS)}
    parts = {Site(HEADS, 1): (2, 0), Site(NEURONS, 1): (43, 7)}
    make = modulation(parts, values)
    assert make(0.0) == []
    sites = [Site(HEADS, 1), Site(NEURONS, 1), Site("resid_pre", 1)]
    before, after = lens.run(UNEQUAL, read=sites), lens.run(UNEQUAL, make(1.5), sites)
    assert torch.equal(before["L1.resid_pre"], after["L1.resid_pre"])
    last = torch.tensor([len(row) - 1 for row in UNEQUAL])
    moved = (after["L1.z"] - before["L1.z"])[range(4), last]
    torch.testing.assert_close(moved, (1.5 * only(values[Site(HEADS, 1)], (2, 0))).expand_as(moved), atol=1e-5, rtol=0)
    assert torch.equal(after["L1.z"][0, :-3], before["L1.z"][0, :-3])  # row 0 ends two places before the widest
    alone = lens.run(UNEQUAL, modulation(of_kind(parts, NEURONS), values)(1.5), sites)
    moved = (alone["L1.mlp_post"] - before["L1.mlp_post"])[range(4), last]
    assert moved.abs().sum(0).nonzero().flatten().tolist() == [7, 43]


def test_controls_keep_what_they_must(lens: Lens) -> None:
    parts = {Site(NEURONS, 0): (3, 9), Site(HEADS, 1): (1,)}
    generator = torch.Generator().manual_seed(0)
    values = {
        Site(NEURONS, 0): torch.randn(88, generator=generator),
        Site(HEADS, 1): torch.randn(4, 10, generator=generator),
    }
    drawn = random_values(parts, values, 7)
    for at, units in parts.items():
        assert float(drawn[at].norm()) == pytest.approx(float(only(values[at], units).norm()), rel=1e-5)
        assert not torch.allclose(drawn[at], only(values[at], units))
        assert (
            drawn[at].flatten(1).any(1).nonzero().flatten().tolist() == sorted(units) if drawn[at].ndim == 2 else True
        )
    sets = [random_parts(lens, parts, seed) for seed in range(3)]
    assert all({at: len(u) for at, u in one.items()} == {Site(NEURONS, 0): 2, Site(HEADS, 1): 1} for one in sets)
    assert sets[0] != sets[1] and sets[0] == random_parts(lens, parts, 0)
    wrong = at_other_layers(parts, values, (0, 1))(1.0)
    assert {edit.site for edit in wrong} == {Site(NEURONS, 1), Site(HEADS, 0)}
    assert overlap(parts, parts) == 1 and overlap(parts, {Site(NEURONS, 0): (3, 4)}) == pytest.approx(1 / 4)
    assert mean_overlap([parts, parts, {Site(HEADS, 0): (0,)}]) == pytest.approx(1 / 3)


def test_counts_follow_influence_and_budget(lens: Lens) -> None:
    of = budgets(lens, (0, 1))
    where = {Site(kind, layer): float(layer + 1) for layer in (0, 1) for kind in (HEADS, NEURONS)}
    given = counts(of, where)
    for kind in (HEADS, NEURONS):
        assert sum(n for at, n in given.items() if at.kind == kind) == of[kind].k


def test_families_whose_units_do_not_add_one_by_one_are_refused() -> None:
    with pytest.raises(ModelError, match="units add nothing one by one"):
        check_sums(Lens(tiny("gemma2")))
    with pytest.raises(SiteError, match="resid_mid is absent"):
        check(Lens(tiny("gpt_neox")))
    check_sums(Lens(tiny("llama")))


# --- influence


def test_influence_of_the_last_sublayer_is_the_cosine_with_the_reference(lens: Lens) -> None:
    """What the last MLP writes is the last stream: a push of one arrives as its cosine with the reference."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)  # noqa: E731
    by = {Site(kind, layer): {"fear": draw()} for layer in range(3) for kind in (AFTER_ATTENTION, AFTER_MLP)}
    towards = reference(by, (1, 2), "fear")
    assert float(towards.norm()) == pytest.approx(1, abs=1e-5)
    prompts = lens.tokens(UNEQUAL)
    found = influence(LastTokenLens(lens), prompts, by, (1, 2), towards, "fear", (0.1, 0.7), lambda *_: None)
    assert found[Site(NEURONS, 2)] == pytest.approx(float(by[Site(AFTER_MLP, 2)]["fear"] @ towards), abs=1e-4)
    assert set(found) == {Site(kind, layer) for layer in (1, 2) for kind in (HEADS, NEURONS)}
    size = sizes(lens, prompts, (1,))
    slow: list[float] = []  # one push at a time, in whole runs
    before = lens.run(prompts, read=["L2.resid_post@-1"])["L2.resid_post@-1"]
    for alpha in (0.1, 0.7):
        push = add(
            "L1.attn_out@-1",
            alpha * sizes(lens, prompts, (1,))[Site(AFTER_ATTENTION, 1)] * by[Site(AFTER_ATTENTION, 1)]["fear"],
        )
        after = lens.run(prompts, [push], ["L2.resid_post@-1"])["L2.resid_post@-1"]
        slow.append(float(((after - before) @ towards).mean()) / (alpha * size[Site(AFTER_ATTENTION, 1)]))
    assert found[Site(HEADS, 1)] == pytest.approx(sum(slow) / 2, abs=1e-4)
    stream = torch.stack([lens.run([row], read=["L1.resid_post@-1"])["L1.resid_post@-1"][0] for row in UNEQUAL])
    assert size[Site(AFTER_MLP, 1)] == pytest.approx(float(stream.square().mean(1).sqrt().mean()), rel=1e-4)


def test_reference_aligns_signs() -> None:
    v = torch.tensor([0.6, 0.8])
    by = {Site(AFTER_ATTENTION, 0): {"fear": -v}, Site(AFTER_MLP, 0): {"fear": v}}
    torch.testing.assert_close(reference(by, (0,), "fear"), v)


# --- the lens of the last token


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("prompts", [UNEQUAL, [row[:2] for row in UNEQUAL]])
def test_the_last_token_alone_is_the_whole_run(run_on: dict[str, Lens], family: str, prompts: list[list[int]]) -> None:
    lens = run_on[family]
    vector = torch.randn(lens.model.d_model, generator=torch.Generator().manual_seed(0))
    edits = [
        add("L0.resid_post", vector, steer=Steer(start=-1, times_rms=True)),
        scale("L1.mlp_post@-1", torch.linspace(0, 2, lens.layout.d_mlp or 0)),
        zero("L2H1@-1"),
    ]
    if family == "qwen2":  # its window is of six tokens
        prompts = [row[:5] for row in prompts]
    sites = ["L1.resid_mid@-1", "L2.resid_post@-1", "L2.z@-1"]
    fast = LastTokenLens(lens)
    for given in ([], edits, edits, []):
        slow, quick = lens.run(prompts, given, sites, logits="last"), fast.run(prompts, given, sites, logits="last")
        assert slow.last_logits is not None and quick.last_logits is not None
        torch.testing.assert_close(quick.last_logits, slow.last_logits, atol=2e-4, rtol=1e-4)
        for at in sites:
            torch.testing.assert_close(quick[at], slow[at], atol=2e-4, rtol=1e-4)


def test_several_sets_of_edits_in_one_pass_are_each_alone(lens: Lens) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    one, two = add("L0.attn_out@-1", vector), zero("L1H2@-1")
    variants, at = [[one], [two, one], [], [two]], Site(AFTER_MLP, 2, pos=-1)
    found = LastTokenLens(lens).each(UNEQUAL, variants, at)
    for edits, given in zip(variants, found, strict=True):
        torch.testing.assert_close(given, lens.run(UNEQUAL, edits, [at])[at], atol=2e-4, rtol=1e-4)


def test_what_was_run_a_moment_ago_is_remembered_with_what_it_reads(lens: Lens) -> None:
    at, edits = Site(AFTER_MLP, 2, pos=-1), [zero("L1H2@-1")]
    fast = LastTokenLens(lens, also_read=[at])
    first = fast.run(UNEQUAL, edits, logits="last")
    again = fast.run(UNEQUAL, edits, [at], logits="last")
    assert again.last_logits is first.last_logits
    torch.testing.assert_close(again[at], lens.run(UNEQUAL, edits, [at])[at], atol=2e-4, rtol=1e-4)
    other = fast.run(UNEQUAL, [zero("L1H3@-1")], [at], logits="last")
    assert not torch.allclose(other[at], again[at])


def test_it_continues_as_generation_does_and_tells_the_loss(lens: Lens) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    edits = [add("L1.resid_post", 3 * vector, steer=Steer(start=-1))]
    fast = LastTokenLens(lens)
    plain, steered = fast.continued(UNEQUAL, 5), fast.continued(UNEQUAL, 5, edits)
    for given, found in (([], plain), (edits, steered)):
        slow = lens.generate(UNEQUAL, 5, given, stop_at_eos=False)
        assert [list(one.ids) for one in slow] == found.tolist()
    assert not torch.equal(plain, steered)
    loss = fast.loss_of(UNEQUAL, steered)
    whole = [[*row, *more] for row, more in zip(UNEQUAL, steered.tolist(), strict=True)]
    for i, row in enumerate(UNEQUAL):
        logits = lens.run([whole[i]]).logits
        assert logits is not None
        told = -logits[0].log_softmax(-1)[range(len(row) - 1, len(row) + 4), steered[i]]
        torch.testing.assert_close(loss[i], told, atol=1e-4, rtol=1e-4)


def test_it_refuses_what_reaches_further_than_the_last_token(lens: Lens) -> None:
    fast = LastTokenLens(lens)
    with pytest.raises(EditError, match="not confined to the last token"):
        fast.run(UNEQUAL, [zero("L1H0")], logits="last")
    with pytest.raises(SiteError, match="not read at the last token alone"):
        fast.run(UNEQUAL, read=["L1.resid_post"], logits="last")
    with pytest.raises(SiteError, match="last token's logits alone"):
        fast.run(UNEQUAL)
    with pytest.raises(PromptError, match="one token has nothing before"):
        fast.run([[5]], logits="last")
    with pytest.raises(EditError, match="does not generate"):
        fast.generate(UNEQUAL)
    with pytest.raises(PromptError, match="looks back 6 tokens"):
        LastTokenLens(Lens(tiny("mistral"))).run([list(range(5, 15))], logits="last")


# --- small things


def test_the_plan_scales_the_papers_layers() -> None:
    paper = plan(28)
    assert paper.readout == Site(AFTER_MLP, 25) and paper.circuit == tuple(range(25))
    assert (paper.reference[0], paper.plain[0], paper.plain[-1]) == (21, 10, 19)
    small = plan(3)
    assert (small.circuit, small.reference, small.plain, small.readout.layer) == ((0, 1), (1,), (1,), 2)
    with pytest.raises(ModelError, match="A model of 1 layer"):
        plan(1)


def test_words_are_counted_by_hand() -> None:
    assert share_of_words("Angry, FURIOUS and calm.", "anger") == 0.5 and share_of_words("", "anger") == 0
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    torch.testing.assert_close(mass(p, {"fear": torch.tensor([1, 3])}, "fear"), torch.tensor([0.6, 0.4]))


def test_plain_steering_adds_the_direction_times_the_rms(lens: Lens) -> None:
    v = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    at = Site(AFTER_MLP, 0)
    where = at.at(-1)
    before = lens.run(UNEQUAL, read=[where])[where]
    after = lens.run(UNEQUAL, plain_steering({at: v})(2.0), [where])[where]
    torch.testing.assert_close(
        after - before, 2 * before.square().mean(1, keepdim=True).sqrt() * v, atol=1e-4, rtol=1e-4
    )
    assert plain_steering({at: v})(0) == []
