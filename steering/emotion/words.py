"""How likely the next token is a word of an emotion's lexicon: a judge of what small models can show."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mechlab.errors import PromptError
from mechlab.lens.lens import Lens
from steering.emotion.prompts import EMOTIONS
from steering.emotion.scenarios import lexicon


def word_ids(lens: Lens) -> dict[str, Tensor]:
    """Emotion -> token ids of those of its words that are one token after a space.

    Raises:
        PromptError: a tokenizer that knows no word of an emotion.
    """
    found: dict[str, Tensor] = {}
    unknown = lens.model.tokenizer.unk_token_id
    for emotion in EMOTIONS:
        ids: set[int] = set()
        for word in lexicon()[emotion]:
            made: list[int] = lens.model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
            if len(made) == 1 and made[0] != unknown:
                ids.add(made[0])
        if not ids:
            raise PromptError(
                f"The tokenizer of {lens.model.name} splits every word of {emotion}: use a model with a larger vocabulary."
            )
        found[emotion] = torch.tensor(sorted(ids))
    return found


def mass(probabilities: Tensor, ids: Mapping[str, Tensor], emotion: str) -> Tensor:
    """``[n]``: probability of the emotion's words, from ``[n, vocab]``."""
    return probabilities[:, ids[emotion]].sum(-1)


def share_of_words(text: str, emotion: str) -> float:
    """Of a text's words, those of the emotion's lexicon; 0 without words."""
    words = [word.strip(".,!?;:\"'()").lower() for word in text.split()]
    return sum(word in lexicon()[emotion] for word in words) / len(words) if words else 0.0
