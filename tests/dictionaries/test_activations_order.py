"""Rows come once an epoch, in an order that depends on seed and epoch alone, and a stream can be taken up at any batch."""

from itertools import islice

import torch
from torch import Tensor

from mechlab.dictionaries.activations_order import batches, buffers

GROUPS = [torch.arange(0, 7), torch.arange(7, 9), torch.arange(9, 20), torch.arange(20, 23)]


def stream(start: int = 0, epochs: int | None = None, seed: int = 3, buffer_rows: int = 8) -> list[list[int]]:
    def read(rows: Tensor) -> tuple[Tensor, ...]:
        asked.append(rows)
        return (rows, -rows)

    asked: list[Tensor] = []
    found = islice(batches(buffers(GROUPS, buffer_rows, seed, epochs), read, 4, start), 20)
    pairs = [(a.tolist(), b.tolist()) for a, b in found]
    assert all(a == [-x for x in b] for a, b in pairs)  # sites stay aligned
    assert max(map(len, asked)) <= buffer_rows + 11  # a buffer and the group that fills it
    return [a for a, _ in pairs]


def test_each_row_comes_once_an_epoch() -> None:
    one = [row for batch in stream(epochs=1) for row in batch]
    assert len(set(one)) == len(one) == 20  # 23 rows, batches of 4: three are left over
    many = [row for batch in stream() for row in batch]
    assert len(many) == 80
    counts = torch.bincount(torch.tensor(many), minlength=23)
    assert counts.min() >= 3 and counts.max() <= 4


def test_a_stream_is_taken_up_at_any_batch() -> None:
    whole = stream()
    for start in range(12):
        assert stream(start)[: 20 - start] == whole[start:]


def test_seeds_and_epochs_differ() -> None:
    assert stream(seed=1) != stream(seed=2)
    first = next(buffers(GROUPS, 99, 0, None)).tolist()
    second = list(islice(buffers(GROUPS, 99, 0, None), 2))[1].tolist()
    assert first != second and sorted(first) == sorted(second)
