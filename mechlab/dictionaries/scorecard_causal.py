"""What a dictionary does inside the model: loss when it takes the activation's place, and steering at equal cost.

CE recovered = (CE_zero - CE_spliced) / (CE_zero - CE_clean), where CE_zero has zeros in the activation's place; positions from 1 on
are spliced, and only their predictions are scored.

Steering: every direction gets the strength that costs the same KL (``mechlab.analyses.kl_matched``), then the model writes on. Without a
judge (a language model), a text is scored by the probability of the concept's words at each of its tokens, and by its likelihood under
the unsteered model. Shafran et al., arXiv 2506.10920 (KL-matched strengths; a judge there).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mechlab.analyses.kl_matched import kl_matched
from mechlab.dictionaries.dictionary import Dictionary
from mechlab.lens.edit import Edit, add, splice
from mechlab.lens.generate import Sampling
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.splice import Spliceable
from mechlab.lens.tokens import Prompts, Tokens
from mechlab.models.model import Model

_NAME = "dictionary"
PROMPT = "I think that"
SAMPLING = Sampling(top_k=30, top_p=0.3)
"""The published prompt and sampling."""


@dataclass(frozen=True, eq=False)
class SplicedLoss:
    """Next-token loss per prompt ``[n]`` in nats: of the model, with the dictionary in place, with zeros in place."""

    clean: Tensor
    spliced: Tensor
    zeroed: Tensor

    @property
    def recovered(self) -> float:
        """Of means; NaN where zeros cost nothing."""
        room = float(self.zeroed.mean() - self.clean.mean())
        return float(self.zeroed.mean() - self.spliced.mean()) / room if abs(room) > 1e-6 else float("nan")


class _Zero(Spliceable):
    """Decodes everything to zeros, at another dictionary's place."""

    def __init__(self, of: Spliceable) -> None:
        self._of = of

    @property
    def n_features(self) -> int:
        return 1

    @property
    def site(self) -> Site:
        return self._of.target

    @property
    def target(self) -> Site:
        return self._of.target

    @property
    def d_in(self) -> int:
        return self._of.d_out

    @property
    def d_out(self) -> int:
        return self._of.d_out

    def check_model(self, model: Model) -> None:
        self._of.check_model(model)

    def encode(self, activations: Tensor) -> Tensor:
        return activations.new_zeros(len(activations), 1)

    def reconstruct(self, activations: Tensor, codes: Tensor | None = None) -> Tensor:  # noqa: ARG002 (zeros, whatever the code)
        return torch.zeros_like(activations)


def base_loss(lens: Lens, prompts: Prompts, at: Dictionary, *, batch_size: int = 8) -> tuple[Tensor, Tensor]:
    """Losses ``[n]`` of the model and with zeros at a dictionary's target: the same for every dictionary there."""
    tokens = lens.tokens(prompts)
    zeros = splice(at.target, _NAME, keep_error=False)
    return (
        token_loss(lens, tokens, batch_size=batch_size),
        token_loss(lens, tokens, [zeros], {_NAME: _Zero(at)}, batch_size=batch_size),
    )


def spliced_loss(
    lens: Lens,
    prompts: Prompts,
    dictionary: Dictionary,
    base: tuple[Tensor, Tensor] | None = None,
    *,
    batch_size: int = 8,
) -> SplicedLoss:
    """The loss with a dictionary in its target's place. ``base``: from ``base_loss``, if it is there already.

    Raises:
        MechlabError: another model's dictionary. EditError: one that does not fit its site.
    """
    tokens = lens.tokens(prompts)
    clean, zeroed = base or base_loss(lens, tokens, dictionary, batch_size=batch_size)
    edit = splice(dictionary.target, _NAME, keep_error=False)
    return SplicedLoss(clean, token_loss(lens, tokens, [edit], {_NAME: dictionary}, batch_size=batch_size), zeroed)


def token_loss(
    lens: Lens,
    prompts: Prompts,
    edits: Sequence[Edit] = (),
    dictionaries: Mapping[str, Spliceable] | None = None,
    *,
    batch_size: int = 8,
) -> Tensor:
    """Mean next-token loss in nats of each prompt ``[n]``, of the tokens from the third on (predicted from position 1 on)."""
    losses: list[Tensor] = []
    for batch, logits in _batched(lens, lens.tokens(prompts), edits, dictionaries, batch_size):
        log_p = logits[:, 1:-1].log_softmax(-1)
        own = log_p.gather(-1, batch.ids[:, 2:, None].to(log_p.device))[..., 0]
        counts = batch.mask[:, 2:].to(own.device)
        losses.append(-(own * counts).sum(1) / counts.sum(1).clamp_min(1))
    return torch.cat(losses).double().cpu()


def _batched(
    lens: Lens, tokens: Tokens, edits: Sequence[Edit], dictionaries: Mapping[str, Spliceable] | None, batch_size: int
) -> Iterator[tuple[Tokens, Tensor]]:
    """Batches of prompts with their logits; an edit that names a dictionary touches each batch."""
    for start in range(0, len(tokens), batch_size):
        batch = tokens.select(range(start, min(start + batch_size, len(tokens))))
        logits = lens.run(batch, edits, dictionaries=dictionaries).logits
        assert logits is not None
        yield batch, logits.float()


@dataclass(frozen=True, eq=False)
class Steered:
    """Texts written under one direction.

    Attributes:
        strength, kl: of the unit direction; the KL it costs at the first new token, nats.
        mass: ``[samples, concepts]`` probability of each concept's words, mean over new tokens, under the steered model.
        log_probability: ``[samples]`` mean log-probability of the new tokens under the model as it is, nats.
        distinct: share of distinct pairs of neighbouring tokens, mean over samples: near 0 where texts loop.
        texts: the samples.
    """

    strength: float
    kl: float
    mass: Tensor
    log_probability: Tensor
    distinct: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Writing:
    """How texts are written: the prompt, samples of it, new tokens of each, how they are sampled."""

    prompt: str = PROMPT
    samples: int = 8
    tokens: int = 30
    sampling: Sampling = SAMPLING


def steer(
    lens: Lens,
    at: Site,
    direction: Tensor | None,
    words: Sequence[Sequence[int]],
    kl: float,
    writing: Writing | None = None,
) -> Steered:
    """Writes texts with ``kl`` nats' worth of a direction ``[d]`` added at every token of a site; None: with nothing added.

    Args:
        words: token ids of each concept's words (``word_ids``).

    Raises:
        MechlabError: a direction that cannot cost that KL.
    """
    writing = writing or Writing()
    edits: list[Edit] = []
    strength = cost = 0.0
    if direction is not None:
        unit = torch.nn.functional.normalize(direction.detach().float(), dim=0)
        found = kl_matched(lens, writing.prompt, lambda s: [add(at, unit, strength=s)], [kl], most=1e5)[0]
        strength, cost = found.strength, found.kl
        edits = [add(at, unit, strength=strength)]
    written = lens.generate(
        [writing.prompt] * writing.samples, writing.tokens, edits, sampling=writing.sampling, stop_at_eos=False
    )
    prompt = lens.tokens(writing.prompt).ids[0].tolist()
    start = len(prompt)
    ids = torch.tensor([one.ids for one in written])
    whole = lens.tokens([[*prompt, *row] for row in ids.tolist()])
    drawn_from = _probabilities(lens, whole, edits, start)
    masses = [drawn_from[..., list(one)].sum(-1).mean(1) for one in words]
    return Steered(
        strength,
        cost,
        mass=torch.stack(masses, dim=1).double().cpu(),
        log_probability=_likelihood(lens, whole, ids, start),
        distinct=sum(len(set(pairwise(row))) / (len(row) - 1) for row in ids.tolist()) / len(ids),
        texts=tuple(one.text for one in written),
    )


def _probabilities(lens: Lens, tokens: Tokens, edits: Sequence[Edit], start: int) -> Tensor:
    """``[samples, new tokens, vocab]``: what each new token was drawn from."""
    logits = lens.run(tokens, edits).logits
    assert logits is not None
    return logits[:, start - 1 : -1].float().softmax(-1)


def _likelihood(lens: Lens, tokens: Tokens, ids: Tensor, start: int) -> Tensor:
    log_p = _probabilities(lens, tokens, (), start).clamp_min(1e-30).log()
    return log_p.gather(-1, ids[..., None].to(log_p.device))[..., 0].mean(1).double().cpu()


def word_ids(lens: Lens, words: Sequence[str]) -> list[int]:
    """Ids of the words that are one token after a space, as they are or capitalised; others are left out."""
    found: list[int] = []
    for form in dict.fromkeys(form for word in words for form in (word, word.capitalize())):
        ids: list[int] = lens.model.tokenizer(" " + form, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        if len(ids) == 1:
            found.append(ids[0])
    return found
