"""What weighted runs on the same prompts have in common (see ``circuits.wiring``), worked out once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache

from circuits.graph import Graph
from mechlab.lens.lens import Lens
from mechlab.lens.readers import LayerReaders
from mechlab.lens.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Parts:
    """What every sender writes, in compact form: heads before their output projection.

    Attributes:
        embed: ``[n, pos, d_model]``.
        z: per layer ``[n, pos, head, d_head]``.
        mlp: per layer ``[n, pos, d_model]``.
        ids: ``[n, pos]``: the tokens of the run that wrote all this; None if it is no run's (means, zeros, differences).
    """

    embed: Tensor
    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    ids: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Parts":
        return Parts(function(self.embed), tuple(map(function, self.z)), tuple(map(function, self.mlp)))

    def select(self, rows: Sequence[int]) -> "Parts":
        chosen = self.map(lambda part: part[list(rows)])
        return Parts(chosen.embed, chosen.z, chosen.mlp, None if self.ids is None else self.ids[list(rows)])

    def tail(self, start: int) -> "Parts":
        return self.map(lambda part: part[:, start:])

    def minus(self, other: "Parts") -> "Parts":
        pairs = (zip(mine, theirs, strict=True) for mine, theirs in ((self.z, other.z), (self.mlp, other.mlp)))
        z, mlp = (tuple(a - b for a, b in some) for some in pairs)
        return Parts(self.embed - other.embed, z, mlp)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Prompts ready for weighted runs. Positions are those of the tail: from the first at which anything can differ.

    Attributes:
        lens, graph, readers: of the wiring.
        tokens: of the tail.
        ablated: what senders write there where an edge's weight is 0.
        known: what senders write there below the first layer of a run; None: runs start at layer 0.
        past: per layer the keys and values ``[n, kv_head, start, d_head]`` of the positions before the tail; empty if there are none.
    """

    lens: Lens
    graph: Graph
    readers: list[LayerReaders]
    tokens: Tokens
    ablated: Parts
    known: Parts | None
    past: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(
        lens: Lens,
        graph: Graph,
        readers: list[LayerReaders],
        tokens: Tokens,
        ablated: Parts,
        known: Parts | None = None,
    ) -> "Prepared":
        start = _start(tokens, ablated, known)
        tail = Tokens(
            tokens.ids[:, start:], tuple(n - start for n in tokens.lengths), tuple(one[start:] for one in tokens.pieces)
        )
        past = _past(lens, tokens.ids[:, :start]) if start else ()
        return Prepared(
            lens, graph, readers, tail, ablated.tail(start), None if known is None else known.tail(start), past
        )

    def out_weight(self, layer: int) -> Tensor:
        """``[head, d_head, d_model]``: what a head's z is written with."""
        return out_weight(self.lens, layer)

    def differences(self, first: int) -> Tensor:
        """``[1, senders, n * pos * d_model]``: what the senders below layer ``first`` write beyond their ablated values."""
        return self._differences[:, : self.graph.before[self.graph.into(first).start] if first else 0]

    @cached_property
    def streams(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer the ablated residual stream where its attention and where its MLP read; last, twice, where the final norm does."""
        graph, blocks = self.graph, self.lens.layout.blocks
        stream, found = self.ablated.embed, list[tuple[Tensor, Tensor]]()
        for block, z, mlp in zip(blocks, self.ablated.z, self.ablated.mlp, strict=True):
            bias = block.attn_bias
            after = stream + z.flatten(-2) @ block.written_by_heads + (0 if bias is None else bias)
            found.append((stream, stream if graph.parallel else after))
            stream = after + mlp
        return [*found, (stream, stream)]

    @cached_property
    def _differences(self) -> Tensor:
        """Those of every sender: computed once, however many runs there are."""
        if self.known is None:
            return self.ablated.embed.new_empty((1, 0, self.ablated.embed.numel()))
        difference = self.known.minus(self.ablated)
        found = [difference.embed[None]]
        for layer, (z, mlp) in enumerate(zip(difference.z, difference.mlp, strict=True)):
            found += [torch.einsum("nphd,hdm->hnpm", z, self.out_weight(layer)), mlp[None]]
        return torch.cat(found).flatten(1)[None]

    def cache(self, groups: int) -> DynamicCache | None:
        """The keys and values before the tail, for every group: a fresh one, since a run adds its own."""
        if not self.past:
            return None
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.past):
            cache.update(keys.repeat(groups, 1, 1, 1), values.repeat(groups, 1, 1, 1), layer)
        return cache


def out_weight(lens: Lens, layer: int) -> Tensor:
    """``[head, d_head, d_model]``: what a head's z is written with."""
    return lens.layout.blocks[layer].written_by_heads.unflatten(0, (lens.layout.n_heads, lens.layout.d_head))


def _start(tokens: Tokens, ablated: Parts, known: Parts | None) -> int:
    """The first position at which anything can differ, but no later than the last token of the shortest prompt."""
    others = [parts.ids for parts in (ablated, known) if parts is not None]
    differ = torch.zeros(tokens.width, dtype=torch.bool)
    for ids in others:
        if ids is None or ids.shape != tokens.ids.shape:
            return 0
        differ |= (ids != tokens.ids).any(dim=0)
    first = int(differ.long().argmax()) if bool(differ.any()) else tokens.width
    return min(first, min(tokens.lengths) - 1)


def _past(lens: Lens, ids: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    cache = DynamicCache()  # made without a config: it never truncates
    with torch.no_grad():
        lens.model.hf(input_ids=ids.to(lens.model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return tuple((layer.keys, layer.values) for layer in cache.layers)  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]
