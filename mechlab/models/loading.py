"""One door for every model: a hub id, a folder, a GGUF file, the default, and the random twin of any of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mechlab.errors import ModelError
from mechlab.models.default import DEFAULT_MODEL, Progress, default_model_folder
from mechlab.models.gguf_file import read_gguf
from mechlab.models.model import Model
from mechlab.models.moefy_model import MOEFIED, moefied_folder
from mechlab.models.placement import choose_device, choose_dtype
from mechlab.models.pretrained import Origin, read_pretrained
from mechlab.models.trained_moe import TRAINED_MOE, trained_moe_folder
from mechlab.models.twin import random_twin

if TYPE_CHECKING:
    import torch


BUILT = {TRAINED_MOE: trained_moe_folder, MOEFIED: moefied_folder}
"""Names of models that are made here, once, and the function that gives their folder."""


class Request(NamedTuple):
    """What the user typed, in its two parts."""

    base: str
    seed: int | None
    """Of the random twin; None for the trained model."""


def load(
    name_or_path: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Load a causal language model with its tokenizer, in eval mode and without gradients.

    `name_or_path`: a Hugging Face hub id, a folder with safetensors, a `.gguf` file, or 'smollm2-135m' (the default,
    fetched once and kept in our cache), or a model made here (BUILT); with '@random' or '@random:SEED' at its end, the
    random-weight twin of that model.
    `device`: 'auto' (cuda, else mps, else cpu), 'cpu', 'cuda', 'cuda:N' or 'mps'. `dtype`: 'float32', 'bfloat16' or
    'float16'.
    `revision`: a branch, tag or commit, for hub ids. `trust_remote_code`: run code that comes with the model; never
    unless asked.
    `progress`: told each stage while the default model is fetched, or a model is made here.

    Only safetensors (and GGUF) are read, never pickle. Raises ModelError when the model cannot be found, read or
    verified, or when a weight is missing or not finite; UnknownName for a dtype that is not listed.
    """
    request = parse_request(name_or_path)
    place, precision = choose_device(device), choose_dtype(dtype)
    path = Path(request.base).expanduser()
    if request.base.endswith(".gguf"):
        source, (hf, tokenizer) = str(path), read_gguf(path, precision)
    elif request.base == DEFAULT_MODEL:
        folder = default_model_folder(progress)
        source, (hf, tokenizer) = "default", read_pretrained(Origin(str(folder)), precision)
    elif request.base in BUILT:
        folder = BUILT[request.base](progress)
        source, (hf, tokenizer) = request.base, read_pretrained(Origin(str(folder)), precision)
    else:
        origin = Origin(str(path) if path.is_dir() else request.base, revision, trust_remote_code)
        source, (hf, tokenizer) = origin.place, read_pretrained(origin, precision)
    check_finite(request.base, hf)
    model = Model(request.base, source, hf.to(place), tokenizer)  # pyright: ignore[reportArgumentType]
    return model if request.seed is None else random_twin(model, request.seed)


def parse_request(text: str) -> Request:
    """Split 'NAME', 'NAME@random' (seed 0) or 'NAME@random:SEED'. Raises ModelError for no name, or for a seed that is no number."""
    if not text.strip():
        raise ModelError(
            f"No model is named: expected a hub id, a folder or a .gguf file; give one, or {DEFAULT_MODEL!r}."
        )
    base, mark, seed = text.partition("@random")
    if not mark:
        return Request(text, None)
    if not re.fullmatch(r"(:\d+)?", seed):
        raise ModelError(
            f"Cannot read the seed in {text!r}: expected '@random' or '@random:SEED', such as {base + '@random:7'!r}."
        )
    return Request(base, int(seed[1:] or 0))


def check_finite(name: str, hf: torch.nn.Module) -> None:
    """Raise ModelError, naming the first bad tensor, unless every floating parameter is free of NaN and infinity."""
    for tensor_name, tensor in hf.named_parameters():
        if not tensor.is_floating_point() or tensor.isfinite().all():
            continue
        n_nan, n_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise ModelError(
            f"The weights of {name!r} are damaged: {tensor_name} holds {n_nan} NaN and {n_inf} infinite entries; "
            "expected none; download the model again, or load it in a wider dtype."
        )
