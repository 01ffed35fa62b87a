"""What happens to a sink, and to the loss, under edits: attention it draws, its component and lifetime, next-token loss.

The token of interest bears the label SINK in every prompt; a token the sink is moved to bears TARGET.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechlab.analyses.sinks import Floats, batches, cosine, received
from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.lens.reading import Run
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens

SINK, TARGET = "SINK", "TARGET"


@dataclass(frozen=True, eq=False)
class Watch:
    """Where to look.

    Attributes:
        directions: layer -> unit vector ``[d_model]`` of the sink after that layer.
        created: the layer after which it should be there.
        reading: layers whose attention reads it.
        cosine: |cos| above which the token is a sink.
    """

    directions: Mapping[int, Tensor]
    created: int
    reading: range
    cosine: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """One number per prompt ``[n]`` (norms: ``[n, layer]``).

    Attributes:
        received: attention that SINK draws, mean over heads of the reading layers.
        target_received: the same for TARGET, where prompts have one.
        lifetime: layers from the creation layer on after which SINK has the direction, without a gap.
        norms: of the residual stream at SINK after each layer.
        loss: mean next-token loss after SINK (and TARGET), nats.
    """

    received: Floats
    target_received: Floats
    lifetime: Floats
    norms: Floats
    loss: Floats


def outcome(lens: Lens, tokens: Tokens, edits: Sequence[Edit], watch: Watch) -> Outcome:
    """Runs prompts of one length under edits, a few at a time."""
    parts = [_of_batch(lens, tokens.select(rows), edits, watch) for rows in batches(len(tokens))]
    return Outcome(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _of_batch(lens: Lens, tokens: Tokens, edits: Sequence[Edit], watch: Watch) -> tuple[Floats, ...]:
    patterns = [Site("pattern", layer) for layer in watch.reading]
    stream = [Site("resid_post", layer, pos=SINK) for layer in range(lens.model.n_layers)]
    run = lens.run(tokens, edits, read=[*patterns, *stream], batch_size=len(tokens))
    last = tokens.positions(TARGET if TARGET in tokens.labels else SINK)
    values = (
        _received(run, patterns, tokens.positions(SINK)),
        _received(run, patterns, last),
        _lifetime(run, watch),
        torch.stack([run[at].float().norm(dim=-1) for at in stream], dim=1),
        _loss(run, last),
    )
    return tuple(value.double().cpu().numpy() for value in values)


def _received(run: Run, patterns: Sequence[Site], at: Sequence[int]) -> Tensor:
    """``[n]``: mean over heads and layers of the attention the key at each prompt's position receives."""
    rows = range(len(at))
    by_layer = [received(run[site].float())[rows, :, list(at)].mean(dim=-1) for site in patterns]
    return torch.stack(by_layer).mean(dim=0) if by_layer else torch.full((len(at),), torch.nan)


def _lifetime(run: Run, watch: Watch) -> Tensor:
    """``[n]``: consecutive layers, from the creation layer on, after which the token has the sink direction."""
    layers = [layer for layer in sorted(watch.directions) if layer >= watch.created]
    aligned = torch.stack(
        [
            cosine(run[Site("resid_post", layer, pos=SINK)].float(), watch.directions[layer]).abs() > watch.cosine
            for layer in layers
        ],
        dim=1,
    )
    return aligned.long().cumprod(dim=1).sum(dim=1)


def _loss(run: Run, after: Sequence[int]) -> Tensor:
    """``[n]``: mean loss of the tokens predicted from positions after ``after``."""
    assert run.logits is not None
    ids = run.tokens.ids.to(run.logits.device)
    losses = torch.nn.functional.cross_entropy(run.logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return torch.stack([row[at + 1 :].mean() for row, at in zip(losses, after, strict=True)])
