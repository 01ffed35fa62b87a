"""Sentences about concepts, and what a model computes on them: the data on which single directions are judged.

The bundled sentences (``concepts.json``) were written for this package: ten concepts of twelve sentences each, a list of words for each
concept, and neutral sentences. Even sentences are for choosing, odd ones for judging.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site, site


@dataclass(frozen=True)
class Concepts:
    """Labelled sentences.

    Attributes:
        sentences: concept -> its sentences.
        words: concept -> words whose probability says that a text is about it.
        neutral: sentences about none of them.
    """

    sentences: Mapping[str, Sequence[str]]
    words: Mapping[str, Sequence[str]]
    neutral: Sequence[str]

    def __post_init__(self) -> None:
        for name, texts in {**self.sentences, "neutral": self.neutral}.items():
            if len(texts) < 4:
                raise MechlabError(
                    f"Concept {name!r} has {len(texts)} sentences: give at least 4, half of them to judge by."
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.sentences)

    def select(self, names: Sequence[str]) -> "Concepts":
        """Those concepts only; the others' sentences are gone."""
        return Concepts({n: self.sentences[n] for n in names}, {n: self.words[n] for n in names}, self.neutral)


def bundled_concepts() -> Concepts:
    """The sentences that come with this package."""
    record = json.loads(files("mechlab.dictionaries").joinpath("concepts.json").read_text(encoding="utf-8"))
    concepts = record["concepts"]
    return Concepts(
        {name: tuple(one["sentences"]) for name, one in concepts.items()},
        {name: tuple(one["words"]) for name, one in concepts.items()},
        tuple(record["neutral"]),
    )


@dataclass(frozen=True, eq=False)
class Readings:
    """Activations of labelled sentences at one site; each sentence's first token is left out.

    Attributes:
        activations: ``[rows, d]``, a row for each token.
        sentence: ``[rows]`` which sentence each row belongs to.
        labels: ``[sentences]`` index of the concept in ``names``, -1 for neutral ones.
        judging: ``[sentences]`` True for those kept for judging, False for those to choose by.
        names: of the concepts.
    """

    activations: Tensor
    sentence: Tensor
    labels: Tensor
    judging: Tensor
    names: tuple[str, ...]

    def per_sentence(self, values: Tensor) -> Tensor:
        """``[rows, k]`` -> ``[sentences, k]``: the largest over each sentence's tokens."""
        empty = values.new_full((len(self.labels), values.shape[1]), float("-inf"))
        return empty.scatter_reduce(0, self.sentence[:, None].expand_as(values), values, "amax")

    def relabelled(self, seed: int) -> "Readings":
        """The same sentences with their labels shuffled among those to choose by: a control that can learn nothing."""
        labels, fitting = self.labels.clone(), (~self.judging).nonzero().flatten()
        order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(seed))
        labels[fitting] = self.labels[fitting[order]]
        return Readings(self.activations, self.sentence, labels, self.judging, self.names)


def read_concepts(lens: Lens, concepts: Concepts, at: str | Site, *, batch_size: int = 32) -> Readings:
    """Runs the model over all sentences.

    Raises:
        PromptError: a sentence of a single token, of which nothing is left.
    """
    at = site(at).at(None)
    groups = [*concepts.sentences.values(), concepts.neutral]
    texts = [text for group in groups for text in group]
    labels = [label if label < len(concepts.names) else -1 for label, group in enumerate(groups) for _ in group]
    judging = [bool(place % 2) for group in groups for place in range(len(group))]
    run = lens.run(texts, read=[at], logits="none", batch_size=batch_size)
    counts = run.tokens.mask.clone()
    counts[:, 0] = False
    rows, columns = counts.nonzero(as_tuple=True)
    if len(rows.unique()) < len(texts):
        raise MechlabError("A sentence has a single token, and the first token is left out: write longer sentences.")
    return Readings(
        run[at][rows, columns].flatten(1).float(), rows, torch.tensor(labels), torch.tensor(judging), concepts.names
    )
