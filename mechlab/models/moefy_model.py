"""A dense model cut into experts: a language model with a router, for expert tools to work on where no trained MoE is at hand.

Zhang et al. 2022 (MoEfication, arXiv 2110.01786), for gated MLPs:

1. On calibration text, how strongly each neuron writes at each token: |silu(gate) * up| times the norm of its output vector.
2. Neurons that write at the same tokens become an expert: balanced k-means on their patterns, experts of equal size.
3. A linear router: ridge regression from what the MLP reads to how much each expert writes at that token (root of its summed squares).
4. A Granite-MoE holds it: its router takes the top k of the logits and the softmax over these alone, so logits scaled down to 1e-6
   choose as the fitted ones do and weigh all chosen alike, 1/k; the experts' output is scaled up by k. With all experts chosen the
   model is the dense one, up to rounding. With fewer, `price` says what that costs.

Attention, norms and embeddings are the dense model's own (Granite's multipliers undo nothing but themselves).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechlab.errors import ModelError
from mechlab.models.built import Tell, is_built, save_built
from mechlab.models.cache import cache_root
from mechlab.models.model import Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOEFIED = "smollm2-moe"
"""Name under which the default model, cut into experts, is kept."""
_TEMPERATURE = 1e-6
"""Router logits are scaled by it: softmax of the chosen is 1/k to the sixth digit, their order that of the fitted logits."""
_RIDGE = 1e-2
"""Relative to the mean square of the inputs."""
_ROUNDS = 8
_WIDTH = 4


@dataclass(frozen=True)
class Cut:
    """How a model is cut.

    Attributes:
        n_experts: per layer; it must divide the number of neurons.
        k: chosen for a token.
        tokens: calibration tokens that patterns and routers are fitted on.
        seed: of the clustering.
    """

    n_experts: int = 16
    k: int = 12
    tokens: int = 4096
    seed: int = 0


def moefied_folder(_tell: Tell | None = None) -> Path:
    """The folder of the default model cut into experts. Raises ModelError, saying how to make it, where it has not been made."""
    folder = cache_root() / "models" / MOEFIED
    if not is_built(folder):
        raise ModelError(
            f"The model {MOEFIED!r} has not been made here: run `from mechlab.models import load, moefy, save_moefied; "
            "from mechlab.texts import passages; save_moefied(moefy(load(), passages(count=60)))` once, some minutes."
        )
    return folder


def save_moefied(model: Model, measured: dict[str, float] | None = None) -> Path:
    """Keeps the default model as ``moefy`` cut it in the cache, where ``load("smollm2-moe")`` finds it; ``measured``: see ``price``."""
    return save_built(model, MOEFIED, "", measured or {})


def moefy(model: Model, texts: Sequence[str], cut: Cut | None = None, tell: Tell | None = None) -> Model:
    """The model with each MLP cut into experts, on the CPU in float32.

    Args:
        model: a Llama: gated MLPs with SiLU, no biases.
        texts: calibration text; more of it fits better routers.

    Raises:
        ModelError: another architecture, experts that do not come out equal, more chosen than there are, or too little text.
    """
    import torch

    cut, tell = cut or Cut(), tell or (lambda _: None)
    _check(model, cut)
    inputs = _mlp_inputs(model, texts, cut.tokens)
    experts = _granite(model, cut)
    source: Any = model.hf
    with torch.no_grad():
        for layer, (dense, sparse) in enumerate(zip(source.model.layers, experts.model.layers, strict=True)):
            tell(f"cutting layer {layer} of {model.n_layers} into experts")
            _fill(dense.mlp, sparse.block_sparse_moe, inputs[layer], cut)
    return Model(f"{model.name}-moe", "moefy", experts, model.tokenizer)


def price(dense: Model, sparse: Model, texts: Sequence[str]) -> tuple[float, float]:
    """Perplexity of the dense and of the cut model on texts that the cut was not fitted on."""
    import math

    found = [sum(losses) / n for losses, n in (_losses(model, texts) for model in (dense, sparse))]
    return math.exp(found[0]), math.exp(found[1])


def with_chosen(model: Model, k: int) -> Model:
    """The same cut model sending each token to ``k`` experts; the weights are shared, the experts' scale is set for ``k``.

    Raises ModelError for more than there are.
    """
    import copy

    import torch

    total, before = int(model.config.num_local_experts), int(model.config.num_experts_per_tok)
    if not 1 <= k <= total:
        raise ModelError(f"{model.name} has {total} experts in a layer and {k} were to be chosen: use 1 to {total}.")
    hf: Any = copy.deepcopy(model.hf)
    hf.config.num_experts_per_tok = k
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.block_sparse_moe.router.top_k = k
            layer.block_sparse_moe.experts.down_proj *= k / before
    return Model(f"{model.name}-top{k}", model.source, hf, model.tokenizer)


def _check(model: Model, cut: Cut) -> None:
    config = model.config
    plain = not getattr(config, "mlp_bias", False) and not getattr(config, "attention_bias", False)
    if config.model_type != "llama" or config.hidden_act != "silu" or not plain:
        raise ModelError(
            f"{model.name} is a {config.model_type}: only Llama models without biases can be cut into experts."
        )
    neurons = int(config.intermediate_size)
    if neurons % cut.n_experts or neurons // cut.n_experts % _WIDTH or not 1 <= cut.k <= cut.n_experts:
        raise ModelError(
            f"{neurons} neurons cannot be cut into {cut.n_experts} equal experts of which {cut.k} are chosen: choose experts of a multiple "
            f"of {_WIDTH} neurons (torch's grouped kernel needs it), and at most so many for a token."
        )


def _mlp_inputs(model: Model, texts: Sequence[str], n_tokens: int) -> list[Tensor]:
    """Per layer ``[tokens, d_model]``, what its MLP reads, of the first ``n_tokens`` tokens. Raises ModelError for too little text."""
    import torch

    layers: Any = model.hf.model.layers  # pyright: ignore[reportAttributeAccessIssue]
    seen: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _m, args, into=into: into.append(args[0][0].float().cpu()))
        for layer, into in zip(layers, seen, strict=True)
    ]
    count = 0
    try:
        with torch.no_grad():
            for text in texts:
                ids = _ids(model, text)
                if count < n_tokens and ids.shape[1] > 1:
                    model.hf(input_ids=ids, use_cache=False)
                    count += int(ids.shape[1])
    finally:
        for handle in handles:
            handle.remove()
    if count < 4 * model.d_model:
        raise ModelError(
            f"{count} tokens of calibration text are too few to fit a router of {model.d_model} inputs: give at least {4 * model.d_model}."
        )
    return [torch.cat(parts)[:n_tokens] for parts in seen]


def _ids(model: Model, text: str) -> Tensor:
    import torch

    ids: Any = model.tokenizer(text)["input_ids"]
    return torch.tensor([ids[: model.context_length]], device=model.device)


def _granite(model: Model, cut: Cut) -> Any:
    """A Granite-MoE with the dense model's attention, norms and embeddings; router and experts are empty."""
    import torch
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    dense: Any = model.config
    config = GraniteMoeConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.d_model,
        intermediate_size=dense.intermediate_size // cut.n_experts,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.d_head,  # pyright: ignore[reportCallIssue]
        max_position_embeddings=model.context_length,
        rms_norm_eps=dense.rms_norm_eps,
        rope_parameters=dense.rope_parameters,
        attention_multiplier=model.d_head**-0.5,
        num_local_experts=cut.n_experts,
        num_experts_per_tok=cut.k,
        tie_word_embeddings=bool(dense.tie_word_embeddings),
        bos_token_id=dense.bos_token_id,
        eos_token_id=dense.eos_token_id,
        pad_token_id=dense.pad_token_id,
        architectures=["GraniteMoeForCausalLM"],
    )
    from mechlab.models.twin import fresh

    hf: Any = fresh(config, torch.float32, 0)
    assert isinstance(hf, GraniteMoeForCausalLM)
    kept = {name: tensor for name, tensor in model.hf.state_dict().items() if ".mlp." not in name}
    missing = hf.load_state_dict(kept, strict=False)
    assert not missing.unexpected_keys and all("block_sparse_moe" in name for name in missing.missing_keys), missing
    return hf


def _fill(dense: Any, sparse: Any, inputs: Tensor, cut: Cut) -> None:
    """One layer: neurons to experts, then a router for them. Writes into ``sparse``."""
    import torch

    gate, up, down = (getattr(dense, f"{name}_proj").weight.detach().float().cpu() for name in ("gate", "up", "down"))
    acts = torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)  # [tokens, neuron]
    strength = acts.abs() * down.norm(dim=0)
    groups = balanced_groups(strength.T.contiguous(), cut.n_experts, cut.seed)
    for expert, neurons in enumerate(groups):
        sparse.experts.gate_up_proj[expert] = torch.cat([gate[neurons], up[neurons]])
        sparse.experts.down_proj[expert] = cut.k * down[:, neurons]
    written = torch.stack([strength[:, neurons].square().sum(1).sqrt() for neurons in groups], dim=1)
    sparse.router.weight.copy_(_TEMPERATURE * _ridge(inputs, written).T)


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """``[d_model, expert]``: linear map without a constant (the router has none)."""
    import torch

    square = inputs.T.double() @ inputs.double()
    square += _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    return torch.linalg.solve(square, inputs.T.double() @ targets.double()).float()


def balanced_groups(patterns: Tensor, n_groups: int, seed: int) -> list[Tensor]:
    """Neurons in groups of equal size whose patterns ``[neuron, token]`` are alike: k-means with an exact assignment to places.

    Returns the neurons of each group, in order.
    """
    import torch
    from scipy.optimize import linear_sum_assignment

    size = len(patterns) // n_groups
    # Directions in a few random axes: distances are kept, and the assignment is what takes the time.
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(patterns - patterns.mean(dim=1, keepdim=True), dim=1)
    axes = torch.randn(unit.shape[1], min(256, unit.shape[1]), generator=generator)
    points = torch.nn.functional.normalize(unit @ axes, dim=1)
    centres = points[torch.randperm(len(points), generator=generator)[:n_groups]]
    owner = torch.zeros(len(points), dtype=torch.long)
    for _ in range(_ROUNDS):
        cost = -(points @ centres.T).double().numpy().repeat(size, axis=1)  # [neuron, place]
        _, places = linear_sum_assignment(cost)
        found = torch.from_numpy(places) // size
        if torch.equal(found, owner):
            break
        owner = found
        centres = torch.stack([points[owner == group].mean(dim=0) for group in range(n_groups)])
    return [(owner == group).nonzero().flatten() for group in range(n_groups)]


def _losses(model: Model, texts: Sequence[str]) -> tuple[list[float], int]:
    """Summed next-token losses of each text, and the number of tokens predicted."""
    import torch

    losses: list[float] = []
    count = 0
    with torch.no_grad():
        for text in texts:
            ids = _ids(model, text)
            logits: torch.Tensor = model.hf(input_ids=ids, use_cache=False).logits[0, :-1].float()
            losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")))
            count += int(ids.shape[1]) - 1
    return losses, count
