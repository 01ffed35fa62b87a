"""Feature pages: what a feature is active on, what it does to the logits, and which features point the same way.

codes = feature_codes(dictionary, activations, [7, 12])
pages = feature_pages(lens, dictionary, activations, codes)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechlab.dictionaries.activations import ActivationSource
from mechlab.dictionaries.dictionary import Dictionary, check_fits
from mechlab.errors import MechlabError
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site

__all__ = ["FeatureCodes", "FeaturePage", "feature_codes", "feature_pages", "logit_effects", "neighbours"]

_ROWS_AT_ONCE = 4096
_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class FeatureCodes:
    """Codes of some features on the rows that count.

    Attributes:
        features: ``k`` of them. rows: ``[n]`` row numbers in the activations. values: ``[n, k]``.
    """

    features: tuple[int, ...]
    rows: Tensor
    values: Tensor


@dataclass(frozen=True)
class Example:
    """A stretch of text around a token on which a feature is strongly active: its tokens, and the feature's code at each.

    Tokens that do not count (a prompt's first) have no code: None. ``at`` is the place of the strongest.
    """

    pieces: tuple[str, ...]
    values: tuple[float | None, ...]
    at: int


@dataclass(frozen=True, eq=False)
class FeaturePage:
    """Everything to be shown of one feature.

    Attributes:
        frequency: share of the ``n_rows`` tokens it is active on. mean: of its code where it is active; largest: of all.
        histogram: ``[bins]`` tokens with a code in each bin, zeros left out; edges: ``[bins + 1]``.
        examples: strongest first, no two from one prompt.
        promoted, suppressed: tokens whose logits one unit of the feature raises or lowers the most, with that effect (the mean over the
            vocabulary taken off).
        neighbours: features whose directions have the largest cosine with this one's.
    """

    feature: int
    n_rows: int
    frequency: float
    mean: float
    largest: float
    histogram: Tensor
    edges: Tensor
    examples: tuple[Example, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]


@torch.no_grad()
def feature_codes(dictionary: Dictionary, activations: ActivationSource, features: Sequence[int]) -> FeatureCodes:
    """Encodes every row that counts, a few thousand at a time, and keeps these features' codes.

    Raises:
        MechlabError: no feature, or one the dictionary lacks. UnknownName: activations without the dictionary's site.
    """
    _check_features(dictionary, features)
    rows, kept = activations.rows, list[Tensor]()
    for part in rows.split(_ROWS_AT_ONCE):
        (values,) = activations.read([dictionary.site], part)
        kept.append(dictionary.encode(values)[:, list(features)].float().cpu())
    return FeatureCodes(tuple(features), rows, torch.cat(kept))


def feature_pages(
    lens: Lens,
    dictionary: Dictionary,
    activations: ActivationSource,
    codes: FeatureCodes,
    *,
    n_examples: int = 10,
    before: int = 12,
    after: int = 6,
    n_tokens: int = 10,
    n_neighbours: int = 5,
    bins: int = 30,
) -> list[FeaturePage]:
    """A page for each feature of ``codes``.

    Args:
        before, after: tokens shown around the strongest.
        n_tokens: tokens listed as promoted, and as suppressed.

    Raises:
        MechlabError: a dictionary or activations of another model; a site whose directions do not reach the logits by a linear map.
    """
    check_fits(dictionary, lens)
    if activations.fingerprint != lens.model.fingerprint:
        raise MechlabError(
            f"These activations are of {activations.model} and the model loaded is {lens.model.name}: harvest them from this one."
        )
    effects = logit_effects(lens, dictionary.target, dictionary.directions[list(codes.features)])
    place = {int(row): i for i, row in enumerate(codes.rows)}
    pages: list[FeaturePage] = []
    for column, feature in enumerate(codes.features):
        values = codes.values[:, column]
        active = values[values != 0]
        counts, edges = (
            torch.histogram(active, bins=bins) if len(active) else (torch.zeros(bins), torch.zeros(bins + 1))
        )
        pages.append(
            FeaturePage(
                feature=feature,
                n_rows=len(values),
                frequency=len(active) / max(len(values), 1),
                mean=float(active.mean()) if len(active) else 0.0,
                largest=float(active.max()) if len(active) else 0.0,
                histogram=counts,
                edges=edges,
                examples=_examples(activations, codes, values, place, n_examples, before, after),
                promoted=_extreme(lens, effects[column], n_tokens),
                suppressed=_extreme(lens, -effects[column], n_tokens, sign=-1),
                neighbours=neighbours(dictionary, feature, n_neighbours),
            )
        )
    return pages


def _examples(
    activations: ActivationSource,
    codes: FeatureCodes,
    values: Tensor,
    place: dict[int, int],
    count: int,
    before: int,
    after: int,
) -> tuple[Example, ...]:
    found: list[Example] = []
    seen: set[int] = set()
    for i in values.argsort(descending=True, stable=True).tolist():
        if len(found) == count or float(values[i]) <= 0:
            break
        row = int(codes.rows[i])
        context = activations.context(row, before, after)
        if context.prompt in seen:
            continue
        seen.add(context.prompt)
        around = range(row - context.at, row - context.at + len(context.pieces))
        shown = tuple(float(values[place[r]]) if r in place else None for r in around)
        found.append(Example(context.pieces, shown, context.at))
    return tuple(found)


def neighbours(dictionary: Dictionary, feature: int, count: int) -> tuple[tuple[int, float], ...]:
    """The features with the largest cosines with ``feature``'s direction, itself left out."""
    _check_features(dictionary, [feature])
    unit = torch.nn.functional.normalize(dictionary.directions.detach().float(), dim=1)
    cosines = unit @ unit[feature]
    cosines[feature] = -2
    top = cosines.topk(min(count, len(unit) - 1))
    return tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


@torch.no_grad()
def logit_effects(lens: Lens, at: Site, directions: Tensor) -> Tensor:
    """``[k, vocab]``: what one unit of ``directions [k, d]`` at a site adds to the logits by the direct path, less its mean over tokens.

    The final norm counts with its weights and a scale of 1, so effects of one model compare among each other. Neurons and heads go through
    their output projection first.

    Raises:
        MechlabError: a site that reaches the stream by no linear map (keys, scores, the MLP's input ...).
    """
    block = None if at.layer is None else lens.layout.blocks[at.layer]
    stream = directions.detach().float().to(lens.model.device)
    if at.kind in ("mlp_post", "z") and at.index is None and block is not None:
        weight = block.written_by_neurons if at.kind == "mlp_post" else block.written_by_heads
        stream = stream @ weight.float()
    elif at.kind not in _STREAM or at.index is not None:
        raise MechlabError(
            f"Directions at {at} reach the logits by no linear map: logit effects need a site of the stream."
        )
    norm = lens.layout.final_norm
    if isinstance(norm, nn.LayerNorm):
        normed = (stream - stream.mean(1, keepdim=True)) * norm.weight.float()
    else:  # what an RMS norm does to a vector of ones is its weight, however the family stores it
        normed = stream * norm(torch.ones_like(stream[:1]).to(lens.model.dtype)).float()
    effects = normed @ output_weight(lens.layout.unembed).float()
    return (effects - effects.mean(1, keepdim=True)).cpu()


def _extreme(lens: Lens, effects: Tensor, count: int, sign: int = 1) -> tuple[tuple[str, float], ...]:
    top = effects[: len(lens.model.tokenizer)].topk(count)
    pieces = (str(lens.model.tokenizer.decode([i])) for i in top.indices.tolist())
    return tuple((piece, sign * value) for piece, value in zip(pieces, top.values.tolist(), strict=True))


def _check_features(dictionary: Dictionary, features: Sequence[int]) -> None:
    n = dictionary.n_features
    bad = [feature for feature in features if not 0 <= feature < n]
    if bad or not features:
        raise MechlabError(f"Feature {bad[0] if bad else 'none'} is not in this dictionary of {n}: use 0 to {n - 1}.")
