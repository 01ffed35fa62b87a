"""The only file that registers hooks: taps go onto a model under one ``with`` and are gone after it, whatever happens inside."""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechlab.errors import EditError
from mechlab.lens.added import at_stream
from mechlab.lens.apply import Cells, Place, apply
from mechlab.lens.attention import Packed, attach, attach_packed, attached, detach
from mechlab.lens.attention import Tap as AttentionTap
from mechlab.lens.edit import Edit
from mechlab.lens.experts import expert_outputs
from mechlab.lens.layout import Block, Layout, first_tensor, unembed_into
from mechlab.lens.routing import Routing, Switches, choose
from mechlab.lens.site import BY_HEAD, Site
from mechlab.lens.splice import Spliceable, reads_elsewhere, spliced

_ATTENTION = ("q", "k", "v", *BY_HEAD)
_ROUTER = ("router", "expert_weights", "expert_choice")


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit and its turn among the edits of a row at this site (only a packed wave, whose rows have different edits, needs it)."""

    edit: Edit
    turn: int = 0


@dataclass(eq=False)
class Tap:
    """Edits and reads one activation (all units, all positions of one kind in one layer).

    ``kept`` is the activation after the edits, by position (``[batch, pos, ...]``), as the rest of the model sees it. With
    ``starts_graph`` gradients are tracked from here on. ``splices``: the dictionary of each splice here, and the tap at the site it reads
    when that is another one.
    """

    kind: str
    layer: int | None
    place: Place
    edits: list[Placed] = field(default_factory=list)
    read: bool = False
    starts_graph: bool = False
    kept: Tensor | None = None
    touched: dict[Edit, int] = field(default_factory=dict)
    splices: "dict[Edit, tuple[Spliceable, Tap | None]]" = field(default_factory=dict)

    def __call__(self, activation: Tensor) -> Tensor:
        if self.starts_graph:
            activation = activation.detach().requires_grad_()
        by_pos = activation.transpose(1, 2) if self.kind in BY_HEAD else activation
        by_pos = self.edited(by_pos)
        if self.read:
            self.kept = by_pos
        return by_pos.transpose(1, 2) if self.kind in BY_HEAD else by_pos

    def edited(self, by_pos: Tensor) -> Tensor:
        """``[batch, pos, ...]`` after the edits."""
        return self.in_turn(by_pos, self.edits)

    def in_turn(self, by_pos: Tensor, edits: Sequence[Placed], *, owned: bool = False) -> Tensor:
        """After these edits, one after another; ``owned`` values may be written to."""
        original = by_pos
        for placed in edits:
            owned = owned or by_pos is not original  # one copy serves all edits here
            change = partial(self._spliced, placed.edit) if placed.edit in self.splices else None
            by_pos, n_touched = apply(placed.edit, by_pos, self.place, placed.turn, owned=owned, change=change)
            self.count(placed.edit, n_touched)
        return by_pos

    def _spliced(self, edit: Edit, part: Tensor, cells: Cells) -> Tensor:
        dictionary, reader = self.splices[edit]
        if reader is None:
            return spliced(edit, part, part, dictionary)
        assert reader.kept is not None, "the site a dictionary reads comes before the one it writes"
        read = reader.kept[cells.batch, cells.column]
        index = dictionary.site.index
        return spliced(edit, part, read if index is None else read[:, index], dictionary)

    def count(self, edit: Edit, n_touched: int) -> None:
        self.touched[edit] = self.touched.get(edit, 0) + n_touched


def make_taps(
    place: Place,
    edits: Iterable[Placed],
    read: Iterable[Site] = (),
    dictionaries: Mapping[str, Spliceable] | None = None,
) -> list[Tap]:
    """One tap per (kind, layer) that is edited or read, its edits in the given order; splices find theirs in ``dictionaries``."""
    taps: dict[tuple[str, int | None], Tap] = {}

    def at(site: Site) -> Tap:
        return taps.setdefault((site.kind, site.layer), Tap(site.kind, site.layer, place))

    for placed in edits:
        tap, edit = at(placed.edit.site), placed.edit
        tap.edits.append(placed)
        if edit.verb == "splice":
            reads = reads_elsewhere(edit, dictionaries or {})
            reader = at(reads) if reads else None
            if reader:
                reader.read = True
            tap.splices[edit] = ((dictionaries or {})[edit.dictionary or ""], reader)
    for site in read:
        at(site).read = True
    return list(taps.values())


def count_touched(taps: Iterable[Tap]) -> Counter[Edit]:
    """How many cells each edit has touched."""
    return Counter({edit: count for tap in taps for edit, count in tap.touched.items()})


@contextmanager
def installed(
    layout: Layout, model: nn.Module, taps: Sequence[Tap], last_only: Tensor | None = None
) -> Generator[None]:
    """Puts ``taps`` on the model for the length of the ``with``.

    Args:
        last_only: ``[batch]`` positions: only there is the final norm's output unembedded (logits are ``[batch, 1, vocab]``).
    """
    with ExitStack() as stack:
        by_attention: dict[int, dict[str, AttentionTap]] = {}
        routers: dict[int, dict[str, Tap]] = {}
        in_order = sorted(
            taps, key=lambda tap: Site(tap.kind, tap.layer).sort_key
        )  # hooks of one module run as they came
        for tap in in_order:
            if tap.kind in _ATTENTION:
                by_attention.setdefault(_layer(tap), {})[tap.kind] = tap
            elif tap.kind in _ROUTER:
                routers.setdefault(_layer(tap), {})[tap.kind] = tap
            else:
                stack.callback(_register(layout, model, tap).remove)
        for layer, group in by_attention.items():
            attach(layout.blocks[layer].attn, group)
            stack.callback(detach, layout.blocks[layer].attn)
        for layer, group in routers.items():
            router = layout.blocks[layer].router
            assert router is not None
            stack.callback(router.register_forward_hook(partial(_route, group)).remove)
        if last_only is not None:
            stack.callback(layout.unembed.register_forward_pre_hook(partial(_gather, last_only)).remove)
        yield


@contextmanager
def packed(
    layout: Layout,
    first: int,
    last: int,
    join: Callable[[int, Tensor | None], tuple[Tensor, Tensor]],
    attend: Packed,
    ends: Tensor,
    token_ids: Tensor | None,
) -> Generator[None]:
    """Lets one forward pass over a dummy prompt carry packed rows instead (see ``mechlab.patching.packed``).

    Args:
        first, last: the layers that are computed; the others pass on what they get. They stay in place (transformers reads each layer's
            attention type by its place in the list); only their ``forward`` is empty.
        join: ``(layer, hidden [1, n, d_model] or None at the first)`` -> hidden with the rows that enter, and every token's position.
        attend: attention over the packed tokens.
        ends: ``[rows]`` places of the rows' last tokens: only they are normed and unembedded.
        token_ids: unembed only into these tokens; None for the whole vocabulary.
    """
    with ExitStack() as stack:
        for block in (*layout.blocks[:first], *layout.blocks[last + 1 :]):
            stack.callback(block.block.__dict__.pop, "forward", None)
            block.block.__dict__["forward"] = _same
        for layer, block in enumerate(layout.blocks[first : last + 1], start=first):
            hook = partial(_join, join, layer, layer == first)
            stack.callback(block.block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            attach_packed(block.attn, partial(attend, layer))
            stack.callback(detach, block.attn)
        at_top = layout.final_norm.register_forward_pre_hook(lambda _m, args: (args[0][:, ends], *args[1:]))
        stack.callback(at_top.remove)
        if token_ids is not None:
            stack.callback(layout.unembed.__dict__.pop, "forward", None)
            layout.unembed.__dict__["forward"] = partial(unembed_into, layout.unembed, token_ids)
        yield


@contextmanager
def intercepted(
    *,
    inputs: Iterable[tuple[nn.Module, Callable[[Tensor], Tensor]]] = (),
    outputs: Iterable[tuple[nn.Module, Callable[[Tensor], Tensor]]] = (),
    forwards: Iterable[tuple[nn.Module, Callable[..., Any]]] = (),
) -> Generator[None]:
    """Below sites: functions see modules' first input or output, and what they return takes its place; ``forwards`` replace modules."""
    with ExitStack() as stack:
        for module, function in inputs:
            stack.callback(_on_input(module, function).remove)
        for module, function in outputs:
            stack.callback(_on_output(module, function).remove)
        for module, forward in forwards:
            stack.callback(module.__dict__.pop, "forward", None)
            module.__dict__["forward"] = forward
        yield


def _join(join: Any, layer: int, is_first: bool, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Puts the packed hidden states, and the rotary embeddings of their positions, in the place of the dummy prompt's."""
    hidden, positions = join(layer, None if is_first else _input(args, kwargs))
    kwargs = {**kwargs}
    if kwargs.get("position_embeddings") is not None:
        tables = kwargs["position_embeddings"]  # cosines and sines, or one complex table (DeepSeek-V2)
        at_positions = tables[:, positions] if isinstance(tables, Tensor) else tuple(t[:, positions] for t in tables)
        kwargs["position_embeddings"] = at_positions
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = positions[None]
    return _replace_input(args, kwargs, hidden)


def hook_count(model: nn.Module) -> int:
    """Hooks, attention taps and replaced forwards now on the model: 0 outside a run."""
    registered = 0
    for m in model.modules():
        registered += len(m._forward_hooks) + len(m._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        registered += attached(m) + ("forward" in m.__dict__)
    return registered


def _layer(tap: Tap) -> int:
    assert tap.layer is not None
    return tap.layer


def _same(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


def _register(layout: Layout, model: nn.Module, tap: Tap) -> Any:
    """One hook for one tap; returns its handle."""
    outside: dict[str, Callable[[], Any]] = {
        "embed": lambda: _on_output(layout.embed, tap),
        "final_norm": lambda: _on_output(layout.final_norm, tap),
        "logits": lambda: model.register_forward_hook(partial(_logits, tap)),
    }
    if tap.kind in outside:
        return outside[tap.kind]()
    block = layout.blocks[_layer(tap)]
    heads = (layout.n_heads, layout.d_head)
    match tap.kind:
        case "resid_pre":
            return _on_input(block.block, tap)
        case "resid_mid":
            return _part(block.mid).register_forward_pre_hook(partial(_shared_input, tap), with_kwargs=True)
        case "resid_post":
            return _on_output(block.block, tap)
        case "attn_out":
            return _on_output(block.attn_out, at_stream(tap, block.scale))
        case "mlp_out":
            return _on_output(block.mlp_out, at_stream(tap, block.scale))
        case "z":
            return _on_input(block.attn_proj, lambda x: tap(x.unflatten(-1, heads)).flatten(-2))
        case "result":
            return block.attn_proj.register_forward_hook(partial(_result, tap, heads, block))
        case "mlp_in":
            return _on_input(block.mlp, tap)
        case "expert_out":
            return _part(block.experts).register_forward_hook(partial(_expert_parts, tap, block.scale))
        case "mlp_post":
            return _on_input(_part(block.down), tap)
        case _:
            return _on_neurons(block, tap)


def _part(module: nn.Module | None) -> nn.Module:
    assert module is not None, "the layout was asked for this site before"
    return module


def _on_neurons(block: Block, tap: Tap) -> Any:
    """mlp_pre and mlp_pre_linear: one linear map each, or the two halves of one (gate first)."""
    if block.gate_up is None:
        gated = block.gate is not None
        return _on_output(_part(block.gate if gated and tap.kind == "mlp_pre" else block.up), tap)

    def halves(joint: Tensor) -> Tensor:
        gate, up = joint.chunk(2, dim=-1)
        return torch.cat([tap(gate), up] if tap.kind == "mlp_pre" else [gate, tap(up)], dim=-1)

    return _on_output(block.gate_up, halves)


def _on_output(module: nn.Module, tap: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return tap(output)
        tensor = first_tensor(output)
        assert tensor is not None and output[0] is tensor
        return (tap(tensor), *output[1:])

    return module.register_forward_hook(hook)


def _on_input(module: nn.Module, tap: Callable[[Tensor], Tensor]) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return _replace_input(args, kwargs, tap(_input(args, kwargs)))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _replace_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


def _shared_input(tap: Tap, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """resid_mid feeds the MLP's norm and, as the same tensor, the sum after the MLP: both see an edit only if it is written into it.

    The one place where an activation is written in place; the sum that made it is always fresh.
    """
    shared = _input(args, kwargs)
    if not tap.edits:
        tap(shared)
        return
    shared.copy_(tap(shared.clone()))
    if tap.read:
        tap.kept = shared


def _result(tap: Tap, heads: tuple[int, int], block: Block, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Per-head contributions: they and the bias sum to what is added. Tokens that no edit changes keep the module's own bits."""
    weight = block.written_by_heads.unflatten(0, heads)  # [head, d_head, d_model]
    result = torch.einsum("bphd,hdm->bphm", args[0].unflatten(-1, heads), weight)
    if tap.edits and torch.is_grad_enabled():
        return output + (tap(result) - result).sum(dim=2) / block.scale
    if tap.edits:
        # Summed anew: a difference added to the output leaves rounding where all heads are zero, and a norm behind it blows that up.
        edited = tap(result)
        changed = (edited != result).flatten(2).any(dim=2, keepdim=True)
        bias = getattr(module, "bias", None)
        total = edited.sum(dim=2) / block.scale
        return torch.where(changed, total if bias is None else total + bias, output)
    if not torch.is_grad_enabled():
        tap(result)
        return output
    # For gradients: a copy that adds exactly zero, cut off upstream so that earlier sites are not counted twice.
    leaf = tap(result.detach().requires_grad_())
    return output + (leaf - leaf.detach()).sum(dim=2) / block.scale


def _logits(tap: Tap, _module: nn.Module, _args: Any, output: Any) -> Any:
    output.logits = tap(output.logits)
    return output


def _gather(positions: Tensor, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden = args[0]
    return (hidden[torch.arange(len(positions)), positions.to(hidden.device)][:, None], *args[1:])


def _route(taps: dict[str, Tap], router: nn.Module, _args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
    """Edits the logits, then chooses experts again by the router's own rule (an edit of the logits alone would do nothing)."""
    tap = taps.get("router")
    routing = Routing(*output)
    if tap is not None:
        by_pos = routing.logits.unflatten(0, (tap.place.n_batch, -1))
        switches = [placed for placed in tap.edits if placed.edit.verb == "route"]
        values = [placed for placed in tap.edits if placed.edit.verb != "route"]
        plain = Tap("router", tap.layer, tap.place, values, read=True, touched=tap.touched)
        logits = plain(by_pos)
        tap.kept = logits
        if tap.edits or torch.is_grad_enabled():
            chosen = choose(router, logits.flatten(0, 1), _switches(tap, switches, logits))
            routing = Routing(chosen.logits, chosen.weights.to(routing.weights.dtype), chosen.indices)
    for kind, read in taps.items():
        if kind != "router":
            flat = routing.dense() if kind == "expert_weights" else routing.indices
            read.kept = flat.unflatten(0, (read.place.n_batch, -1))
    return (routing.logits, routing.weights, routing.indices)


def _switches(tap: Tap, placed: list[Placed], logits: Tensor) -> Switches | None:
    """Which experts are switched at which of the tokens of ``logits [batch, pos, expert]``; None where nothing is."""
    if not placed:
        return None
    n_batch, n_pos, n_experts = logits.shape
    found = Switches.none(n_batch * n_pos, n_experts)
    rescaled = torch.zeros(n_batch * n_pos, dtype=torch.bool)
    for one in placed:
        edit, cells = one.edit, tap.place.cells(one.edit, n_pos, one.turn)
        tap.count(edit, len(cells))
        at = cells.batch * n_pos + cells.column
        {"off": found.off, "drop": found.drop, "on": found.on}[edit.state or ""][at, edit.site.index] = True
        if edit.weight is not None:
            found.weights[at, edit.site.index] = edit.weight
        (rescaled if edit.renormalise else found.kept)[at] = True
    if bool((rescaled & found.kept).any()):
        raise EditError(
            f"Switches in layer {tap.layer} meet at one token with and without renormalise: give all of them the same."
        )
    return Switches(*(getattr(found, field.name).to(logits.device) for field in fields(Switches)))


def _expert_parts(
    tap: Tap, scale: float, experts: nn.Module, args: tuple[Tensor, Tensor, Tensor], _output: Tensor
) -> None:
    """Reads each expert's part of what is added; the output itself is left to the fused kernel."""
    hidden, indices, weights = args
    n_experts = int(experts.num_experts)  # pyright: ignore[reportArgumentType]
    routing = Routing(hidden.new_empty(len(hidden), n_experts), weights, indices)
    tap.kept = scale * expert_outputs(experts, hidden, routing).unflatten(0, (tap.place.n_batch, -1))
