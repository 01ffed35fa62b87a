"""Attribution graphs: rows are contributions, influence by hand, pruning, Neuronpedia's format and the figure."""

import pytest
import torch
from feature_toys import PROMPT, random_transcoder

from circuits.features.attribution import attribute
from circuits.features.drawing import graph_figure
from circuits.features.explained import Explained, explain
from circuits.features.frozen import FINAL
from circuits.features.graph import FeatureGraph, attribution_graph, influence, least_of, pruned, top_logits
from circuits.features.target import logit_target
from circuits.files import neuronpedia, neuronpedia_features
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.models import tiny


@pytest.fixture(scope="module")
def explained() -> Explained:
    lens = Lens(tiny("llama"))
    return explain(lens, PROMPT, [random_transcoder(lens, 0, n=20), random_transcoder(lens, 2, n=24)])


@pytest.fixture(scope="module")
def graph(explained) -> FeatureGraph:
    return attribution_graph(explained, *top_logits(explained, most=3))


def test_rows_are_contributions(explained, graph):
    assert graph.n_features == len(explained.active)
    n, size = graph.n_features, len(graph.names)
    assert graph.edges.shape == (size, size) and len(set(graph.names)) == size
    found = attribute(explained, [explained.target_of(n - 1), graph.targets[1]])
    for i, row in enumerate((n - 1, size - 2)):
        assert torch.allclose(graph.edges[row, :n], found.features[i], atol=1e-6)
        assert torch.allclose(graph.edges[row, n : n + 21], found.rest[i].flatten(), atol=1e-6)
        assert torch.allclose(graph.edges[row, n + 21 : n + 28], found.embeddings[i], atol=1e-6)
    assert not graph.edges[n:-3].any()  # what has no inputs
    order = {name: i for i, name in enumerate(graph.names)}
    assert order["L1 MLP@3"] == n + 7 + 3 and order["L0 error@3"] == n + 3 and order["L0 MLP@0"] == n


def test_the_likeliest_tokens(explained):
    lens = explained.run.lens
    chances = lens.run(PROMPT).logits[0, -1].softmax(-1)
    targets, weights = top_logits(explained, most=50, share=0.5)
    best = chances.sort(descending=True).values
    assert weights == pytest.approx(best[: len(weights)].tolist(), abs=1e-5)
    assert sum(weights) >= 0.5 > sum(weights[:-1])
    logits = lens.run(PROMPT).logits[0, -1]
    value = float(explained.run.at[FINAL][-1] @ targets[0].vector) + targets[0].constant
    assert value == pytest.approx(float(logits.max() - logits.mean()), abs=1e-4)


def test_influence_by_hand():
    """c reads a and b, d (the target) reads c and b: shares 1/4 and 3/4, 2/3 and 1/3; signs do not count."""
    edges = torch.zeros(4, 4)
    edges[2, 0], edges[2, 1], edges[3, 2], edges[3, 1] = -1.0, 3.0, 2.0, 1.0
    found = influence(edges, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert found.tolist() == pytest.approx([2 / 3 / 4, 1 / 3 + 2 / 3 * 3 / 4, 2 / 3, 0.0])
    cycle = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(MechlabError, match="cycle"):
        influence(cycle, torch.tensor([1.0, 0.0]))
    assert least_of(torch.tensor([1.0, 5.0, 3.0, 1.0]), 0.8) == 3.0
    assert least_of(torch.tensor([1.0, 5.0, 3.0, 1.0]), 1.0) == 1.0


def test_a_few_features_are_those_of_most_influence(explained, graph):
    """The search finds them a few dozen at a time, and knows only the rows it has found."""
    reach, few = graph.influence()[: graph.n_features], 70
    small = attribution_graph(explained, graph.targets, graph.target_weights.tolist(), max_features=few)
    assert small.n_features == few < graph.n_features
    assert float(reach[small.active].sum()) > 0.97 * float(reach.topk(few).values.sum())
    row = small.active.tolist().index(int(reach.argmax()))
    assert torch.equal(small.edges[row, :few], graph.edges[int(reach.argmax()), small.active])


def test_pruning_keeps_most_influence_and_no_loose_ends(graph):
    small = pruned(graph, nodes=0.6, edges=0.6)
    reach = graph.influence()
    fixed = torch.tensor([part.kind == "embedding" for part in graph.parts] + [True] * 3)
    assert bool(small.kept[fixed].all()) and 0 < int(small.kept.sum()) < int(graph.kept.sum())
    assert float(reach[small.kept].sum() / reach.sum()) > 0.5
    n = graph.n_features
    free = small.kept & ~fixed
    assert bool(small.kept_edges.any(dim=0)[free].all())  # everything leads somewhere
    assert bool(small.kept_edges[:n].any(dim=1)[small.kept[:n]].all())  # every feature is fed by something
    assert not small.kept_edges[~small.kept].any() and not small.kept_edges[:, ~small.kept].any()
    assert len(small.edge_table()) == int(small.kept_edges.sum()) < int(graph.kept_edges.sum())
    whole = pruned(graph, nodes=1.0, edges=1.0)
    assert int(whole.kept_edges.sum()) >= int(small.kept_edges.sum())
    with pytest.raises(MechlabError, match="80 is no share"):
        pruned(graph, nodes=80)


def test_scores_know_an_exact_graph_from_one_of_errors(graph):
    found = graph.scores()
    assert 0 < found["replacement"] < 1 and 0 < found["completeness"] < 1
    no_errors = graph.edges.clone()
    errors = [i for i, part in enumerate(graph.parts) if part.kind in ("error", "mlp")]
    no_errors[:, errors] = 0
    exact = FeatureGraph(
        graph.explained,
        graph.parts,
        graph.targets,
        graph.target_weights,
        graph.active,
        no_errors,
        graph.kept,
        no_errors != 0,
    )
    assert exact.scores() == pytest.approx({"completeness": 1.0, "replacement": 1.0})


def test_neuronpedia_takes_it_and_it_reads_back(graph, tmp_path):
    small = pruned(graph, nodes=0.7, edges=0.9)
    label = next(part for i, part in enumerate(small.parts) if part.kind == "feature" and bool(small.kept[i]))
    path = neuronpedia_features.write(
        small, tmp_path / "g.json", slug="tiny", labels={(label.layer, label.feature): "a label"}
    )
    found = neuronpedia.read(path)
    assert len(found.nodes) == int(small.kept.sum()) and len(found.links) == int(small.kept_edges.sum())
    ids = found.nodes.index.get_level_values("node_id")
    everything = neuronpedia_features.record(graph, slug="tiny")["nodes"]
    assert len({node["node_id"] for node in everything}) == len(everything) > len(ids)  # unlike circuit-tracer's
    types = found.nodes.reset_index()
    assert set(types.feature_type) == {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    assert set(types[types.feature_type == "logit"].layer) == {"4"}
    named = types[types.clerp == "a label"].iloc[0]
    assert named.node_id == f"{label.layer}_{label.feature}_{label.pos}" and named.layer == str(label.layer)
    total = label.layer + label.feature
    assert named.feature == total * (total + 1) // 2 + label.feature
    i = small.parts.index(label)
    assert named.activation == pytest.approx(float(graph.explained.active.value[i]))
    reach = graph.influence()
    assert named.influence == pytest.approx(float(reach[reach >= reach[i]].sum() / reach.sum()), abs=1e-4)
    links = {(row.source, row.target): row.weight for row in found.links.itertuples()}
    best = small.edge_table().iloc[0]
    assert max(links.values(), key=abs) == pytest.approx(best.contribution, rel=1e-6)
    assert found.metadata["prompt_tokens"] == list(graph.explained.run.tokens.pieces[0])


def test_the_figure_shows_what_is_kept(graph):
    small = pruned(graph, nodes=0.8, edges=0.9)
    figure = graph_figure(small, "T", max_edges=20)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == 20
    assert any("smallest edges are not drawn" in note.text for note in figure.layout.annotations)
    best = small.edge_table().iloc[0]
    assert best.source in lines[-1].text and best.target.split("'")[0] in lines[-1].text


def test_what_makes_no_graph_is_refused(explained, graph):
    target = logit_target(explained.run.lens, 7)
    with pytest.raises(MechlabError, match="targets with positive weights"):
        attribution_graph(explained, [])
    with pytest.raises(MechlabError, match="targets with positive weights"):
        attribution_graph(explained, [target], [0.5, 0.5])
    empty = FeatureGraph(
        explained,
        graph.parts,
        graph.targets,
        graph.target_weights,
        graph.active,
        graph.edges,
        graph.kept,
        graph.edges > 1e9,
    )
    with pytest.raises(MechlabError, match="prune less"):
        neuronpedia_features.record(empty, slug="x")
    with pytest.raises(MechlabError, match="nothing to draw"):
        graph_figure(empty)
