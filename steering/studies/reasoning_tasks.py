"""Questions of three kinds of reasoning, made by rule: inductive (indirect object), deductive (bAbI task 15), arithmetic (sums).

Each question ends where its answer begins; answer and wrong answers are single tokens of the tokenizer at hand.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.errors import PromptError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.lens.tokens import Tokens, single_token

_NAMES = [
    "Mary", "John", "Anna", "Paul", "Sarah", "David", "Laura", "Mark",
    "Emma", "James", "Alice", "Peter", "Maria", "Tom", "Lucy", "Ben",
]  # fmt: skip
_PLACES = ["store", "park", "school", "office", "station", "library"]
_THINGS = ["drink", "book", "ring", "key", "letter", "ball"]
_KINDS = [
    ("cat", "cats"),
    ("dog", "dogs"),
    ("wolf", "wolves"),
    ("mouse", "mice"),
    ("sheep", "sheep"),
    ("bear", "bears"),
]
_TRIES = 200
TASKS = ("inductive", "deductive", "arithmetic")


@dataclass(frozen=True)
class Question:
    """``candidates`` as text, the right one first."""

    text: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions as the model sees them.

    Attributes:
        prompts: ``n`` of them. texts, wrong_texts: the same with the right and with a wrong answer.
        answers: ``[n]`` token ids. foils: ``[n, m]``.
    """

    task: str
    prompts: Tokens
    texts: tuple[str, ...]
    wrong_texts: tuple[str, ...]
    answers: Tensor
    foils: Tensor

    def __len__(self) -> int:
        return len(self.prompts)


def inductive(draw: random.Random, usable: Callable[[str], bool]) -> Question:
    """Of three people the two who are named twice give, the third gets: with two people, small models make no mistake to mend."""
    people = draw.sample([name for name in _NAMES if usable(f" {name}")], 3)
    taker = draw.choice(people)
    givers = [name for name in people if name != taker]
    draw.shuffle(givers)
    where, what = draw.choice(_PLACES), draw.choice(_THINGS)
    text = f"When {people[0]}, {people[1]} and {people[2]} went to the {where}, {givers[0]} and {givers[1]} gave a {what} to"
    return Question(text, (f" {taker}", f" {givers[0]}", f" {givers[1]}"))


def deductive(draw: random.Random, usable: Callable[[str], bool]) -> Question:
    """Rules about kinds, one animal of a kind: what is it afraid of?"""
    kinds = [kind for kind in _KINDS if usable(f" {kind[1]}")]
    (one, ones), (_, others), (_, feared), (_, feared_by_others) = draw.sample(kinds, 4)
    rules = [f"{ones.capitalize()} are afraid of {feared}.", f"{others.capitalize()} are afraid of {feared_by_others}."]
    draw.shuffle(rules)
    name = draw.choice(_NAMES)
    text = f"{' '.join(rules)} {name} is a {one}. {name} is afraid of"
    return Question(text, (f" {feared}", f" {feared_by_others}"))


def arithmetic(draw: random.Random, usable: Callable[[str], bool]) -> Question:
    """Two sums are shown, the third is asked; the wrong answers are the other digits."""

    def numbers() -> tuple[int, int]:
        total = draw.randint(3, 9)
        first = draw.randint(1, total - 1)
        return first, total - first

    shown = [numbers() for _ in range(3)]
    lines = [f"{a}+{b}={a + b}" for a, b in shown[:2]]
    a, b = shown[2]
    wrong = [str(n) for n in range(2, 10) if n != a + b and usable(str(n))]
    return Question("\n".join([*lines, f"{a}+{b}="]), (str(a + b), *wrong))


_MAKERS = {"inductive": inductive, "deductive": deductive, "arithmetic": arithmetic}


def questions(lens: Lens, task: str, count: int, *, seed: int = 0, apart_from: Sequence[str] = ()) -> Questions:
    """``count`` different questions, none of them among ``apart_from`` (texts with answers).

    Raises:
        UnknownName: no such task. PromptError: a tokenizer that makes several tokens of the answers, or too few different questions.
    """
    if task not in _MAKERS:
        raise UnknownName("reasoning task", task, TASKS)
    found: dict[str, Question] = {}
    for one in _drawn(lens, task, seed):
        if one.text + one.candidates[0] not in apart_from:
            found.setdefault(one.text, one)
        if len(found) == count:
            return _asked(lens, task, list(found.values()))
    raise PromptError(f"Task {task!r} gave {len(found)} different questions of the {count} asked for: ask for fewer.")


def _drawn(lens: Lens, task: str, seed: int) -> Iterator[Question]:
    draw, known = random.Random(f"{task} {seed}"), dict[str, bool]()

    def usable(text: str) -> bool:
        if text not in known:
            known[text] = _is_single(lens, text)
        return known[text]

    for _ in range(_TRIES * 20):
        try:
            yield _MAKERS[task](draw, usable)
        except (ValueError, IndexError) as error:
            raise PromptError(
                f"Task {task!r} needs answers of one token each, and the tokenizer of {lens.model.name} makes several of them: "
                "choose other tasks."
            ) from error


def _is_single(lens: Lens, text: str) -> bool:
    try:
        return single_token(lens.model, text) != lens.model.tokenizer.unk_token_id
    except PromptError:
        return False


def _asked(lens: Lens, task: str, found: list[Question]) -> Questions:
    ids = [[single_token(lens.model, text) for text in one.candidates] for one in found]
    return Questions(
        task,
        lens.tokens([one.text for one in found]),
        tuple(one.text + one.candidates[0] for one in found),
        tuple(one.text + one.candidates[1] for one in found),
        torch.tensor([row[0] for row in ids]),
        torch.tensor([row[1:] for row in ids]),
    )


def random_ids(lens: Lens, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random ordinary tokens, one row per length: the paper's negative examples are random strings."""
    generator = torch.Generator().manual_seed(seed)
    special = set(lens.model.tokenizer.all_special_ids)
    ordinary = torch.tensor(
        [i for i in range(min(lens.model.vocab_size, len(lens.model.tokenizer))) if i not in special]
    )
    return [ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist() for length in lengths]


def ids_of(tokens: Tokens) -> list[list[int]]:
    """Each prompt's token ids, without padding."""
    return [row[:length].tolist() for row, length in zip(tokens.ids, tokens.lengths, strict=True)]
