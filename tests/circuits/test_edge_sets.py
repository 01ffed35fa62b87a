"""Edges patched together are holes in the mask of a run with weighted edges: one mechanism beside the other."""

import numpy as np
import pytest
import torch
from toys import toy_task

from circuits.wiring import Wiring
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.patching.edge_sets import edge_set_effects
from mechlab.results.metrics import logit_difference


@pytest.mark.parametrize("base", ["clean", "corrupted"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2", "mixtral"])
def test_sets_of_edges_are_holes_in_a_mask(family: str, base: str) -> None:
    lens = Lens(tiny(family))
    wiring, task = Wiring.of(lens), toy_task(lens)
    generator, every = np.random.default_rng(0), wiring.graph.names(wiring.graph.real)
    sets = [list(generator.choice(every, size, replace=False)) for size in (2, 10, 60, 150)]
    masks = torch.stack([wiring.graph.real & ~wiring.graph.select(names) for names in sets]).float()
    here, there = (task.clean, task.corrupted) if base == "clean" else (task.corrupted, task.clean)
    with torch.no_grad():
        runs = wiring.run(here, wiring.record(there), masks)
    expected = torch.stack([logit_difference(logits, task.answers, task.foils) for logits in runs])
    found = edge_set_effects(lens, task, sets, base=base)
    got = torch.tensor(found["after"].to_numpy()).float().view(len(sets), -1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    before = torch.tensor(found["before"].to_numpy()).float().view(len(sets), -1)
    assert (got - before).abs().amax(dim=1).min() > 1e-3
