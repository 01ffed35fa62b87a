"""What to do when a fact follows: steer along a vector. Actions are data; the edits of one prompt say which proof led to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from mechlab.errors import UnknownName
from mechlab.lens.edit import Edit
from mechlab.models.model import Model
from steering.application import PLAIN, Rule, steer
from steering.rules.chain import Closure, Step
from steering.rules.clause import Atom, atom
from steering.vector import SteeringVector


class Action(BaseModel):
    """When ``when`` (``europe(?x)``, or a fact without variables) holds, add ``strength`` times the vector of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: str
    vector: str
    strength: float = 1.0
    rule: Rule = PLAIN


@dataclass(frozen=True)
class Taken:
    """An action, the fact that called for it, that fact's proof, and the edits."""

    action: Action
    fact: Atom
    proof: tuple[Step, ...]
    edits: tuple[Edit, ...]


def taken(
    model: Model, closure: Closure, actions: Sequence[Action], vectors: Mapping[str, SteeringVector], scale: float = 1.0
) -> list[Taken]:
    """The actions that a closure calls for, each once, in the order given; ``scale`` multiplies every strength.

    Raises:
        UnknownName: an action whose vector is not there. MechlabError: a vector of another model.
    """
    found: list[Taken] = []
    for action in actions:
        if action.vector not in vectors:
            raise UnknownName("vector", action.vector, vectors)
        fact = first_fact(atom(action.when), closure)
        if fact is not None:
            edits = steer(model, vectors[action.vector], scale * action.strength, action.rule)
            found.append(Taken(action, fact, closure.proof(fact), tuple(edits)))
    return found


def first_fact(pattern: Atom, closure: Closure) -> Atom | None:
    """The first fact, in order, that the pattern covers."""
    fits = [
        fact
        for fact in sorted(closure.facts)
        if fact.predicate == pattern.predicate
        and len(fact.args) == len(pattern.args)
        and len({*zip(pattern.args, fact.args, strict=True)}) == len(set(pattern.args))
        and all(a.startswith("?") or a == b for a, b in zip(pattern.args, fact.args, strict=True))
    ]
    return fits[0] if fits else None
