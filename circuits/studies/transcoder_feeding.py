"""Which features feed a feature over a data set, beside what its weights say: input-invariant connections and their mean use.

At one token, a lower feature adds z * (decoder . encoder) * scale to a higher one's pre-activation by the direct path, where z is its
activation and scale that of the norm before the higher MLP. Over all tokens of plain text at which the higher feature is active, this says
which of the connections in the weights are used. Dunefsky, Chlenski and Nanda, arXiv 2406.11944 (section 4 and appendix).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.features.norms import freeze_norm, norm_form
from circuits.features.transcoder import shown
from circuits.features.weights import connections
from circuits.studies.transcoder_dictionaries import permuted
from circuits.studies.transcoder_evidence import Feeding
from circuits.studies.transcoder_fits import ByLayer
from mechlab.lens.lens import Lens
from mechlab.lens.reading import Run
from mechlab.lens.site import Site

LEAST_TOKENS = 5
"""Tokens at which a feature must be active so that its inputs are summarised."""
_BATCH = 4


@dataclass(frozen=True, eq=False)
class Summary:
    """Of one target feature and one lower layer.

    Attributes:
        tokens: at which the target is active.
        weights: ``[features]`` decoder . encoder through the norm's gain.
        used: ``[features]`` mean contribution over those tokens. positive: mean where it is above 0. active: share where not zero.
    """

    tokens: int
    weights: Tensor
    used: Tensor
    positive: Tensor
    active: Tensor


@dataclass(frozen=True)
class Listed:
    """How many targets are summarised, and how many lower features of each layer are listed for each."""

    targets: int
    inputs: int


def feeding(
    lens: Lens,
    texts: Sequence[str],
    transcoders: ByLayer,
    ranked: Sequence[int],
    listed: Listed,
    draws: int,
    seed: int,
) -> Feeding:
    """For features of the highest layer, the lower features that feed them most over the texts.

    Args:
        ranked: features of the highest layer, the most wanted first; the first that are active on enough tokens are taken.
        draws: of permuted decoder rows, whose connections say nothing of what is used.
    """
    *lower, upper = sorted(transcoders)
    high = shown(transcoders[upper])
    codes = _codes(lens, texts, transcoders)
    firing = (codes.by_layer[upper] != 0).sum(0)
    targets = [feature for feature in ranked if int(firing[feature]) >= LEAST_TOKENS][: listed.targets]
    rows: list[dict[str, object]] = []
    agreement: list[dict[str, object]] = []
    for layer in lower:
        low = shown(transcoders[layer])
        weights = connections(lens, low, high, features=targets).cpu()
        others = [connections(lens, permuted(low, seed + i), high, features=targets).cpu() for i in range(draws)]
        for at, target in enumerate(targets):
            one = summary(codes.by_layer[layer], weights[:, at], codes.scale, codes.by_layer[upper][:, target] != 0)
            rows += _rows(f"L{upper}F{target}", layer, one, listed.inputs)
            agreement.append(
                {
                    "target": f"L{upper}F{target}",
                    "from layer": layer,
                    "tokens": one.tokens,
                    "weights and use": rank_correlation(weights[:, at], one),
                    "permuted": [rank_correlation(other[:, at], one) for other in others],
                }
            )
    return Feeding(pd.DataFrame(rows, columns=list(_COLUMNS)), agreement)


_COLUMNS = ("target", "feature", "by weights", "rank by weights", "mean use", "use where positive", "active", "tokens")


def _rows(target: str, layer: int, one: Summary, count: int) -> list[dict[str, object]]:
    ranks = one.weights.argsort(descending=True).argsort() + 1
    return [
        {
            "target": target,
            "feature": f"L{layer}F{i}",
            "by weights": float(one.weights[i]),
            "rank by weights": int(ranks[i]),
            "mean use": float(one.used[i]),
            "use where positive": float(one.positive[i]),
            "active": float(one.active[i]),
            "tokens": one.tokens,
        }
        for i in one.used.topk(min(count, len(one.used))).indices.tolist()
    ]


def summary(codes: Tensor, weights: Tensor, scale: Tensor, firing: Tensor) -> Summary:
    """Args: ``codes [n, features]`` of the lower layer, ``weights [features]``, ``scale [n]`` of the norm, ``firing [n]`` bool."""
    z = codes[firing]
    terms = z * weights * scale[firing, None]
    above = terms > 0
    return Summary(
        tokens=int(firing.sum()),
        weights=weights,
        used=terms.mean(0),
        positive=(terms * above).sum(0) / above.sum(0).clamp_min(1),
        active=(z != 0).double().mean(0),
    )


def rank_correlation(weights: Tensor, one: Summary) -> float:
    """Spearman's, between connections and mean use, over lower features that are active at all where the target is."""
    from scipy.stats import spearmanr

    kept = one.active > 0
    if int(kept.sum()) < 3:
        return float("nan")
    return float(np.asarray(spearmanr(weights[kept].numpy(), one.used[kept].numpy()).statistic))


@dataclass(frozen=True, eq=False)
class _Codes:
    """All tokens but each text's first: codes ``[n, features]`` by layer, ``scale [n]`` of the norm before the highest MLP."""

    by_layer: dict[int, Tensor]
    scale: Tensor


@torch.no_grad()
def _codes(lens: Lens, texts: Sequence[str], transcoders: ByLayer) -> _Codes:
    upper = max(transcoders)
    block = lens.layout.blocks[upper]
    before = Site("resid_mid" if block.mid is not None else "resid_pre", upper)
    sites = [before, *(Site("mlp_in", layer) for layer in transcoders)]
    parts: dict[int, list[Tensor]] = {layer: [] for layer in transcoders}
    scales: list[Tensor] = []
    for first in range(0, len(texts), _BATCH):
        run = lens.run(list(texts[first : first + _BATCH]), read=sites, logits="none")
        kept = run.tokens.mask.clone()
        kept[:, 0] = False
        for layer, one in transcoders.items():
            parts[layer].append(one.encode(run[Site("mlp_in", layer)][kept]).cpu())
        scales.append(_scale(lens, upper, run, before, kept))
    return _Codes({layer: torch.cat(some) for layer, some in parts.items()}, torch.cat(scales))


def _scale(lens: Lens, layer: int, run: Run, before: Site, kept: Tensor) -> Tensor:
    norm = lens.layout.blocks[layer].ln2
    stream = run[before][kept]
    if norm is None:
        return torch.ones(len(stream))
    name = f"The norm before the MLP in layer {layer} of {lens.model.name}"
    frozen = freeze_norm(norm_form(norm, lens.model.d_model, name), stream[None], norm(stream[None]), name)
    return frozen.scale.float().cpu()
