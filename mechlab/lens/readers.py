"""Which part of which linear map makes each head's queries, keys and values.

Families write them as three maps or as one, side by side or interleaved. Nothing about that is written here: it is asked of the model, by
one forward pass over one token and the derivative of each head's query, key and value with respect to the outputs of the linear maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mechlab.errors import SiteError
from mechlab.lens.apply import Window
from mechlab.lens.hooks import installed, intercepted, make_taps
from mechlab.lens.layout import Block, output_weight
from mechlab.lens.site import Site

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

KINDS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Reader:
    """One input of one head: columns ``part`` of what ``module`` gives from the normed residual stream."""

    module: nn.Module
    part: slice

    @property
    def weight(self) -> Tensor:
        """``[d_model, n]``, a view of the model's own."""
        return output_weight(self.module)[:, self.part]

    @property
    def bias(self) -> Tensor | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias[self.part]


LayerReaders = Mapping[str, tuple[Reader, ...]]  # "q", "k", "v" -> one reader per head (KV head)


def readers(lens: "Lens") -> list[LayerReaders]:
    """The readers of every layer, for those who take the residual stream to be a sum over senders (weighted edges, edge attribution).

    Where a norm stands between the sum of heads and the stream, a head's share of the stream is no fixed map of what it writes: such
    families are refused here. Edges patched one at a time, or as a set, need no such sum: see ``mechlab.patching.edges``.

    Raises:
        SiteError: a layer whose heads do not read, or do not add to, the residual stream one by one: a norm after attention or MLP
            (Gemma-2/3, OLMo-2), or queries of all heads normed together (OLMoE). Also as ``check_writes``.
    """
    check_writes(lens)
    for layer, block in enumerate(lens.layout.blocks):
        _check_norms(lens.model.name, layer, block)
    made, heads = _probe(lens)
    found: list[LayerReaders] = []
    for layer, block in enumerate(lens.layout.blocks):
        outputs = {module: made[module] for module in _maps(block)}
        names = {kind: f"of layer {layer} of {lens.model.name}" for kind in KINDS}
        found.append(
            {
                kind: tuple(
                    _reader(f"{kind} {i} {names[kind]}", one, outputs) for i, one in enumerate(heads[kind, layer])
                )
                for kind in KINDS
            }
        )
    return found


def check_writes(lens: "Lens") -> None:
    """Raises SiteError where a block does something else than add what attention and MLP write: edges would not carry what is read."""
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    layers = range(lens.model.n_layers)
    tokens = lens.tokens([[lens.model.vocab_size - 1]])
    run = lens.run(tokens, read=[Site(kind, layer) for layer in layers for kind in kinds], logits="none")
    for layer in layers:
        before, attention, mlp, after = parts = [run[Site(kind, layer)] for kind in kinds]
        rounding = 4 * torch.finfo(after.dtype).eps * max(float(part.abs().max()) for part in parts)
        if float((before + attention + mlp - after).abs().max()) > rounding:
            raise SiteError(
                f"Layer {layer} of {lens.model.name} adds something else to the residual stream than what its attention and MLP give "
                "it, so edges do not carry what is read: patch nodes or paths instead of edges."
            )


def _check_norms(name: str, layer: int, block: Block) -> None:
    if block.attn_out is not block.attn or block.mlp_out is not block.mlp or block.ln1 is None or block.ln2 is None:
        raise SiteError(
            f"Layer {layer} of {name} has a norm after attention or MLP, so its parts do not add to the residual stream separately: "
            "score nodes instead of edges (lens.effects), or patch edges exactly (lens.edge_effects)."
        )


def _maps(block: Block) -> list[nn.Module]:
    """The linear maps inside attention, but for the one that writes its output."""
    return [m for m in block.attn.modules() if _is_linear(m) and m is not block.attn_proj]


def _probe(lens: "Lens") -> tuple[dict[nn.Module, Tensor], dict[tuple[str, int], Tensor]]:
    """For one token: what each linear map inside attention gives, and the queries, keys and values ``[head, d_head]`` made of it."""
    tokens = lens.tokens([[lens.model.vocab_size - 1]])
    made: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, output: Tensor) -> Tensor:
        made[module] = output.detach().requires_grad_()
        return made[module]

    maps = [(module, partial(keep, module)) for block in lens.layout.blocks for module in _maps(block)]
    sites = [Site(kind, layer) for layer in range(lens.model.n_layers) for kind in KINDS]
    taps = make_taps(Window(tokens, (0,), 1), (), sites)
    with torch.enable_grad(), intercepted(outputs=maps), installed(lens.layout, lens.model.hf, taps):
        lens.model.hf(input_ids=tokens.ids.to(lens.model.device), use_cache=False)
    return made, {(tap.kind, tap.layer or 0): tap.kept[0, 0] for tap in taps if tap.kept is not None}


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2


def _reader(what: str, head: Tensor, outputs: Mapping[nn.Module, Tensor]) -> Reader:
    """``head`` ``[d_head]``: the linear map it comes from, and the columns."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(head.shape, generator=generator).to(head)
    with torch.enable_grad():
        along = (head * direction).sum()
    slopes = torch.autograd.grad(along, list(outputs.values()), retain_graph=True, allow_unused=True)
    touched = [(m, s.flatten().nonzero().flatten()) for m, s in zip(outputs, slopes, strict=True) if s is not None]  # pyright: ignore[reportUnnecessaryComparison]
    touched = [(module, columns) for module, columns in touched if len(columns)]
    separate = len(touched) == 1 and len(touched[0][1]) == len(head)
    if not separate or int(touched[0][1][-1] - touched[0][1][0]) != len(head) - 1:
        raise SiteError(
            f"{what} is not made from columns of its own (heads are normed or mixed together), so it has no input of its own: "
            "score nodes instead of edges."
        )
    module, columns = touched[0]
    return Reader(module, slice(int(columns[0]), int(columns[-1]) + 1))
