"""Expert routing: from router logits to (weights, indices of the chosen experts), with edits in between.

Routers of transformers 5 return ``(logits, weights [T, k], indices [T, k])`` and the block uses only the last two, so an edit of the logits
alone would change nothing: the choice is made again here, by the family's own rule. Five questions tell the rules apart (``Rule``); with
nothing switched the numbers are the router's own to the bit. A router that is not listed is refused by its name.

Switches, at one token (Dahlke et al., arXiv 2502.11096, switch off without a refill and rescale):

    off   masked before the top-k choice: another expert takes the place
    drop  taken out after the choice: nobody takes the place
    on    always among the chosen, with the weight that the router gives it or a stated one

Each with or without rescaling. With it: the router's rule on the experts that are left, as if the others did not exist; after a drop the
remaining weights are rescaled to the sum they had; beside a stated weight the others share what is left of that sum. Without it every
expert keeps the weight it has (or, for newcomers, would have) in the choice that nobody switched.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechlab.errors import EditError

_TINY = 1e-20
"""Added to a sum of weights before dividing by it, as DeepSeek does; it changes no float32 sum but zero."""


@dataclass(frozen=True)
class Routing:
    """What a router decided: ``logits [T, E]``, ``weights [T, k]``, ``indices [T, k]`` for T tokens and E experts."""

    logits: Tensor
    weights: Tensor
    indices: Tensor

    def dense(self) -> Tensor:
        """``[T, E]`` weights, 0 for experts not chosen."""
        return torch.zeros_like(self.logits).scatter(1, self.indices, self.weights.to(self.logits.dtype))


@dataclass(frozen=True)
class Rule:
    """How a router turns logits into a choice.

    Attributes:
        k: experts chosen for a token.
        scores: ``softmax`` or ``sigmoid`` of all logits, whose top k are chosen; or ``chosen``: the top k of the logits, then softmax
            over these.
        normalised: the chosen scores are divided by their sum.
        scale: the weights are multiplied by it.
        groups, top_groups: experts stand in groups of equal size, and only those of the top groups can be chosen.
        group_by: a group's score: its largest, or the sum of its two largest.
        bias: ``[E]``, added to the scores while choosing, not in the weights.
        ordered: the chosen come strongest first (it decides the order of summation, so the last bit).
    """

    k: int
    scores: Literal["softmax", "sigmoid", "chosen"] = "softmax"
    normalised: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_by: Literal["largest", "two largest"] = "largest"
    bias: Tensor | None = field(default=None, compare=False)
    ordered: bool = True

    @property
    def is_plain(self) -> bool:
        """One softmax, no groups, no scale: what one flag and ``scores`` describe."""
        return self.scores != "sigmoid" and self.groups == 1 and self.scale == 1.0 and self.ordered


@dataclass(frozen=True, eq=False)
class Switches:
    """What is switched, for T tokens and E experts.

    Attributes:
        off, drop, on: ``[T, E]`` bool.
        weights: ``[T, E]`` stated weights of experts that are on; NaN where the router's own is wanted.
        kept: ``[T]`` bool: tokens whose weights are not rescaled.
    """

    off: Tensor
    drop: Tensor
    on: Tensor
    weights: Tensor
    kept: Tensor

    @staticmethod
    def none(n_tokens: int, n_experts: int, device: torch.device | str = "cpu") -> "Switches":
        """Nothing switched; the tensors can be written to."""
        shape = (n_tokens, n_experts)
        off, drop, on = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(3))
        weights = torch.full(shape, float("nan"), device=device)
        return Switches(off, drop, on, weights, torch.zeros(n_tokens, dtype=torch.bool, device=device))


# The first of each line is the one the others are copies of (a test compares their source).
_NORMALISED = ("MixtralTopKRouter", "MiniMaxTopKRouter")
_FLAGGED = ("OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter", "Qwen3NextTopKRouter", "FlexOlmoTopKRouter")
_OF_CHOSEN = ("GptOssTopKRouter",)
_OF_CHOSEN_FLOAT32 = ("GraniteMoeTopKRouter", "GraniteMoeSharedTopKRouter", "GraniteMoeHybridTopKRouter")
_SIGMOID = ("DeepseekV3TopkRouter", "Glm4MoeTopkRouter", "Glm4MoeLiteTopkRouter", "Dots1TopkRouter")
_LIMITED = ("DeepseekV2TopkRouter",)
COPIES = (_NORMALISED, _FLAGGED, _OF_CHOSEN, _OF_CHOSEN_FLOAT32, _SIGMOID, _LIMITED)
KNOWN_ROUTERS = tuple(name for names in COPIES for name in names)


def rule_of(router: nn.Module) -> Rule:
    """The rule of a router, by its class.

    Raises:
        EditError: a class that is not in ``KNOWN_ROUTERS``.
    """
    name, parts = type(router).__name__, _Parts(router)
    if name in _NORMALISED:
        return Rule(parts.k, normalised=True)
    if name in _FLAGGED:
        return Rule(parts.k, normalised=bool(parts["norm_topk_prob"]))
    if name in (*_OF_CHOSEN, *_OF_CHOSEN_FLOAT32):
        return Rule(parts.k, "chosen")
    if name in _LIMITED:
        limited = parts["topk_method"] == "group_limited_greedy"
        groups = (int(parts["num_group"]), int(parts["topk_group"])) if limited else (1, 1)
        return Rule(parts.k, "softmax", False, float(parts["routed_scaling_factor"]), *groups, ordered=False)
    if name in _SIGMOID:
        return Rule(
            parts.k,
            "sigmoid",
            bool(parts["norm_topk_prob"]),
            float(parts["routed_scaling_factor"]),
            int(parts["num_group"]),
            int(parts["topk_group"]),
            "two largest",
            parts["e_score_correction_bias"],
            ordered=False,
        )
    raise EditError(
        f"How {name} chooses its experts is not known here, so they cannot be switched: edit mlp_out or resid_post instead; "
        f"known are {', '.join(KNOWN_ROUTERS)}."
    )


class _Parts:
    """A router's settings: its class is known, its fields are not typed."""

    def __init__(self, router: Any) -> None:
        self.router = router

    @property
    def k(self) -> int:
        return int(self.router.top_k)

    def __getitem__(self, name: str) -> Any:
        return getattr(self.router, name)


def choose(router: nn.Module, logits: Tensor, switches: Switches | None = None) -> Routing:
    """The router's own rule on (edited) logits ``[T, E]``, with experts switched.

    Raises:
        EditError: a router that is not known; fewer experts left than it chooses, or more forced on; an expert both on and off; stated
            weights above what the router gives to all chosen together, where the others are to be rescaled.
    """
    rule = rule_of(router)
    if switches is None:
        indices = _chosen(rule, _scores(rule, logits))
        return Routing(logits, _weights(rule, _scores(rule, logits), indices, indices), indices)
    _check(rule, logits, switches)
    left = _scores(rule, logits.masked_fill(switches.off, float("-inf")))
    indices = _chosen(rule, left, switches.off, switches.on)
    weights = _weights(rule, left, indices, indices)
    if bool(switches.kept.any()):
        scores = _scores(rule, logits)
        as_before = _weights(rule, scores, indices, _chosen(rule, scores))
        weights = torch.where(switches.kept[:, None], as_before, weights)
    weights = _stated(weights, indices, switches)
    return Routing(logits, _dropped(weights, indices, switches), indices)


def _check(rule: Rule, logits: Tensor, switches: Switches) -> None:
    if int((~switches.off).sum(1).min()) < rule.k or int(switches.on.sum(1).max()) > rule.k:
        raise EditError(
            f"This router chooses {rule.k} of {logits.shape[1]} experts: leave at least {rule.k} available and force at most {rule.k} on."
        )
    both = (switches.on & (switches.off | switches.drop)).any(0).nonzero().flatten().tolist()
    if both:
        raise EditError(f"Expert {both[0]} is forced on and switched off at the same token: leave one of the two out.")


def _scores(rule: Rule, logits: Tensor) -> Tensor:
    """``[T, E]``, what is compared (before the bias)."""
    if rule.scores == "chosen":
        return logits
    return logits.float().softmax(dim=-1) if rule.scores == "softmax" else logits.float().sigmoid()


def _chosen(rule: Rule, scores: Tensor, off: Tensor | None = None, on: Tensor | None = None) -> Tensor:
    """``[T, k]`` indices. Raises EditError where the groups leave too few experts."""
    choice = scores if rule.bias is None else scores + rule.bias
    choice = choice if off is None else choice.masked_fill(off, float("-inf"))
    if rule.groups > 1:
        choice = choice.masked_fill(~_in_top_groups(rule, choice), float("-inf"))
    choice = choice if on is None else choice.masked_fill(on, float("inf"))
    top = choice.topk(rule.k, dim=-1, sorted=rule.ordered)
    if bool(top.values.isneginf().any()):
        raise EditError(
            f"This router chooses {rule.k} experts from {rule.top_groups} of {rule.groups} groups, and the experts switched off leave "
            f"fewer than {rule.k} in them: switch fewer off, or drop them instead."
        )
    return top.indices


def _in_top_groups(rule: Rule, choice: Tensor) -> Tensor:
    """``[T, E]`` bool."""
    grouped = choice.unflatten(-1, (rule.groups, -1))
    by_group = grouped.amax(-1) if rule.group_by == "largest" else grouped.topk(2, dim=-1).values.sum(-1)
    best = by_group.topk(rule.top_groups, dim=-1, sorted=False).indices
    allowed = torch.zeros_like(by_group, dtype=torch.bool).scatter(1, best, value=True)
    return allowed[..., None].expand_as(grouped).flatten(-2)


def _weights(rule: Rule, scores: Tensor, indices: Tensor, among: Tensor) -> Tensor:
    """``[T, k]`` weights of ``indices`` where the rule's sum runs over the experts ``among [T, k]``: the same, or an earlier choice."""
    own = scores.gather(1, indices)
    if rule.scores == "chosen":
        if among is indices:
            return own.softmax(dim=1)
        return (own - scores.gather(1, among).logsumexp(dim=1, keepdim=True)).exp()
    if rule.normalised:
        own = own / (scores.gather(1, among).sum(dim=-1, keepdim=True) + _TINY)
    return own * rule.scale


def _stated(weights: Tensor, indices: Tensor, switches: Switches) -> Tensor:
    """Puts stated weights in; the others share what is left of the sum, or stay as they are where ``kept``."""
    given = switches.weights.gather(1, indices).to(weights.dtype)
    named = ~given.isnan()
    if not bool(named.any()):
        return weights
    others, stated = weights.masked_fill(named, 0.0), given.nan_to_num()
    left = weights.sum(-1, keepdim=True) - stated.sum(-1, keepdim=True)
    rescaled = named.any(-1, keepdim=True) & ~switches.kept[:, None]
    if bool((rescaled & (left < -1e-6)).any()):
        worst = int(left.masked_fill(~rescaled, 0.0).argmin())
        raise EditError(
            f"Stated weights sum to {float(stated[worst].sum()):.3g}, and this router gives its chosen experts "
            f"{float(weights[worst].sum()):.3g} in all: state less, or leave the others as they are (renormalise=False)."
        )
    shared = others * (left.clamp_min(0.0) / others.sum(-1, keepdim=True).clamp_min(_TINY))
    return torch.where(rescaled, shared, others) + stated


def _dropped(weights: Tensor, indices: Tensor, switches: Switches) -> Tensor:
    """Zeroes dropped experts; the others are rescaled to the sum there was, unless ``kept``. All dropped: no expert output at all."""
    gone = switches.drop.gather(1, indices)
    if not bool(gone.any()):
        return weights
    remaining = weights.masked_fill(gone, 0.0)
    before, after = weights.sum(dim=-1, keepdim=True), remaining.sum(dim=-1, keepdim=True)
    rescales = gone.any(-1, keepdim=True) & ~switches.kept[:, None] & (after > 0)
    return torch.where(rescales, remaining * (before / after.clamp_min(1e-30)), remaining)
