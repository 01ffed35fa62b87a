"""Small tasks, and families told apart, that several tests share."""

import torch

from mechlab.lens.lens import Lens
from mechlab.models import FAMILIES
from mechlab.patching.task import Task

NO_EDGES = ("gemma2", "gemma3", "olmo2", "olmoe")
WITH_EDGES = tuple(family for family in FAMILIES if family not in NO_EDGES)


def toy_task(lens: Lens, seed: int = 0, n: int = 5) -> Task:
    """Random pairs of unequal lengths that differ at two places; LATE labels the second."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randint(5, lens.model.vocab_size, size, generator=generator)  # noqa: E731
    clean, corrupted, late = [], [], []
    for i in range(n):
        ids = draw(9 + i % 3)
        other = ids.clone()
        first, second = 2 + i % 2, 5 + i % 3
        other[[first, second]] = (ids[[first, second]] - 5 + 1) % (lens.model.vocab_size - 5) + 5
        clean.append(ids.tolist())
        corrupted.append(other.tolist())
        late.append(second)
    answers = draw(n)
    return Task(
        "toy",
        lens.tokens(clean).labelled(LATE=late),
        lens.tokens(corrupted).labelled(LATE=late),
        answers,
        (answers - 5 + 7) % (lens.model.vocab_size - 5) + 5,
    )
