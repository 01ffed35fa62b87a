"""Which neurons several features share: a core that all of a family use, and what each has for itself (arXiv 2506.10920, section on
reuse).

The published shape: amplifying a member's exclusive neurons raises that member's word and lowers its siblings'; amplifying the core raises
all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.lens.edit import Edit, add
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Prompts

__all__ = ["Reuse", "neuron_reuse"]


@dataclass(frozen=True, eq=False)
class Reuse:
    """Neurons of a family of features.

    Attributes:
        core: ``[d]`` bool: used by at least ``share`` of the features.
        exclusive: ``[k, d]`` bool: used by that feature alone.
        overlap: ``[k, k]`` shared neurons of each two features, Z Z^T of the binarised features.
    """

    core: Tensor
    exclusive: Tensor
    overlap: Tensor


def neuron_reuse(features: Tensor, share: float = 1.0) -> Reuse:
    """Of ``features [k, d]`` with zeros where a neuron is not used.

    Raises:
        MechlabError: fewer than two features, or a share outside (0, 1].
    """
    if len(features) < 2 or not 0 < share <= 1:
        raise MechlabError(
            f"{len(features)} features and a share of {share} have no core: give two features or more, and a share in (0, 1]."
        )
    used = features != 0
    times = used.sum(0)
    binary = used.double()
    return Reuse(times >= share * len(features) - 1e-9, used & (times == 1), (binary @ binary.T).long())


def amplified(lens: Lens, prompts: Prompts, at: Site, groups: Tensor, tokens: Sequence[int], strength: float) -> Tensor:
    """``[groups, tokens]``: the change of each token's logit at the last position, mean over prompts, when a group of neurons is
    amplified.

    Args:
        at: the MLP's neurons, ``L{layer}.mlp_post``.
        groups: ``[groups, d_mlp]`` directions: a feature's weights on some of its neurons, zero elsewhere. Each is added at every position
            with norm ``strength``; a group without neurons changes nothing.
    """
    return amplified_each(lens, prompts, at, groups, tokens, strength).mean(1)


@torch.no_grad()
def amplified_each(
    lens: Lens,
    prompts: Prompts,
    at: Site,
    groups: Tensor,
    tokens: Sequence[int],
    strength: float,
    *,
    centred: bool = False,
) -> Tensor:
    """``[groups, prompts, tokens]``: as ``amplified``, prompt by prompt. ``centred``: less the mean change over the vocabulary, which
    makes no token likelier than another.
    """
    found = lens.tokens(prompts)
    base = _logits(lens, found, [], tokens, centred=centred)
    changes = []
    for group in groups:
        norm = float(group.norm())
        edits = [add(at, group / norm, strength=strength)] if norm > 0 else []
        changes.append(_logits(lens, found, edits, tokens, centred=centred) - base)
    return torch.stack(changes)


def _logits(lens: Lens, prompts: Prompts, edits: Sequence[Edit], tokens: Sequence[int], *, centred: bool) -> Tensor:
    last = lens.run(prompts, edits, logits="last").last_logits
    assert last is not None
    last = last.float()
    return (last[:, list(tokens)] - (last.mean(1, keepdim=True) if centred else 0.0)).cpu()
