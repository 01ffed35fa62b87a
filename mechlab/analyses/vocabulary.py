"""What MLP neurons write, in words: value vectors on the unembedding, themes of tokens, neurons that share a theme.

A neuron's value vector is its row of the MLP's output map; times the unembedding (with the final norm's gain, its scale left out) it
scores every token. Geva et al., arXiv 2203.14680; as handles for steering: Häon et al., arXiv 2509.00328 (a robot's model there, a
language model's next words here).

1. Tokens that are words are grouped into themes by k-means on their unembedding directions.
2. A neuron is meaningful if at least 4 of its 30 highest words lie in one theme: the theme is its meaning.
3. A cluster is the neurons of some layers with one meaning, those with the most words in it first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mechlab.analyses.units import Indices, Units
from mechlab.errors import MechlabError
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens

__all__ = ["Cluster", "Meanings", "Themes", "clusters", "meanings", "themes", "value_vectors"]

N_TOP, N_SHARED = 30, 4
_NEURONS_AT_ONCE = 512
_MARKS = ("▁", "Ġ")  # of SentencePiece and of byte-level BPE


@dataclass(frozen=True, eq=False)
class Themes:
    """Word tokens in groups.

    Attributes:
        ids: ``[word]`` token ids.
        theme: ``[word]`` the group of each.
        directions: ``[word, d_model]`` unembedding rows with the final norm's gain.
        words: ``[word]`` their text.
    """

    ids: Tensor
    theme: Indices
    directions: Tensor
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Meanings:
    """Of some directions, in order: the theme most of their top words lie in, and how many do.

    Attributes:
        theme, count: ``[n]``.
        top: ``[n, 30]`` places of the highest words in ``Themes.ids``, highest first.
    """

    theme: Indices
    count: Indices
    top: Indices

    @property
    def meaningful(self) -> NDArray[np.bool_]:
        return self.count >= N_SHARED


@dataclass(frozen=True, eq=False)
class Cluster:
    """Neurons with one meaning.

    Attributes:
        neurons: unit numbers, those with the most words in the theme first.
        theme: which.
        tokens: ids of the theme's words among the neurons' top words, most shared first.
        words: their text.
    """

    neurons: Indices
    theme: int
    tokens: tuple[int, ...]
    words: tuple[str, ...]


def themes(lens: Lens, n_themes: int, *, seed: int = 0) -> Themes:
    """Groups the tokens that begin a word and have three letters or more. (Some are beginnings of longer words: nobody can tell.)

    Raises:
        MechlabError: fewer such tokens than themes.
    """
    from sklearn.cluster import MiniBatchKMeans

    marks = _marks_words(lens)
    found = [(i, word) for i in range(lens.model.vocab_size) if (word := _word(lens, i, marks))]
    if len(found) < max(n_themes, N_TOP):
        raise MechlabError(
            f"{lens.model.name} has {len(found)} tokens that are words, too few for {n_themes} themes: lower n_themes."
        )
    ids = torch.tensor([i for i, _ in found])
    directions = output_weight(lens.layout.unembed).T.float().cpu()[ids] * _gain(lens)
    centred = directions - directions.mean(dim=0)
    semantic = nn.functional.normalize(centred, dim=1).numpy()
    groups = MiniBatchKMeans(n_themes, random_state=seed, batch_size=4096, max_iter=30).fit(semantic)
    return Themes(ids, np.asarray(groups.labels_, dtype=np.int64), directions, tuple(word for _, word in found))


def value_vectors(lens: Lens, layer: int) -> Tensor:
    """``[d_mlp, d_model]``: what each neuron of a layer writes per unit of activation."""
    return lens.layout.blocks[layer].written_by_neurons.detach().float().cpu()


def meanings(directions: Tensor, by: Themes) -> Meanings:
    """The top words of each direction ``[n, d_model]`` and the theme most of them share (of equals, the one of the highest word)."""
    tops: list[NDArray[np.int64]] = []
    for start in range(0, len(directions), _NEURONS_AT_ONCE):
        scores = directions[start : start + _NEURONS_AT_ONCE] @ by.directions.T
        tops.append(scores.topk(N_TOP, dim=1).indices.numpy())
    top = np.concatenate(tops)
    theme = by.theme[top]  # [n, 30]
    same = (theme[:, :, None] == theme[:, None, :]).sum(axis=2)  # how many of the 30 share each word's theme
    best = same.argmax(axis=1)
    rows = np.arange(len(top))
    return Meanings(theme[rows, best], same[rows, best], top)


def clusters(
    units: Units, found: Meanings, by: Themes, layers: Iterable[int], *, most: int, size: int, least: int
) -> list[Cluster]:
    """Up to ``most`` clusters of ``least`` to ``size`` neurons of some layers, the fullest themes first.

    Args:
        found: meanings of all units, in their order.
    """
    inside = np.isin(units.layers(np.arange(len(units))), list(layers)) & found.meaningful
    themes_there, counts = np.unique(found.theme[inside], return_counts=True)
    chosen: list[Cluster] = []
    for place in np.argsort(-counts, kind="stable"):
        if counts[place] < least or len(chosen) == most:
            break
        theme = int(themes_there[place])
        neurons = np.flatnonzero(inside & (found.theme == theme))
        neurons = neurons[np.argsort(-found.count[neurons], kind="stable")][:size]
        tops = found.top[neurons].ravel()
        words, times = np.unique(tops[by.theme[tops] == theme], return_counts=True)
        words = words[np.argsort(-times, kind="stable")]
        chosen.append(
            Cluster(neurons, theme, tuple(by.ids[words].tolist()), tuple(by.words[word] for word in words.tolist()))
        )
    return chosen


def random_directions(lens: Lens, layers: Iterable[int], count: int, *, seed: int = 0) -> Tensor:
    """``[count, d_model]`` Gaussian directions with the mean and covariance of the value vectors."""
    vectors = torch.cat([value_vectors(lens, layer) for layer in layers])
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, len(vectors), generator=generator) / len(vectors) ** 0.5
    return weights @ (vectors - vectors.mean(dim=0)) + vectors.mean(dim=0)


def _gain(lens: Lens) -> Tensor:
    """``[d_model]`` the final norm's weight, however the family stores it."""
    norm = lens.layout.final_norm
    if isinstance(norm, nn.LayerNorm):
        return norm.weight.detach().float().cpu()
    ones = torch.ones(1, lens.model.d_model, dtype=lens.model.dtype, device=lens.model.device)
    return norm(ones)[0].detach().float().cpu()


def _word(lens: Lens, token_id: int, marks: bool) -> str:
    """The word a token begins, or nothing: a piece inside a word, a sign, or fewer than three letters.

    Args:
        marks: whether this tokenizer marks tokens that begin a word; one that does not has whole words alone.
    """
    word = str(lens.model.tokenizer.decode([token_id])).strip()
    begins = not marks or str(lens.model.tokenizer.convert_ids_to_tokens(token_id)).startswith(_MARKS)
    return word if begins and len(word) >= 3 and word.isalpha() else ""


def _marks_words(lens: Lens) -> bool:
    pieces = lens.model.tokenizer.convert_ids_to_tokens(list(range(lens.model.vocab_size)))
    return any(str(piece).startswith(_MARKS) for piece in pieces)
