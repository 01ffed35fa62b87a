"""How many units each sublayer gives to a circuit: in all exactly K, none below its floor, none above its cap.

The rest after the floors is shared out in proportion to causal influence, by largest remainders; what caps cut off goes, one by one, to the
sublayers with most influence that have room. Wang et al., arXiv 2510.11328, stage 7 (they hand that part out by rank of single units).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mechlab.errors import MechlabError

NEURON_SHARE, HEAD_SHARE = 392 / (28 * 8192), 168 / (28 * 24)
"""Of all neurons and of all heads, what the paper's circuits hold."""
NEURON_FLOOR, HEAD_FLOOR = 4 * 28 / 392, 2 * 28 / 168
"""Floors as shares of the mean per layer, as in the paper."""
CAP = 0.4


@dataclass(frozen=True)
class Budget:
    """Of one kind of unit: ``k`` in all, at least ``floor`` and at most ``cap`` in a layer."""

    k: int
    floor: int
    cap: int


def budget(n_layers: int, per_layer: int, share: float, floor_share: float) -> Budget:
    """The paper's budget scaled to a model: the same share of its units, the same share of that as floor and as cap.

    Every layer gives one unit at least. No layer gives more than it has.
    """
    k = max(n_layers, round(share * n_layers * per_layer))
    mean = k / n_layers
    return Budget(k, max(1, math.floor(floor_share * mean)), min(per_layer, max(math.ceil(mean), math.floor(CAP * k))))


def allocate(influence: Sequence[float], k: int, *, floor: int = 0, cap: int | None = None) -> list[int]:
    """Units per sublayer.

    Args:
        influence: of each sublayer; negative counts as 0, and where all are 0 they share alike.
        k: units in all. floor, cap: of each sublayer.

    Raises:
        MechlabError: floors above ``k`` or above the cap, caps that do not add up to ``k``, an influence that is no number.
    """
    n = len(influence)
    most = k if cap is None else cap
    if not n or not all(math.isfinite(x) for x in influence):
        raise MechlabError(f"Influence {list(influence)} cannot be shared out by: give one finite number per sublayer.")
    if floor < 0 or n * floor > k or floor > most or n * most < k:
        raise MechlabError(
            f"{k} units do not fit {n} sublayers of {floor} to {most} each: use {n * max(floor, 0)} to {n * most} units."
        )
    weights = [max(x, 0.0) for x in influence]
    weights = weights if sum(weights) > 0 else [1.0] * n
    rest, total = k - n * floor, sum(weights)
    shares = [rest * w / total for w in weights]
    given = [math.floor(share) for share in shares]
    by_remainder = sorted(range(n), key=lambda i: (given[i] - shares[i], i))
    for i in by_remainder[: rest - sum(given)]:
        given[i] += 1
    counts = [min(floor + extra, most) for extra in given]
    _backfill(counts, k, most, sorted(range(n), key=lambda i: (-weights[i], i)))
    return counts


def _backfill(counts: list[int], k: int, cap: int, order: Sequence[int]) -> None:
    """Adds what is missing to ``counts``, one per sublayer and round."""
    missing = k - sum(counts)
    while missing > 0:
        for i in order:
            if missing > 0 and counts[i] < cap:
                counts[i] += 1
                missing -= 1
