"""The abrupt-learning setting: its sequences by their definition, its network against plain attention, its training resumed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.formation.abrupt_data import Kind, World, examples, vectors
from mechlab.formation.abrupt_model import Seen, forward, fresh
from mechlab.formation.abrupt_training import AbruptRecipe, abrupt_measures, train_abrupt
from mechlab.results.study import silent

WORLD = World(items=4, labels=6, classes=9, burst=2, content=8, window=12, noise=0.0)
SMALL = AbruptRecipe(
    World(items=2, labels=4, content=8, window=7), (0, 1), hidden=8, steps=36, batch=8, every=3, judged=20
)


@pytest.mark.parametrize("kind", ["train", "context", "swapped", "weights"])
def test_sequences_are_what_their_kind_says(kind: Kind) -> None:
    own = vectors(WORLD, 3)
    found = examples(WORLD, own, kind, 200, [0])
    content = found.tokens[..., : WORLD.content]
    target, items, labels = content[:, 8], content[:, 0:8:2], content[:, 1:8:2]
    same = (items == target[:, None]).all(dim=2)
    assert torch.equal(same, found.right)
    assert torch.equal(labels, own.labels[found.shown])
    assert found.right.sum(dim=1).tolist() == [0 if kind == "weights" else 2] * 200  # B = 2
    if kind != "weights":
        assert torch.equal(found.shown[found.right], found.answer.repeat_interleave(2))
    known = (target[:, None] == own.classes[None]).all(dim=2)
    assert known.any(dim=1).tolist() == [kind != "context"] * 200
    if kind in ("train", "weights"):
        assert torch.equal(own.label_of[known.float().argmax(dim=1)], found.answer)
    if kind == "swapped":
        assert (own.label_of[known.float().argmax(dim=1)] != found.answer).any()
    positions = found.tokens[..., WORLD.content :]
    first = positions[:, 0].argmax(dim=1)
    assert torch.equal(positions.argmax(dim=2), first[:, None] + torch.arange(9)) and set(first.tolist()) == {
        0,
        1,
        2,
        3,
    }


def test_a_context_of_new_classes_has_different_labels_and_all_when_there_are_as_many() -> None:
    world = World(items=4, labels=4)
    shown = examples(world, vectors(world, 0), "train", 100, [0]).shown
    assert shown.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 100


def test_frequent_classes_come_more_often() -> None:
    world = replace(WORLD, alpha=2.0, classes=50, burst=1)
    own = vectors(world, 0)
    items = examples(world, own, "train", 400, [0]).tokens[:, 0, : world.content]
    counts = (items[:, None] == own.classes[None]).all(dim=2).sum(dim=0)
    assert counts[:3].sum() > 10 * counts[25:28].sum()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"burst": 3}, "burst must divide"), ({"labels": 1}, "too few"), ({"classes": 2}, "2 classes"), ({"window": 8}, "larger")],
)  # fmt: skip
def test_worlds_that_cannot_be_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(MechlabError, match=words):
        replace(WORLD, **change)


def test_the_network_is_two_plain_attention_layers_and_a_classifier() -> None:
    world = SMALL.world
    weights = fresh(world, 8, (0, 1))
    tokens = torch.randn(2, 3, world.width, world.size, generator=torch.Generator().manual_seed(0))
    found = forward(weights, tokens)
    for run in (0, 1):
        hidden = tokens[run]
        for layer in (0, 1):
            q, k, v = (hidden @ weights[f"{layer}.{name}"][run].T for name in "qkv")
            hidden = hidden + torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        x = hidden[:, -1]
        for at in range(4):
            x = x @ weights[f"mlp.{at}"][run].T
            x = x.relu() if at < 3 else x
        assert torch.allclose(found.logits[run], x, atol=1e-4)


def test_measures_by_hand() -> None:
    first, second = torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 1, 5)
    first[0, :, 1, 0], first[0, :, 3, 2] = 0.5, 0.25  # labels at 1 and 3 look back at their items
    second[0, 0, 0, 1], second[0, 0, 0, 3], second[0, 1, 0, 1] = 0.6, 0.2, 0.4
    logits = torch.tensor([[[0.0, 0.0, -99.0, -99.0], [0.0, 0.0, 0.0, 0.0]]])
    world = SMALL.world
    one = examples(world, vectors(world, 0), "train", 2, [0])
    one = replace(
        one,
        answer=torch.tensor([0, 3]),
        shown=torch.tensor([[0, 1], [3, 2]]),
        right=torch.tensor([[True, False], [True, False]]),
    )
    found = {name: float(value[0]) for name, value in abrupt_measures(Seen(logits, first, second), [one]).items()}
    assert found["ila1"] == pytest.approx(0.375)
    assert found["tila2"] == pytest.approx((0.6 + 0.4) / 2)
    assert found["tla2"] == pytest.approx((0.8 + 0.4) / 2)
    assert found["cla"] == pytest.approx((1.0 + 0.5) / 2)
    assert found["loss"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert found["accuracy"] == 0.5


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = train_abrupt(SMALL, tmp_path / "whole", silent)

    def stop(_label: str, done: int, _total: int) -> None:
        if done == 31:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_abrupt(SMALL, tmp_path / "parts", stop)
    steps: list[int] = []
    again = train_abrupt(SMALL, tmp_path / "parts", lambda _label, done, _total: steps.append(done))
    assert steps[0] == 28  # the tenth record was at step 27
    assert all(np.array_equal(curve, again.curves[name]) for name, curve in whole.curves.items())
