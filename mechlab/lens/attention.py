"""Attention through one function registered with transformers' AttentionInterface.

Every family that uses the interface hands over its queries, keys and values after rotary embedding and QK-norm, so q, k, v, scores and
pattern are read and edited here, whatever the family. The fast kernel (SDPA) runs unless this layer's scores or pattern are wanted, or the
family needs what SDPA cannot do (soft-capping, sink logits). The plain formula is bit-identical to transformers' eager attention.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "mechlab"
_TAPS = "_mechlab_attention_taps"
_PACKED = "_mechlab_packed_attention"


class Tap(Protocol):
    """Reads and edits one activation on its way through the model."""

    def __call__(self, activation: Tensor) -> Tensor: ...


class Attend(Protocol):
    """Attention within sequences of one shape, with the taps inside it (scores, pattern).

    Queries ``[batch, kv_head, query, group, d_head]`` (the heads of a group share keys and values), keys and values
    ``[batch, kv_head, key, d_head]`` -> as the queries. ``mask`` is boolean, ``[1, 1, query, key]``.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, inside: Mapping[str, Tap], /) -> Tensor: ...


class Packed(Protocol):
    """Attention over packed rows of one layer: queries, keys, values ``[1, head, n, d_head]`` -> ``[1, n, head, d_head]``.

    ``mask`` is what transformers made for the dummy prompt; ``attend`` attends within sequences of one shape.
    """

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, attend: Attend, /
    ) -> Tensor: ...


def use(model: PreTrainedModel) -> None:
    """Makes ``model`` compute attention with the function below. Harmless when repeated."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation != NAME:  # pyright: ignore[reportPrivateUsage]
        model.set_attn_implementation(NAME)


def attach(module: nn.Module, taps: Mapping[str, Tap]) -> None:
    """Puts taps (by kind: q, k, v, scores, pattern) on one attention module."""
    module.__dict__[_TAPS] = taps


def attach_packed(module: nn.Module, packed: Callable[..., Tensor]) -> None:
    """Hands this module's queries, keys and values to ``packed`` (see ``Packed``, its layer bound)."""
    module.__dict__[_PACKED] = packed


def detach(module: nn.Module) -> None:
    module.__dict__.pop(_TAPS, None)
    module.__dict__.pop(_PACKED, None)


def attached(module: nn.Module) -> bool:
    return _TAPS in module.__dict__ or _PACKED in module.__dict__


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Query ``[batch, head, query, d_head]``, key and value ``[batch, kv_head, key, d_head]`` -> ``[batch, query, head, d_head]``.

    ``attention_mask`` is boolean ``[batch, 1, query, key]`` (True attends) or None for plain causal attention; ``s_aux`` are GPT-OSS's
    sink logits, one per head.
    """
    taps: Mapping[str, Tap] = module.__dict__.get(_TAPS, {})
    query, key, value = (_tapped(taps, *pair) for pair in (("q", query), ("k", key), ("v", value)))

    def fast(inside: Mapping[str, Tap]) -> bool:
        return not ("scores" in inside or "pattern" in inside or softcap is not None or s_aux is not None)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, inside: Mapping[str, Tap]) -> Tensor:
        if fast(inside):  # the heads of a group as further queries: their keys and values need no copies
            mask = mask.repeat_interleave(q.shape[3], dim=2)
            found = nn.functional.scaled_dot_product_attention(q.flatten(2, 3), k, v, mask, dropout, scale=scaling)
            return found.unflatten(2, q.shape[2:4])
        found = _plain(q.transpose(2, 3).flatten(1, 2), k, v, mask, scaling, softcap, s_aux, inside)
        return found.unflatten(2, (q.shape[1], -1)).transpose(1, 2)

    packed = module.__dict__.get(_PACKED)
    if packed is not None:
        return packed(query, key, value, attention_mask, attend), None
    if fast(taps):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)[0], None
    return _plain(query, key, value, attention_mask, scaling, softcap, s_aux, taps), None


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    taps: Mapping[str, Tap],
) -> Tensor:
    """The formula, with scores and pattern on view; bit-identical to transformers' eager attention."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = _masked(scores, mask)
    if "scores" in taps:
        scores = taps["scores"](scores)
    pattern = _softmax(scores, sinks).to(query.dtype)
    if "pattern" in taps:
        pattern = taps["pattern"](pattern)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous()


def _tapped(taps: Mapping[str, Tap], kind: str, activation: Tensor) -> Tensor:
    """Taps see ``[batch, pos, head, d_head]``; attention works on ``[batch, head, pos, d_head]``."""
    return taps[kind](activation.transpose(1, 2)).transpose(1, 2) if kind in taps else activation


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    queries, keys = scores.shape[-2:]
    if mask is None:  # transformers leaves plain causal masks out; the last query always stands at the last key
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril(keys - queries)
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    # GPT-OSS: one more logit per head takes its share of the attention and is then left out.
    column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[-2], -1)
    joint = torch.cat([scores, column], dim=-1)
    return torch.softmax(joint - joint.max(dim=-1, keepdim=True).values, dim=-1, dtype=joint.dtype)[..., :-1]
