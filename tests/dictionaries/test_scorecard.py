"""Measures of the scorecard against numbers worked by hand, planted truth, and slow plain code."""

import math

import numpy as np
import pytest
import torch
from saes import dictionary

from mechlab.dictionaries.concepts import Concepts, Readings, bundled_concepts, read_concepts
from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.dictionaries.scorecard import Bench, table
from mechlab.dictionaries.scorecard_causal import Writing, base_loss, spliced_loss, steer, token_loss, word_ids
from mechlab.dictionaries.scorecard_concepts import auc, detect, features_of, log_ratio, sparse_probe
from mechlab.dictionaries.scorecard_fit import babel, coactive_babel, effective_rank, fit
from mechlab.dictionaries.scorecard_truth import Truth, matched_cosine, recovery, seed_agreement
from mechlab.errors import MechlabError
from mechlab.lens.edit import add
from mechlab.lens.lens import Lens
from mechlab.lens.site import site
from mechlab.models.tiny_models import tiny

ORIGIN = DictionaryOrigin(method="test", model="m", site="L1.resid_post")
PROMPTS = [[5, 9, 2, 31, 8], [7, 1, 4, 30], [3, 3, 8, 40, 11, 2, 2]]


class Plain(Dictionary):
    """Codes ``relu(x @ encoder)`` (or signed), decoded by ``directions``."""

    def __init__(self, directions, encoder=None, *, signed=False, origin=ORIGIN):
        super().__init__(origin)
        self._directions, self.signed = directions, signed
        self.encoder = directions.T if encoder is None else encoder

    @property
    def directions(self):
        return self._directions

    def encode(self, activations):
        codes = activations @ self.encoder
        return codes if self.signed else codes.relu()

    def decode(self, codes):
        return codes @ self._directions


@pytest.fixture(scope="module")
def lens():
    return Lens(tiny("llama", seed=3))


def test_fit_by_hand():
    """Two features on the axes; the third dimension is lost. Rows (2,0,1), (-1,4,1), (0,0,4): codes (2,0), (0,4), (0,0)."""
    x = torch.tensor([[2.0, 0, 1], [-1, 4, 1], [0, 0, 4]])
    found = fit(Plain(torch.eye(3)[[0, 1, 1]] * torch.tensor([[1.0], [1], [0]])), x)
    assert found.errors.tolist() == [1, 2, 16]  # 1; (-1)^2 + 1; 16
    mean = x.mean(0)
    assert found.fvu == pytest.approx(19 / float((x - mean).pow(2).sum()))
    assert found.l0 == pytest.approx(2 / 3)
    assert found.dead == pytest.approx(1 / 3)  # the zero direction never fires
    assert found.frequency.tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    assert found.dense == pytest.approx(2 / 3)  # above a tenth of the rows
    assert found.rows == 3


def test_fit_of_many_rows_is_that_of_its_parts():
    x = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)) / 3
    found, given = fit(Plain(directions), x), Plain(directions)
    codes = (x @ directions.T).relu()
    assert found.l0 == pytest.approx(float((codes > 0).float().sum(1).mean()), rel=1e-5)
    assert found.fvu == pytest.approx(
        float((x - codes @ directions).pow(2).sum() / (x - x.mean(0)).pow(2).sum()), rel=1e-5
    )
    halves = torch.cat([fit(given, x[:2501]).errors, fit(given, x[2501:]).errors])
    assert torch.allclose(halves, found.errors)
    with pytest.raises(MechlabError, match="1 activations and 1 targets"):
        fit(given, x[:1])


def test_fit_of_a_transcoder_is_measured_on_its_targets():
    x, y = torch.eye(3), torch.tensor([[2.0, 0], [0, 2], [2, 2]])
    assert fit(Plain(y, torch.eye(3)), x, y).fvu == pytest.approx(0, abs=1e-12)


def test_effective_rank():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(7, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 4)) == 0
    z = torch.randn(6, 11, generator=torch.Generator().manual_seed(0)).double()
    p = torch.linalg.svdvals(z) ** 2 / (z**2).sum()
    assert effective_rank(z) == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)
    assert effective_rank(z.T) == pytest.approx(effective_rank(z), rel=1e-6)


def test_babel_by_hand():
    """Unit vectors at 0, 60 and 90 degrees: |cosines| .5, 0, .866. The middle one has the largest sum."""
    directions = torch.tensor([[3.0, 0], [0.5, math.sqrt(0.75)], [0, -2]])
    assert babel(directions, 1) == pytest.approx(math.sqrt(0.75))
    assert babel(directions, 2) == pytest.approx(0.5 + math.sqrt(0.75))
    assert babel(directions, 9) == pytest.approx(0.5 + math.sqrt(0.75))
    assert babel(directions[:1], 1) == 0
    x = torch.tensor([[1.0, -9.0], [1.0, 1.0], [1.0, -0.1]])  # codes on (0, 2), (0, 1), (0, 1, 2)
    used = [0.0, 0.5, 0.5 + math.sqrt(0.75)]
    assert coactive_babel(Plain(directions), x, 2) == pytest.approx(sum(used) / 3)
    assert math.isnan(coactive_babel(Plain(directions[:1]), x, 1))
    with pytest.raises(MechlabError, match="Babel function of 0"):
        babel(directions, 0)


def test_babel_in_pieces_is_the_slow_sum():
    directions = torch.randn(2500, 4, generator=torch.Generator().manual_seed(0))
    unit = directions / directions.norm(dim=1, keepdim=True)
    overlaps = (unit @ unit.T).abs().fill_diagonal_(0)
    assert babel(directions, 3) == pytest.approx(
        float(overlaps.sort(1, descending=True).values[:, :3].sum(1).max()), rel=1e-5
    )


def hierarchy(seed=0, rows=4000):
    """Six orthogonal features: 0 and 1 are parents, 2 and 3 children of 0, 4 of 1; 5 stands alone. No child comes without its parent."""
    g = torch.Generator().manual_seed(seed)
    parents = (-1, -1, 0, 0, 1, -1)
    on = torch.rand(rows, 6, generator=g) < torch.tensor([0.5, 0.5, 0.4, 0.4, 0.4, 0.3])
    for child, parent in enumerate(parents):
        if parent >= 0:
            on[:, child] &= on[:, parent]
    codes = on * (1.5 + 0.25 * torch.randn(rows, 6, generator=g)).abs()
    directions = torch.linalg.qr(torch.randn(10, 10, generator=g)).Q[:6]
    return Truth(codes @ directions, directions, codes, parents)


def test_the_truth_itself_scores_perfectly_and_an_absorbing_dictionary_does_not():
    truth = hierarchy()
    order = torch.tensor([4, 2, 5, 0, 1, 3])
    found = recovery(Plain(truth.directions[order] * 3, truth.directions[order].T), truth)
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.mcc == pytest.approx(1, abs=1e-4)
    assert found.absorption == pytest.approx(0, abs=1e-5)
    # Children's atoms are child + parent, in equal parts; codes stay true.
    absorbed = truth.directions.clone()
    for child, parent in ((2, 0), (3, 0), (4, 1)):
        absorbed[child] += truth.directions[parent]
    found = recovery(Plain(absorbed, truth.directions.T), truth)
    assert found.absorption == pytest.approx(math.sqrt(0.5), abs=1e-5)
    assert found.cosine == pytest.approx((3 + 3 * math.sqrt(0.5)) / 6, abs=1e-5)
    rotated = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(5))).Q[:6]
    random = recovery(Plain(rotated), truth)
    assert random.cosine < 0.6
    assert random.mcc < 0.75


def test_a_child_without_an_atom_is_left_out_of_absorption():
    truth = hierarchy()
    kept = truth.directions[[0, 1, 5]]
    found = recovery(Plain(kept), truth)
    assert found.cosine == pytest.approx(0.5, abs=1e-5)  # three of six are found, the others count as 0
    assert math.isnan(
        recovery(Plain(truth.directions), Truth(truth.activations, truth.directions, truth.codes)).absorption
    )


def test_matched_cosine_is_one_to_one_and_takes_signs_as_asked():
    true = torch.eye(3)
    both = torch.tensor([[1.0, 0, 0], [0.9, math.sqrt(0.19), 0], [0, 0, -2.0]])
    assert matched_cosine(both[:2], true) == pytest.approx(
        (1 + math.sqrt(0.19)) / 3, abs=1e-6
    )  # the third true one counts as 0
    assert matched_cosine(both, true, signed=False) == pytest.approx((1 + math.sqrt(0.19) + 1) / 3, abs=1e-6)
    with pytest.raises(MechlabError, match="size 2 and 3"):
        matched_cosine(torch.eye(2), true)
    one, other = Plain(torch.eye(4)[:3]), Plain(torch.eye(4)[[3, 2, 1, 0]])
    assert seed_agreement(one, other) == seed_agreement(other, one) == pytest.approx(0.75)


def test_auc_and_log_ratio_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.5, 0.6], [0.1, 0.8]])
    positive = torch.tensor([True, True, False, False])
    assert auc(scores, positive).tolist() == [0.875, 0.0]  # 3.5 of 4 pairs; none
    assert log_ratio(scores, positive).tolist() == pytest.approx([math.log(0.7 / 0.3), math.log(0.3 / 0.7)])
    assert math.isnan(float(log_ratio(scores - 1, positive)[0]))


def planted_readings(seed=0, concepts=3, dims=12):
    """Every sentence has 4 tokens of noise; one token of a concept's sentences also has 3 units of the concept's own dimension."""
    g = torch.Generator().manual_seed(seed)
    per = 12
    labels = torch.tensor([c for c in [*range(concepts), -1] for _ in range(per)])
    sentence = torch.arange(len(labels)).repeat_interleave(4)
    x = 0.3 * torch.randn(len(sentence), dims, generator=g)
    for s, label in enumerate(labels.tolist()):
        if label >= 0:
            x[4 * s + s % 4, label] += 3
    judging = torch.arange(len(labels)) % 2 == 1
    return Readings(x, sentence, labels, judging, tuple(f"c{c}" for c in range(concepts)))


def test_detection_finds_planted_directions_and_beats_shuffled_labels():
    readings = planted_readings()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    found = detect(2 * torch.eye(12)[order], readings)
    assert [int(order[one.feature]) for one in found] == [0, 1, 2]
    assert all(one.auc == 1 and one.s_cd > 0.3 and one.sign == 1 for one in found)
    backwards = detect(-torch.eye(12), readings, two_sided=True)
    assert [(one.feature, one.sign) for one in backwards] == [(0, -1), (1, -1), (2, -1)]
    one_sided = detect(-torch.eye(12), readings)
    assert max(one.auc for one in one_sided) < 0.9
    shuffled = [one.auc for seed in range(8) for one in detect(torch.eye(12), readings.relabelled(seed))]
    assert np.mean(shuffled) < 0.75
    with pytest.raises(MechlabError, match="size 5 do not fit activations of size 12"):
        detect(torch.eye(5), readings)


def test_probes_find_planted_features_and_fail_on_shuffled_labels():
    readings = planted_readings()
    given = Plain(torch.eye(12))
    features = features_of(given, readings)
    slow = torch.stack([given.encode(readings.activations[readings.sentence == s]).amax(0) for s in range(48)])
    assert torch.equal(features, slow)
    assert sparse_probe(features, readings, 1) == [1.0, 1.0, 1.0]
    assert min(sparse_probe(features, readings, 5)) > 0.95
    assert np.mean([sparse_probe(features, readings.relabelled(seed), 1) for seed in range(8)]) < 0.75
    # A feature that means the opposite where it is judged: only a probe that saw those sentences would do well.
    turned = torch.where(readings.judging, readings.labels != 0, readings.labels == 0).float()[:, None]
    assert sparse_probe(turned, readings, 1)[0] == 0.0
    with pytest.raises(MechlabError, match="13 features of 12"):
        sparse_probe(features, readings, 13)


def test_bundled_concepts_and_their_readings(lens):
    concepts = bundled_concepts()
    assert len(concepts.names) >= 8
    assert all(len(texts) >= 10 for texts in concepts.sentences.values())
    texts = [t for group in (*concepts.sentences.values(), concepts.neutral) for t in group]
    assert len(set(texts)) == len(texts)
    few = concepts.select(concepts.names[:2])
    readings = read_concepts(lens, few, "L1.resid_post")
    second = few.sentences[few.names[0]][1]
    rows = readings.activations[readings.sentence == 1]
    alone = lens.run(second, read=["L1.resid_post"])["L1.resid_post"][0]
    assert torch.allclose(rows, alone[1:], atol=1e-5)  # the first token is left out
    assert bool(readings.judging[1]) and not bool(readings.judging[0])
    assert readings.labels.tolist() == [0] * 12 + [1] * 12 + [-1] * 24
    with pytest.raises(MechlabError, match="has 2 sentences"):
        Concepts({"a": ("x", "y")}, {"a": ()}, ("a", "b", "c", "d"))


def test_spliced_loss_against_cross_entropy_by_hand(lens):
    given = dictionary(lens, "topk", "L1.resid_post")
    found = spliced_loss(lens, PROMPTS, given, batch_size=2)

    def by_hand(prompt, value):
        def put(_m, _a, out):
            new = out.clone()
            new[0, 1:] = value(out[0, 1:])
            return new

        block = lens.layout.blocks[1].block
        handle = block.register_forward_hook(put)
        with torch.no_grad():
            logits = lens.model.hf(input_ids=torch.tensor([prompt])).logits[0]
        handle.remove()
        return float(torch.nn.functional.cross_entropy(logits[1:-1], torch.tensor(prompt[2:])))

    for row, prompt in enumerate(PROMPTS):
        assert float(found.clean[row]) == pytest.approx(by_hand(prompt, lambda x: x), rel=1e-4)
        assert float(found.spliced[row]) == pytest.approx(by_hand(prompt, given.reconstruct), rel=1e-4)
        assert float(found.zeroed[row]) == pytest.approx(by_hand(prompt, torch.zeros_like), rel=1e-4)
    c, s, z = (float(x.mean()) for x in (found.clean, found.spliced, found.zeroed))
    assert found.recovered == pytest.approx((z - s) / (z - c))
    again = spliced_loss(lens, PROMPTS, given, base_loss(lens, PROMPTS, given))
    assert torch.allclose(again.spliced, found.spliced)


def test_steering_raises_what_its_direction_writes(lens):
    """A direction that the unembedding reads as token 7 raises 7's probability; the opposite lowers it; both cost the same KL."""
    at = "L2.resid_post"
    toward = lens.layout.unembed.weight[7].detach() - lens.layout.unembed.weight.mean(0).detach()
    writing = Writing(prompt="the cat sat on", samples=3, tokens=5)
    plain = steer(lens, site(at), None, [[7], [1, 2]], 0.1, writing)
    up = steer(lens, site(at), toward, [[7], [1, 2]], 0.1, writing)
    down = steer(lens, site(at), -toward, [[7], [1, 2]], 0.1, writing)
    assert plain.strength == plain.kl == 0
    assert up.kl == pytest.approx(0.1, rel=0.03)
    assert down.kl == pytest.approx(0.1, rel=0.03)
    assert plain.mass.shape == (3, 2)
    assert float(up.mass[:, 0].mean()) > float(plain.mass[:, 0].mean()) > float(down.mass[:, 0].mean())
    # The likelihood is that of the model as it is, by token_loss over the same text.
    ids = lens.tokens(writing.prompt).ids[0].tolist()
    edits = [add(at, toward / toward.norm(), strength=up.strength)]
    texts = lens.generate([writing.prompt] * 3, 5, edits, sampling=writing.sampling, stop_at_eos=False)
    assert tuple(one.text for one in texts) == up.texts
    logits = lens.run([[*ids, *texts[1].ids]]).logits[0].log_softmax(-1)
    own = [float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(texts[1].ids)]
    assert float(up.log_probability[1]) == pytest.approx(np.mean(own), rel=1e-4)


def test_token_loss_of_batches_is_that_of_single_prompts(lens):
    alone = [float(token_loss(lens, [p])[0]) for p in PROMPTS]
    assert token_loss(lens, PROMPTS, batch_size=2).tolist() == pytest.approx(alone, rel=1e-5)


def test_words_that_are_one_token(lens):
    assert all(isinstance(i, int) for i in word_ids(lens, ["cat", "incomprehensibilities"]))


def test_one_row_for_each_dictionary(lens):
    at = "L1.resid_post"
    texts = ["the cat sat on the mat and", "a dog ran over the hill", "she said that it was"]
    rows = lens.run(texts, read=[at])[at][:, 1:5].flatten(0, 1)
    concepts = bundled_concepts()
    bench = Bench.of(lens, at, texts, rows, concepts=concepts.select(concepts.names[:3]))
    scores = [bench.score(name, dictionary(lens, name, at)) for name in ("topk", "standard")]
    frame = table(scores)
    assert frame["dictionary"].tolist() == ["topk", "standard"]
    assert frame["fvu"].tolist() == pytest.approx(
        [fit(dictionary(lens, n, at), rows).fvu for n in ("topk", "standard")]
    )
    assert frame["l0"][0] <= 5
    assert frame["ce_clean"].nunique() == frame["ce_zeroed"].nunique() == 1
    elsewhere = ["mcc", "absorption", "true_cosine", "seed_agreement", "steering_gain", "steering_fluency"]
    assert frame[elsewhere].isna().all().all()
    assert frame.drop(columns=[*elsewhere, "s_cd"]).notna().all().all()
    with pytest.raises(MechlabError, match=r"decomposes L0.resid_post and was asked about L1.resid_post"):
        bench.score("other", dictionary(lens, "topk", "L0.resid_post"))
