"""Transcoders for tests: drawn at random, and one that is the MLP itself."""

import torch
from torch import Tensor

from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.lens.layout import output_weight
from mechlab.lens.lens import Lens
from mechlab.models import Model, tiny
from mechlab.models.tiny_models import perturb_constants
from mechlab.models.twin import fresh

PROMPT = [[5, 9, 7, 12, 30, 8, 11]]


class ReluTranscoder(Dictionary):
    """A transcoder with its maps on view; ``top`` keeps the largest codes of a token alone."""

    def __init__(
        self, lens: Lens, layer: int, maps: dict[str, Tensor], skip: Tensor | None = None, top: int | None = None
    ):
        origin = DictionaryOrigin(
            method="transcoder",
            model=lens.model.name,
            fingerprint=lens.model.fingerprint,
            site=f"L{layer}.mlp_in",
            target=f"L{layer}.mlp_out",
        )
        super().__init__(origin)
        self.encoder, self.encoder_bias = maps["encoder"], maps["encoder_bias"]
        self._directions, self.decoder_bias = maps["directions"], maps["decoder_bias"]
        self.skip, self.top = skip, top

    @property
    def directions(self) -> Tensor:
        return self._directions

    def encode(self, activations: Tensor) -> Tensor:
        codes = (activations @ self.encoder.T + self.encoder_bias).relu()
        if self.top is None:
            return codes
        best = codes.topk(self.top, dim=1)
        return torch.zeros_like(codes).scatter(1, best.indices, best.values)

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self._directions + self.decoder_bias

    def reconstruct(self, activations: Tensor, codes: Tensor | None = None) -> Tensor:
        made = self.decode(self.encode(activations) if codes is None else codes)
        return made if self.skip is None else made + activations @ self.skip.T


def random_transcoder(
    lens: Lens, layer: int, n: int = 40, *, skip: bool = False, top: int | None = None, seed: int = 0
) -> ReluTranscoder:
    generator = torch.Generator().manual_seed(100 * seed + layer)
    draw = lambda *size: 0.3 * torch.randn(*size, generator=generator)  # noqa: E731
    d = lens.model.d_model
    maps = {"encoder": draw(n, d), "encoder_bias": draw(n), "directions": draw(n, d), "decoder_bias": draw(d)}
    return ReluTranscoder(lens, layer, maps, 0.3 * draw(d, d) if skip else None, top)


def relu_gpt2(seed: int = 0) -> Lens:
    """A tiny GPT-2 whose MLPs are plain ReLU ones, so that a transcoder can be one of them."""
    source = tiny("gpt2")
    config = type(source.hf.config).from_dict(source.hf.config.to_dict() | {"activation_function": "relu"})
    hf = fresh(config, torch.float32, seed)
    hf.config.architectures = [type(hf).__name__]
    perturb_constants(hf, seed)
    return Lens(Model(f"relu-gpt2-{seed}", "tiny", hf, source.tokenizer))


def mlp_as_transcoder(lens: Lens, layer: int) -> ReluTranscoder:
    """The layer's own MLP, neurons as features: it leaves no error."""
    block = lens.layout.blocks[layer]
    assert block.up is not None and block.down is not None
    maps = {
        "encoder": output_weight(block.up).T.detach(),
        "encoder_bias": block.up.bias.detach(),
        "directions": output_weight(block.down).detach(),
        "decoder_bias": block.down.bias.detach(),
    }
    return ReluTranscoder(lens, layer, maps)
