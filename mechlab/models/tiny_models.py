"""Tiny models of each family, made in code: three layers, random weights, every size different.

For tests and notebooks. The weights are larger than in training (std 0.2) so that attention patterns are far from
uniform and logits differ between prompts. Biases, norm weights and attention sinks, which start at a constant, are
drawn too: code that forgets one gives wrong numbers.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from mechlab.errors import UnknownName
from mechlab.models.model import Model
from mechlab.models.twin import fresh, seeded
from mechlab.models.words import SPECIAL, word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N_LAYERS, N_HEADS, N_KV_HEADS, D_MODEL, D_MLP, CONTEXT = 3, 4, 2, 64, 88, 96
D_HEAD = 10
"""Not D_MODEL / N_HEADS, in the families that leave it free."""
WINDOW = 6
NOISE_STD = 0.2

_GROUPED: dict[str, Any] = {"num_key_value_heads": N_KV_HEADS}
_WINDOWS: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_GEMMA: dict[str, Any] = {**_GROUPED, **_WINDOWS, "head_dim": D_HEAD, "query_pre_attn_scalar": 14}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": CONTEXT // 8,
}

# What attention and MLP give is multiplied before it is added: it is not what the residual stream gets.
_GRANITE: dict[str, Any] = {"attention_multiplier": 0.3, "residual_multiplier": 0.4}

_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": N_HEADS,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": D_HEAD,
    "moe_intermediate_size": 56,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}

_SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": D_MLP, "tie_word_embeddings": True},
    "gpt_neox": {},  # rotary on a quarter of each head; attention and MLP in parallel
    "llama": {**_GROUPED, "head_dim": D_HEAD},
    "qwen2": {**_GROUPED, **_WINDOWS, "use_sliding_window": True},
    "qwen3": {**_GROUPED, **_WINDOWS, "use_sliding_window": True, "head_dim": D_HEAD},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    "gemma3": {**_GEMMA, "tie_word_embeddings": True},
    "mistral": {**_GROUPED, "head_dim": D_HEAD, "sliding_window": WINDOW},
    "phi3": _GROUPED,
    "olmo2": _GROUPED,
    "granite": {**_GROUPED, **_GRANITE, "attention_bias": True, "mlp_bias": True},
    "mixtral": {**_GROUPED, "head_dim": D_HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_GROUPED,
        **_WINDOWS,
        "use_sliding_window": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 56,
        "shared_expert_intermediate_size": 72,
    },
    "gpt_oss": {
        **_GROUPED,
        **_WINDOWS,
        "head_dim": D_HEAD,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": _YARN,
    },
    "qwen3_moe": {
        **_GROUPED,
        "head_dim": D_HEAD,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 56,
        "norm_topk_prob": True,
    },
    "granitemoe": {**_GROUPED, **_GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {
        **_DEEPSEEK,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {
        **_DEEPSEEK,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
}

_ONLY_EXPERTS = ("qwen3_moe", "granitemoe", "deepseek_v2", "deepseek_v3")
"""Families that are here for their routers; the rest of each stands in FAMILIES under another name, or is DeepSeek's attention."""
FAMILIES = tuple(family for family in _SETTINGS if family not in _ONLY_EXPERTS)
EXPERT_FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "gpt_oss", *_ONLY_EXPERTS)
"""Those with experts. DeepSeek's first layer is dense, and its attention compresses keys and values."""


def tiny(family: str, seed: int = 0) -> Model:
    """A three-layer float32 model of `family` (one of FAMILIES or EXPERT_FAMILIES) on the CPU, with the word tokenizer; the same for the
    same seed.

    The global random state is untouched. Raises UnknownName for another family.
    """
    if family not in _SETTINGS:
        raise UnknownName("model family", family, _SETTINGS)
    import torch
    from transformers import AutoConfig

    tokenizer = word_tokenizer()
    bos, eos, pad, _ = range(len(SPECIAL))
    common = {
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "hidden_size": D_MODEL,
        "max_position_embeddings": CONTEXT,
        "vocab_size": len(tokenizer),
        "initializer_range": NOISE_STD,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    if family != "gpt2":
        common["intermediate_size"] = D_MLP
    kind = "gemma3_text" if family == "gemma3" else family
    config = AutoConfig.for_model(kind, **{**common, **copy.deepcopy(_SETTINGS[family])})
    hf = fresh(config, torch.float32, seed)
    hf.config.architectures = [type(hf).__name__]  # from_config leaves it out, and TransformerLens asks for it
    perturb_constants(hf, seed)
    return Model(f"tiny-{family}" if seed == 0 else f"tiny-{family}-{seed}", "tiny", hf, tokenizer)


def perturb_constants(hf: PreTrainedModel, seed: int) -> None:
    """Add noise to every bias, norm weight and sink, which a fresh model sets to 0 or 1, a router's buffer too. Changes `hf`."""
    import torch

    with seeded(seed), torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 1 or name.endswith("bias"):  # the biases of fused experts have two dimensions
                parameter.add_(torch.randn_like(parameter), alpha=NOISE_STD)
        for name, buffer in hf.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer), alpha=NOISE_STD)
