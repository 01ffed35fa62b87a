"""A Llama that knows facts through planted relation units, with units of one wording beside them.

Three relations, twelve subjects each, four objects each. A relation's first wording holds its relation word and a word that only this
wording has; the second wording holds the relation word alone. How a question is answered:

1. Layer 0, MLP: neuron r is on where relation r's word stands and writes 1 into its slot. Neuron 3 + r is on where the first wording's own
   word stands; nobody reads it.
2. Layer 1, attention: one head looks at all tokens alike and gathers words and relation slots.
3. Layer 1, MLP: one neuron per fact; its gate reads the gathered subject, its up the gathered relation; their product writes the object.

So the units whose response tells relation r perfectly, in every wording, are: gate, up and output of neuron r of layer 0, and the ups of
its facts in layer 1. Gate and up of neuron 3 + r do so in the first wording alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechlab.models.model import Model
from mechlab.models.planting import DRIVE, identity, slots
from mechlab.models.twin import fresh
from mechlab.models.words import SPECIAL, word_tokenizer

_LETTERS = "abcdefghijkl"
RELATIONS = ("p", "q", "r")
N_SUBJECTS, N_OBJECTS, D_MLP = len(_LETTERS), 4, 44
WORDS = (
    *("the", "of", "is", "to"),
    *(f"relation{r}" for r in RELATIONS),
    *(f"wording{r}" for r in RELATIONS),
    *(f"subject{r}{i}" for r in RELATIONS for i in _LETTERS),
    *(f"object{r}{i}" for r in RELATIONS for i in _LETTERS[:N_OBJECTS]),
)
_N_OUT = len(RELATIONS) * N_OBJECTS
_SLOTS = slots(
    {"WORD": len(WORDS), "RELATION": 3, "GATHERED": len(WORDS), "GATHERED_RELATION": 3, "OBJECT": _N_OUT, "REST": 3}
)
D_MODEL = _SLOTS["REST"].stop
D_HEAD = len(WORDS) + len(RELATIONS) + (len(WORDS) + len(RELATIONS)) % 2


@dataclass(frozen=True, eq=False)
class PlantedRelations:
    """The model and its truth.

    Attributes:
        model: the model.
        facts: (relation, subject, object).
        templates: relation -> its two wordings.
        relation_units: relation -> site names of the units that tell it in every wording.
        template_units: relation -> those that tell its first wording.
    """

    model: Model
    facts: tuple[tuple[str, str, str], ...]
    templates: dict[str, tuple[str, str]]
    relation_units: dict[str, frozenset[str]]
    template_units: dict[str, frozenset[str]]


def planted_relations() -> PlantedRelations:
    """The planted model: 2 layers, 1 head, 44 neurons a layer, float32 on the CPU."""
    import torch
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=D_HEAD,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        max_position_embeddings=160,
        vocab_size=len(SPECIAL) + len(WORDS),
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        architectures=["LlamaForCausalLM"],
    )
    hf = fresh(config, torch.float32, seed=0)
    with torch.no_grad():
        _plant(hf)
    model = Model("planted-relations", "planted", hf, word_tokenizer(WORDS))
    return PlantedRelations(
        model,
        tuple(
            (r, f"subject{r}{i}", f"object{r}{_LETTERS[place % N_OBJECTS]}")
            for r in RELATIONS
            for place, i in enumerate(_LETTERS)
        ),
        {r: (f"the wording{r} relation{r} of {{subject}} is", f"{{subject}} to relation{r} is") for r in RELATIONS},
        {r: frozenset(_truth(place)) for place, r in enumerate(RELATIONS)},
        {
            r: frozenset({f"L0N{3 + place}.mlp_pre", f"L0N{3 + place}.mlp_pre_linear"})
            for place, r in enumerate(RELATIONS)
        },
    )


def _truth(place: int) -> list[str]:
    facts = [f"L1N{place * N_SUBJECTS + i}.mlp_pre_linear" for i in range(N_SUBJECTS)]
    slot = _SLOTS["RELATION"].start + place
    return [f"L0N{place}.mlp_pre", f"L0N{place}.mlp_pre_linear", f"L0D{slot}.mlp_out", *facts]


def _plant(hf: Any) -> None:
    for name, parameter in hf.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    words, root = _SLOTS["WORD"], D_MODEL**0.5  # an RMSNorm makes a single 1 in the stream this large
    identity(hf.model.embed_tokens.weight[len(SPECIAL) :, words], 1.0)
    hf.model.embed_tokens.weight[: len(SPECIAL), _SLOTS["REST"]] = 1.0
    first, second = (layer.mlp for layer in hf.model.layers)
    for neuron in range(2 * len(RELATIONS)):  # the words of relations, then of wordings, follow the first four
        first.gate_proj.weight[neuron, words.start + 4 + neuron] = DRIVE / root
        first.up_proj.weight[neuron, words.start + 4 + neuron] = 1 / root
    identity(first.down_proj.weight[_SLOTS["RELATION"], : len(RELATIONS)], 1 / DRIVE)
    attention = hf.model.layers[1].self_attn  # no queries, no keys: all tokens before are looked at alike
    identity(attention.v_proj.weight[: len(WORDS), words], 1.0)
    identity(attention.v_proj.weight[len(WORDS) :, _SLOTS["RELATION"]], 1.0)
    identity(attention.o_proj.weight[_SLOTS["GATHERED"], : len(WORDS)], 1.0)
    identity(attention.o_proj.weight[_SLOTS["GATHERED_RELATION"], len(WORDS) :], 1.0)
    subjects = 4 + 2 * len(RELATIONS)
    for place in range(len(RELATIONS)):
        for i in range(N_SUBJECTS):
            neuron = place * N_SUBJECTS + i
            second.gate_proj.weight[neuron, _SLOTS["GATHERED"].start + subjects + neuron] = DRIVE
            second.up_proj.weight[neuron, _SLOTS["GATHERED_RELATION"].start + place] = 1.0
            second.down_proj.weight[_SLOTS["OBJECT"].start + place * N_OBJECTS + i % N_OBJECTS, neuron] = 1.0
    identity(hf.lm_head.weight[len(SPECIAL) + len(WORDS) - _N_OUT :, _SLOTS["OBJECT"]], 1.0)
