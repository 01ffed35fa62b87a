"""What the context-mixture study measures, before it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechlab.lens.lens import Lens
from steering.studies import context_mixture_items as passages
from steering.studies.context_mixture_items import Item, Kind, Order
from steering.studies.context_mixture_learning import INAPPROPRIATE, NEITHER, RELEVANT, Floats

_CUE: dict[Kind, int] = {"relevant": RELEVANT, "inappropriate": INAPPROPRIATE, "off-topic": NEITHER}
_PROMPTS_AT_ONCE = 8


@dataclass(frozen=True)
class Condition:
    """How a context is mixed.

    Attributes:
        share: of passages that are of the ``other`` kind. order: where they stand. empty: no passage at all.
    """

    share: float
    other: Kind = "inappropriate"
    order: Order = "mixed"
    empty: bool = False

    @property
    def name(self) -> str:
        if self.empty:
            return "no context"
        where = "" if self.order == "mixed" else f", all {self.order}"
        return f"{self.share:.0%} {self.other}{where}"


NO_CONTEXT = Condition(0.0, empty=True)


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model answered, ``[items]`` each.

    Attributes:
        relevant, inappropriate: probability of the first token of the right answer and of the passages' wrong one.
        cues: ``[items, k]``: what each passage was (0 relevant, 1 inappropriate, 2 neither).
    """

    relevant: Floats
    inappropriate: Floats
    cues: Floats

    @property
    def follows(self) -> Floats:
        """Share of the right answer in the two answers' probability."""
        return self.relevant / np.maximum(self.relevant + self.inappropriate, 1e-300)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything the study measured; the twin has answered the same prompts."""

    settings: dict[str, object]
    countries: tuple[str, ...]
    answered: dict[Condition, Answered]
    twin: dict[Condition, Answered]


def answer(lens: Lens, asked: Sequence[Item], condition: Condition, n: int, seed: int) -> Answered:
    """One condition, ``n`` passages; where they stand is drawn for each question."""
    asked, orders = list(asked), orders_of(condition, len(asked), n, seed)
    logits = lens.run(passages.prompts(lens, asked, orders), logits="last", batch_size=_PROMPTS_AT_ONCE).last_logits
    assert logits is not None
    p = logits.double().softmax(-1).cpu().gather(1, passages.candidates(lens, asked)).numpy()
    return Answered(p[:, 0], p[:, 1], np.array([[_CUE[kind] for kind in order] for order in orders], dtype=np.float64))


def orders_of(condition: Condition, n_items: int, n: int, seed: int) -> list[tuple[Kind, ...]]:
    """Which kind of passage stands where, for each question; places are drawn anew for each."""
    if condition.empty:
        return [()] * n_items
    return [passages.kinds(n, condition.share, condition.other, condition.order, seed + i) for i in range(n_items)]
