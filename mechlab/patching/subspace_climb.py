"""From one site at one position up to the logits, many times over and with gradients.

Fitting a subspace asks the same question hundreds of times: what are the logits if this activation is another one? Both sides of a task
are run once; then only the tokens from the site's position on are carried, from the site's layer on (``packed.climb``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mechlab.errors import SiteError
from mechlab.lens.edit import patch
from mechlab.lens.hooks import Placed, Tap
from mechlab.lens.site import Site
from mechlab.patching.packed import Base, climb
from mechlab.patching.rows import Row, entry_layer, lowered
from mechlab.patching.task import Task
from mechlab.patching.wave import Wave

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

_KINDS = ("resid_pre", "resid_mid", "resid_post", "mlp_post", "z")


@dataclass(eq=False)
class _Put(Tap):
    """Puts given activations ``[rows, d]`` at places of the packed sequence."""

    index: int | None = None
    places: Tensor = field(default_factory=lambda: torch.empty(0))
    given: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, activation: Tensor) -> Tensor:
        new = activation.clone()
        if self.index is None:
            new[0, self.places] = self.given.to(activation.dtype)
        else:
            new[0, self.places, self.index] = self.given.to(activation.dtype)
        return new


@dataclass(frozen=True, eq=False)
class Climb:
    """A site of a task's base side, ready to be changed.

    Attributes:
        own, other: ``[n, d]`` float32 activations at the site on the base side and on the other side.
        token_ids: the only tokens that are unembedded; None for the whole vocabulary.
    """

    lens: "Lens"
    at: Site
    base: Base
    rows: tuple[Row, ...]
    own: Tensor
    other: Tensor

    def logits(
        self, activations: Tensor, prompts: Sequence[int] | None = None, token_ids: Tensor | None = None
    ) -> Tensor:
        """``[rows, tokens]`` logits at the last token where ``activations [rows, d]`` stand at the site. Gradients flow through them.

        Args:
            prompts: of the task, one per row; None for all.
            token_ids: the only tokens to unembed; None for the whole vocabulary.
        """
        chosen = [self.rows[i] for i in (range(len(self.rows)) if prompts is None else prompts)]
        wave = Wave(chosen, [()], self.base.tokens, {})
        where = lowered((patch(self.at),), self.lens.model.n_layers)[0].site
        tap = _Put(
            where.kind,
            where.layer,
            wave,
            edits=[Placed(patch(where))],  # what it stands for: a tap without edits only looks
            index=where.index,
            places=torch.from_numpy(wave.whole.offsets[:-1]),
            given=activations,
        )
        return climb(self.lens, chosen, self.base, [tap], token_ids)

    def moved(self, basis: Tensor, prompts: Sequence[int] | None = None) -> Tensor:
        """``[rows, d]``: the base side's activations with the subspace ``basis [k, d]`` (orthonormal rows) taken from the other side."""
        rows = slice(None) if prompts is None else list(prompts)
        own = self.own[rows]
        basis = basis.to(own)
        return own + (self.other[rows] - own) @ basis.T @ basis


def climbs(
    lens: "Lens", task: Task, sites: Sequence[Site], base: Literal["clean", "corrupted"] = "clean"
) -> list[Climb]:
    """Runs both sides of the task once and makes each site ready.

    Raises:
        SiteError: a site without a position, or of a kind whose activations are no vectors of one token.
    """
    for at in sites:
        lens.layout.check(at)
        if at.kind not in _KINDS or at.pos is None or (at.kind == "z") != (at.index is not None):
            raise SiteError(
                f"Site {at} cannot be climbed from: use one position of the residual stream, of MLP activations or of one head, "
                "as in L5.resid_post@-1, L5.mlp_post@-1, L5H3@-1."
            )
    n_layers = lens.model.n_layers
    entries = [entry_layer(lowered((patch(at),), n_layers), n_layers) for at in sites]
    tokens, others = (task.clean, task.corrupted) if base == "clean" else (task.corrupted, task.clean)
    wholes = Base.sites(entries, n_layers)
    run = lens.run(tokens, read=[*wholes, *sites], logits="none")
    other = lens.run(others, read=sites, logits="none")
    made = Base.of(
        replace(run, activations={at: run[at] for at in wholes})
    )  # without the sites, which may be parts of them
    found: list[Climb] = []
    for at, entry in zip(sites, entries, strict=True):
        starts = tokens.positions(at.pos if at.pos is not None else -1)
        rows = tuple(
            Row(0, i, entry, start, stop, stop)
            for i, (start, stop) in enumerate(zip(starts, tokens.lengths, strict=True))
        )
        found.append(Climb(lens, at, made, rows, run[at].float(), other[at].float()))
    return found
