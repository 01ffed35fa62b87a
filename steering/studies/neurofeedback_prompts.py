"""Contexts of the neurofeedback study: sentences, each followed by a score, as token ids; and where the scores stand."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechlab.errors import PromptError
from mechlab.models.model import Model

Ids = list[int]
Integers = NDArray[np.int64]
_HEADER = "Each sentence has a score that reads the state inside the model.\n"
_REQUEST = "Reach this score with the next sentence."


@dataclass(frozen=True)
class Marks:
    """How a score is written, as token ids.

    Attributes:
        before, after: what stands around the score. low, high: the tokens of the scores 0 and 1.
        header: of every context. request: what asks for a score to be reached. newline: at a line's end.
    """

    before: tuple[int, ...]
    low: int
    high: int
    after: tuple[int, ...]
    header: tuple[int, ...] = ()
    request: tuple[int, ...] = ()
    newline: tuple[int, ...] = ()

    def score(self, label: int) -> int:
        return self.high if label else self.low


def marks(model: Model) -> Marks:
    """For a model's tokenizer. Raises PromptError where the two scores are not two single tokens in one place."""
    low, high = (encoded(model, f" [Score: {label}]") for label in (0, 1))
    differ = [i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b]
    if len(low) != len(high) or len(differ) != 1:
        raise PromptError(
            f"The scores 0 and 1 are not one token each for {model.name}: use a model that splits digits."
        )
    (at,) = differ
    return Marks(
        before=tuple(low[:at]),
        low=low[at],
        high=high[at],
        after=tuple(low[at + 1 :]),
        header=tuple(encoded(model, _HEADER)),
        request=tuple(encoded(model, _REQUEST)),
        newline=tuple(encoded(model, "\n")),
    )


def encoded(model: Model, text: str) -> Ids:
    """Token ids without special tokens."""
    ids: Ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return list(ids)


def scored(how: Marks, sentences: Sequence[Ids], labels: Sequence[int]) -> tuple[Ids, list[int]]:
    """Sentences with their scores; and for each the position whose next token is its score."""
    ids, slots = list(how.header), list[int]()
    for sentence, label in zip(sentences, labels, strict=True):
        ids += [*sentence, *how.before]
        slots.append(len(ids) - 1)
        ids += [how.score(label), *how.after, *how.newline]
    return ids, slots


def requested(how: Marks, sentences: Sequence[Ids], labels: Sequence[int], wanted: int) -> Ids:
    """Examples, then a request to reach a score; the next sentence comes after it."""
    ids, _ = scored(how, sentences, labels)
    return [*ids, *how.request, *how.before, how.score(wanted), *how.after, *how.newline]


def picked(n_prompts: int, n_each: int, n_sentences: int, seed: int) -> Integers:
    """``[prompts, each]``: which sentences stand in which context, none twice in one. Raises PromptError where there are too few."""
    if n_each > n_sentences:
        raise PromptError(
            f"{n_each} sentences are wanted in a context and there are {n_sentences}: use fewer examples."
        )
    draw = random.Random(seed)
    return np.array([draw.sample(range(n_sentences), n_each) for _ in range(n_prompts)])
