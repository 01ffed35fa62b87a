"""The order in which rows are drawn for training: shuffled within a bounded buffer, the same for the same seed, resumable at any batch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

Read = Callable[[Tensor], tuple[Tensor, ...]]
_SEED_STEP = 1_000_003  # keeps the generators of two epochs of two seeds apart


def buffers(groups: Sequence[Tensor], buffer_rows: int, seed: int, epochs: int | None) -> Iterator[Tensor]:
    """Shuffled row numbers, a buffer at a time: groups (shards, prompts) in random order, their rows mixed within the buffer.

    Every row comes once an epoch. The next buffer ends with the group that fills it to ``buffer_rows`` or more.
    """
    for epoch in range(epochs) if epochs is not None else count():
        generator = torch.Generator().manual_seed(seed * _SEED_STEP + epoch)
        waiting: list[Tensor] = []
        for group in torch.randperm(len(groups), generator=generator).tolist():
            waiting.append(groups[group])
            if sum(map(len, waiting)) >= buffer_rows:
                yield _mixed(waiting, generator)
                waiting = []
        if waiting:
            yield _mixed(waiting, generator)


def batches(rows: Iterator[Tensor], read: Read, size: int, start: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of exactly ``size`` rows from shuffled buffers; what is left of a buffer goes first in the next, at the end it is dropped.

    The first ``start`` batches are passed over without reading them.
    """
    left, left_values = torch.empty(0, dtype=torch.long), None
    for buffer in rows:
        here = torch.cat([left, buffer])
        whole = len(here) // size
        if start < whole:
            values = _joined(left, left_values, buffer, read)
            for batch in range(start, whole):
                yield tuple(value[batch * size : (batch + 1) * size] for value in values)
            left_values = tuple(value[whole * size :].clone() for value in values)
        else:
            left_values = None
        start = max(0, start - whole)
        left = here[whole * size :]


def _joined(left: Tensor, left_values: tuple[Tensor, ...] | None, buffer: Tensor, read: Read) -> tuple[Tensor, ...]:
    if not len(left):
        return read(buffer)
    first = left_values if left_values is not None else read(left)
    return tuple(torch.cat(parts) for parts in zip(first, read(buffer), strict=True))


def _mixed(groups: list[Tensor], generator: torch.Generator) -> Tensor:
    rows = torch.cat(groups)
    return rows[torch.randperm(len(rows), generator=generator)]
