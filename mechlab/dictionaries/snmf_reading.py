"""What a group of neurons means: its neurons, its direction in the residual stream, the tokens it comes from and the tokens it speaks for.

A feature F_k of an MLP's neurons adds W_out F_k to the residual stream, through the layer's own output norm where the family has one. Its
input side is the tokens with the largest loadings; its output side the tokens that unembed(norm(W_out F_k)) raises, for both signs.
Shafran, Geiger and Geva, arXiv 2506.10920.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site


@dataclass(frozen=True)
class Neuron:
    """A neuron of a group and its weight in it."""

    index: int
    weight: float


def neurons(feature: Tensor, count: int | None = None) -> list[Neuron]:
    """The neurons of ``feature [d_mlp]`` by falling size of their weight; None: all whose weight is not zero."""
    order = feature.abs().argsort(descending=True)[: count or int((feature != 0).sum())]
    return [Neuron(int(i), float(feature[i])) for i in order if feature[i] != 0]


@torch.no_grad()
def residual_directions(lens: Lens, at: Site, features: Tensor) -> Tensor:
    """``[k, d_model]``: what ``features [k, d_mlp]`` of ``L{layer}.mlp_post`` write, W_out F_k.

    Where the layer normalises its MLP's output (Gemma 2), the direction is taken through that norm, as the authors do.

    Raises:
        MechlabError: another site than the MLP's neurons, or features of another width.
    """
    block = lens.layout.blocks[at.layer or 0]
    if at.kind != "mlp_post" or block.down is None:
        raise MechlabError(
            f"Features of {at} have no output weights: SNMF reads an MLP's neurons, such as L3.mlp_post."
        )
    weight = block.written_by_neurons.float()
    if features.shape[1] != len(weight):
        raise MechlabError(f"Features of size {features.shape[1]} do not fit the {len(weight)} neurons of {at}.")
    written = features.to(weight) @ weight
    if block.mlp_out is not block.mlp:
        written = block.mlp_out(written.to(lens.model.dtype)).float()
    return written


@torch.no_grad()
def vocabulary_logits(lens: Lens, directions: Tensor) -> Tensor:
    """``[k, vocab]`` logits that unit ``directions [k, d_model]`` stand for: final norm, then unembedding, less the unembedding's bias."""
    unit = torch.nn.functional.normalize(directions.float(), dim=1).to(lens.model.device, lens.model.dtype)
    normed = lens.layout.final_norm(unit)
    return (normed @ output_weight(lens.layout.unembed).to(normed)).float()


def top_tokens(lens: Lens, directions: Tensor, count: int = 20) -> list[tuple[list[str], list[str]]]:
    """For each direction the tokens it raises most and the tokens its opposite raises most."""
    logits = vocabulary_logits(lens, directions)
    both = [(side * logits).topk(count, dim=1).indices.tolist() for side in (1, -1)]
    return [(_texts(lens, up), _texts(lens, down)) for up, down in zip(*both, strict=True)]


def top_places(loadings: Tensor, count: int = 10) -> list[list[int]]:
    """For each feature of ``loadings [n, k]`` the tokens (rows) with the largest loadings; loadings of zero are left out."""
    found = loadings.topk(min(count, len(loadings)), dim=0)
    kept = zip(found.indices.T.tolist(), found.values.T.tolist(), strict=True)
    return [[row for row, value in zip(rows, values, strict=True) if value > 0] for rows, values in kept]


def _texts(lens: Lens, ids: Sequence[int]) -> list[str]:
    return [str(lens.model.tokenizer.decode([i])) for i in ids]
