"""The heads study: planted heads are found and needed, a random model has none, numbers agree with plain formulas."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch

from circuits.detectors import CASES, DETECTORS, Sequences, sequences
from circuits.studies import heads_claims
from circuits.studies.heads import STUDY, Settings, gather, strongest
from circuits.studies.heads_ablation import ablation, composition, losses, pool_of
from circuits.studies.heads_evidence import FEEDING, Evidence
from mechlab.errors import MechlabError
from mechlab.lens.edit import mean
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.vocabulary import ordinary_tokens
from mechlab.models import (
    PLANTED_INDUCTION,
    PLANTED_PREVIOUS_TOKEN,
    Model,
    load,
    planted_induction,
    random_twin,
    tiny,
)
from mechlab.models.twin import fresh
from mechlab.results.study import silent

SMALL = Settings(n_discovery=3, n_evaluation=6, n_tokens=5, top_heads=1, draws=3)


def gathered(lens: Lens, settings: Settings) -> Evidence:
    return gather(lens, Lens(random_twin(lens.model, settings.seed + 100)), settings, silent)


@pytest.fixture(scope="module")
def planted() -> Evidence:
    return gathered(Lens(planted_induction()), SMALL)


def test_planted_heads_are_found_and_their_claims_supported(planted: Evidence) -> None:
    sets = planted.model.choice.sets
    assert sets["induction"] == [PLANTED_INDUCTION]
    assert sets["previous_token"] == sets[FEEDING] == [PLANTED_PREVIOUS_TOKEN]
    verdicts = {finding.key: finding.verdict for finding in heads_claims.findings(planted)}
    assert verdicts.pop("duplicate_token") == "not supported"  # there is none
    assert set(verdicts) == {
        "copying",
        "induction",
        "previous_token",
        "ablation",
        "composition",
        "composition_keys",
    }
    assert set(verdicts.values()) == {"supported"}


def test_planted_numbers_by_hand(planted: Evidence) -> None:
    """Without its keys the induction head spreads evenly: 1/i at position i. Its queries read the token itself, which nobody ablated."""
    found = {finding.key: finding for finding in heads_claims.findings(planted)}
    even = np.mean([1 / i for i in range(5, 10)])
    assert found["induction"].estimate == pytest.approx(1, abs=1e-4)
    assert found["composition"].estimate == pytest.approx(1 - even, abs=0.02)
    assert found["composition_keys"].estimate == pytest.approx(found["composition"].estimate, abs=1e-4)
    controls = {control.name: control for control in found["composition_keys"].controls}
    assert controls["queries alone"].estimate == pytest.approx(0, abs=1e-4)
    # every other head writes nothing, so its ablation changes nothing
    assert np.allclose(planted.model.ablation.draws, planted.model.losses.second_copy, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_model_supports_nothing(seed: int) -> None:
    settings = Settings(n_discovery=4, n_evaluation=6, n_tokens=8, top_heads=2, draws=10, seed=seed)
    evidence = gathered(Lens(tiny("llama", seed)), settings)
    assert [finding.key for finding in heads_claims.findings(evidence) if finding.verdict == "supported"] == []


def test_effects_no_larger_than_a_control_are_not_supported(planted: Evidence) -> None:
    """Random heads that matter as much as the chosen ones, and a twin that does as well, take the support away."""
    model = planted.model
    assert model.composition is not None
    as_bad = dataclasses.replace(
        model,
        ablation=dataclasses.replace(model.ablation, draws=model.ablation.chosen.second_copy[None]),
        composition=dataclasses.replace(model.composition, draws=model.composition.ablated[None]),
    )
    keys = ("ablation", "composition", "composition_keys")
    found = {f.key: f for f in heads_claims.findings(dataclasses.replace(planted, model=as_bad))}
    assert {found[key].verdict for key in keys} == {"not supported"}
    found = {f.key: f for f in heads_claims.findings(dataclasses.replace(planted, twin=model))}
    assert {finding.verdict for finding in found.values()} == {"not supported"}


def test_no_head_below_the_induction_heads_is_inconclusive(planted: Evidence) -> None:
    sets = planted.model.choice.sets | {FEEDING: []}
    bare = dataclasses.replace(
        planted.model, choice=dataclasses.replace(planted.model.choice, sets=sets), composition=None
    )
    found = {f.key: f for f in heads_claims.findings(dataclasses.replace(planted, model=bare))}
    assert found["composition"].verdict == found["composition_keys"].verdict == "inconclusive"
    assert "No head lies below them" in found["composition"].statement


def test_discovery_and_evaluation_share_no_token_but_special_ones() -> None:
    evidence = gathered(Lens(tiny("gpt2"), prepend_bos=True), SMALL)
    drawn = [
        {token for tokens in among.cases for row in tokens.ids[:, among.start :].tolist() for token in row}
        for among in (evidence.discovery, evidence.evaluation)
    ]
    assert not drawn[0] & drawn[1]
    assert all(drawn)


def test_strongest_leaves_half_of_each_layer() -> None:
    numbers = np.array([[0.9, 0.8, 0.7, 0.1], [0.2, 0.6, 0.0, 0.65]])
    assert strongest(numbers, 3) == [(0, 0), (0, 1), (1, 3)]
    assert strongest(numbers, 9) == [(0, 0), (0, 1), (1, 3), (1, 1)]
    assert strongest(numbers[:0], 2) == []


@pytest.fixture(scope="module")
def grouped() -> tuple[Lens, Sequences, Sequences]:
    """A model whose query heads share keys, with a special token first."""
    lens = Lens(tiny("llama", seed=5), prepend_bos=True)
    ids = ordinary_tokens(lens)
    return lens, sequences(lens, ids, 3, 7, seed=1), sequences(lens, ids, 5, 7, seed=2)


def test_losses_agree_with_a_plain_formula(grouped) -> None:
    lens, _, among = grouped
    found = losses(lens, among)
    for case, segments in zip(CASES, ({"second_copy": 8, "first_copy": 1}, {"unrepeated": 8}), strict=True):
        tokens = among.cases[CASES.index(case)].ids
        logs = lens.model.hf(tokens).logits.log_softmax(-1)
        for name, first in segments.items():  # the first token of the copy is not predicted
            places = range(first + 1, first + 7)
            for prompt, ids in enumerate(tokens.tolist()):
                expected = -np.mean([float(logs[prompt, at - 1, ids[at]]) for at in places])
                assert getattr(found, name)[prompt] == pytest.approx(expected, abs=1e-5)


def test_ablation_is_the_mean_over_the_pool_at_each_position(grouped) -> None:
    """The same by hand: one head's slice of the output projection's input is overwritten."""
    lens, pool_of_tokens, among = grouped
    layer, head, width = 1, 2, lens.model.d_head
    own = slice(head * width, (head + 1) * width)
    seen: list[torch.Tensor] = []
    projection = lens.model.hf.model.layers[layer].self_attn.o_proj
    with projection.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][..., own])):
        lens.model.hf(pool_of_tokens.unrepeated.ids)
    average = seen[0].mean(dim=0)

    def overwrite(_module, inputs):
        changed = inputs[0].clone()
        changed[..., own] = average
        return (changed,)

    with projection.register_forward_pre_hook(overwrite):
        logs = lens.model.hf(among.repeated.ids).logits.log_softmax(-1)
    gathered_logs = logs[:, :-1].gather(2, among.repeated.ids[:, 1:, None])[..., 0]
    pool = pool_of(lens, pool_of_tokens, [(layer, head), (0, 1)])
    found = ablation(lens, among, [(0, 1)], [[(layer, head)]], pool, silent)
    assert np.allclose(found.draws[0], -gathered_logs[:, 8:14].mean(dim=1).numpy(), atol=1e-5)
    assert not np.allclose(found.draws[0], losses(lens, among).second_copy, atol=1e-4)


def test_keys_and_queries_agree_with_the_formula_of_attention(grouped) -> None:
    lens, pool_of_tokens, among = grouped
    induction, feeding = [(2, 3), (1, 0)], [(0, 1), (0, 2)]
    pool = pool_of(lens, pool_of_tokens, [*induction, *feeding])
    found = composition(lens, among, induction, feeding, [feeding, [(0, 0)]], pool, silent)
    sites = [Site(kind, layer) for layer in (1, 2) for kind in ("q", "k")]
    edits = [mean(Site("z", *at), "pool") for at in feeding]
    base = lens.run(among.repeated, read=sites)
    without = lens.run(among.repeated, edits, read=sites, sources={"pool": pool})

    def score(queries, keys) -> np.ndarray:
        group, total = lens.model.n_heads // lens.model.n_kv_heads, 0
        for layer, head in induction:
            q, k = queries[Site("q", layer)][:, :, head], keys[Site("k", layer)][:, :, head // group]
            raw = q @ k.transpose(1, 2) / lens.model.d_head**0.5
            pattern = raw.masked_fill(~torch.ones_like(raw, dtype=torch.bool).tril(), float("-inf")).softmax(-1)
            total = total + torch.stack([pattern[:, at, at - 6] for at in range(8, 15)]).mean(dim=0)
        return (total / len(induction)).numpy()

    expected = {
        "base": score(base, base),
        "ablated": score(without, without),
        "keys": score(base, without),
        "queries": score(without, base),
    }
    for name, values in expected.items():
        assert np.allclose(getattr(found, name), values, atol=1e-6), name
    assert all(not np.allclose(a, b, atol=1e-4) for a, b in pairwise(expected.values()))
    assert np.allclose(found.draws[0], found.ablated, atol=1e-6)
    assert not np.allclose(found.draws[1], found.ablated, atol=1e-4)


def test_a_report_with_its_tables_figures_and_progress() -> None:
    stages: list[str] = []
    report = STUDY.run(Lens(planted_induction()), SMALL, lambda label, _done, _total: stages.append(label))
    assert {table.key for table in report.tables} == {
        "losses",
        "scores",
        "chosen",
        "ablation",
        "composition",
        *(f"pattern_{one.name}" for one in DETECTORS),
    }
    tables = {table.key: table.frame for table in report.tables}
    assert len(tables["scores"]) == 2 * 3
    assert tables["chosen"]["head"].tolist()[:2] == ["L1H2", "L0H1"]
    assert tables["ablation"]["case"].nunique() == tables["composition"]["case"].nunique() == 5
    assert len([figure for figure in report.figures if figure.table == "scores"]) == 3
    assert {"discovery: attention on repeated tokens", "ablating induction heads (twin)"} <= set(stages)


def test_one_head_per_layer_is_refused() -> None:
    source = tiny("gpt2")
    config = type(source.hf.config).from_dict(source.hf.config.to_dict() | {"n_head": 1})
    lens = Lens(Model("lonely", "tiny", fresh(config, torch.float32, 0), source.tokenizer))
    with pytest.raises(MechlabError, match="lonely has one head per layer"):
        gathered(lens, SMALL)


@pytest.mark.default_model
def test_default_model_end_to_end() -> None:
    settings = Settings(n_discovery=2, n_evaluation=4, n_tokens=6, top_heads=3, draws=2)
    report = STUDY.run(Lens(load()), settings, silent)
    found = {finding.key: finding for finding in report.findings}
    assert "L17H4" in found["induction"].statement
    assert {found[key].verdict for key in ("copying", "induction", "previous_token", "ablation")} == {"supported"}
