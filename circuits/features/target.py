"""What contributions add up to: a feature's pre-activation, a logit, a difference of logits. Each is read by one direction at one
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.features.frozen import FINAL, Place
from circuits.features.transcoder import Transcoder
from mechlab.errors import MechlabError
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens


@dataclass(frozen=True, eq=False)
class Target:
    """``vector . x + constant``, where x ``[d_model]`` is what ``place`` holds at token ``pos``.

    Attributes:
        place: ``("mlp_in", layer)``, or what the unembedding reads.
        feature: of the layer's transcoder, None for logits.
    """

    name: str
    place: Place
    pos: int
    vector: Tensor
    constant: float = 0.0
    feature: int | None = None


def feature_target(transcoder: Transcoder, feature: int, pos: int) -> Target:
    """The pre-activation of a feature at a token. Raises MechlabError for a feature that is not there."""
    if not 0 <= feature < transcoder.n_features:
        raise MechlabError(
            f"Feature {feature} is not in the transcoder of {transcoder.site}: it has 0 to {transcoder.n_features - 1}."
        )
    layer = transcoder.site.layer
    assert layer is not None
    vector = transcoder.encoder[feature].detach()
    constant = float(transcoder.encoder_bias[feature])
    return Target(f"L{layer}F{feature}@{pos}", ("mlp_in", layer), pos, vector, constant, feature)


def logit_target(lens: Lens, answer: int, foils: int | Sequence[int] | None = None, pos: int = -1) -> Target:
    """A logit at a token, less the mean of the foils' logits; before any final soft cap, which is not linear.

    Raises:
        MechlabError: a token id outside the vocabulary.
    """
    others = [foils] if isinstance(foils, int) else [int(one) for one in foils or ()]
    for token in (answer, *others):
        if not 0 <= token < lens.model.vocab_size:
            raise MechlabError(f"Token {token} is outside the vocabulary of {lens.model.vocab_size} tokens.")
    weight, bias = output_weight(lens.layout.unembed).T, getattr(lens.layout.unembed, "bias", None)

    def mean(values: Tensor) -> Tensor:
        return values[others].float().mean(dim=0) if others else torch.zeros_like(values[0]).float()

    vector = weight[answer].float() - mean(weight)
    constant = 0.0 if bias is None else float(bias[answer].float() - mean(bias))
    names = [repr(str(lens.model.tokenizer.decode([one]))) for one in (answer, *others)]
    name = f"logit {names[0]}" + (f" - {', '.join(names[1:])}" if others else "")
    return Target(name, FINAL, pos, vector.detach(), constant)
