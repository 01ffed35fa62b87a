"""The vocabulary study: planted neurons that write one theme are found and steer; random ones do not; any MLP works."""

import numpy as np
import pytest
import torch

from mechlab.analyses.units import units_of
from mechlab.analyses.vocabulary import (
    Themes,
    _marks_words,
    _word,
    clusters,
    meanings,
    random_directions,
    themes,
    value_vectors,
)
from mechlab.errors import MechlabError, SiteError
from mechlab.lens.lens import Lens
from mechlab.models import Model, tiny
from mechlab.results.study import silent
from mechlab.studies import vocabulary_claims
from mechlab.studies.vocabulary import STUDY, Settings, depths, gather, word_mass

SMALL = Settings(n_themes=8, n_clusters=2, size=6, least=3, n_texts=3, draws=3, every=1, other_strengths=(1.0,))
PLANTED_LAYER = 2


def with_theme(family: str, words: int = 12, neurons: int = 5) -> tuple[Model, list[int], list[int]]:
    """A tiny model in which some words have nearly one unembedding direction and some neurons of the last layer write along it."""
    model = tiny(family)
    hf = model.hf
    generator = torch.Generator().manual_seed(5)
    direction = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
    # half the sum over a direction of mean 0, so that no norm takes it away
    direction = direction - direction.mean()
    ids = [
        i
        for i in range(4, model.vocab_size)
        if str(model.tokenizer.decode([i])).isalpha() and len(model.tokenizer.decode([i])) >= 4
    ]
    ids = ids[5 : 5 + words]
    chosen = list(range(3, 3 + 2 * neurons, 2))
    with torch.no_grad():
        gain = 1 / hf.model.norm.weight  # so that the theme lies along the direction before the norm
        hf.lm_head.weight[ids] = 3 * direction * gain + 0.05 * torch.randn(words, 64, generator=generator)
        hf.model.layers[PLANTED_LAYER].mlp.down_proj.weight[:, chosen] = 2 * direction[:, None]
    return model, ids, chosen


def test_planted_neurons_have_the_planted_meaning() -> None:
    model, ids, chosen = with_theme("llama")
    lens = Lens(model)
    by = themes(lens, 8)
    places = [by.ids.tolist().index(i) for i in ids]
    assert len({int(by.theme[place]) for place in places}) == 1
    theme = int(by.theme[places[0]])
    found = meanings(value_vectors(lens, PLANTED_LAYER), by)
    assert (found.theme[chosen] == theme).all() and (found.count[chosen] >= len(ids)).all()
    assert set(found.top[chosen[0]][: len(ids)]) == set(places)
    units = units_of(lens, ["mlp_post"], [PLANTED_LAYER])
    made = clusters(units, found, by, [PLANTED_LAYER], most=50, size=5, least=3)
    own = next(one for one in made if one.theme == theme)
    assert set(own.neurons.tolist()) >= set(chosen) or len(own.neurons) == 5
    assert set(ids) <= set(own.tokens)


def test_value_vectors_and_gain_are_what_the_model_uses() -> None:
    """Setting one neuron far up moves the logits along its value vector through the norm's gain."""
    for family in ("llama", "gpt2", "gemma2", "phi3", "granite"):
        lens = Lens(tiny(family))
        vectors = value_vectors(lens, 1)
        assert vectors.shape == (88, 64)
        run = lens.run([[5, 6, 7]], read=["L1.mlp_post", "L1.mlp_out"])
        if family != "gemma2":  # a norm after the MLP
            bias = getattr(lens.layout.blocks[1].down, "bias", None)
            times = getattr(lens.model.config, "residual_multiplier", 1.0)
            want = run["L1.mlp_post"] @ vectors + (0 if bias is None else bias * times)
            assert torch.allclose(run["L1.mlp_out"], want, atol=1e-4)


def test_meaning_by_hand() -> None:
    """Of the 30 highest of 40 words, 12 lie in theme 1."""
    directions = torch.eye(40)
    groups = np.array([1] * 12 + list(range(2, 30)))
    by = Themes(torch.arange(40), groups, directions, tuple(f"w{i}" for i in range(40)))
    found = meanings(torch.linspace(1, 0, 40)[None], by)
    assert (found.theme.tolist(), found.count.tolist(), found.top[0].tolist()) == ([1], [12], list(range(30)))
    last = meanings(torch.linspace(0, 1, 40)[None], by)  # the first ten words are out
    assert (last.theme.tolist(), last.count.tolist()) == ([1], [2])
    assert not last.meaningful.any() and found.meaningful.all()


def test_word_mass_by_hand() -> None:
    lens = Lens(tiny("gpt2"))
    texts = lens.tokens([[5, 6, 7, 8], [9, 10]])
    mass, loss = word_mass(lens, texts, (11, 12), [])
    logits = lens.run(texts).logits
    assert logits is not None
    for row, n in enumerate((4, 2)):
        logs = logits[row, : n - 1].log_softmax(-1)
        assert mass[row] == pytest.approx(float(logs[:, [11, 12]].exp().sum(-1).log().mean()), abs=1e-4)
        assert loss[row] == pytest.approx(-float(logs[range(n - 1), texts.ids[row, 1:n]].mean()), abs=1e-4)


def test_random_directions_have_the_vectors_covariance() -> None:
    lens = Lens(tiny("llama"))
    drawn = random_directions(lens, [0, 1], 20000, seed=1)
    vectors = torch.cat([value_vectors(lens, 0), value_vectors(lens, 1)])
    assert torch.allclose(drawn.T.cov(correction=0), vectors.T.cov(correction=0), atol=0.01)


def test_a_planted_cluster_steers_and_the_report_is_whole() -> None:
    model, ids, _ = with_theme("llama")
    evidence = gather(Lens(model), SMALL, silent)[0]
    late = [one for one in evidence.of("late") if set(one.words) & {str(model.tokenizer.decode([i])) for i in ids}]
    assert late and late[0].shift.mean() > late[0].draws.mean(axis=1).max()
    report = STUDY.run(Lens(model), SMALL, silent)
    assert {"paper", "meaningful", "clusters", "shifts", "doses"} == {table.key for table in report.tables}


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_mlps(family: str) -> None:
    report = STUDY.run(Lens(tiny(family)), SMALL, silent)
    assert len(report.findings) == 5


def test_without_clusters_claims_are_inconclusive() -> None:
    evidence = gather(Lens(tiny("llama")), SMALL.model_copy(update={"least": 80, "size": 80}), silent)[0]
    assert not evidence.clamped
    found = {finding.key: finding.verdict for finding in vocabulary_claims.findings(evidence)}
    assert found["steers_early"] == found["steers_late"] == found["late_over_early"] == "inconclusive"


def test_pieces_inside_words_are_no_words() -> None:
    lens = Lens(tiny("llama"))
    by = themes(lens, 8)
    assert "Mary" in by.words and not {",", "in", "<bos>"} & set(by.words)
    pieces = {4: "▁bright", 5: "ness", 6: "▁of", 7: "Ġdark", 8: "▁x1yz"}

    class Marked:
        def convert_ids_to_tokens(self, ids: int | list[int]) -> str | list[str]:
            return pieces.get(ids, "a") if isinstance(ids, int) else [pieces.get(i, "a") for i in ids]

        def decode(self, ids: list[int]) -> str:
            return pieces.get(ids[0], "a").replace("▁", " ").replace("Ġ", " ")

    lens.model.__dict__["tokenizer"] = Marked()
    assert [_word(lens, i, _marks_words(lens)) for i in range(4, 9)] == ["bright", "", "", "dark", ""]


def test_depths() -> None:
    assert depths(30, 2) == {"early": [0, 2, 4, 6, 8], "late": [21, 23, 25, 27, 29]}
    assert depths(3, 1) == {"early": [0], "late": [2]}


def test_bad_input() -> None:
    with pytest.raises(SiteError, match="absent"):
        gather(Lens(tiny("mixtral")), SMALL, silent)
    with pytest.raises(MechlabError, match="too few for 5000 themes"):
        gather(Lens(tiny("llama")), SMALL.model_copy(update={"n_themes": 5000}), silent)
