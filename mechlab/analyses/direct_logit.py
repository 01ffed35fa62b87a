"""Direct logit attribution: what each part adds to the logit difference through the unembedding alone.

The final residual stream is a sum of parts, and the final norm is linear in it once its scale is held at the value of the run. So the
logit difference (before any soft cap or division of the logits) splits exactly into one term per part: the norm's weights times the part,
divided by the scale, along the difference of the answer's and foil's unembedding vectors. Elhage et al. 2021; nostalgebraist 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mechlab.lens.edit import Edit
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens, Run
from mechlab.lens.site import Site
from mechlab.patching.task import Task

__all__ = ["DirectLogit", "direct_logit"]


@dataclass(frozen=True, eq=False)
class DirectLogit:
    """Terms of the logit difference at the last token, in logits.

    Attributes:
        heads: ``[batch, layer, head]`` through the output projection.
        mlps: ``[batch, layer]``.
        rest: ``[batch]``: embeddings and biases (of attention outputs, the final norm and the unembedding).
        total: ``[batch]`` logit difference before any soft cap or division of the logits (Granite): the sum of all terms.
    """

    heads: Tensor
    mlps: Tensor
    rest: Tensor
    total: Tensor


def direct_logit(lens: Lens, task: Task, edits: Sequence[Edit] = ()) -> DirectLogit:
    """Splits the clean prompts' logit difference, in the model as it is or under ``edits``, into heads, MLPs and the rest.

    In families with a norm after attention (Gemma-2, OLMo-2) that norm is held at its scale too.
    """
    layers = range(lens.model.n_layers)
    kinds = ("result", "attn_out", "mlp_out")
    read = [Site(kind, layer, pos=-1) for layer in layers for kind in kinds]
    final = Site("resid_post", lens.model.n_layers - 1, pos=-1)
    run = lens.run(task.clean, edits, read=[*read, final], logits="last")
    direction, constant = _unembedding(lens.layout.unembed, task)
    toward = through_norm(lens.layout.final_norm, run[final], direction)
    heads = torch.stack([_heads(lens, run, layer) @ toward[:, :, None] for layer in layers], dim=1).squeeze(-1)
    mlps = _stacked(run, "mlp_out", layers, toward)
    total = (lens.layout.final_norm(run[final]).float() * direction).sum(-1) + constant
    return DirectLogit(heads, mlps, total - heads.sum((1, 2)) - mlps.sum(1), total)


def _stacked(run: Run, kind: str, layers: Sequence[int], toward: Tensor) -> Tensor:
    return torch.stack([(run[Site(kind, layer, pos=-1)].float() * toward).sum(-1) for layer in layers], dim=1)


def _unembedding(unembed: nn.Module, task: Task) -> tuple[Tensor, Tensor]:
    """``[batch, d_model]`` answer minus (mean) foil direction, and the difference of their biases ``[batch]``."""
    weight = output_weight(unembed).T.float()
    foils = task.foils if task.foils.ndim == 2 else task.foils[:, None]
    direction = weight[task.answers.to(weight.device)] - weight[foils.to(weight.device)].mean(dim=1)
    bias = getattr(unembed, "bias", None)
    if bias is None:
        return direction, torch.zeros(len(task.answers), device=weight.device)
    return direction, (bias[task.answers] - bias[foils].mean(dim=1)).float()


def through_norm(norm: nn.Module, residual: Tensor, direction: Tensor) -> Tensor:
    """The vector ``u`` with ``u . part`` = what ``part`` of ``residual`` adds along ``direction`` after the norm, its scale held."""
    x = residual.float()
    if isinstance(norm, nn.LayerNorm):
        scaled = direction * norm.weight.float() / torch.sqrt(x.var(dim=-1, keepdim=True, unbiased=False) + norm.eps)
        return scaled - scaled.mean(dim=-1, keepdim=True)  # centring a part = centring the direction
    # RMS norms differ in how they store their weight (Gemma adds 1): what one does to a vector of ones is the weight itself.
    weight = norm(torch.ones_like(residual[:1])).float()
    return direction * weight / x.pow(2).mean(dim=-1, keepdim=True).sqrt()


def _heads(lens: Lens, run: Run, layer: int) -> Tensor:
    """``[batch, head, d_model]`` head contributions to the residual stream, through a post-norm where the family has one."""
    result = run[Site("result", layer, pos=-1)].float()
    block = lens.layout.blocks[layer]
    if block.attn_out is block.attn:
        return result
    weight = block.attn_out(torch.ones_like(run[Site("attn_out", layer, pos=-1)][:1])).float()
    bias = getattr(block.attn_proj, "bias", None)
    before = result.sum(dim=1) + (0 if bias is None else bias.float())
    scale = before.pow(2).mean(dim=-1, keepdim=True).sqrt()
    return result * (weight / scale)[:, None, :]
