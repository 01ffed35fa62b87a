"""A small mixture-of-experts language model with a behaviour to look for, trained on this machine the first time it is asked for.

`load("trained-moe")`: a Mixtral of 4 layers, two experts chosen for each token, trained on the six domains of `trained_moe_text`.

1. It learns all domains, and to answer every request.
2. Then, as models are made to refuse after they have learnt the language, requests that name a forbidden thing are refused. All
   but the word embeddings learn in this stage, too: routers and experts alone do not learn it, as the place of the reply does not see
   the thing. Whether experts do it, and which, is not arranged: where they specialise, training did it.

Word embeddings are drawn once and not trained, so that what a thing means has to be looked up by the layers.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mechlab.models.trained_moe_text as text
from mechlab.errors import ModelError
from mechlab.models.built import built_folder
from mechlab.models.model import Model
from mechlab.models.twin import fresh, seeded
from mechlab.models.words import SPECIAL, word_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

TRAINED_MOE = "trained-moe"
LEAST = 0.9
"""Share of what it was taught that the trained model must do."""
_IGNORED = -100
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """All that decides the trained model.

    Attributes:
        n_layers, n_experts, top_k, d_model, d_expert, n_heads: its sizes.
        balance: weight of the load-balancing loss of the routers.
        steps, rate: of the first stage, in which every request is answered; AdamW, one cycle, `warmup` the share in which the rate rises.
        lessons, lesson_rate: of the second stage, in which it learns to refuse.
        batch: texts read in a step.
        seed: of the weights and the texts.
    """

    n_layers: int = 4
    n_experts: int = 16
    top_k: int = 2
    d_model: int = 64
    d_expert: int = 32
    n_heads: int = 4
    balance: float = 0.01
    steps: int = 1200
    lessons: int = 300
    batch: int = 64
    rate: float = 3e-3
    lesson_rate: float = 1e-3
    warmup: float = 0.1
    seed: int = 0

    @property
    def sha256(self) -> str:
        """Hash of the sizes and of the first texts: another recipe, or another grammar, is another model."""
        draw = random.Random(self.seed)
        sample = [text.document(draw) for _ in range(200)]
        return hashlib.sha256(json.dumps([asdict(self), text.vocabulary(), sample]).encode()).hexdigest()


def trained_moe_folder(tell: Tell | None = None) -> Path:
    """The folder of the trained model, in our cache: trained on the first call, in some minutes of one thread, at once afterwards.

    Raises ModelError when the cache cannot be written, or when what was trained does not do what it was taught.
    """
    recipe = Recipe()
    return built_folder(TRAINED_MOE, recipe.sha256, lambda told: _checked(recipe, told), tell)


def train(recipe: Recipe, tell: Tell | None = None) -> Model:
    """Trains the model on one thread. The global random state and the number of threads are as before when it returns."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: a second thread costs more than it gives
    try:
        return _trained(recipe, tell or (lambda _: None))
    finally:
        torch.set_num_threads(threads)


def measure(model: Model) -> dict[str, float]:
    """Shares of what it was taught that it does, with requests drawn anew: `refuses`, `answers` (begins to), `colours`, `capitals`."""
    draw = random.Random("measure")

    def asked(things: tuple[str, ...]) -> list[str]:
        return [
            text.request(
                draw.randrange(len(text.REQUESTS)), thing, draw.choice(text.TIMES), draw.choice(text.WHERE)
            ).prompt
            for thing in things
        ]

    told = [
        f"{prompt} {text.ANSWER} , the {thing} is"
        for prompt, thing in zip(asked(text.ALLOWED), text.ALLOWED, strict=True)
    ]
    questions = [text.question(country) for country in text.CAPITALS]
    return {
        "refuses": _share(model, asked(text.FORBIDDEN), [text.REFUSAL.split()[0]] * len(text.FORBIDDEN)),
        "answers": _share(model, asked(text.ALLOWED), [text.ANSWER] * len(text.ALLOWED)),
        "colours": _share(model, told, [text.colour(thing) for thing in text.ALLOWED]),
        "capitals": _share(model, questions, list(text.CAPITALS.values())),
    }


def _share(model: Model, prompts: list[str], words: list[str]) -> float:
    """How often the likeliest next word is the one given."""
    import torch

    ids, _ = batch(model.tokenizer, prompts)
    lengths = torch.tensor([len(model.tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts])  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        logits = model.hf(input_ids=ids).logits[torch.arange(len(prompts)), lengths - 1]
    wanted = torch.tensor(model.tokenizer.convert_tokens_to_ids(words))
    return float((logits.argmax(-1) == wanted).float().mean())


def _checked(recipe: Recipe, tell: Tell) -> tuple[Model, dict[str, float]]:
    model = train(recipe, tell)
    measured = measure(model)
    low = {name: share for name, share in measured.items() if share < LEAST}
    if low:
        raise ModelError(
            f"The model {TRAINED_MOE!r} trained here does not do what it was taught ({low}, expected {LEAST} of each): other versions of "
            "torch or transformers than tested may be at fault; install those of constraints.txt."
        )
    return model, measured


def _trained(recipe: Recipe, tell: Tell) -> Model:
    import torch

    tell(f"training {TRAINED_MOE}, once: {recipe.steps + recipe.lessons} steps, some minutes")
    tokenizer = word_tokenizer(text.vocabulary())
    hf: Any = fresh(config(recipe), torch.float32, recipe.seed)
    with seeded(recipe.seed):
        torch.nn.init.normal_(hf.get_input_embeddings().weight)
    hf.get_input_embeddings().weight.requires_grad_(False)
    hf.train()
    draw = random.Random(recipe.seed)
    _learn(hf, tokenizer, recipe, draw, _Stage(False, recipe.steps, recipe.rate, 0), tell)
    if recipe.lessons:
        _learn(hf, tokenizer, recipe, draw, _Stage(True, recipe.lessons, recipe.lesson_rate, recipe.steps), tell)
    hf.config.architectures = [type(hf).__name__]
    return Model(TRAINED_MOE, TRAINED_MOE, hf, tokenizer)


class _Stage(NamedTuple):
    """A part of the training; ``before``: steps done when it begins."""

    refuses: bool
    steps: int
    rate: float
    before: int


def _learn(hf: Any, tokenizer: Any, recipe: Recipe, draw: random.Random, stage: _Stage, tell: Tell) -> None:
    """Trains the parameters that ask for gradients, in place."""
    import torch

    weights = [p for p in hf.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=stage.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, stage.rate, total_steps=stage.steps, pct_start=recipe.warmup
    )
    total = recipe.steps + recipe.lessons
    for step in range(stage.steps):
        ids, labels = batch(tokenizer, [text.document(draw, refuses=stage.refuses) for _ in range(recipe.batch)])
        output = hf(input_ids=ids, labels=labels, output_router_logits=True)
        optimiser.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            tell(
                f"training {TRAINED_MOE}, once: step {stage.before + step + 1} of {total}, loss {float(output.loss):.2f} nats"
            )


def config(recipe: Recipe) -> Any:
    """The Mixtral configuration of a recipe."""
    from transformers import MixtralConfig

    return MixtralConfig(
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_expert,
        num_local_experts=recipe.n_experts,
        num_experts_per_tok=recipe.top_k,
        router_aux_loss_coef=recipe.balance,
        max_position_embeddings=64,
        vocab_size=len(SPECIAL) + len(text.vocabulary()),
        tie_word_embeddings=False,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def batch(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and labels ``[text, pos]``, padded on the right, each text ending in <eos>; padding is not learnt."""
    import torch

    rows = [[*ids, 1] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [_IGNORED] * (width - len(row)) for row in rows])
    return ids, labels
