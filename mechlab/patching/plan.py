"""What a patching run will cost, before it runs."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mechlab.lens.products import product
from mechlab.lens.site import KINDS
from mechlab.patching.rows import Group, Row, waves
from mechlab.patching.task import Task

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

__all__ = ["Plan"]

_CPU_TOKENS, _GPU_TOKENS = 2048, 65536  # enough to fill the matrix products; more only costs memory (and cache)
_SHARE_OF_FREE = 0.3


@dataclass(frozen=True)
class Plan:
    """The cost of a sweep.

    Attributes:
        interventions, prompts: as asked for.
        rows: intervention x prompt pairs that must be computed (unchanged and repeated ones are not).
        waves: passes through the model.
        tokens_per_wave: most tokens carried at once.
        token_layers: tokens times the layers they go through; of the last layer only each row's last token counts (of the others just keys
            and values are computed there).
        flops: floating-point operations of the rows and the two base runs (2 per multiply-add).
        full_flops: what one whole forward pass per intervention and prompt would take.
        memory_bytes: activations at the top of a wave, and what is kept of the base run.
        gflops_per_second: measured speed of matrix products of the model's sizes on its device.
    """

    interventions: int
    prompts: int
    rows: int
    waves: int
    tokens_per_wave: int
    token_layers: int
    flops: int
    full_flops: int
    memory_bytes: int
    gflops_per_second: float

    @property
    def seconds(self) -> float:
        """Estimated time, if all of it went into matrix products at that speed: a lower bound, far off only for tiny models."""
        return self.flops / (self.gflops_per_second * 1e9)

    def __str__(self) -> str:
        seconds = f"{self.seconds:,.0f}" if self.seconds >= 10 else f"{self.seconds:.2g}"
        return (
            f"{self.interventions:,} interventions x {self.prompts} prompts: {self.rows:,} rows in {self.waves} waves of at most "
            f"{self.tokens_per_wave:,} tokens; {self.token_layers:,} token-layers, {self.flops / 1e9:,.0f} GFLOP "
            f"({self.full_flops / max(self.flops, 1):.1f} times fewer than one pass each); {self.memory_bytes / 2**20:,.0f} MiB; "
            f"at least {seconds} s at {self.gflops_per_second:,.0f} GFLOP/s"
        )


def plan(lens: "Lens", task: Task, groups: Sequence[Group], rows: Sequence[Row], tokens_per_wave: int) -> Plan:
    """The cost of sweeping ``rows`` (see ``rows.rows``)."""
    n_layers, weights = lens.model.n_layers, [_active_weights(lens, block.block) for block in lens.layout.blocks]
    # What a token costs in each layer; from the last one of each row goes on.
    steps = [*weights[:-1], _keys_values(lens)]
    above = [sum(steps[layer:]) for layer in range(1, n_layers + 1)]
    swept = sum(row.n_entering * steps[row.entry] + row.n_tokens * above[row.entry] + weights[-1] for row in rows)
    unembed = lens.model.d_model * lens.model.vocab_size
    sides, n = task.clean.ids.numel() + task.corrupted.ids.numel(), len(task)  # padding is run too
    full = len(groups) * sum(task.clean.lengths) * (sum(weights) + unembed)
    kept = task.clean.ids.numel() * _kept_floats(lens, groups, [row.entry for row in rows])
    n_waves = sum(1 for _ in waves(rows, tokens_per_wave))
    top = min(tokens_per_wave, sum(row.n_tokens for row in rows))
    return Plan(
        interventions=len(groups),
        prompts=len(task),
        rows=len(rows),
        waves=n_waves,
        tokens_per_wave=tokens_per_wave,
        token_layers=sum(_token_layers(row, n_layers) for row in rows),
        flops=2 * (swept + sides * sum(weights) + 2 * n * unembed),
        full_flops=2 * full,
        memory_bytes=(top * _floats_per_token(lens) + kept) * lens.model.dtype.itemsize,
        gflops_per_second=matmul_speed(lens),
    )


def _token_layers(row: Row, n_layers: int) -> int:
    if row.entry == n_layers - 1:
        return 1
    return row.n_entering + row.n_tokens * (n_layers - 2 - row.entry) + 1


def tokens_per_wave(lens: "Lens") -> int:
    """How many tokens a wave may carry: enough to fill the matrix products, within a share of the free memory."""
    most = _GPU_TOKENS if lens.model.device.type == "cuda" else _CPU_TOKENS
    fits = int(_SHARE_OF_FREE * _free(lens) / (_floats_per_token(lens) * lens.model.dtype.itemsize))
    return max(256, min(most, fits))


def prompts_at_once(lens: "Lens", task: Task, groups: Sequence[Group], entries: Sequence[int]) -> int:
    """How many prompt pairs' runs may be kept at a time within a share of the free memory.

    All of them where an edit takes its values from several prompts (mean, resample): those cannot be split.
    """
    if any(edit.verb in ("mean", "resample") for group in groups for edit in group):
        return len(task)
    floats = task.clean.width * _kept_floats(lens, groups, entries)
    return max(1, int(_SHARE_OF_FREE * _free(lens) / max(1, floats * lens.model.dtype.itemsize)))


def _kept_floats(lens: "Lens", groups: Sequence[Group], entries: Sequence[int]) -> int:
    """Numbers kept per token position: residual streams where rows enter, keys and values above, and what edits take from either side."""
    model, sizes = lens.model, {"pos": 1, "d_head": lens.model.d_head, "d_model": lens.model.d_model}
    sizes |= {
        "head": model.n_heads,
        "kv_head": model.n_kv_heads,
        "vocab": model.vocab_size,
        "query": 1,
        "key": 256,
    }  # a pattern row
    sizes |= {"d_mlp": lens.layout.d_mlp or 0, "expert": lens.layout.n_experts or 0}
    layers = model.n_layers - min(entries, default=model.n_layers)
    total = (
        len({*entries, *(entry + 1 for entry in entries)}) * model.d_model
        + 2 * layers * model.n_kv_heads * model.d_head
    )
    wholes = {(edit.source, edit.site.whole) for group in groups for edit in group if edit.source is not None}
    for _, at in wholes:
        size = 1
        for axis in KINDS[at.kind].axes:
            size *= sizes[axis]
        total += size
    return total


def _free(lens: "Lens") -> int:
    device = lens.model.device
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_bytes()


def _free_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _floats_per_token(lens: "Lens") -> int:
    """Activations alive at once for a token within a layer: the residual stream, queries, keys, values, z, and the MLP's branches."""
    heads = lens.model.d_head * (2 * lens.model.n_heads + 4 * lens.model.n_kv_heads)
    mlp = 4 * (lens.layout.d_mlp or 4 * lens.model.d_model)
    return 4 * lens.model.d_model + heads + mlp


def _active_weights(lens: "Lens", module: nn.Module) -> int:
    """Weights one token meets in ``module``: of the experts only those that are chosen."""
    routers = [block.router for block in lens.layout.blocks if block.router is not None]
    total = 0
    for weight in module.parameters():
        if weight.ndim == 2:
            total += weight.numel()
        elif weight.ndim == 3 and routers:  # fused experts
            total += weight.numel() * int(routers[0].top_k) // weight.shape[0]  # pyright: ignore[reportArgumentType, reportOperatorIssue]
    return total


def _keys_values(lens: "Lens") -> int:
    """Weights one token meets in the last layer on the way to its keys and values (its query comes with them)."""
    block = lens.layout.blocks[-1]
    return _active_weights(lens, block.attn) - _active_weights(lens, block.attn_proj)


def matmul_speed(lens: "Lens", seconds: float = 0.1, multiply: Callable[[Tensor, Tensor], Tensor] = product) -> float:
    """GFLOP/s of a matrix product of this model's sizes, on its device and in its dtype; measured once, for ``seconds``.

    ``multiply``: as the sweep does it, unless another way is to be measured.
    """
    width = lens.layout.d_mlp or 4 * lens.model.d_model
    threads = torch.get_num_threads()
    return _speed(lens.model.device, lens.model.dtype, lens.model.d_model, width, threads, seconds, multiply)


@cache
def _speed(
    device: torch.device,
    dtype: torch.dtype,
    d_in: int,
    d_out: int,
    _threads: int,
    seconds: float,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> float:
    a = torch.randn(512, d_in, device=device, dtype=dtype)
    w = torch.randn(d_out, d_in, device=device, dtype=dtype)
    at_once = 1 if device.type == "cpu" else 50  # a device is waited for after so many
    rates: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(rates) < 2:
        start = time.perf_counter()
        found = a.new_empty(0)
        for _ in range(at_once):
            found = multiply(a, w)
        float(found[0, 0])
        rates.append(2 * a.shape[0] * d_in * d_out * at_once / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)
