"""What the experts study measured, before it is judged, and how replies and quality are measured while experts are switched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mechlab.analyses.experts import Expert, Routed
from mechlab.lens.edit import Edit, RouteState, route
from mechlab.lens.lens import Lens
from mechlab.studies.experts_prompts import Classes, Contrast

Floats: TypeAlias = NDArray[np.float64]
BASE = "nothing switched"


@dataclass(frozen=True, eq=False)
class Replies:
    """Whether each reply shows the behaviour, 0 or 1: to prompts that should (``behaving``) and to those that should not (``plain``)."""

    behaving: Floats
    plain: Floats


@dataclass(frozen=True, eq=False)
class Quality:
    """``nats``: mean loss per token of each neutral text; ``right``: whether each question is answered, 0 or 1."""

    nats: Floats
    right: Floats


@dataclass(frozen=True, eq=False)
class Side:
    """Everything measured on one model with its own choice of experts.

    Attributes:
        routed: the selection prompts, those that should behave first.
        relevance: ``[layer, expert]``.
        ranking: all experts, most relevant first.
        held_out: ``[prompt, layer, expert]``: maps of the evaluation prompts.
        top, forced: those switched off, and those forced on (at most as many in a layer as a token is sent to).
        base, suppressed, activated: replies without and with them switched.
        quality, without: with nothing switched, and without the top experts.
    """

    routed: Routed
    relevance: Floats
    ranking: list[Expert]
    held_out: Floats
    top: list[Expert]
    forced: list[Expert]
    base: Replies
    suppressed: Replies
    activated: Replies
    quality: Quality
    without: Quality

    def difference(self, experts: Sequence[Expert]) -> Floats:
        """``[pair]``: how much more the experts weigh in a prompt that asks for the behaviour than in its pair; mean over the experts."""
        n = len(self.held_out) // 2
        pairs = self.held_out[:n] - self.held_out[n:]
        return np.mean([pairs[:, self.routed.layers.index(layer), expert] for layer, expert in experts], axis=0)


@dataclass(frozen=True, eq=False)
class Draws:
    """Replies and quality for each draw of a control set of experts.

    Attributes:
        experts: the sets.
        behaving, plain: ``[draw, n]``.
        nats: ``[draw, text]``.
    """

    experts: list[list[Expert]]
    behaving: Floats
    plain: Floats
    nats: Floats


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by.

    Attributes:
        neutral: how the neutral text was routed.
        model, twin: the model and the random-weight twin, each with its own choice.
        matched, uniform, shuffled: switched off instead of the top experts: random ones used as often, random ones of the same layers,
            the top of relevance by shuffled labels.
        forced: random experts forced on instead.
        frequent: replies without the most used experts.
        doses: n -> (experts switched off, replies without them, replies without each matched draw ``[draw, prompt]``).
        doses_on: n -> replies with the n most relevant forced on.
        weight: with which experts are forced on.
    """

    settings: dict[str, object]
    contrast: Contrast
    neutral: Routed
    model: Side
    twin: Side
    matched: Draws
    uniform: Draws
    shuffled: Draws
    forced: Draws
    frequent: Replies
    doses: dict[int, tuple[list[Expert], Replies, Floats]]
    doses_on: dict[int, Replies]
    weight: float


def switched(
    experts: Sequence[Expert], state: RouteState, weight: float | None = None, *, rescales: bool = True
) -> list[Edit]:
    """One edit per expert; with ``rescales=False`` the experts beside a forced one keep their weights."""
    keeps = state == "on" and not rescales
    return [route(f"L{layer}E{expert}", state, weight=weight, renormalise=not keeps) for layer, expert in experts]


def replies(lens: Lens, contrast: Contrast, classes: Classes, edits: Sequence[Edit] = ()) -> Replies:
    """Generates a reply to each prompt and looks for the behaviour in it."""
    made = lens.generate(classes.prompts, contrast.reply_tokens, edits)
    shown = np.array([contrast.shows(one.text) for one in made], dtype=np.float64)
    return Replies(shown[: len(classes.behaving)], shown[len(classes.behaving) :])


def nats_per_token(lens: Lens, texts: Sequence[str], edits: Sequence[Edit] = ()) -> Floats:
    """``[text]``: mean next-token loss."""
    found: list[float] = []
    for start in range(0, len(texts), 16):
        run = lens.run(list(texts[start : start + 16]), edits)
        assert run.logits is not None
        ids, lengths = run.tokens.ids, run.tokens.lengths
        losses = torch.nn.functional.cross_entropy(
            run.logits[:, :-1].float().transpose(1, 2).cpu(), ids[:, 1:], reduction="none"
        )
        found += [float(row[: length - 1].mean()) for row, length in zip(losses, lengths, strict=True)]
    return np.array(found)


def quality(lens: Lens, contrast: Contrast, edits: Sequence[Edit] = ()) -> Quality:
    """Loss on neutral text, and whether the first token of each answer is the likeliest."""
    last = lens.run([question for question, _ in contrast.questions], edits, logits="last").last_logits
    assert last is not None
    answers = [int(lens.tokens([answer]).ids[0, 0]) for _, answer in contrast.questions]
    right = (last.argmax(-1).cpu() == torch.tensor(answers)).double().numpy()
    return Quality(nats_per_token(lens, contrast.neutral, edits), right)


def doubling(limit: int) -> list[int]:
    """1, 2, 4, 8 ... up to ``limit``, which is the last."""
    found = [1]
    while found[-1] * 2 <= limit:
        found.append(found[-1] * 2)
    return [*found, limit] if found[-1] != limit else found
