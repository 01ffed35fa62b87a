"""Acting on what follows: a vector per continent, added where the rules derive that continent, at equal KL."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mechlab.analyses.kl_matched import kl_matched
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from steering.examples import Examples, Material
from steering.methods.catalogue import method
from steering.resumed import ResumedLens
from steering.rules.actions import Action, taken
from steering.rules.chain import Closure
from steering.rules.concepts import Detectors
from steering.studies.activation_reasoning_detection import Reader, groups_of
from steering.studies.activation_reasoning_evidence import Steered
from steering.studies.activation_reasoning_tasks import CONTINENT, INDIRECT, Question, first_token
from steering.studies.reasoning_tasks import Questions
from steering.studies.reasoning_vectors_evidence import Answered, answered, last_logits
from steering.vector import SteeringVector

_TOLERANCE, _MOST = 0.1, 64.0
Vectors = Mapping[str, SteeringVector]


class ActionBench:
    """The continent questions of indirect cues, grouped by the continent that follows from what is detected.

    Attributes:
        vectors: continent -> difference in means at the question's last token, from the making items.
    """

    def __init__(self, reader: Reader, detectors: Detectors, kl: float) -> None:
        lens, at = reader.lens, reader.at
        self.lens, self.kl = ResumedLens(lens, at.layer or 0), kl
        domain = reader.domain
        asked = [item.at(CONTINENT) for item in domain.making]
        examples = Examples(
            "continents", lens.tokens([one.text for one in asked]), tuple(one.right for one in asked), asked[0].right
        )
        material = Material(lens, examples, [at])
        self.vectors = {
            name: method("mean-difference").extract(material.with_examples(examples.wanting(name)))
            for name in sorted(set(examples.classes))
        }
        self.closures = reader.closures(INDIRECT, detectors, domain.rules)
        items = domain.evaluation[INDIRECT]
        tokens = {one.right: first_token(lens.model, one.right_text) for one in asked}
        self.groups: list[tuple[Closure, Questions, Answered]] = []
        for rows in groups_of(self.closures, self.vectors).values():
            questions = _questions(lens, [items[i].at(CONTINENT) for i in rows], tokens)
            base = answered(self.lens, questions, (), last_logits(self.lens, questions))
            self.groups.append((self.closures[rows[0]], questions, base))

    def at_equal_kl(self, vectors: Vectors, start: float = 0.25) -> tuple[Steered, float] | None:
        """The action of each group's fact, each group at the KL asked for, and the mean strength; None where one reaches it at none."""
        actions = [Action(when=f"{name}(?x)", vector=name) for name in self.vectors]
        found: list[tuple[Answered, Answered, float]] = []
        for closure, questions, base in self.groups:
            edits = lambda s, closure=closure: [  # noqa: E731
                edit for one in taken(self.lens.model, closure, actions, vectors, s) for edit in one.edits
            ]
            try:
                (match,) = kl_matched(
                    self.lens, questions.prompts, edits, [self.kl], start=start, most=_MOST, tolerance=_TOLERANCE
                )
            except MechlabError:  # the KL asked for is reached at no strength: told in the tables
                return None
            reached = answered(self.lens, questions, edits(match.strength), last_logits(self.lens, questions))
            found.append((base, reached, match.strength))
        if not found:
            return None
        before = np.concatenate([base.share for base, _, _ in found])
        after = np.concatenate([reached.share for _, reached, _ in found])
        kl = np.concatenate([reached.kl for _, reached, _ in found])
        return Steered(before, after, kl), float(np.mean([strength for *_, strength in found]))

    def of_other_facts(self, shift: int) -> Vectors:
        """Every fact with the vector of another one, as long as its own."""
        names = list(self.vectors)
        moved = {name: self.vectors[names[(i + shift) % len(names)]] for i, name in enumerate(names)}
        return {name: _length(self.vectors[name]) * vector.normalised() for name, vector in moved.items()}


def _length(vector: SteeringVector) -> float:
    (at,) = vector.sites
    return float(vector[at].norm())


def _questions(lens: Lens, asked: Sequence[Question], tokens: Mapping[str, int]) -> Questions:
    """As the reasoning studies ask: the right continent's first token against the others'."""
    texts = tuple(one.text for one in asked)
    rights = [one.right for one in asked]
    foils = [[token for name, token in tokens.items() if name != right] for right in rights]
    answers = torch.tensor([tokens[right] for right in rights])
    return Questions("continents", lens.tokens(texts), texts, texts, answers, torch.tensor(foils))
