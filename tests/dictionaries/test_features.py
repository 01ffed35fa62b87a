"""Feature pages and labels on a feature whose activity is planted, and figures that show text as text."""

import pytest
import torch
from saes import dictionary

from mechlab.dictionaries.activations import TokenTable
from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.dictionaries.features import FeatureCodes, feature_codes, feature_pages, logit_effects, neighbours
from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.labels import label_features, score_labels
from mechlab.errors import MechlabError
from mechlab.lens.edit import add
from mechlab.lens.lens import Lens
from mechlab.lens.site import site
from mechlab.models.tiny_models import tiny


@pytest.fixture(scope="module")
def lens():
    return Lens(tiny("llama", seed=3))


class TokenDetector(Dictionary):
    """At the embedding: feature i fires on token ``tokens[i]`` alone, with code 1 (feature 0 with code 2)."""

    def __init__(self, lens, tokens):
        super().__init__(
            DictionaryOrigin(method="test", model=lens.model.name, fingerprint=lens.model.fingerprint, site="embed")
        )
        self.embedding = lens.layout.embed.weight.detach()
        self.tokens = tokens

    @property
    def directions(self):
        return self.embedding[self.tokens]

    def encode(self, activations):
        distance = torch.cdist(activations, self.directions, compute_mode="donot_use_mm_for_euclid_dist")
        return (distance < 1e-4).float() * torch.tensor([2.0] + [1.0] * (len(self.tokens) - 1))

    def decode(self, codes):
        return codes @ self.directions


def random_prompts(n=40, length=12, low=3, high=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(low, high, (length,), generator=g).tolist() for _ in range(n)]


@pytest.fixture(scope="module")
def source(lens, tmp_path_factory):
    return harvest(lens, random_prompts(), ["embed", "L1.resid_post"], tmp_path_factory.mktemp("harvest") / "a")


def test_a_page_of_a_token_detector(lens, source):
    given = TokenDetector(lens, [17, 5, 30])
    codes = feature_codes(given, source, [0, 2])
    counting = source.table.ids[source.rows]
    assert torch.equal(codes.values[:, 0], 2.0 * (counting == 17))
    assert torch.equal(codes.values[:, 1], 1.0 * (counting == 30))
    page, other = feature_pages(lens, given, source, codes, n_examples=4, before=3, after=2, n_tokens=6)
    assert (page.feature, other.feature) == (0, 2)
    assert page.frequency == pytest.approx(float((counting == 17).double().mean()))
    assert page.largest == page.mean == 2.0
    assert page.histogram.sum() == (counting == 17).sum()
    assert len(page.examples) == 4
    piece = str(lens.model.tokenizer.decode([17]))
    for example in page.examples:
        assert example.pieces[example.at] == piece
        assert example.values[example.at] == 2.0
        assert len(example.pieces) <= 6
        assert [v for p, v in zip(example.pieces, example.values, strict=True) if p != piece and v] == []
    assert len({example.pieces for example in page.examples}) == 4


def test_a_prompt_s_first_token_has_no_code(lens, tmp_path):
    prompts = [[17, 17, 9, 8], [9, 17, 8, 17]]
    found = harvest(lens, prompts, ["embed"], tmp_path / "a")
    given = TokenDetector(lens, [17, 5])
    page, _ = feature_pages(lens, given, found, feature_codes(given, found, [0, 1]))
    assert sorted(example.values for example in page.examples) == sorted([(None, 2.0, 0.0, 0.0), (None, 2.0, 0.0, 2.0)])
    assert page.n_rows == 6


def test_a_feature_that_never_fires_has_an_empty_page(lens, source):
    given = TokenDetector(lens, [99, 5])
    (page,) = feature_pages(lens, given, source, feature_codes(given, source, [0]))
    assert page.examples == ()
    assert page.frequency == page.largest == 0
    assert len(page.promoted) == 10


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logit_effects_are_the_slope_of_the_direct_path(family):
    """Adding a direction after the last layer moves the logits as the effects say, to first order and up to the norm's scale."""
    lens = Lens(tiny(family, seed=3))
    at = f"L{lens.model.n_layers - 1}.resid_post"
    d = torch.randn(1, lens.model.d_model, generator=torch.Generator().manual_seed(0))
    effects = logit_effects(lens, site(at), d)[0]
    run = lens.run([[5, 9, 2]], read=[at + "@-1"])
    x = run[at + "@-1"][0]
    # The norm's scale also moves with the direction's share along x: take a direction without one.
    flat = (x - x.mean()) if family == "gpt2" else x
    d = d[0] - d[0].mean() if family == "gpt2" else d[0]
    d = d - flat * (d @ flat) / (flat @ flat)
    effects = logit_effects(lens, site(at), d[None])[0]
    size = (flat.pow(2).mean()).sqrt()
    eps = 1e-2
    up, down = (lens.run([[5, 9, 2]], [add(at + "@-1", d, strength=s * eps)]).last_logits[0] for s in (1, -1))
    slope = (up - down) / (2 * eps) * size
    assert torch.allclose(slope - slope.mean(), effects, atol=2e-2 * float(effects.abs().max()))


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_logit_effects_of_neurons_go_through_the_output_projection(family):
    lens = Lens(tiny(family))
    neurons = torch.eye(lens.layout.d_mlp)[:3]
    w_out = lens.layout.blocks[1].down.weight.T[:3] * getattr(lens.model.config, "residual_multiplier", 1.0)
    through = logit_effects(lens, site("L1.mlp_post"), neurons)
    assert torch.allclose(through, logit_effects(lens, site("L1.mlp_out"), w_out), atol=1e-4)
    with pytest.raises(MechlabError, match=r"L1.k reach the logits by no linear map"):
        logit_effects(lens, site("L1.k"), neurons)


def test_the_extremes_are_the_vocabulary_s(lens, source):
    given = dictionary(lens, "topk", "L1.resid_post")
    (page,) = feature_pages(lens, given, source, feature_codes(given, source, [4]), n_tokens=3, n_neighbours=2)
    effects = logit_effects(lens, site("L1.resid_post"), given.directions[[4]])[0]
    assert [value for _, value in page.promoted] == pytest.approx(effects.sort(descending=True).values[:3].tolist())
    assert [value for _, value in page.suppressed] == pytest.approx(effects.sort().values[:3].tolist())
    unit = torch.nn.functional.normalize(given.directions, dim=1)
    order = (unit @ unit[4]).argsort(descending=True).tolist()
    assert order[0] == 4
    assert [feature for feature, _ in page.neighbours] == order[1:3]
    assert len(neighbours(given, 4, 99)) == given.n_features - 1


def test_bad_features_and_other_models_are_refused(lens, source):
    given = dictionary(lens, "topk", "L1.resid_post")
    with pytest.raises(MechlabError, match="Feature 24 is not in this dictionary of 24"):
        feature_codes(given, source, [3, 24])
    other = Lens(tiny("llama", seed=4))
    with pytest.raises(MechlabError, match="made for"):
        feature_pages(other, given, source, feature_codes(given, source, [3]))


def table_of(prompts):
    ids = torch.tensor([i for p in prompts for i in p])
    positions = torch.tensor([i for p in prompts for i in range(len(p))])
    owner = torch.tensor([n for n, p in enumerate(prompts) for _ in p])
    return TokenTable(ids, owner, positions, positions > 0, torch.arange(len(prompts)), {i: f"t{i}" for i in range(64)})


def planted_codes(table, seed=0):
    """Feature 0 fires on token 7; feature 1 on any token after 9; feature 2 where 11 came 2 to 8 before; feature 3 anywhere."""
    g = torch.Generator().manual_seed(seed)
    rows = table.kept.nonzero().flatten()
    ids, at = table.ids, table.positions
    values = torch.zeros(len(rows), 4)
    for i, row in enumerate(rows.tolist()):
        back = [int(ids[row - k]) for k in range(1, min(8, int(at[row])) + 1)]
        values[i, 0] = 3.0 * (int(ids[row]) == 7)
        values[i, 1] = 2.0 * (back[:1] == [9])
        values[i, 2] = 1.0 * (11 in back[1:])
        values[i, 3] = float(torch.rand(1, generator=g)) > 0.9
    noise = 0.05 * torch.rand(values.shape, generator=g)
    return FeatureCodes((0, 1, 2, 3), rows, values * (1 + noise))


def test_labels_find_the_planted_clue_and_predict_held_out_codes():
    fit, held = (table_of(random_prompts(300, 14, 3, 40, seed=s)) for s in (0, 1))
    labels = label_features(planted_codes(fit), fit, top_share=0.02)
    assert [(c.where, c.piece) for c in labels[0].clues[:1]] == [("this", "t7")]
    assert [(c.where, c.piece) for c in labels[1].clues[:1]] == [("previous", "t9")]
    assert [(c.where, c.piece) for c in labels[2].clues[:1]] == [("before", "t11")]
    assert labels[0].text.startswith("'t7'")
    assert labels[1].text.startswith("after 't9'")
    scores = score_labels(labels, planted_codes(held, seed=1), held)
    assert min(one.correlation for one in scores[:3]) > 0.8
    assert abs(scores[3].correlation) < 0.1  # a feature that fires anywhere cannot be labelled
    assert max(abs(one.control) for one in scores) < 0.1


def test_pmi_and_means_by_hand():
    """Tokens 1..4 in two prompts; the feature's two strongest rows are both token 2."""
    table = table_of([[1, 2, 3, 2], [1, 2, 4, 3]])
    rows = table.kept.nonzero().flatten()  # tokens 2 3 2 | 2 4 3
    codes = FeatureCodes((5,), rows, torch.tensor([[4.0], [0], [6], [2], [0], [0]]))
    (label,) = label_features(codes, table, top_share=0.34, min_count=2)  # 2 of 6 rows: codes 6 and 4
    (clue,) = label.clues
    assert (clue.where, clue.token, clue.count) == ("this", 2, 3)
    assert clue.pmi == pytest.approx(torch.log(torch.tensor(1.0 / 0.5)).item())
    assert clue.mean == pytest.approx(4.0)
    assert label.baseline == 0
    (rarely,) = label_features(codes, table, top_share=0.34, min_count=2, weight=0.2)
    assert rarely.clues[0].pmi == pytest.approx(-0.2 * torch.log(torch.tensor(0.5)).item())


def test_a_dead_feature_has_no_label():
    table = table_of(random_prompts(20, 6))
    rows = table.kept.nonzero().flatten()
    (label,) = label_features(FeatureCodes((0,), rows, torch.zeros(len(rows), 1)), table)
    assert label.clues == ()
    assert label.text == "(no label)"
    with pytest.raises(MechlabError, match="1 labels cannot be scored"):
        score_labels([label], FeatureCodes((0,), rows, torch.zeros(len(rows), 1)), table)
    with pytest.raises(MechlabError, match="share of 0"):
        label_features(FeatureCodes((0,), rows, torch.zeros(len(rows), 1)), table, top_share=0)
