"""A lens that does not compute twice what steering cannot change.

Edits above a layer leave everything up to its output as it was. So the residual stream there is kept when a batch of prompts is first seen,
and from then on the layers below only pass it on: exact, and for a vector in the middle of the model half the work. A study that tries many
vectors and strengths on the same prompts uses it. What was run a moment ago (a strength that a search ended at) is not run again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mechlab.errors import EditError, SiteError
from mechlab.lens.edit import Edit
from mechlab.lens.hooks import Tap, installed, intercepted
from mechlab.lens.lens import Lens
from mechlab.lens.reading import Run
from mechlab.lens.site import Site
from mechlab.lens.splice import Spliceable
from mechlab.lens.tokens import Prompts, Tokens

_REMEMBERED = 8


class ResumedLens(Lens):
    """As ``lens``, for edits at ``L{layer}.resid_post`` and above. It keeps ``[batch, pos, d_model]`` for every batch it has seen."""

    def __init__(self, lens: Lens, layer: int) -> None:
        self.model, self.prepend_bos, self.layout = lens.model, lens.prepend_bos, lens.layout
        self.first = Site("resid_post", layer)
        self.layout.check(self.first)
        self._kept: dict[str, Tensor] = {}
        self._ran: dict[tuple[str, tuple[Edit, ...]], Run] = {}

    def run(self, prompts: Prompts, edits: Iterable[Edit] = (), read: Iterable[str | Site] = (), **options: Any) -> Run:
        """As ``Lens.run``. Of runs that read nothing and want the last logits alone, the latest are remembered."""
        edits, read = tuple(edits), tuple(read)
        if read or options != {"logits": "last"} | {k: None for k in options if k in ("sources", "dictionaries")}:
            return super().run(prompts, edits, read, **options)
        tokens = self.tokens(prompts)
        key = (tokens.sha256, edits)
        if key not in self._ran:
            self._ran[key] = super().run(tokens, edits, **options)
            while len(self._ran) > _REMEMBERED:
                del self._ran[next(iter(self._ran))]
        return self._ran[key]

    def _check(
        self, tokens: Tokens, edits: Sequence[Edit], sites: Sequence[Site], dictionaries: Mapping[str, Spliceable]
    ) -> None:
        super()._check(tokens, edits, sites, dictionaries)
        for edit in edits:
            if edit.site.sort_key[:2] < self.first.sort_key[:2]:
                raise EditError(f"Edit {edit} lies below {self.first}, from which this lens resumes: use a plain Lens.")
        for at in sites:
            if at.sort_key[:2] < self.first.sort_key[:2]:
                raise SiteError(f"Site {at} lies below {self.first}, from which this lens resumes: use a plain Lens.")

    def generate(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refused: generation keeps its own keys and values."""
        raise EditError("A ResumedLens does not generate: use a plain Lens.")

    gradients = generate

    @torch.no_grad()
    def _pass(self, batch: Tokens, taps: Sequence[Tap], ends: Tensor | None) -> tuple[dict[Any, Tensor], Tensor]:
        key, layer = batch.sha256, self.first.layer or 0
        if key not in self._kept:
            plain = Lens(self.model, prepend_bos=self.prepend_bos)
            self._kept[key] = plain.run(batch, read=[self.first], logits="none")[self.first].clone()
        hidden, blocks = self._kept[key], [block.block for block in self.layout.blocks[: layer + 1]]
        passing = intercepted(forwards=[(block, _same) for block in blocks], inputs=[(blocks[-1], lambda _: hidden)])
        with passing, installed(self.layout, self.model.hf, taps, ends):
            output = self.model.hf(input_ids=batch.ids.to(self.model.device), use_cache=False)
        return {(tap.kind, tap.layer): tap.kept for tap in taps if tap.kept is not None}, output.logits


def _same(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states
