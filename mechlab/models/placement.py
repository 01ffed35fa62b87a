"""Where the weights go and how precise they are: the words a user types, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechlab.errors import ModelError, UnknownName

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype for 'float32', 'bfloat16' or 'float16' (or that dtype itself). Raises UnknownName otherwise."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnknownName("dtype", name, DTYPES)
    return getattr(torch, name)


def choose_device(device: str) -> torch.device:
    """The torch device for 'auto' (cuda, else mps, else cpu), 'cpu', 'cuda', 'cuda:N' or 'mps'.

    Raises ModelError when it is none of these or this machine lacks it.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in there or (index and not index.isdecimal()):
        raise ModelError(
            f"Unknown device {device!r}: expected auto, cpu, cuda, cuda:N or mps; use auto to let mechlab choose."
        )
    if int(index or 0) >= there[kind]:
        raise ModelError(
            f"Device {device!r} is not on this machine: torch sees {there[kind]} {kind} here; use auto or cpu."
        )
    return torch.device(device)
