"""Passages are stretches of documents, distinct, of the asked length, in two parts that never overlap."""

from pathlib import Path

import pytest

from mechlab.errors import MechlabError
from mechlab.texts import passages
from mechlab.texts.documents import documents
from mechlab.texts.passage import cut


def test_bundled_passages_are_distinct_stretches_of_the_length_asked_for() -> None:
    found = passages(count=500, seed=1)
    whole = "\n\n\n".join(documents("bundled"))
    assert len(set(found)) == 500
    assert all(200 <= len(p) <= 400 and p in whole for p in found)
    ended = sum(p.rstrip("\"'”’)]")[-1] in ".!?" for p in found)
    assert ended > 450  # the others stop at a word, in sentences longer than half a passage


def test_the_two_parts_share_no_passage_and_no_document() -> None:
    fit, held = set(passages(count=6000, seed=0)), set(passages(count=1100, seed=0, part="held-out"))
    assert not fit & held
    sides = [
        (bool(fit & set(found)), bool(held & set(found))) for found in ([*cut(d, 400)] for d in documents("bundled"))
    ]
    assert not any(in_fit and in_held for in_fit, in_held in sides)
    assert sum(in_held for _, in_held in sides) > 40


def test_seed_orders_and_fewer_are_the_first_of_more() -> None:
    assert passages(count=20, seed=4) == passages(count=50, seed=4)[:20]
    assert passages(count=20, seed=4) != passages(count=20, seed=5)


def test_cut_by_hand() -> None:
    text = 'Mr. A. Smith ran. "Why?" he said. Then ' + "word " * 30 + "end. Tail."
    assert list(cut(text, 40)) == [
        'Mr. A. Smith ran. "Why?" he said.',
        "Then " + ("word " * 7).strip(),
        ("word " * 8).strip(),
        ("word " * 8).strip(),
        ("word " * 7).strip() + " end.",
    ]  # titles and initials end no sentence; a long one is cut at words; a rest under half is left out
    assert list(cut("x" * 50, 20)) == ["x" * 20, "x" * 20, "x" * 10]


def test_of_few_documents_each_is_cut_in_two(tmp_path: Path) -> None:
    sentences = [f"Sentence number {i:03d} stands here." for i in range(100)]
    (tmp_path / "one.txt").write_text(" ".join(sentences))
    fit = passages(str(tmp_path / "one.txt"), count=70, characters=32)
    held = passages(str(tmp_path / "one.txt"), count=20, characters=32, part="held-out")
    assert set(fit) <= set(sentences[:80])
    assert set(held) <= set(sentences[80:]) | {sentences[79]}
    assert not set(fit) & set(held)


def test_a_document_given_twice_is_in_one_part(tmp_path: Path) -> None:
    lines = [f'{{"text": "Document {i % 30} says this and then a little more."}}' for i in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    source = str(tmp_path / "d.jsonl")
    with pytest.raises(MechlabError, match=r"has (\d+) passages") as fit_error:
        passages(source, count=999, characters=60)
    n_fit = int(str(fit_error.value).split(" has ")[1].split()[0])
    with pytest.raises(MechlabError) as held_error:
        passages(source, count=999, characters=60, part="held-out")
    n_held = int(str(held_error.value).split(" has ")[1].split()[0])
    assert n_fit > n_held > 0
    assert n_fit + n_held == 30


def test_bad_requests_are_refused() -> None:
    with pytest.raises(MechlabError, match="ask for fewer or shorter ones"):
        passages(count=100_000)
    with pytest.raises(MechlabError, match="0 passages"):
        passages(count=0)
    with pytest.raises(MechlabError, match="5 characters are too short"):
        passages(count=1, characters=5)
    with pytest.raises(MechlabError, match="Part 'test' is unknown"):
        passages(count=1, part="test")  # pyright: ignore[reportArgumentType]
