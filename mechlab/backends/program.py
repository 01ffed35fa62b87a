"""From edits and sites to a program: a list of plain dicts and tensors that ``perform`` carries out inside a trace.

One entry per place in the model, in the order of the forward pass. What an edit means is not written here a second time: the lens's own
``apply`` is run on an activation of zeros. What it leaves there is what the edit sets or adds (source values, means, draws, attention
rows), the cells it touched are counted, and a mistake is told in the lens's own words. Only how a verb combines that with the activation
(set, add, scale, clamp, project) is done in the trace.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mechlab.errors import EditError, SiteError
from mechlab.lens.apply import Window, apply, orthonormal
from mechlab.lens.edit import Edit
from mechlab.lens.layout import Block, Layout
from mechlab.lens.routing import Rule, Switches, choose, rule_of
from mechlab.lens.site import BY_HEAD, KINDS, Site
from mechlab.lens.steer import Steer

Step = dict[str, Any]
OPERATION = "attention_interface_1"
"""nnsight's name for the call of the attention function in transformers' attention modules (``_0`` is the line that looks it up)."""
_ATTENTION = ("q", "k", "v", *BY_HEAD)
_ROUTER = ("router", "expert_weights", "expert_choice")
_CHANGE = {
    "zero": "set",
    "mean": "set",
    "resample": "set",
    "patch": "set",
    "pattern": "set",
    "add": "add",
    "scale": "scale",
    "clamp": "clamp",
    "project": "project",
}


@dataclass(frozen=True)
class Program:
    """``steps`` for ``perform``; ``touched``: how many cells each edit touches, known before anything runs."""

    steps: list[Step]
    touched: Counter[Edit]


def compiled(
    layout: Layout,
    paths: Mapping[nn.Module, str],
    window: Window,
    edits: Sequence[Edit],
    reads: Iterable[Site],
    dtype: torch.dtype,
) -> Program:
    """The program of one run over the prompts of ``window``.

    Args:
        paths: where each module of ``layout`` stands in the model's tree.
        reads: sites whose unit axis is whole (their position may be one).
        dtype: the model's.

    Raises:
        SiteError: an attention site in a module that nnsight cannot look into. EditError, PromptError: as ``Lens.run``.
    """
    taps: dict[Site, Step] = {}
    touched: Counter[Edit] = Counter()
    switches = [edit for edit in edits if edit.verb == "route"]

    def tap(at: Site) -> Step:
        return taps.setdefault(at.whole, {"kind": at.kind, "edits": [], "reads": {}})

    for edit in edits:
        if edit.verb == "splice":
            raise EditError(
                f"Edit {edit} does not run through nnsight: run it with the Lens, which takes dictionaries."
            )
        if edit.verb == "route":
            tap(edit.site)
            continue
        resolved, n_touched = _resolved(layout, window, edit, dtype)
        tap(edit.site)["edits"].extend(resolved)
        touched[edit] += n_touched
    for at in reads:
        tap(at)["reads"][str(at)] = None if at.pos is None else list(window.tokens.positions(at.pos))
    steps: dict[tuple[int | None, str], Step] = {}
    for whole in sorted(taps, key=lambda at: at.sort_key):
        group = "attention" if whole.kind in _ATTENTION else "router" if whole.kind in _ROUTER else whole.kind
        step = steps.setdefault((whole.layer, group), _step(layout, paths, whole, window))
        step["taps"].append(taps[whole])
    for (layer, group), step in steps.items():
        if group == "router" and any(one["kind"] == "router" for one in step["taps"]):
            here = [edit for edit in switches if edit.site.layer == layer]
            router = layout.blocks[layer or 0].router
            step |= _switched(router, window, here, layout, touched, edited=any(one["edits"] for one in step["taps"]))
    return Program(list(steps.values()), touched)


def _step(layout: Layout, paths: Mapping[nn.Module, str], at: Site, window: Window) -> Step:
    """Where a site lives: a module, and what to take from it."""
    heads = (layout.n_heads, layout.d_head)
    step: Step = {"taps": [], "heads": None, "half": None, "scale": 1.0}
    outside = {"embed": layout.embed, "final_norm": layout.final_norm}
    if at.kind == "logits":
        return step | {"port": "logits", "path": ""}
    if at.kind in outside:
        return step | {"port": "output", "path": paths[outside[at.kind]]}
    assert at.layer is not None
    block = layout.blocks[at.layer]
    if at.kind in ("result", "attn_out", "mlp_out"):
        step["scale"] = block.scale
    if at.kind in _ATTENTION:
        return step | {"port": "attention", "path": paths[block.attn], "operation": OPERATION}
    if at.kind in _ROUTER:
        router = {"rule": None, "switches": {}, "n_batch": window.n_batch}
        return step | {"port": "router", "path": _path(paths, block.router), **router}
    if at.kind == "result":
        transposed = isinstance(block.attn_proj, nn.Linear)
        return step | {"port": "result", "path": paths[block.attn_proj], "heads": heads, "transposed": transposed}
    if at.kind == "expert_out":
        raise SiteError(
            f"Site {at} is not computed through nnsight: read it with the Lens, or read expert_weights here."
        )
    port, module = _port(block, at.kind)
    half = (0 if at.kind == "mlp_pre" else 1) if module is block.gate_up else None
    return step | {"port": port, "path": _path(paths, module), "heads": heads if at.kind == "z" else None, "half": half}


def _port(block: Block, kind: str) -> tuple[str, nn.Module | None]:
    gated = block.gate is not None
    return {
        "resid_pre": ("input", block.block),
        "resid_mid": ("shared_input", block.mid),
        "resid_post": ("output", block.block),
        "attn_out": ("output", block.attn_out),
        "mlp_out": ("output", block.mlp_out),
        "z": ("input", block.attn_proj),
        "mlp_in": ("input", block.mlp),
        "mlp_post": ("input", block.down),
        "mlp_pre": ("output", block.gate_up or (block.gate if gated else block.up)),
        "mlp_pre_linear": ("output", block.gate_up or block.up),
    }[kind]


def _path(paths: Mapping[nn.Module, str], module: nn.Module | None) -> str:
    assert module is not None, "the layout was asked for this site before"
    return paths[module]


def _resolved(layout: Layout, window: Window, edit: Edit, dtype: torch.dtype) -> tuple[list[Step], int]:
    """The edit at its cells as plain data (nothing if it touches none of these prompts), and how many cells it touches."""
    zeros = torch.zeros(_shape(layout, edit.site, window), dtype=torch.promote_types(dtype, torch.float32))
    # Without its conditions: they depend on the activation, and are seen to in the trace.
    plain = replace(edit, steer=Steer(start=edit.steer.start, stop=edit.steer.stop)) if edit.steer else edit
    after, n_touched = apply(plain, zeros, window)
    if not n_touched:
        return [], 0
    cells = window.cells(edit, window.tokens.width)
    index = edit.site.index
    left = after[cells.batch, cells.column] if index is None else after[cells.batch, cells.column, index]
    data: Step = {
        "batch": cells.batch,
        "column": cells.column,
        "index": index,
        "change": _CHANGE[edit.verb],
        "keeps_hidden": edit.site.kind == "scores",
        "value": _value(edit, left),
        "steer": _steer(edit.steer, left) if edit.steer and edit.steer.by_activation else None,
    }
    if edit.verb == "project":
        data["basis"] = orthonormal(edit, left)
    return [data], n_touched


def _steer(steer: Steer, left: Tensor) -> Step:
    """The conditions as plain data, directions at length 1 and of the activation's size."""
    if any(given is not None and len(given) != left.shape[-1] for given in (steer.along, steer.gate)):
        raise EditError(f"A direction of another size than {left.shape[-1]} does not fit these activations.")
    units = {
        name: None if given is None else torch.nn.functional.normalize(torch.tensor(given, dtype=left.dtype), dim=0)
        for name, given in (("along", steer.along), ("gate", steer.gate))
    }
    plain = {name: getattr(steer, name) for name in ("times_rms", "keep_norm", "adaptive", "threshold")}
    return plain | units


def _value(edit: Edit, left: Tensor) -> Any:
    if edit.verb == "clamp":
        return edit.low, edit.high
    if edit.verb == "scale":
        return torch.tensor(edit.value) if isinstance(edit.value, tuple) else float(edit.value or 0)
    return torch.zeros(()) if edit.verb == "zero" else left


def _shape(layout: Layout, at: Site, window: Window) -> list[int]:
    """``[batch, pos, ...]`` of a site's activation, scores and patterns as ``[batch, query, head, key]``."""
    width = window.tokens.width
    sizes = {"pos": width, "query": width, "key": width, "head": layout.n_heads, "kv_head": layout.n_kv_heads}
    sizes |= {"d_head": layout.d_head, "d_model": layout.d_model, "vocab": layout.vocab_size}
    sizes |= {"d_mlp": layout.d_mlp or 0, "expert": layout.n_experts or 0}
    axes = ("query", "head", "key") if at.kind in BY_HEAD else KINDS[at.kind].axes
    return [window.n_batch, *(sizes[axis] for axis in axes)]


def _switched(
    router: nn.Module | None, window: Window, edits: list[Edit], layout: Layout, touched: Counter[Edit], *, edited: bool
) -> Step:
    """The router's rule as data, and which experts are off, on or dropped for which tokens."""
    assert router is not None
    if not edited and not edits:
        return {}
    shape = (window.n_batch, window.tokens.width, layout.n_experts or 0)
    masks: dict[str, Tensor] = {}
    for edit in edits:
        assert edit.state is not None
        if edit.weight is not None or not edit.renormalise:
            raise EditError(
                f"Edit {edit} does not run through nnsight, which switches with renormalise=True and no weight: use the Lens."
            )
        cells = window.cells(edit, window.tokens.width)
        mask = masks.setdefault(edit.state, torch.zeros(shape, dtype=torch.bool))
        mask[cells.batch, cells.column, edit.site.index] = True
        touched[edit] += len(cells)
    flat = {state: mask.flatten(0, 1) for state, mask in masks.items()}
    rule = rule_of(router)
    if not rule.is_plain:
        raise EditError(
            f"Routing edits on {type(router).__name__}, which chooses by groups, do not run through nnsight: use the Lens."
        )
    logits = torch.zeros(shape).flatten(0, 1)
    switches = Switches.none(len(logits), shape[-1])
    for state, mask in flat.items():
        getattr(switches, state).copy_(mask)
    choose(router, logits, switches)  # refuses what cannot be chosen
    return {"rule": _rule(rule), "switches": flat}


def _rule(rule: Rule) -> Step:
    return {
        "k": rule.k,
        "softmax": "over the chosen" if rule.scores == "chosen" else "over all",
        "renormalises": rule.normalised,
    }
