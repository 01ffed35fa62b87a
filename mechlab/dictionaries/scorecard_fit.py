"""How well a dictionary fits held-out activations, how sparse its codes are, and how its directions overlap.

FVU, L0, dead and dense shares, effective rank: of codes. Babel function: of directions, mu_1(r) = the largest sum of |cosines| between one
atom and r others (Tropp 2004; Costa et al., arXiv 2506.03093), over the whole dictionary and over the atoms that one activation uses.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.dictionaries.dictionary import Dictionary
from mechlab.errors import MechlabError

_ROWS_AT_ONCE = 2048
DENSE = 0.1
"""A feature that is active on a larger share of tokens is called dense."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A dictionary on held-out activations.

    Attributes:
        fvu: fraction of variance unexplained, sum ||y - y_hat||^2 / sum ||y - mean||^2.
        l0: mean number of features active on a token.
        dead: share of features active on none of these tokens. dense: share active on more than ``DENSE`` of them.
        frequency: ``[n_features]`` share of tokens each is active on.
        errors: ``[rows]`` squared error of each token; ``spreads``: its squared distance from the mean.
    """

    fvu: float
    l0: float
    dead: float
    dense: float
    frequency: Tensor
    errors: Tensor
    spreads: Tensor

    @property
    def rows(self) -> int:
        return len(self.errors)


@torch.no_grad()
def fit(dictionary: Dictionary, activations: Tensor, targets: Tensor | None = None) -> Fit:
    """Measures a dictionary on activations it was not fitted on.

    Args:
        activations: ``[rows, d_in]``; leave out each prompt's first token, whose outlier would be most of the variance.
        targets: ``[rows, d_out]`` what should be reconstructed, where that is something else (a transcoder's output).

    Raises:
        MechlabError: fewer than two rows, or activations and targets that do not match.
    """
    wanted = activations if targets is None else targets
    if len(activations) < 2 or len(wanted) != len(activations):
        raise MechlabError(
            f"{len(activations)} activations and {len(wanted)} targets cannot be scored: give two rows or more of each, in pairs."
        )
    mean = wanted.double().mean(0)
    active = torch.zeros(dictionary.n_features, dtype=torch.double)
    errors, spreads = list[Tensor](), list[Tensor]()
    for rows in _slices(len(activations)):
        codes = dictionary.encode(activations[rows])
        decoded = dictionary.reconstruct(activations[rows], codes)
        errors.append((wanted[rows].double() - decoded.double().to(wanted.device)).pow(2).sum(1).cpu())
        spreads.append((wanted[rows].double() - mean).pow(2).sum(1).cpu())
        active += (codes != 0).double().sum(0).cpu()
    error, spread, share = torch.cat(errors), torch.cat(spreads), active / len(activations)
    return Fit(
        fvu=float(error.sum() / spread.sum()),
        l0=float(share.sum()),
        dead=float((share == 0).double().mean()),
        dense=float((share > DENSE).double().mean()),
        frequency=share,
        errors=error,
        spreads=spread,
    )


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE))


def effective_rank(codes: Tensor) -> float:
    """exp(entropy of the normalised eigenvalues of ``Z^T Z``) of codes ``[rows, n_features]``; 0 where all are zero.

    Roy and Vetterli 2007. The eigenvalues are those of ``Z Z^T`` too, so the smaller of the two is taken.
    """
    z = codes.double()
    gram = z @ z.T if z.shape[0] < z.shape[1] else z.T @ z
    eigenvalues = torch.linalg.eigvalsh(gram).clamp_min(0)
    if float(eigenvalues.sum()) == 0:
        return 0.0
    p = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(p).sum().exp())


def babel(directions: Tensor, r: int) -> float:
    """``mu_1(r)``: the largest sum of |cosines| of one direction with ``r`` others (or all, where there are fewer); 0 for one direction."""
    _check_r(r)
    unit = _unit(directions)
    if len(unit) < 2:
        return 0.0
    r = min(r, len(unit) - 1)
    largest = 0.0
    for start in range(0, len(unit), _ROWS_AT_ONCE):
        overlaps = (unit[start : start + _ROWS_AT_ONCE] @ unit.T).abs()
        here = torch.arange(len(overlaps))
        overlaps[here, here + start] = 0
        largest = max(largest, float(overlaps.topk(r, dim=1).values.sum(1).max()))
    return largest


@torch.no_grad()
def coactive_babel(dictionary: Dictionary, activations: Tensor, r: int) -> float:
    """``mu_1(r)`` of the atoms that an activation uses, mean over activations ``[rows, d_in]`` that use two or more; NaN if none does."""
    _check_r(r)
    unit, found = _unit(dictionary.directions), list[float]()
    for codes in dictionary.encode(activations):
        used = codes.nonzero().flatten()
        if len(used) > 1:
            found.append(babel(unit[used.to(unit.device)], r))
    return sum(found) / len(found) if found else math.nan


def _unit(directions: Tensor) -> Tensor:
    return torch.nn.functional.normalize(directions.detach().float(), dim=1)


def _check_r(r: int) -> None:
    if r < 1:
        raise MechlabError(f"The Babel function of {r} atoms is nothing: ask for 1 or more.")
