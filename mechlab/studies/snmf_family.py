"""What the snmf study measures of a family of words (the days of the week): which neurons their features share, and what those do.

SNMF of sentences that differ in one word of the family gives every word its feature. The neurons that at least half of these features use
are the core; those that one alone uses are exclusive to it. Each group is amplified (added at every token, with its feature's weights and
one norm for all) while the model reads prompts that the sentences do not contain, and the words' logits are read. The published shape:
exclusive neurons raise their own word and lower the others, the core raises all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.dictionaries.baselines import permuted
from mechlab.dictionaries.snmf import SnmfSettings, factorise, loadings_of
from mechlab.dictionaries.snmf_reuse import amplified_each, neuron_reuse
from mechlab.errors import MechlabError, PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.results.study import Progress

Floats = NDArray[np.float64]
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FITTED = (
    "The shop is closed on {} and opens again the next morning.",
    "We met on {} to talk about the new house.",
    "It rained on {} from morning until night.",
    "Her train leaves early on {}.",
    "Not every {} do the children visit their grandmother.",
    "He has no work on {} this month.",
    "The letter was sent last {} by the office.",
    "They will play the second match on {} evening.",
    "The market is full of people on a {}.",
    "By {} the snow had gone.",
)
CHECKED = (
    "The bridge will be closed from {} on.",
    "She has felt better since {}.",
    "Until {} nobody knew about the accident.",
    "The museum is free every {} afternoon.",
)
ASKED = (
    "The meeting was moved to next",
    "The library is closed every",
    "She promised to call me on",
    "The concert will take place on",
    "I will be back in town by",
    "We usually go swimming on",
    "The results will be published on",
    "My brother was born on a",
    "The next lesson is on",
    "They were married on a sunny",
)
SHARED_BY = 0.5


@dataclass(frozen=True, eq=False)
class Family:
    """Of one layer.

    Attributes:
        words: the members. told: share of the members' tokens in other sentences at which the largest of their features is the right one.
        overlap: ``[words, words]`` neurons shared by two features; ``kept`` of ``width`` neurons are in each.
        exclusive: ``[words]`` neurons that one member's feature alone uses. core: neurons that at least half of them use.
        changes: ``[words + 1, prompts, words]``: change of each word's logit, less the mean over the vocabulary, with each member's
            exclusive neurons amplified, and last with the core. A group without neurons changes nothing.
        random: ``[draws, words + 1, prompts, words]``: with the same weights on as many neurons that no member's feature uses.
    """

    words: tuple[str, ...]
    told: float
    overlap: Floats
    kept: int
    width: int
    exclusive: list[int]
    core: int
    changes: Floats
    random: Floats


@dataclass(frozen=True, eq=False)
class _Sentences:
    """``rows [n, d_mlp]`` of all tokens but each sentence's first, and of each member its tokens' places in them."""

    rows: Tensor
    places: list[Tensor]


def measure_family(
    lens: Lens,
    at: Site,
    words: Sequence[str],
    settings: SnmfSettings,
    draws: int,
    progress: Progress,
    *,
    shuffled: bool,
) -> Family:
    """Chosen on ``FITTED`` sentences, judged on ``CHECKED`` ones and ``ASKED`` prompts.

    Args:
        settings: of the factorisation. draws: of random groups; 0: none. shuffled: fits on activations whose neurons are permuted over
            tokens, so that features hold neurons that vary much, not neurons that fire together.

    Raises:
        MechlabError: more words than features. PromptError: words that the tokenizer does not tell apart.
    """
    if not 2 <= len(words) <= settings.k:
        raise MechlabError(
            f"A family of {len(words)} words needs 2 to {settings.k} members, as many as there are features."
        )
    ids = _ids(lens, words)
    fitted, checked = (_sentences(lens, at, words, ids, some) for some in (FITTED, CHECKED))
    x = permuted(fitted.rows, settings.seed) if shuffled else fitted.rows
    features = factorise(x, settings).features
    chosen, scale = choose(loadings_of(fitted.rows, features), fitted.places)
    own = features[chosen]
    groups = groups_of(own)
    strength = float(torch.cat([fitted.rows[places] for places in fitted.places]).norm(dim=1).mean())
    sets = [groups, *random_groups(groups, own, draws, settings.seed)]
    changes: list[Floats] = []
    for done, one in enumerate(sets):
        progress("amplifying neurons of a family", done, len(sets))
        changes.append(amplified_each(lens, list(ASKED), at, one, ids, strength, centred=True).double().numpy())
    progress("amplifying neurons of a family", len(sets), len(sets))
    reuse = neuron_reuse(own, SHARED_BY)
    return Family(
        words=tuple(words),
        told=_told(loadings_of(checked.rows, features)[:, chosen] / scale[chosen], checked.places),
        overlap=reuse.overlap.double().numpy(),
        kept=int((own[0] != 0).sum()),
        width=own.shape[1],
        exclusive=reuse.exclusive.sum(1).tolist(),
        core=int(reuse.core.sum()),
        changes=changes[0],
        random=np.stack(changes[1:]) if draws else np.zeros((0, *changes[0].shape)),
    )


def _ids(lens: Lens, words: Sequence[str]) -> list[int]:
    """The first token of each word after a space."""
    ids = [int(lens.model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]) for word in words]  # pyright: ignore
    if len(set(ids)) < len(words):
        raise PromptError(
            f"The tokenizer gives {', '.join(words)} only {len(set(ids))} first tokens: choose other words."
        )
    return ids


def _sentences(lens: Lens, at: Site, words: Sequence[str], ids: Sequence[int], templates: Sequence[str]) -> _Sentences:
    texts = [template.format(word) for word in words for template in templates]
    run = lens.run(texts, read=[at], logits="none")
    kept = run.tokens.mask.clone()
    kept[:, 0] = False
    member = torch.arange(len(words)).repeat_interleave(len(templates))[:, None].expand_as(kept)[kept]
    tokens = run.tokens.ids[kept]
    places = [((member == i) & (tokens == token)).nonzero().flatten() for i, token in enumerate(ids)]
    return _Sentences(run[at][kept].flatten(1).float().cpu(), places)


def choose(loadings: Tensor, places: Sequence[Tensor]) -> tuple[list[int], Tensor]:
    """The feature of each member, each another: together they load most on their own members' tokens and least on the others'.

    Args:
        loadings: ``[n, k]``. places: of each member, rows of its tokens.

    Returns:
        the features, and ``[k]`` each feature's largest loading on the members' tokens (1 where it has none).
    """
    from scipy.optimize import linear_sum_assignment

    whole = torch.cat(list(places))
    scale = loadings[whole].amax(0)
    scale = torch.where(scale > 0, scale, 1)
    means = torch.stack([(loadings[own] / scale).mean(0) for own in places])
    others = (means.sum(0) - means) / (len(places) - 1)
    _, chosen = linear_sum_assignment((means - others).numpy(), maximize=True)
    return [int(i) for i in chosen], scale


def groups_of(features: Tensor) -> Tensor:
    """``[members + 1, d]``: each member's exclusive neurons with its weights; last the core, with the mean weights of those that use it."""
    reuse = neuron_reuse(features, SHARED_BY)
    users = (features != 0).sum(0).clamp_min(1)
    return torch.cat([features * reuse.exclusive, (features.sum(0) / users * reuse.core)[None]])


def random_groups(groups: Tensor, features: Tensor, draws: int, seed: int) -> list[Tensor]:
    """``draws`` times each group's weights on as many other neurons, drawn among those that none of ``features`` uses.

    Raises:
        MechlabError: fewer unused neurons than a group has.
    """
    generator = torch.Generator().manual_seed(seed)
    unused = (features == 0).all(0).nonzero().flatten()
    most = int((groups != 0).sum(1).max())
    if draws and len(unused) < most:
        raise MechlabError(
            f"{len(unused)} neurons are in no member's feature and a group has {most}: use a lower sparsity."
        )
    found: list[Tensor] = []
    for _ in range(draws):
        drawn = torch.zeros_like(groups)
        for row, group in zip(drawn, groups, strict=True):
            weights = group[group != 0]
            row[unused[torch.randperm(len(unused), generator=generator)[: len(weights)]]] = weights
        found.append(drawn)
    return found


def _told(loadings: Tensor, places: Sequence[Tensor]) -> float:
    right = [(loadings[own].argmax(1) == i).double() for i, own in enumerate(places)]
    return float(torch.cat(right).mean())


def own_over_others(changes: Floats) -> Floats:
    """``[prompts]``: rise of a member's own logit less the mean of the others', its exclusive neurons amplified, mean over members.

    Args:
        changes: ``[words + 1, prompts, words]``, as in ``Family``.
    """
    n = changes.shape[2]
    own = changes[np.arange(n), :, np.arange(n)]  # [words, prompts]
    others = (changes[:n].sum(2) - own) / (n - 1)
    return (own - others).mean(0)


def core_rise(changes: Floats) -> Floats:
    """``[prompts]``: rise of the members' logits, the core amplified, mean over members."""
    return changes[-1].mean(1)
