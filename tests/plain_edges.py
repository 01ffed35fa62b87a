"""Edges patched by plain hooks in one forward pass: every receiver's stream is summed anew from what its own senders write.

It knows nothing of mechlab's sites, rows or runs, but only of transformers' module names in a few families.
"""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mechlab.patching.task import Task

NOTHING = nn.Identity()
# What is applied before and after attention, then before and after the MLP; what is hooked to give a query, key or value.
NORMS = {
    "llama": ("input_layernorm", None, "post_attention_layernorm", None),
    "granite": ("input_layernorm", None, "post_attention_layernorm", None),
    "granitemoe": ("input_layernorm", None, "post_attention_layernorm", None),
    "gemma2": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "gemma3": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    "olmo2": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
}


class PlainEdges:
    """One forward pass of ``hf`` over ``ids`` with ``edges`` patched from ``source`` (the senders' outputs of another such pass)."""

    def __init__(self, family: str, hf: nn.Module, ids: Tensor, edges=(), source=None) -> None:
        self.family, self.hf, self.edges, self.source = family, hf, set(edges), source
        self.d_head = hf.model.layers[0].self_attn.head_dim
        self.times = getattr(
            hf.config, "residual_multiplier", 1.0
        )  # Granite adds so many times what attention and MLP give
        self.written: dict[tuple[str, int], Tensor] = {}  # ("input", 0), ("z", layer), ("mlp", layer)
        with ExitStack() as stack, torch.no_grad():
            for layer in range(len(hf.model.layers)):
                for handle in self._hooks(layer):
                    stack.callback(handle.remove)
            stack.callback(hf.model.norm.register_forward_hook(self._at_logits).remove)
            self.logits = hf(input_ids=ids, use_cache=False).logits

    def norms(self, layer: int) -> list[nn.Module]:
        block = self.hf.model.layers[layer]
        return [NOTHING if name is None else getattr(block, name) for name in NORMS[self.family]]

    def heads(self, joint: Tensor) -> list[slice]:
        return [slice(start, start + self.d_head) for start in range(0, joint.shape[-1], self.d_head)]

    def stream(self, receiver: str, attentions: int, mlps: int) -> Tensor | None:
        """What ``receiver`` reads after so many attentions and MLPs; None where none of its edges is patched."""
        mine = {edge.split("->")[0] for edge in self.edges if edge.split("->")[1] == receiver}
        if not mine:
            return None
        pick = lambda name, key: (self.source if name in mine else self.written)[key]  # noqa: E731
        total = pick("input", ("input", 0)).clone()
        for layer in range(attentions):
            z = self.written["z", layer].clone()
            for head, rows in enumerate(self.heads(z)):
                z[..., rows] = pick(f"a{layer}.h{head}", ("z", layer))[..., rows]
            attention = self.hf.model.layers[layer].self_attn.o_proj.forward(z)
            total += self.times * self.norms(layer)[1].forward(attention)
        for layer in range(mlps):
            total += self.times * pick(f"m{layer}", ("mlp", layer))
        return total

    def _hooks(self, layer: int):
        block = self.hf.model.layers[layer]
        if layer == 0:
            yield block.register_forward_pre_hook(lambda _m, args: self.written.__setitem__(("input", 0), args[0]))
        keep = lambda _m, args: self.written.__setitem__(("z", layer), args[0])  # noqa: E731
        yield block.self_attn.o_proj.register_forward_pre_hook(keep)
        for letter in "qkv":
            # OLMo-2 norms the queries (keys) of all heads together: a head's query is a part of what the norm gives.
            last = f"{letter}_norm" if self.family == "olmo2" and letter != "v" else f"{letter}_proj"
            hook = lambda _m, _args, output, letter=letter: self._at_heads(layer, letter, output)  # noqa: E731
            yield getattr(block.self_attn, last).register_forward_hook(hook)
        mlp = block.block_sparse_moe if self.family == "granitemoe" else block.mlp
        yield mlp.register_forward_hook(lambda _m, _args, output: self._at_mlp(layer, mlp, output))
        wrote = mlp if self.norms(layer)[3] is NOTHING else self.norms(layer)[3]
        yield wrote.register_forward_hook(lambda _m, _args, output: self.written.__setitem__(("mlp", layer), output))

    def _at_heads(self, layer: int, letter: str, output: Tensor) -> Tensor:
        attention, new = self.hf.model.layers[layer].self_attn, output.clone()
        for head, rows in enumerate(self.heads(output)):
            stream = self.stream(f"a{layer}.h{head}<{letter}>", layer, layer)
            if stream is None:
                continue
            made = getattr(attention, f"{letter}_proj").forward(self.norms(layer)[0].forward(stream))
            if self.family == "olmo2" and letter != "v":
                made = getattr(attention, f"{letter}_norm").forward(made)
            new[..., rows] = made[..., rows]
        return new

    def _at_mlp(self, layer: int, mlp: nn.Module, output: Tensor) -> Tensor:
        stream = self.stream(f"m{layer}", layer + 1, layer)
        return output if stream is None else mlp.forward(self.norms(layer)[2].forward(stream))

    def _at_logits(self, norm: nn.Module, _args, output: Tensor) -> Tensor:
        layers = len(self.hf.model.layers)
        stream = self.stream("logits", layers, layers)
        return output if stream is None else norm.forward(stream)


def patched(family: str, lens, task: Task, edges, base: str = "clean") -> Tensor:
    """``[n, vocab]`` last logits of the base side with these edges patched from the other."""
    sides = {"clean": task.clean.ids, "corrupted": task.corrupted.ids}
    other = sides["corrupted" if base == "clean" else "clean"]
    source = PlainEdges(family, lens.model.hf, other).written
    logits = PlainEdges(family, lens.model.hf, sides[base], edges, source).logits
    return logits[torch.arange(len(task)), torch.tensor(task.clean.lengths) - 1]
