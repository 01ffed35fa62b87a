"""Prompts of the emotion study: an instruction, a scenario with its event, and the first words of the reply.

The instruction names the emotion in one of two wordings: directions are fitted on the first and tested on the second, so that what is
found is not the word itself. The reply begins with "I feel": so an emotion shows in the next token, all that small models can be judged by.
"""

from collections.abc import Sequence
from typing import Literal

from mechlab.lens.lens import Lens
from mechlab.lens.tokens import Tokens, tokenize
from mechlab.models.model import Model
from steering.emotion.scenarios import Item
from steering.examples import Examples

EMOTIONS: tuple[str, ...] = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
NEXT: dict[str, str] = dict(zip(EMOTIONS, (*EMOTIONS[1:], EMOTIONS[0]), strict=True))
"""Another emotion for each, as a control."""
Wording = Literal["noun", "adjective"]
_ADJECTIVES = {
    "anger": "angry",
    "sadness": "sad",
    "happiness": "happy",
    "fear": "afraid",
    "surprise": "surprised",
    "disgust": "disgusted",
}
_NEUTRAL = "Reply in a few words."
_BEGINNING = "I feel"


def instruction(emotion: str | None, wording: Wording) -> str:
    """What the system message says; None asks for no emotion."""
    if emotion is None:
        return _NEUTRAL
    return f"Reply with {emotion}." if wording == "noun" else f"You are {_ADJECTIVES[emotion]}. Let it show."


def text(model: Model, item: Item, emotion: str | None, wording: Wording = "noun") -> str:
    """The prompt: in the model's chat template where it has one, as plain lines elsewhere."""
    asked = instruction(emotion, wording)
    if not getattr(model.tokenizer, "chat_template", None):
        return f"{asked}\n{item.text}\n{_BEGINNING}"
    messages = [{"role": "system", "content": asked}, {"role": "user", "content": item.text}]
    return str(model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)) + _BEGINNING


def neutral(lens: Lens, items: Sequence[Item]) -> Tokens:
    """The items without an emotion asked for."""
    return _tokens(lens, [text(lens.model, item, None) for item in items])


def examples(lens: Lens, items: Sequence[Item], wording: Wording) -> Examples:
    """Every item in all six emotions; a group is an item. Rows: the first item in six emotions, the second, and so on."""
    asked = [(item, emotion) for item in items for emotion in EMOTIONS]
    prompts = _tokens(lens, [text(lens.model, item, emotion, wording) for item, emotion in asked])
    return Examples(
        f"emotion ({wording})",
        prompts,
        tuple(emotion for _, emotion in asked),
        EMOTIONS[0],
        tuple(item.group for item, _ in asked),
    )


def _tokens(lens: Lens, texts: Sequence[str]) -> Tokens:
    templated = bool(getattr(lens.model.tokenizer, "chat_template", None))  # it writes its own special tokens
    return tokenize(lens.model, texts, prepend_bos=False if templated else lens.prepend_bos)
