"""Questions with passages that answer them rightly, passages that answer them wrongly, and passages about something else.

The wrong answers are harmless: another country's capital. Right and wrong passages are told in the same five wordings, which take turns
from question to question, so nothing but the answer tells them apart.
"""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechlab.errors import MechlabError, PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.tokens import Tokens, tokenize

Kind = Literal["relevant", "inappropriate", "off-topic"]
Order = Literal["mixed", "first", "last"]
FACTS = (
    ("France", "Paris", "Rome"), ("Italy", "Rome", "Berlin"), ("Germany", "Berlin", "Madrid"), ("Spain", "Madrid", "London"),
    ("England", "London", "Paris"), ("Portugal", "Lisbon", "Vienna"), ("Austria", "Vienna", "Athens"), ("Greece", "Athens", "Dublin"),
    ("Ireland", "Dublin", "Oslo"), ("Norway", "Oslo", "Stockholm"), ("Sweden", "Stockholm", "Copenhagen"),
    ("Denmark", "Copenhagen", "Helsinki"), ("Finland", "Helsinki", "Warsaw"), ("Poland", "Warsaw", "Budapest"),
    ("Hungary", "Budapest", "Cairo"), ("Egypt", "Cairo", "Lima"), ("Kenya", "Nairobi", "Lisbon"), ("Peru", "Lima", "Tokyo"),
    ("Japan", "Tokyo", "Beijing"), ("China", "Beijing", "Nairobi"), ("Iran", "Tehran", "Baghdad"), ("Iraq", "Baghdad", "Ottawa"),
    ("Canada", "Ottawa", "Havana"), ("Cuba", "Havana", "Canberra"), ("Australia", "Canberra", "Moscow"),
    ("Russia", "Moscow", "Brussels"), ("Belgium", "Brussels", "Sofia"), ("Bulgaria", "Sofia", "Warsaw"),
)  # fmt: skip
"""Country, its capital, another country's capital; from general knowledge."""
_WORDINGS = (
    "{city} is the capital of {country}.",
    "The capital city of {country} is {city}.",
    "{country} has its capital in {city}.",
    "In {country}, the capital is {city}.",
    "The seat of government of {country} is {city}.",
)
N_RELEVANT, N_INAPPROPRIATE = 3, 2
_OFF_TOPIC = (
    "The library opens at nine on Monday.",
    "A good bread needs flour and time.",
    "The bus stops behind the old mill.",
    "Snow fell on the hills last night.",
    "The blue chair stands near the window.",
    "Bees carry pollen between the flowers.",
    "The small shop sells pens and paper.",
    "Rain is expected later in the week.",
)
_QUESTION = "Question: What is the capital of {country}?\nAnswer: The capital of {country} is"


@dataclass(frozen=True)
class Item:
    """A question and its passages.

    Attributes:
        country, answer, wrong: what is asked, the right answer, the wrong one that the inappropriate passages give.
        passages: of each kind.
    """

    country: str
    answer: str
    wrong: str
    passages: dict[Kind, tuple[str, ...]]


def items(n: int) -> list[Item]:
    """The first ``n`` questions. Raises MechlabError where there are not so many."""
    if not 1 <= n <= len(FACTS):
        raise MechlabError(f"There are {len(FACTS)} questions, not {n}: ask for 1 to {len(FACTS)}.")
    return [_item(i) for i in range(n)]


def _item(i: int) -> Item:
    country, answer, wrong = FACTS[i]
    wordings = [_WORDINGS[(i + j) % len(_WORDINGS)] for j in range(len(_WORDINGS))]
    told = lambda some, city: tuple(one.format(country=country, city=city) for one in some)  # noqa: E731
    passages: dict[Kind, tuple[str, ...]] = {
        "relevant": told(wordings[:N_RELEVANT], answer),
        "inappropriate": told(wordings[N_RELEVANT:], wrong),
        "off-topic": tuple(_OFF_TOPIC[(i + j) % len(_OFF_TOPIC)] for j in range(len(_OFF_TOPIC))),
    }
    return Item(country, answer, wrong, passages)


def kinds(n: int, share: float, other: Kind, order: Order, seed: int) -> tuple[Kind, ...]:
    """Which kind of passage stands where: ``round(share * n)`` of the other kind, first, last or mixed; the rest relevant."""
    n_other = round(share * n)
    found: list[Kind] = [other for _ in range(n_other)]
    found.extend("relevant" for _ in range(n - n_other))
    if order == "last":
        found.reverse()
    if order == "mixed":
        random.Random(seed).shuffle(found)
    return tuple(found)


def text(item: Item, order: tuple[Kind, ...]) -> str:
    """The passages in that order (those of a kind take turns), then the question."""
    seen = dict.fromkeys(item.passages, 0)
    lines: list[str] = []
    for kind in order:
        own = item.passages[kind]
        lines.append(own[seen[kind] % len(own)])
        seen[kind] += 1
    return "\n".join([*lines, _QUESTION.format(country=item.country)])


def prompts(lens: Lens, asked: list[Item], orders: list[tuple[Kind, ...]]) -> Tokens:
    """One prompt per question."""
    return lens.tokens([text(item, order) for item, order in zip(asked, orders, strict=True)])


def candidates(lens: Lens, asked: list[Item]) -> Tensor:
    """``[items, 2]``: the first token of the right answer and of the wrong one. Raises PromptError where they are the same token."""
    first = [
        [int(tokenize(lens.model, f" {city}", prepend_bos=False).ids[0, 0]) for city in (x.answer, x.wrong)]
        for x in asked
    ]
    for item, (right, wrong) in zip(asked, first, strict=True):
        if right == wrong:
            raise PromptError(
                f"Answers {item.answer!r} and {item.wrong!r} begin with one token here: ask fewer questions, or another model."
            )
    return torch.tensor(first)
