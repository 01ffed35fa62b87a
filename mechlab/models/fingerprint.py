"""What a model is, in 16 hex digits: a hash over its configuration, its weights and its tokenizer.

Two loads of the same thing agree, on any device. One changed weight, token or setting does not. Loading in another
dtype is another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DIGITS = 16

# what depends on the place and the software of a load, or on what a call asks for, and not on the model;
# the dtype is hashed with each tensor
VOLATILE = {
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "_attn_implementation",
    "_experts_implementation",
    "attn_implementation",
    "experts_implementation",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
}


def fingerprint(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash tensor by tensor, so memory grows by the largest one only. About 1 s for each GB of weights."""
    digest = hashlib.sha256(_canonical(config_record(hf.config)))
    for name, tensor in distinct_tensors(hf):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    digest.update(_canonical(tokenizer_record(tokenizer)))
    return digest.hexdigest()[:DIGITS]


def config_record(config: PreTrainedConfig) -> dict[str, Any]:
    """The configuration without its volatile keys, at every depth."""
    return _drop(config.to_dict(), VOLATILE)


def tokenizer_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What turns text into ids: the backend (or the vocabulary, where there is none) and the chat template.

    Padding and truncation are left out: a call with `padding=True` writes them into the backend.
    """
    if tokenizer.is_fast:
        fast: Any = tokenizer  # the base class does not declare the backend
        backend = json.loads(fast.backend_tokenizer.to_str())
        text = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}
    else:
        text = tokenizer.get_vocab()
    return {"text": text, "chat_template": getattr(tokenizer, "chat_template", None)}


def distinct_tensors(hf: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of each parameter and saved buffer, in module order; of tied tensors the first name only."""
    seen: set[int] = set()
    for name, tensor in hf.state_dict(keep_vars=True).items():  # kept as they are, tied ones are the same object
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    # numpy has no bfloat16, so the bytes are read as such
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, default=str).encode()


def _drop(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {str(key): _drop(item, keys) for key, item in value.items() if key not in keys}
    if isinstance(value, list):
        return [_drop(item, keys) for item in value]
    return value
