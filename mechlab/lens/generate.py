"""Generation with edits: prompts of one length go together, each step reuses the keys and values of the steps before."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache

from mechlab.errors import EditError, PromptError
from mechlab.lens.apply import Source, Window, check_touched
from mechlab.lens.edit import Edit
from mechlab.lens.hooks import Placed, count_touched, installed, make_taps
from mechlab.lens.layout import Layout
from mechlab.lens.splice import Spliceable
from mechlab.lens.tokens import Tokens
from mechlab.models.model import Model

Given: TypeAlias = tuple[Sequence[Edit], Mapping[str, Source], Mapping[str, Spliceable]]
"""Edits, and what they name: sources and dictionaries."""
OnToken: TypeAlias = Callable[[int, int], None]
"""Told each new token as soon as it is there: index of the prompt, token id."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. ``temperature`` divides the logits; ``top_k`` and ``top_p`` (nucleus) restrict the choice; same seed, same text."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise PromptError(
                f"Sampling temperature {self.temperature} must be above 0: leave sampling out for greedy text."
            )
        if self.top_k is not None and self.top_k < 1:
            raise PromptError(f"Sampling top_k {self.top_k} must be at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise PromptError(f"Sampling top_p {self.top_p} must lie above 0 and at most 1.")


@dataclass(frozen=True)
class Generation:
    """One continuation: its token ids (an end-of-text token included) and text."""

    prompt: str
    ids: tuple[int, ...]
    text: str


def generate(
    model: Model,
    layout: Layout,
    tokens: Tokens,
    edits: Sequence[Edit],
    sources: Mapping[str, Source],
    max_new_tokens: int,
    sampling: Sampling | None,
    stop_at_eos: bool,
    dictionaries: Mapping[str, Spliceable],
    on_token: OnToken | None = None,
) -> list[Generation]:
    """One Generation per prompt, in order. See ``Lens.generate``."""
    _check(model, tokens, edits, max_new_tokens)
    done: dict[int, list[int]] = {}
    touched: Counter[Edit] = Counter()
    for length in sorted(set(tokens.lengths)):
        rows = [row for row, n in enumerate(tokens.lengths) if n == length]
        given = (edits, sources, dictionaries)
        new = _group(model, layout, tokens, rows, given, max_new_tokens, sampling, stop_at_eos, touched, on_token)
        done.update(zip(rows, new, strict=True))
    check_touched(edits, touched)
    return [
        Generation(
            str(model.tokenizer.decode(tokens.ids[row, : tokens.lengths[row]])),
            tuple(done[row]),
            str(model.tokenizer.decode(done[row], skip_special_tokens=True)),
        )
        for row in range(len(tokens))
    ]


def _check(model: Model, tokens: Tokens, edits: Sequence[Edit], max_new_tokens: int) -> None:
    longest = max(tokens.lengths) + max_new_tokens
    if max_new_tokens < 1 or longest > model.context_length:
        raise PromptError(
            f"{max_new_tokens} new tokens after a prompt of {max(tokens.lengths)} do not fit: {model.name} reads {model.context_length} "
            "tokens in all, and at least one must be new."
        )
    for edit in edits:
        by_position = edit.source is not None and not (edit.verb == "mean" and edit.over == "tokens")
        if by_position and edit.site.pos is None and edit.phase != "prompt":
            raise EditError(
                f"Edit {edit} takes values position by position, and new tokens have none: give it phase='prompt'."
            )


def _group(
    model: Model,
    layout: Layout,
    tokens: Tokens,
    rows: list[int],
    given: Given,
    max_new_tokens: int,
    sampling: Sampling | None,
    stop_at_eos: bool,
    touched: Counter[Edit],
    on_token: OnToken | None,
) -> list[list[int]]:
    edits, sources, dictionaries = given
    batch = tokens.select(rows)
    # Each prompt draws from its own generator, so its text does not depend on what it is batched with.
    generators = [torch.Generator().manual_seed((sampling.seed if sampling else 0) * 1_000_003 + row) for row in rows]
    cache = DynamicCache()  # made without a config: it never truncates, so position p is always index p
    ids, new = batch.ids, [[] for _ in rows]
    stops = _eos_ids(model) if stop_at_eos else set[int]()
    for step in range(max_new_tokens):
        window = Window(batch, tuple(rows), batch.width + step, sources, len(tokens))
        logits = _step(model, layout, ids, window, edits, dictionaries, cache, touched)
        chosen = [_choose(row, sampling, generator) for row, generator in zip(logits, generators, strict=True)]
        for row, out, token in zip(rows, new, chosen, strict=True):
            if not (out and out[-1] in stops):
                out.append(token)
                if on_token:
                    on_token(row, token)
        if all(out[-1] in stops for out in new):
            break
        ids = torch.tensor(chosen)[:, None]
    return new


@torch.no_grad()
def _step(
    model: Model,
    layout: Layout,
    ids: Tensor,
    window: Window,
    edits: Sequence[Edit],
    dictionaries: Mapping[str, Spliceable],
    cache: DynamicCache,
    touched: Counter[Edit],
) -> Tensor:
    taps = make_taps(window, map(Placed, edits), (), dictionaries)
    last = None if any(tap.kind == "logits" for tap in taps) else torch.full((len(ids),), ids.shape[1] - 1)
    positions = torch.arange(window.stop - ids.shape[1], window.stop, device=model.device)[None].expand(len(ids), -1)
    with installed(layout, model.hf, taps, last):
        output = model.hf(input_ids=ids.to(model.device), past_key_values=cache, position_ids=positions, use_cache=True)
    touched.update(count_touched(taps))
    return output.logits[:, -1].float().cpu()


def _choose(logits: Tensor, sampling: Sampling | None, generator: torch.Generator) -> int:
    """``[vocab]`` logits -> one token id."""
    if sampling is None:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.top_p is not None:
        ordered, order = logits.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # keeps the token that crosses the line
        logits = logits.index_fill(0, order[beyond], float("-inf"))
    return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


def _eos_ids(model: Model) -> set[int]:
    configured = getattr(model.hf.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in (*ids, model.tokenizer.eos_token_id) if isinstance(i, int)}
