"""Several edges patched at once.

As with one edge (``mechlab.patching.edges``), a receiver reads a residual stream in which the senders of its patched edges write what they
write on the other side. Every other sender writes to it what it writes in this very run, in which patched edges below may have changed it
(the convention of ACDC, Conmy et al., arXiv 2304.14997). With no edge this is the base run, with all edges the other one.

It goes up through the receivers, with two whole forward passes or more at each depth that has a patched edge: made to be right for any set
of edges, not to be fast.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from torch import Tensor

from mechlab.errors import EditError, UnknownName
from mechlab.lens.edit import Edit, patch
from mechlab.lens.readers import check_writes
from mechlab.lens.reading import Run
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.edges import Receiver, Sender, attention_change, entrance_of, nodes, sender_sites
from mechlab.patching.prepared import last_logits, measured
from mechlab.patching.task import Task
from mechlab.results.metrics import metric as find_metric

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

__all__ = ["edge_set_effects"]


def edge_set_effects(
    lens: "Lens",
    task: Task,
    sets: Sequence[Collection[str]],
    metric: str = "logit_difference",
    *,
    base: Literal["clean", "corrupted"] = "clean",
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """The exact effect of each set of edges, all of its edges patched together from the other side.

    Args:
        sets: names of edges, as ``Lens.edge_effects`` has them; a set may be empty.
        progress: called with (label, done, total) in sets.

    Returns:
        One row per set x prompt: ``set`` (its number), ``prompt``, ``before``, ``after``, ``clean``, ``corrupted``.

    Raises:
        UnknownName: a name that is no edge of this model. EditError: no set.
        SiteError: a model whose blocks do not add what attention and MLP write, as it is.
    """
    measure = find_metric(metric)
    check_writes(lens)
    known = _known(lens)
    if not sets:
        raise EditError("No set of edges was given: pass at least one, such as ['m0->logits'].")
    for name in (name for names in sets for name in names if name not in known):
        ends = set(name.split("->"))
        raise UnknownName("edge", name, [edge for edge in known if ends & set(edge.split("->"))] or [*known][:4])
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    runs = {side: lens.run(tokens, read=sender_sites(lens), logits="last") for side, tokens in sides.items()}
    other = runs["corrupted" if base == "clean" else "clean"]
    reference = last_logits(runs[base])
    frame = {
        side: measured(measure, task.answers, task.foils, last_logits(run), reference).numpy()
        for side, run in runs.items()
    }
    found: list[pd.DataFrame] = []
    for i, names in enumerate(sets):
        logits = _patched(lens, sides[base], other, [known[name] for name in dict.fromkeys(names)])
        after = measured(measure, task.answers, task.foils, logits, reference).numpy()
        found.append(
            pd.DataFrame({"set": i, "prompt": range(len(task)), "before": frame[base], "after": after, **frame})
        )
        if progress:
            progress("sets of edges", i + 1, len(sets))
    return pd.concat(found, ignore_index=True)


def _known(lens: "Lens") -> dict[str, tuple[Sender, Receiver]]:
    senders, receivers = nodes(lens)
    return {r.edge(s): (s, r) for r in receivers for s in senders if s.depth < r.depth}


def _patched(lens: "Lens", tokens: Tokens, other: Run, edges: Sequence[tuple[Sender, Receiver]]) -> Tensor:
    """``[n, vocab]`` logits at the last tokens."""
    into: dict[Receiver, list[Sender]] = {}
    for sender, receiver in sorted(edges, key=lambda edge: (edge[1].depth, edge[0].name)):
        into.setdefault(receiver, []).append(sender)
    edits: list[Edit] = []
    sources: dict[str, Run] = {}
    for _, level in groupby(into, key=lambda receiver: receiver.depth):
        found = _received(lens, tokens, other, edits, sources, {receiver: into[receiver] for receiver in level})
        for receiver, run in found.items():
            name = f"into {receiver.site}"
            edits.append(patch(receiver.site, source=name))
            sources[name] = run
    return last_logits(lens.run(tokens, edits, sources=sources, logits="last"))


def _received(
    lens: "Lens",
    tokens: Tokens,
    other: Run,
    edits: Sequence[Edit],
    sources: Mapping[str, Run],
    into: Mapping[Receiver, Sequence[Sender]],
) -> dict[Receiver, Run]:
    """Receivers of one depth -> a run that read their sites, under the streams that they read. ``edits``: of receivers below."""
    alike: dict[tuple[Site, tuple[Sender, ...]], list[Receiver]] = {}
    for receiver, senders in into.items():
        alike.setdefault((entrance_of(lens, receiver), tuple(senders)), []).append(receiver)
    now = lens.run(
        tokens, edits, [*sender_sites(lens), *(entrance for entrance, _ in alike)], sources=sources, logits="none"
    )
    found: dict[Receiver, Run] = {}
    for (entrance, senders), receivers in alike.items():
        stream = Run(tokens, None, None, {entrance: now[entrance] + _change(lens, now, other, senders)})
        wholes = [receiver.site.whole for receiver in receivers]
        under = lens.run(tokens, [patch(entrance, source="stream")], wholes, sources={"stream": stream}, logits="none")
        found.update(dict.fromkeys(receivers, under))
    return found


def _change(lens: "Lens", now: Run, other: Run, senders: Sequence[Sender]) -> Tensor:
    """``[n, pos, d_model]``: what is to be added to this run's stream so that these senders, and no others, are the other side's."""
    heads: dict[int, list[int]] = {}
    parts: list[Tensor] = []
    for sender in senders:
        if sender.head is None:
            parts.append(other[sender.site] - now[sender.site])
        else:
            heads.setdefault(sender.layer, []).append(sender.head)
    for layer, together in heads.items():
        at = Site("z", layer)
        parts.append(attention_change(lens, layer, now[at], other[at], together))
    return torch.stack(parts).sum(dim=0)
