"""Judges, damage and dose-response: worked by hand on known logits and texts, on a planted behaviour, and refused when misused."""

import numpy as np
import pytest
import torch
from steering_toys import ANSWER, PAIRS, made
from torch.testing import assert_close

from mechlab.errors import MechlabError, PromptError
from mechlab.lens.edit import add
from mechlab.lens.site import Site
from mechlab.patching.task import Task
from steering import judges
from steering.application import steer
from steering.dose import Bench, at_equal_kl, dose_response
from steering.examples import Material
from steering.judges import Answers
from steering.methods.catalogue import method
from steering.methods.random_direction import as_long_as
from steering.side_effects import Neutral, accuracy_drift, distinct_n, repetition

PASSAGES = [[5, 6, 7, 8, 9], [9, 8, 7], [20, 21, 22, 23, 24, 25], [30, 31], [12, 13, 14]]


def given(lens, logits, texts=None) -> Answers:
    return Answers(lens.tokens([[5]] * len(logits)), torch.tensor(logits).log(), texts)


def test_token_mass_and_accuracy_by_hand(lens):
    word = str(lens.model.tokenizer.decode([7])).strip()
    assert lens.model.tokenizer(word, add_special_tokens=False)["input_ids"][0] == 7
    probabilities = torch.full((2, lens.model.vocab_size), 0.5 / (lens.model.vocab_size - 1))
    probabilities[0, 7], probabilities[1] = 0.5, 1 / lens.model.vocab_size
    mass = judges.token_mass(lens, [word])(given(lens, probabilities.tolist()))
    assert mass == pytest.approx([0.5, 1 / lens.model.vocab_size], rel=1e-4)
    right = judges.right_answers(torch.tensor([7, 7]), torch.tensor([[8], [8]]))
    assert right(given(lens, probabilities.tolist())).tolist() == [1, 0]
    with pytest.raises(PromptError, match="needs words"):
        judges.token_mass(lens, [])


def test_any_function_is_a_judge_if_it_gives_a_number_per_prompt(lens):
    answers = given(lens, [[0.5] * 3] * 2, ("a b", "a b c"))
    assert judges.by("words", lambda texts: [len(text.split()) for text in texts])(answers).tolist() == [2, 3]
    for bad in (lambda texts: [1.0], lambda texts: [1.0, float("nan")]):  # noqa: ARG005
        with pytest.raises(MechlabError, match="one number per prompt"):
            judges.by("bad", bad)(answers)
    with pytest.raises(PromptError, match="none was generated"):
        judges.by("words", len)(given(lens, [[0.5] * 3]))


def test_the_classifier_tells_new_texts_of_its_kinds_apart(lens):
    word = lambda ids: str(lens.model.tokenizer.decode(ids))  # noqa: E731

    def draw(low: int, seed: int) -> list[str]:
        ids = torch.randint(low, low + 4, (12, 8), generator=torch.Generator().manual_seed(seed))
        return [word(row) for row in ids.tolist()]

    wanted, other = draw(20, 0), draw(100, 1)
    judge = judges.classifier(lens, wanted[:8], other[:8], "L1.resid_post")
    found = judge(given(lens, [[0.5] * 3] * 8, (*wanted[8:], *other[8:])))
    assert found[:4].min() > found[4:].max()
    with pytest.raises(PromptError, match="two texts"):
        judges.classifier(lens, wanted[:1], other, "L1.resid_post")


def test_the_model_is_asked_in_its_own_words(lens):
    word = lambda i: str(lens.model.tokenizer.decode([i]))  # noqa: E731
    judge = judges.asked(lens, "{text} " + word(40), yes=word(41), no=word(42))
    text = f"{word(30)} {word(31)}"
    logits = lens.run([f"{text} {word(40)}"]).last_logits[0]
    assert judge(given(lens, [[0.5] * 3], (text,)))[0] == pytest.approx(
        torch.sigmoid(logits[41] - logits[42]).item(), rel=1e-4
    )
    with pytest.raises(PromptError, match="place for the text"):
        judges.asked(lens, "well?")


def test_a_lexicon_that_is_not_there_is_told():
    try:
        import vaderSentiment  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(MechlabError, match="lexicon"):
            judges.vader()
        return
    score = judges.vader().score
    assert score(Answers(None, None, ("I love this wonderful day", "I hate this awful day"))).tolist()[0] > 0.5


def test_damage_is_what_plain_sums_give(lens):
    edits = [add("L1.resid_post", 0.5 * torch.ones(lens.model.d_model))]
    damage = Neutral(lens, PASSAGES).damage(edits)
    for i, ids in enumerate(PASSAGES):
        before, after = (lens.run([ids], e).logits[0, :-1].double().log_softmax(-1) for e in ((), edits))
        target = torch.tensor(ids[1:])[:, None]
        assert damage.kl[i] == pytest.approx((before.exp() * (before - after)).sum(-1).mean().item(), rel=1e-4)
        assert damage.loss[i] == pytest.approx(-after.gather(1, target).mean().item(), rel=1e-4)
        assert damage.loss_before[i] == pytest.approx(-before.gather(1, target).mean().item(), rel=1e-4)
        assert damage.entropy[i] == pytest.approx(-(after.exp() * after).sum(-1).mean().item(), rel=1e-4)
    assert damage.perplexity_ratio == pytest.approx(np.exp((damage.loss - damage.loss_before).mean()))
    none = Neutral(lens, PASSAGES).damage([])
    assert none.kl.max() == 0 and none.perplexity_ratio == 1 and (none.entropy == none.entropy_before).all()
    with pytest.raises(PromptError, match="one token"):
        Neutral(lens, [[5]])


def test_repetition_by_hand():
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert np.isnan(distinct_n(["a"], 2))
    assert repetition("a b c d a b c d a b c d") == pytest.approx(1 - 4 / 9)
    assert repetition("one two three four five") == 0 == repetition("short")


def test_accuracy_drift(planted):
    lens, n = planted.lens, 8
    prompts = planted.examples.prompts.select(range(n))
    task = Task("planted", prompts, prompts, torch.full((n,), ANSWER), torch.full((n,), 9))
    edits = [add("L1.resid_post", -1000 * planted.late)]
    drift = accuracy_drift(lens, edits, task)
    assert (drift.estimate, drift.n) == (-1.0, n)
    assert accuracy_drift(lens, [], task).estimate == 0


def test_dose_response_and_methods_at_equal_kl(planted):
    lens, at = planted.lens, Site("resid_post", 0)
    vector = method("mean-difference").extract(Material(lens, planted.examples, [at]))
    judge = judges.Judge("answer", "", False, lambda a: a.logits.double().softmax(-1)[:, ANSWER].numpy())
    prompts = planted.examples.prompts.select(range(PAIRS, PAIRS + 6))
    bench = Bench(
        lens,
        prompts,
        [judge, judges.by("length", lambda texts: [len(t) for t in texts])],
        neutral=PASSAGES,
        max_new_tokens=3,
    )
    edits = {
        name: (lambda s, v=v: steer(lens.model, v, s))
        for name, v in (("found", vector), ("random", as_long_as(vector, 1)))
    }
    frame = dose_response(bench, edits["found"], [0.0, 0.5, 1.0])
    assert frame["kl"].tolist() == sorted(frame["kl"]) and frame["kl"][0] == 0
    assert frame["answer"].is_monotonic_increasing and frame["answer"][2] > 10 * frame["answer"][0]
    zero = frame.iloc[0]
    assert (zero.neutral_kl, zero.perplexity_ratio, zero.entropy_change) == (0, 1, 0)
    assert (frame["answer_low"] <= frame["answer"]).all() and frame[["distinct_2", "repetition", "length"]].notna().all(
        axis=None
    )
    equal = at_equal_kl(bench, edits, [0.2, 0.4], start=0.25)
    assert equal["kl"].to_numpy() == pytest.approx(equal["target"].to_numpy(), rel=0.03)
    found, random = (equal[equal["method"] == name]["answer"].to_numpy() for name in edits)
    assert (found > 1.5 * random).all()


def test_a_bench_without_text_asks_judges_of_logits_alone(lens):
    bench = Bench(lens, [[5, 6]], [judges.by("words", lambda texts: [len(t) for t in texts])])
    with pytest.raises(PromptError, match="max_new_tokens"):
        bench.row(steer(lens.model, made(lens.model), 1.0))
    assert_close(bench.before.logits, lens.run([[5, 6]]).last_logits)
