"""What a run gives: the tokens, the logits and the parts of activations that were asked for, batches put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.errors import SiteError
from mechlab.lens.site import BY_HEAD, Site, site
from mechlab.lens.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave: the tokens, the logits and the activations that were asked for.

    Attributes:
        logits: ``[batch, pos, vocab]``; with ``logits="last"`` ``[batch, 1, vocab]``; None with ``logits="none"``.
        last_logits: ``[batch, vocab]`` at each prompt's last token; None with ``logits="none"``.
        activations: site -> tensor, after all edits. Axes are the site kind's (``KINDS``), less the head / unit or position that the site
            names. Padded positions hold zeros.
    """

    tokens: Tokens
    logits: Tensor | None
    last_logits: Tensor | None
    activations: Mapping[Site, Tensor]

    def __getitem__(self, at: str | Site) -> Tensor:
        wanted = site(at)
        if wanted not in self.activations:
            have = ", ".join(map(str, self.activations)) or "nothing"
            raise SiteError(f"Site {wanted} was not read: this run read {have}; add it to read=.")
        return self.activations[wanted]


def at_ends(logits: Tensor, tokens: Tokens) -> Tensor:
    """``[batch, vocab]`` of ``[batch, pos, vocab]``, at each prompt's last token."""
    return logits[torch.arange(len(tokens)), torch.tensor(tokens.lengths) - 1]


def by_position(at: Site, activation: Tensor) -> Tensor:
    """Scores and patterns are read ``[batch, head, query, key]`` and edited ``[batch, query, head, key]``."""
    return activation.transpose(1, 2) if at.kind in BY_HEAD else activation


def view(at: Site, kept: Tensor, tokens: Tokens) -> Tensor:
    """The part of a kept activation (by position) that the site names.

    A part is copied, so that it does not keep the whole in memory; a whole is not, so that resid_post of a layer and resid_pre of the
    next are one tensor.
    """
    kept = kept.detach()
    if not tokens.equal_lengths:
        padding = (~tokens.mask).to(kept.device)
        kept = kept.masked_fill(padding.reshape(*padding.shape, *[1] * (kept.ndim - 2)), 0)
    if at.pos is not None:
        kept = kept[range(len(tokens)), list(tokens.positions(at.pos))]
    elif at.kind in BY_HEAD:
        kept = kept.transpose(1, 2)
    if at.index is not None:
        kept = kept.select(1 if at.pos is not None or at.kind in BY_HEAD else 2, at.index)
    return kept.clone() if at.index is not None and at.pos is None else kept


def joined(tokens: Tokens, sites: Sequence[Site], parts: Sequence[Run], mode: str) -> Run:
    """Batches put together, padded to the widest."""

    def widened(tensors: Iterable[Tensor | None], axes: Sequence[int]) -> Tensor:
        return torch.cat([_pad(tensor, axes, tokens.width) for tensor in tensors if tensor is not None])

    activations = {s: widened((part.activations[s] for part in parts), _position_axes(s)) for s in sites}
    activations |= {s: _masked(s, scores, tokens) for s, scores in activations.items() if s.kind == "scores"}
    if mode == "none":
        return Run(tokens, None, None, activations)
    last = widened((part.last_logits for part in parts), [])
    return Run(
        tokens, last[:, None] if mode == "last" else widened((part.logits for part in parts), [1]), last, activations
    )


def _pad(tensor: Tensor, axes: Sequence[int], width: int) -> Tensor:
    for axis in axes:
        tensor = torch.nn.functional.pad(tensor, [0, 0] * (tensor.ndim - 1 - axis) + [0, width - tensor.shape[axis]])
    return tensor


def _masked(at: Site, scores: Tensor, tokens: Tokens) -> Tensor:
    """Padded scores as one wide batch gives them: keys after the prompt's end are masked, queries after it zero."""
    padding = (~tokens.mask).to(scores.device)
    ones = [1] * (scores.ndim - 2)
    scores = scores.masked_fill(padding.reshape(len(tokens), *ones, -1), float("-inf"))
    return scores if at.pos is not None else scores.masked_fill(padding.reshape(len(tokens), *ones[1:], -1, 1), 0)


def _position_axes(at: Site) -> list[int]:
    """Axes of a read activation that run over positions."""
    if at.kind in BY_HEAD:
        first = 1 if at.index is not None else 2
        return [first] if at.pos is not None else [first, first + 1]
    return [] if at.pos is not None else [1]
