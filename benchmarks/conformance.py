"""The conformance matrix: tiny families x sites x verbs x backends, against plain Hugging Face with hand-written torch hooks.

The reference is that of the tests (``tests/lens``): module names written by hand for each family, eager attention, expert choice written
out token by token. It shares no code with mechlab. Each cell is the largest absolute difference over the cases of that verb (one unit at
the last token, one unit at all tokens, all units) and over two prompts:

- ``lens`` and ``nnsight``: the logits at all tokens; with verb ``read`` the activation itself.
- ``sweep``: the logit difference of two tokens at the last token, which is what ``Lens.effects`` measures.
- ``bridge``: TransformerBridge, the same change made at its hook of that name (none: "no hook"); "not applied" where its tensor has other
  axes, "error" where it fails.

    python benchmarks/conformance.py [--families llama gpt2] [--out docs/conformance.md] [--data benchmarks/results/conformance.json]
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from mechlab.backends import NnsightLens
from mechlab.errors import MechlabError
from mechlab.lens.edit import VERBS, Edit, patch, pattern, route, scale
from mechlab.lens.lens import Lens
from mechlab.lens.site import KINDS as EVERY_KIND
from mechlab.lens.site import Site
from mechlab.models import FAMILIES
from mechlab.patching.task import Task
from mechlab.results.provenance import cpu_name

ROOT = Path(__file__).parent.parent
BACKENDS = ("lens", "sweep", "nnsight", "bridge")
ABSENT = "not in this family"
# Which experts are chosen follows from their weights; what each writes is the Lens's own (tests/lens/test_routing.py).
KINDS = {name: kind for name, kind in EVERY_KIND.items() if name not in ("expert_choice", "expert_out")}
LAYER, INDEX, ANSWER, FOIL = 1, 1, 7, 11
Cell = float | str
Matrix = dict[str, dict[str, dict[str, dict[str, Cell]]]]
"""family -> site kind -> verb -> backend -> number or word"""


def _load(path: str, name: str) -> ModuleType:
    """A file of the tests; the one that is loaded already, for it registers an attention function and must be the only one."""
    where = str(ROOT / path)
    loaded = next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == where), None)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, where)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


REFERENCE = _load("tests/lens/conftest.py", "mechlab_reference")
CHANGES = _load("tests/lens/test_verbs.py", "mechlab_reference_verbs")
LONG: list[int] = REFERENCE.LONG
PROMPTS, OTHERS = [LONG[3:11], LONG[:8]], [LONG[9:17], LONG[5:13]]


@dataclass(frozen=True)
class Case:
    """One edit, and what plain hooks make of it: logits ``[pos, vocab]`` per prompt, and the change ``[1, pos, ...]`` -> same."""

    edit: Edit
    expected: list[Tensor]
    changes: list[Callable[[Tensor], Tensor]] | None


def cases(plain: Any, kind: str) -> Iterator[Case]:
    """Every verb that ``kind`` allows, at one unit and at all."""
    layer = LAYER if KINDS[kind].per_layer else None
    if kind == "router":
        yield from _routes(plain)
    places = [Site(kind, layer, INDEX, -1), Site(kind, layer, INDEX), Site(kind, layer)]
    for at in places:
        ours, theirs = ([_read(plain, ids, at) for ids in side] for side in (PROMPTS, OTHERS))
        pairs = [(scale(at, -1.5), [lambda x: -1.5 * x] * 2)]
        if at.index is None:
            pairs.append((patch(at), [lambda _, t=t: t for t in theirs]))
        if kind == "pattern" and at.index is not None:
            rows = torch.tril(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)))
            rows = rows / rows.sum(-1, keepdim=True)
            pairs.append((pattern(at, rows), [lambda _, r=rows[None, -1:] if at.pos else rows[None]: r] * 2))
        pairs += CHANGES.verbs(kind, at, ours, theirs)
        for edit, news in pairs:
            if kind == "router" and at.index is None and edit.verb in ("zero", "mean", "resample", "scale"):
                continue  # equal or turned logits leave ties, whose order is nobody's
            edit = replace(edit, source="clean") if edit.source else edit
            changes = [_change(at, new) for new in news]
            expected = [_edited(plain, ids, at, change) for ids, change in zip(PROMPTS, changes, strict=True)]
            yield Case(edit, expected, changes)


def _change(at: Site, new: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x, where = x.clone(), CHANGES.cells(x, at)
        hidden = x.isneginf()
        x[where] = new(x[where])
        return x.masked_fill(hidden, float("-inf"))

    return change


def _edited(plain: Any, ids: Sequence[int], at: Site, change: Callable[[Tensor], Tensor]) -> Tensor:
    if at.kind != "result":
        return plain.edited(ids, at.kind, at.layer, change)
    proj = plain.module("proj", at.layer)
    handle = proj.register_forward_hook(lambda module, args, _: _projected(plain, module, args[0], change))
    try:
        return plain.logits(ids)
    finally:
        handle.remove()


def _results(plain: Any, proj: Any, z: Tensor) -> Tensor:
    """``[1, pos, head, d_model]``: each head through its own slice of the projection, as often as the block adds it."""
    weight = proj.weight.T if isinstance(proj, torch.nn.Linear) else proj.weight
    size = z.shape[-1] // plain.n_heads
    heads = [slice(h * size, (h + 1) * size) for h in range(plain.n_heads)]
    return torch.stack([z[..., rows] @ weight[rows] * plain.multiplier for rows in heads], dim=2)


def _projected(plain: Any, proj: Any, z: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    out = change(_results(plain, proj, z)).sum(dim=2) / plain.multiplier
    return out if getattr(proj, "bias", None) is None else out + proj.bias


def _read(plain: Any, ids: Sequence[int], at: Site) -> Tensor:
    """``[1, pos, ...]`` of the whole site."""
    if at.kind not in ("result", "expert_weights"):
        return plain.read(ids, at.kind, at.layer)
    seen: list[Tensor] = []
    if at.kind == "result":
        _edited(plain, ids, at, lambda x: (seen.append(x), x)[1])
        return seen[0]
    with _hooked(plain.module("router", at.layer), lambda _m, out: (seen.append(_dense(out)), out)[1]):
        plain.logits(ids)
    return seen[0]


def _dense(output: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    logits, weights, indices = output
    dense = torch.zeros_like(logits)
    for token in range(len(logits)):
        for weight, expert in zip(weights[token], indices[token], strict=True):
            dense[token, expert] = weight
    return dense[None]


class _hooked:
    """One forward hook ``(module, output) -> output`` for the length of a with."""

    def __init__(self, module: Any, change: Callable[[Any, Any], Any]) -> None:
        self.handle = module.register_forward_hook(lambda m, _args, out: change(m, out))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def _routes(plain: Any) -> Iterator[Case]:
    """Experts switched off, dropped and forced on, by hand."""
    if not plain.has("router"):
        return
    for state in ("off", "drop", "on"):
        for pos in (None, -1):
            edit, at = route(Site("router", LAYER, INDEX, pos), state), slice(None) if pos is None else slice(pos, None)

            def switched(router: Any, out: Any, state: str = state, at: slice = at) -> Any:
                logits, weights, indices = (tensor.clone() for tensor in out)
                tokens = range(len(logits))[at]
                for t in tokens:
                    weights[t], indices[t] = _choice(router, logits[t], weights[t], indices[t], state)
                return logits, weights, indices

            expected: list[Tensor] = []
            for ids in PROMPTS:
                with _hooked(plain.module("router", LAYER), switched):
                    expected.append(plain.logits(ids))
            yield Case(edit, expected, None)


def _choice(router: Any, logits: Tensor, weights: Tensor, indices: Tensor, state: str) -> tuple[Tensor, Tensor]:
    """One token's experts with expert INDEX switched."""
    if state == "drop":
        kept = torch.where(indices == INDEX, 0.0, weights)
        return kept * weights.sum() / kept.sum(), indices
    k = len(indices)
    order = [int(e) for e in logits.argsort(descending=True) if int(e) != INDEX]
    chosen = torch.tensor(order[:k] if state == "off" else [INDEX, *order[: k - 1]])
    shown = logits.clone()
    if state == "off":
        shown[INDEX] = float("-inf")
    if "GptOss" in type(router).__name__:
        return shown[chosen].softmax(0), chosen
    share = shown.softmax(0)[chosen]
    renormalised = "Mixtral" in type(router).__name__ or router.norm_topk_prob
    return (share / share.sum() if renormalised else share), chosen


def far(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite where one is -inf and the other is not."""
    if not torch.equal(a.isneginf(), b.isneginf()):
        return float("inf")
    return float((a - b).masked_fill(a.isneginf(), 0.0).abs().max())


def family_matrix(
    family: str, kinds: Sequence[str] | None = None, backends: Sequence[str] = BACKENDS
) -> dict[str, Any]:
    """kind -> verb -> backend -> cell, of one family."""
    lens, plain = REFERENCE.make_lens(family), REFERENCE.make_plain(family)
    runners: dict[str, Any] = {"lens": lens}
    if "nnsight" in backends:
        runners["nnsight"] = NnsightLens(lens)
    bridge = lens.bridge() if "bridge" in backends else None
    have = [*lens.layout.kinds(), *lens.layout.kinds(LAYER)]
    found: dict[str, Any] = {}
    for kind in kinds or KINDS:
        found[kind] = {verb: dict.fromkeys(backends, ABSENT) for verb in ("read", *VERBS) if _fits(kind, verb)}
        if kind not in have:
            continue
        at = Site(kind, LAYER if KINDS[kind].per_layer else None)
        found[kind]["read"] = {
            **dict.fromkeys(backends, "not applied"),
            **_read_cells(runners, plain, at),
            **({"bridge": _bridge_read(bridge, plain, at)} if bridge is not None else {}),
        }
        listed = [] if kind == "expert_weights" else list(cases(plain, kind))
        for verb in [verb for verb in found[kind] if verb != "read"]:
            found[kind][verb] = _verb_cells([c for c in listed if c.edit.verb == verb], runners, lens, bridge, backends)
            if isinstance(found[kind]["read"].get("bridge"), str):  # what cannot be read there is not edited either
                found[kind][verb]["bridge"] = found[kind]["read"]["bridge"]
    return found


def _fits(kind: str, verb: str) -> bool:
    """Verbs that a kind allows at all."""
    if kind == "expert_weights":
        return verb == "read"
    if verb in {"pattern": ("add", "clamp", "project"), "scores": ("project",), "router": ("clamp", "project")}.get(
        kind, ()
    ):
        return False
    # a splice needs a dictionary, which only the lens takes: tests/dictionaries/test_splice.py
    return {"route": kind == "router", "pattern": kind == "pattern", "splice": False}.get(verb, True)


def _read_cells(runners: dict[str, Any], plain: Any, at: Site) -> dict[str, Cell]:
    wanted = [_read(plain, ids, at) for ids in PROMPTS]
    cells: dict[str, Cell] = {}
    for name, runner in runners.items():
        seen = runner.run(PROMPTS, read=[at])[at]
        seen = seen.transpose(1, 2) if at.kind in ("scores", "pattern") else seen
        cells[name] = max(far(seen[row], one[0]) for row, one in enumerate(wanted))
    return cells


def _verb_cells(
    listed: list[Case], runners: dict[str, Any], lens: Lens, bridge: Any, backends: Sequence[str]
) -> dict[str, Cell]:
    if not listed:
        return dict.fromkeys(backends, "not applied")
    cells: dict[str, Cell] = {}
    for name, runner in runners.items():
        cells[name] = 0.0
        for case in listed:
            logits = runner.run(PROMPTS, [case.edit], sources={"clean": OTHERS}).logits
            cells[name] = max(cells[name], *(far(logits[row], want) for row, want in enumerate(case.expected)))
    if "sweep" in backends:
        cells["sweep"] = _swept(lens, listed)
    if bridge is not None:
        cells["bridge"] = _bridged(bridge, listed)
    return {name: cells[name] for name in backends}


def _swept(lens: Lens, listed: list[Case]) -> Cell:
    task = Task(
        "conformance", lens.tokens(OTHERS), lens.tokens(PROMPTS), torch.tensor([ANSWER] * 2), torch.tensor([FOIL] * 2)
    )
    try:
        frame = lens.effects(task, [case.edit for case in listed]).frame
    except MechlabError as error:
        return f"refused: {error}"
    wanted = torch.stack([row[-1, ANSWER] - row[-1, FOIL] for case in listed for row in case.expected])
    after = frame.sort_values(["intervention", "prompt"], kind="stable")["after"].to_numpy()
    return far(torch.tensor(after, dtype=torch.float32), wanted)


@torch.no_grad()
def _bridged(bridge: Any, listed: list[Case]) -> Cell:
    worst, name = 0.0, listed[0].edit.site.hook_name
    if name not in bridge.hook_dict:
        return "no hook"
    for case in listed:
        if case.changes is None:
            return "no verb"
        for ids, change, want in zip(PROMPTS, case.changes, case.expected, strict=True):
            hook = lambda x, hook, c=change, k=case.edit.site.kind: _in_shape(x, c, k)  # noqa: E731, ARG005
            try:
                logits = bridge.run_with_hooks(torch.tensor([list(ids)]), fwd_hooks=[(name, hook)])
            except Exception as error:  # whatever TransformerBridge raises is its cell
                return f"error: {type(error).__name__}"
            worst = max(worst, far(logits[0], want))
    return worst


@torch.no_grad()
def _bridge_read(bridge: Any, plain: Any, at: Site) -> Cell:
    worst = 0.0
    if at.hook_name not in bridge.hook_dict:
        return "no hook"
    for ids in PROMPTS:
        _, cache = bridge.run_with_cache(torch.tensor([list(ids)]), names_filter=[at.hook_name])
        want = _read(plain, ids, at)
        if at.hook_name not in cache:
            return "never fires"
        seen = _as_ours(cache[at.hook_name], want.shape, at.kind)
        if seen is None:
            return "other axes"
        worst = max(worst, far(seen, want))
    return worst


def _as_ours(theirs: Tensor, shape: Sequence[int], kind: str) -> Tensor | None:
    """TransformerBridge gives heads apart or flat, head or position first, by family. Head counts differ from lengths here."""
    if kind in ("scores", "pattern"):
        theirs = _hidden(theirs.transpose(1, 2))
    if tuple(theirs.shape) == tuple(shape):
        return theirs
    if theirs.ndim == len(shape) == 4 and tuple(theirs.transpose(1, 2).shape) == tuple(shape):
        return theirs.transpose(1, 2)
    return theirs.reshape(tuple(shape)) if theirs.numel() == torch.Size(shape).numel() and theirs.ndim < 4 else None


def _hidden(scores: Tensor) -> Tensor:
    """-inf where eager attention adds the smallest number to hide a key."""
    return scores.masked_fill(scores < torch.finfo(scores.dtype).min / 2, float("-inf"))


def _in_shape(theirs: Tensor, change: Callable[[Tensor], Tensor], kind: str) -> Tensor:
    """``change`` made to the bridge's tensor, in the bridge's axes."""
    if kind in ("scores", "pattern"):
        return change(_hidden(theirs.transpose(1, 2))).transpose(1, 2)
    heads = {"q": "n_heads", "k": "n_kv", "v": "n_kv", "z": "n_heads"}
    if kind in heads and theirs.ndim == 4 and theirs.shape[2] == 8 and theirs.shape[1] != 8:
        return change(theirs.transpose(1, 2)).transpose(1, 2)  # head first: prompts have 8 tokens, no model 8 heads
    if kind in heads and theirs.ndim == 3:
        count = {"n_heads": 4, "n_kv": 2}[heads[kind]]
        return change(theirs.unflatten(-1, (count, -1))).flatten(-2)
    if kind == "router" and theirs.ndim == 2:
        return change(theirs[None])[0]
    return change(theirs)


def shown(cell: Cell) -> str:
    """A cell of the page: a number, or few words."""
    if isinstance(cell, float):
        return "0" if cell == 0 else f"{cell:.0e}"
    return {ABSENT: "–"}.get(cell, cell.split(":")[0])


def together(cells: Sequence[Cell]) -> Cell:
    """The worst of several cells: a word that is no number beats none, else the largest number."""
    numbers = [cell for cell in cells if isinstance(cell, float)]
    return max(numbers) if numbers else cells[0]


def page(matrix: Matrix, scale_of_logits: float) -> str:
    """The matrix as Markdown: for each backend sites x families, then verbs x backends."""
    families = list(matrix)
    lines = [
        "# Conformance",
        "",
        "`make conformance` writes this page. Every site of every tiny family is read and edited with every verb by each backend, and by",
        "hand-written torch hooks on plain Hugging Face models (`tests/lens/conftest.py`); cells are the largest absolute difference.",
        "lens, nnsight, bridge: logits at all tokens (and the activation that was read). sweep: the logit difference at the last token.",
        f"The logits themselves reach {scale_of_logits:.0f}. – means: not in this family. 0 means: equal to the bit.",
        "",
        f"Made on {cpu_name()} ({platform.machine()}), Python {platform.python_version()}, float32, 1 thread; "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens", "nnsight"))
        + ". All cells by verb: `benchmarks/results/conformance.json`.",
    ]
    titles = {
        "lens": "`Lens.run`",
        "sweep": "`Lens.effects` (the packed sweep)",
        "nnsight": "`NnsightLens.run`",
        "bridge": "TransformerBridge, the change made at its hook of the same name",
    }
    for backend in BACKENDS:
        lines += [
            "",
            f"## {titles[backend]}",
            "",
            f"| site | {' | '.join(families)} |",
            "|---" * (len(families) + 1) + "|",
        ]
        for kind in KINDS:
            if backend == "sweep" and kind == "expert_weights":
                continue  # read only
            row = [
                together(
                    [verb[backend] for verb in matrix[f][kind].values() if verb[backend] != "not applied"] or ["–"]
                )
                for f in families
            ]
            lines.append(f"| {kind} | {' | '.join(map(shown, row))} |")
        lines += _BRIDGE_NOTES if backend == "bridge" else []
    lines += ["", "## Verbs", "", f"| verb | {' | '.join(BACKENDS)} |", "|---" * 5 + "|"]
    for verb in ("read", *(verb for verb in VERBS if verb != "splice")):
        cells = [[kinds[k][verb][b] for kinds in matrix.values() for k in kinds if verb in kinds[k]] for b in BACKENDS]
        lines.append(
            f"| {verb} | {' | '.join(shown(together([c for c in one if isinstance(c, float)] or ['–'])) for one in cells)} |"
        )
    return "\n".join(lines) + "\n"


_BRIDGE_NOTES = [
    "",
    "Large numbers: the hook is another tensor (Gemma 2's logits before soft-capping), or an edit there reaches a part of what",
    "reads it (resid_mid: the MLP, not the sum after it), or nothing (router logits: experts are chosen by then). In words: no hook",
    "of that name, a hook that never fires, a verb that it has no hook for, or an error. Tensors are compared in the lens's axes.",
]


def written(matrix: Matrix) -> str:
    """As JSON, one line per family and site, two digits per number."""
    short = json.loads(json.dumps(matrix), parse_float=lambda text: float(f"{float(text):.1e}"))
    rows = {f: ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in kinds.items()) for f, kinds in short.items()}
    return "{\n" + ",\n".join(f' "{f}": {{\n{row}\n }}' for f, row in rows.items()) + "\n}\n"


def largest_logit(families: Sequence[str]) -> float:
    return max(float(REFERENCE.make_plain(family).logits(PROMPTS[0]).abs().max()) for family in families)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the conformance matrix.")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "conformance.md")
    parser.add_argument("--data", type=Path, default=ROOT / "benchmarks" / "results" / "conformance.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: Matrix = json.loads(options.data.read_text(encoding="utf-8")) if options.data.exists() else {}
    for family in options.families:
        found[family] = family_matrix(family)
        print(family, {b: shown(together(_numbers(found[family], b))) for b in BACKENDS}, flush=True)
    # A family that is made again replaces its column.
    matrix = {family: found[family] for family in FAMILIES if family in found}
    options.data.write_text(written(matrix), encoding="utf-8")
    options.out.write_text(page(matrix, largest_logit(list(matrix))), encoding="utf-8")


def _numbers(kinds: dict[str, dict[str, dict[str, Cell]]], backend: str) -> list[Cell]:
    return [c for verbs in kinds.values() for cells in verbs.values() if isinstance(c := cells[backend], float)] or [
        "–"
    ]


if __name__ == "__main__":
    main()
