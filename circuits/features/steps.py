"""One step back: what reads a direction in the residual stream directly, without passing through any other part on the way.

A target reads the stream at one place by one vector. Every part that wrote to the stream there adds its own term: the embedding, each
attention head from each source token, each feature of the MLPs below (and their errors and decoder biases), whole MLPs where there is no
transcoder. The terms add up to the target's value. A head's term can be followed back to its source token, a feature's to what its encoder
reads, so a path is a chain of such steps. Dunefsky, Chlenski and Nanda, arXiv 2406.11944 (§ 4 and appendix).
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from circuits.features.explained import Explained
from circuits.features.frozen import FINAL, Place, position
from circuits.features.target import Target

PARTS = ("feature", "head", "embedding", "skip", "mlp", "error", "bias")


@dataclass(frozen=True)
class Part:
    """One term's origin.

    Attributes:
        kind: in ``PARTS``. ``mlp``: the whole output of an MLP without features at that token; ``error``: of a transcoder; ``skip``: its
            linear path; ``bias``: all that is constant.
        layer: -1 for the embedding and the bias.
        pos: the token it is written at; a head's source token. The last two for a head and a feature alone, else -1.
    """

    kind: str
    layer: int
    pos: int
    head: int = -1
    feature: int = -1

    def __str__(self) -> str:
        names = {
            "feature": f"L{self.layer}F{self.feature}",
            "head": f"L{self.layer}H{self.head}",
            "embedding": "embedding",
            "skip": f"L{self.layer} skip",
            "mlp": f"L{self.layer} MLP",
            "error": f"L{self.layer} error",
        }
        return "bias" if self.kind == "bias" else f"{names[self.kind]}@{self.pos}"


@dataclass(frozen=True, eq=False)
class Reading:
    """A direction read in the residual stream at one token: ``vector . stream + constant = value``.

    ``below``: layers whose attention and MLP have written to that stream; ``mid``: attention of layer ``below`` has, too.
    """

    vector: Tensor
    constant: float
    pos: int
    below: int
    mid: bool
    value: float


@dataclass(frozen=True, eq=False)
class Step:
    """The terms of a reading: ``parts`` and their ``contributions [n]``, which add up to its value."""

    reading: Reading
    parts: tuple[Part, ...]
    contributions: Tensor


def reading_of(explained: Explained, target: Target) -> Reading:
    """How a target reads the residual stream: through the frozen norm before it."""
    pos = position(explained.run, target.pos)
    layout, value = explained.run.lens.layout, explained.value(target)
    if target.place == FINAL:
        norm, below, mid = layout.final_norm, explained.run.n_layers, False
    else:
        block = layout.blocks[target.place[1]]
        norm, below, mid = block.ln2, target.place[1], block.mid is not None
    vector, constant = _before(explained, norm, target.vector, target.constant, pos)
    return Reading(vector, constant, pos, below, mid, value)


def _before(
    explained: Explained, norm: nn.Module | None, vector: Tensor, constant: float, pos: int
) -> tuple[Tensor, float]:
    """A vector and constant after a norm -> before it."""
    vector = vector.to(explained.run.leaves.embed)
    if norm is None:
        return vector, constant
    frozen = explained.run.norms[norm]
    return frozen.pull(vector, pos), constant + float(frozen.form.bias @ vector)


def step(explained: Explained, reading: Reading) -> Step:
    """Every term of a reading. The one of the bias is all that is constant: decoders', attention's, norms' and the reading's own."""
    bias = reading.constant
    parts, numbers = list[Part](), list[Tensor]()
    run, v, pos = explained.run, reading.vector, reading.pos
    parts.append(Part("embedding", -1, pos))
    numbers.append((run.leaves.embed[0, pos].detach() @ v)[None])
    for layer in range(reading.below + reading.mid):
        heads = _heads(explained, layer, reading)
        sources = [Part("head", layer, source, head) for head in range(len(heads)) for source in range(pos + 1)]
        parts += sources
        numbers.append(heads.flatten())
        bias += _attention_bias(explained, layer, reading)
        if layer < reading.below:
            some, terms = _mlp(explained, layer, reading)
            parts += some
            numbers.append(terms)
            if explained.has_features(layer, pos):
                bias += float(explained.transcoders[layer].decoder_bias.detach().to(v) @ v)
    parts.append(Part("bias", -1, pos))
    numbers.append(torch.tensor([bias], dtype=torch.float64))
    return Step(reading, tuple(parts), torch.cat([one.double().cpu() for one in numbers]))


def _attention_bias(explained: Explained, layer: int, reading: Reading) -> float:
    """What attention adds whatever it attends to: the biases of its output projection and of a norm after it."""
    block, constant, vector = explained.run.lens.layout.blocks[layer], 0.0, reading.vector
    if block.attn_out is not block.attn:
        vector, constant = _before(explained, block.attn_out, vector, constant, reading.pos)
    bias = block.attn_bias
    return constant if bias is None else constant + float(bias.detach() @ vector)


def _heads(explained: Explained, layer: int, reading: Reading) -> Tensor:
    """``[head, source]``: what each head adds from each source token, up to the reading's own."""
    run, pos = explained.run, reading.pos
    read = _by_head(explained, layer, reading.vector, pos)
    values = run.live["v", layer][0, : pos + 1].detach()  # [source, kv_head, d_head]
    by_head = values.repeat_interleave(len(read) // values.shape[1], dim=1)
    return run.patterns[layer][:, pos, : pos + 1] * torch.einsum("shd,hd->hs", by_head, read)


def _by_head(explained: Explained, layer: int, vector: Tensor, pos: int) -> Tensor:
    """``[head, d_head]``: how each head's output is read."""
    layout, run = explained.run.lens.layout, explained.run
    block = layout.blocks[layer]
    if block.attn_out is not block.attn:
        vector = run.norms[block.attn_out].pull(vector, pos)
    return block.written_by_heads.unflatten(0, (layout.n_heads, layout.d_head)) @ vector


def _mlp(explained: Explained, layer: int, reading: Reading) -> tuple[list[Part], Tensor]:
    """Terms of one MLP at the reading's token."""
    pos, v = reading.pos, reading.vector
    rest = (explained.rest[layer, pos] @ v)[None]
    if not explained.has_features(layer, pos):
        return [Part("mlp", layer, pos)], rest
    one, active = explained.transcoders[layer], explained.active
    here = ((active.layer == layer) & (active.pos == pos)).nonzero().flatten()
    terms = active.value[here].to(v) * (one.directions[active.feature[here]].detach().to(v) @ v)
    parts = [Part("feature", layer, pos, feature=feature) for feature in active.feature[here].tolist()]
    parts.append(Part("error", layer, pos))
    found = [terms, rest]
    if one.skip is not None:
        parts.append(Part("skip", layer, pos))
        found.append((one.skip.to(v) @ explained.run.at["mlp_in", layer][pos] @ v)[None])
    return parts, torch.cat(found)


def back(explained: Explained, reading: Reading, part: Part) -> Reading | None:
    """How that part's term is itself read from the stream; None where a path ends (embedding, whole MLP, error, bias)."""
    run, v = explained.run, reading.vector
    if part.kind == "head":
        return _into_head(explained, reading, part)
    if part.kind not in ("feature", "skip"):
        return None
    block, one = run.lens.layout.blocks[part.layer], explained.transcoders[part.layer]
    if part.kind == "feature":
        weight = one.directions[part.feature].detach().to(v) @ v
        before = one.encoder[part.feature].detach().to(v) * weight
        constant = float(one.encoder_bias[part.feature]) * float(weight)
        active = explained.active
        value = float(active.value[active.index[part.layer, part.pos, part.feature]]) * float(weight)
    else:
        assert one.skip is not None
        before, constant = one.skip.to(v).T @ v, 0.0
        value = float(before @ run.at["mlp_in", part.layer][part.pos])
    before, constant = _before(explained, block.ln2, before, constant, part.pos)
    return Reading(before, constant, part.pos, part.layer, block.mid is not None, value)


def _into_head(explained: Explained, reading: Reading, part: Part) -> Reading:
    """Through one head to its source token: what its value reads there."""
    run, place = explained.run, ("v", part.layer)
    read = _by_head(explained, part.layer, reading.vector, reading.pos)[part.head]
    read = read * run.patterns[part.layer][part.head, reading.pos, part.pos]
    values = run.live[place][0, part.pos]
    kv_head = part.head * values.shape[0] // run.lens.layout.n_heads
    vectors = torch.zeros_like(values)
    vectors[kv_head] = read
    stream = run.live["resid_pre", part.layer]
    vector = run.slopes(place, [part.pos], vectors[None], [stream])[0][0, 0, part.pos]
    value = float(values[kv_head].detach() @ read)
    return Reading(vector, value - float(stream[0, part.pos].detach() @ vector), part.pos, part.layer, False, value)


def one_step(explained: Explained, target: Target) -> pd.DataFrame:
    """The terms of a target, largest first, signs aside, each with the factors it is a product of.

    Returns:
        ``part``, ``kind``, ``layer``, ``pos`` (of a head: the source token), ``head``, ``feature``, ``contribution``; for features
        ``activation`` (depends on the input), ``scale`` (of the norm that the target reads through; depends on the input, 1 without one)
        and ``invariant`` (decoder . encoder through the norm's gain: from weights alone), whose product is the contribution; for heads
        ``attention``. NaN elsewhere.
    """
    found = step(explained, reading_of(explained, target))
    scale = _scale(explained, target.place, found.reading.pos)
    active, rows = explained.active, list[dict[str, Any]]()
    for part, contribution in zip(found.parts, found.contributions.tolist(), strict=True):
        row: dict[str, Any] = {"part": str(part), **vars(part), "contribution": contribution}
        if part.kind == "feature":
            activation = float(active.value[active.index[part.layer, part.pos, part.feature]])
            row |= {"activation": activation, "scale": scale, "invariant": contribution / (activation * scale)}
        if part.kind == "head":
            row["attention"] = float(explained.run.patterns[part.layer][part.head, found.reading.pos, part.pos])
        rows.append(row)
    columns = [
        "part",
        "kind",
        "layer",
        "pos",
        "head",
        "feature",
        "contribution",
        "activation",
        "scale",
        "invariant",
        "attention",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values("contribution", key=abs, ascending=False, kind="stable", ignore_index=True)


def _scale(explained: Explained, place: Place, pos: int) -> float:
    layout = explained.run.lens.layout
    norm = layout.final_norm if place == FINAL else layout.blocks[place[1]].ln2
    return 1.0 if norm is None else float(explained.run.norms[norm].scale[pos])
