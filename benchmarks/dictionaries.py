"""Matching pursuit beside sae-lens's and overcomplete's encoders, and SNMF beside overcomplete's SemiNMF and the published loop.

One process, one thread, CPU time. Random unit atoms and normal activations: every atom is as likely as any other, so no cache is helped by
features that are chosen often. Codes are compared on rows that all encoders see.

overcomplete is no dependency. Its encoder is written here as it is published: k steps of a matrix product, a maximum, a one-hot code and
two dense products. Its SemiNMF step is its own where ``pip install --no-deps --target build/overcomplete overcomplete`` has put it, and
written here otherwise.

    python -m benchmarks.dictionaries [--only pursuit snmf] [--seconds 20] [--rows 8192] [--out benchmarks/results/dictionaries.md]

A section that is run again replaces the one in the page; the others stay. An encoder that would take longer than ``--seconds`` is timed on
fewer rows, and its time is scaled to all; how many is in the table.
"""

import argparse
import importlib
import math
import os
import platform
import re
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mechlab.dictionaries.matching_pursuit import StopRules, gram_matrix, matching_pursuit  # noqa: E402
from mechlab.dictionaries.snmf import SnmfSettings, factorise, initial_loadings  # noqa: E402
from mechlab.dictionaries.synthetic import planted_factors  # noqa: E402
from mechlab.results.provenance import cpu_name  # noqa: E402

HEAD = "# Dictionaries: speed\n\nBy `make bench-dictionaries`, section by section.\n"
PAGE = Path("benchmarks/results/dictionaries.md")
OVERCOMPLETE = Path("build/overcomplete")
SIZES = [
    (576, 4608, 32),
    (576, 4608, 64),
    (2304, 4608, 32),
    (2304, 4608, 64),
    (576, 24576, 32),
    (576, 24576, 64),
    (2304, 24576, 32),
    (2304, 24576, 64),
]


GOAL_PURSUIT, GOAL_SNMF = 10.0, 5.0


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def one_hot_pursuit(x: Tensor, atoms: Tensor, k: int) -> Tensor:
    """overcomplete's encoder as published: signed maximum, one-hot codes, dense products."""
    codes, r = torch.zeros(len(x), len(atoms)), x.clone()
    for _ in range(k):
        value, index = (r @ atoms.T).max(dim=1)
        added = torch.nn.functional.one_hot(index, len(atoms)).float() * value[:, None]
        codes, r = codes + added, r - added @ atoms
    return codes


def scaled(work: Callable[[int], object], rows: int, seconds: float) -> tuple[float, int]:
    """Time of ``work`` on all rows; measured on fewer, and scaled, where it would take longer than ``seconds``."""
    few = min(64, rows)
    first = cpu_seconds(lambda: work(few))
    used = min(rows, max(few, int(few * seconds / first) // 64 * 64))
    spent = cpu_seconds(lambda: work(used)) if used > few else first
    return spent * rows / used, used


def pursuit(args: argparse.Namespace) -> str:
    from sae_lens.saes.matching_pursuit_sae import _encode_matching_pursuit  # pyright: ignore[reportPrivateUsage]

    rows: list[str] = []
    ratios: list[tuple[float, float]] = []
    for d, p, k in SIZES:
        generator = torch.Generator().manual_seed(0)
        atoms = torch.nn.functional.normalize(torch.randn(p, d, generator=generator), dim=1)
        x = torch.randn(args.rows, d, generator=generator)
        rules = StopRules.model_validate({"steps": k})
        gram: list[Tensor] = []
        making = cpu_seconds(lambda gram=gram, atoms=atoms: gram.append(gram_matrix(atoms)))
        matching_pursuit(x[:8], atoms, rules, gram=gram[0])  # what only the first call pays
        ours = cpu_seconds(
            lambda x=x, atoms=atoms, rules=rules, gram=gram: matching_pursuit(x, atoms, rules, gram=gram[0]).codes()
        )
        fixed = (atoms, 0.0, k, False)
        saelens, n_saelens = scaled(
            lambda n, x=x, fixed=fixed: _encode_matching_pursuit(x[:n], *fixed), args.rows, args.seconds
        )
        loop, n_loop = scaled(
            lambda n, x=x, atoms=atoms, k=k: one_hot_pursuit(x[:n], atoms, k), args.rows, args.seconds
        )
        some = x[:64]
        codes = matching_pursuit(some, atoms, rules, gram=gram[0]).codes().dense()
        theirs = _encode_matching_pursuit(some, *fixed)
        same = bool(((codes != 0) == (theirs != 0)).all())
        fastest = min(saelens, loop)
        ratios.append((fastest / ours, fastest / (ours + making)))
        rows.append(
            f"| {d} | {p:,} | {k} | {ours:.2f} | {making:.2f} | {saelens:.1f} ({n_saelens:,}) | {loop:.1f} ({n_loop:,}) | "
            f"{saelens / ours:.1f}x / {saelens / (ours + making):.1f}x | {loop / ours:.1f}x / {loop / (ours + making):.1f}x | "
            f"{'same' if same else 'DIFFERENT'}, {float((codes - theirs).abs().max()):.0e} |"
        )
        print(rows[-1], flush=True)
        gram.clear()
    head = (
        "| d | atoms | k | ours, s | Gram matrix, s | sae-lens, s (rows timed) | overcomplete's loop, s (rows timed) | against sae-lens | "
        "against overcomplete | supports, largest difference |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    note = (
        f"{args.rows:,} rows, CPU seconds of one thread. The Gram matrix is made once per dictionary; speed-ups are given without and "
        "with it. Stop rules off in all, so that all do k steps; sae-lens relu's, overcomplete does not, which makes no difference here.\n"
    )
    return "\n".join([note, _goal(ratios), head, *rows])


def _goal(ratios: list[tuple[float, float]]) -> str:
    """``ratios``: per row, the faster of the others over ours, without and with the Gram matrix."""
    without, whole = (sum(ratio >= GOAL_PURSUIT for ratio in column) for column in zip(*ratios, strict=True))
    return (
        f"Goal: {GOAL_PURSUIT:g} times as fast as either. Reached in {without} of {len(ratios)} rows; with the time of a Gram matrix that "
        f"is used for these rows alone, in {whole} (the least is {min(whole for _, whole in ratios):.1f} times).\n"
    )


def published_snmf(x: Tensor, start: Tensor, sparsity: float, stop: Callable[[float], bool], most: int) -> int:
    """The paper's loop, dense, in single precision. Returns the iterations done when ``stop(loss share)`` said so."""
    a, g = x.T.contiguous(), start.clone()
    kept, power = math.ceil(sparsity * len(a)), a.square().sum()
    for iteration in range(most):
        f = a @ g @ torch.linalg.inv(g.T @ g + 1e-6 * torch.eye(g.shape[1]))
        if kept < len(a):
            f = f * (f.abs() >= f.abs().topk(kept, dim=0).values[-1])
        norms = g.norm(dim=0)
        g, f = g / norms, f * norms
        af, ff = a.T @ f, f.T @ f
        g = g * ((af.clamp_min(0) + g @ (-ff).clamp_min(0)) / ((-af).clamp_min(0) + g @ ff.clamp_min(0) + 1e-6)).sqrt()
        if stop(float((a - f @ g.T).square().sum() / power)):
            return iteration + 1
    return most


def semi_nmf(x: Tensor, start: Tensor, stop: Callable[[float], bool], most: int) -> tuple[int, str]:
    """overcomplete's updates (its own function where it is there), with the objective looked at every 5 iterations and not timed."""
    module = overcomplete_snmf()
    z, power = start.clone(), float(x.square().sum())
    d = torch.linalg.pinv(z.T @ z) @ z.T @ x
    for iteration in range(most):
        if module is not None:
            z, d = module(x, z, d)
        else:
            ad, dd = x @ d.T, d @ d.T
            up, down = ad.clamp_min(0) + z @ (-dd).clamp_min(0), (-ad).clamp_min(0) + z @ dd.clamp_min(0)
            z = z * torch.sqrt(up / (down + 1e-8) + 1e-8)
            d = torch.linalg.pinv(z.T @ z + 1e-8 * torch.eye(z.shape[1])) @ (z.T @ x)
        if iteration % 5 == 4 and stop(float((x - z @ d).square().sum()) / power):
            return iteration + 1, "overcomplete 0.3" if module is not None else "its published loop"
    return most, "overcomplete 0.3" if module is not None else "its published loop"


def overcomplete_snmf() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """overcomplete's own step, its file run in a package that has only what it imports."""
    folder = OVERCOMPLETE / "overcomplete" / "optimization"
    if not folder.is_dir():
        return None
    for name, path in {"overcomplete": folder.parent, "overcomplete.optimization": folder}.items():
        package = types.ModuleType(name)  # its own __init__ would import torchvision and more
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("overcomplete.optimization.semi_nmf")._one_step_snmf_multiplicative_update


def snmf(_args: argparse.Namespace) -> str:
    lines: list[str] = []
    best: list[float] = []
    for n, d, k, sparsity in [(4000, 1536, 100, 0.01), (4000, 1536, 100, 1.0), (4000, 1536, 300, 0.01)]:
        planted = planted_factors(n, d, k, sparsity=0.02, noise=0.3, seed=1)
        x = planted.activations
        settings = SnmfSettings(k=k, sparsity=sparsity, iterations=150, tolerance=0.0, patience=10**6, seed=1)
        start = initial_loadings(x, settings).T.contiguous()
        # the objective that the published loop has after 100 iterations is what all must reach
        reached: list[float] = []
        loop_seconds = cpu_seconds(
            lambda x=x, s=start, p=sparsity, r=reached: published_snmf(x, s, p, lambda v: bool(r.append(v)), 100)
        )
        goal = min(reached)
        first = next(i for i, loss in enumerate(reached) if loss <= goal * 1.001) + 1
        results = [f"published loop: {loop_seconds * first / 100:.1f} s, {first} iterations"]
        speeds, times = [0.0], [math.inf]
        for name, changes in {
            "ours, inner 1": {"inner": 1},
            "ours, inner 5": {"inner": 5},
            "ours, inner 5, svd": {"inner": 5, "init": "svd"},
        }.items():
            chosen = settings.model_copy(update=changes)
            losses = factorise(x, chosen).losses
            at = next((i + 1 for i, loss in enumerate(losses) if loss <= goal * 1.001), None)
            if at is None:
                results.append(f"{name}: best {min(losses):.4f}, goal not reached")
                continue
            spent = cpu_seconds(lambda x=x, c=chosen, at=at: factorise(x, c.model_copy(update={"iterations": at})))
            speeds.append(loop_seconds * first / 100 / spent)
            times.append(spent)
            results.append(f"{name}: {spent:.2f} s, {at} iterations, {speeds[-1]:.1f}x")
        if sparsity == 1.0:
            done: list[int] = []
            which: list[str] = []

            def theirs(
                x: Tensor = x,
                start: Tensor = start,
                goal: float = goal,
                done: list[int] = done,
                which: list[str] = which,
            ) -> None:
                count, name = semi_nmf(x, start, lambda v: v <= goal * 1.001, 150)
                done.append(count)
                which.append(name)

            spent = cpu_seconds(theirs)
            results.append(
                f"{which[0]}: {spent:.1f} s, {done[0]} iterations (its objective looked at every fifth): ours is "
                f"{spent / min(times):.1f} times as fast"
            )
        best.append(max(speeds))
        lines.append(f"| {n:,} x {d:,} | {k} | {sparsity:.0%} | {goal:.4f} | {'<br>'.join(results)} |")
        print(lines[-1], flush=True)
    note = (
        "Planted factors with noise; CPU seconds of one thread, from one random start, until the share of squared norm left over is "
        "within 0.1 % of the published loop's best in 100 iterations. overcomplete has no winner-take-all, so it stands in the row "
        "with all neurons. At most 150 iterations.\n\n"
        f"Goal: {GOAL_SNMF:g} times as fast as the published loop. The best of ours is {', '.join(f'{one:.1f}' for one in best)} times as "
        f"fast: reached in {sum(one >= GOAL_SNMF for one in best)} of {len(best)} rows.\n"
    )
    return "\n".join(
        [note, "| tokens x neurons | features | kept | goal | time to it |", "|--:|--:|--:|--:|:--|", *lines]
    )


SECTIONS = {"pursuit": ("Matching pursuit", pursuit), "snmf": ("SNMF", snmf)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for key in args.only:
        title, measure = SECTIONS[key]
        write_section(args.out, title, measure(args))


def write_section(path: Path, title: str, body: str) -> None:
    """Puts a section into the page, in place of the one of that title, with the machine it was measured on."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    page = re.sub(r"\A.*?(?=\n## |\Z)", HEAD, page, count=1, flags=re.S)
    where = f"{cpu_name()}, torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    page = re.sub(rf"## {title}\n.*?(?=\n## |\Z)", "", page, flags=re.S).rstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    page = re.sub(r"\n{3,}", "\n\n", page)
    path.write_text(f"{page}\n\n## {title}\n\n{where}.\n\n{body}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
