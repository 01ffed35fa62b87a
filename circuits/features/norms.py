"""Norms as constant linear maps: the gain and bias of their weights, and one number per token, frozen at what it was in a run.

    norm(x) = scale(x) * gain * (x - mean(x)) + bias      LayerNorm; RMS norms do not subtract the mean

Nothing about families is written here: gain, bias and whether the mean is taken out are asked of the module by a few made-up inputs. A
module that is no such norm is refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechlab.errors import SiteError

_LARGE = 64.0  # made-up inputs are so large that a norm's epsilon does not count


@dataclass(frozen=True, eq=False)
class NormForm:
    """What a norm's weights do: ``gain [d]``, ``bias [d]``, and whether the mean over dimensions is taken out first."""

    gain: Tensor
    bias: Tensor
    centred: bool

    def pull(self, vector: Tensor) -> Tensor:
        """``[..., d]``: of a direction after the norm, what it reads before it, but for the scale."""
        before = vector * self.gain
        return before - before.mean(dim=-1, keepdim=True) if self.centred else before

    def apply(self, stream: Tensor, scale: Tensor) -> Tensor:
        """``[..., d]`` after the norm, for a given scale ``[..., 1]``."""
        centred = stream - stream.mean(dim=-1, keepdim=True) if self.centred else stream
        return centred * scale * self.gain + self.bias


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm whose scale ``[pos]`` is a constant of each token."""

    form: NormForm
    scale: Tensor

    def __call__(self, stream: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        """``[batch, pos, d]`` before the norm -> after it."""
        return self.form.apply(stream, self.scale[:, None])

    def pull(self, vector: Tensor, pos: int) -> Tensor:
        """A direction after the norm at token ``pos`` -> before it, ``[..., d]``."""
        return self.form.pull(vector) * self.scale[pos]


@torch.no_grad()
def norm_form(norm: nn.Module, d: int, name: str) -> NormForm:
    """Gain, bias and centring of a norm over ``d`` dimensions. ``name`` is how an error calls it.

    Raises:
        SiteError: a module that is neither a LayerNorm nor an RMS norm.
    """
    like = next(norm.parameters(), torch.zeros(1))
    signs = torch.ones(d, dtype=torch.float64)
    signs[1::2] = -1
    if d % 2:  # the mean of the inputs must be zero
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0]) if d > 1 else 1.0
    probe = (_LARGE * signs / signs.square().mean().sqrt()).to(like)[None, None]
    up, down, raised = (norm(x).double()[0, 0] for x in (probe, -probe, probe + _LARGE))
    bias = (up + down) / 2
    gain = (up - bias) / (signs.to(up) / signs.square().mean().sqrt().to(up))
    form = NormForm(
        gain.to(like), bias.to(like), torch.allclose(up, raised, rtol=1e-2, atol=1e-3 * float(gain.abs().max()))
    )
    generator = torch.Generator().manual_seed(0)
    other = (_LARGE * torch.randn(1, 2, d, generator=generator)).to(like)
    freeze_norm(form, other, norm(other), name)
    return form


@torch.no_grad()
def freeze_norm(form: NormForm, before: Tensor, after: Tensor, name: str) -> FrozenNorm:
    """The norm as it was where ``before`` became ``after`` (both ``[1, pos, d]``).

    Raises:
        SiteError: no constant per token makes the one from the other.
    """
    wide = before.double()[0]
    wide = wide - wide.mean(dim=-1, keepdim=True) if form.centred else wide
    shape, result = wide * form.gain.double(), after.double()[0] - form.bias.double()
    scale = (shape * result).sum(-1) / shape.square().sum(-1).clamp_min(1e-300)
    left = (result - scale[:, None] * shape).norm(dim=-1) / result.norm(dim=-1).clamp_min(1e-12)
    tolerance = 1e-4 if before.dtype == torch.float32 else 5e-2
    if float(left.max()) > tolerance:
        raise SiteError(
            f"{name} is no norm that one number per token describes ({float(left.max()):.1e} of its output is left over): "
            "circuits of features need LayerNorm or RMS norm."
        )
    return FrozenNorm(form, scale.to(before))
