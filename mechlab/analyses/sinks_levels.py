"""The primary sink's episodes, and other tokens that are turned into its direction: secondary sinks and their levels.

After Wong et al., "On the Existence and Behaviour of Secondary Attention Sinks", arXiv 2512.22213:

1. The primary sink is that of the first few positions whose residual norm, averaged over layers, is largest.
2. Its **episodes**: runs of layers after which its norm is at least ``massive`` times the median norm of the other tokens. The paper
   knows one span per model, from the steepest rise to the steepest fall of the norm (``paper_span``); a sink that is made, removed
   and made again has two.
3. A token is a sink after the layers of an episode at which |cos| with the primary's direction is above a bound. The direction is
   the mean over discovery prompts, so that detection on other prompts uses nothing of theirs.
4. A run of such layers is labelled by its lifetime, as a share of the model's depth: noise, secondary or primary-like.
5. A **sink level** is a pair (creation layer, lifetime).

Layers count from 0; "after layer l" is resid_post of layer l.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.analyses.sinks import Floats, Observed, batches
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress, silent

__all__ = ["Profile", "Sink", "Thresholds", "profile", "sinks"]

PRIMARY, PRIMARY_LIKE, SECONDARY, NOISE = "primary", "primary-like", "secondary", "noise"


@dataclass(frozen=True)
class Thresholds:
    """What counts as a sink.

    Attributes:
        candidates: positions from the first on among which the primary sink is looked for.
        massive: norm over the others' median norm from which the primary is massive.
        cosine: |cos| with its direction above which a token is a sink (paper: 0.9).
        noise_share: lifetimes up to this share of depth are noise (paper: 4 of 48 layers).
        primary_share: lifetimes from this share of depth on are primary-like (paper: 33 of 48 layers).
    """

    candidates: int = 2
    massive: float = 3.0
    cosine: float = 0.9
    noise_share: float = 0.1
    primary_share: float = 0.65


@dataclass(frozen=True)
class Episode:
    """Layers after which the primary sink is massive, first and last; ``peak``: where its norm is largest."""

    start: int
    stop: int
    peak: int

    @property
    def lifetime(self) -> int:
        return self.stop - self.start + 1

    @property
    def layers(self) -> range:
        return range(self.start, self.stop + 1)

    def reading(self, n_layers: int) -> range:
        """Layers whose attention reads the massive stream: one later than those that leave it so."""
        return range(self.start + 1, min(self.stop + 2, n_layers))


@dataclass(frozen=True, eq=False)
class Profile:
    """The primary sink on discovery prompts.

    Attributes:
        position: its index in every prompt.
        ratios: ``[n, layer]`` its norm over the median norm of the other tokens.
        other_ratios: ``[n, layer]`` the same for the later position that comes highest.
        directions: ``[layer, d_model]`` unit vectors: the mean of its unit vectors over prompts.
        paper_span: first and last layer by the paper's rule, or None where the norm never rises.
    """

    position: int
    ratios: Floats
    other_ratios: Floats
    directions: Tensor
    episodes: tuple[Episode, ...]
    paper_span: tuple[int, int] | None

    def episode_directions(self) -> dict[int, Tensor]:
        """Layer -> direction, at the layers of all episodes."""
        return {layer: self.directions[layer] for episode in self.episodes for layer in episode.layers}

    @property
    def strongest(self) -> int | None:
        """Index of the episode whose peak is highest; None without one."""
        mean = self.ratios.mean(axis=0)
        peaks = [float(mean[episode.peak]) for episode in self.episodes]
        return int(np.argmax(peaks)) if peaks else None


@dataclass(frozen=True)
class Sink:
    """One run of layers in which one token is a sink.

    Attributes:
        prompt, position, piece: which token.
        episode: index of the primary's episode it falls into.
        start, lifetime: creation layer and number of layers.
        kind: ``primary`` for the primary itself, else by lifetime.
    """

    prompt: int
    position: int
    piece: str
    episode: int
    start: int
    lifetime: int
    kind: str


def profile(lens: Lens, tokens: Tokens, limits: Thresholds, progress: Progress = silent) -> Profile:
    """The primary sink and its episodes on prompts of one length, batch by batch."""
    norms, units = _streamed(lens, tokens, limits.candidates, progress)
    position = int(norms[:, :, : limits.candidates].mean(axis=(0, 1)).argmax())
    ratios = norms[:, :, position] / _median_of_others(norms, position)
    others = norms[:, :, limits.candidates :] / _median_of_others(norms, position)[..., None]
    directions = torch.nn.functional.normalize(units[:, :, position].mean(dim=0), dim=-1)
    return Profile(
        position=position,
        ratios=ratios,
        other_ratios=others[..., int(others.mean(axis=(0, 1)).argmax())],
        directions=directions,
        episodes=episodes(ratios.mean(axis=0), limits.massive),
        paper_span=paper_span(norms[:, :, position].mean(axis=0)),
    )


def ratios_at(norms: Floats, position: int) -> Floats:
    """``[n, layer, pos]`` norms -> ``[n, layer]``: the norm at a position over the median of the others."""
    return norms[:, :, position] / _median_of_others(norms, position)


def _streamed(lens: Lens, tokens: Tokens, candidates: int, progress: Progress) -> tuple[Floats, Tensor]:
    """Norms ``[n, layer, pos]``, and unit vectors of the candidates ``[n, layer, candidate, d_model]``."""
    sites = [Site("resid_post", layer) for layer in range(lens.model.n_layers)]
    norms: list[Floats] = []
    units: list[Tensor] = []
    for rows in batches(len(tokens)):
        run = lens.run(tokens.select(rows), read=sites, logits="none", batch_size=len(rows))
        stream = torch.stack([run[at].float() for at in sites], dim=1)
        norms.append(stream.norm(dim=-1).double().cpu().numpy())
        units.append(torch.nn.functional.normalize(stream[:, :, :candidates], dim=-1).cpu())
        progress("the first tokens' norms", rows[-1] + 1, len(tokens))
    return np.concatenate(norms), torch.cat(units)


def _median_of_others(norms: Floats, position: int) -> Floats:
    return np.median(np.delete(norms, position, axis=-1), axis=-1)


def episodes(ratio: Floats, massive: float) -> tuple[Episode, ...]:
    """Runs of layers at which ``ratio [layer]`` is at least ``massive``."""
    found = runs(ratio >= massive)
    return tuple(Episode(a, b, a + int(ratio[a : b + 1].argmax())) for a, b in found)


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of each run of True in ``flags``."""
    steps = np.diff(np.concatenate([[0], flags.astype(int), [0]]))
    return [(int(a), int(b) - 1) for a, b in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True)]


def paper_span(norm: Floats) -> tuple[int, int] | None:
    """The paper's span from norms ``[layer]``: from the steepest rise to the layer before the steepest later fall, or to the last layer."""
    steps = np.diff(norm)
    if not len(steps) or steps.max() <= 0:
        return None
    start = int(steps.argmax()) + 1
    later = steps[start:]
    falls = len(later) and later.min() < 0
    return start, start + int(later.argmin()) if falls else len(norm) - 1


def sinks(found: Observed, of: Profile, limits: Thresholds) -> list[Sink]:
    """Every run of sink layers of every token, the primary's own among them."""
    n_layers = found.norms.shape[1]
    records: list[Sink] = []
    for index, episode in enumerate(of.episodes):
        inside = np.zeros(n_layers, dtype=bool)
        inside[list(episode.layers)] = True
        aligned = (np.abs(np.nan_to_num(found.cosines)) > limits.cosine) & inside[None, :, None]
        for prompt, position in zip(*np.nonzero(aligned.any(axis=1)), strict=True):
            for start, stop in runs(aligned[prompt, :, position]):
                lifetime = stop - start + 1
                kind = PRIMARY if position == of.position else label(lifetime, n_layers, limits)
                piece = found.tokens.pieces[prompt][position]
                records.append(Sink(int(prompt), int(position), piece, index, start, lifetime, kind))
    return records


def label(lifetime: int, n_layers: int, limits: Thresholds) -> str:
    """Noise, secondary or primary-like, by lifetime as a share of depth."""
    if lifetime <= limits.noise_share * n_layers:
        return NOISE
    return PRIMARY_LIKE if lifetime >= limits.primary_share * n_layers else SECONDARY


def commonest_creation(found: Sequence[Sink]) -> tuple[int, int] | None:
    """(episode, creation layer) that most secondary sinks share; the earlier one of equals. None without secondary sinks."""
    places = [(sink.episode, sink.start) for sink in found if sink.kind == SECONDARY]
    return max(sorted(set(places)), key=places.count) if places else None
