"""A lens for edits of the last token alone: what stands before it is computed once.

An edit of the last token changes nothing before it, so the keys and values of a batch's other tokens are kept when it is first seen, and
every run after that is a run of one token per prompt: exact, and some fifty times less work. Prompts of unequal length share a batch: keys
beyond a prompt's own are masked.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mechlab.errors import EditError, PromptError, SiteError
from mechlab.lens.apply import Cells, Source, Window
from mechlab.lens.edit import Edit
from mechlab.lens.hooks import Placed, count_touched, installed, make_taps
from mechlab.lens.lens import Lens
from mechlab.lens.reading import Run, view
from mechlab.lens.site import KINDS, Site
from mechlab.lens.splice import Spliceable
from mechlab.lens.tokens import Prompts, Tokens

_LOGITS = Site("logits")
_REMEMBERED = 8


class LastTokenLens(Lens):
    """As ``lens``, for sites and edits at each prompt's last token (``@-1``, or ``Steer(start=-1)``).

    It keeps the keys and values of every batch it has seen. Prompts need two tokens at least, and fit in a model's sliding window.

    Args:
        also_read: sites (``@-1``) that every run with logits reads, so that what a search ended at need not be run again to read them.
    """

    def __init__(self, lens: Lens, also_read: Sequence[Site] = ()) -> None:
        self.also_read = tuple(also_read)
        self.model, self.prepend_bos, self.layout = lens.model, lens.prepend_bos, lens.layout
        self._kept: dict[str, DynamicCache] = {}
        self._plain: dict[tuple[str, tuple[Edit, ...]], Run] = {}
        self._latest: dict[tuple[str, tuple[Edit, ...]], Run] = {}

    def generate(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refused: use ``continued``, or a plain Lens."""
        raise EditError("A LastTokenLens does not generate: use its continued(), or a plain Lens.")

    gradients = generate

    @torch.no_grad()
    def continued(self, prompts: Prompts, n: int, edits: Sequence[Edit] = ()) -> Tensor:
        """``[batch, n]`` greedy next tokens; edits act on the last token of the prompt and on every new one. It does not stop early."""
        tokens = self.tokens(prompts)
        self._check(tokens, edits, (), {})
        _check_confined(edits)
        cache, ids, found = self._cache(tokens), _last_ids(tokens), []
        for step in range(n):
            logits, _ = self._step(tokens, ids, cache, step, edits, (), Counter())
            ids = logits[:, -1].argmax(-1, keepdim=True).cpu()
            found.append(ids)
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def loss_of(self, prompts: Prompts, continuations: Tensor) -> Tensor:
        """``[batch, n]`` nats: the loss of each token of the continuations ``[batch, n]``, without edits."""
        tokens = self.tokens(prompts)
        ids = torch.cat([_last_ids(tokens), continuations[:, :-1]], dim=1)
        logits, _ = self._step(tokens, ids, self._cache(tokens), 0, (), (), Counter())
        return -logits.log_softmax(-1).gather(2, continuations[..., None])[..., 0]

    @torch.no_grad()
    def _forward(
        self,
        tokens: Tokens,
        rows: tuple[int, ...],
        edits: Sequence[Edit],
        sites: Sequence[Site],
        sources: Mapping[str, Source],
        dictionaries: Mapping[str, Spliceable],
        logits: str,
        touched: Counter[Edit],
    ) -> Run:
        _check_confined(edits)
        _check_readable(sites, logits)
        if sources or dictionaries:
            raise EditError("A LastTokenLens takes nothing from other runs or dictionaries: use a plain Lens.")
        batch = tokens.select(rows)
        key = (batch.sha256, tuple(edits))
        if logits == "none" or not set(sites) <= set(self.also_read):
            output, read = self._step(batch, _last_ids(batch), self._cache(batch), 0, edits, sites, touched)
            return Run(batch, *(None, None) if logits == "none" else (output, output[:, -1]), read)
        kept = self._latest if edits else self._plain
        if key not in kept:
            output, read = self._step(batch, _last_ids(batch), self._cache(batch), 0, edits, self.also_read, touched)
            kept[key] = Run(batch, output, output[:, -1], read)
            while len(self._latest) > _REMEMBERED:
                del self._latest[next(iter(self._latest))]
        touched.update(edits)  # also those of a run that is remembered: it touched them then
        return kept[key]

    @torch.no_grad()
    def each(self, prompts: Prompts, variants: Sequence[Sequence[Edit]], read: Site) -> Tensor:
        """``[variant, batch, ...]``: a site under several sets of edits, all in one pass: it reads the weights once."""
        tokens = self.tokens(prompts)
        self._check(tokens, [edit for edits in variants for edit in edits], [read], {})
        for edits in variants:
            _check_confined(edits)
        _check_readable([read], "none")
        n, copies = len(tokens), len(variants)
        cache = DynamicCache()
        for i, (keys, values) in enumerate(map(_filled, self._cache(tokens).layers)):
            cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), i)
        many = tokens.select([row for _ in range(copies) for row in range(n)])
        rows: dict[Edit, list[int]] = {}
        for i, edits in enumerate(variants):
            for edit in edits:
                rows.setdefault(edit, []).extend(range(i * n, (i + 1) * n))
        found = self._step(many, _last_ids(many), cache, 0, list(rows), [read], Counter(), rows)[1][read]
        return found.unflatten(0, (copies, n))

    def _step(
        self,
        tokens: Tokens,
        ids: Tensor,
        cache: DynamicCache,
        step: int,
        edits: Sequence[Edit],
        sites: Sequence[Site],
        touched: Counter[Edit],
        rows: Mapping[Edit, Sequence[int]] | None = None,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits ``[n, m, vocab]`` of ``m`` tokens after what the cache holds, ``step`` of them new, and what is read at the last."""
        n, m, width = len(tokens), ids.shape[1], tokens.width + step
        stop = width + m - 1
        # For edits all prompts end at one place, the batch's width: where the last token stands in the cache.
        level = Tokens(torch.zeros(n, tokens.width, dtype=torch.long), (tokens.width,) * n, ((),) * n)
        taps = make_taps(_Rows(level, tuple(range(n)), stop, {}, n, rows), map(Placed, edits), sites)
        lengths = torch.tensor(tokens.lengths)[:, None]
        mask = torch.arange(stop)[None] < lengths - 1
        mask[:, tokens.width - 1 :] = True
        device = self.model.device
        with installed(self.layout, self.model.hf, taps):
            output = self.model.hf(
                input_ids=ids.to(device),
                past_key_values=cache,
                position_ids=(lengths - 1 + step + torch.arange(m)).to(device),
                attention_mask=None if tokens.equal_lengths else mask.to(device),
                use_cache=True,
            )
        touched.update(count_touched(taps))
        kept = {(tap.kind, tap.layer): tap.kept for tap in taps if tap.kept is not None}
        one = Tokens(torch.zeros(n, m, dtype=torch.long), (m,) * n, ((),) * n)
        return output.logits.float(), {at: view(at, kept[at.kind, at.layer], one) for at in sites}

    def _cache(self, tokens: Tokens) -> DynamicCache:
        """Keys and values of all tokens but each prompt's last, padded on the right. What a run adds is cut off before the next."""
        key = tokens.sha256
        if key not in self._kept:
            self._check_fits(tokens)
            cache = DynamicCache()  # made without a config: it never truncates
            with torch.no_grad(), installed(self.layout, self.model.hf, (), torch.zeros(len(tokens), dtype=torch.long)):
                ids = tokens.ids[:, :-1].to(self.model.device)
                self.model.hf(input_ids=ids, past_key_values=cache, use_cache=True)
            self._kept[key] = cache
        cache = self._kept[key]
        if added := cache.get_seq_length() - (tokens.width - 1):
            cache.crop(-added)
        return cache

    def _check_fits(self, tokens: Tokens) -> None:
        if min(tokens.lengths) < 2:
            raise PromptError("A prompt of one token has nothing before its last: use a plain Lens.")
        window = getattr(self.model.hf.config, "sliding_window", None)
        if window is not None and tokens.width > window:
            raise PromptError(
                f"{self.model.name} looks back {window} tokens and a prompt has {tokens.width}: use a plain Lens."
            )


@dataclass(frozen=True, eq=False)
class _Rows(Window):
    """A window in which an edit may belong to some rows alone."""

    only: Mapping[Edit, Sequence[int]] | None = None

    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells:
        found = super().cells(edit, n_positions, turn)
        if self.only is None:
            return found
        mine = torch.isin(found.batch, torch.tensor(self.only[edit]))
        return Cells(found.batch[mine], found.column[mine], found.prompts[mine], found.at[mine])


def _last_ids(tokens: Tokens) -> Tensor:
    return tokens.ids.gather(1, torch.tensor(tokens.lengths)[:, None] - 1)


def _filled(layer: Any) -> tuple[Tensor, Tensor]:
    assert layer.keys is not None and layer.values is not None, "the run has just filled the cache"
    return layer.keys, layer.values


def _check_confined(edits: Sequence[Edit]) -> None:
    for edit in edits:
        window = edit.steer and edit.steer.start == -1 and edit.steer.stop is None
        if edit.source is not None or not (window or edit.site.pos == -1):
            raise EditError(f"Edit {edit} is not confined to the last token: give @-1 or Steer(start=-1).")


def _check_readable(sites: Sequence[Site], logits: str) -> None:
    for at in sites:
        if at.pos != -1 or KINDS[at.kind].axes[-1] == "key" or at == _LOGITS:
            raise SiteError(f"Site {at} is not read at the last token alone: read {at.kind} at @-1 with a plain Lens.")
    if logits == "all":
        raise SiteError("A LastTokenLens has the last token's logits alone: ask for logits='last' or 'none'.")
