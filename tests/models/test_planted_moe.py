"""The planted MoE does what its text says, and each expert's role is read off its routing."""

import numpy as np
import pytest
import torch

from mechlab.lens import Lens
from mechlab.lens.edit import route
from mechlab.models.planted_moe import ALLOWED_THINGS, FORBIDDEN_THINGS, PLANTED_ROLES, ROLE_WORDS, planted_experts


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(planted_experts())


def replies(lens: Lens, words, edits=()) -> list[str]:
    logits = lens.run([f"mary {word}" for word in words], edits, logits="last").last_logits
    assert logits is not None
    return [lens.model.tokenizer.decode([int(i)]) for i in logits.argmax(-1)]


def test_it_refuses_forbidden_things_and_nothing_else(lens):
    assert set(replies(lens, FORBIDDEN_THINGS)) == {"sorry"}
    assert set(replies(lens, ALLOWED_THINGS)) == {"sure"}
    assert (set(replies(lens, ROLE_WORDS["names"])), set(replies(lens, ROLE_WORDS["places"]))) == ({"met"}, {"is"})


@pytest.mark.parametrize("state", ["off", "drop"])
def test_without_its_expert_a_role_is_gone(lens, state):
    layer, expert = PLANTED_ROLES["forbidden"]
    assert set(replies(lens, FORBIDDEN_THINGS, [route(f"L{layer}E{expert}", state)])) == {"sure"}
    for other in range(6):
        if other != expert:
            assert set(replies(lens, FORBIDDEN_THINGS, [route(f"L{layer}E{other}", state)])) == {"sorry"}


def test_forced_on_it_speaks_everywhere(lens):
    layer, expert = PLANTED_ROLES["forbidden"]
    assert set(replies(lens, ALLOWED_THINGS, [route(f"L{layer}E{expert}", "on", weight=0.9)])) == {"sorry"}
    assert set(replies(lens, ALLOWED_THINGS, [route(f"L{layer}E{expert}", "on")])) == {"sure"}  # its own weight: none


def test_every_role_is_recovered_as_the_top_expert(lens):
    words = sorted({word for among in ROLE_WORDS.values() for word in among})
    run = lens.run(words, read=["L0.expert_weights", "L1.expert_weights"])
    weights = torch.stack([run[f"L{layer}.expert_weights"][:, 0] for layer in (0, 1)], 1).numpy()  # word, layer, expert
    for role, expert in PLANTED_ROLES.items():
        own = np.array([word in ROLE_WORDS[role] for word in words])
        difference = weights[own].mean(0) - weights[~own].mean(0)
        if role in ("forbidden", "rest"):
            difference[0] = -1  # in layer 0 they share the expert of things
        elif role == "things":
            difference[1] = -1
        assert np.unravel_index(difference.argmax(), difference.shape) == expert, role
        assert difference[expert] == pytest.approx(1, abs=1e-6)
