"""Attention sinks: how much attention each token draws, and how often the first one draws most of it.

Gu et al., "When Attention Sink Emerges in Language Models", ICLR 2025, arXiv 2410.10781:

    alpha_k = 1 / (T - k + 1) * sum over queries i >= k of A[i, k]      mean attention that key k receives
    Sink_k  = mean over layers and heads of 1[alpha_k > epsilon]        epsilon 0.3, T 64

Patterns are reduced batch by batch; no more than a batch of them is held.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress, silent

__all__ = ["Observed", "observe", "received", "sink_rate"]

Floats = NDArray[np.float64]
BATCH = 4


@dataclass(frozen=True, eq=False)
class Observed:
    """What one pass over prompts of one length showed of every token.

    Attributes:
        received: ``[n, layer, head, pos]`` alpha: attention received, from 0 to 1.
        norms: ``[n, layer, pos]`` of the residual stream after each layer.
        cosines: ``[n, layer, pos]`` with the directions given, NaN at layers without one.
        value_norms: ``[n, layer, pos]`` of the value vectors, mean over KV heads.
        mlp_norms, mlp_cosines: layer -> ``[n, pos]``: norm of the MLP's output, and its cosine with the direction given for that layer.
    """

    tokens: Tokens
    received: Floats
    norms: Floats
    cosines: Floats
    value_norms: Floats
    mlp_norms: Mapping[int, Floats]
    mlp_cosines: Mapping[int, Floats]

    def __len__(self) -> int:
        return len(self.tokens)


def received(pattern: Tensor) -> Tensor:
    """``[..., query, key]`` -> ``[..., key]``: the mean attention each key gets from the queries at or after it.

    A sliding window hides early keys from late queries; those count as attention 0, as the formula says.
    """
    n = pattern.shape[-1]
    return pattern.sum(dim=-2) / torch.arange(n, 0, -1, device=pattern.device)


def sink_rate(alpha: Floats, k: int, epsilon: float) -> Floats:
    """``[n]``: share of heads of all layers in which key ``k`` of ``alpha [n, layer, head, pos]`` is a sink."""
    return (alpha[..., k] > epsilon).mean(axis=(1, 2))


def other_rate(alpha: Floats, epsilon: float) -> Floats:
    """``[n]``: the same, for the most successful later position over all prompts.

    The last quarter is left out: few queries see it, and at the end a token's attention to itself is all there is.
    """
    rates = (alpha[..., 1 : 3 * alpha.shape[-1] // 4] > epsilon).mean(axis=(1, 2))
    return rates[:, int(rates.mean(axis=0).argmax())]


def attention_received(lens: Lens, tokens: Tokens, progress: Progress = silent) -> Floats:
    """``[n, layer, head, pos]`` alpha of every key, batch by batch."""
    sites = [Site("pattern", layer) for layer in range(lens.model.n_layers)]
    parts: list[Floats] = []
    for rows in batches(len(tokens)):
        run = lens.run(tokens.select(rows), read=sites, logits="none", batch_size=len(rows))
        parts.append(_numbers(torch.stack([received(run[at].float()) for at in sites], dim=1)))
        progress("attention", rows[-1] + 1, len(tokens))
    return np.concatenate(parts)


def observe(
    lens: Lens,
    tokens: Tokens,
    directions: Mapping[int, Tensor],
    mlp_directions: Mapping[int, Tensor],
    progress: Progress = silent,
) -> Observed:
    """One pass over prompts of one length.

    Args:
        directions: layer -> unit vector ``[d_model]`` that its residual stream is compared with.
        mlp_directions: layer -> the same for its MLP's output.
    """
    parts: list[Observed] = []
    for rows in batches(len(tokens)):
        parts.append(_observe(lens, tokens.select(rows), directions, mlp_directions))
        progress("observing", rows[-1] + 1, len(tokens))
    return Observed(
        tokens=tokens,
        received=np.concatenate([part.received for part in parts]),
        norms=np.concatenate([part.norms for part in parts]),
        cosines=np.concatenate([part.cosines for part in parts]),
        value_norms=np.concatenate([part.value_norms for part in parts]),
        mlp_norms={layer: np.concatenate([part.mlp_norms[layer] for part in parts]) for layer in mlp_directions},
        mlp_cosines={layer: np.concatenate([part.mlp_cosines[layer] for part in parts]) for layer in mlp_directions},
    )


def batches(n: int, size: int = BATCH) -> list[list[int]]:
    """Rows 0 to n - 1, ``size`` at a time."""
    return [list(range(at, min(at + size, n))) for at in range(0, n, size)]


def _observe(
    lens: Lens, tokens: Tokens, directions: Mapping[int, Tensor], mlp_directions: Mapping[int, Tensor]
) -> Observed:
    layers = range(lens.model.n_layers)
    read = [Site(kind, layer) for kind in ("pattern", "resid_post", "v") for layer in layers]
    run = lens.run(
        tokens,
        read=[*read, *(Site("mlp_out", layer) for layer in mlp_directions)],
        logits="none",
        batch_size=len(tokens),
    )

    def stacked(kind: str) -> list[Tensor]:
        return [run[Site(kind, layer)].float() for layer in layers]

    stream = stacked("resid_post")
    nothing = torch.full(stream[0].shape[:2], torch.nan, device=stream[0].device)
    cosines = [cosine(h, directions[layer]) if layer in directions else nothing for layer, h in enumerate(stream)]
    mlp = {layer: run[Site("mlp_out", layer)].float() for layer in mlp_directions}
    return Observed(
        tokens=tokens,
        received=_numbers(torch.stack([received(pattern) for pattern in stacked("pattern")], dim=1)),
        norms=_numbers(torch.stack([h.norm(dim=-1) for h in stream], dim=1)),
        cosines=_numbers(torch.stack(cosines, dim=1)),
        value_norms=_numbers(torch.stack([v.norm(dim=-1).mean(dim=-1) for v in stacked("v")], dim=1)),
        mlp_norms={layer: _numbers(out.norm(dim=-1)) for layer, out in mlp.items()},
        mlp_cosines={layer: _numbers(cosine(out, mlp_directions[layer])) for layer, out in mlp.items()},
    )


def cosine(vectors: Tensor, direction: Tensor) -> Tensor:
    """``[..., d]`` and ``[d]`` -> ``[...]``; 0 for a zero vector."""
    return torch.nn.functional.cosine_similarity(vectors, direction.to(vectors).expand_as(vectors), dim=-1)


def _numbers(tensor: Tensor) -> Floats:
    return tensor.double().cpu().numpy()
