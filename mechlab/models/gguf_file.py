"""Models out of one GGUF file, de-quantised to plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechlab.errors import ModelError
from mechlab.models.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (weights of `dtype`, on the CPU) and the tokenizer in a GGUF file. Quantised tensors are de-quantised.

    Raises ModelError when the file is not GGUF, is cut short, or holds an architecture transformers cannot read.
    Source of the file format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    check_gguf(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(path.parent), path.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
            hf = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"transformers cannot read the GGUF file {str(path)!r} ({reason}): expected a decoder of a kind it knows; "
            "use the safetensors folder of this model instead."
        ) from error
    forget_quantisation(hf)
    hf.config.architectures = [type(hf).__name__]  # as a saved folder has it
    return hf, tokenizer


def check_gguf(path: Path) -> None:
    """Raise ModelError unless the file is GGUF and whole: its header parses and every tensor lies inside it."""
    if not path.is_file():
        raise ModelError(f"No GGUF file at {str(path)!r}: expected an existing .gguf file; check the path.")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{str(path)!r} is not a GGUF file: expected it to begin with 'GGUF'; check the path.")
    from gguf import GGUFReader

    try:
        GGUFReader(path)  # maps every tensor, so it fails on a file cut short anywhere
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"The GGUF file {str(path)!r} is cut short or damaged: expected a whole file, it has {path.stat().st_size} bytes; "
            "download it again."
        ) from error


def forget_quantisation(hf: PreTrainedModel) -> None:
    """Drop the marks that say the weights came from GGUF: they are plain now, and transformers will not save marked ones."""
    marked: Any = hf  # transformers sets these without declaring them
    if hasattr(marked.config, "quantization_config"):
        del marked.config.quantization_config
    marked.hf_quantizer = None
    marked.is_quantized = False
