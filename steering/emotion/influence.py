"""How much a sublayer's own push along an emotion arrives at the end: its causal influence.

The sublayer's direction is added to what it writes at the last token, in units of the stream's size there, and the change of the last
stream along a reference direction is measured. Wang et al., arXiv 2510.11328, stage 6.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mechlab.lens.edit import Edit, add
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress
from steering.emotion.directions import AFTER_ATTENTION, AFTER_MLP, HEADS, NEURONS, ByEmotion
from steering.emotion.last_token import LastTokenLens

_AT_ONCE = 18
PARTS = {HEADS: ("attn_out", AFTER_ATTENTION), NEURONS: ("mlp_out", AFTER_MLP)}
"""Units -> what their sublayer writes, and the stream after it."""


def reference(directions: Mapping[Site, ByEmotion], layers: Sequence[int], emotion: str) -> Tensor:
    """``[d_model]`` of length 1: the mean of the directions of these layers, their signs made to agree with the last one's."""
    rows = torch.stack([directions[Site(k, layer)][emotion] for layer in layers for k in (AFTER_ATTENTION, AFTER_MLP)])
    signs = torch.sign(rows @ rows[-1])
    return torch.nn.functional.normalize((rows * signs[:, None]).mean(0), dim=0)


def sizes(lens: Lens, prompts: Tokens, layers: Sequence[int]) -> dict[Site, float]:
    """Stream -> its root mean square at the prompts' last tokens, mean over prompts."""
    streams = [Site(kind, layer, pos=-1) for layer in layers for kind in (AFTER_ATTENTION, AFTER_MLP)]
    run = lens.run(prompts, read=streams, logits="none")
    return {at.at(None): float(run[at].float().square().mean(-1).sqrt().mean()) for at in streams}


def influence(
    lens: LastTokenLens,
    prompts: Tokens,
    directions: Mapping[Site, ByEmotion],
    layers: Sequence[int],
    towards: Tensor,
    emotion: str,
    alphas: Sequence[float],
    progress: Progress,
) -> dict[Site, float]:
    """Site of a sublayer's units (``z``, ``mlp_post``) -> change of the last stream along ``towards`` per unit of push; mean over prompts
    and ``alphas``.
    """
    last = Site(AFTER_MLP, lens.model.n_layers - 1, pos=-1)
    size = sizes(lens, prompts, layers)
    before = lens.run(prompts, read=[last], logits="none")[last].float()
    pushes = [(layer, units, alpha) for layer in layers for units in PARTS for alpha in alphas]
    found: dict[Site, float] = {}
    for start in range(0, len(pushes), _AT_ONCE):
        progress(f"causal influence: {emotion}", start, len(pushes))
        some = pushes[start : start + _AT_ONCE]
        edits = [_push(directions, size, emotion, *push) for push in some]
        after = lens.each(prompts, [[edit] for edit in edits], last).float()
        moved = ((after - before) @ towards.to(after)).mean(1)
        for (layer, units, _), edit, effect in zip(some, edits, moved.tolist(), strict=True):
            at = Site(units, layer)
            found[at] = found.get(at, 0.0) + effect / edit.strength / len(alphas)
    return found


def _push(
    directions: Mapping[Site, ByEmotion], size: Mapping[Site, float], emotion: str, layer: int, units: str, alpha: float
) -> Edit:
    writes, stream = PARTS[units]
    at = Site(stream, layer)
    return add(Site(writes, layer, pos=-1), directions[at][emotion], strength=alpha * size[at])
