"""Path patching walked back: measured edges have the scores of exact patching, and the walk goes where the planted circuit lies."""

from collections.abc import Mapping

import pytest
import torch
from planted_tasks import TASKS
from sklearn.metrics import roc_auc_score
from toys import toy_task

from circuits.methods import exact_edges, path_walk
from circuits.methods.exact_nodes import ExactSettings
from circuits.methods.path_walk import PathWalkSettings, Walk, walk
from circuits.wiring import Wiring
from mechlab.errors import MechlabError, UnknownName
from mechlab.lens.edit import patch
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import PLANTED, tiny
from mechlab.results.metrics import logit_difference
from mechlab.results.study import silent

STAGES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "induction": (("logits",), ("a1.h2",), ("a0.h1",)),
    "grouped": (("logits",), ("a2.h2",), ("a0.h1",)),
    "relay": (("logits",), ("m3",), ("a2.h0",), ("m1",)),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_walk_finds_the_planted_circuit(name: str) -> None:
    planted = PLANTED[name]()
    lens = Lens(planted.model)
    wiring = Wiring.of(lens)
    walked = walk(wiring, TASKS[name](lens, 6), PathWalkSettings(stages=len(STAGES[name])), silent)
    assert walked.stages == STAGES[name]
    truth = wiring.graph.select(planted.edges)
    assert bool(walked.measured[truth].all()) and not bool(walked.measured.all())
    assert roc_auc_score(truth[walked.measured], walked.values[walked.measured]) == 1.0


def test_both_heads_of_a_gate_are_walked_to() -> None:
    planted = PLANTED["and"]()
    lens = Lens(planted.model)
    wiring = Wiring.of(lens)
    walked = walk(wiring, TASKS["and"](lens, 6), PathWalkSettings(per_stage=0.2), silent)  # 2 of 10 heads
    assert set(walked.stages[2]) == {"a0.h3", "a1.h1"}
    truth = wiring.graph.select(planted.edges)
    assert roc_auc_score(truth[walked.measured], walked.values[walked.measured]) == 1.0


@pytest.mark.parametrize("family", ["gpt_neox", "qwen2"])
def test_measured_edges_have_the_exact_score(family: str) -> None:
    lens = Lens(tiny(family))
    wiring, task = Wiring.of(lens), toy_task(lens, n=3)
    walked = walk(wiring, task, PathWalkSettings(per_stage=0.17, batch_size=2), silent)  # 2 of 12 heads
    assert len(walked.stages) == 3 and all(len(stage) == 2 for stage in walked.stages[1:])
    exact = exact_edges.METHOD.score(wiring, task, ExactSettings()).values
    torch.testing.assert_close(walked.values[walked.measured].float(), exact[walked.measured], atol=1e-4, rtol=0)
    assert not walked.values[~walked.measured].any()
    expected = torch.zeros(wiring.graph.shape, dtype=torch.bool)
    expected[:, -1] = True
    for name in (*walked.stages[1], *walked.stages[2]):
        expected[:, wiring.graph.of_node[wiring.graph.sender(name)]] = True
    assert torch.equal(walked.measured, expected & wiring.graph.real)


def strongest(wiring: Wiring, walked: Walk) -> list[str]:
    """Heads by the size of their largest score into the logits."""
    order = walked.values[:, -1].abs().argsort(descending=True).tolist()
    return [wiring.graph.senders[i] for i in order if wiring.graph.senders[i].startswith("a")]


def test_paths_through_mlps_are_their_definition() -> None:
    lens = Lens(tiny("qwen2"))
    wiring, task = Wiring.of(lens), toy_task(lens, n=3)
    walked = walk(wiring, task, PathWalkSettings(stages=2, through_mlps=True, batch_size=2), silent)
    assert walked.stages[1][0] == strongest(wiring, walked)[0]
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    before = logit_difference(lens.run(task.clean).last_logits, task.answers, task.foils)
    for head in range(4):  # to the logits: later heads held, MLPs computed as they come
        edits = [patch(Site("z", 0, head), source="corrupted")]
        edits += [patch(Site("z", layer), source="clean") for layer in (1, 2)]
        after = logit_difference(lens.run(task.clean, edits, sources=sides).last_logits, task.answers, task.foils)
        score = walked.values[wiring.graph.sender(f"a0.h{head}"), -1]
        assert float(score) == pytest.approx(float((before - after).mean()), abs=1e-4)


def test_paths_through_mlps_into_a_receiver() -> None:
    """Where MLPs are silent, both kinds of path are the same; the input's edges always are."""
    planted = PLANTED["induction"]()
    lens = Lens(planted.model)
    wiring, task = Wiring.of(lens), TASKS["induction"](lens, 6)
    free, held = (walk(wiring, task, PathWalkSettings(through_mlps=mlps), silent) for mlps in (True, False))
    assert free.stages == held.stages and torch.equal(free.measured, held.measured)
    torch.testing.assert_close(free.values, held.values, atol=1e-4, rtol=0)
    wiring = Wiring.of(Lens(tiny("gpt2")))
    task = toy_task(wiring.lens, n=3)
    free, held = (walk(wiring, task, PathWalkSettings(stages=1, through_mlps=mlps), silent) for mlps in (True, False))
    assert (free.values[1:] - held.values[1:]).abs().max() > 1e-3
    torch.testing.assert_close(free.values[0], held.values[0], atol=1e-6, rtol=0)


def test_a_walk_ends_where_nobody_is_left() -> None:
    lens = Lens(tiny("gpt2"))
    wiring = Wiring.of(lens)
    found = path_walk.METHOD.score(wiring, toy_task(lens, n=2), PathWalkSettings(stages=50, per_stage=1.0))
    exact = exact_edges.METHOD.score(wiring, toy_task(lens, n=2), ExactSettings())
    torch.testing.assert_close(found.values, exact.values, atol=1e-5, rtol=0)


def test_bad_settings_are_refused() -> None:
    lens = Lens(tiny("gpt2"))
    wiring, task = Wiring.of(lens), toy_task(lens, n=2)
    with pytest.raises(MechlabError, match="Ablation 'zero' cannot walk paths"):
        path_walk.METHOD.score(wiring, task, PathWalkSettings(ablation="zero"))
    with pytest.raises(UnknownName, match="Unknown metric 'perplexity'"):
        path_walk.METHOD.score(wiring, task, PathWalkSettings(metric="perplexity"))
