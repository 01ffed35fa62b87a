"""Tokens: what the model really sees. Text, chat messages or ids become right-padded ids with lengths, pieces and labelled positions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mechlab.errors import PromptError
from mechlab.models.model import Model

Prompts: TypeAlias = "str | Sequence[str] | Sequence[Sequence[int]] | Tokens"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Prompts as the model sees them.

    Attributes:
        ids: ``[batch, pos]`` int64, padded on the right.
        lengths: number of real tokens of each prompt.
        pieces: each prompt's tokens as text.
        labels: position label -> its index in each prompt.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    pieces: tuple[tuple[str, ...], ...]
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Number of positions, padding included."""
        return int(self.ids.shape[1])

    @property
    def mask(self) -> Tensor:
        """``[batch, pos]`` bool: True at real tokens."""
        return torch.arange(self.width) < torch.tensor(self.lengths)[:, None]

    @property
    def equal_lengths(self) -> bool:
        return len(set(self.lengths)) <= 1

    def positions(self, pos: int | str) -> tuple[int, ...]:
        """The index of ``pos`` in each prompt. Raises PromptError for an unknown label or an index out of range."""
        if isinstance(pos, str):
            if pos not in self.labels:
                known = ", ".join(self.labels) or "none"
                raise PromptError(
                    f"Position label {pos!r} is unknown: these prompts have {known}; use one of them or a number."
                )
            return tuple(self.labels[pos])
        found = tuple(pos if pos >= 0 else length + pos for length in self.lengths)
        for index, length in zip(found, self.lengths, strict=True):
            if not 0 <= index < length:
                raise PromptError(
                    f"Position {pos} is outside a prompt of {length} tokens: use {-length} to {length - 1}."
                )
        return found

    def select(self, rows: Sequence[int]) -> Tokens:
        """The given prompts, in the given order, padded no further than they need."""
        lengths = tuple(self.lengths[r] for r in rows)
        return Tokens(
            self.ids[list(rows), : max(lengths)],
            lengths,
            tuple(self.pieces[r] for r in rows),
            {label: tuple(at[r] for r in rows) for label, at in self.labels.items()},
        )

    def labelled(self, **labels: Sequence[int]) -> Tokens:
        """The same prompts with more labelled positions (one index per prompt each)."""
        for label, at in labels.items():
            if len(at) != len(self):
                raise PromptError(
                    f"Label {label!r} has {len(at)} positions for {len(self)} prompts: give one per prompt."
                )
            for index, length in zip(at, self.lengths, strict=True):
                if not 0 <= index < length:
                    raise PromptError(
                        f"Label {label!r} points at token {index} of a prompt of {length} tokens: use 0 to {length - 1}."
                    )
        return Tokens(self.ids, self.lengths, self.pieces, {**self.labels, **{k: tuple(v) for k, v in labels.items()}})

    def show(self) -> str:
        """One line per prompt, each token in brackets with its index and labels: exactly what the model sees."""
        lines: list[str] = []
        for row, pieces in enumerate(self.pieces):
            names = {at[row]: label for label, at in self.labels.items()}
            lines.append(
                " ".join(f"{i}{':' + names[i] if i in names else ''}[{piece}]" for i, piece in enumerate(pieces))
            )
        return "\n".join(lines)

    @property
    def sha256(self) -> str:
        """Hash of ids and lengths: the prompts' identity in a manifest."""
        digest = hashlib.sha256(repr(self.lengths).encode())
        for row, length in enumerate(self.lengths):
            digest.update(self.ids[row, :length].numpy().tobytes())
        return digest.hexdigest()


def tokenize(model: Model, prompts: Prompts, *, prepend_bos: bool | None = None) -> Tokens:
    """Turns prompts into Tokens.

    Args:
        prompts: one text, several texts, several lists of token ids (taken as they are), or Tokens (returned as they are).
        prepend_bos: True puts the BOS token first (never twice), False leaves special tokens out, None does what the tokenizer does.

    Raises:
        PromptError: no prompt, an empty prompt, one longer than the model's context, or a BOS that this tokenizer lacks.
    """
    if isinstance(prompts, Tokens):
        _check_lengths(model, prompts.lengths)
        return prompts
    many: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not many:
        raise PromptError("No prompt was given: pass at least one text.")
    if isinstance(many[0], int):
        raise PromptError("A prompt of token ids is a list of its own: pass [[1, 2, 3]] for one prompt.")
    ids = [_ids(model, prompt, prepend_bos) for prompt in many]
    lengths = tuple(len(row) for row in ids)
    _check_lengths(model, lengths)
    padded = torch.zeros(len(ids), max(lengths), dtype=torch.long)  # the padding id is never attended to
    for row, prompt_ids in enumerate(ids):
        padded[row, : len(prompt_ids)] = torch.tensor(prompt_ids)
    texts = {i: str(model.tokenizer.decode([i])) for i in {i for row in ids for i in row}}
    pieces = tuple(tuple(texts[i] for i in row) for row in ids)
    return Tokens(padded, lengths, pieces)


def chat(model: Model, messages: Sequence[Mapping[str, str]]) -> Tokens:
    """Chat messages (``role``, ``content``) through the model's own template, ready for its answer.

    Raises:
        PromptError: the tokenizer has no chat template.
    """
    if not getattr(model.tokenizer, "chat_template", None):
        raise PromptError(f"The tokenizer of {model.name} has no chat template: pass plain text instead of messages.")
    text = model.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    return tokenize(model, str(text), prepend_bos=False)  # the template writes its own special tokens


def single_token(model: Model, text: str) -> int:
    """The one token id of ``text``. Raises PromptError when the tokenizer makes several of it."""
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    if len(ids) != 1:
        pieces = [model.tokenizer.decode([i]) for i in ids]
        raise PromptError(
            f"Answer {text!r} is {len(ids)} tokens here ({pieces}): use an answer that is a single token."
        )
    return ids[0]


def _ids(model: Model, prompt: Any, prepend_bos: bool | None) -> list[int]:
    if not isinstance(prompt, str):
        ids = [int(i) for i in prompt]
        bad = [i for i in ids if not 0 <= i < model.vocab_size]
        if bad:
            raise PromptError(f"Token id {bad[0]} is outside the vocabulary: use 0 to {model.vocab_size - 1}.")
        return ids
    ids: list[int] = model.tokenizer(prompt, add_special_tokens=prepend_bos is not False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    bos: Any = model.tokenizer.bos_token_id
    if not prompt:
        raise PromptError("The prompt is empty: write at least one token of text.")
    if prepend_bos:
        if bos is None:
            raise PromptError(f"The tokenizer of {model.name} has no BOS token: leave prepend_bos unset.")
        if ids[:1] != [bos]:
            ids = [int(bos), *ids]
    return ids


def _check_lengths(model: Model, lengths: Sequence[int]) -> None:
    for length in lengths:
        if length == 0:
            raise PromptError("The prompt is empty: write at least one token of text.")
        if length > model.context_length:
            raise PromptError(
                f"The prompt has {length} tokens and {model.name} reads at most {model.context_length}: shorten it."
            )
