"""Facts: the bundled ones hold together, files are checked, the split shares no subject, answers are what greedy decoding says."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.analyses.facts import Fact, bundled_rows, foreign_facts, load_facts, split
from mechlab.analyses.facts_answers import answered, continuation_losses, questions, unembedded
from mechlab.analyses.facts_functions import load_requests, with_continuations
from mechlab.errors import MechlabError, PromptError, UnknownName
from mechlab.lens.edit import scale
from mechlab.lens.lens import Lens
from mechlab.models import load, tiny

HEAD = "relation,subject,object,template,other_template\n"


def test_the_bundled_facts() -> None:
    facts = load_facts()
    assert len(facts.by_relation) >= 8
    assert all(len(rows) >= 60 for rows in facts.by_relation.values())
    assert all("{subject}" in text for pair in facts.templates.values() for text in pair)
    by_function = Counter(row["function"] for row in bundled_rows("function_prompts.csv"))
    assert len(by_function) == 7 and min(by_function.values()) >= 30
    capitals = {f.subject for f in facts.by_relation["country_capital"]}
    foreign = foreign_facts(["country_capital"], ["france"])
    assert set(foreign) == {"de", "fr", "es"}
    assert {one.english for rows in foreign.values() for one in rows} <= capitals - {"France"}


@pytest.mark.parametrize("seed", [0, 1])
def test_no_subject_is_on_both_sides(seed: int) -> None:
    facts = load_facts(relations=["country_capital", "country_language", "country_continent", "plural"])
    sides = split(facts, 30, 14, seed=seed)
    of = [
        {f.subject.casefold() for rows in side.values() for f in rows} for side in (sides.detection, sides.evaluation)
    ]
    assert not of[0] & of[1]
    assert all(len(rows) == 30 for rows in sides.detection.values())
    assert all(10 <= len(rows) <= 14 for rows in sides.evaluation.values())
    assert split(facts, 30, 14, seed=seed) == sides != split(facts, 30, 14, seed=seed + 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relation,subject\na,b\n", "no column 'object'"),
        ("", "no column 'relation'"),
        (HEAD + "a,x,1,{subject} is,{subject} was\n", "give one relation"),
        (HEAD + "a,x,,{subject} is,{subject} was\n", "Row 2 .* has no object"),
        (
            HEAD
            + "a,x,1,{subject} is,{subject} was\na,X,2,{subject} is,{subject} was\nb,y,1,{subject} i,{subject} w\n",
            "subject 'x' twice",
        ),
        (HEAD + "a,x,1,it is,{subject} was\nb,y,1,{subject} is,{subject} was\n", "wording 'it is'"),
        (HEAD + "a,x,1,{subject} is,{subject} is\nb,y,1,{subject} is,{subject} was\n", "twice alike"),
        (
            HEAD
            + "a,x,1,{subject} is,{subject} was\na,y,1,{subject} to,{subject} was\nb,y,1,{subject} is,{subject} w\n",
            "more than one way",
        ),
        ("relation,subject,object\na,x,1\nb,y,2\n", "relation 'a' the wording ''"),
        ("relation,subject,object,split\na,x,1,test\nb,y,2,\n", "split 'test'"),
    ],
)
def test_files_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MechlabError, match=message):
        load_facts(str(path))


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(
        "relation,subject,object,split\nplural,cat,cats,\nplural,ox,oxen,evaluation\nantonym,hot,cold,\nantonym,OX,ant,detection\n"
    )
    facts = load_facts(str(path))
    assert facts.templates["plural"] == load_facts().templates["plural"]
    with pytest.raises(MechlabError, match="in detection and in evaluation"):
        split(facts, 5, 5)
    with pytest.raises(UnknownName, match="plurals"):
        load_facts(str(path), ["plurals"])
    with pytest.raises(MechlabError, match="There is no file"):
        load_facts(str(tmp_path / "none.csv"))


@pytest.mark.default_model
def test_right_is_what_greedy_decoding_says() -> None:
    lens = Lens(load())
    facts = load_facts().by_relation["country_capital"][6:34:3] + load_facts().by_relation["plural"][:3]
    asked = questions(lens, lambda fact: load_facts().templates[fact.relation][0], facts)
    found = answered(lens, asked, batch_size=4)
    generated = [one.ids for one in lens.generate(asked.bare, max_new_tokens=2, stop_at_eos=False)]
    want = [float(got[: len(answer)] == answer) for got, answer in zip(generated, asked.answers, strict=True)]
    assert found.right.tolist() == want
    assert 0 < sum(want) < len(want) and {len(answer) for answer in asked.answers} == {1, 2}
    first = lens.run(asked.bare, logits="last").last_logits.log_softmax(-1)  # pyright: ignore
    assert np.allclose(found.log_probability, [first[i, a[0]].item() for i, a in enumerate(asked.answers)], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_losses_are_those_of_the_models_own_logits(family: str) -> None:
    lens = Lens(tiny(family))
    tokens, starts = lens.tokens([[5, 6, 7, 8, 9], [9, 8, 7], [20, 21, 22, 23]]), [2, 1, 3]
    edits = [scale("L1.mlp_out", 0.5)]
    logits = lens.run(tokens, edits).logits
    assert logits is not None
    want = [
        float(torch.nn.functional.cross_entropy(logits[i, s - 1 : n - 1], tokens.ids[i, s:n]))
        for i, (s, n) in enumerate(zip(starts, tokens.lengths, strict=True))
    ]
    assert np.allclose(continuation_losses(lens, tokens, starts, edits), want, atol=1e-5)
    normed = lens.run(tokens, read=["final_norm"])
    assert torch.allclose(unembedded(lens, normed["final_norm"][0, :5]), normed.logits[0, :5], atol=1e-5)  # pyright: ignore
    with pytest.raises(PromptError, match="none to predict"):
        continuation_losses(lens, tokens, [5, 1, 1])


def test_requests(tmp_path: Path) -> None:
    sides = load_requests("bundled", 6, seed=1)
    assert {len(rows) for rows in sides.evaluation.values()} == {6}
    assert {len(rows) for rows in sides.detection.values()} == {24}
    lens = Lens(tiny("llama"))
    tokens, starts = with_continuations(lens, sides.evaluation["math"])
    assert all(0 < start < length for start, length in zip(starts, tokens.lengths, strict=True))
    path = tmp_path / "own.csv"
    path.write_text("function,prompt,continuation\n" + "".join(f"a,p{i},c\n" for i in range(12)))
    for text, message in [
        (path.read_text(), "one function"),
        (path.read_text() + "b,q,c\n", "Function 'b' has 1 prompts, and 10 are needed"),
        (path.read_text() + "b,p1,c\n", "Prompt 'p1' stands twice"),
        (path.read_text() + "b,q,\n", "Row 14 .* has no continuation"),
        ("function,prompt\na,b\n", "no continuation: give"),
    ]:
        path.write_text(text)
        with pytest.raises(MechlabError, match=message):
            load_requests(str(path), 6)


def test_facts_are_values() -> None:
    assert Fact("r", "s", "o") == Fact("r", "s", "o", "")
