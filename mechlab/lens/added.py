"""What a block adds to the residual stream, where it multiplies what attention and MLP give before it adds it (Granite)."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__: list[str] = []


def at_stream(tap: Callable[[Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """``tap``, which is to see and set what the stream gets, as a function of the module's own output, which is added ``scale`` times.

    Numbers that the tap leaves as they are keep the output's own bits: they are not divided again.
    """
    if scale == 1:
        return tap

    def through(output: Tensor) -> Tensor:
        added = output * scale
        new = tap(added)
        own = new / scale
        if not torch.is_grad_enabled():
            return torch.where(new == added, output, own)
        # The gradient goes through what the tap keeps; the difference of two near numbers is exact, so the sum is the output.
        return torch.where(new == added, own + (output - own).detach(), own)

    return through
