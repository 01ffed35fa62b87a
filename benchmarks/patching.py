"""Exact activation patching: TransformerLens's patching utilities against the packed sweep, side by side in one process.

Both get the same model, prompts, interventions and metric. TransformerLens runs one forward pass per intervention, whatever the
intervention, so it is timed on a stratified sample and scaled to the grid (the sample is stated). The sweep is always timed on the whole
grid, base runs included. The two alternate; times are medians over rounds, CPU time of the process beside wall time. On the residual and
head grids of one pair TransformerLens also runs once on every intervention, and all values are compared.

    python benchmarks/patching.py [--rounds 5] [--quick] [--out benchmarks/results/patching.md]
    python benchmarks/patching.py --only a1 b1-bf16          # these rows only, printed; written only where --out says
"""

import argparse
import gc
import itertools
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from transformer_lens import patching as reference  # noqa: E402

from circuits.tasks.ioi import ioi  # noqa: E402
from mechlab.lens.edit import Edit, patch  # noqa: E402
from mechlab.lens.lens import Lens  # noqa: E402
from mechlab.lens.products import product  # noqa: E402
from mechlab.lens.site import Site  # noqa: E402
from mechlab.models import load  # noqa: E402
from mechlab.patching.plan import matmul_speed  # noqa: E402
from mechlab.patching.screen import in_dtype  # noqa: E402
from mechlab.patching.task import Task  # noqa: E402
from mechlab.results.metrics import logit_difference  # noqa: E402
from mechlab.results.provenance import cpu_name  # noqa: E402

SAMPLE = 6  # interventions on which TransformerLens is timed in each round
LONG = 30.0  # seconds: a grid that takes longer is timed once


@dataclass(frozen=True)
class Grid:
    """One row of the benchmark: interventions, and TransformerLens's way of making one of them."""

    name: str
    columns: tuple[str, ...]
    activation: str
    setter: Callable[..., object]
    edit: Callable[..., Edit]


GRIDS = {
    "a": Grid(
        "residual stream, layer x position",
        ("layer", "pos"),
        "resid_pre",
        reference.layer_pos_patch_setter,
        lambda layer, pos: patch(Site("resid_pre", layer, pos=pos)),
    ),
    "b": Grid(
        "heads, layer x head",
        ("layer", "head_index"),
        "z",
        reference.layer_head_vector_patch_setter,
        lambda layer, head: patch(Site("z", layer, head)),
    ),
    "c": Grid(
        "heads x positions",
        ("layer", "pos", "head_index"),
        "z",
        reference.layer_pos_head_vector_patch_setter,
        lambda layer, pos, head: patch(Site("z", layer, head, pos)),
    ),
    "d": Grid(
        "MLP outputs, layer x position",
        ("layer", "pos"),
        "mlp_out",
        reference.layer_pos_patch_setter,
        lambda layer, pos: patch(Site("mlp_out", layer, pos=pos)),
    ),
}


@dataclass(frozen=True)
class Times:
    """Seconds of CPU and of wall time."""

    cpu: float
    wall: float


def timed(work: Callable[[], object]) -> Times:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Times(time.process_time() - cpu, time.perf_counter() - wall)


def median(times: Sequence[Times]) -> Times:
    return Times(statistics.median(t.cpu for t in times), statistics.median(t.wall for t in times))


def peak_mib(work: Callable[[], object]) -> float:
    """MiB of resident memory that ``work`` takes at most over what the process had, sampled every 2 ms."""
    gc.collect()
    process, samples, done = psutil.Process(), list[int](), threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(process.memory_info().rss)

    before = process.memory_info().rss
    sampler = threading.Thread(target=sample)
    sampler.start()
    work()
    done.set()
    sampler.join()
    return (max(samples) - before) / 2**20


def places(grid: Grid, lens: Lens, n_positions: int) -> list[tuple[int, ...]]:
    sizes = {"layer": lens.model.n_layers, "pos": n_positions, "head_index": lens.model.n_heads}
    return [tuple(at) for at in torch.cartesian_prod(*(torch.arange(sizes[c]) for c in grid.columns)).tolist()]


def equal_length_pairs(lens: Lens, n: int) -> Task:
    """IOI pairs of one token length (TransformerLens patches by index), the two names exchanged everywhere in the corrupted prompt."""
    task = ioi(lens, 60 * n, seed=0)
    length = max(set(task.clean.lengths), key=task.clean.lengths.count)
    rows = [i for i, own in enumerate(task.clean.lengths) if own == length][:n]
    assert len(rows) == n, f"only {len(rows)} prompts of {length} tokens"
    task = task.select(rows)
    ids, io, subject = task.clean.ids, task.answers[:, None], task.foils[:, None]
    exchanged = torch.where(ids == io, subject, torch.where(ids == subject, io, ids))
    return Task("ioi, names exchanged", task.clean, lens.tokens(exchanged.tolist()), task.answers, task.foils)


def long_prompt(lens: Lens, *, early: bool, n_tokens: int = 128) -> Task:
    """One pair of 128 tokens that differ at the names: near the start (the names come first) or only at the end."""
    pair = equal_length_pairs(lens, 1)
    filler = lens.tokens(
        " The weather was fine and the streets were quiet, as they often are at that time of the year." * 12
    ).ids[0]
    sides = []
    for side in (pair.clean, pair.corrupted):
        ids = side.ids[0]
        body = filler[: n_tokens - len(ids)]
        cut = len(ids) // 2
        sides.append(
            lens.tokens([(torch.cat([ids[:cut], body, ids[cut:]]) if early else torch.cat([body, ids])).tolist()])
        )
    return Task("ioi, 128 tokens", *sides, pair.answers, pair.foils)


def path_grid(lens: Lens, bridge: object, task: Task, rounds: int) -> dict[str, object]:
    """(e) path patching from every head to the logits: later heads frozen at the clean run, MLPs computed again."""
    senders = [Site("z", layer, head) for layer in range(lens.model.n_layers) for head in range(lens.model.n_heads)]
    sample = [senders[i * len(senders) // SAMPLE + len(senders) // (2 * SAMPLE)] for i in range(SAMPLE)]
    keep = lambda name: name.endswith("hook_z")  # noqa: E731
    (_, clean), (_, corrupted) = (
        bridge.run_with_cache(side.ids, names_filter=keep) for side in (task.clean, task.corrupted)
    )  # pyright: ignore

    def one(sender: Site) -> float:
        def send(z: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
            z = z.clone()
            z[:, :, sender.index] = corrupted[sender.hook_name][:, :, sender.index]
            return z

        def freeze(name: str, z: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
            return clean[name]

        above = [Site("z", layer).hook_name for layer in range((sender.layer or 0) + 1, lens.model.n_layers)]
        hooks = [(sender.hook_name, send), *((name, partial(freeze, name)) for name in above)]
        with torch.no_grad():
            logits = bridge.run_with_hooks(task.clean.ids, fwd_hooks=hooks)  # pyright: ignore
        return float(logit_difference(logits[:, -1], task.answers, task.foils).mean())

    values: list[float] = []
    ours_values: list[float] = []
    theirs_times, ours_times = [], []
    for _ in range(rounds):
        theirs_times.append(timed(lambda: values.__setitem__(slice(None), [one(sender) for sender in sample])))
        ours_times.append(
            timed(
                lambda: ours_values.__setitem__(
                    slice(None), lens.path_effects(task, senders).points()["after"].tolist()
                )
            )
        )
    difference = max(
        abs(value - ours_values[senders.index(sender)]) for value, sender in zip(values, sample, strict=True)
    )
    row = times_row(theirs_times, ours_times, len(senders) / SAMPLE)
    names = {"grid": "(e) paths, every head -> logits", "pairs": len(task), "tokens": task.clean.lengths[0]}
    unknown = dict.fromkeys(("FLOP ratio", "GFLOP/s", "matmul GFLOP/s", "of matmul peak"), float("nan"))
    return {
        **names,
        "interventions": len(senders),
        **row,
        **unknown,
        "max abs difference": difference,
        "compared": len(sample),
        "rounds": rounds,
    }


def times_row(theirs: Sequence[Times], ours: Sequence[Times], scale: float) -> dict[str, float]:
    slow, fast = median(theirs), median(ours)
    return {
        "TransformerLens CPU s": slow.cpu * scale,
        "mechlab CPU s": fast.cpu,
        "ratio CPU": slow.cpu * scale / fast.cpu,
        "TransformerLens wall s": slow.wall * scale,
        "mechlab wall s": fast.wall,
        "ratio wall": slow.wall * scale / fast.wall,
    }


def compare(lens: Lens, bridge: object, key: str, task: Task, rounds: int, *, every: bool) -> dict[str, object]:
    """One row. ``every``: TransformerLens runs once on every intervention (untimed), to compare all values."""
    grid = GRIDS[key]
    where = places(grid, lens, task.clean.lengths[0])
    edits = [grid.edit(*at) for at in where]
    sample = [where[i * len(where) // SAMPLE + len(where) // (2 * SAMPLE)] for i in range(SAMPLE)]
    _, cache = bridge.run_with_cache(task.clean.ids, names_filter=lambda name: grid.activation in name)  # pyright: ignore
    measure = lambda logits: logit_difference(logits[:, -1], task.answers, task.foils).mean()  # noqa: E731

    def theirs(at: Sequence[tuple[int, ...]] = sample) -> torch.Tensor:
        with torch.no_grad():
            return reference.generic_activation_patch(
                bridge,
                task.corrupted.ids,
                cache,
                measure,
                grid.setter,
                grid.activation,
                index_df=pd.DataFrame(at, columns=list(grid.columns)),  # pyright: ignore
            )

    ours_values: list[float] = []

    def ours() -> None:
        ours_values[:] = lens.effects(task, edits).points()["after"].tolist()

    compared = where if every else sample
    values = theirs(compared).tolist()
    ours_times, theirs_times, speeds = [], [], [speed_now(lens)]
    for round_ in range(rounds):
        theirs_times.append(timed(theirs))
        ours_times.append(timed(ours))
        speeds.append(speed_now(lens))
        if ours_times[0].wall > LONG:
            break
        print(f"  {key} x {len(task)}: round {round_ + 1}/{rounds}", flush=True)
    found = dict(zip(where, ours_values, strict=True))
    difference = max(abs(value - found[at]) for value, at in zip(values, compared, strict=True))
    plan, fast, peak = lens.plan(task, edits), median(ours_times), statistics.median(speeds)
    return {
        "grid": f"({key}) {grid.name}",
        "pairs": len(task),
        "tokens": task.clean.lengths[0],
        "interventions": len(where),
        **times_row(theirs_times, ours_times, len(where) / SAMPLE),
        "FLOP ratio": plan.full_flops / plan.flops,
        "GFLOP/s": plan.flops / fast.wall / 1e9,
        "matmul GFLOP/s": peak,
        "of matmul peak": plan.flops / fast.wall / 1e9 / peak,
        "max abs difference": difference,
        "compared": len(compared),
        "rounds": len(ours_times),
    }


def in_half(lens: Lens, key: str, task: Task, rounds: int) -> dict[str, object]:
    """The same grid by the sweep in bfloat16 beside float32: not exact, so with its deviation (mean logit difference of the pairs)."""
    half, edits = in_dtype(lens, torch.bfloat16), interventions(lens, key, task)
    values: dict[str, pd.DataFrame] = {}
    times: dict[str, list[Times]] = {"float32": [], "bfloat16": []}
    for _ in range(rounds):
        for name, one in (("float32", lens), ("bfloat16", half)):
            times[name].append(
                timed(lambda name=name, one=one: values.update({name: one.effects(task, edits).points()}))
            )
        if times["float32"][0].wall > LONG:
            break
    exact, rough = (values[name].set_index("intervention") for name in times)
    off, change_off = ((exact[name] - rough[name]).abs() for name in ("after", "change"))
    strongest, ranked = (set(one["change"].abs().nlargest(20).index) for one in (exact, rough))
    single, double = median(times["bfloat16"]), median(times["float32"])
    return {
        "grid": f"({key}) {GRIDS[key].name}",
        "pairs": len(task),
        "interventions": len(edits),
        "float32 CPU s": double.cpu,
        "bfloat16 CPU s": single.cpu,
        "ratio CPU": double.cpu / single.cpu,
        "ratio wall": double.wall / single.wall,
        "max abs deviation": float(off.max()),
        "median abs deviation": float(off.median()),
        "max abs deviation of change": float(change_off.max()),
        "median abs deviation of change": float(change_off.median()),
        "largest change": float(exact["change"].abs().max()),
        "top 20 in common": len(strongest & ranked),
        "rounds": len(times["float32"]),
    }


CASES = (
    "e1",
    "a1",
    "b1",
    "c1",
    "d1",
    "a8",
    "b8",
    "c8",
    "a64",
    "a128-early",
    "a128-late",
    "a1-bf16",
    "b1-bf16",
    "a8-bf16",
)
QUICK = ("e1", "a1", "b1", "c1", "d1", "a1-bf16", "b1-bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peak",
        choices=[c for c in CASES if c[0] in GRIDS and "bf16" not in c],
        metavar="ROW",
        help="print the memory it takes, and nothing else",
    )
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--quick", action="store_true", help="one pair only, no long prompt")
    chosen.add_argument("--only", nargs="+", choices=CASES, metavar="ROW", help=f"of {', '.join(CASES)}")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/patching.md; with --only nowhere")
    arguments = parser.parse_args()
    out = arguments.out or (None if arguments.only else Path(__file__).parent / "results" / "patching.md")
    lens = Lens(load(), prepend_bos=True)
    if arguments.peak:
        print_peak(lens, arguments.peak)
        return
    bridge = lens.bridge()
    at_start = (speed_now(lens), speed_now(lens, torch.nn.functional.linear))
    exact: list[dict[str, object]] = []
    half: list[dict[str, object]] = []
    for case in arguments.only or (QUICK if arguments.quick else CASES):
        key, task = case[0], prompts(lens, case)
        if case.endswith("bf16"):
            half.append(in_half(lens, key, task, arguments.rounds))
        elif key == "e":
            exact.append(path_grid(lens, bridge, task, arguments.rounds))
        else:
            exact.append(compare(lens, bridge, key, task, arguments.rounds, every=case in ("a1", "b1")))
        text = page(lens, at_start, exact, half)
        print(f"{case} done", flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text)
    if out is not None and not (arguments.quick or arguments.only):
        text += memory("c8")
        out.write_text(text)
    print(text)


_turn = itertools.count()


def speed_now(lens: Lens, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = product) -> float:
    """GFLOP/s of a product of the model's sizes, as the sweep multiplies or otherwise: a machine's speed is not the same all the time."""
    return matmul_speed(lens, 1 + next(_turn) / 1e6, multiply)  # each measurement is remembered by its length


def interventions(lens: Lens, key: str, task: Task) -> list[Edit]:
    grid = GRIDS[key]
    return [grid.edit(*at) for at in places(grid, lens, task.clean.lengths[0])]


def print_peak(lens: Lens, case: str) -> None:
    task = prompts(lens, case)
    edits = interventions(lens, case[0], task)
    lens.run(task.select([0]).clean)  # what only the first run takes
    print(peak_mib(lambda: lens.effects(task, edits)))


def printed(command: Sequence[str]) -> float:
    """The number that a process of its own prints last."""
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory(case: str) -> str:
    """One sentence on a row's peak memory, from a process of its own."""
    mib = printed([sys.executable, __file__, "--peak", case])
    return f"\n## Memory\n\nRow ({case[0]}) with {case[1:]} pairs takes {mib:,.0f} MiB of resident memory over the loaded model at most.\n"


def prompts(lens: Lens, case: str) -> Task:
    """``a8``: eight pairs; ``a128-early``: one of 128 tokens."""
    size = case[1:].removesuffix("-bf16")
    if size.startswith("128"):
        return long_prompt(lens, early=size.endswith("early"))
    return equal_length_pairs(lens, int(size))


def page(lens: Lens, speeds: tuple[float, float], exact: list[dict[str, object]], half: list[dict[str, object]]) -> str:
    header = (
        f"# Exact activation patching\n\n`make bench-patching`: {lens.model.name}, {lens.model.dtype}, "
        f"{torch.get_num_threads()} threads of {cpu_name()} ({platform.machine()}), torch {torch.__version__}. At first a matrix product "
        f"of the model's sizes ran at {speeds[0]:.0f} GFLOP/s as the sweep multiplies (oneDNN), at {speeds[1]:.0f} by PyTorch's linear "
        "layers, as in TransformerLens; the peak of a row is the former, measured between the runs of that row (median). "
        f"TransformerLens is timed on {SAMPLE} interventions of each grid per round and scaled; mechlab on the whole "
        f"grid, base runs included. Medians over the rounds stated; a grid over {LONG:.0f} s is timed once. FLOP ratio: one whole pass per "
        "intervention over what the sweep computes. The difference is between the mean logit differences of both, on as many interventions "
        "as are compared.\n\n"
    )
    lower = (
        '\n## bfloat16, not exact\n\nThe same sweep with the model in bfloat16: what `screen="bf16"` ranks interventions by before the '
        "strongest are computed exactly. Faster only where the hardware multiplies bfloat16 natively. Deviations from float32 are of the "
        "logit difference, and of its change from the base run (which is what screening takes; an offset common to all drops out).\n\n"
    )
    return header + table(exact) + (lower + table(half) if half else "")


def table(rows: list[dict[str, object]]) -> str:
    if not rows:
        return ""
    shown = pd.DataFrame(rows)
    for column in shown:
        if shown[column].dtype == "float64":
            tiny = "abs" in column
            shown[column] = ["–" if v != v else f"{v:.1e}" if tiny else f"{v:.3g}" for v in shown[column]]
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in shown.itertuples(index=False)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
