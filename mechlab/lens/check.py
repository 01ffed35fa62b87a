"""The parity report: does the lens see this model as Hugging Face runs it, here, in this dtype?

Each row is one measured number with the bound it is held to. Rows without a bound are measured for the reader (the fast kernel and bfloat16
round differently by nature).
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.lens import edit
from mechlab.lens.lens import Lens
from mechlab.lens.routing import choose
from mechlab.lens.site import Site
from mechlab.models.twin import over_same_weights

__all__ = ["Check", "parity"]

PROMPTS = ("When Mary and John went to the store, John gave a drink to", "The capital of France is")


@dataclass(frozen=True)
class Check:
    """One line of the report. ``ok`` is None where the value is only measured."""

    name: str
    value: float
    bound: str
    ok: bool | None


def parity(lens: Lens, progress: Callable[[str, int, int], None] | None = None) -> list[Check]:
    """Runs every check on two short prompts.

    ``progress`` is called with (label, done, total). The bounds are for the model's own dtype: float32 ones are widened by the ratio of
    machine epsilons for lower precision.
    """
    steps = [_eager, _fast, _batched, _parts, _attention_rows, _edits, _routers, _bfloat16]
    checks: list[Check] = []
    for done, step in enumerate(steps):
        if progress:
            progress(step.__name__.strip("_").replace("_", " "), done, len(steps))
        checks.extend(step(lens))
    if progress:
        progress("done", len(steps), len(steps))
    return checks


def _widen(lens: Lens) -> float:
    return torch.finfo(lens.model.dtype).eps / torch.finfo(torch.float32).eps


def _below(name: str, value: float, bound: float) -> Check:
    return Check(name, value, f"≤ {bound:.0e}", value <= bound)


@torch.no_grad()
def _plain(lens: Lens, kernel: str, dtype: torch.dtype | None = None) -> Tensor:
    """Logits of the first prompt from transformers alone, on a module tree of its own over the same weights."""
    hf = lens.model.hf
    model = over_same_weights(hf) if dtype is None else copy.deepcopy(hf).to(dtype)  # pyright: ignore[reportArgumentType]
    model.set_attn_implementation(kernel)
    return model(input_ids=_ids(lens), use_cache=False).logits


def _ids(lens: Lens) -> Tensor:
    return lens.tokens(PROMPTS[0]).ids.to(lens.model.device)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _all_patterns(lens: Lens) -> list[Site]:
    return [Site("pattern", layer) for layer in range(lens.model.n_layers)]


def _eager(lens: Lens) -> Iterator[Check]:
    read = lens.run(PROMPTS[0], read=_all_patterns(lens)).logits
    assert read is not None
    difference = _difference(read, _plain(lens, "eager"))
    yield Check(
        "logits, every pattern read, against Hugging Face eager: max |Δ|", difference, "exactly 0", difference == 0
    )


def _fast(lens: Lens) -> Iterator[Check]:
    fast = lens.run(PROMPTS[0]).logits
    assert fast is not None
    plain = _plain(lens, "eager")
    yield _below(
        "logits, fast attention, against Hugging Face eager: max |Δ|", _difference(fast, plain), 1e-3 * _widen(lens)
    )
    try:
        sdpa = _plain(lens, "sdpa")
    except ValueError:  # transformers refuses sdpa for families with soft-capping or sinks; so does the lens, which then runs the formula
        return
    yield Check("logits, fast attention, against Hugging Face sdpa: max |Δ|", _difference(fast, sdpa), "measured", None)


def _batched(lens: Lens) -> Iterator[Check]:
    together = lens.run(PROMPTS, logits="last").last_logits
    alone = [lens.run(prompt, logits="last").last_logits for prompt in PROMPTS]
    assert together is not None
    difference = max(_difference(together[i], one[0]) for i, one in enumerate(alone) if one is not None)
    yield _below(
        "last logits, two prompts of unequal length batched against one by one: max |Δ|",
        difference,
        1e-3 * _widen(lens),
    )


def _parts(lens: Lens) -> Iterator[Check]:
    layers = range(lens.model.n_layers)
    parts = [Site(kind, layer) for layer in layers for kind in ("attn_out", "mlp_out")]
    start, end = Site("resid_pre", 0), Site("resid_post", lens.model.n_layers - 1)
    run = lens.run(PROMPTS[0], read=[start, *parts, end], logits="none")
    total = run[start].double() + sum(run[part].double() for part in parts)
    relative = float((total - run[end].double()).norm() / run[end].double().norm())
    yield _below(
        "embedding + every attention and MLP output = final residual stream: relative error",
        relative,
        1e-5 * _widen(lens),
    )
    if all(
        "result" in lens.layout.kinds(layer) and lens.layout.blocks[layer].attn_out is lens.layout.blocks[layer].attn
        for layer in layers
    ):
        yield _heads(lens)


def _heads(lens: Lens) -> Check:
    worst = 0.0
    for layer in range(lens.model.n_layers):
        run = lens.run(PROMPTS[0], read=[Site("result", layer), Site("attn_out", layer)], logits="none")
        bias = lens.layout.blocks[layer].attn_bias
        total = run[Site("result", layer)].double().sum(2) + (0 if bias is None else bias.double())
        out = run[Site("attn_out", layer)].double()
        worst = max(worst, float((total - out).norm() / out.norm().clamp_min(1e-30)))
    return _below(
        "per-head results (+ bias) = attention output: worst relative error of a layer", worst, 1e-5 * _widen(lens)
    )


def _attention_rows(lens: Lens) -> Iterator[Check]:
    run = lens.run(PROMPTS[0], read=_all_patterns(lens), logits="none")
    sums = torch.stack([run[at].float().sum(-1) for at in run.activations])
    # Families with sink logits (GPT-OSS) leave a share of the attention to the sink: rows may sum to less than 1, never to more.
    sinks = any(hasattr(block.attn, "sinks") for block in lens.layout.blocks)
    off = float((sums - 1).clamp_min(0).max() if sinks else (sums - 1).abs().max())
    yield _below(f"attention rows sum to {'at most ' if sinks else ''}1: max |Δ|", off, 1e-5 * _widen(lens))


def _edits(lens: Lens) -> Iterator[Check]:
    plain = lens.run(PROMPTS[0], logits="last").last_logits
    assert plain is not None
    middle = lens.model.n_layers // 2
    for kind in ("resid_pre", "resid_mid", "q", "k", "v", "pattern", "z", "attn_out", "mlp_post", "mlp_out", "router"):
        if kind in lens.layout.kinds(middle):
            # a router of all zeros would only break ties; turned round, it prefers other experts
            change = edit.scale(Site(kind, middle), -1.0) if kind == "router" else edit.zero(Site(kind, middle))
            edited = lens.run(PROMPTS[0], [change], logits="last").last_logits
            assert edited is not None
            moved = _difference(edited, plain)
            yield Check(f"{change} moves the logits: max |Δ|", moved, "> 0", moved > 0)


def _routers(lens: Lens) -> Iterator[Check]:
    for layer, block in enumerate(lens.layout.blocks):
        if block.router is not None:
            run = lens.run(PROMPTS[0], read=[Site("router", layer), Site("expert_weights", layer)], logits="none")
            again = choose(block.router, run[Site("router", layer)][0]).dense()
            difference = _difference(again, run[Site("expert_weights", layer)][0])
            yield _below(
                "router's choice made again by mechlab: max |Δ| of the weights", difference, 1e-6 * _widen(lens)
            )
            return


def _bfloat16(lens: Lens) -> Iterator[Check]:
    if lens.model.dtype != torch.float32:
        return
    difference = _difference(
        _plain(lens, "sdpa" if _takes_sdpa(lens) else "eager", torch.bfloat16), _plain(lens, "eager")
    )
    yield Check(
        "what bfloat16 would change (Hugging Face bf16 against float32): max |Δ| of the logits",
        difference,
        "measured",
        None,
    )


def _takes_sdpa(lens: Lens) -> bool:
    try:
        _plain(lens, "sdpa")
    except ValueError:
        return False
    return True
