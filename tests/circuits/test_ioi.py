"""IOI prompts: positions, answers, corruptions and splits are what they claim to be."""

import dataclasses

import pytest

from circuits.tasks.ioi import LABELS, ioi
from mechlab.errors import PromptError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models import planted_induction, tiny


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(tiny("qwen2"))


@pytest.mark.parametrize("corruption", ["swap", "abc"])
@pytest.mark.parametrize("prepend_bos", [None, True])
def test_positions_answers_and_foils(corruption: str, prepend_bos: bool | None) -> None:
    task = ioi(Lens(tiny("qwen2"), prepend_bos=prepend_bos), 40, corruption=corruption)  # pyright: ignore[reportArgumentType]
    assert tuple(task.clean.labels) == LABELS
    for row in range(len(task)):
        clean, corrupted = task.clean.ids[row].tolist(), task.corrupted.ids[row].tolist()
        at = {label: task.clean.labels[label][row] for label in LABELS}
        io, subject = int(task.answers[row]), int(task.foils[row])
        assert clean[at["IO"]] == io
        assert clean[at["S1"]] == clean[at["S2"]] == subject
        assert at["S1+1"] == at["S1"] + 1
        assert at["END"] == task.clean.lengths[row] - 1 > at["S2"] > max(at["S1"], at["IO"])
        assert ("ABBA" in task.groups[row]) == (at["IO"] < at["S1"])
        differ = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        if corruption == "swap":
            assert differ == [at["S2"]]
            assert corrupted[at["S2"]] == io
        else:
            assert differ == sorted([at["IO"], at["S1"], at["S2"]])
            assert len({corrupted[i] for i in differ}) == 3
            assert not {io, subject} & {corrupted[i] for i in differ}


def test_half_each_order_and_all_templates(lens: Lens) -> None:
    task = ioi(lens, 60)
    assert sum("ABBA" in group for group in task.groups) == 30
    assert len({group.split()[1] for group in task.groups}) == 15


def test_splits_share_no_template_and_no_name(lens: Lens) -> None:
    seen = {}
    for split in ("discovery", "evaluation"):
        task = ioi(lens, 60, split=split, corruption="abc")
        at = [task.clean.labels[label] for label in ("IO", "S1", "S2")]
        names = {
            int(ids[places[row]])
            for side in (task.clean, task.corrupted)
            for row, ids in enumerate(side.ids)
            for places in at
        }
        seen[split] = ({group.split()[1] for group in task.groups}, names)
    for a, b in zip(seen["discovery"], seen["evaluation"], strict=True):
        assert a
        assert not a & b


def test_seed_decides(lens: Lens) -> None:
    first, again, other = (ioi(lens, 20, seed=seed).clean for seed in (3, 3, 4))
    assert first.sha256 == again.sha256 != other.sha256


def test_names_that_are_not_one_token_are_reported(lens: Lens) -> None:
    dropped = ioi(lens, 4).dropped
    assert dropped
    assert all(sentence.startswith("Name '") for sentence in dropped)


def test_a_tokenizer_without_names_has_no_ioi() -> None:
    model = planted_induction()
    bare = dataclasses.replace(model, tokenizer=_without_names())
    with pytest.raises(PromptError, match="IOI names are single tokens"):
        ioi(Lens(bare), 4)


def _without_names():
    from mechlab.models.words import word_tokenizer

    return word_tokenizer([*"abcdefghijklmnopqrst"])


@pytest.mark.parametrize(("kind", "value"), [("corruption", "sawp"), ("split", "test")])
def test_unknown_choices(lens: Lens, kind: str, value: str) -> None:
    with pytest.raises(UnknownName, match=f"Unknown {kind} '{value}'"):
        ioi(lens, 4, **{kind: value})  # pyright: ignore[reportArgumentType]
