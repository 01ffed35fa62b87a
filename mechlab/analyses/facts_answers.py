"""Does the model complete a fact? And how much it loses on continuations: both under edits.

Right means as in Liu et al. (arXiv 2502.17355): greedy decoding of two tokens gives the first two tokens of the object (or its only one).
Greedy decoding picks them if each is the argmax after the true ones before it, so one forward pass decides.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.analyses.facts import Fact, Facts, Split, prompt
from mechlab.errors import ModelError, PromptError
from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress, silent

__all__ = ["MIN_RIGHT", "Answers", "Questions", "answered", "known_facts", "questions"]

Floats = NDArray[np.float64]
MIN_RIGHT = 5
"""Facts of a relation that a model must answer right before units are sought on them."""
ASK = "ASK"
"""Label of the last token of the question."""
_OPENS = (" ", "\n", '"', "'", "“", "(", "[", "¿")


@dataclass(frozen=True, eq=False)
class Questions:
    """Prompts with the tokens that must follow.

    Attributes:
        bare: the prompts alone.
        asked: the prompts, each with all but the last of its answer's tokens; label ``ASK`` marks the prompt's own last token.
        answers: one or two token ids each.
    """

    bare: Tokens
    asked: Tokens
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.answers)

    def select(self, rows: Sequence[int]) -> "Questions":
        """The questions at those rows."""
        return Questions(self.bare.select(rows), self.asked.select(rows), tuple(self.answers[row] for row in rows))


@dataclass(frozen=True, eq=False)
class Answers:
    """Per question ``[n]``: ``right`` (0 or 1), and the log-probability of the answer's first token in nats."""

    right: Floats
    log_probability: Floats


def questions(lens: Lens, template: Callable[[Fact], str], facts: Sequence[Fact]) -> Questions:
    """Facts as questions, worded by ``template``. Raises PromptError for an object without tokens."""
    texts = [prompt(template(fact), fact) for fact in facts]
    bare = lens.tokens(texts)
    answers = tuple(_answer(lens, text, fact) for text, fact in zip(texts, facts, strict=True))
    ids = [bare.ids[row, : bare.lengths[row]].tolist() for row in range(len(bare))]
    asked = lens.tokens([[*row, *answer[:-1]] for row, answer in zip(ids, answers, strict=True)])
    return Questions(bare, asked.labelled(**{ASK: [length - 1 for length in bare.lengths]}), answers)


def _answer(lens: Lens, text: str, fact: Fact) -> tuple[int, ...]:
    """The first two tokens of the object as it would follow the text."""
    follows = fact.object if text.endswith(_OPENS) else f" {fact.object}"
    ids: list[int] = lens.model.tokenizer(follows, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    if not ids:
        raise PromptError(f"Object {fact.object!r} has no tokens here: write it in letters the tokenizer knows.")
    return tuple(ids[:2])


def answered(lens: Lens, asked: Questions, edits: Iterable[Edit] = (), *, batch_size: int = 64) -> Answers:
    """Runs the questions with edits at all tokens."""
    check_unembedding(lens)
    at_question, edits = Site("final_norm", pos=ASK), tuple(edits)
    right, log_probability = np.empty(len(asked)), np.empty(len(asked))
    for rows in _by_length(asked.asked, batch_size):
        some = asked.select(rows)
        run = lens.run(some.asked, edits, read=[at_question], logits="last", batch_size=len(rows))
        assert run.last_logits is not None
        first, last = unembedded(lens, run[at_question]), run.last_logits.float()
        start = torch.tensor([answer[0] for answer in some.answers], device=first.device)
        end = torch.tensor([answer[-1] for answer in some.answers], device=first.device)
        both = (first.argmax(-1) == start) & (last.argmax(-1) == end)  # of a one-token answer, twice the same question
        right[rows] = both.double().cpu().numpy()
        log_probability[rows] = first.log_softmax(-1).gather(1, start[:, None])[:, 0].double().cpu().numpy()
    return Answers(right, log_probability)


def continuation_losses(lens: Lens, texts: Tokens, starts: Sequence[int], edits: Iterable[Edit] = ()) -> Floats:
    """``[n]`` mean loss in nats per token over each prompt's tokens from its ``starts`` on (at least 1) to its end.

    Raises:
        PromptError: a prompt with nothing after its start.
    """
    check_unembedding(lens)
    edits, found = tuple(edits), np.empty(len(texts))
    for length, start in zip(texts.lengths, starts, strict=True):
        if not 1 <= start < length:
            raise PromptError(
                f"A prompt of {length} tokens has none to predict from token {start} on: use a longer text."
            )
    whole = Site("final_norm")
    for rows in _by_length(texts, 16):
        some = texts.select(rows)
        run = lens.run(some, edits, read=[whole], logits="none", batch_size=len(rows))
        for place, row in enumerate(rows):
            span = slice(starts[row] - 1, some.lengths[place] - 1)
            logits = unembedded(lens, run[whole][place, span])
            wanted = some.ids[place, starts[row] : some.lengths[place]].to(logits.device)
            found[row] = float(torch.nn.functional.cross_entropy(logits, wanted))
    return found


def unembedded(lens: Lens, normed: Tensor) -> Tensor:
    """``[..., d_model]`` output of the final norm -> ``[..., vocab]`` logits in float32, soft-capped where the model does.

    So that only the tokens that are asked for are unembedded.
    """
    with torch.no_grad():
        logits = lens.layout.unembed(normed).float()
    cap = getattr(lens.model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def check_unembedding(lens: Lens) -> None:
    """Raises ModelError where the model does more to its logits than ``unembedded`` does (a family that rescales them)."""
    at = Site("final_norm", pos=-1)
    run = lens.run([[lens.model.vocab_size - 1]], read=[at], logits="last")
    assert run.last_logits is not None
    if not torch.allclose(unembedded(lens, run[at]), run.last_logits.float(), rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{lens.model.name} rescales its logits after the unembedding, which this analysis does not know: choose another model."
        )


def _by_length(tokens: Tokens, at_once: int) -> list[list[int]]:
    """Rows in groups of about one length, so that little is padded."""
    order = sorted(range(len(tokens)), key=lambda row: tokens.lengths[row])
    return [order[start : start + at_once] for start in range(0, len(order), at_once)]


def known_facts(
    lens: Lens, facts: Facts, sides: Split, progress: Progress = silent
) -> tuple[dict[str, tuple[Fact, ...]], dict[str, tuple[int, int]], dict[str, str]]:
    """Relation -> detection facts answered right; relation -> (asked, right); relations left out, and why.

    A relation is used if the model answers ``MIN_RIGHT`` of its detection facts right and there are two evaluation facts.
    """
    known: dict[str, tuple[Fact, ...]] = {}
    asked, left_out = dict[str, tuple[int, int]](), dict[str, str]()
    for done, (name, rows) in enumerate(sides.detection.items()):
        progress("", done, len(sides.detection))
        n_judged = len(sides.evaluation[name])
        if len(rows) < MIN_RIGHT or n_judged < 2:
            left_out[name] = f"{len(rows)} facts to find units with and {n_judged} to judge them by are too few"
            continue
        right = answered(lens, questions(lens, lambda fact: facts.templates[fact.relation][0], rows)).right
        asked[name] = (len(rows), int(right.sum()))
        if right.sum() < MIN_RIGHT:
            left_out[name] = f"{int(right.sum())} of {len(rows)} facts answered right, fewer than {MIN_RIGHT}"
        else:
            known[name] = tuple(fact for fact, was_right in zip(rows, right, strict=True) if was_right)
    return known, asked, left_out
