"""A model: a Hugging Face causal language model with its tokenizer, and a fingerprint of both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mechlab.errors import ModelError
from mechlab.models.fingerprint import fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Model:
    """What the rest of mechlab takes a model to be. Making one puts `hf` in eval mode and turns its gradients off.

    The sizes raise ModelError where the configuration has no such size (a model without attention, say).
    """

    name: str
    """What the user typed."""
    source: str
    """Hub id, folder, GGUF path, 'default', 'tiny' or 'planted'."""
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        self.hf.eval()
        self.hf.requires_grad_(False)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} layers, d_model {self.d_model}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the input embedding lies."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating parameter."""
        return self.hf.dtype

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the text model."""
        return self.hf.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return self._size("num_hidden_layers")

    @property
    def n_heads(self) -> int:
        """Query heads in a layer."""
        return self._size("num_attention_heads")

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads in a layer; fewer than `n_heads` under grouped-query attention."""
        return getattr(self.config, "num_key_value_heads", None) or self.n_heads

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return getattr(self.config, "head_dim", None) or self.d_model // self.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self._size("hidden_size")

    @property
    def vocab_size(self) -> int:
        """Number of logits; may exceed the tokenizer's vocabulary."""
        return self._size("vocab_size")

    @property
    def context_length(self) -> int:
        """The most tokens a prompt may have."""
        return self._size("max_position_embeddings")

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over configuration, weights and tokenizer, computed on first use: `mechlab.models.fingerprint`."""
        return fingerprint(self.hf, self.tokenizer)

    def _size(self, field: str) -> int:
        value = getattr(self.config, field, None)  # transformers maps other names (n_layer, n_positions) to these
        if not isinstance(value, int):
            raise ModelError(
                f"{self.name!r} has no {field} in its configuration: expected a decoder-only "
                "transformer; choose another model."
            )
        return value
