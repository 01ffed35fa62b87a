"""Matching pursuit: the code of an activation found greedily, one atom at a time (Mallat and Zhang 1993).

As the encoder of a dictionary: MP-SAE, Costa et al., arXiv 2506.03093.

With atoms D_i (rows of ``atoms``) and the residual r = x at first, every step does

1. j = argmax_i D_i·r        (signed: the largest, not the largest in size)
2. a = D_j·r                 (relu of it where codes must not be negative)
3. r := r - a D_j, and a is added to the code of feature j

until a stop rule holds. For atoms of norm 1, ||r||² falls by a² at each step, and r is orthogonal to the last atom.

Public encoders compute all D_i·r anew at every step: d p multiply-adds per row. Here they are updated instead,
D_i·r := D_i·r - a D_i·D_j, with the products D_i·D_j of all atoms (the Gram matrix) made once: p multiply-adds. The loops, and what keeps
them exact, are in ``matching_pursuit_loops``. Rows that have stopped cost nothing more; no array of rows x features outlives its block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.dictionaries.dictionary import SparseCodes
from mechlab.dictionaries.matching_pursuit_loops import Block, StopRules, block_rows, careful, fast
from mechlab.errors import MechlabError

__all__ = ["Pursuit", "matching_pursuit"]

# What updating one correlation costs, in multiply-adds of a matrix product (measured on a CPU: 0.6 ns beside 54 GFLOP/s).
_UPDATE_COST = 16
_GRAM_SHARE = 0.5  # of the free memory
_GRAM_BLOCK = 512  # atoms


@dataclass(frozen=True, eq=False)
class Pursuit:
    """Every step of every row.

    Attributes:
        picks: ``[rows, steps]`` int64, the atom chosen at each step; 0 after the row has stopped.
        values: ``[rows, steps]``, what was added to its code; 0 after the row has stopped.
        energies: ``[rows, steps + 1]``: squared norm of the residual before the first and after each step: the error against k of one run.
        n_features: atoms in the dictionary.
    """

    picks: Tensor
    values: Tensor
    energies: Tensor
    n_features: int

    def codes(self, steps: int | None = None) -> SparseCodes:
        """The codes after the first ``steps`` steps (None: all); an atom chosen twice is one feature with the sum of its values."""
        kept = slice(0, steps)
        return merged(SparseCodes(self.picks[:, kept], self.values[:, kept], self.n_features))


def merged(codes: SparseCodes) -> SparseCodes:
    """The same codes with each feature at most once in a row, by rising feature."""
    indices = codes.indices.masked_fill(codes.values == 0, codes.n_features)  # unused places go last
    ordered, order = indices.sort(dim=1, stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = starts.cumsum(1) - 1
    values = torch.zeros_like(codes.values).scatter_add(1, place, codes.values.gather(1, order))
    found = torch.full_like(ordered, codes.n_features).scatter(1, place, ordered)
    width = max(1, int((found < codes.n_features).sum(1).max())) if len(found) else 1
    found, values = found[:, :width], values[:, :width]
    return SparseCodes(torch.where(values != 0, found, 0), values, codes.n_features)


@torch.no_grad()
def matching_pursuit(
    activations: Tensor, atoms: Tensor, rules: StopRules | None = None, *, gram: Tensor | None = None
) -> Pursuit:
    """The pursuit of every row of ``activations`` ``[rows, d]`` in ``atoms`` ``[p, d]``.

    Args:
        activations: with the dictionary's bias already subtracted. Half precision is computed in single precision.
        atoms: of any norm; the formulas above are used as they stand (a trained dictionary's atoms need not have norm 1).
        rules: default: 32 steps.
        gram: ``gram_matrix(atoms)`` if it is at hand; otherwise it is made where it pays.

    Raises:
        MechlabError: widths that differ, or a value that is not finite.
    """
    rules = rules or StopRules()  # pyright: ignore[reportCallIssue]
    x, atoms = _checked(activations, atoms)
    steps = rules.steps or x.shape[1]
    if gram is None and gram_pays(len(x), steps, atoms):
        gram = gram_matrix(atoms)
    picks = torch.zeros(len(x), steps, dtype=torch.long, device=x.device)
    values, energies = x.new_zeros(len(x), steps), x.new_zeros(len(x), steps + 1)
    size = block_rows(atoms, by_gram=gram is not None)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        block = Block(x[rows], picks[rows], values[rows], energies[rows])
        left = torch.arange(len(block.x), device=x.device)
        if gram is not None and x.device.type == "cpu" and x.dtype == torch.float32:
            left = fast(block, atoms, gram, rules)
        careful(block, left, atoms, gram, rules)
    return Pursuit(picks, values, energies, len(atoms))


def gram_matrix(atoms: Tensor) -> Tensor:
    """``[p, p]`` inner products of all atoms. By blocks, so that each pair is computed once.

    Blocks fit the cache and are transposed before they are written to their mirrored place: a strided copy of large ones took a third of
    the whole.
    """
    p, size = len(atoms), _GRAM_BLOCK
    gram = atoms.new_empty(p, p)
    for start in range(0, p, size):
        block = slice(start, start + size)
        torch.mm(atoms[block], atoms[start:].T, out=gram[block, start:])
        for mirrored in range(start + size, p, size):
            rows = slice(mirrored, mirrored + size)
            gram[rows, block] = gram[block, rows].T.contiguous()
    return gram


def gram_pays(rows: int, steps: int, atoms: Tensor) -> bool:
    """Whether making the Gram matrix and updating by it is less work than new correlations at every step, and it fits into memory."""
    p, d = atoms.shape
    if p * p * atoms.element_size() > _GRAM_SHARE * _free_bytes(atoms.device):
        return False
    return p * p * d / 2 + rows * steps * p * _UPDATE_COST < rows * steps * p * d


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _checked(activations: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    if activations.ndim != 2 or activations.shape[1] != atoms.shape[1]:
        raise MechlabError(
            f"Activations of shape {list(activations.shape)} do not fit atoms of shape {list(atoms.shape)}: give [rows, {atoms.shape[1]}]."
        )
    dtype = torch.float64 if activations.dtype == torch.float64 else torch.float32
    x, atoms = activations.to(dtype), atoms.to(activations.device, dtype).contiguous()
    if not torch.isfinite(x).all():
        raise MechlabError("Activations hold a value that is not finite: leave those rows out.")
    return x, atoms
