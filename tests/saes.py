"""Small sae-lens SAEs with random weights, one of every architecture, for a tiny model."""

from typing import Any

import torch
from sae_lens import SAE

from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.sae import SaeDictionary
from mechlab.lens.lens import Lens

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "gated": {},
    "topk": {"k": 5},
    "topk rescaled": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": 5},
    "jumprelu": {},
    "matching_pursuit": {"max_iterations": 6, "residual_threshold": 0.01},
    "layer norm": {"normalize_activations": "layer_norm"},
    "norm rescale": {"normalize_activations": "constant_norm_rescale"},
}
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_CALLED = {"topk rescaled": "topk", "layer norm": "standard", "norm rescale": "standard"}


def random_sae(name: str, d_in: int, n_features: int, seed: int = 0, d_out: int | None = None) -> Any:
    config = {"architecture": _CALLED.get(name, name), "d_in": d_in, "d_sae": n_features, **ARCHITECTURES.get(name, {})}
    config |= {"apply_b_dec_to_input": False, "d_out": d_out or d_in} if name in TRANSCODERS else {}
    sae = SAE.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        if hasattr(sae, "threshold"):
            sae.threshold.abs_()
        if name == "matching_pursuit":  # its encoder and decoder are one matrix
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    return sae


def dictionary(
    lens: Lens,
    name: str,
    at: str,
    target: str | None = None,
    *,
    d_in: int | None = None,
    n_features: int = 24,
    seed: int = 0,
) -> SaeDictionary:
    origin = DictionaryOrigin(
        method=name, model=lens.model.name, fingerprint=lens.model.fingerprint, site=at, target=target, seed=seed
    )
    return SaeDictionary(random_sae(name, d_in or lens.model.d_model, n_features, seed), origin)
