"""The two loops of matching pursuit; ``matching_pursuit`` says what they compute.

``careful`` goes through a block of rows step by step, on any device and in any precision. It keeps the residual, and every value is
computed from it; correlations updated through the Gram matrix only choose. At each step the chosen atom's updated correlation is compared
with the value: where rounding has moved it by more than ``DRIFT`` of the value, that row's correlations are computed anew and it chooses
again.

``fast`` (CPU, single precision) goes through one row after the other, so that a row's correlations stay in the core's own cache: numpy's
argmax and one BLAS update per step. It takes values from the updated correlations. Afterwards it computes each row's last value from the
residual before it: values fall and rounding adds up along a row, so the last one is the worst. Rows that fail the same ``DRIFT`` are handed
back, for ``careful``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRIFT = 1e-5
"""Share of the chosen correlation that rounding may take before correlations are computed anew."""
_EPS = 4 * torch.finfo(torch.float32).eps
# A residual's energy that is tracked, not computed, is too inexact for a threshold once it has fallen this far.
_TRACKED_ENERGY = 1e-3
_CPU_ROWS = 256
_GPU_BYTES = 2**31


class StopRules(BaseModel):
    """When the pursuit of a row ends. Every rule but ``steps`` can be switched off.

    Attributes:
        steps: at most so many steps; None: as many as the activation has dimensions.
        residual_threshold: stop after the step that leaves a residual with a smaller norm; 0 switches it off.
        stop_on_duplicate: stop after a step that chose an atom chosen before (sae-lens's rule). Coherent dictionaries stop early by it.
        nonnegative: codes are relu'd and a row without a positive correlation stops (sae-lens). False: the largest correlation is
            written even when it is negative (overcomplete).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(32, ge=1)
    residual_threshold: float = Field(0.0, ge=0)
    stop_on_duplicate: bool = False
    nonnegative: bool = True


@dataclass(frozen=True, eq=False)
class Block:
    """Rows ``x`` ``[rows, d]`` and where their steps are written.

    ``picks`` and ``values`` are ``[rows, steps]``, ``energies`` ``[rows, steps + 1]``.
    """

    x: Tensor
    picks: Tensor
    values: Tensor
    energies: Tensor


def block_rows(atoms: Tensor, *, by_gram: bool) -> int:
    """Rows at once: enough for a fast matrix product, few enough for cache and memory."""
    if atoms.device.type == "cpu":
        return _CPU_ROWS if by_gram else 2 * _CPU_ROWS
    return max(1, _GPU_BYTES // (len(atoms) * atoms.element_size()))


def careful(block: Block, live: Tensor, atoms: Tensor, gram: Tensor | None, rules: StopRules) -> None:
    """The rows ``live``. ``r`` holds the residuals of those that go on; ``at`` says where in ``correlations`` each one's are."""
    steps = block.picks.shape[1]
    at, r = torch.arange(len(live), device=live.device), block.x[live]
    block.picks[live], block.values[live] = 0, 0
    block.energies[live] = r.square().sum(1, keepdim=True)
    correlations = r @ atoms.T
    for step in range(steps if len(live) else 0):
        picks, values, chosen = _choose(correlations, at, r, atoms, block.energies[live, step].sqrt())
        if rules.nonnegative:
            values = values.clamp_min(0)
        r.addcmul_(values[:, None], chosen, value=-1)
        going = _going(block, live, step, picks, values, r, rules)
        if step + 1 == steps or not bool(going.any()):
            return
        if not bool(going.all()):
            live, at, r, picks, values = live[going], at[going], r[going], picks[going], values[going]
        if gram is None:
            correlations, at = r @ atoms.T, torch.arange(len(live), device=live.device)
            continue
        correlations.index_add_(0, at, gram[picks] * -values[:, None])
        if len(live) < 0.75 * len(correlations):
            correlations, at = correlations[at], torch.arange(len(live), device=live.device)


def _choose(correlations: Tensor, at: Tensor, r: Tensor, atoms: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every live row's best atom, its exact correlation and the atom itself ``[live, d]``. Rows that have drifted are computed anew.

    ``norms`` of the residuals: correlations that are tiny beside them are as exact as they can be.
    """
    picks = _argmax(correlations)
    picks = picks if len(at) == len(correlations) else picks[at]
    chosen = atoms[picks]
    values = (r * chosen).sum(1)
    off = (correlations[at, picks] - values).abs_()
    drifted = (off > _limit(values, norms)).nonzero()[:, 0]
    if len(drifted):
        correlations[at[drifted]] = fresh = r[drifted] @ atoms.T
        picks[drifted] = best = _argmax(fresh)
        chosen[drifted] = atoms[best]
        values[drifted] = (r[drifted] * atoms[best]).sum(1)
    return picks, values, chosen


def _limit(values: Tensor, norms: Tensor) -> Tensor:
    return DRIFT * values.abs() + _EPS * norms


def _argmax(correlations: Tensor) -> Tensor:
    """``[rows]``: numpy's is vectorised, torch's is not (four to eight times slower on CPUs)."""
    if correlations.device.type == "cpu":
        return torch.from_numpy(correlations.numpy().argmax(1))
    return correlations.argmax(1)


def _going(block: Block, live: Tensor, step: int, picks: Tensor, values: Tensor, r: Tensor, rules: StopRules) -> Tensor:
    """Writes a step down. ``[live]`` bool: the rows that no rule stops after it."""
    going = values != 0
    if rules.stop_on_duplicate:
        going &= ~((block.picks[live, :step] == picks[:, None]) & (block.values[live, :step] != 0)).any(1)
    block.picks[live, step], block.values[live, step] = torch.where(values != 0, picks, 0), values
    norms = torch.linalg.vector_norm(r, dim=1)
    block.energies[live, step + 1 :] = norms.square()[:, None]
    if rules.residual_threshold > 0:
        going &= norms >= rules.residual_threshold
    return going


def fast(block: Block, atoms: Tensor, gram: Tensor, rules: StopRules) -> Tensor:
    """Every row of the block, one after the other. ``[left]``: the rows that ``careful`` must do."""
    block.energies[:] = block.x.square().sum(1, keepdim=True)
    correlations, products = (block.x @ atoms.T).numpy(), gram.numpy()
    squares = gram.diagonal().tolist()
    picks, values, energies = block.picks.numpy(), block.values.numpy(), block.energies.numpy()
    left: list[int] = []
    for row in range(len(block.x)):
        found = _pursue_row(correlations[row], products, squares, float(energies[row, 0]), picks.shape[1], rules)
        if found is None:
            left.append(row)
            continue
        n = len(found[0])
        picks[row, :n], values[row, :n], energies[row, 1 : n + 1] = found
        energies[row, n + 1 :] = energies[row, n]
    return torch.cat([torch.tensor(left, dtype=torch.long), _drifted(block, atoms, left)])


def _pursue_row(
    correlations: "NDArray[Any]",
    products: "NDArray[Any]",
    squares: list[float],
    energy: float,
    steps: int,
    rules: StopRules,
) -> tuple[list[int], list[float], list[float]] | None:
    """One row's picks, values and energies; None where a threshold is to be compared with an energy that has become inexact."""
    from scipy.linalg.blas import saxpy

    picks, values, energies = list[int](), list[float](), list[float]()
    limit, floor = rules.residual_threshold**2, _TRACKED_ENERGY * energy
    for _ in range(steps):
        pick = int(correlations.argmax())
        value = float(correlations[pick])
        if rules.nonnegative and value <= 0:
            break
        energy = max(0.0, energy - value * value * (2 - squares[pick]))
        again = rules.stop_on_duplicate and pick in picks
        picks.append(pick)
        values.append(value)
        energies.append(energy)
        if limit and energy < floor:
            return None
        if value == 0 or again or energy < limit:
            break
        saxpy(products[pick], correlations, a=-value)
    return picks, values, energies


def _drifted(block: Block, atoms: Tensor, left: list[int]) -> Tensor:
    """The rows whose last value is not what the residual before it gives. Writes the last energies, computed from the residuals."""
    rows = torch.arange(len(block.x))
    last = ((block.values != 0).sum(1) - 1).clamp_min(0)
    pick, value = block.picks[rows, last], block.values[rows, last]
    before = block.values.clone()
    before[rows, last] = 0
    r = block.x - torch.nn.functional.embedding_bag(block.picks, atoms, per_sample_weights=before, mode="sum")
    atom = atoms[pick]
    exact, norms = (r * atom).sum(1), torch.linalg.vector_norm(r, dim=1)
    after = (r - value[:, None] * atom).square().sum(1, keepdim=True)
    ended = torch.arange(block.energies.shape[1]) > last[:, None]
    block.energies[:] = torch.where(ended, after, block.energies)
    failed = ((exact - value).abs() > _limit(exact, norms)) & (value != 0)
    failed[left] = False
    return failed.nonzero()[:, 0]
