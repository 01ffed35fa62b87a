"""Matrix products of float32 on CPUs, by oneDNN.

PyTorch gives them to the BLAS it was built with: MKL in its own wheels, which on CPUs it was not made for leaves a quarter to two thirds of
the speed unused (the fewer tokens, the more). oneDNN, which the same wheels carry, does not. Both round in float32 and sum in another
order, so results agree up to rounding and not to the bit: what promises bits (``Lens.run``) leaves it out, and the exact engine and
attribution take it. ``make bench-patching`` states the speed of both.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_FEWEST = 8  # rows: with fewer a product is hardly more than one read of the weights, which BLAS does as well


class OneDnn(TorchFunctionMode):
    """Within it, linear maps on CPUs in float32 are computed by oneDNN: ``nn.Linear``'s, fused experts', those of GPT-2's ``Conv1D``.

    Weights must be frozen: gradients go to what a map reads, and not through them a second time. Maps whose weights want gradients, and all
    maps where this PyTorch has no oneDNN, are left as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is nn.functional.linear:
            return product(*args, **named)
        if func is torch.addmm and not named and args[0].ndim == 1:
            bias, x, weight = args
            return product(x, weight.t(), bias)
        return func(*args, **named)


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input [..., d_in]`` times ``weight [d_out, d_in]``, plus the bias: ``nn.functional.linear``, by oneDNN where that can be."""
    if _fits(input, weight, bias):
        if not torch.is_grad_enabled():
            return _by_onednn(input, weight, bias)
        return _Product.apply(input, weight, bias)  # pyright: ignore[reportReturnType]
    return nn.functional.linear(input, weight, bias)


def available() -> bool:
    """Whether this PyTorch carries oneDNN and gives access to single products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)  # quantised weights know their own product
        and weight.ndim == 2
        and x.numel() >= _FEWEST * weight.shape[1]
        and not (torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)))
        and available()
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slope: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (of the decorator)
        (weight,) = ctx.saved_tensors
        return _by_onednn(slope[0], weight.t(), None), None, None


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # pyright: ignore[reportPrivateUsage]
