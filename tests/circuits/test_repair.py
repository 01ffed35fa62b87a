"""The repair is what its Edits say: it names the one planted head, touches no other, and equals a run prompt by prompt."""

import numpy as np
import pytest
import torch
from worded_toys import worded

from circuits.repair import Layout, layouts, overwrite, reading, repaired, search, unedited
from circuits.tasks.colored_objects import colored_objects
from mechlab.analyses.direct_logit import direct_logit
from mechlab.errors import PromptError, SiteError
from mechlab.lens.edit import pattern
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import PLANTED
from mechlab.models.planted_circuits import COPY
from mechlab.models.planted_gpt2 import marked
from mechlab.models.planting import plain
from mechlab.patching.task import Task

WRONG = ("COLOR2", "COLOR3")


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(worded())


@pytest.fixture(scope="module")
def task(lens: Lens) -> Task:
    return colored_objects(lens, 7, split="discovery")


def misled(lens: Lens) -> Task:
    """Prompts of unequal length: the planted model answers the word in capitals, but right is another word, at RIGHT."""
    prompts, answers, foils, right, wrong = [], [], [], [], []
    for length, at, other in ((4, 1, 2), (6, 4, 2), (6, 2, 5), (8, 3, 1), (6, 4, 2)):
        words = [(3 * place + length) % (COPY.n_words - 1) + 1 for place in range(length)]
        ids = [0, *map(plain, words)]
        ids[at] = marked(words[at - 1], COPY.n_words)
        prompts.append(ids)
        answers.append(plain(words[other - 1]))
        foils.append(plain(words[at - 1]))
        right.append(other)
        wrong.append(at)
    tokens = lens.tokens(prompts).labelled(RIGHT=right, WRONG=wrong)
    return Task("misled", tokens, tokens, torch.tensor(answers), torch.tensor(foils))


def test_the_planted_head_is_found_and_repairs_every_answer() -> None:
    """a2.h1 writes the word it attends to; a0.h1 has its pattern and output, but nobody reads it; the others do not matter either."""
    lens = Lens(PLANTED["copy"]().model)
    task = misled(lens)
    assert not unedited(lens, task, "accuracy").any()
    heads = [[(layer, head)] for layer in range(3) for head in range(2)]
    gain = (repaired(lens, task, heads, ["RIGHT"]) - unedited(lens, task)).mean(axis=1).reshape(3, 2)
    assert np.unravel_index(gain.argmax(), gain.shape) == (2, 1)
    assert np.abs(np.delete(gain.ravel(), 5)).max() < 0.05 * gain[2, 1]
    assert search(gain, 1, 2) == [(2, 1)]
    assert repaired(lens, task, [[(2, 1)]], ["RIGHT"], "accuracy").all()
    assert not repaired(lens, task, [[(2, 1)]], ["WRONG"], "accuracy").any()


def test_a_repair_equals_a_run_of_each_prompt_alone(lens: Lens, task: Task) -> None:
    sets = [[(1, 2)], [(0, 1), (2, 3)], []]
    found = repaired(lens, task, sets, WRONG)
    assert len(layouts(task, WRONG)) == 3  # each of the three colors in turn is the right one
    for row in range(len(task)):
        one = task.select([row])
        width = one.clean.lengths[0]
        at = [one.clean.positions(label)[0] for label in WRONG]
        attention = [0.5 if key in at else 0.0 for key in range(width)]
        for number, heads in enumerate(sets):
            edits = [pattern(Site("pattern", layer, head, width - 1), attention) for layer, head in heads]
            logits = lens.run(one.clean, edits, logits="last").last_logits
            assert logits is not None
            alone = logits[0, one.answers[0]] - logits[0, one.foils[0]].mean()
            assert found[number, row] == pytest.approx(float(alone), abs=1e-4)


def test_no_heads_change_nothing_and_patterns_that_are_there_change_nothing(lens: Lens, task: Task) -> None:
    before = unedited(lens, task)
    assert (repaired(lens, task, [[]], WRONG)[0] == before).all()
    one = task.select([0])
    row = lens.run(one.clean, read=[Site("pattern", 1, 2, -1)])[Site("pattern", 1, 2, -1)][0]
    logits = lens.run(one.clean, [pattern(Site("pattern", 1, 2, -1), row)], logits="last").last_logits
    assert logits is not None
    assert float(logits[0, one.answers[0]] - logits[0, one.foils[0]].mean()) == pytest.approx(before[0], abs=1e-4)


def test_only_the_repaired_head_and_what_is_above_it_change(lens: Lens, task: Task) -> None:
    before, after = (reading(lens, task, heads, "COLOR", WRONG) for heads in ([], [(1, 2)]))
    np.testing.assert_array_equal(after.to_wrong[:, 1, 2], 1.0)
    np.testing.assert_array_equal(after.to_right[:, 1, 2], 0.0)
    same = np.ones((3, 4), dtype=bool)
    same[1, 2], same[2] = False, False
    np.testing.assert_allclose(after.to_wrong[:, same], before.to_wrong[:, same], atol=1e-6)
    assert np.abs(after.to_wrong[:, 2] - before.to_wrong[:, 2]).max() > 1e-4
    assert (before.to_right + before.to_wrong <= 1 + 1e-6).all()
    at_end = lens.run(task.clean, read=["L2.pattern@-1"])["L2.pattern@-1"]
    for row, at in enumerate(task.clean.positions("COLOR")):
        np.testing.assert_allclose(before.to_right[row, 2], at_end[row, :, at], atol=1e-6)


def test_the_overwritten_pattern_changes_z_of_that_head_alone(lens: Lens, task: Task) -> None:
    layout = layouts(task, WRONG)[0]
    part = task.select(layout.rows).clean
    edits = overwrite([(1, 2)], layout)
    z, edited = (lens.run(part, some, read=["L1.z", "L1.pattern"]) for some in ([], edits))
    changed = (z["L1.z"] - edited["L1.z"]).abs().amax(dim=(0, 1, 3)) > 0
    assert changed.tolist() == [False, False, True, False]
    assert (z["L1.z"] - edited["L1.z"])[:, :-1].abs().max() == 0  # the last token alone
    torch.testing.assert_close(edited["L1.pattern"].sum(-1), torch.ones_like(edited["L1.pattern"].sum(-1)))


def test_direct_effects_under_a_repair_add_up_to_its_logit_difference(lens: Lens, task: Task) -> None:
    layout = layouts(task, WRONG)[1]
    part = task.select(layout.rows)
    split = direct_logit(lens, part, overwrite([(1, 2)], layout))
    whole = repaired(lens, part, [[(1, 2)]], WRONG)[0]
    np.testing.assert_allclose(split.total, whole, atol=1e-3)
    np.testing.assert_allclose(split.heads.sum((1, 2)) + split.mlps.sum(1) + split.rest, whole, atol=1e-3)
    np.testing.assert_allclose(
        reading(lens, task, [(1, 2)], "COLOR", WRONG).direct[list(layout.rows)], split.heads, atol=1e-5
    )
    assert np.abs(split.total.numpy() - unedited(lens, part)).max() > 1e-2


def test_search_takes_gains_only_and_half_of_a_layer() -> None:
    gain = np.array([[3.0, 2.0, 1.0, 0.5], [0.2, -1.0, 0.0, 0.1]])
    assert search(gain, 3, 4) == [(0, 0), (0, 1), (1, 0)]
    assert search(gain, 9, 4) == [(0, 0), (0, 1), (1, 0), (1, 3)]
    assert search(-np.ones((2, 4)), 3, 4) == []


def test_layouts_and_labels(lens: Lens, task: Task) -> None:
    found = layouts(task, WRONG)
    assert sorted(row for one in found for row in one.rows) == list(range(len(task)))
    assert overwrite([(0, 1)], Layout((0,), (1, 3), 5)) == [pattern("L0H1.pattern@-1", [0, 0.5, 0, 0.5, 0])]
    with pytest.raises(PromptError, match="Position label 'COLOR9' is unknown"):
        layouts(task, ["COLOR9"])
    with pytest.raises(PromptError, match="No label was given"):
        layouts(task, [])
    with pytest.raises(PromptError, match="two of the labels"):
        layouts(task, ["COLOR2", "COLOR2"])
    with pytest.raises(SiteError):
        repaired(lens, task, [[(7, 0)]], WRONG)
