"""Gradients of a metric where every receiver reads, in one or several runs at once: what edge attribution multiplies with differences.

Kept are gradients at the outputs of the query, key and value maps, not at what each head reads, and each sublayer's output in compact form.

Two things are not computed, and change no number. With few tokens most of a pass goes into reading the weights, whatever the number of
rows: the corrupted prompts can go forward with the clean ones (``beside``). And no gradient goes back through a linear map at those rows,
nor before the first position at which anything differs (``start``): a position's gradient comes from itself and from later ones.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuits.prepared import Parts
from circuits.wiring import Wiring
from mechlab.lens.hooks import intercepted
from mechlab.lens.layout import Block, unembed_into
from mechlab.lens.products import OneDnn, product
from mechlab.lens.readers import KINDS
from mechlab.lens.tokens import Tokens

Scalar = Callable[[Tensor], Tensor]  # logits [runs * n, tokens] at the last tokens -> [runs * n]
Hook = tuple[nn.Module, Callable[[Tensor], Tensor]]


@dataclass(frozen=True, eq=False)
class Override:
    """Runs that differ from the clean one in what one sublayer writes.

    Attributes:
        kind: ``"embed"``, ``"z"`` or ``"mlp"``, in ``layer``.
        values: ``[runs, n, pos, ...]``.
    """

    kind: str
    layer: int
    values: Tensor


@dataclass(frozen=True, eq=False)
class Slopes:
    """Gradients of the metric in some runs, all ``[runs, n, pos, ...]``; before ``start`` they mean nothing.

    Attributes:
        metric: ``[runs, n]``.
        maps: linear map inside attention -> at its output.
        streams: per layer what the norm before attention read.
        mlp: per layer, at what the norm before the MLP read.
        final: at what the final norm read.
        written: what every sender wrote, ``[runs * n, pos, ...]``.
        beside: the same of the prompts beside these, ``[m, pos, ...]``.
    """

    metric: Tensor
    maps: Mapping[nn.Module, Tensor]
    streams: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    final: Tensor
    written: Parts
    beside: Parts | None


@dataclass(eq=False)
class _Kept:
    """What one run leaves: tensors of the graph whose slopes are wanted, by map or (place, layer); what was read and written."""

    maps: dict[nn.Module, Tensor] = field(default_factory=dict)
    wanted: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    streams: dict[int, Tensor] = field(default_factory=dict)
    written: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def parts(self, n_layers: int, heads: tuple[int, int]) -> Parts:
        z, mlp = ([self.written[kind, layer] for layer in range(n_layers)] for kind in ("z", "mlp"))
        return Parts(self.written["embed", 0], tuple(one.unflatten(-1, heads) for one in z), tuple(mlp))


def slopes(
    wiring: Wiring,
    tokens: Tokens,
    metric: Scalar,
    override: Override | None = None,
    *,
    token_ids: Tensor | None = None,
    beside: Tensor | None = None,
    start: int = 0,
) -> Slopes:
    """One forward and one backward pass over all runs of ``override`` (without one: a single run, as it is).

    Args:
        metric: reads the logits of ``token_ids``, or of the whole vocabulary without them.
        beside: ``[m, pos]`` ids of prompts that share the forward pass; what they write is kept. Not with an override.
        start: the first position whose gradients are wanted; the others are saved work only where tokens are few.
    """
    assert override is None or beside is None, "rows beside overridden ones would have to be overridden too"
    layout, device = wiring.lens.layout, wiring.lens.model.device
    runs = 1 if override is None else len(override.values)
    own = runs * len(tokens)
    ids = tokens.ids.repeat(runs, 1)
    rows = ids if beside is None else torch.cat([ids, beside])
    kept, ends = _Kept(), (torch.tensor(tokens.lengths) - 1).repeat(runs).to(device)
    forwards = [] if token_ids is None else [(layout.unembed, partial(unembed_into, layout.unembed, token_ids))]
    if beside is not None or start:
        forwards += [(m, partial(_linear, m, rows.shape, own, start)) for m in _linear_maps(wiring)]
    hooks = _hooks(wiring, kept, ends, override)
    with OneDnn(), torch.enable_grad(), intercepted(**hooks, forwards=forwards):
        values = metric(wiring.lens.model.hf(input_ids=rows.to(device), use_cache=False).logits[:, 0])
    return _slopes(wiring, kept, values, runs)


def _slopes(wiring: Wiring, kept: _Kept, values: Tensor, runs: int) -> Slopes:
    """The backward pass from ``values`` ``[runs * n]``."""
    layers, own = range(wiring.lens.model.n_layers), len(values)
    # An override cuts off what its sublayer read: nothing there matters to this run.
    asked = {**kept.maps, **kept.wanted}
    found = torch.autograd.grad(values.sum(), list(asked.values()), allow_unused=True, materialize_grads=True)
    by_run: Callable[[Tensor], Tensor] = lambda x: x[:own].unflatten(0, (runs, -1))  # noqa: E731
    at = {place: by_run(slope) for place, slope in zip(asked, found, strict=True)}
    written = kept.parts(len(layers), (wiring.lens.layout.n_heads, wiring.lens.layout.d_head))
    return Slopes(
        metric=by_run(values.detach()),
        maps={module: at[module] for module in kept.maps},
        streams=tuple(by_run(kept.streams[layer].detach()) for layer in layers),
        mlp=tuple(at["mlp", layer] for layer in layers),
        final=at["final", 0],
        written=written.map(lambda part: part[:own]),
        beside=written.map(lambda part: part[own:]) if len(written.embed) > own else None,
    )


def _hooks(wiring: Wiring, kept: _Kept, ends: Tensor, override: Override | None) -> dict[str, list[Hook]]:
    """``ends``: the last position of each row that is unembedded: the first ``len(ends)`` ones."""
    layout, inputs, outputs = wiring.lens.layout, list[Hook](), list[Hook]()
    new = None if override is None else override.values.flatten(0, 1)

    def replaced(_own: Tensor) -> Tensor:
        assert new is not None and override is not None
        # z by head -> as its projection reads it; what the MLP writes -> what it gives
        return new.flatten(2) if override.kind == "z" else new / layout.blocks[override.layer].scale

    def graph_start(hidden: Tensor) -> Tensor:
        hidden = new if override is not None and override.kind == "embed" and new is not None else hidden
        return note(("embed", 0), hidden).detach().requires_grad_()

    def note(place: tuple[str, int], value: Tensor, scale: float = 1.0) -> Tensor:
        kept.written[place] = value.detach() if scale == 1 else value.detach() * scale
        return value

    inputs.append((layout.blocks[0].block, graph_start))
    for layer, block in enumerate(layout.blocks):
        inputs += _reading(kept, layer, block)
        maps = {reader.module for kind in KINDS for reader in wiring.readers[layer][kind]}
        outputs += [(module, partial(_keep, kept.maps, module)) for module in maps]
        if override is not None and override.layer == layer and override.kind in ("z", "mlp"):
            (inputs if override.kind == "z" else outputs).append(
                (block.attn_proj if override.kind == "z" else block.mlp, replaced)
            )
        inputs.append((block.attn_proj, partial(note, ("z", layer))))
        outputs.append((block.mlp, partial(note, ("mlp", layer), scale=block.scale)))
    inputs.append((layout.final_norm, partial(_own_place, kept, ("final", 0))))
    inputs.append((layout.unembed, lambda hidden: hidden[torch.arange(len(ends), device=hidden.device), ends][:, None]))
    return {"inputs": inputs, "outputs": outputs}


def _reading(kept: _Kept, layer: int, block: Block) -> Iterator[Hook]:
    """What attention and MLP of a layer read, before their norms."""
    before_mlp, norm = partial(_own_place, kept, ("mlp", layer)), block.ln2
    assert block.ln1 is not None and norm is not None, "checked by Wiring.of"
    yield block.ln1, partial(_keep, kept.streams, layer)
    if norm is not block.ln1:
        yield norm, before_mlp
    else:  # one norm for both: the MLP reads the same through a norm of its own
        yield block.mlp, lambda _normed: norm.forward(before_mlp(kept.streams[layer]))


def _keep(where: dict[Any, Tensor], key: object, value: Tensor) -> Tensor:
    where[key] = value
    return value


def _own_place(kept: _Kept, place: tuple[str, int], value: Tensor) -> Tensor:
    return _keep(kept.wanted, place, value.clone())  # in the graph, even if others read the same tensor


def _linear_maps(wiring: Wiring) -> list[nn.Linear]:
    return [m for one in wiring.lens.layout.blocks for m in one.block.modules() if type(m) is nn.Linear]


def _linear(module: nn.Linear, shape: torch.Size, own: int, start: int, rows: Tensor) -> Tensor:
    """Experts see tokens in an order of their own: there, gradients go back everywhere."""
    by_row = rows.shape[:-1] == shape
    return _Linear.apply(rows, module, own, start) if by_row else nn.Linear.forward(module, rows)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    """A linear map of ``[rows, pos, d_in]`` that passes gradients back to the first rows from a position on; to the others, zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, module: nn.Linear, own: int, start: int) -> Tensor:
        ctx.weight, ctx.at = module.weight, (slice(own), slice(start, None))
        return nn.Linear.forward(module, rows)

    @staticmethod
    def backward(ctx: Any, *slope: Tensor) -> Any:
        back = slope[0].new_zeros(*slope[0].shape[:-1], ctx.weight.shape[1])
        back[ctx.at] = product(slope[0][ctx.at], ctx.weight.t())
        return back, None, None, None
