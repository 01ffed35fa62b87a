"""Task: clean / corrupted prompt pairs with answers, foils and labelled positions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechlab.errors import PromptError
from mechlab.lens.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Task:
    """A behaviour to explain.

    Attributes:
        name: of the task and its variant (``ioi``, corruption in brackets).
        clean, corrupted: prompts in pairs of equal token length, with the same position labels.
        answers: ``[n]`` token ids, right after the clean prompt.
        foils: ``[n]`` or ``[n, k]`` token ids to tell the answer from.
        groups: one word per pair (its template, say), for tables and for means within groups.
        dropped: what the generator left out, and why (one sentence each).
    """

    name: str
    clean: Tokens
    corrupted: Tokens
    answers: Tensor
    foils: Tensor
    groups: tuple[str, ...] = ()
    dropped: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not len(self.clean) == len(self.corrupted) == len(self.answers) == len(self.foils):
            raise PromptError(
                f"Task {self.name} has {len(self.clean)} clean and {len(self.corrupted)} corrupted prompts, {len(self.answers)} answers "
                f"and {len(self.foils)} foils: give one of each per pair."
            )
        for i, (a, b) in enumerate(zip(self.clean.lengths, self.corrupted.lengths, strict=True)):
            if a != b:
                raise PromptError(
                    f"Pair {i} of task {self.name} has {a} clean and {b} corrupted tokens "
                    f"({''.join(self.clean.pieces[i])!r} / {''.join(self.corrupted.pieces[i])!r}): use prompts of equal token length."
                )
        foils = self.foils if self.foils.ndim == 2 else self.foils[:, None]
        same = (foils == self.answers[:, None]).any(dim=1).nonzero()
        if len(same):
            raise PromptError(
                f"Pair {int(same[0])} of task {self.name} has the same token as answer and foil: use two different ones."
            )

    def __len__(self) -> int:
        return len(self.clean)

    def select(self, rows: Sequence[int]) -> "Task":
        """The given pairs, in the given order."""
        rows = list(rows)
        groups = tuple(self.groups[r] for r in rows) if self.groups else ()
        return Task(
            self.name,
            self.clean.select(rows),
            self.corrupted.select(rows),
            self.answers[rows],
            self.foils[rows],
            groups,
            self.dropped,
        )

    def targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """``[k]`` the token ids among answers and foils, once each; then answers and foils as places in them.

        For metrics that read no other logits, so that only these tokens are unembedded.
        """
        token_ids = torch.cat([self.answers, self.foils.flatten()]).unique()
        return (
            token_ids,
            torch.searchsorted(token_ids, self.answers.contiguous()),
            torch.searchsorted(token_ids, self.foils.contiguous()),
        )

    def first_difference(self) -> tuple[int, ...]:
        """The first position at which the two prompts of each pair differ (their length if they do not)."""
        differ = self.clean.ids != self.corrupted.ids
        return tuple(
            int(row.nonzero()[0]) if bool(row.any()) else length
            for row, length in zip(differ, self.clean.lengths, strict=True)
        )

    def shuffled_answers(self, seed: int = 0) -> "Task":
        """The same prompts with answers and foils of other pairs: a control in which nothing about the answers can be found."""
        if len(self) < 2:
            raise PromptError(f"Task {self.name} has one pair: shuffling answers needs at least two.")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        shifted = order[(torch.argsort(order) + 1) % len(self)]  # every pair gets another pair's answers
        return Task(
            f"{self.name}, shuffled answers",
            self.clean,
            self.corrupted,
            self.answers[shifted],
            self.foils[shifted],
            self.groups,
        )
