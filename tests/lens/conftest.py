"""Tiny lenses, and a reference that reads and edits the same models with plain torch hooks, by module names written by hand."""

import copy
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from mechlab.lens import Lens
from mechlab.models import FAMILIES, tiny

MOE = ("mixtral", "olmoe", "qwen2_moe", "gpt_oss")
DENSE = tuple(family for family in FAMILIES if family not in MOE)
LONG = [int(i) for i in torch.randint(4, 200, (19,), generator=torch.Generator().manual_seed(1))]
"""Longer than three sliding windows."""
SHORT = LONG[3:11]

_LLAMA = {
    "embed": "model.embed_tokens",
    "layers": "model.layers",
    "norm": "model.norm",
    "attn": "self_attn",
    "proj": "self_attn.o_proj",
    "attn_out": "self_attn",
    "mid": "post_attention_layernorm",
    "mlp": "mlp",
    "mlp_out": "mlp",
    "pre": "mlp.gate_proj",
    "linear": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_POST_NORMS = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
_MIXTRAL = {k: v for k, v in _LLAMA.items() if k not in ("pre", "linear", "down")} | {"router": "mlp.gate"}
_NAMES = {
    "gpt2": {
        "embed": "transformer.wte",
        "layers": "transformer.h",
        "norm": "transformer.ln_f",
        "attn": "attn",
        "proj": "attn.c_proj",
        "attn_out": "attn",
        "mid": "ln_2",
        "mlp": "mlp",
        "mlp_out": "mlp",
        "pre": "mlp.c_fc",
        "down": "mlp.c_proj",
    },
    "gpt_neox": {
        "embed": "gpt_neox.embed_in",
        "layers": "gpt_neox.layers",
        "norm": "gpt_neox.final_layer_norm",
        "attn": "attention",
        "proj": "attention.dense",
        "attn_out": "attention",
        "mlp": "mlp",
        "mlp_out": "mlp",
        "pre": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    },
    "gemma2": {**_LLAMA, **_POST_NORMS, "mid": "pre_feedforward_layernorm"},
    "gemma3": {**_LLAMA, **_POST_NORMS, "mid": "pre_feedforward_layernorm"},
    "olmo2": {**_LLAMA, **_POST_NORMS, "mid": "mlp"},
    "phi3": {**_LLAMA, "pre": "mlp.gate_up_proj", "linear": "mlp.gate_up_proj"},
    "mixtral": _MIXTRAL,
    "olmoe": _MIXTRAL,
    "qwen2_moe": _MIXTRAL,
    "gpt_oss": {**_MIXTRAL, "router": "mlp.router"},
    "qwen3_moe": _MIXTRAL,
    "granitemoe": {
        **_MIXTRAL,
        "mlp": "block_sparse_moe",
        "mlp_out": "block_sparse_moe",
        "router": "block_sparse_moe.router",
    },
    "deepseek_v2": _MIXTRAL,
    "deepseek_v3": _MIXTRAL,
}
_ON_INPUT = {"resid_pre": "", "z": "proj", "mlp_in": "mlp", "mlp_post": "down"}
_ON_OUTPUT = {
    "resid_post": "",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "mlp_pre": "pre",
    "mlp_pre_linear": "linear",
}
_OUTSIDE = {"embed": "embed", "final_norm": "norm"}
Change = Callable[[Tensor], Tensor]
_in_attention: dict[tuple[str, int], Change] = {}
"""(kind, layer) -> what the attention function below does to q, k, v, scores or pattern (pos first, as the lens sees them)."""


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """The family's own eager attention from changed q, k, v; where scores or pattern are changed, the rest of it by hand."""

    def changed(kind: str, x: Tensor) -> Tensor:
        change = _in_attention.get((kind, module.layer_idx))
        return x if change is None else change(x.transpose(1, 2)).transpose(1, 2)

    query, key, value = changed("q", query), changed("k", key), changed("v", value)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, pattern = eager(module, query, key, value, mask, **kwargs)
    if not {("scores", module.layer_idx), ("pattern", module.layer_idx)} & set(_in_attention):
        return output, pattern
    groups = query.shape[1] // key.shape[1]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(groups, 1)) * scale
    if kwargs.get("softcap"):
        scores = kwargs["softcap"] * torch.tanh(scores / kwargs["softcap"])
    if mask is not None:
        scores = torch.where(mask < 0, float("-inf"), scores)
    scores = changed("scores", scores)
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True)
    if hasattr(module, "sinks"):
        total = total + module.sinks.exp()[None, :, None, None]
    pattern = changed("pattern", weights / total)
    return torch.einsum("bhqk,bhkd->bqhd", pattern, value.repeat_interleave(groups, 1)), pattern


AttentionInterface.register("reference", _attention)
AttentionMaskInterface.register("reference", eager_mask)


@dataclass(frozen=True)
class Plain:
    """A model that mechlab has never touched, read and edited with plain torch hooks."""

    hf: Any
    names: dict[str, str]
    n_heads: int
    multiplier: float = 1.0
    """What the block adds is so many times what attention and MLP give (Granite)."""

    def module(self, name: str, layer: int | None = None) -> nn.Module:
        path = (
            self.names[name] if layer is None else f"{self.names['layers']}.{layer}.{self.names[name] if name else ''}"
        )
        return self.hf.get_submodule(path.rstrip("."))

    def logits(self, ids: Sequence[int], kernel: str = "eager") -> Tensor:
        """``[pos, vocab]``"""
        return self.output(ids, kernel).logits[0]

    @torch.no_grad()
    def output(self, ids: Sequence[int], kernel: str = "eager", **kwargs: Any) -> Any:
        self.hf.set_attn_implementation(kernel)
        return self.hf(input_ids=torch.tensor([list(ids)]), use_cache=False, **kwargs)

    def has(self, kind: str) -> bool:
        needs = {
            "resid_mid": "mid",
            "mlp_pre": "pre",
            "mlp_pre_linear": "linear",
            "mlp_post": "down",
            "router": "router",
        }
        return kind not in needs or needs[kind] in self.names

    def edited(self, ids: Sequence[int], kind: str, layer: int | None, change: Change) -> Tensor:
        """Logits when ``change`` (of ``[1, pos, ...]``) is applied at one site of one prompt."""
        if kind in ("q", "k", "v", "scores", "pattern"):
            _in_attention[kind, layer or 0] = change
            try:
                return self.logits(ids, "reference")
            finally:
                _in_attention.clear()
        if kind == "logits":
            return change(self.logits(ids)[None])[0]
        handles = self._hooks(kind, layer, change)
        try:
            return self.logits(ids)
        finally:
            for handle in handles:
                handle.remove()

    def read(self, ids: Sequence[int], kind: str, layer: int | None) -> Tensor:
        """``[1, pos, ...]`` at one site."""
        seen: list[Tensor] = []
        self.edited(ids, kind, layer, lambda x: (seen.append(x.clone()), x)[1])
        return seen[0]

    def _hooks(self, kind: str, layer: int | None, change: Change) -> list[Any]:
        if kind in _OUTSIDE:
            return [self.module(_OUTSIDE[kind]).register_forward_hook(lambda _m, _a, out: change(out))]
        if (
            kind == "resid_mid"
        ):  # the MLP branch sees the change by a hook; the other branch gets it added at the block's end
            seen: list[Tensor] = []

            def enter(_m: Any, args: Any) -> Any:
                seen.append(change(args[0].clone()) - args[0])
                return (args[0] + seen[0], *args[1:])

            return [
                self.module("mid", layer).register_forward_pre_hook(enter),
                self.module("", layer).register_forward_hook(lambda _m, _a, out: out + seen[0]),
            ]
        if kind == "router":
            return [
                self.module("router", layer).register_forward_hook(
                    lambda m, _a, out: reroute(m, change(out[0][None])[0])
                )
            ]
        if kind in _ON_INPUT:
            heads = self.n_heads if kind == "z" else 0

            def before(_m: Any, args: Any, kwargs: Any) -> Any:
                x = args[0] if args else kwargs.pop("hidden_states")
                return ((change(x.unflatten(-1, (heads, -1))).flatten(-2) if heads else change(x)), *args[1:]), kwargs

            return [self.module(_ON_INPUT[kind], layer).register_forward_pre_hook(before, with_kwargs=True)]

        times = self.multiplier if kind in ("attn_out", "mlp_out") else 1.0

        def after(_m: Any, _a: Any, out: Any) -> Any:
            x, rest = (out, None) if isinstance(out, Tensor) else (out[0], out[1:])
            if self.names.get("pre") == self.names.get("linear") and kind in ("mlp_pre", "mlp_pre_linear"):
                gate, up = x.chunk(2, -1)
                return torch.cat([change(gate), up] if kind == "mlp_pre" else [gate, change(up)], -1)
            new = change(x * times) / times
            return new if rest is None else (new, *rest)

        return [self.module(_ON_OUTPUT[kind], layer).register_forward_hook(after)]


def reroute(router: Any, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expert choice written out token by token."""
    weights, indices = [], []
    for row in logits:
        if "GptOss" in type(router).__name__:
            chosen = row.argsort(descending=True)[: router.top_k]
            weight = row[chosen].exp() / row[chosen].exp().sum()
        else:
            share = row.exp() / row.exp().sum()
            chosen = share.argsort(descending=True)[: router.top_k]
            named = any(name in type(router).__name__ for name in ("Mixtral", "GraniteMoe"))
            renormalise = named or getattr(router, "norm_topk_prob", False)
            weight = share[chosen] / share[chosen].sum() if renormalise else share[chosen]
        weights.append(weight)
        indices.append(chosen)
    return logits, torch.stack(weights), torch.stack(indices)


@cache
def make_lens(family: str) -> Lens:
    return Lens(tiny(family))


@cache
def make_plain(family: str) -> Plain:
    model = tiny(family)
    multiplier = getattr(model.config, "residual_multiplier", 1.0)
    return Plain(copy.deepcopy(model.hf), _NAMES.get(family, _LLAMA), model.n_heads, multiplier)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: on shared cores a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lens_of() -> Callable[[str], Lens]:
    return make_lens


@pytest.fixture(scope="session")
def plain_of() -> Callable[[str], Plain]:
    return make_plain


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=MOE)
def moe(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lens(family: str) -> Lens:
    return make_lens(family)


@pytest.fixture
def plain(family: str) -> Plain:
    return make_plain(family)


@pytest.fixture(scope="session")
def long() -> list[int]:
    return LONG


@pytest.fixture(scope="session")
def short() -> list[int]:
    return SHORT


@pytest.fixture
def prompts() -> list[list[int]]:
    """Two prompts of one length."""
    return [SHORT, LONG[:8]]


@pytest.fixture
def others() -> list[list[int]]:
    """As long as ``prompts``, and other tokens: what edits patch from."""
    return [LONG[9:17], LONG[5:13]]
