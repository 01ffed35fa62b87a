"""Inputs on which attention sinks are measured: natural text, random tokens, one token repeated. All prompts have one length.

Gu et al. 2025 (arXiv 2410.10781) measure the same model on all three: on a repeated token nothing but its position tells the first one
from the others, so a model without absolute positions cannot make it a sink.
"""

import random
from collections.abc import Sequence

import torch

from mechlab.errors import PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.tokens import Tokens
from mechlab.lens.vocabulary import ordinary_tokens, special_prefix
from mechlab.texts import passages

INPUTS = ("natural", "random", "repeated")
MIN_LENGTH = 8
_CHARACTERS_PER_TOKEN = 12


def characters_for(length: int) -> int:
    """Characters to ask ``passages`` for: it gives at least half as many, which hold ``length`` tokens of any common tokenizer."""
    return _CHARACTERS_PER_TOKEN * length


def natural(lens: Lens, texts: Sequence[str], length: int) -> Tokens:
    """The first ``length`` tokens of each text, as the lens tokenises it.

    Raises:
        PromptError: a text with fewer tokens, or a window too short to measure anything.
    """
    _check_length(lens, length)
    tokens = lens.tokens(texts)
    short = [n for n in tokens.lengths if n < length]
    if short:
        raise PromptError(
            f"{len(short)} of {len(texts)} texts are shorter than the window of {length} tokens (the shortest has {min(short)}): "
            "give longer texts, or set a smaller length."
        )
    return Tokens(tokens.ids[:, :length], (length,) * len(tokens), tuple(row[:length] for row in tokens.pieces))


def two_parts(
    lens: Lens, source: str, n_discovery: int, n_evaluation: int, length: int, *, seed: int = 0
) -> tuple[Tokens, Tokens]:
    """Natural text to find things on, and other text, held out, to test them on; see ``passages`` and ``natural``."""
    given = {"seed": seed, "characters": characters_for(length)}
    discovery = passages(source, count=n_discovery, part="fit", **given)
    evaluation = passages(source, count=n_evaluation, part="held-out", **given)
    return natural(lens, discovery, length), natural(lens, evaluation, length)


def random_tokens(lens: Lens, n: int, length: int, *, seed: int = 0) -> Tokens:
    """``n`` prompts of tokens drawn evenly, after the special tokens that the lens puts before any text."""
    _check_length(lens, length)
    generator, ids, before = random.Random(f"sinks random {seed}"), ordinary_tokens(lens), special_prefix(lens)
    return lens.tokens([[*before, *generator.choices(ids, k=length - len(before))] for _ in range(n)])


def repeated_token(lens: Lens, n: int, length: int, *, seed: int = 0) -> Tokens:
    """``n`` prompts of one token each, said ``length`` times; no special token stands before it, which would differ from the rest."""
    _check_length(lens, length)
    generator, ids = random.Random(f"sinks repeated {seed}"), ordinary_tokens(lens)
    return lens.tokens([[generator.choice(ids)] * length for _ in range(n)])


def knows_positions(lens: Lens) -> bool:
    """Whether the residual stream tells positions apart before any attention: learned or fixed absolute positions, not rotary ones."""
    stream = lens.run([[ordinary_tokens(lens)[0]] * 2], read=["L0.resid_pre"], logits="none")["L0.resid_pre"][0]
    return not torch.equal(stream[0], stream[1])


def _check_length(lens: Lens, length: int) -> None:
    if not MIN_LENGTH <= length <= lens.model.context_length:
        raise PromptError(
            f"A window of {length} tokens cannot be used: choose {MIN_LENGTH} to {lens.model.context_length}, "
            f"the context of {lens.model.name}."
        )
