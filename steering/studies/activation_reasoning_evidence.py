"""What the activation-reasoning study measures, before it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ByHops = Mapping[int, Floats]


@dataclass(frozen=True, eq=False)
class Told:
    """What is detected and what follows, ``[n]`` each.

    Attributes:
        hit: 1 where the concept detected is the one the statement is about.
        right: hops -> 1 where the right answer follows and the foil does not, 0 the other way round, 0.5 where a guess is all there is.
    """

    hit: Floats
    right: ByHops


@dataclass(frozen=True)
class ProofRow:
    """One item: what was detected, what followed, how many steps the longest proof has, and its flaw if any."""

    statement: str
    concept: str
    detected: str
    derived: str
    steps: int
    proof: str
    flaw: str


@dataclass(frozen=True, eq=False)
class Suite:
    """One suite of items.

    Attributes:
        base: hops -> 1 where the model itself prefers the right answer to the foil.
        told: by rules over detected concepts. oracle: by rules over the true concepts.
        direct: hops -> the answer's own detector, without rules.
        shuffled_labels, random, shuffled_rules: draws. by_detector: other detectors.
        twin_base, twin: of the random-weight twin.
        proofs: an item each.
    """

    name: str
    base: ByHops
    told: Told
    oracle: Told
    direct: ByHops
    shuffled_labels: list[Told]
    random: list[Told]
    shuffled_rules: list[Told]
    by_detector: dict[str, Told]
    twin_base: ByHops
    twin: Told
    proofs: list[ProofRow]


@dataclass(frozen=True, eq=False)
class Steered:
    """An action at the KL asked for, on the prompts for which a fact was derived; None where some group of them reaches it at no strength.

    Attributes:
        base: ``[n]`` share of the right answer unsteered. share, kl: steered.
    """

    base: Floats
    share: Floats
    kl: Floats

    @property
    def gain(self) -> Floats:
        return self.share - self.base


@dataclass(frozen=True, eq=False)
class Actions:
    """Ways of acting at equal KL: by the derived fact, random directions, vectors of other facts, the twin."""

    own: Steered | None
    random: list[Steered]
    others: list[Steered]
    twin: Steered | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything measured; ``layer`` is a block output counted from 0."""

    settings: dict[str, object]
    layer: int
    suites: list[Suite]
    actions: Actions
    rules: dict[str, str] = field(default_factory=dict)

    def suite(self, name: str) -> Suite:
        return next(one for one in self.suites if one.name == name)
