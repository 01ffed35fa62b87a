"""Circuit discovery: edge attribution beside public-style code, exact nodes beside one pass of it, and every edge exactly.

The reference is ``transformerlens_attribution.py``: the same formulas with TransformerLens's hooks, the way public code computes them.
Both get the same model, prompts and metric in one process, one after the other; times are medians, CPU time of the process beside wall
time, and all scores are compared. Public code leaves the gradients of all weights on, although nothing needs them; for EAP the reference
is also timed with weights frozen. Peak memory is sampled in a process of its own for each measurement, over what the loaded model takes.

    python -m benchmarks.discovery [--rounds 3] [--only attribution nodes edges] [--out benchmarks/results/circuits.md]

A section that is run again replaces the one in the page; the others stay.
"""

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
warnings.simplefilter("ignore")

import torch  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402
from torch import Tensor  # noqa: E402
from transformer_lens import HookedTransformer  # noqa: E402

from benchmarks import transformerlens_attribution as reference  # noqa: E402
from benchmarks.patching import LONG, Times, equal_length_pairs, median, peak_mib, printed, table, timed  # noqa: E402
from circuits.methods import eap, eap_ig, exact_edges  # noqa: E402
from circuits.methods.method import MethodSettings  # noqa: E402
from circuits.tasks.ioi import ioi  # noqa: E402
from circuits.wiring import Wiring  # noqa: E402
from mechlab.lens.edit import patch  # noqa: E402
from mechlab.lens.lens import Lens  # noqa: E402
from mechlab.lens.site import Site  # noqa: E402
from mechlab.models import load  # noqa: E402
from mechlab.patching.task import Task  # noqa: E402
from mechlab.results.metrics import logit_difference  # noqa: E402
from mechlab.results.provenance import cpu_name  # noqa: E402

BATCH = 8
STEPS = 5
SIZES = (1, 8, 32)
METHODS = ("eap", "eap-ig")


def ours(wiring: Wiring, task: Task, method: str) -> Tensor:
    if method == "eap":
        return eap.METHOD.score(wiring, task, MethodSettings(batch_size=BATCH)).values
    return eap_ig.METHOD.score(wiring, task, eap_ig.Settings(batch_size=BATCH, steps=STEPS)).values


def theirs(model: HookedTransformer, task: Task, method: str, *, frozen: bool, steps: int = STEPS) -> Tensor:
    for parameter in model.parameters():
        parameter.requires_grad_(not frozen)
    model.embed.W_E.requires_grad_(True)  # something must ask for gradients
    if method == "eap":
        return reference.eap(model, task, metric, BATCH)
    return reference.eap_ig(model, task, metric, BATCH, steps)


def metric(pairs: Task) -> Callable[[Tensor], Tensor]:
    """Summed logit difference from all logits ``[batch, pos, vocab]``."""
    ends = torch.tensor(pairs.clean.lengths) - 1
    rows = torch.arange(len(ends))
    return lambda logits: logit_difference(logits[rows, ends], pairs.answers, pairs.foils).sum()


def attribution(lens: Lens, rounds: int) -> Iterator[str]:
    """The section on EAP and EAP-IG, again after every row."""
    wiring, model = Wiring.of(lens), reference.hooked_transformer(lens.model)
    ours(wiring, equal_length_pairs(lens, 1), "eap")  # what only the first run pays
    theirs(model, equal_length_pairs(lens, 1), "eap", frozen=True)
    rows, slow = list[dict[str, object]](), dict[str, dict[str, Times]]()
    for pairs in SIZES:
        for method in METHODS:
            task, values = equal_length_pairs(lens, pairs), dict[str, Tensor]()
            works = {"mechlab": partial(keep, values, "ours", partial(ours, wiring, task, method))}
            if pairs <= BATCH:
                for kind in ("public", "frozen") if method == "eap" else ("public",):
                    works[kind] = partial(
                        keep, values, "theirs", partial(theirs, model, task, method, frozen=kind == "frozen")
                    )
            found = in_turn(works, rounds)
            fast, slow[method] = found["mechlab"], slow.get(method, {}) | found
            scale = max(1, pairs // BATCH)
            row = {"method": method, "pairs": pairs, **speeds(slow[method], scale, fast), **memory(method, pairs)}
            apart = f"{difference(wiring, values):.1e}" if pairs <= BATCH else "–"
            rows.append({**row, "relative difference": apart})
            yield INTRODUCTION + table(rows)


INTRODUCTION = f"""IOI pairs of 17 tokens with the names exchanged, {BATCH} at a time; EAP-IG with {STEPS} steps.

- TransformerLens: a HookedTransformer of 3.9 with split inputs of q, k and v, ungrouped keys and values, and results per head. Gradients of
  all weights are computed, as in public code, though nothing needs them; *frozen* is the same without them (EAP only).
- More than {BATCH} pairs go in batches of {BATCH}, so the reference is not run on them: its times are those of {BATCH} pairs, scaled.
- Medians over rounds in which they take turns; what takes over {LONG:.0f} s of wall time is timed once.
- MiB: peak resident memory over the loaded model, in a process of its own.
- Relative difference: the largest between two scores of one edge over the largest score, all edges; keys and values of the reference are
  summed over the heads of a group.

"""


def repeated(work: Callable[[], object], rounds: int) -> Times:
    times = list[Times]()
    while len(times) < rounds and not any(one.wall > LONG for one in times):
        times.append(timed(work))
    return median(times)


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Medians of each. Taking turns, they meet the same load of the machine."""
    times = {name: list[Times]() for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            if not any(one.wall > LONG for one in times[name]):
                times[name].append(timed(work))
    return {name: median(some) for name, some in times.items()}


def keep(values: dict[str, Tensor], name: str, work: Callable[[], Tensor]) -> None:
    values[name] = work()


def speeds(slow: dict[str, Times], scale: int, fast: Times) -> dict[str, object]:
    public, frozen = slow["public"], slow.get("frozen", Times(float("nan"), float("nan")))
    return {
        "TransformerLens CPU s": public.cpu * scale,
        "frozen CPU s": frozen.cpu * scale,
        "mechlab CPU s": fast.cpu,
        "ratio CPU": public.cpu * scale / fast.cpu,
        "frozen ratio CPU": frozen.cpu * scale / fast.cpu,
        "TransformerLens wall s": public.wall * scale,
        "mechlab wall s": fast.wall,
        "ratio wall": public.wall * scale / fast.wall,
    }


def difference(wiring: Wiring, values: dict[str, Tensor]) -> float:
    """Largest difference of a score over the largest score."""
    expected = reference.by_kv_head(values["theirs"], wiring.graph)
    return float((expected - values["ours"]).abs().max() / expected.abs().max())


def memory(method: str, pairs: int) -> dict[str, object]:
    """Peak MiB over the model. Batches are alike: the reference is measured on one at most."""
    theirs_, ours_ = peak("public", method, min(pairs, BATCH)), peak("mechlab", method, pairs)
    return {"TransformerLens MiB": theirs_, "mechlab MiB": ours_, "ratio MiB": theirs_ / ours_}


@cache
def peak(kind: str, method: str, pairs: int) -> float:
    command = [sys.executable, "-m", "benchmarks.discovery", "--peak", kind, method, str(pairs)]
    return printed(command)


def print_peak(kind: str, method: str, pairs: int) -> None:
    """In a process of its own: MiB of resident memory over that of the loaded, once used model, sampled every 2 ms."""
    lens = Lens(load(), prepend_bos=True)
    task, wiring = equal_length_pairs(lens, pairs), Wiring.of(lens)
    if kind == "mechlab":
        work, warm = (lambda: ours(wiring, task, method)), (lambda: lens.run(task.select([0]).clean))
    else:
        model = reference.hooked_transformer(lens.model)
        # One step: every step needs the same again.
        work = lambda: theirs(model, task, method, frozen=kind == "frozen", steps=1)  # noqa: E731
        warm = lambda: model(task.clean.ids[:1])  # noqa: E731
    with torch.no_grad():
        warm()
    print(peak_mib(work))


def nodes(lens: Lens, rounds: int) -> Iterator[str]:
    """The section on exact node effects: a pair whose names are exchanged everywhere, and one that differs late."""
    wiring, model, rows = Wiring.of(lens), reference.hooked_transformer(lens.model), list[dict[str, object]]()
    heads = [
        patch(Site("z", layer, head)) for layer in range(lens.model.n_layers) for head in range(lens.model.n_heads)
    ]
    for task in (equal_length_pairs(lens, 1), ioi(lens, 1)):
        works = {
            f"exact effects of all {len(heads)} heads (mechlab)": partial(lens.effects, task, heads),
            "EAP (mechlab)": partial(ours, wiring, task, "eap"),
            "EAP (TransformerLens)": partial(theirs, model, task, "eap", frozen=False),
            "EAP (TransformerLens, weights frozen)": partial(theirs, model, task, "eap", frozen=True),
        }
        for what, work in works.items():
            if not rows:
                work()  # what only the first run pays
            took = repeated(work, rounds)
            row = {"task": task.name, "tokens": task.clean.lengths[0], "that differ": varied(task)}
            rows.append({**row, "what": what, "CPU s": took.cpu, "wall s": took.wall})
    yield "One IOI pair each. What does not differ between the prompts need not be computed again.\n\n" + table(rows)


def varied(task: Task) -> int:
    """How many tokens come from the first difference on."""
    return task.clean.lengths[0] - task.first_difference()[0]


def edges(lens: Lens, _rounds: int) -> Iterator[str]:
    """The section on every edge exactly, and on how far attribution agrees."""
    task, wiring, exact = ioi(lens, 1), Wiring.of(lens), list[Tensor]()
    settings = exact_edges.ExactSettings()
    progress = lambda label, done, total: print(f"  {label} {done}/{total}", flush=True)  # noqa: E731
    took = timed(lambda: exact.append(exact_edges.measured(wiring, task, settings, None, progress)))
    yield edges_text(wiring, task, exact[0], took)


def edges_text(wiring: Wiring, task: Task, exact: Tensor, took: Times) -> str:
    n = wiring.graph.n_edges
    found = [agreement(method, exact, ours(wiring, task, method), wiring) for method in METHODS]
    return (
        f"One IOI pair of {task.clean.lengths[0]} tokens whose second subject is exchanged (the last {varied(task)} tokens can "
        f"differ): all {n} edges, one intervention each, in **{took.cpu:.0f} s of CPU time** ({took.wall:.0f} s of wall time), "
        f"{1000 * took.cpu / n:.1f} ms of CPU time per edge.\n\nAttribution beside that, over all edges (top: by size):\n\n"
    ) + table(found)


def agreement(method: str, exact: Tensor, found: Tensor, wiring: Wiring) -> dict[str, object]:
    real = wiring.graph.real
    truth, guess = exact[real], found.double()[real]
    top = lambda values, k: set(values.abs().topk(k).indices.tolist())  # noqa: E731
    shared = {f"top {k} in common": len(top(truth, k) & top(guess, k)) for k in (10, 100, 1000)}
    strongest = truth.abs().topk(100).indices
    return {
        "method": method,
        "Spearman": float(spearmanr(truth, guess).statistic),
        "Spearman of sizes": float(spearmanr(truth.abs(), guess.abs()).statistic),
        "Pearson": float(torch.corrcoef(torch.stack([truth, guess]))[0, 1]),
        **shared,
        "same sign, of the exact top 100": int((truth[strongest].sign() == guess[strongest].sign()).sum()),
        "largest effect": float(truth.abs().max()),
        "largest error": float((truth - guess).abs().max()),
    }


SECTIONS: dict[str, tuple[str, Callable[[Lens, int], Iterator[str]]]] = {
    "attribution": ("Edge attribution", attribution),
    "nodes": ("Exact nodes beside one pass of attribution", nodes),
    "edges": ("Every edge exactly", edges),
}


def page(old: str, title: str, text: str) -> str:
    """``old`` with the section ``title`` replaced or added, in the order of ``SECTIONS``."""
    kept = dict(part.split("\n\n", 1) for part in old.split("\n## ")[1:]) | {title: text}
    ordered = [name for name, _ in SECTIONS.values() if name in kept]
    return "# Circuit discovery\n" + "".join(f"\n## {name}\n\n{kept[name].strip()}\n" for name in ordered)


def conditions(lens: Lens) -> str:
    threads = torch.get_num_threads()
    return (
        f"{lens.model.name}, {lens.model.dtype}, {threads} thread{'s' * (threads > 1)} of {cpu_name()} ({platform.machine()}), torch "
        f"{torch.__version__}. Load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; where it is more than "
        "ours only CPU time can be compared. "
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "circuits.md")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        kind, method, pairs = arguments.peak
        print_peak(kind, method, int(pairs))
    else:
        write(arguments.only, arguments.rounds, arguments.out)


def write(names: Sequence[str], rounds: int, out: Path) -> None:
    lens = Lens(load(), prepend_bos=True)
    for name in names:
        title, section = SECTIONS[name]
        stated = conditions(lens)
        for text in section(lens, rounds):
            out.write_text(page(out.read_text() if out.exists() else "", title, stated + text))
            print(text, flush=True)


if __name__ == "__main__":
    main()
