"""Edges patched together, against one plain forward pass that sums every receiver's stream anew, and against their closed forms."""

import numpy as np
import pytest
import torch
from plain_edges import patched
from toys import toy_task

from mechlab.errors import EditError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models import EXPERT_FAMILIES, FAMILIES, tiny
from mechlab.patching.edge_sets import edge_set_effects
from mechlab.patching.edges import edge_effects, nodes
from mechlab.results.metrics import logit_difference

POST_NORM = ("gemma2", "gemma3", "olmo2")
EVERY_FAMILY = tuple(dict.fromkeys((*FAMILIES, *EXPERT_FAMILIES)))


def names(lens: Lens) -> list[str]:
    senders, receivers = nodes(lens)
    return [r.edge(s) for r in receivers for s in senders if s.depth < r.depth]


def drawn(lens: Lens, seed: int = 0) -> list[list[str]]:
    """Sets of 2, 5, 20, ... edges in no order, and three heads of one layer into one query, one MLP and the logits."""
    generator, every = np.random.default_rng(seed), names(lens)
    sets = [list(generator.choice(every, size, replace=False)) for size in (2, 5, 20, 60, 150)]
    return [*sets, *([f"a1.h{h}->{r}" for h in (0, 2, 3)] for r in ("a2.h1<q>", "m1", "logits"))]


def after(found, i: int) -> torch.Tensor:
    return torch.tensor(found[found["set"] == i]["after"].to_numpy()).float()


@pytest.mark.parametrize(
    ("family", "base"),
    [
        *((family, "clean") for family in ("llama", "granite", "granitemoe", *POST_NORM)),
        ("olmo2", "corrupted"),
        ("granite", "corrupted"),
    ],
)
def test_sets_are_what_one_plain_pass_with_them_gives(family: str, base: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    sets = drawn(lens)
    found = edge_set_effects(lens, task, sets, base=base)
    for i, edges in enumerate(sets):
        expected = logit_difference(patched(family, lens, task, edges, base), task.answers, task.foils)
        assert torch.allclose(after(found, i), expected, atol=1e-4, rtol=0), (
            f"{edges}: {(after(found, i) - expected).abs().max()}"
        )
        assert (after(found, i) - torch.tensor(found[found["set"] == i]["before"].to_numpy())).abs().max() > 1e-3, edges


@pytest.mark.parametrize(
    ("family", "base"), [*((family, "clean") for family in EVERY_FAMILY), *((f, "corrupted") for f in POST_NORM)]
)
def test_no_edge_is_this_side_and_all_edges_are_the_other(family: str, base: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens, n=3)
    found = edge_set_effects(lens, task, [[], names(lens)], base=base)
    other = "corrupted" if base == "clean" else "clean"
    assert (found["before"] == found[base]).all()
    for i, side in enumerate((base, other)):
        rows = found[found["set"] == i]
        assert abs(rows["after"] - rows[side]).max() <= 1e-4
    assert abs(found["clean"] - found["corrupted"]).max() > 0.05


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_set_of_one_is_that_edge(family: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens, n=2)
    chosen = list(np.random.default_rng(1).choice(names(lens), 12, replace=False))
    one_by_one = edge_effects(lens, task, edges=set(chosen).__contains__).set_index("edge")
    found = edge_set_effects(lens, task, [[name] for name in chosen])
    for i, name in enumerate(chosen):
        rows = found[found["set"] == i]
        assert abs(rows["after"].to_numpy() - one_by_one.loc[name, "after"].to_numpy()).max() <= 1e-4, name


def test_progress_metric_and_unknown_edges() -> None:
    lens = Lens(tiny("gemma3"))
    task = toy_task(lens, n=2)
    seen: list[tuple[int, int]] = []
    found = edge_set_effects(
        lens,
        task,
        [["m0->m2"], [], ["m0->m2", "m0->m2"]],
        "kl",
        progress=lambda _l, done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (after(found, 0) == after(found, 2)).all() and after(found, 0).max() > 1e-4 and not after(found, 1).any()
    with pytest.raises(UnknownName, match="Unknown edge 'm2->m0'"):
        edge_set_effects(lens, task, [["m0->m2"], ["m2->m0"]])
    with pytest.raises(UnknownName, match=r"choose one of: input->a0\.h0<q>"):
        edge_set_effects(lens, task, [["?"]])
    with pytest.raises(EditError, match="No set of edges"):
        edge_set_effects(lens, task, [])
