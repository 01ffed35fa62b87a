"""Directions of emotions: what an emotion adds to the last token, once all that its scenario shares is taken off.

One direction per emotion, layer and sublayer: after attention (``resid_mid``) and after the MLP (``resid_post``). Wang et al.,
arXiv 2510.11328; the same estimate as the method ``group-centred``.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from steering.emotion.prompts import EMOTIONS
from steering.examples import Examples
from steering.methods.group_centred import centroids

AFTER_ATTENTION, AFTER_MLP = "resid_mid", "resid_post"
NEURONS, HEADS = "mlp_post", "z"
ByEmotion = dict[str, Tensor]


def sites(layers: Iterable[int]) -> list[Site]:
    """Where directions and differences of these layers live: streams, neurons, heads."""
    return [Site(kind, layer) for layer in layers for kind in (HEADS, AFTER_ATTENTION, NEURONS, AFTER_MLP)]


def check(lens: Lens) -> None:
    """Raises SiteError for a model without one of the sites (parallel blocks have no stream between attention and MLP)."""
    for at in sites(range(lens.model.n_layers)):
        lens.layout.check(at)


def differences(activations: Mapping[Site, Tensor], examples: Examples) -> dict[Site, ByEmotion]:
    """Site -> emotion -> ``[d]`` (heads ``[head, d_head]``): the emotion's mean over groups, each group's own mean taken off."""
    return {at: centroids(x, examples) for at, x in activations.items()}


def directions(found: Mapping[Site, ByEmotion]) -> dict[Site, ByEmotion]:
    """The differences of the streams at length 1."""
    streams = {at: by for at, by in found.items() if at.kind in (AFTER_ATTENTION, AFTER_MLP)}
    return {at: {e: row / row.norm().clamp_min(1e-30) for e, row in by.items()} for at, by in streams.items()}


def centred(x: Tensor) -> Tensor:
    """``[groups * 6, d]`` in the order of ``prompts.examples`` -> ``[group, emotion, d]``, each group's mean taken off."""
    grouped = x.unflatten(0, (-1, len(EMOTIONS)))
    return grouped - grouped.mean(1, keepdim=True)


def spread(x: Tensor) -> Tensor:
    """``[emotion]``: mean length of what the emotion adds in a group: the unit of all projections in the study."""
    return centred(x).norm(dim=-1).mean(0).clamp_min(1e-30)


def specificity(x: Tensor, by: ByEmotion) -> Tensor:
    """``[group]``: cosine of what an emotion adds with its own direction, minus the mean cosine with the five others'.

    Args:
        x: ``[groups * 6, d]`` activations in the order of ``prompts.examples``. by: emotion -> unit ``[d]``.
    """
    added = torch.nn.functional.normalize(centred(x), dim=-1)
    cosine = added @ torch.stack([by[e] for e in EMOTIONS]).T.to(added)  # [group, emotion, direction]
    own = cosine.diagonal(dim1=1, dim2=2)
    others = (cosine.sum(-1) - own) / (len(EMOTIONS) - 1)
    return (own - others).mean(1)


def recognised(x: Tensor, by: ByEmotion) -> Tensor:
    """``[emotion, emotion]``: of what an emotion (row) adds, the share whose largest projection is on each direction (column)."""
    best = (centred(x) @ torch.stack([by[e] for e in EMOTIONS]).T.to(x)).argmax(-1)
    return torch.nn.functional.one_hot(best, len(EMOTIONS)).double().mean(0)
