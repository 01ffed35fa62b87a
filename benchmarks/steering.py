"""What steering costs in generation: seconds per token with and without it, in turns, medians.

    python -m benchmarks.steering [--model NAME] [--rounds 9] [--tokens 24]

Plain and steered generation take turns, so that a busy machine slows both alike. The limit is 1.15 times plain.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import load
from mechlab.models.default import DEFAULT_MODEL
from steering.application import Rule, steer
from steering.vector import SteeringVector, VectorOrigin

PROMPT = "The old house at the end of the street had been empty for years, until one day"


def ways(lens: Lens) -> dict[str, list[Edit]]:
    """Name -> edits: one layer, ten layers, and the costlier rules at one layer."""
    n, d = lens.model.n_layers, lens.model.d_model
    middle = n // 2
    ten = range(max(0, middle - 5), min(n, middle + 5))
    vector = lambda layers: _vector(lens, layers, d)  # noqa: E731
    one = vector([middle])
    return {
        "plain": [],
        "add, one layer": steer(lens.model, one, 1.0),
        "add x RMS, ten layers": steer(lens.model, vector(ten), 0.1, Rule(unit="rms")),
        "adaptive, one layer": steer(lens.model, one, 1.0, Rule(how="adaptive")),
        "add behind a gate, one layer": steer(lens.model, one, 1.0, gate=one),
        "project, one layer": steer(lens.model, one, 1.0, Rule(how="project")),
    }


def _vector(lens: Lens, layers: "range | list[int]", d: int) -> SteeringVector:
    generator = torch.Generator().manual_seed(0)
    origin = VectorOrigin(model=lens.model.name, fingerprint=lens.model.fingerprint, method="random")
    return SteeringVector({Site("resid_post", i): torch.randn(d, generator=generator) for i in layers}, origin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lens = Lens(load(asked.model))
    edits = ways(lens)
    seconds: dict[str, list[float]] = {name: [] for name in edits}
    for turn in range(asked.rounds + 1):
        for name, given in edits.items():
            started = time.perf_counter()
            lens.generate(PROMPT, asked.tokens, given, stop_at_eos=False)
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - started) / asked.tokens)
    plain = seconds["plain"]
    print(f"{asked.model}, {asked.tokens} tokens, median of {asked.rounds} rounds in turns, one thread")
    print(f"{'':32} ms/token  x plain (median of the rounds' ratios)")
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, plain, strict=True))
        print(f"{name:32} {1000 * statistics.median(found):8.1f}  {ratio:.3f}")


if __name__ == "__main__":
    main()
