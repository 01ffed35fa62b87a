"""Where models come from. Names are imported on first use, so that importing this package does not import torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechlab.models.cache import CachedModel, cache_root, cached_models
    from mechlab.models.default import DEFAULT_MODEL, default_model_folder
    from mechlab.models.loading import load
    from mechlab.models.model import Model
    from mechlab.models.moefy_model import Cut, moefy, save_moefied
    from mechlab.models.planted import (
        PLANTED_INDUCTION,
        PLANTED_INDUCTION_EDGES,
        PLANTED_PREVIOUS_TOKEN,
        planted_induction,
    )
    from mechlab.models.planted_circuits import PLANTED, planted_copy, planted_gate, planted_relay
    from mechlab.models.planted_llama import planted_grouped
    from mechlab.models.planted_moe import planted_experts
    from mechlab.models.planting import Planted
    from mechlab.models.tiny_models import EXPERT_FAMILIES, FAMILIES, tiny
    from mechlab.models.twin import random_twin

__all__ = [
    "DEFAULT_MODEL",
    "EXPERT_FAMILIES",
    "FAMILIES",
    "PLANTED",
    "PLANTED_INDUCTION",
    "PLANTED_INDUCTION_EDGES",
    "PLANTED_PREVIOUS_TOKEN",
    "CachedModel",
    "Cut",
    "Model",
    "Planted",
    "cache_root",
    "cached_models",
    "default_model_folder",
    "load",
    "moefy",
    "planted_copy",
    "planted_experts",
    "planted_gate",
    "planted_grouped",
    "planted_induction",
    "planted_relay",
    "random_twin",
    "save_moefied",
    "tiny",
]

# no file bears the name of a function here: importing it would put the module in the function's place
_FILES = {
    "cache": ("CachedModel", "cache_root", "cached_models"),
    "default": ("DEFAULT_MODEL", "default_model_folder"),
    "loading": ("load",),
    "model": ("Model",),
    "moefy_model": ("Cut", "moefy", "save_moefied"),
    "planted": ("PLANTED_INDUCTION", "PLANTED_INDUCTION_EDGES", "PLANTED_PREVIOUS_TOKEN", "planted_induction"),
    "planted_circuits": ("PLANTED", "planted_copy", "planted_gate", "planted_relay"),
    "planted_llama": ("planted_grouped",),
    "planted_moe": ("planted_experts",),
    "planting": ("Planted",),
    "tiny_models": ("EXPERT_FAMILIES", "FAMILIES", "tiny"),
    "twin": ("random_twin",),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return getattr(importlib.import_module(f"mechlab.models.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
