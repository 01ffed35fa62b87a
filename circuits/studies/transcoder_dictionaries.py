"""The dictionaries of the transcoder study that are not trained: linear maps, untrained and permuted transcoders, single neurons."""

import torch
from torch import Tensor

from circuits.features.transcoder import Transcoder, shown
from mechlab.dictionaries.activations import ActivationSource
from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site

_RIDGE = 1e-3
"""Of the mean square of the inputs: what keeps the linear fit from following noise."""


class LinearMap(Dictionary):
    """What a linear map makes of an MLP's input, in the MLP's place. Its codes are its inputs."""

    def __init__(self, origin: DictionaryOrigin, weight: Tensor, bias: Tensor) -> None:
        super().__init__(origin)
        self._weight, self._bias = weight, bias

    @property
    def directions(self) -> Tensor:
        return self._weight

    def encode(self, activations: Tensor) -> Tensor:
        return activations

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(self._weight) @ self._weight + self._bias


class Remapped(Dictionary):
    """A transcoder with other decoder rows, and with an other encoder where one is given (the ``k`` largest codes of a token are kept)."""

    def __init__(
        self, transcoder: Dictionary | Transcoder, directions: Tensor, encoder: Tensor | None = None, k: int = 0
    ) -> None:
        base = shown(transcoder)
        super().__init__(base.origin)
        self._base, self._directions, self._own, self._k = base, directions, encoder, k
        self.decoder_bias, self.skip = base.decoder_bias, base.skip

    @property
    def encoder(self) -> Tensor:
        return self._base.encoder if self._own is None else self._own

    @property
    def encoder_bias(self) -> Tensor:
        bias = self._base.encoder_bias
        return bias if self._own is None else torch.zeros_like(bias)

    @property
    def directions(self) -> Tensor:
        return self._directions

    def encode(self, activations: Tensor) -> Tensor:
        if self._own is None:
            return self._base.encode(activations)
        codes = (activations @ self._own.T).relu()
        best = codes.topk(self._k, dim=1)
        return torch.zeros_like(codes).scatter(1, best.indices, best.values)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self._directions + self.decoder_bias


class Neurons(Dictionary):
    """An MLP's own neurons as a dictionary of what its output projection reads: features to be ablated one by one."""

    def __init__(self, lens: Lens, layer: int) -> None:
        at = str(Site("mlp_post", layer))
        super().__init__(
            DictionaryOrigin(method="neurons", model=lens.model.name, fingerprint=lens.model.fingerprint, site=at)
        )
        assert lens.layout.d_mlp is not None
        self._one_each = torch.eye(lens.layout.d_mlp)

    @property
    def directions(self) -> Tensor:
        return self._one_each

    def encode(self, activations: Tensor) -> Tensor:
        return activations

    def decode(self, codes: Tensor) -> Tensor:
        return codes


def origin_at(lens: Lens, layer: int, method: str) -> DictionaryOrigin:
    """Of something that stands in the place of a layer's MLP."""
    return DictionaryOrigin(
        method=method,
        model=lens.model.name,
        fingerprint=lens.model.fingerprint,
        site=str(Site("mlp_in", layer)),
        target=str(Site("mlp_out", layer)),
    )


def zeroed(lens: Lens, layer: int) -> LinearMap:
    """Nothing in the MLP's place."""
    d = lens.model.d_model
    return LinearMap(origin_at(lens, layer, "zero"), torch.zeros(d, d), torch.zeros(d))


def linear_map(lens: Lens, layer: int, activations: ActivationSource) -> LinearMap:
    """The best linear map from the MLP's input to its output on the training rows (ridge regression)."""
    read, written = (
        one.double() for one in activations.read([Site("mlp_in", layer), Site("mlp_out", layer)], activations.rows)
    )
    means = read.mean(0), written.mean(0)
    x, y = read - means[0], written - means[1]
    gram = x.T @ x
    weight = torch.linalg.solve(
        gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64), x.T @ y
    )
    return LinearMap(origin_at(lens, layer, "linear"), weight.float(), (means[1] - means[0] @ weight).float())


def untrained(transcoder: Dictionary | Transcoder, k: int, seed: int) -> Remapped:
    """Random directions of the trained ones' lengths, encoder and decoder, with as many features active per token."""
    one, generator = shown(transcoder), torch.Generator().manual_seed(seed)

    def like(rows: Tensor) -> Tensor:
        drawn = torch.randn(rows.shape, generator=generator)
        return drawn / drawn.norm(dim=1, keepdim=True) * rows.detach().norm(dim=1, keepdim=True)

    return Remapped(one, like(one.directions), like(one.encoder), k)


def permuted(transcoder: Dictionary | Transcoder, seed: int) -> Remapped:
    """The same features, active where they were, each with another's decoder row."""
    one, generator = shown(transcoder), torch.Generator().manual_seed(seed)
    return Remapped(one, one.directions.detach()[torch.randperm(one.n_features, generator=generator)])
