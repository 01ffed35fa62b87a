"""Edge patching: what one node does to the answer through one input of one other node.

An edge goes from a sender (the embeddings, a head, an MLP) into one input of a receiver (a head's query, key or value, an MLP, the logits).
Patching it adds the sender's difference between the two sides to that input alone; every other reader of the residual stream keeps what
the base run has, and what follows from the receiver's changed output is computed as always. Conmy et al., arXiv 2304.14997 (edges of ACDC);
names as in EAP-IG: ``input``, ``a{layer}.h{head}``, ``m{layer}``, ``logits``, ``src->dst<q>``. Keys and values go by KV head.

Every family has edges. Where attention passes a norm before it is added (Gemma-2, OLMo-2), heads do not add to the stream one by one: there
the receiver reads the stream with ``norm(sum of heads)`` replaced by that norm of the sum with the sender's result from the other side.
Several heads of one layer do not add up then; ``mechlab.patching.edge_sets`` patches edges together. An MLP's norm is part of the MLP.

1. What each sender writes is taken from both sides; how that changes the residual stream of the base run is what its edges carry.
2. For each receiving layer, one sweep of that layer alone gives every receiver's input under every sender.
3. A second sweep puts one of them at a time into the base run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from torch import Tensor

from mechlab.errors import UnknownName
from mechlab.lens.apply import Source
from mechlab.lens.edit import patch
from mechlab.lens.readers import check_writes
from mechlab.lens.site import Site
from mechlab.patching.effects import check_edits
from mechlab.patching.prepared import Prepared, prepare
from mechlab.patching.rows import rows
from mechlab.patching.task import Task
from mechlab.results.metrics import Metric
from mechlab.results.metrics import metric as find_metric

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

__all__ = ["Receiver", "Sender"]


_SENDERS_AT_ONCE = 64  # what reaches a layer's receivers is kept for so many senders at a time


@dataclass(frozen=True)
class Sender:
    """A node that writes to the residual stream. ``depth`` orders nodes: a sender reaches receivers of greater depth."""

    name: str
    kind: Literal["input", "head", "mlp"]
    layer: int
    head: int | None
    depth: int

    @property
    def site(self) -> Site:
        """What it writes: for a head, the z of its whole layer (see ``attention_change``)."""
        if self.kind == "input":
            return Site("resid_pre", 0)
        return Site("mlp_out" if self.head is None else "z", self.layer)


@dataclass(frozen=True)
class Receiver:
    """An input of a node: ``site`` takes the value it would have under a sender; ``node`` and ``input`` name it."""

    node: str
    input: str
    site: Site
    depth: int

    def edge(self, sender: Sender) -> str:
        """Name of the edge from that sender to here."""
        return f"{sender.name}->{self.node}" + (f"<{self.input}>" if self.input else "")


def edge_effects(
    lens: "Lens",
    task: Task,
    metric: str = "logit_difference",
    *,
    base: Literal["clean", "corrupted"] = "clean",
    edges: Callable[[str], bool] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """The exact effect of patching each edge of the model from the other side.

    Args:
        edges: which edges to compute, by name; None for all.
        progress: called with (label, done, total) in receiving layers.

    Returns:
        One row per edge x prompt: ``edge``, ``sender``, ``receiver``, ``input``, ``prompt``, ``before``, ``after``, ``clean``,
        ``corrupted``.

    Raises:
        UnknownName: no edge has a name that ``edges`` accepts.
        SiteError: a model whose blocks do not add what attention and MLP write, as it is.
    """
    measure = find_metric(metric)
    check_writes(lens)
    check_edits(lens, task, [(patch(Site("z", 0), source=base),)], base)
    senders, receivers = nodes(lens)
    layers = [*range(lens.model.n_layers), lens.model.n_layers]  # the last stands for the logits
    wanted = {
        layer: [
            (s, r)
            for r in receivers
            if _layer_of(r, lens) == layer
            for s in senders
            if s.depth < r.depth and (edges is None or edges(r.edge(s)))
        ]
        for layer in layers
    }
    if not any(wanted.values()):
        raise UnknownName(
            "edge", "by this filter", [r.edge(s) for r in receivers[:2] for s in senders[:2] if s.depth < r.depth]
        )
    carried = _carried(lens, task, senders, base)
    found: list[pd.DataFrame] = []
    for done, layer in enumerate(layers):
        found += _into_layer(lens, task, measure, base, wanted[layer], carried)
        if progress:
            progress("edges", done + 1, len(layers))
    return pd.concat(found, ignore_index=True)


def nodes(lens: "Lens") -> tuple[list[Sender], list[Receiver]]:
    """Every sender and every receiver, in the order of the forward pass."""
    model = lens.model
    senders, receivers = [Sender("input", "input", -1, None, -1)], list[Receiver]()
    for layer in range(model.n_layers):
        parallel = lens.layout.blocks[layer].mid is None
        at_attention, at_mlp = 2 * layer, 2 * layer + (0 if parallel else 1)
        for head in range(model.n_heads):
            senders.append(Sender(f"a{layer}.h{head}", "head", layer, head, at_attention))
            receivers.append(Receiver(f"a{layer}.h{head}", "q", Site("q", layer, head), at_attention))
        for kind in ("k", "v"):
            for head in range(model.n_kv_heads):
                receivers.append(Receiver(f"a{layer}.h{head}", kind, Site(kind, layer, head), at_attention))
        senders.append(Sender(f"m{layer}", "mlp", layer, None, at_mlp))
        receivers.append(Receiver(f"m{layer}", "", Site("mlp_out", layer), at_mlp))
    receivers.append(Receiver("logits", "", Site("final_norm", pos=-1), 2 * model.n_layers))
    return senders, receivers


def entrance_of(lens: "Lens", receiver: Receiver) -> Site:
    """The residual stream that a receiver reads."""
    layer = receiver.site.layer
    if layer is None:
        return Site("resid_post", lens.model.n_layers - 1)
    after_attention = receiver.site.kind == "mlp_out" and lens.layout.blocks[layer].mid is not None
    return Site("resid_mid" if after_attention else "resid_pre", layer)


def _layer_of(receiver: Receiver, lens: "Lens") -> int:
    return lens.model.n_layers if receiver.site.layer is None else receiver.site.layer


def sender_sites(lens: "Lens") -> list[Site]:
    """What a run must read for ``attention_change`` and for the other senders."""
    layers = range(lens.model.n_layers)
    return [Site("resid_pre", 0), *(Site(kind, layer) for layer in layers for kind in ("z", "mlp_out"))]


@torch.no_grad()
def attention_change(lens: "Lens", layer: int, here: Tensor, there: Tensor, heads: Sequence[int]) -> Tensor:
    """``[n, pos, d_model]``: how what attention adds to the stream changes when these heads alone take their z from ``there``.

    Through the norm after attention where there is one. ``here`` and ``there``: ``[n, pos, head, d_head]``.
    """
    block, chosen = lens.layout.blocks[layer], list(heads)
    if block.attn_out is block.attn:
        weight = block.written_by_heads.unflatten(0, here.shape[2:])[chosen]
        return torch.einsum("nphd,hdm->npm", (there - here)[:, :, chosen], weight)
    mixed = here.clone()
    mixed[:, :, chosen] = there[:, :, chosen]
    added = [block.attn_out(block.attn_proj(z.flatten(2))) for z in (mixed, here)]
    return added[0] - added[1]


def _carried(lens: "Lens", task: Task, senders: Sequence[Sender], base: str) -> dict[str, Tensor]:
    """Sender -> ``[n, pos, d_model]``: the base run's stream with the sender from the other side, minus that stream."""
    runs = [lens.run(side, read=sender_sites(lens), logits="none") for side in (task.clean, task.corrupted)]
    here, there = runs if base == "clean" else reversed(runs)

    def difference(sender: Sender) -> Tensor:
        mine, theirs = here[sender.site], there[sender.site]
        return (
            theirs - mine if sender.head is None else attention_change(lens, sender.layer, mine, theirs, [sender.head])
        )

    return {sender.name: difference(sender) for sender in senders}


def _into_layer(
    lens: "Lens",
    task: Task,
    measure: Metric,
    base: str,
    wanted: Sequence[tuple[Sender, Receiver]],
    carried: dict[str, Tensor],
) -> Iterator[pd.DataFrame]:
    """The effects of the edges into one layer's receivers, a few senders at a time."""
    for kinds in (("q", "k", "v"), ("mlp_out",), ("final_norm",)):
        into = [(sender, receiver) for sender, receiver in wanted if receiver.site.kind in kinds]
        if not into:
            continue
        entrance = entrance_of(lens, into[0][1])
        senders = list(dict.fromkeys(sender for sender, _ in into))
        reads = list(dict.fromkeys(receiver.site.whole for _, receiver in into if receiver.site.layer is not None))
        ready = prepare(lens, task, [], measure, base, [entrance.layer or 0], [entrance, *reads])
        for start in range(0, len(senders), _SENDERS_AT_ONCE):
            some = senders[start : start + _SENDERS_AT_ONCE]
            pairs = [(sender, receiver) for sender, receiver in into if sender in some]
            after = _effects(ready, task, base, entrance, some, pairs, reads, carried)
            yield _frame(pairs, after, ready.values, base)


def _effects(
    ready: Prepared,
    task: Task,
    base: str,
    entrance: Site,
    senders: Sequence[Sender],
    pairs: Sequence[tuple[Sender, Receiver]],
    reads: Sequence[Site],
    carried: dict[str, Tensor],
) -> Tensor:
    """``[pairs, n]`` metric with each edge patched."""
    n_layers = ready.lens.model.n_layers
    entering = [(patch(entrance, source=f"into {sender.name}"),) for sender in senders]
    here = ready.sources[base].activations[entrance.kind, entrance.layer]
    under = {
        f"into {sender.name}": Source(ready.base.tokens, {(entrance.kind, entrance.layer): here + carried[sender.name]})
        for sender in senders
    }
    found = rows(entering, task, base, n_layers)
    if not reads:  # the logits themselves: what enters is what is unembedded
        after = ready.values[base].repeat(len(senders), 1)
        for swept in ready.sweeps(entering, found, (), under):
            ready.measure_into(after, swept)
        return after
    recorded = ready.recorded(entering, found, reads, base, under, entrance.layer)
    place = {sender.name: i for i, sender in enumerate(senders)}
    groups = [(patch(receiver.site, source=f"under {sender.name}"),) for sender, receiver in pairs]
    more = {f"under {sender.name}": recorded[i] for i, sender in enumerate(senders) if i in recorded}
    chosen = [row for row in rows(groups, task, base, n_layers) if place[pairs[row.group][0].name] in recorded]
    after = ready.values[base].repeat(len(groups), 1)
    for swept in ready.sweeps(groups, chosen, (), more):
        ready.measure_into(after, swept)
    return after


def _frame(
    pairs: Sequence[tuple[Sender, Receiver]], after: Tensor, values: dict[str, Tensor], base: str
) -> pd.DataFrame:
    n = after.shape[1]
    named = [(r.edge(s), s.name, r.node, r.input) for s, r in pairs for _ in range(n)]
    frame = pd.DataFrame(named, columns=["edge", "sender", "receiver", "input"])
    frame["prompt"] = list(range(n)) * len(pairs)
    for name in ("clean", "corrupted"):
        frame[name] = values[name].tolist() * len(pairs)
    frame["before"] = frame[base]
    frame["after"] = after.flatten().tolist()
    return frame
