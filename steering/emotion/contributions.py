"""What single neurons and heads add along an emotion's direction, and edits that switch them off or up.

Neuron n of layer l: its activation times what its output row adds along the direction, ``a_n (W_down v)_n``. Head h: what the projection on
the direction loses when the head is zeroed; the stream is a sum, so that is ``z_h W_O^h v`` exactly, and no run per head is needed.
Wang et al., arXiv 2510.11328, stage 4 (they read heads after the next norm, where the sum is no longer exact).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechlab.errors import ModelError
from mechlab.lens.edit import Edit, scale
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from steering.emotion.directions import AFTER_ATTENTION, AFTER_MLP, HEADS, NEURONS, ByEmotion
from steering.examples import Examples

Parts = dict[Site, tuple[int, ...]]
"""Site of neurons or heads -> which of them."""


def check_sums(lens: Lens) -> None:
    """Raises ModelError where attention or MLP pass a norm before they are added: then units do not add along a direction one by one."""
    for block in lens.layout.blocks:
        if block.down is None or block.attn_out is not block.attn or block.mlp_out is not block.mlp:
            raise ModelError(
                f"{lens.model.name} has no plain MLP neurons, or norms what a sublayer adds: units add nothing one by one there. "
                "Use a model of the Llama, Qwen or GPT-2 kind."
            )


def of_neurons(lens: Lens, layer: int, activations: Tensor, direction: Tensor) -> Tensor:
    """``[n, d_mlp]`` contributions from activations ``[n, d_mlp]`` and a direction ``[d_model]``."""
    return activations * (lens.layout.blocks[layer].written_by_neurons.float().cpu() @ direction)


def of_heads(lens: Lens, layer: int, z: Tensor, direction: Tensor) -> Tensor:
    """``[n, head]`` contributions from head outputs ``[n, head, d_head]`` and a direction ``[d_model]``."""
    written = lens.layout.blocks[layer].written_by_heads.float().cpu() @ direction  # [head * d_head]
    return (z * written.unflatten(0, (lens.layout.n_heads, -1))).sum(-1)


def contributions(
    lens: Lens,
    activations: Mapping[Site, Tensor],
    examples: Examples,
    directions: Mapping[Site, ByEmotion],
    emotion: str,
) -> dict[Site, Tensor]:
    """Site of neurons or heads -> ``[unit]``: mean contribution over the prompts of the emotion."""
    rows = torch.tensor([one == emotion for one in examples.classes])
    found: dict[Site, Tensor] = {}
    for at, x in activations.items():
        layer = at.layer or 0
        if at.kind == NEURONS:
            direction = directions[Site(AFTER_MLP, layer)][emotion]
            found[at] = of_neurons(lens, layer, x[rows], direction).mean(0)
        elif at.kind == HEADS:
            direction = directions[Site(AFTER_ATTENTION, layer)][emotion]
            found[at] = of_heads(lens, layer, x[rows], direction).mean(0)
    return found


def strongest(found: Mapping[Site, Tensor], counts: Mapping[Site, int]) -> Parts:
    """At each site the ``counts`` units that add most, most first; sites with a count of 0 are left out."""
    return {at: tuple(found[at].topk(k).indices.tolist()) for at, k in counts.items() if k}


def of_kind(parts: Parts, kind: str) -> Parts:
    """Its neurons, or its heads."""
    return {at: units for at, units in parts.items() if at.kind == kind}


def random_parts(lens: Lens, parts: Parts, seed: int) -> Parts:
    """As many units at each site, drawn from all that the layer has (so some may be the same)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        at: tuple(torch.randperm(lens.layout.size(at.kind) or 0, generator=generator)[: len(units)].tolist())
        for at, units in parts.items()
    }


def scaled(lens: Lens, parts: Parts, factor: float) -> list[Edit]:
    """The units times ``factor`` at each prompt's last token: 0 ablates, 2 enhances."""
    edits: list[Edit] = []
    for at, units in parts.items():
        if at.kind == HEADS:
            edits += [scale(Site(HEADS, at.layer, unit, -1), factor) for unit in units]
        else:
            factors = torch.ones(lens.layout.size(at.kind) or 0)
            factors[list(units)] = factor
            edits.append(scale(at.at(-1), factors))
    return edits


def overlap(first: Parts, second: Parts) -> float:
    """Jaccard index of two sets of units; NaN where both are empty."""
    a, b = (_flat(one) for one in (first, second))
    return len(a & b) / len(a | b) if a | b else float("nan")


def mean_overlap(sets: Sequence[Parts]) -> float:
    """Mean over pairs."""
    pairs = [overlap(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def _flat(parts: Parts) -> set[tuple[Site, int]]:
    return {(at, unit) for at, units in parts.items() for unit in units}
