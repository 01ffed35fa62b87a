"""Attention of a wave's rows: each row's queries meet its own keys and values and, before its first position, the base run's.

Rows of one stop and of starts close to each other go together as one batch, from the first of their starts on; what a row does not
carry there is filled from the base run, which it equals. Masks are those transformers makes (causal, sliding window), cut to the batch's
positions. After a long prefix, rows of one prompt read one copy of it: they stand side by side as one sequence, under a mask that keeps
them from one another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import numpy as np
import torch
from torch import Tensor

from mechlab.lens.attention import Attend
from mechlab.lens.hooks import Tap
from mechlab.lens.site import BY_HEAD
from mechlab.patching.wave import Bools, InBatch, Ints, Packing, Wave

_LONG = 32  # positions: shorter prefixes are copied for every row
_FILLED = 64  # tokens: filling up rows of one start by as many costs about what another batch does


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that attention takes together: sequences of one shape, each of one row or of several of one prompt side by side.

    Attributes:
        rows: ``[sequences * together]`` their numbers in the wave.
        start, stop: positions of each row's own keys; before ``start`` is the prefix.
        together: rows in a sequence.
    """

    rows: Ints
    start: int
    stop: int
    together: int = 1

    def carried(self, packing: Packing) -> tuple[Bools, Ints]:
        """``[rows, stop - start]``: whether a row carries a position, and its packed place (elsewhere that of the row's first token)."""
        positions, starts, stops = (
            np.arange(self.start, self.stop),
            packing.starts[self.rows],
            packing.stops[self.rows],
        )
        carried = (positions >= starts[:, None]) & (positions < stops[:, None])
        return carried, packing.offsets[self.rows][:, None] + np.where(carried, positions - starts[:, None], 0)

    def keys(self, packing: Packing, first: Ints, n_base: int) -> Ints:
        """``[sequences, keys]`` places in a ``_table``: ``n_base`` tokens (rows' prompts begin at ``first``), then the wave's."""
        positions = np.arange(self.stop)
        base = first[self.rows][:, None] + positions
        carried, places = self.carried(packing)
        own = np.where(carried, n_base + places, base[:, self.start :])
        return np.hstack([base[:: self.together, : self.start], own.reshape(len(base) // self.together, -1)])


def batches(packing: Packing, *, apart: bool = False) -> Iterator[Batch]:
    """The rows at one layer, each in one batch; ``apart``: no rows side by side."""
    stops = np.where(packing.partial, 0, packing.stops)  # those carried in part may go together whatever their stop
    for stop in np.unique(stops):
        of_stop = stops == stop
        firsts = _firsts(*np.unique(packing.starts[of_stop], return_counts=True))
        band = np.searchsorted(firsts, packing.starts, side="right") - 1
        for i, start in enumerate(firsts):
            rows = np.flatnonzero(of_stop & (band == i))
            batch = Batch(rows, start, int(packing.stops[rows].max()))
            yield from [batch] if apart else side_by_side(packing, batch)


def _firsts(starts: Ints, counts: Ints) -> list[int]:
    """The starts that batches begin at; ``counts``: how many rows each has."""
    firsts = [int(starts[0])]
    for start, count in zip(starts, counts, strict=True):
        if count * (start - firsts[-1]) > _FILLED:
            firsts.append(int(start))
    return firsts


def side_by_side(packing: Packing, batch: Batch) -> Iterator[Batch]:
    """As many of a prompt's rows in a sequence as bring about as many keys of their own as the prefix has; what is left goes one by one.

    More would cost more scores than they save copies.
    """
    most = batch.start // (batch.stop - batch.start)
    if batch.start < _LONG or most < 2:
        yield batch
        return
    rows = batch.rows[packing.of[batch.rows].argsort(kind="stable")]
    _, first, rows_of = np.unique(packing.of[rows], return_index=True, return_counts=True)
    together = ceil(rows_of.max() / ceil(rows_of.max() / most))
    rank = np.arange(len(rows)) - np.repeat(first, rows_of)
    shared = rank < np.repeat(rows_of // together * together, rows_of)
    yield replace(batch, rows=rows[shared], together=together)
    if not shared.all():
        yield replace(batch, rows=rows[~shared])


@dataclass(frozen=True, eq=False)
class Part:
    """One batch, and where its queries, keys and values stand.

    Attributes:
        queries, keys: ``[sequences, kv_head, tokens]`` places by KV head, in the wave and in a ``_table``; where a row has no query, its
            first token's stands in.
        tokens, slots: the wave's tokens it answers, and their places among its queries, sequence by sequence.
    """

    batch: Batch
    queries: Tensor
    keys: Tensor
    tokens: Ints
    slots: Ints

    @staticmethod
    def of(packing: Packing, batch: Batch, first: Ints, n_base: int, n_kv: int, *, of_ends: bool) -> "Part":
        carried, places = batch.carried(packing)
        if of_ends:
            carried, places = np.ones_like(batch.rows, dtype=bool), batch.rows
        queries = places.reshape(len(batch.rows) // batch.together, -1)
        slots = np.flatnonzero(carried)
        by_head = [
            torch.from_numpy(at[:, None] * n_kv + np.arange(n_kv)[:, None])
            for at in (queries, batch.keys(packing, first, n_base))
        ]
        return Part(batch, by_head[0], by_head[1], places.flatten()[slots], slots)


@dataclass(frozen=True, eq=False)
class Arrangement:
    """All batches of one packing.

    Attributes:
        prompts: whose keys and values of the base run are in the ``_table``.
        where: ``[tokens, kv_head]`` places of each token's answers among those of all parts, ``[sequences, kv_head, queries]`` each.
        causal: ``[1, 1, pos, pos]`` bool.
    """

    prompts: Ints
    parts: list[Part]
    where: Tensor
    causal: Tensor

    @staticmethod
    def of(
        packing: Packing, width: int, n_kv: int, device: torch.device, *, of_ends: bool, apart: bool
    ) -> "Arrangement":
        prompts, of = np.unique(packing.of, return_inverse=True)
        parts = [
            Part.of(packing, batch, of * width, len(prompts) * width, n_kv, of_ends=of_ends)
            for batch in batches(packing, apart=apart)
        ]
        where = np.empty((len(packing) if of_ends else packing.n_tokens, n_kv), dtype=np.int64)
        n_before = 0
        for part in parts:
            sequences, queries = np.divmod(part.slots, part.queries.shape[2])
            by_head = sequences[:, None] * n_kv + np.arange(n_kv)
            where[part.tokens] = n_before + by_head * part.queries.shape[2] + queries[:, None]
            n_before += part.queries.numel()
        parts = [replace(part, queries=part.queries.to(device), keys=part.keys.to(device)) for part in parts]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
        return Arrangement(prompts, parts, torch.from_numpy(where).to(device), causal)


class RowAttention:
    """Attention from one wave's tokens to another's: its own, or those of the wave whose last tokens it has.

    Args:
        taps: those of scores and patterns act here.
        kept: layer -> the base run's keys and values, ``[prompts, pos, kv_head, d_head]``.
    """

    def __init__(
        self, asking: Wave, asked: Wave, taps: Sequence[Tap], kept: Callable[[int], tuple[Tensor, Tensor]]
    ) -> None:
        self.asking, self.asked, self.kept = asking, asked, kept
        self.by_head = [tap for tap in taps if tap.kind in BY_HEAD]
        self.arrange = cache(Arrangement.of)  # once for all layers that have the same rows

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, attend: Attend
    ) -> Tensor:
        """``[1, n, head, d_head]``.

        Args:
            query: ``[1, head, n, d_head]``.
            key, value: ``[1, kv_head, n, d_head]`` of the wave that is asked.
            mask: what transformers made for a prompt of the full width; None for plain causal attention.
            attend: attention within sequences of one shape.
        """
        taps, bases, n_kv = [tap for tap in self.by_head if tap.layer == layer], self.kept(layer), key.shape[1]
        of_ends, width = self.asking is not self.asked, bases[0].shape[1]
        how = self.arrange(self.asked.at(layer), width, n_kv, query.device, of_ends=of_ends, apart=bool(taps))
        keys, values = (_table(own, base, how.prompts) for own, base in zip((key, value), bases, strict=True))
        queries = query[0].transpose(0, 1).unflatten(1, (n_kv, -1))
        found: list[Tensor] = []
        for part in how.parts:
            n_sequences, _, n_queries = part.queries.shape
            inside = {
                tap.kind: Tap(
                    tap.kind, layer, InBatch(self.asking, part.tokens, part.slots, n_sequences, n_queries), tap.edits
                )
                for tap in taps
            }
            picked = (_picked(queries, part.queries), _picked(keys, part.keys), _picked(values, part.keys))
            cut = _mask(how.causal if mask is None else mask, part.batch, n_queries // part.batch.together)
            found.append(attend(*picked, cut, inside).flatten(0, 2))
        together = found[0] if len(found) == 1 else torch.cat(found)
        return together.index_select(0, how.where.flatten()).reshape(1, len(how.where), -1, value.shape[-1])


def _table(own: Tensor, base: Tensor, prompts: Ints) -> Tensor:
    """``[tokens, kv_head, d_head]``: the base run's keys or values of these prompts, position by position, then the wave's own."""
    of_base = base if len(prompts) == len(base) else base[torch.from_numpy(prompts)]
    return torch.cat([of_base.flatten(0, 1), own[0].transpose(0, 1)])


def _picked(table: Tensor, places: Tensor) -> Tensor:
    """``[sequences, kv_head, tokens, ...]`` of a table ``[tokens, kv_head, ...]`` at ``places [sequences, kv_head, tokens]``."""
    return table.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape)


def _mask(mask: Tensor, batch: Batch, queries: int) -> Tensor:
    """``[1, 1, together * queries, keys]``: each row's last ``queries``; of rows side by side each sees the prefix and its own keys."""
    cut = mask[:, :, batch.stop - queries : batch.stop, : batch.stop]
    if batch.together == 1:
        return cut
    prefix, own = cut[..., : batch.start], cut[..., batch.start :]
    apart = torch.eye(batch.together, dtype=torch.bool, device=mask.device)
    return torch.cat([prefix.repeat(1, 1, batch.together, 1), torch.kron(apart, own)], dim=-1)
