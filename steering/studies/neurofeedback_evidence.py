"""What the neurofeedback study measures: reports and control of a target, before they are judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from steering.examples import read
from steering.studies.neurofeedback_directions import Floats, Target
from steering.studies.neurofeedback_prompts import Ids, Integers, Marks, requested, scored

TWIN = "random-weight twin"
_PROMPTS_AT_ONCE = 4  # logits of every token are large
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Reported:
    """Labels told after 0, 1, 2 ... examples, ``[contexts, slots]``.

    Attributes:
        right: 1 where the true score's token is likelier than the other's. loss: nats of the true one between the two.
    """

    right: Floats
    loss: Floats


@dataclass(frozen=True, eq=False)
class Controlled:
    """What asking for a high instead of a low score moves, in standard deviations of the sentences' scores, ``[contexts]``.

    Attributes:
        effect: score when high is asked for minus score when low is. texts: what was written, if anything was.
    """

    effect: Floats
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Measured:
    """One target. ``bag``: ``[contexts, late slots]`` 1 where a bag of words, fitted to the same examples, tells the label."""

    variance: float
    reported: Reported
    bag: Floats
    implicit: Controlled | None = None
    explicit: Controlled | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything the study measured; ``measured`` by the target's name, the twin's own probe among them."""

    settings: dict[str, object]
    layer: int
    measured: dict[str, Measured]


def late(n_slots: int) -> slice:
    """The slots that count as learnt: the second half."""
    return slice(n_slots // 2, n_slots)


def report(lens: Lens, how: Marks, sentences: Sequence[Ids], labels: NDArray[np.int64], picks: Integers) -> Reported:
    """One pass per context gives the report after every number of examples: at each score all earlier ones have been read."""
    pair = torch.tensor([how.low, how.high])
    right, loss = list[Floats](), list[Floats]()
    for start in range(0, len(picks), _PROMPTS_AT_ONCE):
        rows = range(start, min(start + _PROMPTS_AT_ONCE, len(picks)))
        truth = [labels[row, picks[row]] for row in rows]
        contexts = [
            scored(how, [sentences[i] for i in picks[row]], t.tolist()) for row, t in zip(rows, truth, strict=True)
        ]
        logits = lens.run([ids for ids, _ in contexts], logits="all").logits
        assert logits is not None
        for i, ((_, slots), true) in enumerate(zip(contexts, truth, strict=True)):
            log_p = logits[i, slots][:, pair].double().log_softmax(-1).cpu().numpy()
            loss.append(-log_p[np.arange(len(true)), true])
            right.append((log_p[:, 1] > log_p[:, 0]).astype(np.int64) == true)
    return Reported(np.array(right, dtype=np.float64), np.array(loss))


def bag_of_words(texts: Sequence[str], labels: NDArray[np.int64], picks: Integers) -> Floats:
    """``[contexts, late slots]``: 1 where a logistic regression on the words of the sentences before tells the label."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    found_words: Any = CountVectorizer(binary=True).fit_transform(texts)
    counts = np.asarray(found_words.todense())
    rows: list[list[float]] = []
    for row, chosen in enumerate(picks):
        true, found = labels[row, chosen], list[float]()
        for slot in range(late(len(chosen)).start, len(chosen)):
            seen = true[:slot]
            told = seen[0] if len(set(seen.tolist())) == 1 else None
            if told is None:
                told = LogisticRegression().fit(counts[chosen[:slot]], seen).predict(counts[chosen[slot : slot + 1]])[0]
            found.append(float(told == true[slot]))
        rows.append(found)
    return np.array(rows)


def implicit(
    lens: Lens, at: Site, how: Marks, sentences: Sequence[Ids], target: Target, picks: Integers, n_examples: int
) -> Controlled:
    """The next sentence is given: only the activation over it can move."""
    scores = np.zeros((2, len(picks)))
    for wanted in (0, 1):
        heads = [_head(how, sentences, target, row, chosen[:n_examples], wanted) for row, chosen in enumerate(picks)]
        last = [sentences[chosen[-1]] for chosen in picks]
        for start in range(0, len(heads), _PROMPTS_AT_ONCE):
            rows = range(start, min(start + _PROMPTS_AT_ONCE, len(heads)))
            x = lens.run([[*heads[row], *last[row]] for row in rows], read=[at], logits="none")[at]
            for i, row in enumerate(rows):
                begin = len(heads[row])
                mean = x[i, begin : begin + len(last[row])].double().mean(0).cpu().numpy()
                scores[wanted, row] = mean @ target.directions[row]
    return Controlled((scores[1] - scores[0]) / target.spread[: len(picks)])


def explicit(
    lens: Lens,
    at: Site,
    how: Marks,
    sentences: Sequence[Ids],
    target: Target,
    picks: Integers,
    n_examples: int,
    n_tokens: int,
) -> Controlled:
    """The next sentence is written by the model, greedily; then it is read alone, as the examples were."""
    scores, texts = np.zeros((2, len(picks))), list[str]()
    for wanted in (0, 1):
        heads = [_head(how, sentences, target, row, chosen[:n_examples], wanted) for row, chosen in enumerate(picks)]
        written = [_line(lens, one.ids, how) for one in lens.generate(heads, n_tokens, stop_at_eos=False)]
        x = read(lens, written, [at], None)[at].double().numpy()
        scores[wanted] = (x * target.directions[: len(picks)]).sum(1)
        texts += [f"{wanted}: {lens.model.tokenizer.decode(ids)}" for ids in written]
    return Controlled((scores[1] - scores[0]) / target.spread[: len(picks)], tuple(texts))


def _head(how: Marks, sentences: Sequence[Ids], target: Target, row: int, chosen: Integers, wanted: int) -> Ids:
    return requested(how, [sentences[i] for i in chosen], target.labels[row, chosen].tolist(), wanted)


def _line(lens: Lens, ids: Sequence[int], how: Marks) -> Ids:
    """Up to the end of the line or its score, if that leaves enough to read."""
    stops = {*how.newline, *how.before[:1]}
    end = next(
        (i for i, one in enumerate(ids) if i >= _FEWEST and (one in stops or "\n" in _text(lens, one))), len(ids)
    )
    return list(ids[:end])


def _text(lens: Lens, token: int) -> str:
    return str(lens.model.tokenizer.decode([token]))
