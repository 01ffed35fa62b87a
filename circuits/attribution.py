"""Edge attribution: the effect of every edge at once, to first order.

    score(u -> v) = sum over positions of (clean_u - ablated_u) . d metric / d in_v

is how much the metric is expected to fall when edge ``u -> v`` alone takes the ablated value: positive edges help. The gradient is taken in
one run or averaged over several (Syed et al., arXiv 2310.10348: the clean run; Hanna et al., arXiv 2403.17806: runs between corrupted and
clean). With ``-metric`` as the loss, signs and sizes are those of the EAP-IG code.

What is kept is small: heads before their output projection, gradients at the outputs of the query, key and value maps. The two sides of the
product, one vector of ``d_model`` per token and node, are made for a few tokens at a time, and each layer's receivers meet only the senders
below them.

Peak memory over the model, in floats, for T = runs x prompts x positions tokens of one backward pass: what autograd keeps, about
``T x layers x (12 d_model + 4 d_mlp)``, plus ``layers x (3 d_model + queries, keys and values)`` for each token of the runs that are
multiplied together (``circuits.methods.gradient``), plus a constant (``CHUNK``).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from circuits.prepared import Parts
from circuits.slopes import Slopes
from circuits.wiring import Wiring
from mechlab.lens.readers import KINDS
from mechlab.lens.tokens import Tokens

CHUNK = 2**24
"""Floats that the vectors of all senders may take at a time (64 MiB)."""

TOGETHER = 64
"""Receivers that are multiplied at once, at least: matrix products with fewer columns run at a fraction of the speed."""


def attribute(
    wiring: Wiring,
    difference: Parts,
    found: Slopes | Sequence[Slopes],
    tokens: Tokens,
    start: Sequence[int] | None = None,
) -> Tensor:
    """``[senders, receivers]`` float32: the scores of every edge, summed over prompts, with gradients averaged over runs.

    Args:
        difference: clean minus ablated, of each sender.
        found: of the runs, in one piece or several.
        start: per prompt the first position at which anything differs (before it nothing is multiplied); None: 0.
    """
    graph = wiring.graph
    pieces = [found] if isinstance(found, Slopes) else found
    scores = torch.zeros(graph.shape, device=difference.embed.device)
    for row, column in _chunks(tokens, start or [0] * len(tokens), len(graph.senders) * wiring.lens.model.d_model):
        sent = _sent(wiring, difference, row, column)
        for receivers, arriving in _together(_arriving(wiring, pieces, row, column)):
            before = graph.before[receivers.stop - 1]
            scores[:before, receivers] += (sent[:before] @ arriving.flatten(1).T).float()
    return scores * graph.real.to(scores.device)


def _chunks(tokens: Tokens, start: Sequence[int], width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(prompts, positions) of the tokens that count, a few at a time."""
    pairs = [(i, at) for i, length in enumerate(tokens.lengths) for at in range(start[i], length)]
    size = max(1, CHUNK // width)
    for first in range(0, len(pairs), size):
        some = torch.tensor(pairs[first : first + size])
        yield some[:, 0], some[:, 1]


def _sent(wiring: Wiring, difference: Parts, row: Tensor, column: Tensor) -> Tensor:
    """``[senders, tokens * d_model]``: what each sender's difference adds to the stream."""
    graph = wiring.graph
    sent = difference.embed.new_empty(len(graph.senders), len(row), wiring.lens.model.d_model)
    sent[0] = difference.embed[row, column]
    for layer, (z, mlp) in enumerate(zip(difference.z, difference.mlp, strict=True)):
        heads = graph.heads(layer)
        sent[heads] = torch.einsum("thd,hdm->htm", z[row, column], wiring.out_weight(layer))
        sent[heads.stop] = mlp[row, column]
    return sent.flatten(1)


def _together(arriving: Iterator[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Receivers ``[receivers, tokens, d_model]`` in order -> a number of them at once, and their columns.

    Their products take in senders that do not reach the first of them, which is cheaper than a narrow matrix product.
    """
    first, waiting = 0, list[Tensor]()
    for some in arriving:
        waiting.append(some)
        if (n := sum(map(len, waiting))) >= TOGETHER:
            yield slice(first, first + n), torch.cat(waiting)
            first, waiting = first + n, []
    if waiting:
        yield slice(first, first + sum(map(len, waiting))), torch.cat(waiting)


def _arriving(wiring: Wiring, pieces: Sequence[Slopes], row: Tensor, column: Tensor) -> Iterator[Tensor]:
    """``[receivers, tokens, d_model]``: gradient at what each receiver reads, mean over runs; in the order of the graph."""

    def at(value: Callable[[Slopes], Tensor]) -> Tensor:
        return torch.cat([value(piece)[:, row, column] for piece in pieces])

    for layer, (block, readers) in enumerate(zip(wiring.lens.layout.blocks, wiring.readers, strict=True)):
        found = [reader for kind in KINDS for reader in readers[kind]]
        at_maps = {module: at(lambda one, m=module: one.maps[m]) for module in {reader.module for reader in found}}
        after = torch.stack([at_maps[reader.module][..., reader.part] @ reader.weight.T for reader in found])
        yield _through_norm(block.ln1, at(lambda one, i=layer: one.streams[i]), after)
        yield at(lambda one, i=layer: one.mlp[i]).mean(dim=0)[None]
    yield at(lambda one: one.final).mean(dim=0)[None]


def _through_norm(norm: nn.Module | None, stream: Tensor, arriving: Tensor) -> Tensor:
    """Gradients after the norm ``[receivers, runs, tokens, d_model]`` -> before it, mean over runs.

    ``stream``: what it read, ``[runs, tokens, d_model]``.
    """
    assert norm is not None
    with torch.enable_grad():
        leaf = stream.requires_grad_()
        before = torch.autograd.grad(norm(leaf), leaf, arriving, is_grads_batched=True)[0]
    return before[:, 0] if before.shape[1] == 1 else before.mean(dim=1)
