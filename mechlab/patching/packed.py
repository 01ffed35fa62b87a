"""The packed sweep: all rows of a wave go through the model's own layers once, as one sequence.

1. The tokens of all rows stand one after another in a single sequence of a batch of one; layers, norms, MLPs and experts work token by
   token and need not know. Rotary embeddings are looked up by each token's own position.
2. At each layer the rows that enter there join, starting from the base run's residual stream.
3. Only attention looks across tokens: see ``mechlab.patching.attended``.
4. The climb ends at the last layer's keys and values: of that layer, the final norm and the unembedding only each row's last token is read.
   A second pass takes these tokens alone through them, and unembeds them only into the tokens the metric reads.

Nothing is approximated: each row gets the numbers of its own full forward pass, up to float rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechlab.lens.apply import Source
from mechlab.lens.attention import Attend, Packed
from mechlab.lens.hooks import Tap, installed, packed
from mechlab.lens.products import OneDnn
from mechlab.lens.reading import Run
from mechlab.lens.site import BY_HEAD, Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.attended import RowAttention
from mechlab.patching.rows import Group, Row
from mechlab.patching.wave import Wave

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens


@dataclass(frozen=True, eq=False)
class Base:
    """What the sweep takes from the base run: residual streams where rows enter, keys and values (by KV head) everywhere above.

    ``embed`` is there if an edit is.
    """

    tokens: Tokens
    embed: Tensor | None
    resid_pre: Mapping[int, Tensor]
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]

    def kept(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, ``[n, pos, kv_head, d_head]``."""
        return self.keys[layer], self.values[layer]

    @staticmethod
    def sites(entries: Sequence[int], n_layers: int) -> list[Site]:
        """What the base run must read. Rows that enter with some of their positions get the others a layer later."""
        above = range(min(entries), n_layers)
        entered = sorted({*entries, *(entry + 1 for entry in entries)} & {*above})
        return [Site("resid_pre", layer) for layer in entered] + [
            Site(kind, layer) for layer in above for kind in ("k", "v")
        ]

    @staticmethod
    def of(run: Run) -> "Base":
        by_kind: dict[str, dict[int, Tensor]] = {"resid_pre": {}, "k": {}, "v": {}}
        for at in run.activations:
            if at.layer is not None and at.kind in by_kind:
                by_kind[at.kind][at.layer] = run[at]
        embed = run.activations.get(Site("embed"))
        return Base(run.tokens, embed, by_kind["resid_pre"], by_kind["k"], by_kind["v"])


@dataclass(frozen=True, eq=False)
class Swept:
    """Rows computed.

    Attributes:
        logits: ``[rows, tokens]`` at each row's last token.
        activations: site that was read -> ``[n, ...]`` in packed order, of the rows that were in the sweep at its layer.
    """

    logits: Tensor
    wave: Wave
    activations: Mapping[Site, Tensor]

    def scatter(self, at: Site, packed_values: Tensor, sources: Mapping[int, Source]) -> None:
        """Writes each row's activations at a site into its group's source, at its prompt and positions."""
        assert at.layer is not None
        packing = self.wave.at(at.layer)
        for i, row in enumerate(self.wave.rows[: len(packing)]):
            into = sources[row.group].activations[at.kind, at.layer]
            own = slice(int(packing.offsets[i]), int(packing.offsets[i + 1]))
            into[row.prompt, row.start : int(packing.stops[i])] = packed_values[own]


class _Reached(Exception):
    """No error: it leaves the forward pass in the middle of the last layer, with its keys and values ``[1, kv_head, n, d_head]``."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


@torch.no_grad()
def sweep(
    lens: "Lens",
    rows: Sequence[Row],
    groups: Sequence[Group],
    base: Base,
    sources: Mapping[str, Source],
    token_ids: Tensor | None,
    read: Sequence[Site] = (),
    last: int | None = None,
) -> Swept:
    """Computes the rows; their logits are of ``token_ids``, or of the whole vocabulary without them.

    Args:
        read: whole sites (no scores or patterns) whose activations are kept too.
        last: the last layer to compute, where only what is read matters; None for all.
    """
    wave = Wave(rows, groups, base.tokens, sources)
    taps = wave.taps(read)
    top = lens.model.n_layers - 1 if last is None else last
    cut = last is None and not read  # what is read is wanted of every token
    device, own = lens.model.device, RowAttention(wave, wave, taps, base.kept)
    at_top: list[Tensor] = []

    def join(layer: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        joined = _joined(wave, base, taps, layer, hidden)
        if layer == top:
            at_top.append(joined)
        return joined, wave.at(layer).positions.to(device)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, within: Attend) -> Tensor:
        if cut and layer == top:
            raise _Reached(key, value)
        return own(layer, query, key, value, mask, within)

    try:
        logits = _forward(lens, wave, taps, (rows[0].entry, top), join, attend, token_ids)
    except _Reached as reached:
        logits = _last_tokens(lens, wave, base, at_top[0], (reached.keys, reached.values), token_ids)
    return Swept(logits, wave, {Site(tap.kind, tap.layer): tap.kept[0] for tap in taps if tap.kept is not None})


def _last_tokens(
    lens: "Lens", wave: Wave, base: Base, hidden: Tensor, keys_values: tuple[Tensor, Tensor], token_ids: Tensor | None
) -> Tensor:
    """``[rows, tokens]`` logits, from the last layer up, of the rows' last tokens alone.

    Args:
        hidden: ``[1, n, d_model]`` of all the wave's tokens as they enter the layer, before this layer's edits (they are made here).
        keys_values: ``[1, kv_head, n, d_head]`` of all the wave's tokens in this layer, after its edits.
    """
    top = lens.model.n_layers - 1
    ends = wave.at_ends(top)
    taps = ends.taps()
    of_ends = RowAttention(ends, wave, taps, base.kept)

    def join(_layer: int, _hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        return hidden[:, wave.whole.ends.to(hidden.device)], ends.whole.positions.to(hidden.device)

    def attend(layer: int, query: Tensor, _key: Tensor, _value: Tensor, mask: Tensor | None, within: Attend) -> Tensor:
        return of_ends(layer, query, *keys_values, mask, within)

    return _forward(lens, ends, taps, (top, top), join, attend, token_ids)


def _joined(wave: Wave, base: Base, taps: Sequence[Tap], layer: int, hidden: Tensor | None) -> Tensor:
    """``[1, n, d_model]``: the rows in the sweep so far (``hidden``; none at first), then those that enter at ``layer``.

    Rows that entered at the layer below with some of their positions get the others here.
    """
    stay, places = (0, torch.empty(0)) if hidden is None else wave.moved(layer)
    packing = wave.at(layer)
    if hidden is not None and stay == packing.n_tokens:
        return hidden
    at = (packing.prompts[stay:], packing.positions[stay:])
    entering = base.resid_pre[layer][at][None]
    for tap in taps:
        if tap.kind == "embed" and layer == 0:  # what comes between is added by position: see ``prepared.enters``
            assert base.embed is not None
            embed = base.embed[at][None]
            entering = entering + (tap(embed) - embed)
    if hidden is None:
        return entering
    if len(places):
        entering[:, places - stay] = hidden[:, stay:]
    return torch.cat([hidden[:, :stay], entering], dim=1)


def _forward(
    lens: "Lens",
    wave: Wave,
    taps: Sequence[Tap],
    layers: tuple[int, int],
    join: Callable[[int, Tensor | None], tuple[Tensor, Tensor]],
    attend: Packed,
    token_ids: Tensor | None,
) -> Tensor:
    """``[rows, tokens]`` logits of one pass through the ``layers``, first to last."""
    first, last = layers
    width, device, ends = max(row.stop for row in wave.rows), lens.model.device, wave.at(last).ends
    # Some families (GPT-2) give their output the dummy prompt's shape: a whole number of widths fits it.
    ends = torch.nn.functional.pad(ends, (0, -len(ends) % width), value=int(ends[-1])).to(device)
    elsewhere = (*BY_HEAD, "embed", "logits")  # called in attention, where rows enter, and below
    inside = [tap for tap in taps if tap.kind not in elsewhere and (tap.layer is None or first <= tap.layer <= last)]
    with (
        packed(lens.layout, first, last, join, attend, ends, token_ids),
        installed(lens.layout, lens.model.hf, inside),
        OneDnn(),
    ):
        dummy = torch.zeros(1, width, dtype=torch.long, device=device)
        logits = lens.model.hf(input_ids=dummy, use_cache=False).logits.flatten(0, 1)[None, : len(wave.rows)]
    for tap in taps:
        logits = tap(logits) if tap.kind == "logits" else logits
    return logits[0]


def climb(lens: "Lens", rows: Sequence[Row], base: Base, taps: Sequence[Tap], token_ids: Tensor | None) -> Tensor:
    """``[rows, tokens]`` logits of rows without edits of their own, gradients kept: ``taps`` (by packed place) change what they pass.

    Nothing is cut short and nothing else is read; it is for what is asked many times over (see ``mechlab.patching.subspace_climb``).
    """
    wave, device = Wave(rows, [()], base.tokens, {}), lens.model.device

    def join(layer: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        return _joined(wave, base, (), layer, hidden), wave.at(layer).positions.to(device)

    attend = RowAttention(wave, wave, (), base.kept)
    return _forward(lens, wave, taps, (rows[0].entry, lens.model.n_layers - 1), join, attend, token_ids)
