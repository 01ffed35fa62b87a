"""Models in Hugging Face form, from a folder or the hub: safetensors only, every weight present, failures in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mechlab.errors import ModelError
from mechlab.models.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERT = "convert it to safetensors (`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` on a machine that trusts it)"


class Origin(NamedTuple):
    """Where a model comes from and how far it is trusted."""

    place: str
    """A folder or a hub id."""
    revision: str | None = None
    trust_remote_code: bool = False


def read_pretrained(origin: Origin, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (weights of `dtype`, on the CPU) and the tokenizer at `origin`.

    Raises ModelError when it is not there, holds no safetensors, lacks weights, wants its own code run, or is of a kind
    unknown here.
    """
    check_place(origin.place)
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trust = {"revision": origin.revision or "main", "trust_remote_code": origin.trust_remote_code}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                origin.place, dtype=dtype, use_safetensors=True, output_loading_info=True, **trust
            )
            tokenizer = AutoTokenizer.from_pretrained(origin.place, **trust)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise explain(error, origin.place) from error
    hf, info = loaded
    if info["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"The weights of {origin.place!r} are incomplete: {len(missing)} tensors are missing, first {missing[0]!r}; "
            "expected all of them; download or convert the model again."
        )
    return hf, tokenizer


def check_place(place: str) -> None:
    """Raise ModelError for a path that is not a folder with a configuration and safetensors. Hub ids pass."""
    path = Path(place)
    if not path.is_dir():
        if path.is_file() or place.startswith((".", "/", "~")):
            raise ModelError(
                f"No model folder at {place!r}: expected a folder, a .gguf file or a hub id; check the path."
            )
        return
    if not (path / "config.json").is_file():
        raise ModelError(
            f"The folder {place!r} has no config.json: expected a Hugging Face model folder; check the path."
        )
    if next(path.glob("*.safetensors"), None) is None:
        raise ModelError(
            f"The folder {place!r} has no safetensors weights, and pickled ones are never read; {CONVERT}."
        )


def explain(error: Exception, place: str) -> ModelError:
    """The sentence for what transformers raised while it read `place`. It is told apart by its words: the types say little."""
    text = str(error)
    reason = next((line for line in text.splitlines() if line.strip()), type(error).__name__).strip()
    if "trust_remote_code" in text:
        return ModelError(
            f"The model {place!r} comes with its own code, which mechlab runs only when asked: read that code, then pass "
            "--trust-remote-code (trust_remote_code=True)."
        )
    if "gated" in text.lower():
        return ModelError(
            f"The model {place!r} is gated: accept its terms on the hub, then log in with `hf auth login`."
        )
    if "ignore_mismatched_sizes" in text:
        reason = "its weights do not have the shapes that its config.json gives"
    elif "tokenizer" in text.lower():
        reason = "its tokenizer is missing, or needs a package that is not installed"
    if Path(place).is_dir():
        return ModelError(
            f"transformers cannot read the model folder {place!r} ({reason}): expected a causal language model."
        )
    if "safetensors" in text:
        return ModelError(
            f"The model {place!r} has no safetensors weights, and pickled ones are never read; {CONVERT}."
        )
    if isinstance(error, OSError):
        return ModelError(
            f"Cannot find the model {place!r} ({reason}): expected a hub id that exists and can be reached or is already cached; "
            "check the spelling, the network and HF_HUB_OFFLINE, give a local folder, or use the default 'smollm2-135m'."
        )
    return ModelError(
        f"transformers cannot load {place!r} ({reason}): expected a causal language model; choose another model."
    )
