"""Small models trained on the spot, with checkpoints: characters of English, a few seconds each; a run that was stopped goes on.

After each checkpoint the weights, the optimizer's state and the ratios so far are written to a folder and renamed into place, so a stopped
run loses at most the steps since. Batches are drawn from the seed and the step alone: a run that was stopped gives the same numbers as one
that was not.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechlab.analyses.checkpoints import Trace, ratios
from mechlab.lens.lens import Lens
from mechlab.models.keeping import home, keep, kept, moments_of, put_back, unreadable
from mechlab.models.model import Model
from mechlab.models.twin import fresh
from mechlab.models.words import SPECIAL, word_tokenizer
from mechlab.results.study import Progress

_MEASURED = 10
"""Prompts behind each ratio, as in the paper."""
_RATE, _WARMUP, _BETAS = 2e-3, 20, (0.9, 0.95)


@dataclass(frozen=True)
class Recipe:
    """One small Llama and its training.

    Attributes:
        n_layers, d_model, n_heads: its architecture.
        steps, batch, length: optimizer steps; prompts and characters in a batch.
        n_checkpoints: at steps that grow by a constant factor, with step 0 first.
        n_characters: the commonest of the text; others count as unknown.
    """

    n_layers: int
    d_model: int
    n_heads: int
    steps: int = 400
    batch: int = 16
    length: int = 64
    n_checkpoints: int = 30
    n_characters: int = 80
    seed: int = 0

    @property
    def name(self) -> str:
        """``small-4x48``: layers and width."""
        return f"small-{self.n_layers}x{self.d_model}"

    @property
    def checkpoints(self) -> list[int]:
        """Steps after which the model is measured: 0, then growing by a constant factor (by 1 where that is less)."""
        wanted = np.geomspace(1, self.steps, self.n_checkpoints - 1)
        found = [0]
        for step in wanted:
            found.append(max(round(float(step)), found[-1] + 1))
        return [step for step in found if step <= self.steps]


def train(recipe: Recipe, text: str, folder: Path, progress: Progress) -> Trace:
    """Trains, or goes on, or only reads what is finished; the folder's contents are of this recipe and text alone.

    Raises:
        StoreError: a folder whose state cannot be read.
    """
    ids = _encoded(text, recipe)
    at = home(folder, recipe, text)
    model = _fresh(recipe, text)
    optimizer = torch.optim.AdamW(model.hf.parameters(), lr=_RATE, betas=_BETAS, weight_decay=0.1)
    done, found = _resumed(at, model, optimizer)
    held_out, body = ids[: _MEASURED * recipe.length], ids[_MEASURED * recipe.length :]
    prompts = held_out.reshape(_MEASURED, recipe.length).tolist()
    lens, last = Lens(model), recipe.checkpoints[-1]
    if not found:
        found.append(ratios(lens, prompts).tolist())
    for step in range(done, last):
        _step(recipe, model, optimizer, body, step)
        if step + 1 in recipe.checkpoints:
            found.append(ratios(lens, prompts).tolist())
            weights, moments = dict(model.hf.named_parameters()), moments_of(optimizer, _names(model))
            keep(at, step + 1, weights, moments, found, finished=step + 1 == last)
        progress(f"training {recipe.name}", step + 1, last)
    return Trace(
        recipe.name, np.array(recipe.checkpoints, dtype=np.float64), np.array(found), recipe.d_model, recipe.n_heads
    )


def _characters(text: str, recipe: Recipe) -> list[str]:
    counts = Counter(text)
    return [char for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: recipe.n_characters]]


def _encoded(text: str, recipe: Recipe) -> Tensor:
    """``[characters]`` ids: as ``words.word_tokenizer`` numbers its words."""
    numbers = {char: len(SPECIAL) + at for at, char in enumerate(_characters(text, recipe))}
    return torch.tensor([numbers.get(char, SPECIAL.index("<unk>")) for char in text])


def _fresh(recipe: Recipe, text: str) -> Model:
    from transformers import LlamaConfig

    characters = _characters(text, recipe)
    config = LlamaConfig(
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        hidden_size=recipe.d_model,
        intermediate_size=3 * recipe.d_model,
        max_position_embeddings=recipe.length,
        vocab_size=len(SPECIAL) + len(characters),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        architectures=["LlamaForCausalLM"],
    )
    hf = fresh(config, torch.float32, recipe.seed)
    return Model(recipe.name, "trained here", hf, word_tokenizer(characters))


def _step(recipe: Recipe, model: Model, optimizer: torch.optim.Optimizer, ids: Tensor, step: int) -> None:
    """One optimizer step; the model is without gradients and in eval mode again afterwards."""
    generator = np.random.default_rng([recipe.seed, step])
    starts = generator.integers(len(ids) - recipe.length - 1, size=recipe.batch)
    batch = torch.stack([ids[start : start + recipe.length + 1] for start in starts])
    for group in optimizer.param_groups:
        group["lr"] = _RATE * min(1.0, (step + 1) / _WARMUP)
    model.hf.requires_grad_(True)
    logits: Any = model.hf(input_ids=batch[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.hf.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    model.hf.requires_grad_(False)


def _resumed(at: Path, model: Model, optimizer: torch.optim.Optimizer) -> tuple[int, list[list[float]]]:
    """Step and ratios of what is in the folder, put into the model and optimizer; 0 and nothing for an empty one."""
    found = kept(at)
    if found is None:
        return 0, []
    try:
        for name, parameter in model.hf.named_parameters():
            parameter.copy_(found.weights[name])
            if set(found.moments[name]) != {"step", "exp_avg", "exp_avg_sq"}:
                raise KeyError(name)
    except (KeyError, RuntimeError) as error:
        raise unreadable(at, error) from error
    put_back(found, optimizer, _names(model))
    return found.step, found.curves


def _names(model: Model) -> list[str]:
    return [name for name, _ in model.hf.named_parameters()]
