"""What a feature means by its weights alone: which tokens excite it, which tokens it makes likelier, which features it feeds.

Scales of norms depend on the input and are left out; gains and centring are weights and are kept. So numbers of one feature compare with
each other, not with activations. Dunefsky, Chlenski and Nanda, arXiv 2406.11944 (§ 4: de-embeddings, input-invariant connections).
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from circuits.features.frozen import freeze
from circuits.features.norms import NormForm, norm_form
from circuits.features.transcoder import Transcoder
from mechlab.errors import MechlabError, SiteError
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens

__all__ = ["connections", "ov", "token_table"]

Head = tuple[int, int]  # (layer, head)


def reads(lens: Lens, transcoder: Transcoder, features: Sequence[int]) -> Tensor:
    """``[features, d_model]``: how features read the residual stream, through the gain of the norm before the MLP."""
    _check_features(transcoder, features)
    layer = transcoder.site.layer
    assert layer is not None
    return _pulled(lens, lens.layout.blocks[layer].ln2, transcoder.encoder[list(features)].detach())


def de_embeddings(
    lens: Lens, transcoder: Transcoder, features: Sequence[int], *, through: Head | None = None
) -> Tensor:
    """``[features, vocab]``: how much each token's embedding excites a feature; ``through`` a head, as its source token.

    Raises:
        MechlabError: a feature or head that is not there, or a head that is not below the feature.
    """
    vectors = reads(lens, transcoder, features)
    if through is not None:
        layer = transcoder.site.layer
        assert layer is not None
        lowest = layer if lens.layout.blocks[layer].mid is not None else layer - 1
        if not 0 <= through[0] <= lowest:
            raise MechlabError(
                f"Head L{through[0]}H{through[1]} does not write to what layer {layer}'s MLP reads: choose one of layers 0 to {lowest}."
            )
        vectors = vectors @ ov(lens, *through).T
    return vectors @ _embedding(lens).to(vectors).T


def unembeddings(lens: Lens, transcoder: Transcoder, features: Sequence[int]) -> Tensor:
    """``[features, vocab]``: what a feature's decoder adds to each logit directly, through the gain of the final norm."""
    _check_features(transcoder, features)
    directions = transcoder.directions[list(features)].detach()
    weight = output_weight(lens.layout.unembed)  # [d_model, vocab]
    form = _form(lens, lens.layout.final_norm)
    return (
        form.apply(directions.to(weight), torch.ones((), dtype=weight.dtype)) @ weight - form.bias.to(weight) @ weight
    )


def connections(
    lens: Lens,
    lower: Transcoder,
    upper: Transcoder,
    *,
    through: Head | None = None,
    features: Sequence[int] | None = None,
) -> Tensor:
    """``[lower features, upper features]``: input-invariant connections, decoder . encoder; ``through`` a head between them.

    Times the lower feature's activation, the scale of the norm before the upper MLP (and the head's attention and the scale of the norm
    before it), this is what one adds to the other's pre-activation.

    Args:
        features: of the upper transcoder; None for all.

    Raises:
        MechlabError: the lower one is not below the upper, or the head is not between them.
    """
    low, high = lower.site.layer, upper.site.layer
    assert low is not None and high is not None
    if not low < high:
        raise MechlabError(f"Features of layer {low} do not write to what layer {high} reads: choose a lower layer.")
    vectors = reads(lens, upper, range(upper.n_features) if features is None else features)
    if through is not None:
        between = range(low + 1, high + (lens.layout.blocks[high].mid is not None))
        if through[0] not in between:
            raise MechlabError(
                f"Head L{through[0]}H{through[1]} is not between the MLPs of layers {low} and {high}: choose another layer."
            )
        vectors = vectors @ ov(lens, *through).T
    return lower.directions.detach().to(vectors) @ vectors.T


def ov(lens: Lens, layer: int, head: int) -> Tensor:
    """``[d_model, d_model]`` of one head, rows are what it reads: ``stream @ ov`` is what it writes, but for norm scales and biases.

    Gains of the norms before and after attention are in it. The value map is asked of the model (it is linear whatever the input), so
    grouped heads and joint maps need no code here.

    Raises:
        SiteError: a head that is not there.
    """
    layout = lens.layout
    if not (0 <= layer < lens.model.n_layers and 0 <= head < layout.n_heads):
        raise SiteError(
            f"Head L{layer}H{head} is not in {lens.model.name}, with {lens.model.n_layers} layers of {layout.n_heads} heads."
        )
    block, run = layout.blocks[layer], freeze(lens, [[lens.model.vocab_size - 1]])
    values = run.live["v", layer][0, 0]  # [kv_head, d_head]
    kv_head, d_head = head * values.shape[0] // layout.n_heads, values.shape[1]
    readings = torch.zeros(d_head, *values.shape).to(values)
    readings[:, kv_head] = torch.eye(d_head).to(values)
    read = run.slopes(("v", layer), [0] * d_head, readings, [run.live["attn_in", layer]])[0][
        :, 0, 0
    ]  # [d_head, d_model]
    read = _pulled(lens, block.ln1, read)
    written = block.written_by_heads.detach().unflatten(0, (layout.n_heads, d_head))[head]
    if block.attn_out is not block.attn:
        form = _form(lens, block.attn_out)
        written = form.apply(written, torch.ones(()).to(written)) - form.bias.to(written)
    return read.T @ written.to(read)


def token_table(lens: Lens, scores: Tensor, features: Sequence[int], k: int = 10) -> pd.DataFrame:
    """The ``k`` highest tokens of each row of ``scores [features, vocab]``: ``feature``, ``rank``, ``token``, ``score``."""
    best = scores.topk(k, dim=1)
    rows = [
        (feature, rank + 1, lens.model.tokenizer.decode([token]), score)
        for feature, ids, values in zip(features, best.indices.tolist(), best.values.tolist(), strict=True)
        for rank, (token, score) in enumerate(zip(ids, values, strict=True))
    ]
    return pd.DataFrame(rows, columns=["feature", "rank", "token", "score"])


def _form(lens: Lens, norm: nn.Module) -> NormForm:
    return norm_form(norm, lens.model.d_model, f"A norm of {lens.model.name}")


def _pulled(lens: Lens, norm: nn.Module | None, vectors: Tensor) -> Tensor:
    return vectors if norm is None else _form(lens, norm).pull(vectors)


def _embedding(lens: Lens) -> Tensor:
    """``[vocab, d_model]`` as it enters the stream, but for positions. Read from the table; a family that scales it does so for all
    alike.
    """
    weight = lens.layout.embed.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _check_features(transcoder: Transcoder, features: Sequence[int]) -> None:
    for feature in features:
        if not 0 <= feature < transcoder.n_features:
            raise MechlabError(
                f"Feature {feature} is not in the transcoder of {transcoder.site}: it has 0 to {transcoder.n_features - 1}."
            )
