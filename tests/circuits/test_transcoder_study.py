"""The transcoder study: its measurements against plain formulas on a model whose MLPs are their own transcoders, and its verdicts."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from feature_toys import mlp_as_transcoder, random_transcoder, relu_gpt2

from circuits.features.attribution import attribute
from circuits.features.explained import explain, explain_run
from circuits.features.steps import one_step
from circuits.features.target import feature_target
from circuits.studies import transcoder_claims as claims
from circuits.studies.transcoder import STUDY, Settings, gather
from circuits.studies.transcoder_dictionaries import Neurons, linear_map, permuted, untrained, zeroed
from circuits.studies.transcoder_evidence import FEATURES, KEPT_NEURONS, Evidence, Kept
from circuits.studies.transcoder_feeding import Listed, feeding, rank_correlation, summary
from circuits.studies.transcoder_fits import losses
from circuits.studies.transcoder_kept import Units, curves, drawn_like, feature_means, kept, neuron_means
from circuits.studies.transcoder_measures import (
    Counts,
    Prompts,
    ablation,
    contributions,
    differences,
    fed_by_weights,
    frozen,
    gaps,
    important_layers,
    matched,
    mean,
    neuron_table,
    target_of,
    top,
)
from circuits.studies.transcoder_tables_kept import features_ahead
from circuits.tasks.capitals import capitals
from mechlab.dictionaries.activations_live import LiveActivations
from mechlab.errors import MechlabError
from mechlab.lens.edit import patch, splice
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import random_twin, tiny
from mechlab.patching.task import Task
from mechlab.results.metrics import logit_difference
from mechlab.texts import passages

SMALL = Settings(
    task="capitals",
    n_discovery=3,
    n_evaluation=4,
    tokens=1200,
    epochs=1,
    features=48,
    k=8,
    n_layers=2,
    top_features=4,
    n_targets=3,
    n_passages=2,
    draws=3,
)


def quiet(_label: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(scope="module")
def lens() -> Lens:
    return relu_gpt2()


@pytest.fixture(scope="module")
def task(lens) -> Task:
    return capitals(lens, 4, seed=1)


@pytest.fixture(scope="module")
def prompts(lens, task) -> Prompts:
    return frozen(lens, task, quiet, "")


@pytest.fixture(scope="module")
def exact(lens):
    """MLPs as their own transcoders: features are neurons."""
    return {layer: mlp_as_transcoder(lens, layer) for layer in (0, 2)}


def test_ablating_a_feature_of_an_exact_transcoder_is_ablating_the_neuron(lens, task, exact):
    units = [(0, 3), (0, 60), (2, 17)]
    by_feature = differences(lens, task, units, exact)
    by_neuron = differences(lens, task, units, {layer: Neurons(lens, layer) for layer in exact})
    assert np.allclose(by_feature, by_neuron, atol=1e-4)
    assert not np.allclose(by_feature, differences(lens, task), atol=1e-3)


def test_contributions_are_the_attributions_summed_over_tokens(lens, task, prompts, exact):
    total, writes = contributions(prompts, exact)
    for i, run in enumerate(prompts.runs):
        told = explain_run(run, exact.values())
        found = attribute(told, [target_of(lens, task, i)])
        for layer, one in exact.items():
            here = told.active.layer == layer
            expected = torch.zeros(one.n_features).index_add_(0, told.active.feature[here], found.features[0, here])
            assert torch.allclose(total[layer][i], expected, atol=1e-4)
            size = told.active.value[here] * one.directions[told.active.feature[here]].norm(dim=1)
            assert torch.allclose(
                writes[layer][i], torch.zeros(one.n_features).index_add_(0, told.active.feature[here], size), atol=1e-4
            )
    numbers = mean(total)
    best = top(numbers, 5)
    assert [float(numbers[layer][i]) for layer, i in best] == sorted(
        torch.cat([*numbers.values()]).tolist(), reverse=True
    )[:5]


def test_neurons_are_scored_by_gradient_times_activation(lens, task):
    """In the top layer the path to the logits is a norm and the unembedding: the same as nudging the neuron."""
    scores, sizes = neuron_table(lens, task, [2])
    assert scores[2].shape == sizes[2].shape == (lens.layout.d_mlp,)
    neuron = int(scores[2].abs().argmax())
    base, step = differences(lens, task), 1e-2
    nudged = splice("L2.mlp_post", "n", keep_error=True, features=[(neuron, "scale", 1.0 - step)])
    logits = lens.run(task.clean, [nudged], dictionaries={"n": Neurons(lens, 2)}, logits="last").last_logits
    assert logits is not None
    fall = base - logit_difference(logits, task.answers, task.foils).double().numpy()
    assert fall.mean() / step == pytest.approx(float(scores[2][neuron]), rel=0.03)


def test_the_layers_chosen_are_those_of_the_largest_fall(lens, task):
    layers, frame = important_layers(lens, task, 2, quiet)
    falls = []
    for layer in range(3):
        run = lens.run(task.clean, [patch(Site("mlp_out", layer), "c")], sources={"c": task.corrupted}, logits="last")
        picked = (
            run.last_logits[torch.arange(4), task.answers] - run.last_logits[torch.arange(4), task.foils.reshape(4)]
        )
        falls.append(float(np.mean(differences(lens, task) - picked.double().numpy())))
    assert frame.fall.tolist() == pytest.approx(falls, abs=1e-4)
    assert layers == sorted(np.argsort(falls)[-2:].tolist()) == frame.layer[frame.chosen].tolist()
    with pytest.raises(MechlabError, match="4 layers were asked for"):
        important_layers(lens, task, 4, quiet)


def test_matched_units():
    weights = {0: torch.tensor([1.0, 0.0, 5.0, 2.0, 3.0]), 3: torch.tensor([4.0, 1.0, 1.0])}
    chosen = [(0, 2), (0, 3), (3, 0)]
    sets = matched(chosen, weights, 20, seed=0)
    assert len(sets) == 20 and {tuple(sorted(one)) for one in sets} == {
        ((0, 0), (0, 4), (3, 1)),
        ((0, 0), (0, 4), (3, 2)),
    }
    with pytest.raises(MechlabError, match="Layer 3 has 2 other active units for a random control of 3"):
        matched([(3, 0)] * 3, weights, 1, 0)


def test_stand_ins(lens):
    one = mlp_as_transcoder(lens, 1)
    x = torch.randn(9, lens.model.d_model, generator=torch.Generator().manual_seed(0))
    shuffled, drawn = permuted(one, 3), untrained(one, k=5, seed=1)
    assert torch.equal(shuffled.encode(x), one.encode(x)) and not torch.equal(shuffled.directions, one.directions)
    assert torch.equal(shuffled.directions.sort(dim=0).values, one.directions.sort(dim=0).values)
    assert torch.allclose(drawn.directions.norm(dim=1), one.directions.norm(dim=1), atol=1e-4)
    assert set((drawn.encode(x) > 0).sum(1).tolist()) == {5}
    assert not zeroed(lens, 1).reconstruct(x).any()


def test_the_linear_map_is_the_best_one(lens):
    """No other map, such as one nudged, leaves less on its rows; and the MLP is not linear."""
    rows = LiveActivations(lens, passages(count=40), ["L1.mlp_in", "L1.mlp_out"])
    read, written = rows.read([Site("mlp_in", 1), Site("mlp_out", 1)], rows.rows)
    found = linear_map(lens, 1, rows)
    left = (written - found.reconstruct(read)).square().sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        nudged = found.directions + 0.02 * torch.randn(found.directions.shape, generator=generator)
        assert (written - read @ nudged - (found.reconstruct(read[:1]) - read[:1] @ nudged)).square().sum() > left
    assert 0.0 < float(left / (written - written.mean(0)).square().sum()) < 0.9


def test_losses_with_stand_ins(lens):
    """The MLP in its own place changes nothing; nothing in its place is its output less all of it, but for the first token."""
    exact = {"own": {1: mlp_as_transcoder(lens, 1)}, "zeroed": {1: zeroed(lens, 1)}}
    found = losses(lens, exact, 5, 0, quiet)
    assert list(found) == ["model", "own", "zeroed"] and found["model"].shape == (5,)
    assert np.allclose(found["own"], found["model"], atol=1e-4) and not np.allclose(
        found["zeroed"], found["model"], atol=1e-2
    )
    tokens = lens.tokens(passages(count=5, seed=0, part="held-out", characters=400))
    module = lens.layout.blocks[1].mlp

    def cut(_module, _inputs, output):
        return torch.cat([output[:, :1], torch.zeros_like(output[:, 1:])], dim=1)

    row, length = tokens.ids[2][: tokens.lengths[2]], tokens.lengths[2]
    with module.register_forward_hook(cut):
        logs = lens.model.hf(row[None]).logits[0].log_softmax(-1)
    assert found["zeroed"][2] == pytest.approx(-float(logs[range(length - 1), row[1:]].mean()), abs=1e-4)


def test_gaps_see_errors_that_are_left_out(lens, prompts):
    some = {1: random_transcoder(lens, 1)}
    gap, without = gaps(lens, prompts, some)
    assert gap.max() < 1e-3 < without.min() and gap.shape == (4,)


def test_connections_by_weights(prompts, exact):
    """With room for every feature the share is that of all that were active on discovery prompts."""
    found = fed_by_weights(prompts, prompts, exact, Counts(units=10_000, draws=2, seed=0), n_targets=2)
    assert (found.lower, found.upper) == (0, 2) and found.permuted.shape == (2, 4)
    assert np.allclose(found.share, found.random[0]) and np.allclose(found.share, found.permuted[1], atol=1e-5)
    expected = []
    active = set()
    for run in prompts.runs:
        codes = exact[0].encode(run.at["mlp_in", 0][-1:])[0]
        active |= set(codes.nonzero().flatten().tolist())
    for target in found.targets:
        told = explain_run(prompts.runs[2], exact.values())
        terms = attribute(told, [feature_target(exact[2], target, -1)])
        table = terms.table()
        table = table[(table.kind == "feature") & (table.layer == 0)]
        expected.append(table.contribution[table.feature.isin(active)].sum() / table.contribution.abs().sum())
    assert found.share[2] == pytest.approx(np.mean(expected), abs=1e-4)
    few = fed_by_weights(prompts, prompts, exact, Counts(units=10, draws=6, seed=0), n_targets=4)
    assert few.share.mean() > few.permuted.mean(axis=1).max()  # these weights do tell
    assert few.share.mean() > few.random.mean(axis=1).max()


def test_features_chosen_by_contribution_matter(lens, prompts, exact):
    """In a model where contributions are exact, on the prompts they were chosen on."""
    found = ablation(lens, prompts, prompts.task, {"transcoders": exact}, Counts(6, 5, 0), quiet)
    assert found.falls["transcoders"].mean() > found.draws["random"].mean(axis=1).max()
    assert found.falls["transcoders"].mean() > found.draws["permuted"].mean()
    assert found.draws["random neurons"].shape == (5, 4) and len(found.chosen) == 6


def test_units_kept_alone(lens, task, prompts, exact):
    """All others at their means, beside a plain hook; kept features of an exact transcoder are kept neurons."""
    means = neuron_means(lens, task, exact)
    features, neurons = Units(exact, feature_means(prompts, exact)), Units({i: Neurons(lens, i) for i in exact}, means)
    assert all(torch.allclose(features.means[i], means[i], atol=1e-4) for i in exact)
    some = [(0, 3), (0, 60), (2, 17)]
    alone = kept(lens, task, neurons, some)
    assert np.allclose(kept(lens, task, features, some), alone, atol=1e-4)

    def cut(layer, _module, inputs):
        changed = means[layer].expand_as(inputs[0]).clone()
        left = [unit for own, unit in some if own == layer]
        changed[..., left] = inputs[0][..., left]
        return (torch.cat([inputs[0][:, :1], changed[:, 1:]], dim=1),)

    hooks = [lens.layout.blocks[i].down.register_forward_pre_hook(partial(cut, i)) for i in exact]
    try:
        rows = [lens.model.hf(task.clean.ids[i, : task.clean.lengths[i]][None]).logits[0, -1] for i in range(4)]
    finally:
        for hook in hooks:
            hook.remove()
    plain = [float(row[task.answers[i]] - row[task.foils[i].reshape(-1)].mean()) for i, row in enumerate(rows)]
    assert np.allclose(alone, plain, atol=1e-4)
    base = differences(lens, task)
    assert not np.allclose(alone, base, atol=1e-2)
    everything = [(layer, unit) for layer in exact for unit in range(len(means[layer]))]
    assert np.allclose(kept(lens, task, features, everything), base, atol=1e-4)


def test_errors_kept_are_what_a_transcoder_misses(lens, task, prompts):
    """With its errors kept and every feature kept nothing has changed; without errors the transcoder's own output counts."""
    units = Units({1: random_transcoder(lens, 1)}, feature_means(prompts, {1: random_transcoder(lens, 1)}))
    everything = [(1, unit) for unit in range(units.count())]
    base = differences(lens, task)
    assert np.allclose(kept(lens, task, units, everything, keep_error=True), base, atol=1e-4)
    assert not np.allclose(kept(lens, task, units, everything), base, atol=1e-2)


def test_curves_of_kept_units(lens, prompts, exact):
    found = curves(lens, prompts, prompts.task, exact, 3, 0, quiet)
    assert found.features == 2 * lens.layout.d_mlp
    assert list(found.found[FEATURES]) == [0, 8, 32, 128, found.features]
    assert np.allclose(found.found[FEATURES][0], found.found[KEPT_NEURONS][0], atol=1e-4)  # none kept, no errors
    assert np.allclose(found.found[FEATURES][found.features], differences(lens, prompts.task), atol=1e-4)
    assert found.draws["random features"][32].shape == (3, 4)
    ahead = Kept(
        {
            FEATURES: {0: np.ones(2), 8: np.ones(2), 32: np.zeros(2)},
            KEPT_NEURONS: {n: np.full(2, 0.5) for n in (0, 8, 32)},
        },
        {},
        9,
    )
    assert features_ahead(ahead) == 8
    assert features_ahead(dataclasses.replace(ahead, found={**ahead.found, FEATURES: {8: np.zeros(2)}})) == 0


def test_random_units_of_the_same_layers():
    writes = {0: torch.tensor([1.0, 0.0, 5.0, 2.0, 0.0]), 3: torch.tensor([4.0, 0.0, 1.0])}
    sets = drawn_like([(0, 2), (0, 3), (3, 0)], writes, 30, seed=0)
    assert {len(set(one)) for one in sets} == {3} and {unit for one in sets for unit in one} == {
        (0, 0),
        (0, 2),
        (0, 3),
        (3, 0),
        (3, 2),
    }
    assert all([layer for layer, _ in one] == [0, 0, 3] for one in sets)


def test_a_summary_of_inputs_by_hand():
    """Three tokens, the target active at the first two."""
    codes = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    one = summary(
        codes, torch.tensor([2.0, 5.0, -1.0]), torch.tensor([1.0, 0.5, 7.0]), torch.tensor([True, True, False])
    )
    assert one.tokens == 2
    assert one.used.tolist() == [2.5, 0.0, -1.0]
    assert one.positive.tolist() == [2.5, 0.0, 0.0]
    assert one.active.tolist() == [1.0, 0.0, 0.5]
    assert np.isnan(rank_correlation(torch.tensor([2.0, 5.0, -1.0]), one))  # two active features rank nothing
    wide = summary(torch.ones(1, 4), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(1), torch.tensor([True]))
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0, 4.0]), wide) == pytest.approx(1.0)
    assert rank_correlation(torch.tensor([4.0, 3.0, 2.0, 1.0]), wide) == pytest.approx(-1.0)


def test_mean_use_is_the_mean_of_single_steps(lens, exact):
    """Over plain text, against the terms of one frozen run at a time."""
    texts = passages(count=3, seed=4, characters=120)
    target = int(exact[2].encode(lens.run(texts[0], read=["L2.mlp_in"], logits="none")["L2.mlp_in"][0]).sum(0).argmax())
    found = feeding(lens, texts, exact, [target], Listed(targets=2, inputs=4), draws=2, seed=0)
    total, tokens = dict[int, float](), 0
    for text in texts:
        told = explain(lens, text, exact.values())
        active = told.active
        for pos in active.pos[(active.layer == 2) & (active.feature == target)].tolist():
            table = one_step(told, feature_target(exact[2], target, pos))
            table, tokens = table[(table.kind == "feature") & (table.layer == 0)], tokens + 1
            for feature, contribution in zip(table.feature, table.contribution, strict=True):
                total[feature] = total.get(feature, 0.0) + contribution
    best = sorted(total, key=lambda feature: -total[feature])[:4]
    assert found.table["feature"].tolist() == [f"L0F{feature}" for feature in best]
    assert found.table["tokens"].tolist() == [tokens] * 4
    assert found.table["mean use"].tolist() == pytest.approx([total[feature] / tokens for feature in best], rel=1e-3)
    (agreement,) = found.agreement
    assert agreement["weights and use"] > max(agreement["permuted"]) > -1
    assert feeding(lens, texts[:1], {0: exact[0], 2: exact[2]}, [], Listed(2, 4), 2, 0).table.empty


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    model = Lens(tiny("llama"))
    twin = Lens(random_twin(model.model, 7))
    return gather(
        model, twin, capitals(model, 3, split="discovery"), capitals(model, 4, split="evaluation"), SMALL, quiet
    )


def test_verdicts_follow_the_controls(evidence):
    """Numbers that support every claim; then each control made as strong as its claim."""
    high, low = np.array([2.0, 2.1, 1.9, 2.0]), np.array([0.1, 0.0, 0.2, 0.1])
    draws = {"random": np.stack([low] * 3), "permuted": np.stack([low] * 3), "random neurons": np.stack([low] * 3)}
    weak = np.stack([low / 9] * 3)
    falls = {"transcoders": high, claims.UNTRAINED: low, claims.NEURONS: low}
    good = dataclasses.replace(
        evidence,
        gaps=low * 1e-5,
        gaps_without_errors=high,
        losses={
            "model": low + 3,
            "transcoders": low + 3.5,
            "zeroed": high + 8,
            claims.UNTRAINED: high + 6,
            claims.LINEAR: high + 3,
        },
        model=dataclasses.replace(evidence.model, base=high + 1, falls=falls, draws=draws),
        twin=dataclasses.replace(evidence.twin, falls={"transcoders": low}),
        connections=dataclasses.replace(evidence.connections, share=high / 4, permuted=weak, random=weak),
    )
    verdicts = lambda found: {finding.key: finding.verdict for finding in claims.findings(found)}  # noqa: E731
    assert set(verdicts(good).values()) == {"supported"} and len(verdicts(good)) == 5
    bad = {
        "sum": {"gaps": high * 1e-2},
        "replacement": {"losses": {**good.losses, claims.LINEAR: low + 3}},
        "invariant": {"connections": dataclasses.replace(good.connections, permuted=np.stack([high / 4] * 3))},
    }
    for name, change in (
        (claims.UNTRAINED, {"falls": {**falls, claims.UNTRAINED: high}}),
        ("random", {"draws": {**draws, "random": np.stack([low, high, low])}}),
        ("permuted", {"draws": {**draws, "permuted": np.stack([low, low, high])}}),
    ):
        worse = dataclasses.replace(good, model=dataclasses.replace(good.model, **change))
        assert verdicts(worse)["ablation"] != "supported", name
    twin = dataclasses.replace(good, twin=dataclasses.replace(good.twin, falls={"transcoders": high}))
    assert verdicts(twin)["ablation"] != "supported"
    neurons = dataclasses.replace(
        good, model=dataclasses.replace(good.model, falls={**falls, claims.NEURONS: high + 1})
    )
    assert verdicts(neurons)["neurons"] == "not supported"
    for key, change in bad.items():
        assert verdicts(dataclasses.replace(good, **change))[key] != "supported", key


def test_a_random_model_has_exact_sums_and_no_circuit(evidence):
    verdicts = {finding.key: finding.verdict for finding in claims.findings(evidence)}
    assert verdicts["sum"] == "supported"
    assert verdicts["ablation"] != "supported"


def test_a_report_with_its_tables_figures_and_progress():
    stages: list[str] = []
    report = STUDY.run(Lens(tiny("gpt2")), SMALL, lambda label, _done, _total: stages.append(label))
    keys = {"importance", "fits", "losses", "ablation", "connections", "features", "paths", "graph", "paper"}
    assert {table.key for table in report.tables} == keys | {"kept", "feeding"}
    assert {figure.table for figure in report.figures} == keys | {"kept", "feeding"}
    tables = {table.key: table.frame for table in report.tables}
    assert len(tables["features"]) == 4 and tables["importance"].chosen.sum() == 2
    assert {"transcoders", "linear maps", "zeroed", "untrained transcoders"} == set(tables["fits"].stand_in)
    assert {"training transcoders", "training transcoders (twin)", "ablating features and controls"} <= set(stages)
    assert report.config["task"] == "capitals"
