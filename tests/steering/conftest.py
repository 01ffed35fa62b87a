"""A model in which a direction and its use are planted, and examples that differ by it."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from steering_toys import ANSWER, PAIRS
from torch import Tensor

from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.models.model import Model
from steering.examples import OTHER, WANTED, Examples

MARKED, PLAIN = range(20, 20 + PAIRS), range(60, 60 + PAIRS)


@dataclass(frozen=True, eq=False)
class PlantedDirection:
    """Marked tokens are plain ones plus ``early`` (and noise). Layer 1 turns ``early`` into ``late``; the answer's logit reads ``late``."""

    lens: Lens
    early: Tensor
    late: Tensor
    examples: Examples


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: on shared cores a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lens() -> Lens:
    return Lens(tiny("llama"))


@pytest.fixture(scope="session")
def planted() -> PlantedDirection:
    source = tiny("llama", seed=3)
    hf, d = source.hf, source.d_model
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    early, late = torch.linalg.qr(draw(d, 2)).Q.T
    off_plane = lambda x: x - (x @ early)[..., None] * early - (x @ late)[..., None] * late  # noqa: E731
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.post_attention_layernorm.weight.fill_(1.0)
        embed = hf.model.embed_tokens.weight
        embed.copy_(off_plane(draw(*embed.shape)))
        embed[list(MARKED)] = embed[list(PLAIN)] + 4 * early + 0.3 * draw(PAIRS, d)
        mlp = hf.model.layers[1].mlp  # neuron 0: silu(z) z, about z * z for z > 0
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight[0] = 2 * early
        mlp.down_proj.weight[:, 0] = late
        head = hf.lm_head.weight
        head.copy_(off_plane(draw(*head.shape)) * 0.3)
        head[ANSWER] = 3 * late
        hf.model.norm.weight.fill_(1.0)
    lens = Lens(Model("planted-direction", "planted", hf, source.tokenizer))
    start = torch.randint(100, 200, (PAIRS, 4), generator=generator).tolist()
    prompts = [[*ids, last] for last_of in (MARKED, PLAIN) for ids, last in zip(start, last_of, strict=True)]
    classes = (WANTED,) * PAIRS + (OTHER,) * PAIRS
    groups = tuple(str(i) for _ in range(2) for i in range(PAIRS))
    answers = torch.full((2 * PAIRS,), ANSWER)
    return PlantedDirection(
        lens, early, late, Examples("marked", lens.tokens(prompts), classes, WANTED, groups, answers)
    )
