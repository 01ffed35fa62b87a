"""A planted GPT-2 with attention sinks: where, how large, which dimension, from which layer to which, is known by construction.

The residual stream holds slots, written twice as [s, -s], so its mean is zero (as in `planted`). The slot SINK is one number: the massive
dimension, and its mirror image.

1. Position 0 is marked by its position embedding. MLP 1, neuron 0 writes SIZE into its SINK: it is massive after layers 1 to 5.
2. Tokens `.` are marked by their embedding. MLP 3, neuron 1 writes SIZE into their SINK: secondary sinks after layers 3 to 5.
3. MLP 6, neuron 2 reads SINK (after LayerNorm it is the same for all sinks) and writes -SIZE: all sinks are gone.
4. MLP 7, neuron 3 makes position 0 massive again, AGAIN times larger: after layers 7 to 9.

Head 0 of each layer attends to whatever has SINK, and where nothing has, to all alike; head 1 always does the latter. In layers that read
a sink, head 0 copies the word it attends to into OUT, which the unembedding reads: next to nothing from a sink, whose LayerNorm makes
its word tiny. So with its sink the model predicts all words alike, and without it the words said before.
"""

from __future__ import annotations

from typing import Any

from mechlab.models.model import Model
from mechlab.models.planting import DRIVE, head_weights, identity, mirrored
from mechlab.models.twin import fresh, seeded
from mechlab.models.words import FUNCTION_WORDS, NAMES, SPECIAL, word_tokenizer

N_LAYERS, N_HEADS, N_CONTEXT = 10, 2, 128
EPISODES = ((1, 5), (7, 9))
"""First and last layer after which position 0 is massive."""
SECONDARY = (3, 3)
"""Creation layer and lifetime of the secondary sinks."""
WRITERS = {1: 0, 3: 1, 7: 3}
"""Layer -> its neuron that makes sinks."""
REMOVER = (6, 2)
"""Layer and neuron that remove them."""
SIZE, AGAIN = 200.0, 35.0

MARK_WORD = "."
WORDS = (*NAMES[:10], *FUNCTION_WORDS[:20], MARK_WORD)
N_WORDS = len(SPECIAL) + len(WORDS)
WORD, OUT, CONSTANT, FIRST, MARK, SINK = 0, N_WORDS, 2 * N_WORDS, 2 * N_WORDS + 1, 2 * N_WORDS + 2, 2 * N_WORDS + 3
"""Where each slot begins. WORD and OUT: one number for each word."""
D_SLOTS = 2 * N_WORDS + 4
D_MODEL = 2 * D_SLOTS
MASSIVE_DIMENSIONS = (SINK, D_SLOTS + SINK)
NOISE = 0.05
"""A dense pattern in the WORD and OUT of every word, so that the median entry of the stream is not zero."""
GAP = 40.0
"""Score of a sink; everything else has 0."""
N_NEURONS = 6
_DENSE = NOISE**2 * (2 * N_WORDS - 1)
_ORDINARY = (D_MODEL / 2 / (2 + _DENSE)) ** 0.5
"""What a LayerNorm multiplies the stream of an ordinary token by: it holds a word, a constant and the noise."""
_MARKED = (D_MODEL / 2 / (3 + _DENSE)) ** 0.5
"""The same for a token that is marked too, by its position or its embedding."""
_MASSIVE = (D_MODEL / 2) ** 0.5
"""The SINK of a massive token after a LayerNorm."""


def planted_sinks() -> Model:
    """The planted model: 10 layers, 2 heads, 31 words, at most 128 positions, float32 on the CPU."""
    import torch
    from transformers import GPT2Config

    config = GPT2Config(
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_embd=D_MODEL,
        n_inner=N_NEURONS,
        n_positions=N_CONTEXT,
        vocab_size=N_WORDS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        architectures=["GPT2LMHeadModel"],
    )
    hf = fresh(config, torch.float32, seed=0)
    with torch.no_grad():
        _plant(hf)
    return Model("planted-sink", "planted", hf, word_tokenizer(WORDS))


def _plant(hf: Any) -> None:
    import torch

    for name, parameter in hf.named_parameters():
        if ".ln_" not in name:
            parameter.zero_()
    words = hf.transformer.wte.weight
    with seeded(0):
        noise = NOISE * (2.0 * torch.randint(2, (N_WORDS, 2 * N_WORDS)) - 1)
    words[:, : 2 * N_WORDS], words[:, D_SLOTS : D_SLOTS + 2 * N_WORDS] = noise, -noise
    for rows, slot in ((words, CONSTANT), (words[len(SPECIAL) + WORDS.index(MARK_WORD)], MARK)):
        rows[..., slot], rows[..., D_SLOTS + slot] = 1.0, -1.0
    mirrored(words, WORD, 1.0)
    mirrored(hf.transformer.wpe.weight[:1], FIRST, 1.0)
    for layer, neuron in WRITERS.items():
        reads, size = (MARK, SIZE) if layer == SECONDARY[0] else (FIRST, SIZE if layer == 1 else AGAIN * SIZE)
        _plant_neuron(hf, layer, neuron, reads, _MARKED, size)
    _plant_neuron(hf, *REMOVER, SINK, _MASSIVE, -SIZE)
    for layer in range(N_LAYERS):
        _plant_head(hf, layer, reads_sink=any(first < layer <= last + 1 for first, last in EPISODES))
    identity(hf.lm_head.weight[:, OUT : OUT + N_WORDS], 2.0)


def _plant_neuron(hf: Any, layer: int, neuron: int, reads: int, normed: float, writes: float) -> None:
    """A neuron that is at DRIVE where the slot ``reads`` holds ``normed`` after LayerNorm, and then writes ``writes`` into SINK."""
    mlp = hf.transformer.h[layer].mlp
    mlp.c_fc.weight[reads, neuron] = DRIVE / normed
    mlp.c_proj.weight[neuron, SINK] = writes / DRIVE
    mlp.c_proj.weight[neuron, D_SLOTS + SINK] = -writes / DRIVE


def _plant_head(hf: Any, layer: int, *, reads_sink: bool) -> None:
    """Head 0: a constant query that meets SINK; it copies the word into OUT where a sink is to be read."""
    query, key, value, out = head_weights(hf, layer, 0)
    root = (D_MODEL // N_HEADS) ** 0.5  # scores are divided by it
    query[CONSTANT, 0] = root / _ORDINARY
    key[SINK, 0] = GAP / _MASSIVE
    identity(value[WORD : WORD + N_WORDS], 1 / _ORDINARY)
    if reads_sink:
        mirrored(out[:N_WORDS], OUT, 0.5)
