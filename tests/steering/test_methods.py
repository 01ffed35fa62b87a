"""Extraction: a planted direction is found by every method, formulas worked by hand, and what each method needs is asked for."""

import pytest
import torch
from torch.testing import assert_close

from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.errors import MechlabError, PromptError, SiteError, UnknownName
from mechlab.lens.site import Site
from steering.examples import Examples, Material, contrast, read
from steering.methods.catalogue import METHODS, method
from steering.methods.group_centred import centroids
from steering.methods.means import mean_difference
from steering.methods.optimised import Settings as OptimisedSettings
from steering.methods.pca_contrast import principal_axis
from steering.methods.probes import probe_accuracy

AT, EARLY = Site("resid_post", 1), Site("resid_post", 0)


class Rows(Dictionary):
    """A dictionary whose features are given rows; codes are projections."""

    def __init__(self, origin: DictionaryOrigin, rows: torch.Tensor) -> None:
        super().__init__(origin)
        self.rows = rows

    @property
    def directions(self) -> torch.Tensor:
        return self.rows

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        return (activations @ self.rows.T).relu()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.rows


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def dictionary_for(planted) -> Rows:
    model = planted.lens.model
    others = torch.linalg.qr(torch.randn(model.d_model, 6, generator=torch.Generator().manual_seed(5))).Q.T
    origin = DictionaryOrigin(method="rows", model=model.name, fingerprint=model.fingerprint, site=str(EARLY))
    return Rows(origin, torch.cat([others[:4], planted.early[None], others[4:]]))


@pytest.mark.parametrize("name", [one.name for one in METHODS if one.name not in ("random", "reading", "optimised")])
def test_the_planted_direction_is_found(planted, name):
    material = Material(planted.lens, planted.examples, [EARLY], dictionary=dictionary_for(planted))
    vector = method(name).extract(material)
    assert cosine(vector[EARLY], planted.early) > 0.95
    assert vector.origin.method == name and vector.origin.fingerprint == planted.lens.model.fingerprint
    assert vector.origin.settings["position"] == -1


def test_an_optimised_vector_finds_what_the_answer_reads(planted):
    """It need not be the examples' difference: here the shortest way to the answer is ``late`` itself."""
    material = Material(planted.lens, planted.examples, [AT])
    vector = method("optimised").extract(material, OptimisedSettings(steps=20))
    assert cosine(vector[AT], planted.late) > 0.8
    with pytest.raises(PromptError, match="no answers"):
        method("optimised").extract(Material(planted.lens, without(planted.examples, answers=None), [AT]))


def without(examples: Examples, **changes) -> Examples:
    from dataclasses import replace

    return replace(examples, **changes)


def test_shuffled_labels_lose_it(planted):
    material = Material(planted.lens, planted.examples, [EARLY])
    found = [
        abs(cosine(method("mean-difference").extract(material.shuffled(seed))[EARLY], planted.early))
        for seed in range(8)
    ]
    assert min(found) < 0.9 and material.shuffled(1).activations is material.activations


def test_means_worked_by_hand(lens):
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 0.0], [0.0, 4.0]])
    examples = contrast(lens, "t", ["a", "b"], ["c", "d"])
    assert_close(mean_difference(x, examples), torch.tensor([2.0, -1.0]))
    given = lambda: {AT: torch.nn.functional.pad(x, (0, lens.model.d_model - 2))}  # noqa: E731
    material = Material(lens, examples, [AT], given=given)
    assert_close(method("reading").extract(material)[AT][:2], torch.tensor([2.0, 1.0]))
    assert_close(method("reading-contrast").extract(material)[AT][:2], torch.tensor([2.0, -1.0]))
    drawn = method("random").extract(material)
    assert drawn[AT].norm().item() == pytest.approx(5**0.5)
    unit = method("random").extract(material, method("random").settings(norm="unit", seed=1))[AT]
    assert unit.norm().item() == pytest.approx(1) and abs(cosine(unit, drawn[AT])) < 0.6


def test_principal_axis_points_to_the_wanted_side_whatever_sign_the_solver_gives():
    generator = torch.Generator().manual_seed(0)
    differences = 0.1 * torch.randn(20, 6, generator=generator) + torch.tensor([0, 0, 3.0, 0, 0, 0])
    for one in (differences, -differences):
        assert cosine(principal_axis(one), one.mean(0)) > 0.99
    spread = torch.zeros(20, 6)
    spread[:, 1] = torch.linspace(-1, 1, 20)
    spread[:, 2] = 5.0  # a shift common to all pairs is lost when it is centred away
    assert abs(principal_axis(spread, centre=True)[1]) > 0.99
    assert principal_axis(spread)[2] > 0.99


def emotions(lens, n_groups: int = 5) -> tuple[Examples, torch.Tensor]:
    names = ("anger", "joy", "fear")
    classes = tuple(name for _ in range(n_groups) for name in names)
    groups = tuple(str(g) for g in range(n_groups) for _ in names)
    x = torch.randn(len(classes), 8, generator=torch.Generator().manual_seed(2))
    return Examples("e", lens.tokens([[5, 6]] * len(classes)), classes, "joy", groups), x


def test_group_centred_does_not_see_what_a_whole_group_shares(lens):
    """I11: a constant added to a group, however large, changes nothing; neither does a group that lacks a class."""
    examples, x = emotions(lens)
    plain = centroids(x, examples)
    shift = 50 * torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    shifted = centroids(x + shift.repeat_interleave(3, 0), examples)
    for name in plain:
        assert_close(plain[name], shifted[name], rtol=0, atol=1e-5)
    assert_close(sum(plain.values()), torch.zeros(8), rtol=0, atol=1e-6)
    by_hand = torch.stack([x[3 * g + 1] - x[3 * g : 3 * g + 3].mean(0) for g in range(5)]).mean(0)
    assert_close(plain["joy"], by_hand, rtol=0, atol=1e-6)
    ragged = without(examples, classes=(*examples.classes[:-1], "anger"))
    assert_close(centroids(x, ragged)["joy"], centroids(x[:12], emotions(lens, 4)[0])["joy"], rtol=0, atol=1e-6)
    moved = x + shift.repeat_interleave(
        3, 0
    )  # where a class is missing, a plain difference in means does see the group
    assert_close(centroids(moved, ragged)["joy"], centroids(x, ragged)["joy"], rtol=0, atol=1e-5)
    by_anger = ragged.wanting("anger")
    assert (mean_difference(moved, by_anger) - mean_difference(x, by_anger)).abs().max() > 1


def test_permuted_labels_give_nothing_beyond_random_directions(lens):
    """I13: with no signal under the labels, what is found detects them on new data as badly as a random direction."""
    generator = torch.Generator().manual_seed(1)
    found: list[float] = []
    for seed in range(20):
        examples, _ = emotions(lens, 40)
        x, new = torch.randn(2, 120, 8, generator=generator)
        direction = centroids(x, examples.shuffled(seed))["joy"]
        found.append(probe_accuracy(direction, new, examples.is_wanted))
    assert abs(sum(found) / 20 - 0.5) < 0.04


def test_activations_are_read_where_they_were_asked_for(lens):
    prompts, site = [[5, 6, 7, 8], [9, 10]], "L1.resid_post"
    run = lens.run(prompts, read=[site])[site]
    assert_close(read(lens, prompts, [site])[Site("resid_post", 1)], torch.stack([run[0, 3], run[1, 1]]))
    mean = read(lens, prompts, [site], None)[Site("resid_post", 1)]
    assert_close(mean, torch.stack([run[0, 1:].mean(0), run[1, 1]]))
    head = read(lens, prompts, ["L1H2"], None)[Site("z", 1, 2)]
    assert_close(head[1], lens.run(prompts, read=["L1H2"])["L1H2"][1, 1])


def test_the_strongest_feature_is_taken_where_none_is_named(planted):
    material = Material(planted.lens, planted.examples, [EARLY], dictionary=dictionary_for(planted))
    named = method("dictionary-feature")
    assert cosine(named.extract(material, named.settings(feature=2))[EARLY], planted.early) < 0.5
    with pytest.raises(MechlabError, match="has 7"):
        named.extract(material, named.settings(feature=7))
    with pytest.raises(MechlabError, match="own site"):
        named.extract(Material(planted.lens, planted.examples, [AT], dictionary=dictionary_for(planted)))
    with pytest.raises(MechlabError, match="needs a dictionary"):
        named.extract(Material(planted.lens, planted.examples, [EARLY]))


def test_bad_examples_are_refused(lens, planted):
    tokens = lens.tokens([[5], [6]])
    with pytest.raises(PromptError, match="2 prompts and 1 classes"):
        Examples("t", tokens, ("wanted",))
    with pytest.raises(PromptError, match="all 'wanted'"):
        Examples("t", tokens, ("wanted", "wanted"))
    with pytest.raises(UnknownName, match="class"):
        Examples("t", tokens, ("a", "b"))
    with pytest.raises(PromptError, match="no complete group"):
        method("reading-contrast").extract(Material(planted.lens, without(planted.examples, groups=None), [AT]))
    with pytest.raises(SiteError, match="one vector per token"):
        Material(lens, planted.examples, ["L1.pattern"])
    with pytest.raises(UnknownName, match="mean-difference"):
        method("mean-diference")


def test_the_list_says_what_the_methods_say():
    for one in METHODS:
        found = method(one.name)
        assert (found.name, found.line) == (one.name, one.line)
