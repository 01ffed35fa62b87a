"""Runs prompts for their activations alone: rows of tokens without padding, layers above the last site left out."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechlab.dictionaries.activations import TokenTable
from mechlab.errors import MechlabError
from mechlab.lens.hooks import intercepted
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.screen import in_dtype

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_TOKENS = 256
_AT_ONCE = 256  # texts tokenised together


@dataclass(frozen=True)
class Prompt:
    """Token ids that are run together, and the number of the text they are from."""

    ids: tuple[int, ...]
    text: int


def prompts_of(lens: Lens, texts: Sequence[str] | Sequence[Sequence[int]], max_tokens: int | None) -> list[Prompt]:
    """Texts as prompts of at most ``longest_prompt`` tokens. Where the tokenizer puts a BOS token first, every prompt begins with one.

    Raises:
        MechlabError: no text, or a length below 2. PromptError: an empty text, ids out of range.
    """
    longest = longest_prompt(lens, max_tokens)
    if isinstance(texts, str) or not len(texts):
        raise MechlabError("Texts to harvest are a list with at least one text: pass for example passages(count=100).")
    prompts: list[Prompt] = []
    for text, ids in enumerate(_ids(lens, texts)):
        first, body = (ids[:1], ids[1:]) if ids[0] == lens.model.tokenizer.bos_token_id else ((), ids)
        room = longest - len(first)
        prompts += [Prompt((*first, *body[at : at + room]), text) for at in range(0, max(len(body), 1), room)]
    return prompts


def longest_prompt(lens: Lens, max_tokens: int | None) -> int:
    """``max_tokens``, or by default 256, or what the model reads if that is less. Raises MechlabError for what it cannot read."""
    longest = lens.model.context_length
    if max_tokens is not None and not 2 <= max_tokens <= longest:
        raise MechlabError(f"Prompts of {max_tokens} tokens were asked for: {lens.model.name} takes 2 to {longest}.")
    return max_tokens or min(_MAX_TOKENS, longest)


def _ids(lens: Lens, texts: Sequence[str] | Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(texts), _AT_ONCE):
        part: Any = texts[start : start + _AT_ONCE]
        if isinstance(part[0], str):
            tokens = lens.tokens(part)
            yield from (tuple(row[:n]) for row, n in zip(tokens.ids.tolist(), tokens.lengths, strict=True))
        else:  # ids may be longer than the model reads: they are cut next
            yield from (tuple(int(i) for i in ids) for ids in _in_vocabulary(lens, part))


def _in_vocabulary(lens: Lens, lists: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    for ids in lists:
        if not len(ids):
            raise MechlabError("A text without tokens cannot be harvested: give each at least one token id.")
        bad = [int(i) for i in ids if not 0 <= int(i) < lens.model.vocab_size]
        if bad:
            raise MechlabError(f"Token id {bad[0]} is outside the vocabulary: use 0 to {lens.model.vocab_size - 1}.")
        yield ids


def table_of(lens: Lens, prompts: Sequence[Prompt]) -> TokenTable:
    """Which token each row is. First positions and special tokens do not count."""
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    ids = torch.tensor([i for prompt in prompts for i in prompt.ids], dtype=torch.int32)
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths.tolist()])
    special = torch.tensor(lens.model.tokenizer.all_special_ids, dtype=torch.int32)
    pieces = {i: str(lens.model.tokenizer.decode([i])) for i in ids.unique().tolist()}
    return TokenTable(
        ids,
        torch.arange(len(prompts), dtype=torch.int32).repeat_interleave(lengths),
        positions,
        (positions > 0) & ~torch.isin(ids, special),
        torch.tensor([prompt.text for prompt in prompts], dtype=torch.int32),
        pieces,
    )


def in_precision(lens: Lens, name: str | None) -> Lens:
    """The lens itself, or one on a copy of its model in another precision."""
    if name is not None and name not in _DTYPES:
        raise MechlabError(f"Precision {name!r} is unknown: use {', '.join(_DTYPES)}, or None for the model's own.")
    wanted = lens.model.dtype if name is None else _DTYPES[name]
    return lens if wanted == lens.model.dtype else in_dtype(lens, wanted)


def widths_of(lens: Lens, sites: Sequence[Site]) -> dict[Site, int]:
    """How many values a token has at each site."""
    return {at: values.shape[1] for at, values in run_prompts(lens, [(0,)], sites, 1).items()}


def run_prompts(
    lens: Lens, prompts: Sequence[Sequence[int]], sites: Sequence[Site], batch_tokens: int
) -> dict[Site, Tensor]:
    """Activations ``[tokens of all prompts, width]`` at each site, in the order of the prompts, on the CPU, as the model computes them.

    Prompts of similar length run together, ``batch_tokens`` tokens or one prompt at a time.
    """
    ends = torch.tensor([len(ids) for ids in prompts]).cumsum(0).tolist()
    found: dict[Site, Tensor] = {}
    with _up_to(lens, sites):
        for batch in _alike(prompts, batch_tokens):
            run = lens.run(_tokens([prompts[i] for i in batch]), read=sites, logits="none", batch_size=len(batch))
            for at in sites:
                values = run[at].flatten(2).cpu() if run[at].ndim > 2 else run[at][..., None].cpu()
                rows = found.setdefault(at, values.new_empty(ends[-1], values.shape[2]))
                for row, prompt in enumerate(batch):
                    length = len(prompts[prompt])
                    rows[ends[prompt] - length : ends[prompt]] = values[row, :length]
    return found


def _alike(prompts: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts in batches of similar length; padding counts as tokens."""
    batch: list[int] = []
    for prompt in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if batch and (len(batch) + 1) * len(prompts[prompt]) > batch_tokens:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _tokens(prompts: Sequence[Sequence[int]]) -> Tokens:
    """Padded ids alone: nobody reads the pieces of these."""
    lengths = tuple(map(len, prompts))
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : lengths[row]] = torch.tensor(prompt)
    return Tokens(ids, lengths, ((),) * len(prompts))


@contextmanager
def _up_to(lens: Lens, sites: Sequence[Site]) -> Generator[None]:
    """Layers above the last site pass on what they get. They stay in place: transformers reads each layer's attention type by its place."""
    layers = [-1 if at.kind == "embed" else len(lens.layout.blocks) if at.layer is None else at.layer for at in sites]
    above = lens.layout.blocks[max(layers) + 1 :]
    with intercepted(forwards=[(block.block, _passed_on) for block in above]):
        yield


def _passed_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states
