"""One MLP alone: which inputs does it turn into the sink direction?

After Wong et al., arXiv 2512.22213: the inputs ``x`` of the MLP at the creation layer (after its norm) over sink tokens are centred; each
principal component, scaled and with either sign, is pushed through that MLP alone. A component counts as mapped when |cos| of the result
with the MLP's mean output at sink tokens is above a bound (0.98). Many orthogonal directions that are all mapped mean that the MLP
collapses a whole subspace onto one vector.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechlab.analyses.sinks import Floats, cosine
from mechlab.lens.layout import first_tensor
from mechlab.lens.lens import Lens


@dataclass(frozen=True, eq=False)
class Mapped:
    """What an MLP does with principal components of its inputs at sink tokens.

    Attributes:
        explained: ``[component]`` share of the inputs' variance.
        plus, minus: ``[component]`` cosine of the MLP's output with the sink direction, for the component with each sign.
        random: ``[draw, component]`` the larger |cos| of both signs, for random orthogonal directions of the same length.
        other: ``[component]`` the same for the components in the MLP of another layer.
        n: sink tokens behind the components.
    """

    explained: Floats
    plus: Floats
    minus: Floats
    random: Floats
    other: Floats
    n: int

    @property
    def strongest(self) -> Floats:
        """``[component]`` the larger |cos| of both signs."""
        return np.maximum(np.abs(self.plus), np.abs(self.minus))


def mlp_alone(lens: Lens, layer: int, inputs: Tensor) -> Tensor:
    """``[n, d_model]`` inputs (after the norm) -> what that layer's MLP would add to the stream, a norm after it included."""
    block = lens.layout.blocks[layer]
    with torch.no_grad():
        out = first_tensor(block.mlp(inputs[None].to(lens.model.device, lens.model.dtype)))
        assert out is not None, f"the MLP of layer {layer} returned no tensor"
        return (out * block.scale if block.mlp_out is block.mlp else block.mlp_out(out))[0].float().cpu()


def mapped_components(
    lens: Lens, layer: int, other_layer: int, inputs: Tensor, outputs: Tensor, components: int, draws: int, seed: int
) -> Mapped | None:
    """Pushes principal components through the MLPs of ``layer`` and ``other_layer``.

    Args:
        inputs, outputs: ``[n, d_model]`` of the MLP at sink tokens.
        components: at most this many; fewer where there are fewer tokens.

    Returns:
        None with fewer than three tokens, or equal ones: they have no components.
    """
    centred = inputs.float().cpu() - inputs.float().cpu().mean(dim=0)
    if len(inputs) < 3 or float(centred.norm()) <= 1e-6 * float(inputs.norm()):
        return None
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    count = min(components, int((sizes > 1e-5 * sizes[0]).sum()))
    length = float(inputs.float().norm(dim=-1).mean())
    target = outputs.float().cpu().mean(dim=0)
    variance = sizes**2 / (sizes**2).sum()

    def both(at: int, directions: Tensor) -> tuple[Floats, Floats]:
        plus, minus = (
            cosine(mlp_alone(lens, at, sign * length * directions), target).double().numpy() for sign in (1, -1)
        )
        return plus, minus

    plus, minus = both(layer, axes[:count])
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        np.abs(both(layer, torch.linalg.qr(torch.randn(axes.shape[1], count, generator=generator))[0].T)).max(axis=0)
        for _ in range(draws)
    ]
    other = np.abs(both(other_layer, axes[:count])).max(axis=0)
    return Mapped(variance[:count].double().numpy(), plus, minus, np.stack(drawn), other, len(inputs))
