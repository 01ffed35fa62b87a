"""Attention of a wave's rows: each row's queries meet its own keys and values and, before its first position, the base run's.

Rows of equal start and length go together as one batch. Masks are those transformers makes (causal, sliding window), cut to the row's
positions. After a long prefix, rows of one prompt read one copy of it: they stand side by side as one sequence, under a mask that keeps
them from one another.
"""

from collections.abc import Iterator, Sequence
from math import ceil

import torch
from torch import Tensor

from mechlab.lens.attention import Attend
from mechlab.lens.hooks import Tap
from mechlab.lens.site import BY_HEAD
from mechlab.patching.wave import Bucket, InBucket, Wave

_LONG = 32  # positions: shorter prefixes are copied for every row


def attended(
    asking: Wave,
    asked: Wave,
    taps: Sequence[Tap],
    layer: int,
    query: Tensor,
    keys_values: tuple[Tensor, Tensor],
    kept: tuple[Tensor, Tensor],
    mask: Tensor | None,
    plain: Attend,
) -> Tensor:
    """``[1, n, head, d_head]``: attention from one wave's tokens to another's, its own or that whose last tokens it has.

    Args:
        query: ``[1, head, n, d_head]``.
        keys_values: ``[1, kv_head, n, d_head]`` of the wave that is asked.
        kept: ``[prompts, pos, kv_head, d_head]``, the base run's.
        mask: what transformers made for a prompt of the full width.
        plain: attends within rows of equal shape.
    """
    output = query.new_empty(1, query.shape[2], query.shape[1], keys_values[1].shape[-1])
    by_head = [tap for tap in taps if tap.layer == layer and tap.kind in BY_HEAD]
    for whole in asked.buckets(layer):
        for bucket, together in [(whole, 1)] if by_head else side_by_side(whole):
            ours = bucket if asking is asked else bucket.at_ends()
            q = _sequences(query, ours, together)
            k, v = (
                _with_prefix(_sequences(own, bucket, together), base, bucket, together)
                for own, base in zip(keys_values, kept, strict=True)
            )
            inside = {tap.kind: Tap(tap.kind, layer, InBucket(asking, ours), tap.edits) for tap in by_head}
            cut = _mask(mask, bucket, ours.index.shape[1], together, query.device)
            found = plain(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), cut, inside)
            output[0, ours.index] = found.reshape(*ours.index.shape, *found.shape[2:])
    return output


def side_by_side(bucket: Bucket) -> Iterator[tuple[Bucket, int]]:
    """The bucket's rows with how many of a prompt share one copy of the prefix; what is left of a prompt's rows goes one by one.

    As many as bring about as many keys of their own as the prefix has: more would cost more scores than they save copies.
    """
    most = bucket.start // (bucket.stop - bucket.start)
    if bucket.start < _LONG or most < 2:
        yield bucket, 1
        return
    rows_of = torch.bincount(bucket.prompts)
    most_rows = int(rows_of.max())
    together = ceil(most_rows / ceil(most_rows / most))
    order = bucket.prompts.argsort(stable=True)
    prompts = bucket.prompts[order]
    rank = torch.arange(len(order)) - (rows_of.cumsum(0) - rows_of)[prompts]
    shared = rank < (rows_of // together * together)[prompts]
    yield bucket.part(order[shared]), together
    if not bool(shared.all()):
        yield bucket.part(order[~shared]), 1


def _sequences(own: Tensor, bucket: Bucket, together: int) -> Tensor:
    """``[rows / together, together * pos, head, d_head]`` of ``[1, head, n, d_head]``: gathered token by token, as they lie in memory."""
    by_token = own[0].transpose(0, 1).index_select(0, bucket.index.flatten().to(own.device))
    return by_token.unflatten(0, (len(bucket.index) // together, -1))


def _with_prefix(own: Tensor, base: Tensor, bucket: Bucket, together: int) -> Tensor:
    """The base run's keys or values up to the rows' start, then their own."""
    return torch.cat([base[bucket.prompts[::together], : bucket.start], own], dim=1) if bucket.start else own


def _mask(mask: Tensor | None, bucket: Bucket, queries: int, together: int, device: torch.device) -> Tensor | None:
    """``[1, 1, together * queries, keys]`` bool: a cut of what transformers made for the whole width, or plain causal.

    Of rows side by side each sees the prefix and its own keys.

    Args:
        queries: of each row, its last ones.
    """
    if mask is not None:
        cut = mask[:, :, bucket.stop - queries : bucket.stop, : bucket.stop]
    elif queries == bucket.stop:
        return None
    else:
        cut = torch.ones(queries, bucket.stop, dtype=torch.bool, device=device).tril(bucket.stop - queries)[None, None]
    if together == 1:
        return cut
    prefix, own = cut[..., : bucket.start], cut[..., bucket.start :]
    apart = torch.eye(together, dtype=torch.bool, device=device)
    return torch.cat([prefix.repeat(1, 1, together, 1), torch.kron(apart, own)], dim=-1)
