"""The transcoder study: its measurements against plain formulas on a model whose MLPs are their own transcoders, and its verdicts."""

import dataclasses

import numpy as np
import pytest
import torch
from feature_toys import mlp_as_transcoder, random_transcoder, relu_gpt2

from circuits.features.attribution import attribute
from circuits.features.explained import explain_run
from circuits.features.target import feature_target
from circuits.studies import transcoder_claims as claims
from circuits.studies.transcoder import STUDY, Settings, gather
from circuits.studies.transcoder_dictionaries import Neurons, linear_map, permuted, untrained, zeroed
from circuits.studies.transcoder_evidence import Evidence
from circuits.studies.transcoder_fits import losses
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
    assert {table.key for table in report.tables} == keys
    tables = {table.key: table.frame for table in report.tables}
    assert len(tables["features"]) == 4 and tables["importance"].chosen.sum() == 2
    assert {"transcoders", "linear maps", "zeroed", "untrained transcoders"} == set(tables["fits"].stand_in)
    assert {"training transcoders", "training transcoders (twin)", "ablating features and controls"} <= set(stages)
    assert report.config["task"] == "capitals"
