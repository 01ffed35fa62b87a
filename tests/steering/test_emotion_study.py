"""The emotion study from end to end on a tiny model with an emotional vocabulary, and its claims on made-up evidence."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from apps.studies import study
from mechlab.errors import PromptError
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.models.model import Model
from mechlab.models.tiny_models import perturb_constants
from mechlab.models.twin import fresh
from mechlab.models.words import WORDS, word_tokenizer
from mechlab.results.report import Report
from mechlab.views.page import report_page
from steering.emotion.directions import HEADS, NEURONS
from steering.emotion.prompts import EMOTIONS
from steering.emotion.scenarios import items, lexicon
from steering.emotion.words import mass, word_ids
from steering.studies import emotion_claims as claims
from steering.studies.emotion import STUDY, run
from steering.studies.emotion_evidence import Ablation, ByEmotion, Evidence, Outcome, Recognition, gain
from steering.studies.emotion_fitted import fitted
from steering.studies.emotion_measures import HeldOut
from steering.studies.emotion_settings import Settings

SMALL = Settings(n_push=3, alphas=(0.3,), n_texts=2, n_tokens=4, draws=2, few_draws=2, kl=0.02)


def _silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def emotional() -> Lens:
    """A tiny Llama that knows the words of the scenarios, the instructions and the lexicon."""
    spoken = re.findall(r"[A-Za-z]+", " ".join(item.text for item in items()))
    asked = ["Reply", "with", "You", "are", "Let", "it", "show", "in", "few", "words", "I", "feel"]
    felt = [word for words in lexicon().values() for word in words]
    tokenizer = word_tokenizer(tuple(dict.fromkeys([*WORDS, *spoken, *asked, *felt])))
    source = tiny("llama")
    config = source.hf.config
    config.vocab_size = len(tokenizer)
    hf = fresh(config, torch.float32, 0)
    hf.config.architectures = [type(hf).__name__]
    perturb_constants(hf, 0)
    return Lens(Model("tiny-emotional", "tiny", hf, tokenizer))


@pytest.fixture(scope="module")
def report(emotional: Lens) -> Report:
    return run(emotional, SMALL, _silent)


def test_the_study_is_listed_and_its_settings_are_small_enough() -> None:
    assert study("emotion") is STUDY
    assert Settings().draws >= 10


def test_a_model_with_random_weights_supports_nothing(report: Report) -> None:
    keys = [finding.key for finding in report.findings]
    assert keys == [
        "directions", "neurons", "heads", "circuit_words", "circuit_projection", "circuit_probe",
        "over_plain", "over_prompting", "over_uniform",
    ]  # fmt: skip
    assert report.verdicts["supported"] == 0, [f.reason for f in report.findings]


def test_every_way_is_compared_at_the_kl_asked_for(report: Report) -> None:
    frame = next(table for table in report.tables if table.key == "equal_kl").frame
    counts = frame["way"].value_counts()
    assert counts[claims.RANDOM] == 2 and counts[claims.SHUFFLED] == 2 and counts[claims.CIRCUIT] == 1
    reached = frame[(frame["emotions_at_kl"] == 6) & (frame["way"] != "prompting, all replies")]
    assert {claims.CIRCUIT, claims.PLAIN, claims.PROMPTING} <= set(reached["way"])
    assert reached["kl"].between(0.02 * 0.9, 0.02 * 1.1).all()
    units = next(table for table in report.tables if table.key == "allocation").frame
    sums = units.groupby(["emotion", "kind"])[["units", "uniform"]].sum()
    assert (sums["units"] == sums["uniform"]).all() and sums["units"].nunique() <= 2


def test_the_page_shows_it_and_says_whether_the_circuit_wins(report: Report) -> None:
    assert "the circuit" in report.summary_text and claims.PROMPTING in report.summary_text
    page = report_page(report)
    assert "repetition" in page and "independent reproduction" in page


def test_prompting_in_a_share_of_replies_is_a_mixture(emotional: Lens) -> None:
    held = HeldOut(fitted(emotional, SMALL, _silent), SMALL, _silent)
    mixed, whole = held.prompting()
    for emotion in EMOTIONS:
        one, all_of = mixed[emotion], whole[emotion]
        assert 0 < one.strength < 1 and one.kl.mean() == pytest.approx(SMALL.kl, rel=1e-3)
        np.testing.assert_allclose(one.words, one.strength * all_of.words, atol=1e-9)
        assert all_of.kl.mean() > SMALL.kl
    # The neutral prompts asked for nothing: words of an emotion are as likely as the model says.
    p = emotional.run(held.neutral, logits="last").last_logits
    assert p is not None
    ids = word_ids(emotional)
    assert all(len(ids[e]) == len(lexicon()[e]) for e in EMOTIONS)
    torch.testing.assert_close(
        mass(p.double().softmax(-1), ids, "fear"), mass(held.base_logits.double().softmax(-1), ids, "fear"), atol=1e-5, rtol=1e-4
    )  # fmt: skip


def test_a_vocabulary_without_emotions_is_refused() -> None:
    with pytest.raises(PromptError, match="splits every word of anger"):
        word_ids(Lens(tiny("llama")))


# --- claims on made-up evidence

N = 24


def _outcomes(words: float, seed: int = 0, reached: bool = True) -> ByEmotion:
    generator = np.random.default_rng(seed)
    return {
        e: Outcome(1.0, reached, np.full(N, 0.3), *(generator.normal(words, 0.02, N) for _ in range(3)))
        for e in EMOTIONS
    }


def _evidence(circuit: float, plain: float, prompting: float, random: float = 0.0, twin: float = 0.0) -> Evidence:
    generator = np.random.default_rng(0)
    around = lambda mean: generator.normal(mean, 0.02, N)  # noqa: E731
    ablation = Ablation(around(0.2), around(0.05), np.array([0.0, 0.01]), np.array([0.02]), pd.DataFrame())
    draws = {name: [_outcomes(random, seed) for seed in range(3)] for name in (claims.RANDOM, claims.SHUFFLED)}
    return Evidence(
        settings=Settings().model_dump(),
        readout="L5.resid_post",
        n_prompts=N,
        recognition=Recognition(around(0.4), np.zeros(3), np.zeros(3), pd.DataFrame(), np.eye(6)),
        ablations={NEURONS: ablation, HEADS: ablation},
        methods={
            **draws,
            claims.CIRCUIT: [_outcomes(circuit)],
            claims.PLAIN: [_outcomes(plain, 1)],
            claims.PROMPTING: [_outcomes(prompting, 2)],
            claims.UNIFORM: [_outcomes(circuit, 3)],
            claims.RANDOM_VALUES: [_outcomes(random, 4)],
            claims.WRONG_LAYER: [_outcomes(random, 5)],
            claims.OTHER: [_outcomes(random, 6, reached=False)],
        },
        twin_specificity=around(0.0),
        twin_ablations={NEURONS: around(0.0), HEADS: around(0.0)},
        twin_circuit=_outcomes(twin),
        twin_plain=_outcomes(0.0),
        twin_uniform=_outcomes(0.0),
        twin_prompting=_outcomes(0.0),
        texts=pd.DataFrame(),
        allocation=pd.DataFrame(),
        shapes={},
        probe_accuracy=0.5,
        prompting_as_is=_outcomes(prompting),
    )


def _verdicts(evidence: Evidence) -> dict[str, str]:
    return {finding.key: finding.verdict for finding in claims.findings(evidence)}


def test_claims_follow_the_numbers() -> None:
    wins = _verdicts(_evidence(0.3, 0.1, 0.2))
    assert {
        wins[key] for key in ("directions", "neurons", "heads", "circuit_words", "over_plain", "over_prompting")
    } == {"supported"}
    assert wins["over_uniform"] != "supported"
    loses = _verdicts(_evidence(0.3, 0.4, 0.5))
    assert loses["circuit_words"] == "supported"
    assert loses["over_plain"] == loses["over_prompting"] == "not supported"
    assert _verdicts(_evidence(0.3, 0.1, 0.2, random=0.3))["circuit_words"] != "supported"
    assert _verdicts(_evidence(0.3, 0.1, 0.2, twin=0.4))["circuit_words"] != "supported"
    assert _verdicts(_evidence(0.01, 0.0, 0.0))["circuit_words"] == "not supported"


def test_a_kl_that_is_not_reached_is_told() -> None:
    finding = next(f for f in claims.findings(_evidence(0.3, 0.1, 0.2)) if f.key == "circuit_words")
    notes = {control.name: control.note for control in finding.controls}
    assert notes[claims.OTHER] == "6 of 6 do not reach the KL" and notes[claims.WRONG_LAYER] == ""


def test_gain_is_the_mean_over_emotions() -> None:
    found = _outcomes(0.1)
    by_hand = sum(one.probe for one in found.values()) / 6
    np.testing.assert_allclose(gain(found, "probe"), by_hand)
