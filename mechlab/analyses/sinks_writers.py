"""Which part of a model writes a token's sink direction, and which takes it away again: layer by layer, then neuron by neuron.

The residual stream is a sum, so its component along a direction is the sum of the components of everything written to it: a positive
term makes the sink, a negative one removes it. Inside an MLP the same holds for its neurons: activation times output vector, along the
direction. In families with a norm after the MLP that norm is held at its scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechlab.analyses.sinks import Floats
from mechlab.analyses.sinks_levels import Episode
from mechlab.lens.layout import Block
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens

MOST_UNITS = 10


@dataclass(frozen=True, eq=False)
class Writes:
    """Components along one direction at one token of each prompt, in units of the residual stream.

    Attributes:
        attention, mlp: ``[n, layer]`` of what each layer's attention and MLP add.
        stream: ``[n, layer]`` of the residual stream after each layer.
    """

    attention: Floats
    mlp: Floats
    stream: Floats


@dataclass(frozen=True)
class Parts:
    """Layers whose MLPs make the sink of an episode (``writers``) and remove it (``removers``), strongest first."""

    writers: tuple[int, ...]
    removers: tuple[int, ...]


def writes(lens: Lens, tokens: Tokens, pos: int | str, directions: Sequence[Tensor]) -> list[Writes]:
    """Components along each unit vector ``[d_model]`` at one token of each prompt."""
    layers = range(lens.model.n_layers)
    kinds = ("attn_out", "mlp_out", "resid_post")
    run = lens.run(
        tokens, read=[Site(kind, layer, pos=pos) for kind in kinds for layer in layers], logits="none", batch_size=8
    )
    stacks = {
        kind: torch.stack([run[Site(kind, layer, pos=pos)].float().cpu() for layer in layers], dim=1) for kind in kinds
    }
    return [
        Writes(*((stacks[kind] @ direction.cpu().float()).double().numpy() for kind in kinds))
        for direction in directions
    ]


def parts(found: Writes, episodes: Sequence[Episode], index: int, share: float) -> Parts:
    """The layers whose MLPs add, or take, at least ``share`` of the component at the episode's peak, mean over prompts.

    Writers are looked for from the end of the episode before up to the peak, removers from the peak up to the next episode.
    """
    episode, mlp = episodes[index], found.mlp.mean(axis=0)
    peak = float(found.stream[:, episode.peak].mean())
    first = episodes[index - 1].stop + 1 if index else 0
    last = episodes[index + 1].start if index + 1 < len(episodes) else len(mlp)
    writers = [layer for layer in range(first, episode.peak + 1) if mlp[layer] >= share * peak]
    removers = [layer for layer in range(episode.peak + 1, last) if mlp[layer] <= -share * peak]
    return Parts(tuple(sorted(writers, key=lambda at: -mlp[at])), tuple(sorted(removers, key=lambda at: mlp[at])))


def unit_writes(lens: Lens, tokens: Tokens, pos: int | str, directions: Mapping[int, Tensor]) -> dict[int, Floats]:
    """Layer -> ``[n, neuron]``: what each neuron of its MLP adds along that layer's direction, at one token of each prompt.

    Raises:
        SiteError: a model without single MLP neurons (experts).
    """
    kinds = ("mlp_post", "mlp_out")
    read = [Site(kind, layer, pos=pos) for layer in directions for kind in kinds]
    run = lens.run(tokens, read=read, logits="none", batch_size=8)
    found: dict[int, Floats] = {}
    for layer, direction in directions.items():
        block = lens.layout.blocks[layer]
        activation = run[Site("mlp_post", layer, pos=pos)].float()
        weight = block.written_by_neurons.float()
        along = _before_norm(block, activation, weight, direction.to(weight))
        found[layer] = (activation * (along @ weight.T)).double().cpu().numpy()
    return found


def _before_norm(block: Block, activation: Tensor, weight: Tensor, direction: Tensor) -> Tensor:
    """``[n, d_model]`` (or ``[1, d_model]``): the vector whose product with the MLP's own output is the component after any post-norm."""
    if block.mlp_out is block.mlp:
        return direction[None]
    bias = getattr(block.down, "bias", None)
    before = activation @ weight + (0 if bias is None else bias.float())
    gain = block.mlp_out(torch.ones_like(before[:1])).float()
    return direction * gain / before.pow(2).mean(dim=-1, keepdim=True).sqrt()


def top_units(contributions: Floats, share: float, most: int = MOST_UNITS) -> list[int]:
    """The fewest neurons whose contributions ``[neuron]`` reach ``share`` of their sum, at most ``most``; strongest first.

    The sign is that of the sum: neurons that work against it are never chosen.
    """
    total = float(contributions.sum())
    toward = contributions * np.sign(total)
    order = np.argsort(-toward, kind="stable")
    enough = int(np.searchsorted(np.cumsum(toward[order]), share * abs(total)) + 1)
    chosen = order[: min(enough, most)]
    return [int(unit) for unit in chosen if toward[unit] > 0]


def random_units(
    chosen: Mapping[int, Sequence[int]], n_units: int, draws: int, seed: int
) -> list[dict[int, list[int]]]:
    """Random neurons of the same layers, as many in each, none of the chosen."""
    generator = np.random.default_rng(seed)
    pools = {layer: np.setdiff1d(np.arange(n_units), list(units)) for layer, units in chosen.items()}
    return [
        {layer: generator.choice(pools[layer], len(units), replace=False).tolist() for layer, units in chosen.items()}
        for _ in range(draws)
    ]
