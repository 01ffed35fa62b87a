"""Where sites live in a loaded model.

TransformerLens's architecture adapters name the parts of some hundred families (``attn.o``, ``mlp.in``, ``ln2``...). What they leave open
is asked of the model itself, by one forward pass over one token that notes in which order parts are called and on what: whether a norm
comes before its sublayer (Llama), after it (OLMo-2) or both (Gemma-2), and whether attention and MLP run in parallel. A block that
multiplies what attention and MLP give before it adds it (Granite) says by how much (``residual_multiplier``). No table of families is kept.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechlab.errors import ModelError, SiteError
from mechlab.lens.site import KINDS, Site
from mechlab.models.model import Model


@dataclass(frozen=True)
class Block:
    """The modules of one layer. None where the family has no such part."""

    block: nn.Module
    ln1: nn.Module | None  # its output is what attention reads
    attn: nn.Module
    attn_proj: nn.Module  # its input is z
    attn_out: nn.Module  # its output, times scale, is what attention adds to the residual stream
    mid: nn.Module | None  # its input is resid_mid
    ln2: nn.Module | None  # its output is what the MLP reads
    mlp: nn.Module
    mlp_out: nn.Module  # its output, times scale, is what the MLP adds to the residual stream
    gate: nn.Module | None  # gated MLPs: its output is mlp_pre
    up: nn.Module | None  # its output is mlp_pre (ungated) or mlp_pre_linear (gated)
    gate_up: nn.Module | None  # both in one module, gate first
    down: nn.Module | None  # its input is mlp_post
    router: nn.Module | None
    experts: nn.Module | None  # fused: called with hidden states, and indices and weights of the chosen
    scale: float = 1.0  # the block adds so many times what attention and MLP give (1 where a norm follows them)

    @property
    def written_by_heads(self) -> Tensor:
        """``[n_heads * d_head, d_model]``: what each number of z adds to the residual stream (before a norm after attention)."""
        return _times(self.scale, output_weight(self.attn_proj))

    @property
    def written_by_neurons(self) -> Tensor:
        """``[d_mlp, d_model]``: what each neuron of mlp_post adds to the residual stream (before a norm after the MLP)."""
        assert self.down is not None, "the layout was asked for neurons before"
        return _times(self.scale, output_weight(self.down))

    @property
    def attn_bias(self) -> Tensor | None:
        """``[d_model]``: what the bias of the output projection adds to the residual stream (before a norm after attention)."""
        bias = getattr(self.attn_proj, "bias", None)
        return None if bias is None else _times(self.scale, bias)


@dataclass(frozen=True)
class Layout:
    """Modules and sizes of a model, by what they mean."""

    embed: nn.Module
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    unembed: nn.Module
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_mlp: int | None
    n_experts: int | None
    vocab_size: int

    def size(self, kind: str) -> int | None:
        """How many values an index into ``kind`` can take."""
        by_index = {
            "head": self.n_heads,
            "KV head": self.n_kv_heads,
            "neuron": self.d_mlp,
            "expert": self.n_experts,
            "dimension": self.d_model,
            "token id": self.vocab_size,
        }
        index = KINDS[kind].index
        return by_index[index] if index else None

    def kinds(self, layer: int | None = None) -> list[str]:
        """The site kinds this model has: outside the layers (None) or in one of them."""
        return [name for name in KINDS if self._has(name, layer)]

    def _has(self, kind: str, layer: int | None) -> bool:
        if layer is None or not KINDS[kind].per_layer:
            return layer is None and not KINDS[kind].per_layer
        block = self.blocks[layer]
        match kind:
            case "resid_mid":
                return block.mid is not None
            case "mlp_pre":
                return block.up is not None or block.gate_up is not None
            case "mlp_pre_linear":
                return block.gate is not None or block.gate_up is not None
            case "mlp_post":
                return block.down is not None
            case "router" | "expert_weights" | "expert_choice":
                return block.router is not None
            case "expert_out":
                return block.experts is not None
            case _:
                return True

    def check(self, site: Site) -> None:
        """Raises SiteError, naming the nearest valid sites, if this model has no such site."""
        if site.layer is not None and site.layer >= len(self.blocks):
            raise SiteError(f"Site {site}: this model has layers 0 to {len(self.blocks) - 1}.")
        if not self._has(site.kind, site.layer):
            have = ", ".join(self.kinds(site.layer))
            raise SiteError(f"Site {site} is absent in this model: layer {site.layer} has {have}.")
        size = self.size(site.kind)
        if site.index is not None and size is not None and site.index >= size:
            raise SiteError(f"Site {site}: this model has {KINDS[site.kind].index} 0 to {size - 1}.")


def layout(model: Model) -> Layout:
    """Reads the layout of a loaded model.

    Raises:
        ModelError: a family that TransformerLens has no adapter for, or whose blocks lack attention or an MLP, or multiply what they add
            by 0 or after a norm.
    """
    parts = _adapter_parts(model)
    modules: dict[str, nn.Module] = dict(model.hf.named_modules())
    try:
        prefix = parts["blocks"].name
        calls = _probe(model, modules, prefix)
        inner = parts["blocks"].submodules
        blocks = tuple(_block(modules, f"{prefix}.{i}", inner, calls) for i in range(model.n_layers))
        embed, norm, unembed = (modules[parts[name].name] for name in ("embed", "ln_final", "unembed"))
    except KeyError as error:
        raise ModelError(
            f"{model.name} ({type(model.hf).__name__}) has no part {error}: "
            "mechlab reads decoder-only transformers with attention and an MLP."
        ) from error
    down, router = blocks[0].down, next((b.router for b in blocks if b.router is not None), None)
    return Layout(
        embed,
        blocks,
        norm,
        unembed,
        model.n_heads,
        model.n_kv_heads,
        _in_features(blocks[0].attn_proj) // model.n_heads,
        model.d_model,
        d_mlp=_in_features(down) if down is not None else None,
        n_experts=int(router.num_experts) if router is not None else None,  # pyright: ignore[reportArgumentType]
        vocab_size=model.vocab_size,
    )


def output_weight(module: nn.Module) -> Tensor:
    """``[d_in, d_out]`` weight of a linear map: GPT-2's Conv1D stores it so, nn.Linear stores its transpose."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, nn.Linear) else weight


def _times(scale: float, weight: Tensor) -> Tensor:
    return weight if scale == 1 else weight * scale


def unembed_into(module: nn.Module, token_ids: Tensor, hidden: Tensor) -> Tensor:
    """``[..., d_model]`` -> ``[..., tokens]``: what an unembedding gives for some tokens alone."""
    bias = getattr(module, "bias", None)
    return nn.functional.linear(hidden, output_weight(module).T[token_ids], None if bias is None else bias[token_ids])


def _in_features(module: nn.Module) -> int:
    return int(output_weight(module).shape[0])


def _adapter_parts(model: Model) -> dict[str, Any]:
    # Imported here: it costs seconds, and only models need it.
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config

    try:
        architecture = determine_architecture_from_hf_config(model.hf.config)
    except ValueError as error:
        raise ModelError(
            f"{model.name} is a {type(model.hf).__name__}, a family without a TransformerLens adapter: "
            "use a decoder-only model of a supported family."
        ) from error
    config = build_bridge_config_from_hf(model.hf.config, architecture, model.name, model.dtype)
    adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
    return dict(adapter.component_mapping or {})


@dataclass(frozen=True)
class _Call:
    """One module's part in the probing forward pass."""

    at: int
    inputs: Tensor | None
    output: Tensor | None


def _probe(model: Model, modules: dict[str, nn.Module], prefix: str) -> dict[str, _Call]:
    """Path -> when it was first called, on what and with what result, in one forward pass over one token."""
    calls: dict[str, _Call] = {}
    entered: dict[str, tuple[int, Tensor | None]] = {}

    def enter(path: str, _module: nn.Module, args: Any, kwargs: Any) -> None:
        entered.setdefault(path, (len(entered), first_tensor((*args, *kwargs.values()))))

    def leave(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        calls.setdefault(path, _Call(*entered[path], first_tensor(output)))

    inside = {path: module for path, module in modules.items() if path.startswith(prefix + ".")}
    handles = [m.register_forward_pre_hook(partial(enter, path), with_kwargs=True) for path, m in inside.items()]
    handles += [m.register_forward_hook(partial(leave, path)) for path, m in inside.items()]
    try:
        with torch.no_grad():
            model.hf(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def first_tensor(value: Any) -> Tensor | None:
    """The tensor a module's output is or begins with (families differ in returning tensors or tuples)."""
    if isinstance(value, Tensor):
        return value
    return next((v for v in value if isinstance(v, Tensor)), None) if isinstance(value, tuple) else None


def _block(modules: dict[str, nn.Module], path: str, parts: dict[str, Any], calls: dict[str, _Call]) -> Block:
    def part(*names: str) -> str | None:
        where, at = path, parts
        for name in names:
            if name not in at:
                return None
            where, at = f"{where}.{at[name].name}", at[name].submodules or {}
        return where if where in modules else None

    attn, mlp, proj = part("attn"), part("mlp"), part("attn", "o")
    if attn is None or mlp is None or proj is None:
        raise KeyError(f"{path}.{'attn.o' if mlp else 'mlp'}")
    norms = {name: where for name in ("ln1", "ln1_post", "ln2", "ln2_post") if (where := part(name)) in calls}
    between = [name for name, where in norms.items() if calls[attn].at < calls[where].at < calls[mlp].at]
    after = [where for where in norms.values() if calls[where].at > calls[mlp].at]
    # Between attention and MLP stand: nothing, or a pre-norm (Llama: ln2), or a post-norm (OLMo-2: its ln1), or both (Gemma-2).
    attn_out = next((norms[name] for name in between if name in ("ln1", "ln1_post")), attn)
    mid = next((norms[name] for name in between if name == "ln2"), mlp)
    scale = _scale(path, modules[path], plain=attn_out == attn and not after)
    sequential = _adds_up(calls[path].inputs, calls[attn_out].output, calls[mid].inputs, scale)

    def read_by(sublayer: str) -> nn.Module | None:
        return next((modules[w] for w in norms.values() if _same(calls[w].output, calls[sublayer].inputs)), None)

    children = {name: f"{mlp}.{name}" for name, _ in modules[mlp].named_children()}
    router = next((modules[where] for where in children.values() if is_router(modules[where])), None)
    gate_up = modules[children["gate_up_proj"]] if "gate_up_proj" in children else None
    gate, up, down = (modules[where] if (where := part("mlp", name)) else None for name in ("gate", "in", "out"))
    return Block(
        block=modules[path],
        ln1=read_by(attn),
        attn=modules[attn],
        attn_proj=modules[proj],
        attn_out=modules[attn_out],
        mid=modules[mid] if sequential else None,
        ln2=read_by(mlp),
        mlp=modules[mlp],
        mlp_out=modules[after[0]] if after else modules[mlp],
        gate=gate if router is None and gate_up is None else None,
        up=up if gate_up is None else None,
        gate_up=gate_up,
        down=down,
        router=router,
        experts=modules.get(f"{mlp}.experts") if router is not None else None,
        scale=scale,
    )


def _scale(path: str, block: nn.Module, *, plain: bool) -> float:
    """What a block multiplies the outputs of attention and MLP by before it adds them: transformers' name for it, in all its families.

    ``plain``: no norm stands after attention or MLP. Whether the parts then add up is seen by ``readers.check_writes``.
    """
    scale = float(getattr(block, "residual_multiplier", 1.0))
    if scale == 0 or (scale != 1 and not plain):
        raise ModelError(
            f"{path} multiplies what attention and MLP give by {scale:g}, {'which leaves nothing' if plain else 'after a norm'}: "
            "mechlab reads blocks that multiply by another number than 0, and that have no norm there."
        )
    return scale


def _adds_up(resid_pre: Tensor | None, attn_out: Tensor | None, mid: Tensor | None, scale: float) -> bool:
    """True if the MLP reads resid_pre + scale * attn_out (sequential), False if it reads resid_pre (parallel block)."""
    if resid_pre is None or attn_out is None or mid is None:
        return False
    return torch.allclose(resid_pre + scale * attn_out, mid, rtol=1e-3, atol=1e-5)


def _same(output: Tensor | None, inputs: Tensor | None) -> bool:
    return output is not None and inputs is not None and torch.equal(output, inputs)


def is_router(module: nn.Module) -> bool:
    """Routers of transformers 5 return (logits, weights of the chosen experts, their indices) and are named so."""
    return type(module).__name__.lower().endswith("topkrouter")
