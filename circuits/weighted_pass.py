"""One forward pass with weighted edges (see ``circuits.wiring``).

The model's own modules do the work. Only its residual stream is taken away: what a sublayer reads is put before it, and what it writes is
kept, sender by sender. The hidden state that the model hands on itself is not looked at.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuits.graph import Graph
from circuits.prepared import Prepared
from circuits.slots import Written, mix, write
from mechlab.lens.hooks import intercepted
from mechlab.lens.layout import output_weight, unembed_into
from mechlab.lens.readers import KINDS, Reader


def run_masks(prepared: Prepared, masks: Tensor, first: int, token_ids: Tensor | None) -> Tensor:
    """Logits at each prompt's last token ``[group, n, tokens]``; see ``Wiring.run``."""
    model, groups = prepared.lens.model, len(masks)
    with intercepted(**_Pass(prepared, masks, first).interceptions(token_ids)):
        rows = prepared.tokens.ids.to(model.device).repeat(groups, 1)
        logits = model.hf(input_ids=rows, past_key_values=prepared.cache(groups), use_cache=False).logits
    return logits[:, 0].unflatten(0, (groups, len(prepared.tokens)))


class _Pass:
    """What has been written so far, and what is read from it. Only senders that are heard have a slot."""

    def __init__(self, prepared: Prepared, masks: Tensor, first: int) -> None:
        self.prepared, self.ablated, self.streams = prepared, prepared.ablated, prepared.streams
        self.graph, self.layout = prepared.graph, prepared.lens.layout
        self.first, self.groups = first, len(masks)
        self.shape = tuple(prepared.ablated.embed.shape)
        known = prepared.differences(first)
        self.heard = torch.ones(len(self.graph.senders), dtype=torch.bool)
        if not masks.requires_grad:
            edges = (masks != 0).any(dim=0).cpu() & self.graph.real
            self.heard[known.shape[1] :] = heard(self.graph, edges, first)[known.shape[1] :]
        self.slots = [0, *self.heard.long().cumsum(0).tolist()]  # sender -> how many slots are before its own
        self.weights = masks if bool(self.heard.all()) else masks[:, self.heard.to(masks.device)]
        own = self.slots[-1] - known.shape[1]
        self.written = Written(known, masks.new_empty((self.groups, own, known.shape[2])))
        self.order = torch.zeros((), device=masks.device, requires_grad=masks.requires_grad)

    def interceptions(self, token_ids: Tensor | None) -> dict[str, Any]:
        inputs: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        outputs: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        if not self.first and self.heard[0]:
            inputs.append((self.layout.blocks[0].block, self._write_embed))
        for layer, block in enumerate(self.layout.blocks):
            heads = self.graph.heads(layer)
            if layer < self.first or not self.heard[heads.start : heads.stop + 1].any():
                forwards.append((block.block, _pass_on))
                continue
            made: dict[nn.Module, Tensor] = {}
            maps = {reader.module for kind in KINDS for reader in self.prepared.readers[layer][kind]}
            inputs.append((block.attn, partial(self._read_attention, layer, made)))
            forwards += [(module, partial(_made, made, module)) for module in maps]
            forwards.append((block.attn_proj, partial(self._write_heads, layer)))
            if self.heard[heads.stop]:
                inputs.append((block.mlp, partial(self._read_mlp, layer)))
                outputs.append((block.mlp, partial(self._write_mlp, layer)))
            else:
                inputs.append((block.mlp, _one_token))
        inputs += [(self.layout.final_norm, self._read_logits), (self.layout.unembed, self._ends)]
        if token_ids is not None:
            forwards.append((self.layout.unembed, partial(unembed_into, self.layout.unembed, token_ids)))
        return {"inputs": inputs, "outputs": outputs, "forwards": forwards}

    def _mix(self, receivers: Sequence[int], stream: Tensor) -> Tensor:
        """Inputs of some receivers that as many senders reach: ``[group, receiver, n, pos, d_model]``."""
        weights = self.weights[:, : self.slots[self.graph.before[receivers[0]]]]
        columns = torch.tensor(receivers, device=weights.device)
        return mix(self.order, weights.index_select(2, columns), self.written).unflatten(-1, self.shape) + stream

    def _write(self, sender: int, values: Tensor) -> None:
        """``values`` ``[group or 1, sender, n, pos, d_model]``: of the senders from ``sender`` on that are heard."""
        values = values.flatten(2).expand(self.groups, -1, -1)
        self.order = write(self.order, values, self.written, self.slots[sender])

    def _write_embed(self, hidden: Tensor) -> Tensor:
        """The embeddings depend on nothing that is weighted: those of the first group are those of all."""
        self._write(0, (hidden[: self.shape[0]] - self.ablated.embed)[None, None])
        return hidden

    def _read_attention(self, layer: int, made: dict[nn.Module, Tensor], unused: Tensor) -> Tensor:
        """Makes every head's queries, keys and values from inputs of their own, before attention asks for them.

        Those that only serve heads nobody hears are 0.
        """
        heads, into, block = self.graph.heads(layer), self.graph.into(layer), self.layout.blocks[layer]
        serves = self.graph.of_node[heads, into] & self.heard[heads, None]
        live: list[int] = serves.any(dim=0).nonzero().flatten().tolist()
        normed = dict[int, Tensor]()
        if live:
            assert block.ln1 is not None
            values = block.ln1(self._mix([into.start + i for i in live], self.streams[layer][0]))
            normed = {i: values[:, at].flatten(0, 1) for at, i in enumerate(live)}
        pieces: dict[nn.Module, list[tuple[int, Tensor]]] = {}
        for i, reader in enumerate(reader for kind in KINDS for reader in self.prepared.readers[layer][kind]):
            piece = _read(reader, normed[i]) if i in live else self._silence(reader.part.stop - reader.part.start)
            pieces.setdefault(reader.module, []).append((reader.part.start, piece))
        for module, found in pieces.items():
            made[module] = torch.cat([piece for _, piece in sorted(found, key=lambda one: one[0])], dim=-1)
            assert made[module].shape[-1] == output_weight(module).shape[1], (
                "heads' columns do not make up the whole map"
            )
        return unused

    def _silence(self, width: int) -> Tensor:
        return self.ablated.embed.new_zeros(()).expand(self.groups * self.shape[0], self.shape[1], width)

    def _write_heads(self, layer: int, z: Tensor) -> Tensor:
        rows = self.graph.heads(layer)
        heads = self.heard[rows].nonzero().flatten().to(z.device)
        if len(heads):
            own = z.unflatten(-1, (self.layout.n_heads, -1)).unflatten(0, (self.groups, -1))
            beyond = (own - self.ablated.z[layer]).index_select(3, heads)
            weight = self.prepared.out_weight(layer).index_select(0, heads)
            self._write(rows.start, torch.einsum("gnphd,hdm->ghnpm", beyond, weight))
        return z.new_zeros(()).expand(*z.shape[:2], self.layout.d_model)

    def _read_mlp(self, layer: int, _unused: Tensor) -> Tensor:
        block = self.layout.blocks[layer]
        assert block.ln2 is not None
        return block.ln2(self._mix([self.graph.into(layer).stop], self.streams[layer][1]))[:, 0].flatten(0, 1)

    def _write_mlp(self, layer: int, output: Tensor) -> Tensor:
        own = (output * self.layout.blocks[layer].scale).unflatten(0, (self.groups, -1))
        self._write(self.graph.heads(layer).stop, (own - self.ablated.mlp[layer])[:, None])
        return output.new_zeros(()).expand_as(output)

    def _read_logits(self, _unused: Tensor) -> Tensor:
        return self._mix([len(self.graph.receivers) - 1], self.streams[-1][0])[:, 0].flatten(0, 1)

    def _ends(self, hidden: Tensor) -> Tensor:
        """``[group * n, 1, d_model]``: only each prompt's last token is unembedded."""
        ends = (torch.tensor(self.prepared.tokens.lengths) - 1).repeat(self.groups).to(hidden.device)
        return hidden[torch.arange(len(ends), device=hidden.device), ends][:, None]


def heard(graph: Graph, edges: Tensor, first: int) -> Tensor:
    """``[senders]`` bool: from which a path of ``edges`` ``[senders, receivers]`` bool leads to the logits, down to layer ``first``.

    Below it no path is followed: of those senders it tells which some receiver from that layer up reads.
    """
    found = edges[:, -1].clone()
    for layer in reversed(range(first, graph.n_layers)):
        heads, into = graph.heads(layer), graph.into(layer)
        if found[heads.stop]:
            found |= edges[:, into.stop]
        serves = (graph.of_node[heads, into] & found[heads, None]).any(dim=0)
        found |= (edges[:, into] & serves).any(dim=1)
    return found


def _read(reader: Reader, normed: Tensor) -> Tensor:
    piece = normed @ reader.weight
    return piece if reader.bias is None else piece + reader.bias


def _pass_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _one_token(hidden: Tensor) -> Tensor:
    """Least work for an MLP that nobody hears: what it gives is added to a hidden state that is not looked at, token by token alike."""
    return hidden[:1, :1]


def _made(made: dict[nn.Module, Tensor], module: nn.Module, *_args: Any, **_kwargs: Any) -> Tensor:
    return made[module]
