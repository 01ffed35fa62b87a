"""Where sites live in a model that is not here: a checkpoint too large for this machine, held by an NDIF server.

Its configuration and tokenizer are read; its weights are not. Its modules are built without storage (the meta device). What the layout
asks of a running model (which norm comes where, whether attention and MLP are parallel) is asked of a small random model of the same
configuration but for its sizes, and carried over by the modules' names.
"""

from __future__ import annotations

import copy
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from mechlab.errors import ModelError
from mechlab.lens.layout import Block, Layout, layout, output_weight
from mechlab.models.model import Model
from mechlab.models.tiny_models import FAMILIES, perturb_constants, tiny
from mechlab.models.twin import fresh

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

# What a small model's configuration has of its own; everything else is the large one's.
_SIZES = (
    "hidden_size",
    "n_embd",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "n_inner",
    "vocab_size",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "max_position_embeddings",
    "n_positions",
    "sliding_window",
    "layer_types",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def distant_layout(model: Model) -> Layout:
    """The layout of a model whose weights are absent (``model.hf`` on the meta device).

    Raises:
        ModelError: a family of which there is no small model.
    """
    kind = str(model.config.model_type).removesuffix("_text")
    if kind not in FAMILIES:
        raise ModelError(
            f"{model.name} is a {kind}, and its sites are not known without its weights: load it here, or use one of {', '.join(FAMILIES)}."
        )
    small = Model(model.name, "tiny", _small(model.config, tiny(kind).hf.config), model.tokenizer)
    paths: dict[nn.Module, str] = {module: path for path, module in small.hf.named_modules()}
    there: dict[str, Any] = dict(model.hf.named_modules())
    found = layout(small)

    def same(part: Any, layer: int) -> Any:
        if part not in paths:  # no module of this kind, or a number
            return part
        return there[re.sub(r"\.\d+(?=\.|$)", f".{layer}", paths[part], count=1)]

    last = len(found.blocks) - 1
    blocks = tuple(
        Block(**{field.name: same(getattr(found.blocks[min(i, last)], field.name), i) for field in fields(Block)})
        for i in range(model.n_layers)
    )
    down, router = blocks[0].down, next((block.router for block in blocks if block.router is not None), None)
    return replace(
        found,
        embed=same(found.embed, 0),
        blocks=blocks,
        final_norm=same(found.final_norm, 0),
        unembed=same(found.unembed, 0),
        n_heads=model.n_heads,
        n_kv_heads=model.n_kv_heads,
        d_head=model.d_head,
        d_model=model.d_model,
        d_mlp=None if down is None else int(output_weight(down).shape[0]),
        n_experts=None if router is None else int(router.num_experts),  # pyright: ignore[reportArgumentType]
        vocab_size=model.vocab_size,
    )


def _small(config: PreTrainedConfig, sizes: PreTrainedConfig) -> Any:
    """A random model of ``config`` with the sizes of ``sizes``."""
    import torch

    shrunk = copy.deepcopy(config)
    for name in _SIZES:
        if hasattr(shrunk, name) and hasattr(sizes, name):
            setattr(shrunk, name, copy.deepcopy(getattr(sizes, name)))
    hf = fresh(shrunk, torch.float32, 0)
    perturb_constants(hf, 0)  # fresh norms are alike: their outputs could not be told apart
    hf.config.architectures = [type(hf).__name__]
    return hf
