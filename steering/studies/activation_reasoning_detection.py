"""One domain on one model: detectors from making items, thresholds on calibrating items, and what follows on evaluation items."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mechlab.dictionaries.baselines import pca
from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from steering.examples import Examples, Material, read
from steering.methods.catalogue import method
from steering.methods.random_direction import as_long_as
from steering.rules.chain import Closure, chain, flaw
from steering.rules.clause import Atom, Clause
from steering.rules.concepts import Detectors, calibrated, one_direction_each, relevant_features
from steering.studies.activation_reasoning_evidence import ByHops, Floats, ProofRow, Told
from steering.studies.activation_reasoning_tasks import WHO, Domain, Item, first_token

PCA = "pca"
_COMPONENTS = 32


class Reader:
    """Activations of a domain's statements at their last token, read once; detectors made from them.

    Args:
        top: features per concept of the PCA dictionary.
    """

    def __init__(self, lens: Lens, domain: Domain, at: Site, top: int) -> None:
        self.lens, self.domain, self.at, self.top = lens, domain, at, top
        statements = lens.tokens([item.statement for item in domain.making])
        labels = tuple(item.concept for item in domain.making)
        self.material = Material(lens, Examples("concepts", statements, labels, labels[0]), [at])
        self.calibrating = self._read(domain.calibrating)
        self.evaluation = {suite: self._read(items) for suite, items in domain.evaluation.items()}
        self._made: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Detectors] = {}  # suites of a domain share them

    def _read(self, items: Sequence[Item]) -> Tensor:
        return read(self.lens, [item.statement for item in items], [self.at])[self.at]

    @property
    def making(self) -> Tensor:
        return self.material.activations[self.at]

    @cached_property
    def true(self) -> tuple[list[str], list[str]]:
        """Concepts of the making and of the calibrating items."""
        return [item.concept for item in self.domain.making], [item.concept for item in self.domain.calibrating]

    def detectors(self, kind: str, labels: tuple[list[str], list[str]] | None = None) -> Detectors:
        """Detectors of the labels given (default: the items' concepts) by an extraction method, or by the features of a PCA dictionary."""
        made, set_on = labels or self.true
        key = (kind, tuple(made), tuple(set_on))
        if key not in self._made:
            self._made[key] = self._fitted(kind, made, set_on)
        return self._made[key]

    def _fitted(self, kind: str, made: list[str], set_on: list[str]) -> Detectors:
        names = list(dict.fromkeys(made))
        if kind == PCA:
            origin = DictionaryOrigin(
                method=PCA, model=self.lens.model.name, fingerprint=self.lens.model.fingerprint, site=str(self.at)
            )
            dictionary = pca(self.making, min(_COMPONENTS, min(self.making.shape) - 1), origin)
            features = relevant_features(dictionary, self.making, one_hot(made, names), names, self.top)
            return calibrated(dictionary, features, self.calibrating, one_hot(set_on, names))
        prompts = self.material.examples.prompts
        vectors = {
            name: method(kind).extract(self.material.with_examples(Examples("concepts", prompts, tuple(made), name)))
            for name in names
        }
        dictionary, features = one_direction_each(vectors, self.making.mean(0))
        return calibrated(dictionary, features, self.calibrating, one_hot(set_on, names))

    def shuffled(self, kind: str, seed: int) -> Detectors:
        """The same under labels dealt anew."""
        draw, labels = random.Random(seed), (list(self.true[0]), list(self.true[1]))
        for one in labels:
            draw.shuffle(one)
        return self.detectors(kind, labels)

    def random(self, like: Detectors, seed: int) -> Detectors:
        """A random direction for every concept, with thresholds set on the true labels."""
        vectors = {
            name: as_long_as(like.vector(name, self.lens.model), 1000 * seed + i) for i, name in enumerate(like.names)
        }
        dictionary, features = one_direction_each(vectors, self.making.mean(0))
        return calibrated(dictionary, features, self.calibrating, one_hot(self.true[1], list(like.names)))

    def closures(self, suite: str, detectors: Detectors, rules: Sequence[Clause]) -> list[Closure]:
        """Per item of the suite: what follows from the clearest concept, where one is above its threshold."""
        found = detectors.detected(self.evaluation[suite], most=1)
        return [chain([Atom(concept, (WHO,)) for concept in concepts], rules) for concepts in found]

    def told(self, suite: str, detectors: Detectors, rules: Sequence[Clause] | None = None) -> Told:
        closures = self.closures(suite, detectors, self.domain.rules if rules is None else rules)
        return told(self.domain.evaluation[suite], closures)

    def oracle(self, suite: str) -> Told:
        items = self.domain.evaluation[suite]
        return told(items, [chain([Atom(item.concept, (WHO,))], self.domain.rules) for item in items])

    def direct(self, suite: str, kind: str) -> ByHops:
        """The answers of each number of hops with detectors of their own, no rules."""
        items, found = self.domain.evaluation[suite], dict[int, Floats]()
        for question in items[0].questions:
            hops = question.hops
            answers = [[item.at(hops).right for item in part] for part in (self.domain.making, self.domain.calibrating)]
            detected = self.detectors(kind, (answers[0], answers[1])).detected(self.evaluation[suite], most=1)
            closures = [chain([Atom(concept, (WHO,)) for concept in concepts], ()) for concepts in detected]
            found[hops] = told(items, closures).right[hops]
        return found


def one_hot(labels: Sequence[str], names: Sequence[str]) -> Tensor:
    """``[n, names]`` bool."""
    return torch.tensor([[label == name for name in names] for label in labels])


def told(items: Sequence[Item], closures: Sequence[Closure]) -> Told:
    """What the closures say of the items' questions."""
    by_hops: dict[int, list[float]] = {}
    hits: list[float] = []
    for item, closure in zip(items, closures, strict=True):
        hits.append(float(Atom(item.concept, (WHO,)) in closure))
        for question in item.questions:
            right, foil = (Atom(concept, (WHO,)) in closure for concept in (question.right, question.foil))
            by_hops.setdefault(question.hops, []).append((1 + right - foil) / 2)
    return Told(np.array(hits), {hops: np.array(values) for hops, values in by_hops.items()})


def shuffled_rules(rules: Sequence[Clause], seed: int) -> list[Clause]:
    """The same premises with the conclusions dealt anew."""
    conclusions = [one.conclusion for one in rules]
    random.Random(seed).shuffle(conclusions)
    return [Clause(one.name, new, one.premises, one.denied) for one, new in zip(rules, conclusions, strict=True)]


def base_accuracy(lens: Lens, items: Sequence[Item], tick: Callable[[], None]) -> ByHops:
    """Hops -> ``[n]``: 1 where the first token of the right answer has a larger logit than the foil's. Questions of one text run once."""
    found: dict[int, Floats] = {}
    ran: dict[tuple[str, ...], Tensor] = {}
    for hops in (question.hops for question in items[0].questions):
        asked = [item.at(hops) for item in items]
        texts = tuple(one.text for one in asked)
        if texts not in ran:
            logits = lens.run(list(texts), logits="last").last_logits
            assert logits is not None
            ran[texts] = logits.float()
            tick()
        right, foil = (
            torch.tensor([first_token(lens.model, text) for text in column])
            for column in zip(*((one.right_text, one.foil_text) for one in asked), strict=True)
        )
        rows = torch.arange(len(asked))
        found[hops] = (ran[texts][rows, right] > ran[texts][rows, foil]).double().numpy()
    return found


def proof_rows(items: Sequence[Item], closures: Sequence[Closure], rules: Sequence[Clause]) -> list[ProofRow]:
    """An item each, its longest proof written out and checked."""
    rows: list[ProofRow] = []
    for item, closure in zip(items, closures, strict=True):
        given = [fact for fact in closure.facts if closure.steps[fact].clause is None]
        proofs = [closure.proof(fact) for fact in sorted(closure.facts)]
        longest = max(proofs, key=len, default=())
        flaws = [found for found in (flaw(proof, given, rules, closure) for proof in proofs) if found]
        rows.append(
            ProofRow(
                statement=item.statement,
                concept=item.concept,
                detected=", ".join(fact.predicate for fact in given),
                derived=", ".join(fact.predicate for fact in closure.derived),
                steps=len(longest),
                proof="; ".join(map(str, longest)),
                flaw=flaws[0] if flaws else "",
            )
        )
    return rows


def groups_of(closures: Sequence[Closure], facts: Mapping[str, object]) -> dict[str, list[int]]:
    """Concept -> items of which it follows, for the concepts given; an item of which several follow goes to the first."""
    found: dict[str, list[int]] = {}
    for i, closure in enumerate(closures):
        concept = next((name for name in facts if Atom(name, (WHO,)) in closure), None)
        if concept is not None:
            found.setdefault(concept, []).append(i)
    return found
