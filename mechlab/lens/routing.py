"""Expert routing: from router logits to (weights, indices of the chosen experts), with edits in between.

Routers of transformers 5 return ``(logits, weights [T, k], indices [T, k])`` and the block uses only the last two, so an edit of the logits
alone would change nothing: the choice is made again here, by the family's own rule. Three rules exist: softmax over all experts, then
top-k, renormalised or not (Mixtral, OLMoE, Qwen); top-k of the logits, then softmax over the chosen (GPT-OSS); DeepSeek-V3's grouped
sigmoid is not covered and refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechlab.errors import EditError


@dataclass(frozen=True)
class Routing:
    """What a router decided: ``logits [T, E]``, ``weights [T, k]``, ``indices [T, k]`` for T tokens and E experts."""

    logits: Tensor
    weights: Tensor
    indices: Tensor

    def dense(self) -> Tensor:
        """``[T, E]`` weights, 0 for experts not chosen."""
        return torch.zeros_like(self.logits).scatter(1, self.indices, self.weights.to(self.logits.dtype))


def renormalises(router: nn.Module) -> bool:
    """Whether the weights of the chosen experts are rescaled to sum to 1 (Mixtral always does; others have a flag)."""
    return bool(getattr(router, "norm_topk_prob", type(router).__name__ == "MixtralTopKRouter"))


def choose(router: nn.Module, logits: Tensor, off: Tensor | None = None, on: Tensor | None = None) -> Routing:
    """The router's own rule on (edited) logits.

    Args:
        off, on: ``[T, E]`` bool masks: experts that may not be chosen, and experts that must be (with their natural weight).

    Raises:
        EditError: a routing rule that is not known, or more experts forced on (or left) than the router chooses.
    """
    k = int(router.top_k)  # pyright: ignore[reportArgumentType]
    none = torch.zeros_like(logits, dtype=torch.bool)
    off, on = none if off is None else off, none if on is None else on
    if int((~off).sum(1).min()) < k or int(on.sum(1).max()) > k:
        raise EditError(
            f"This router chooses {k} of {logits.shape[1]} experts: leave at least {k} available and force at most {k} on."
        )
    allowed = logits.masked_fill(off, float("-inf"))
    if type(router).__name__ == "GptOssTopKRouter":
        indices = allowed.masked_fill(on, float("inf")).topk(k, dim=-1).indices
        weights = allowed.gather(1, indices).softmax(dim=1)
    elif type(router).__name__ == "DeepseekV3TopkRouter":
        raise EditError(
            "Routing edits on DeepSeek-V3's grouped router are not available: edit mlp_out or resid_post instead."
        )
    else:
        probabilities = allowed.float().softmax(dim=-1)
        indices = probabilities.masked_fill(on, float("inf")).topk(k, dim=-1).indices
        weights = probabilities.gather(1, indices)
        if renormalises(router):
            weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(logits, weights, indices)


def drop(routing: Routing, dropped: Tensor) -> Routing:
    """Zeroes the weights of ``dropped [T, E]`` experts and rescales the others to the same sum; nobody takes their place.

    Tokens whose chosen experts are all dropped get no expert output at all. Dahlke et al., arXiv 2502.11096.
    """
    before = routing.weights.sum(dim=-1, keepdim=True)
    kept = routing.weights.masked_fill(dropped.gather(1, routing.indices), 0.0)
    after = kept.sum(dim=-1, keepdim=True)
    return Routing(
        routing.logits, torch.where(after > 0, kept * (before / after.clamp_min(1e-30)), kept), routing.indices
    )
