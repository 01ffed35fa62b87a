"""A run of one prompt with everything frozen that is not linear: attention patterns, the scales of norms, and what every MLP writes.

What is left is affine in the leaves (the embedding of each token, and each MLP's output at each token): a value that a direction reads
anywhere in the network is a sum of one term per leaf and a constant. One backward pass per target gives the direction in which it reads
each leaf; a replay with all leaves at zero gives the constant. So the sum over all terms can be checked against the value itself.
Dunefsky, Chlenski and Nanda, arXiv 2406.11944 (§ 4); the same freezing: Ameisen et al. 2025, Circuit Tracing.

Families are not told apart. Patterns are put back where the attention function computes them, norms where the layout finds them (before or
after a sublayer). Whether the result is affine is not assumed: the run is replayed with its leaves as they were, at zero and doubled, and
a model in which that does not fit (attention outputs multiplied by a gate, say) is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from circuits.features.norms import FrozenNorm, freeze_norm, norm_form
from mechlab.errors import PromptError, SiteError
from mechlab.lens.apply import Window
from mechlab.lens.hooks import Tap, installed, intercepted
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Prompts, Tokens

Place = tuple[str, int]  # ("mlp_in" | "attn_in" | "resid_pre" | "v" | "final", layer)
FINAL: Place = ("final", 0)
AT_ONCE = 32
"""Targets of one backward pass."""


@dataclass(frozen=True, eq=False)
class Leaves:
    """What a frozen run is a function of: ``embed [n, pos, d_model]``, ``mlp``: one ``[n, pos, d_model]`` per layer."""

    embed: Tensor
    mlp: tuple[Tensor, ...]

    def times(self, factors: Tensor) -> "Leaves":
        """The leaves multiplied by each of ``factors [n]``, as a batch."""
        by = factors.to(self.embed)[:, None, None]
        return Leaves(self.embed * by, tuple(one * by for one in self.mlp))


@dataclass(frozen=True, eq=False)
class Pulled:
    """Directions in which targets read the leaves: ``embed [targets, pos, d_model]``, ``mlp [targets, layer, pos, d_model]``."""

    embed: Tensor
    mlp: Tensor


@dataclass(frozen=True, eq=False)
class FrozenRun:
    """One prompt, frozen. Made by `freeze`.

    Attributes:
        patterns: per layer ``[head, query, key]``. values: per layer ``[pos, kv_head, d_head]``.
        norms: by module.
        leaves: as in the run, ``[1, pos, d_model]``; an MLP's leaf is its output less what a skip map makes of its input.
        skips: layer -> ``[d_model, d_model]``: linear maps from an MLP's input to its output that are kept as such. start: the first token
            at which they are.
        at: place -> ``[pos, d_model]`` in the run, constants: with all leaves at zero (places mlp_in and final).
        live: place -> the tensor in the graph of the replay, ``[1, pos, ...]``.
    """

    lens: Lens
    tokens: Tokens
    patterns: tuple[Tensor, ...]
    norms: Mapping[nn.Module, FrozenNorm]
    leaves: Leaves
    skips: Mapping[int, Tensor]
    start: int
    at: Mapping[Place, Tensor] = field(default_factory=dict)
    constants: Mapping[Place, Tensor] = field(default_factory=dict)
    live: Mapping[Place, Tensor] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return len(self.leaves.mlp)

    @property
    def width(self) -> int:
        """Tokens of the prompt."""
        return self.tokens.width

    def pull(self, place: Place, positions: Sequence[int], vectors: Tensor) -> Pulled:
        """Directions in which ``vectors [n, d_model]``, each reading ``place`` at its token, read the leaves.

        By every route: through the residual stream and any number of frozen attention heads, but through no other MLP.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        for first in range(0, len(vectors), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            slopes = self.slopes(place, positions[some], vectors[some], [self.leaves.embed, *self.leaves.mlp])
            parts.append((slopes[0][:, 0], torch.stack([one[:, 0] for one in slopes[1:]], dim=1)))
        return Pulled(torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts]))

    def slopes(self, place: Place, positions: Sequence[int], vectors: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """``[n, *shape]`` for each of ``inputs``, tensors of the graph: slopes of ``vectors [n, ...]`` read at ``place``."""
        live = self.live[place]
        reading = live.new_zeros(len(vectors), *live.shape)
        reading[torch.arange(len(vectors)), 0, list(positions)] = vectors.to(live)
        found = torch.autograd.grad(
            live, list(inputs), reading, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        return [
            one.new_zeros(len(vectors), *one.shape) if slope is None else slope.detach()  # pyright: ignore[reportUnnecessaryComparison]
            for one, slope in zip(inputs, found, strict=True)
        ]


def freeze(lens: Lens, prompt: Prompts, *, skips: Mapping[int, Tensor] | None = None, start: int = 1) -> FrozenRun:
    """Runs one prompt and freezes it.

    Args:
        skips: layer -> ``W_skip [d_model, d_model]`` of a skip transcoder there: kept as a linear path from its MLP's input, from token
            ``start`` on.

    Raises:
        PromptError: not exactly one prompt. SiteError: a model that frozen patterns and norms do not make affine.
    """
    tokens = lens.tokens(prompt)
    if len(tokens) != 1:
        raise PromptError(f"{len(tokens)} prompts were given: a run is frozen for one prompt at a time.")
    run = _recorded(lens, tokens, skips or {}, start)
    with torch.no_grad():
        both = _replay(run, run.leaves.times(torch.tensor([0.0, 2.0])))
    leaves = Leaves(run.leaves.embed.requires_grad_(), tuple(one.requires_grad_() for one in run.leaves.mlp))
    with torch.enable_grad():
        live = _replay(run, leaves)
    zero, twice = ({place: tensor[i] for place, tensor in both.items()} for i in range(2))
    _check(run, zero, {place: tensor[0].detach() for place, tensor in live.items()}, twice)
    constants = {place: zero[place] for place in run.at}
    return FrozenRun(lens, tokens, run.patterns, run.norms, leaves, run.skips, run.start, run.at, constants, live)


def _recorded(lens: Lens, tokens: Tokens, skips: Mapping[int, Tensor], start: int) -> FrozenRun:
    layers, before = range(lens.model.n_layers), dict[nn.Module, Tensor]()
    modules = _norms(lens)

    def keep(module: nn.Module, hidden: Tensor) -> Tensor:
        before[module] = hidden.detach()
        return hidden

    kinds = ("pattern", "mlp_in", "mlp_out")
    sites = [Site("resid_pre", 0), Site("final_norm"), *(Site(kind, layer) for layer in layers for kind in kinds)]
    with intercepted(inputs=[(module, partial(keep, module)) for module in modules]):
        run = lens.run(tokens, read=sites, logits="none")
    at: dict[Place, Tensor] = {("mlp_in", layer): run[Site("mlp_in", layer)][0] for layer in layers}
    at[FINAL] = run[Site("final_norm")][0]
    mlp = [run[Site("mlp_out", layer)].clone() for layer in layers]
    for layer, skip in skips.items():
        mlp[layer][:, start:] -= run[Site("mlp_in", layer)][:, start:] @ skip.to(mlp[layer]).T
    norms = {module: _frozen(lens, module, name, before[module]) for module, name in modules.items()}
    patterns = tuple(run[Site("pattern", layer)][0] for layer in layers)
    leaves = Leaves(run[Site("resid_pre", 0)].clone(), tuple(mlp))
    return FrozenRun(lens, tokens, patterns, norms, leaves, dict(skips), start, at)


def _norms(lens: Lens) -> dict[nn.Module, str]:
    """Every norm through which the residual stream is read or attention written, and its name. An MLP's own norm after it is in its
    leaf.
    """
    found: dict[nn.Module, str] = {}
    for layer, block in enumerate(lens.layout.blocks):
        after = block.attn_out if block.attn_out is not block.attn else None
        named = {"norm before attention": block.ln1, "norm after attention": after, "norm before the MLP": block.ln2}
        for name, module in named.items():
            if module is not None:
                found.setdefault(module, f"The {name} in layer {layer} of {lens.model.name}")
    return found | {lens.layout.final_norm: f"The final norm of {lens.model.name}"}


@torch.no_grad()
def _frozen(lens: Lens, module: nn.Module, name: str, before: Tensor) -> FrozenNorm:
    return freeze_norm(norm_form(module, lens.model.d_model, name), before, module(before), name)


@dataclass(eq=False)
class _Replayed(Tap):
    """Puts a recorded activation in the place of what is computed."""

    value: Tensor | None = None

    def __call__(self, activation: Tensor) -> Tensor:
        assert self.value is not None
        return self.value.expand_as(activation)


def _replay(run: FrozenRun, leaves: Leaves) -> dict[Place, Tensor]:
    """One forward pass from these leaves, ``[n, pos, d_model]``; what every place then holds, in the graph if gradients are on."""
    layout, n, live = run.lens.layout, len(leaves.embed), dict[Place, Tensor]()
    inputs: list[tuple[nn.Module, Any]] = [(layout.blocks[0].block, lambda _own: leaves.embed)]
    outputs: list[tuple[nn.Module, Any]] = []

    def keep(place: Place, hidden: Tensor) -> Tensor:
        live[place] = hidden
        return hidden

    def written(layer: int, _own: Tensor) -> Tensor:
        skip, scale = run.skips.get(layer), layout.blocks[layer].scale
        if skip is None:
            return leaves.mlp[layer] / scale
        passed = live["mlp_in", layer] @ skip.to(leaves.embed).T
        passed = torch.cat([torch.zeros_like(passed[:, : run.start]), passed[:, run.start :]], dim=1)
        return (leaves.mlp[layer] + passed) / scale

    for layer, block in enumerate(layout.blocks):
        for kind, module in (("resid_pre", block.block), ("attn_in", block.attn), ("mlp_in", block.mlp)):
            inputs.append((module, partial(keep, (kind, layer))))
        outputs.append((block.mlp_out, partial(written, layer)))
    inputs.append((layout.unembed, partial(keep, FINAL)))
    place = Window(run.tokens, (0,) * n, run.width)
    frozen = [_Replayed("pattern", layer, place, value=one[None]) for layer, one in enumerate(run.patterns)]
    values = [Tap("v", layer, place, read=True) for layer in range(run.n_layers)]
    # Nothing is unembedded: what the unembedding reads is enough. What MLPs write is known, so their maps are not multiplied out.
    forwards: list[tuple[nn.Module, Any]] = [*run.norms.items(), (layout.unembed, lambda hidden: hidden)]
    for block in layout.blocks:
        maps = (one for one in (block.gate, block.up, block.gate_up, block.down) if one is not None)
        forwards += [(one, partial(_nothing, output_weight(one).shape[1])) for one in maps]
    hf, ids = run.lens.model.hf, run.tokens.ids.to(run.lens.model.device).repeat(n, 1)
    with intercepted(inputs=inputs, outputs=outputs, forwards=forwards), installed(layout, hf, [*frozen, *values]):
        hf(input_ids=ids, use_cache=False)
    return live | {("v", layer): tap.kept for layer, tap in enumerate(values) if tap.kept is not None}


def _nothing(size: int, hidden: Tensor) -> Tensor:
    return hidden.new_zeros(()).expand(*hidden.shape[:-1], size)


def _check(
    run: FrozenRun, zero: Mapping[Place, Tensor], once: Mapping[Place, Tensor], twice: Mapping[Place, Tensor]
) -> None:
    """Raises SiteError, naming the model, unless the replay gives the run back and doubled leaves double what they add."""
    name, tolerance = run.lens.model.name, 1e-3 if run.leaves.embed.dtype == torch.float32 else 5e-2
    for place, recorded in run.at.items():
        size = recorded.norm()
        again = float((once[place] - recorded).norm() / size)
        bent = float((twice[place] - 2 * once[place] + zero[place]).norm() / size)
        if max(again, bent) > tolerance:
            where = "the final norm" if place == FINAL else f"L{place[1]}.{place[0]}"
            raise SiteError(
                f"{name} is not affine once its patterns and norms are frozen (at {where} {max(again, bent):.1e} is left over): "
                "circuits of features cannot be computed for this family."
            )


def position(run: FrozenRun, pos: int) -> int:
    """A token position counted from the start; negative ones from the end. Raises PromptError outside the prompt."""
    found = pos + run.width if pos < 0 else pos
    if not 0 <= found < run.width:
        raise PromptError(f"Position {pos} is outside the prompt of {run.width} tokens.")
    return found
