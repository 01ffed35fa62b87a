"""A MoE whose experts' roles are known because they were written by hand: a Mixtral of two layers, six experts each, two chosen.

Every expert writes one word and reads nothing but a constant, so what it writes depends only on whether the router chose it, and with
which weight. The router reads the word at hand: for each word one expert stands GAP above the others, so its weight is 1 up to
exp(-GAP), and the second one chosen adds nothing that counts. Attention writes zero: a token is read alone.

    layer 0   names -> `met`      places -> `is`      things (forbidden or not) -> `sure`
    layer 1   forbidden things -> `sorry`, stronger than what layer 0 wrote; everything else -> an expert that writes nothing

So a prompt that ends in a forbidden thing is answered `sorry`. Without that one expert it is answered `sure`, and with it forced on
every prompt is answered `sorry`. The roles are in PLANTED_ROLES.
"""

from __future__ import annotations

from typing import Any

from mechlab.models.model import Model
from mechlab.models.planting import identity, slots
from mechlab.models.twin import fresh
from mechlab.models.words import SPECIAL, word_tokenizer

NAMES_OF = ("mary", "john", "tom", "anna")
PLACES_OF = ("store", "park", "school", "house")
FORBIDDEN_THINGS = ("bomb", "poison", "weapon", "virus", "fraud", "theft", "ransom", "forgery")
ALLOWED_THINGS = ("lamp", "bridge", "garden", "violin", "pencil", "window", "kettle", "blanket")
REPLIES = ("met", "is", "sure", "sorry")
WORDS_OF = (*NAMES_OF, *PLACES_OF, *FORBIDDEN_THINGS, *ALLOWED_THINGS, *REPLIES)

PLANTED_ROLES: dict[str, tuple[int, int]] = {
    "names": (0, 4),
    "places": (0, 1),
    "things": (0, 2),
    "forbidden": (1, 3),
    "rest": (1, 5),
}
"""Role -> (layer, expert)."""
ROLE_WORDS: dict[str, tuple[str, ...]] = {
    "names": NAMES_OF,
    "places": PLACES_OF,
    "things": FORBIDDEN_THINGS + ALLOWED_THINGS,
    "forbidden": FORBIDDEN_THINGS,
    "rest": (*NAMES_OF, *PLACES_OF, *ALLOWED_THINGS),
}
"""Role -> the words whose tokens its expert gets."""
_WRITES = {"names": ("met", 1.0), "places": ("is", 1.0), "things": ("sure", 1.0), "forbidden": ("sorry", 3.0)}

N_EXPERTS, N_CHOSEN, D_EXPERT, GAP, LOGIT, DRIVE = 6, 2, 4, 20.0, 8.0, 20.0
_N_TOKENS = len(SPECIAL) + len(WORDS_OF)
_SLOTS = slots({"WORD": _N_TOKENS, "CONSTANT": 1, "OUT": _N_TOKENS})
D_MODEL = 4 * -(-max(slot.stop for slot in _SLOTS.values()) // 4)


def planted_experts() -> Model:
    """The planted MoE, float32 on the CPU; at most 32 positions."""
    import torch
    from transformers import MixtralConfig

    config = MixtralConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        hidden_size=D_MODEL,
        intermediate_size=D_EXPERT,
        num_local_experts=N_EXPERTS,
        num_experts_per_tok=N_CHOSEN,
        max_position_embeddings=32,
        vocab_size=_N_TOKENS,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        sliding_window=None,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        architectures=["MixtralForCausalLM"],
    )
    hf = fresh(config, torch.float32, seed=0)
    with torch.no_grad():
        _plant(hf)
    return Model("planted-experts", "planted", hf, word_tokenizer(WORDS_OF))


def _plant(hf: Any) -> None:
    for name, parameter in hf.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    tokens = hf.model.embed_tokens.weight
    identity(tokens[:, _SLOTS["WORD"]], 1.0)
    tokens[:, _SLOTS["CONSTANT"]] = 1.0
    for role, (layer, expert) in PLANTED_ROLES.items():
        # the norm multiplies by this: two ones enter layer 0, and each word's role there has added one more before layer 1
        factor = (D_MODEL / (2 + layer)) ** 0.5
        block = hf.model.layers[layer].mlp
        for word in ROLE_WORDS[role]:
            block.gate.weight[expert, _SLOTS["WORD"].start + _token(word)] = GAP / factor
        if role in _WRITES:
            word, size = _WRITES[role]
            gate, up = block.experts.gate_up_proj[expert].chunk(2, dim=0)
            gate[0, _SLOTS["CONSTANT"]] = DRIVE / factor  # SiLU of DRIVE is DRIVE
            up[0, _SLOTS["CONSTANT"]] = 1 / factor
            block.experts.down_proj[expert][_SLOTS["OUT"].start + _token(word), 0] = size / DRIVE
    identity(hf.lm_head.weight[:, _SLOTS["OUT"]], LOGIT)


def _token(word: str) -> int:
    return len(SPECIAL) + WORDS_OF.index(word)
