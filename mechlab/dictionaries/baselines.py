"""The simplest directions one could read a site with, as dictionaries: what any learned dictionary must beat.

Signed baselines (PCA, ICA, neurons, random directions) encode by projection, so their codes have both signs; ``top`` of them per token are
kept where a number is asked for. K-means encodes by the nearest centre.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.errors import MechlabError

__all__ = [
    "difference_in_means",
    "ica",
    "kmeans",
    "pca",
    "random_directions",
    "random_units",
    "top_neurons",
    "untrained",
]

Kind = Literal["dense", "sparse"]


class ProjectionDictionary(Dictionary):
    """codes = (x - mean) @ readers, the ``top`` largest by size of each token kept; decoded = codes @ directions + mean.

    ``readers [d, k]`` are the directions' pseudo-inverse, so that all codes together give the best reconstruction in their span.
    """

    def __init__(
        self,
        origin: DictionaryOrigin,
        directions: Tensor,
        mean: Tensor,
        readers: Tensor | None = None,
        top: int | None = None,
    ) -> None:
        super().__init__(origin)
        self._directions, self.mean, self.top = directions.detach().float(), mean.detach().float(), top
        self._readers = torch.linalg.pinv(self._directions) if readers is None else readers.detach().float()

    @property
    def directions(self) -> Tensor:
        return self._directions

    def encode(self, activations: Tensor) -> Tensor:
        codes = (activations.float() - self.mean.to(activations.device)) @ self._readers.to(activations.device)
        if self.top is None or self.top >= codes.shape[1]:
            return codes
        places = codes.abs().topk(self.top, dim=1).indices
        return torch.zeros_like(codes).scatter(1, places, codes.gather(1, places))

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self._directions.to(codes) + self.mean.to(codes)

    def tensors(self) -> dict[str, Tensor]:
        top = torch.tensor(-1 if self.top is None else self.top)
        return {"directions": self._directions, "mean": self.mean, "readers": self._readers, "top": top}

    @classmethod
    def from_tensors(cls, origin: DictionaryOrigin, tensors: dict[str, Tensor]) -> "ProjectionDictionary":
        top = int(tensors["top"])
        return cls(origin, tensors["directions"], tensors["mean"], tensors["readers"], None if top < 0 else top)


class CentreDictionary(Dictionary):
    """K-means: a token's code is 1 for its nearest centre; a centre is what it decodes to."""

    def __init__(self, origin: DictionaryOrigin, centres: Tensor) -> None:
        super().__init__(origin)
        self._centres = centres.detach().float()

    @property
    def directions(self) -> Tensor:
        return self._centres

    def encode(self, activations: Tensor) -> Tensor:
        nearest = torch.cdist(activations.float(), self._centres.to(activations.device)).argmin(1)
        return torch.nn.functional.one_hot(nearest, len(self._centres)).float()

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self._centres.to(codes)

    def tensors(self) -> dict[str, Tensor]:
        return {"centres": self._centres}

    @classmethod
    def from_tensors(cls, origin: DictionaryOrigin, tensors: dict[str, Tensor]) -> "CentreDictionary":
        return cls(origin, tensors["centres"])


def pca(activations: Tensor, k: int, origin: DictionaryOrigin, *, top: int | None = None) -> ProjectionDictionary:
    """The ``k`` directions of most variance of ``activations [n, d]``, orthonormal."""
    x, mean = _centred(activations, k, min(activations.shape))
    _, vectors = torch.linalg.eigh((x.T @ x).double())
    found = vectors.flip(1)[:, :k].T.float()
    return ProjectionDictionary(_named(origin, "pca"), found, mean, found.T, top)


def ica(
    activations: Tensor, k: int, origin: DictionaryOrigin, *, top: int | None = None, seed: int = 0
) -> ProjectionDictionary:
    """Independent components (scikit-learn's FastICA, 200 iterations); codes have variance 1 on ``activations [n, d]``."""
    import warnings

    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    _, mean = _centred(activations, k, min(activations.shape))
    with warnings.catch_warnings():  # a baseline that has not quite converged is still a baseline
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = FastICA(k, whiten="unit-variance", random_state=seed, max_iter=200).fit(
            activations.float().cpu().numpy()
        )
    readers, mixing = torch.from_numpy(found.components_).float().T, torch.from_numpy(found.mixing_).float().T
    return ProjectionDictionary(_named(origin, "ica", seed), mixing, mean, readers, top)


def kmeans(activations: Tensor, k: int, origin: DictionaryOrigin, *, seed: int = 0) -> CentreDictionary:
    """``k`` centres (scikit-learn's MiniBatchKMeans, one start)."""
    from sklearn.cluster import MiniBatchKMeans

    _centred(activations, k, len(activations))
    found = MiniBatchKMeans(k, random_state=seed, n_init=1, batch_size=4096)  # pyright: ignore[reportArgumentType]
    found.fit(activations.float().cpu().numpy())
    return CentreDictionary(_named(origin, "kmeans", seed), torch.from_numpy(found.cluster_centers_))


def difference_in_means(
    activations: Tensor, labels: Tensor, names: Sequence[str] | Mapping[int, str], origin: DictionaryOrigin
) -> ProjectionDictionary:
    """For each label 0, 1, ... of ``activations [n, d]`` the unit vector from the mean of all others to its mean. Supervised.

    Raises:
        MechlabError: a label that no row, or every row, has.
    """
    found: list[Tensor] = []
    for label in range(len(names)):
        here = labels == label
        if not 0 < int(here.sum()) < len(labels):
            raise MechlabError(
                f"{names[label]!r} has {int(here.sum())} of {len(labels)} rows: a difference needs some of each."
            )
        found.append(activations[here].float().mean(0) - activations[~here].float().mean(0))
    unit = torch.nn.functional.normalize(torch.stack(found), dim=1)
    return ProjectionDictionary(_named(origin, "difference_in_means"), unit, activations.float().mean(0))


def random_directions(
    activations: Tensor,
    k: int,
    origin: DictionaryOrigin,
    *,
    sparsity: float = 1.0,
    seed: int = 0,
    top: int | None = None,
) -> ProjectionDictionary:
    """``k`` random unit directions; with ``sparsity`` below 1 each has ``ceil(sparsity d)`` neurons: random groups of equal size."""
    _, mean = _centred(activations, k, math.inf)
    return ProjectionDictionary(
        _named(origin, "random" if sparsity == 1 else "random_sparse", seed),
        random_units(k, activations.shape[1], sparsity=sparsity, seed=seed),
        mean,
        top=top,
    )


def random_units(k: int, d: int, *, sparsity: float = 1.0, seed: int = 0) -> Tensor:
    """``[k, d]`` unit vectors with ``ceil(sparsity d)`` normal entries each, the others zero."""
    if not 0 < sparsity <= 1:
        raise MechlabError(f"A sparsity of {sparsity} keeps no neuron, or more than all: use a share in (0, 1].")
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(k, d, generator=generator)
    size = math.ceil(round(sparsity * d, 9))
    if size < d:
        places = torch.rand(k, d, generator=generator).topk(size, dim=1).indices
        found = torch.zeros_like(found).scatter(1, places, found.gather(1, places))
    return torch.nn.functional.normalize(found, dim=1)


def top_neurons(activations: Tensor, k: int, origin: DictionaryOrigin) -> ProjectionDictionary:
    """The ``k`` single neurons (dimensions) of most variance."""
    x, mean = _centred(activations, k, activations.shape[1])
    found = torch.eye(activations.shape[1])[x.var(0).topk(k).indices.cpu()]
    return ProjectionDictionary(_named(origin, "neurons"), found, mean, found.T)


def untrained(trained: Dictionary, *, seed: int = 0) -> Dictionary:
    """Random directions of the size and norms of a dictionary's own, read by ``top`` as many codes as fit its ``k`` setting (32 without
    one).

    What the trained one's directions add to the shape of its code.
    """
    own = trained.directions.detach().float()
    found = random_units(len(own), own.shape[1], seed=seed) * own.norm(dim=1, keepdim=True)
    top = int(trained.origin.settings.get("k", 32))
    readers = torch.nn.functional.normalize(found, dim=1).T
    return ProjectionDictionary(
        _named(trained.origin, "untrained", seed), found, torch.zeros(own.shape[1]), readers, top
    )


def _centred(activations: Tensor, k: int, most: float) -> tuple[Tensor, Tensor]:
    if activations.ndim != 2 or not 1 <= k <= most or not len(activations):
        raise MechlabError(
            f"Activations of shape {list(activations.shape)} cannot give {k} directions: give [n, d] and 1 to {most}."
        )
    mean = activations.float().mean(0)
    return activations.float() - mean, mean


def _named(origin: DictionaryOrigin, method: str, seed: int = 0) -> DictionaryOrigin:
    return origin.model_copy(update={"method": method, "seed": seed})


def permuted(x: Tensor, seed: int) -> Tensor:
    """``x [n, d]`` with every column permuted over rows on its own: what fires together is gone, what each neuron does alone is kept."""
    return x.gather(0, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).argsort(0))
