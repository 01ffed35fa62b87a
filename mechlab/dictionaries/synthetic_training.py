"""Small autoencoders for the synthetic hierarchy, trained as its authors trained them. Those of a model's activations go through sae-lens.

sae-lens's trainer runs one model at a time, and a step of a 20 x 20 model is all overhead. Here many models (settings x seeds) are one
batch of matrices, so that medians over seeds cost little more than one run. Recipe of Costa et al. (arXiv 2506.03093, code): 20 latents,
batches of 200, Adam with betas (0.5, 0.9375), 100 steps of warm-up, a last fifth that decays to a tenth, gradients clipped to norm 1 in
each model, squared error summed over dimensions.

- ``matching_pursuit``: learning rate 3e-2, atoms of norm 1 at first and free afterwards (re-normalising them at every step finds other
  atoms), pursuit until the support is stable or the residual is below ``threshold``.
- ``relu``: L1 on the codes; its weight rises or falls until 1.36 codes are active on average.
- ``matryoshka``: the same, and the loss is the mean over five nested prefixes (Pareto 0.5) of latents sorted by their mean square.
- ``batchtopk``: the largest 3 codes per sample on average for 1,000 steps, then 1.36; the running smallest one is the threshold
  afterwards.
The last three learn at 3e-3: at 3e-2 they do worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.dictionaries.matching_pursuit import StopRules
from mechlab.dictionaries.matching_pursuit_dictionary import MpDictionary
from mechlab.dictionaries.synthetic import MEAN_L0, N_FEATURES, Magnitudes, many_codes
from mechlab.results.study import Progress

Method = Literal["matching_pursuit", "relu", "matryoshka", "batchtopk"]
BATCH, WARM_UP, DECAY, LAST = 200, 100, 0.2, 0.1
_TOLD_EVERY = 100  # steps
MOST_STEPS = 8  # of a pursuit; the authors' runs have no limit, and stop far earlier
_L1_START, _L1_STEP, _L1_WARM_UP = 0.1, 3e-4, 0.2
_PREFIXES, _PARETO = 5, 0.5
_WIDE_L0, _WIDE_STEPS = 3.0, 1000


@dataclass(frozen=True, eq=False)
class Run:
    """One model to train: its data and its seed."""

    directions: Tensor
    magnitudes: Magnitudes
    seed: int


class ReluDictionary(Dictionary):
    """codes = relu(x W_enc + b_enc), those at or below ``threshold`` set to zero; ``atoms`` ``[p, d]`` decode them."""

    def __init__(
        self, origin: DictionaryOrigin, encoder: Tensor, bias: Tensor, atoms: Tensor, threshold: float
    ) -> None:
        super().__init__(origin)
        self._encoder, self._bias, self._atoms, self.threshold = encoder, bias, atoms, threshold

    @property
    def directions(self) -> Tensor:
        return self._atoms

    def encode(self, activations: Tensor) -> Tensor:
        found = (activations @ self._encoder + self._bias).relu()
        return found * (found > self.threshold)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self._atoms


def train_toys(
    method: Method,
    runs: Sequence[Run],
    *,
    steps: int = 6000,
    threshold: float = 0.05,
    progress: Progress | None = None,
) -> list[Dictionary]:
    """One dictionary per run, in their order.

    Args:
        threshold: of the residual, for matching pursuit.
    """
    model = _Pursuits(runs, threshold) if method == "matching_pursuit" else _Autoencoders(runs, method, steps)
    generator, magnitudes = torch.Generator().manual_seed(runs[0].seed), [run.magnitudes for run in runs]
    true = torch.stack([run.directions for run in runs]).float()
    optimiser = torch.optim.Adam(model.parameters, lr=model.rate, betas=(0.5, 0.9375))
    for step in range(steps):
        drawn = many_codes(BATCH, magnitudes, generator)
        for group in optimiser.param_groups:
            group["lr"] = model.rate * _schedule(step, steps)
        loss = model.loss(drawn @ true, step)
        optimiser.zero_grad()
        loss.sum().backward()
        _clip(model.parameters)
        optimiser.step()
        if progress is not None and (step + 1) % _TOLD_EVERY == 0:
            progress(f"training toys, {method}", step + 1, steps)
    return model.dictionaries()


def _schedule(step: int, steps: int) -> float:
    """Warm-up, stable, decay (linear, to ``LAST``)."""
    left = (steps - step) / (DECAY * steps)
    return min(1.0, (step + 1) / WARM_UP) * (1.0 if left >= 1 else LAST + (1 - LAST) * left)


def _clip(parameters: Sequence[Tensor]) -> None:
    """Gradients of norm 1 at most, in each model."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
    scale = torch.as_tensor(norms).sqrt().clamp_min(1.0).reciprocal()
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _normal(runs: Sequence[Run], *shape: int) -> Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(run.seed + 10_000)) for run in runs])


def _origin(method: str, run: Run) -> DictionaryOrigin:
    settings = {"magnitudes": run.magnitudes.model_dump()}
    return DictionaryOrigin(method=method, model="synthetic", site="embed", seed=run.seed, settings=settings)


class _Pursuits:
    """Matching pursuit of all models at once; gradients go through the values, not through the choices."""

    rate = 3e-2

    def __init__(self, runs: Sequence[Run], threshold: float) -> None:
        self.runs, self.threshold = runs, threshold
        d = runs[0].directions.shape[1]
        self.atoms = torch.nn.functional.normalize(_normal(runs, N_FEATURES, d), dim=2).requires_grad_()
        self.parameters = [self.atoms]

    def loss(self, x: Tensor, step: int) -> Tensor:  # noqa: ARG002
        """``[models]``. Rows that stop leave ``r``; ``whole`` has every row's residual, for the choices."""
        models, batch, d = x.shape
        atoms, r = self.atoms.flatten(0, 1), x.reshape(-1, d)
        whole, rows = r.clone(), torch.arange(len(r))
        used = torch.zeros(len(r), N_FEATURES, dtype=torch.bool)
        loss = x.new_zeros(models)
        for pursuit_step in range(MOST_STEPS):
            with torch.no_grad():
                best = (whole.view(models, batch, d) @ self.atoms.mT).argmax(2).flatten()[rows]
            atom = atoms[(rows // batch) * N_FEATURES + best]
            value = (r * atom).sum(1).relu()
            r = r - value[:, None] * atom
            energies = r.square().sum(1)
            with torch.no_grad():
                going = (value > 0) & ~used[rows, best] & (energies >= self.threshold**2)
                going &= pursuit_step + 1 < MOST_STEPS
                used[rows, best] = True
            loss = loss.index_add(0, rows[~going] // batch, energies[~going])
            r, rows = r[going], rows[going]
            if not len(rows):
                break
            whole[rows] = r.detach()
        return loss / batch

    def dictionaries(self) -> list[Dictionary]:
        rules = StopRules(steps=MOST_STEPS, residual_threshold=self.threshold, stop_on_duplicate=True)
        return [
            MpDictionary(_origin("matching_pursuit", run), atoms, rules=rules)
            for run, atoms in zip(self.runs, self.atoms.detach(), strict=True)
        ]


class _Autoencoders:
    """ReLU autoencoders of all models at once."""

    rate = 3e-3

    def __init__(self, runs: Sequence[Run], method: Method, steps: int) -> None:
        self.runs, self.method, self.steps = runs, method, steps
        d = runs[0].directions.shape[1]
        encoder = _normal(runs, d, N_FEATURES) / d**0.5
        self.atoms = (0.1 * torch.nn.functional.normalize(encoder.mT, dim=2)).requires_grad_()
        self.encoder, self.bias = encoder.requires_grad_(), torch.zeros(len(runs), 1, N_FEATURES).requires_grad_()
        self.parameters = [self.encoder, self.bias, self.atoms]
        self.l1, self.threshold = torch.full((len(runs),), _L1_START), torch.zeros(len(runs))
        self.power = torch.zeros(len(runs), N_FEATURES)
        self.prefixes = torch.Generator().manual_seed(0)

    def loss(self, x: Tensor, step: int) -> Tensor:
        z = (x @ self.encoder + self.bias).relu()
        if self.method == "batchtopk":
            return (x - self._largest(z, step) @ self.atoms).square().sum(2).mean(1)
        error = self._nested(x, z) if self.method == "matryoshka" else (x - z @ self.atoms).square().sum(2).mean(1)
        penalty = (z * torch.linalg.vector_norm(self.atoms, dim=2)[:, None]).sum(2).mean(1)
        with torch.no_grad():
            self.l1 += _L1_STEP * ((z > 0).float().sum(2).mean(1) - MEAN_L0).sign()
            self.l1.clamp_min_(0)
        return error + self.l1 * min(1.0, step / (_L1_WARM_UP * self.steps)) * penalty

    def _largest(self, z: Tensor, step: int) -> Tensor:
        """The batch's largest codes; the smallest of them, as a running mean, is the threshold of single samples."""
        kept = round((_WIDE_L0 if step < _WIDE_STEPS else MEAN_L0) * BATCH)
        with torch.no_grad():
            smallest = z.flatten(1).topk(kept, dim=1).values[:, -1]
            self.threshold = 0.9 * self.threshold + 0.1 * smallest
        return z * (z >= smallest[:, None, None])

    def _nested(self, x: Tensor, z: Tensor) -> Tensor:
        """Mean error over prefixes of the latents, the strongest first; the last prefix is all of them."""
        with torch.no_grad():
            self.power = 0.99 * self.power + 0.01 * z.square().mean(1)
            rank = self.power.argsort(1, descending=True).argsort(1)
            drawn = torch.rand(_PREFIXES - 1, generator=self.prefixes)
            # inverse of the Pareto distribution function, cut at the number of latents
            lengths = (1 - drawn * (1 - N_FEATURES**-_PARETO)).pow(-1 / _PARETO).long().clamp(1, N_FEATURES).tolist()
        errors = [
            (x - (z * (rank < length)[:, None]) @ self.atoms).square().sum(2).mean(1)
            for length in (*lengths, N_FEATURES)
        ]
        return torch.stack(errors).mean(0)

    def dictionaries(self) -> list[Dictionary]:
        parts = zip(self.runs, self.encoder.detach(), self.bias.detach(), self.atoms.detach(), strict=True)
        return [
            ReluDictionary(_origin(self.method, run), encoder, bias[0], atoms, float(self.threshold[i]))
            for i, (run, encoder, bias, atoms) in enumerate(parts)
        ]
