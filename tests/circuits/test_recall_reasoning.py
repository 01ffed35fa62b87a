"""The recall-reasoning study: a planted double dissociation is recovered at every level, and one mechanism for both arms is not split."""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch

from circuits.studies import recall_reasoning_claims as claims
from circuits.studies.recall_reasoning import STUDY, Settings, gather
from circuits.studies.recall_reasoning_evidence import MEAN, REASON, RECALL, Answers, Arms, Evidence, by_item
from circuits.studies.recall_reasoning_selection import choose, effects_of_units, neuron_attribution
from circuits.studies.recall_reasoning_tables import summary, tables_and_figures
from circuits.studies.recall_reasoning_units import Level, levels, question, random_sets, strongest, switched_off
from mechlab.errors import MechlabError
from mechlab.lens.edit import patch
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import random_twin, tiny
from mechlab.models.planted_gpt2 import Gate, Head, Shift, Spec, marked, planted_gpt2
from mechlab.models.planting import plain
from mechlab.patching.task import Task
from mechlab.results.study import silent
from mechlab.views.dissociation import dissociation_matrix

SPEC = Spec(
    "planted-dissociation",
    n_words=10,
    context=8,
    heads=(
        (Head("previous", "MARK"), Head("self", "MARK"), Head("first", "WORD"), Head("self", "POSITION")),
        (Head("previous", "MARK"), Head("marked", "WORD"), Head("first", "WORD"), Head("self", "MARK")),
        (Head("self", "m0"), Head("self", "m1"), Head("first", "WORD"), Head("self", "MARK")),
    ),
    mlps=(Shift("WORD", 0), Shift("a1.h1", 0), Gate(("a2.h0", "a2.h1"), "or")),
    reads="m2",
)
"""Recall: m0 knows the last word, a2.h0 carries it on. Reasoning: a1.h1 finds the marked word, m1 and a2.h1 carry it on. m2 joins both.

So the truth is: recall needs layer 0, head a2.h0, the neurons of m0; reasoning layer 1, heads a1.h1 and a2.h1, the neurons of m1.
"""
SMALL = Settings(layers=1, heads=1, neurons=9, draws=10, permutations=12)
N_ITEMS = 9


def planted_task(lens: Lens, arm: str, seed: int, n: int = N_ITEMS) -> Task:
    """`recall`: <bos> a b c w -> w. `reason`: <bos> a b W no -> w. Pairs of one item are mirrored; they differ at W, or at w."""
    draw = random.Random(seed)
    words = range(1, SPEC.n_words)
    clean, corrupted, right = [], [], []
    for i in range(n):  # the items of any nine in a row ask for every word
        one, other = words[i % 9], words[(i + 2) % 9]
        rest = draw.sample([word for word in words if word not in (one, other)], 3)
        for w, v in ((one, other), (other, one)):
            for into, word in ((clean, w), (corrupted, v)):
                start = [0, plain(rest[0]), plain(rest[1])]
                end = [marked(word, SPEC.n_words), plain(0)] if arm == REASON else [plain(rest[2]), plain(word)]
                into.append([*start, *end])
            right.append((plain(w), plain(v)))
    answers, foils = (torch.tensor(part) for part in zip(*right, strict=True))
    groups = tuple(f"item {i // 2}" for i in range(2 * n))
    return Task(f"planted {arm}", lens.tokens(clean), lens.tokens(corrupted), answers, foils, groups)


def arms_of(lens: Lens, kinds: Sequence[str] = (RECALL, REASON)) -> Arms:
    """``kinds``: what stands for recall, and what for reasoning."""

    def tasks(seed: int) -> dict[str, Task]:
        return {arm: planted_task(lens, kind, seed) for arm, kind in zip((RECALL, REASON), kinds, strict=True)}

    return Arms(tasks(1), tasks(2), tasks(3))


def gathered(lens: Lens, settings: Settings = SMALL, kinds: Sequence[str] = (RECALL, REASON)) -> Evidence:
    return gather(lens, Lens(random_twin(lens.model, 7)), arms_of(lens, kinds), settings, silent)


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(planted_gpt2(SPEC))


@pytest.fixture(scope="module")
def planted(lens: Lens) -> Evidence:
    return gathered(lens)


def test_the_planted_double_dissociation_is_recovered(planted: Evidence) -> None:
    chosen = {
        level: {arm: {choice.level.named(unit) for unit in choice.sets[arm]} for arm in (RECALL, REASON)}
        for level, choice in planted.model.choices.items()
    }
    assert chosen["layers"] == {RECALL: {"L0"}, REASON: {"L1"}}
    assert chosen["heads"][RECALL] == {"L2H0"}
    assert chosen["heads"][REASON] <= {"L1H1", "L2H1"}
    assert {name[:2] for name in chosen["neurons"][RECALL]} == {"L0"}
    assert {name[:2] for name in chosen["neurons"][REASON]} == {"L1"}
    verdicts = {finding.key: finding.verdict for finding in claims.findings(planted)}
    expected = {
        *("answers_recall", "answers_reason", "layers_recall", "layers_reason", "layers_double"),
        *("heads_recall", "heads_reason", "heads_double", "neurons_recall", "neurons_reason", "neurons_double"),
        *("heads_double_zero", "heads_double_swapped", "heads_double_other_wording"),
    }
    assert set(verdicts) == expected
    assert set(verdicts.values()) == {"supported"}, verdicts


def test_one_mechanism_for_both_arms_is_not_split(lens: Lens) -> None:
    """Both arms ask for the marked word: no set can matter for one of them alone, and that is what is said."""
    evidence = gathered(lens, SMALL, (REASON, REASON))
    verdicts = {finding.key: finding.verdict for finding in claims.findings(evidence)}
    assert verdicts.pop("answers_recall") == verdicts.pop("answers_reason") == "supported"
    assert "supported" not in verdicts.values(), verdicts


def test_random_weights_support_nothing(lens: Lens) -> None:
    evidence = gathered(Lens(random_twin(lens.model, 3)))
    found = claims.findings(evidence)
    assert [finding.key for finding in found if finding.verdict == "supported"] == []
    assert {finding.verdict for finding in found if "_double" in finding.key} == {
        "inconclusive"
    }  # there is nothing to lose
    tables_and_figures(evidence)


def test_controls_as_strong_as_the_units_take_the_support_away(planted: Evidence) -> None:
    found = planted.model.ablated["heads", MEAN]
    as_good = dataclasses.replace(found, draws={pair: [given] * 3 for pair, given in found.without.items()})
    side = dataclasses.replace(planted.model, ablated={**planted.model.ablated, ("heads", MEAN): as_good})
    verdicts = {f.key: f.verdict for f in claims.findings(dataclasses.replace(planted, model=side))}
    assert verdicts["heads_double"] == "not supported"
    assert verdicts["neurons_double"] == "supported"
    verdicts = {f.key: f.verdict for f in claims.findings(dataclasses.replace(planted, twin=planted.model))}
    assert {verdicts[f"{level}_double"] for level in ("layers", "heads", "neurons")} == {"not supported"}


def test_statistics_by_hand() -> None:
    """A set that breaks all, or that helps the other arm, does not dissociate, although its contrast may be large."""
    drops = claims.Drops(*(np.array(x) for x in ([0.5, 0.8, 0.1], [0.1, 0.8, -0.6], [0.2, 0.0, 0.0], [0.6, 0.3, 0.4])))
    assert claims.of_recall(drops) == pytest.approx([0.4, 0.0, 0.1])
    assert claims.of_reason(drops) == pytest.approx([0.4, 0.3, 0.4])
    assert claims.of_both(drops) == pytest.approx([0.4, 0.0, 0.1])
    assert claims.interaction(drops) == pytest.approx([0.8, 0.3, 1.1])


def test_drops_are_ratios_of_means_over_items(planted: Evidence) -> None:
    base = {RECALL: Answers(np.array([4.0, 2.0]), np.ones(2)), REASON: Answers(np.array([1.0, 3.0]), np.ones(2))}
    left = {
        (RECALL, RECALL): [1.0, 0.5],
        (RECALL, REASON): [1.0, 2.0],
        (REASON, RECALL): [4.0, 2.0],
        (REASON, REASON): [0.0, 1.0],
    }
    without = {pair: Answers(np.array(margins), np.ones(2)) for pair, margins in left.items()}
    made = dataclasses.replace(planted.model.ablated["heads", MEAN], base=base, without=without)
    side = dataclasses.replace(planted.model, ablated={**planted.model.ablated, ("heads", MEAN): made})
    evidence = dataclasses.replace(planted, model=side)
    found = [claims.dissociation(evidence, "heads", MEAN, one).estimate for one in (claims.of_recall, claims.of_reason)]
    assert found == pytest.approx([0.75 - 0.25, 0.75 - 0.0])


def test_an_arm_that_is_not_answered_leaves_its_claims_open(planted: Evidence) -> None:
    found = planted.model.ablated["heads", MEAN]
    base = {**found.base, REASON: Answers(found.base[REASON].margin * 0, found.base[REASON].right)}
    side = dataclasses.replace(
        planted.model, ablated={**planted.model.ablated, ("heads", MEAN): dataclasses.replace(found, base=base)}
    )
    verdicts = {f.key: f.verdict for f in claims.findings(dataclasses.replace(planted, model=side))}
    assert {verdicts[f"heads_{which}"] for which in ("recall", "reason", "double")} == {"inconclusive"}
    assert verdicts["layers_double"] == "supported"


def test_permuted_labels_swap_half_of_the_items() -> None:
    """With ten items, five swapped: means of both labels meet, so their sum stays and the planted unit's lead is gone."""
    level = Level("heads", 2, 4)
    effects = {RECALL: np.zeros((8, 10)), REASON: np.zeros((8, 10))}
    effects[RECALL][5] = 1.0
    effects[REASON][2] = np.arange(10) / 10
    choice = choose(level, effects, 1, permutations=30, seed=0)
    assert (choice.sets[RECALL], choice.sets[REASON]) == ([5], [2])
    assert {int(one[RECALL][0]) for one in choice.permuted} != {5}
    assert all(int(one[RECALL][0]) != 5 or int(one[REASON][0]) != 5 for one in choice.permuted)


def test_at_most_half_of_a_layer_and_random_sets_of_the_same_layers(lens: Lens) -> None:
    level = levels(lens)["heads"]
    scores = np.arange(12.0)
    chosen = strongest(level, scores, 5)
    assert chosen.tolist() == [11, 10, 7, 6, 3]
    for drawn in random_sets(lens, level, chosen, 10, 0):
        assert sorted(drawn // 4) == sorted(chosen // 4)
        assert not set(drawn) & set(chosen)
    layers = levels(lens)["layers"]
    assert {int(one[0]) for one in random_sets(lens, layers, np.array([1]), 20, 0)} == {0, 2}
    with pytest.raises(MechlabError, match="3 layers leave 1 for a random control of 2"):
        random_sets(lens, layers, np.array([0, 1]), 2, 0)


@pytest.fixture(scope="module")
def wide() -> tuple[Lens, Task]:
    """A model with shared keys and prompts that differ at the last but one word."""
    lens = Lens(tiny("llama", seed=2))
    draw = torch.Generator().manual_seed(4)
    clean = torch.randint(5, lens.model.vocab_size, (6, 9), generator=draw)
    corrupted = clean.clone()
    corrupted[:, 7] = torch.randint(5, lens.model.vocab_size, (6,), generator=draw)
    answers = torch.arange(6) + 10
    groups = ("a", "b", "a", "c", "b", "a")
    return lens, Task(
        "wide", lens.tokens(clean.tolist()), lens.tokens(corrupted.tolist()), answers, answers + 9, groups
    )


def test_the_question_begins_at_the_first_difference(wide: tuple[Lens, Task]) -> None:
    lens, task = wide
    assert question(task) == (-2, -1)
    with pytest.raises(MechlabError, match="pairs that do not differ"):
        question(Task("same", task.clean, task.clean, task.answers, task.foils))
    short = lens.tokens([[5, 6], [5, 6, 7]])
    with pytest.raises(MechlabError, match="unequal length"):
        question(Task("uneven", short, short, task.answers[:2], task.foils[:2]))


def test_items_are_means_over_their_prompts(wide: tuple[Lens, Task]) -> None:
    assert by_item(np.array([[1.0, 2, 3, 4, 5, 8]]), wide[1]).tolist() == [[4.0, 3.5, 4.0]]


def test_sets_of_neurons_are_switched_off_as_one_by_one(wide: tuple[Lens, Task]) -> None:
    """Scale and add by vectors, against one mean (or zero) edit for each neuron, whole forward passes."""
    from circuits.studies.recall_reasoning_units import neuron_means
    from mechlab.lens.edit import mean, zero

    lens, task = wide
    level, places = levels(lens)["neurons"], question(task)
    chosen = np.array([3, 90, 95, 200])
    means = neuron_means(lens, task, places)
    sites = [Site("mlp_post", unit // 88, unit % 88, p) for unit in chosen.tolist() for p in places]
    for way, plainly in (("mean", [mean(at, "corrupted") for at in sites]), ("zero", [zero(at) for at in sites])):
        edits = switched_off(level, chosen, places, way, means)
        by_set = lens.effects(task, [edits], base="clean").frame["after"]
        one_by_one = lens.effects(task, [plainly], base="clean", exhaustive=True).frame["after"]
        assert np.allclose(by_set, one_by_one, atol=1e-4)
        assert not np.allclose(by_set, lens.effects(task, [edits], base="clean").frame["before"], atol=1e-3)


def test_neuron_attribution_is_the_slope_of_the_patch(wide: tuple[Lens, Task]) -> None:
    """Against a small step of the neuron from its corrupted towards its clean value."""
    from mechlab.lens.edit import add
    from mechlab.results.metrics import logit_difference

    lens, task = wide
    places, step = question(task), 1e-2
    found = neuron_attribution(lens, task, places)
    assert found.shape == (3 * 88, 6)
    for layer, neuron in ((0, 5), (1, 60), (2, 87)):
        sites = [Site("mlp_post", layer, neuron, p) for p in places]
        clean, corrupted = (lens.run(side, read=sites) for side in (task.clean, task.corrupted))
        expected = []
        for row in range(6):
            edits = [add(at, float(clean[at][row] - corrupted[at][row]), strength=step) for at in sites]
            run = lens.run(task.corrupted.select([row]), edits).last_logits
            assert run is not None and corrupted.last_logits is not None
            pair = (task.answers[[row]], task.foils[[row]])
            before = logit_difference(corrupted.last_logits[[row]], *pair)
            expected.append(float(logit_difference(run, *pair) - before) / step)
        assert found[layer * 88 + neuron] == pytest.approx(expected, rel=0.1, abs=2e-3)


def test_effects_of_units_agree_with_whole_forward_passes(wide: tuple[Lens, Task]) -> None:
    lens, task = wide
    found = effects_of_units(lens, levels(lens), task, silent)
    heads = [patch(Site("z", 1, 2, p)) for p in question(task)]
    layer = [patch(Site(kind, 2, pos=p)) for kind in ("attn_out", "mlp_out") for p in question(task)]
    frame = lens.effects(task, [heads, layer], exhaustive=True).frame
    span = (frame["clean"] - frame["corrupted"]).to_numpy()[:6].mean()
    changes = (frame["after"] - frame["before"]).to_numpy().reshape(2, 6) / span
    assert found["heads"][1 * 4 + 2] == pytest.approx(by_item(changes[0], task), abs=1e-4)
    assert found["layers"][2] == pytest.approx(by_item(changes[1], task), abs=1e-4)


def test_answers_as_good_with_the_chain_broken_are_no_reasoning(planted: Evidence) -> None:
    assert "chains facts is not supported" not in summary(planted)
    same = dataclasses.replace(planted, broken=planted.base[REASON])
    found = {finding.key: finding.verdict for finding in claims.findings(same)}
    assert (found["answers_reason"], found["answers_recall"]) == ("not supported", "supported")
    assert "chains facts is not supported" in summary(same)


def test_tables_and_the_list_of_studies(planted: Evidence) -> None:
    tables, figures = tables_and_figures(planted)
    assert {figure.table for figure in figures} == {table.key for table in tables}
    frames = {table.key: table.frame for table in tables}
    matrix = frames["matrix"].set_index(["switched off", "answering"])["drop"]
    assert matrix["recall heads", "recall"] == pytest.approx(1, abs=1e-3)
    assert matrix["recall heads", "reasoning"] == pytest.approx(0, abs=1e-3)
    contrasts = frames["contrasts"].set_index(["level", "way", "contrast"])["value"]
    assert contrasts["heads", MEAN, "interaction"] == pytest.approx(2, abs=1e-3)
    from apps.studies import study

    assert study("recall-reasoning") is STUDY


def test_the_matrix_shows_each_cell_in_its_place() -> None:
    cells = [("b", "x", 0.5, 0.4, 0.6), ("b", "y", 0.0, np.nan, np.nan), ("a", "x", np.nan, np.nan, np.nan)]
    frame = pd.DataFrame(cells, columns=["off", "task", "drop", "low", "high"])
    shown = dissociation_matrix(frame, "off", "task", "drop", "low", "high", colour_title="share", limit=1.0).data[0]
    assert list(shown["y"]) == ["b", "a"]
    assert np.allclose(shown["z"], [[0.5, 0.0], [np.nan, np.nan]], equal_nan=True)
    assert shown["text"].tolist() == [["0.5<br>[0.4, 0.6]", "0"], ["", ""]]
