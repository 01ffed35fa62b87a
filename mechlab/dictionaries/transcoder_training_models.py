"""sae-lens's transcoders with a loss: what ``SAETrainer.step`` needs, and the folding of scales when training is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mechlab.dictionaries.training_settings import TranscoderSettings

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepInput, TrainStepOutput


class Scale(NamedTuple):
    """What inputs and outputs are multiplied by in training, and their unscaled means."""

    inputs: float
    outputs: float
    mean_in: Tensor
    mean_out: Tensor


class TrainableTranscoder(torch.nn.Module):
    """A transcoder in training. ``cfg``, ``device`` and ``get_coefficients`` are there for sae-lens's trainer.

    Batches are inputs and outputs side by side ``[rows, d_in + d_out]``, unscaled.
    """

    def __init__(self, inner: Any, settings: TranscoderSettings, scale: Scale) -> None:
        super().__init__()
        self.inner, self.settings, self.scale = inner, settings, scale
        with torch.no_grad():
            inner.W_dec.div_(inner.W_dec.norm(dim=1, keepdim=True))
            if inner.W_dec.shape[1] == inner.W_enc.shape[0]:
                inner.W_enc.copy_(inner.W_dec.T)
            else:
                inner.W_enc.div_(inner.W_enc.norm(dim=0, keepdim=True))
            inner.b_dec.copy_(scale.mean_out * scale.outputs)
            inner.b_enc.copy_(-(scale.mean_in * scale.inputs) @ inner.W_enc)  # the first codes are of centred inputs
        if hasattr(inner, "threshold"):
            inner.threshold.requires_grad_(False)
        self._keeps_norm = inner.W_dec.register_hook(self._across)

    @property
    def cfg(self) -> Any:
        return self.inner.cfg

    @property
    def device(self) -> torch.device:
        return self.inner.W_dec.device

    def get_coefficients(self) -> dict[str, Any]:
        from sae_lens.saes.sae import TrainCoefficientConfig

        if self.settings.kind == "topk":
            return {}
        return {"l1": TrainCoefficientConfig(self.settings.sparsity, self.settings.warm_up)}

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """The loss of one batch; sae-lens's trainer does the rest of the step."""
        from sae_lens.saes.sae import TrainStepOutput

        d_in = self.inner.W_enc.shape[0]
        inputs = step_input.sae_in[:, :d_in] * self.scale.inputs
        wanted = step_input.sae_in[:, d_in:] * self.scale.outputs
        before, codes = self.codes(inputs)
        made = codes @ self.inner.W_dec + self.inner.b_dec
        if self.settings.skip:
            made = made + inputs @ self.inner.W_skip.T
        losses = {"error": (made - wanted).square().sum(1).mean()}
        if self.settings.kind == "relu":
            losses["l1"] = step_input.coefficients["l1"] * codes.sum(1).mean()  # decoder rows have norm 1
        losses["revival"] = self._revival(before, (wanted - made).detach(), step_input.dead_neuron_mask)
        loss = torch.stack(list(losses.values())).sum()
        return TrainStepOutput(wanted, made, codes, before, loss, losses)

    def codes(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the features compute of scaled inputs, and what they say."""
        before = inputs @ self.inner.W_enc + self.inner.b_enc
        if self.settings.kind == "relu":
            return before, before.relu()
        top = before.topk(self.settings.k, dim=1)
        return before, torch.zeros_like(before).scatter(1, top.indices, top.values.relu())

    @torch.no_grad()
    def norm_decoder(self) -> None:
        """Puts the decoder's rows back on the sphere."""
        self.inner.W_dec.div_(self.inner.W_dec.norm(dim=1, keepdim=True))

    def release(self) -> None:
        """Takes the hook off the decoder, when training is done."""
        self._keeps_norm.remove()

    @torch.no_grad()
    def threshold_for(self, inputs: Tensor, k: int) -> float:
        """Between the k·n-th and the next largest code of n unscaled inputs."""
        before = (inputs * self.scale.inputs) @ self.inner.W_enc + self.inner.b_enc
        codes = before.relu().flatten()
        largest = codes.topk(min(k * len(inputs), len(codes) - 1) + 1).values
        return float(largest[-2:].double().mean())

    def _across(self, gradient: Tensor) -> Tensor:
        """The gradient without its part along each row."""
        rows = self.inner.W_dec.detach()
        return gradient - (gradient * rows).sum(1, keepdim=True) * rows

    def _revival(self, before: Tensor, left: Tensor, dead: Tensor | None) -> Tensor:
        """Dead features, exponentials of what they compute, predict what the others leave: the paper's ghost term.

        Their prediction is rescaled to half the norm of what is left, and the term to the size of the error, times ``revive``.
        """
        if dead is None or not self.settings.revive or not bool(dead.any()):
            return left.new_zeros(())
        shifted = before[:, dead] - before[:, dead].detach().amax(1, keepdim=True)  # rescaling undoes the shift
        ghosts = shifted.exp() @ self.inner.W_dec[dead]
        half = left.norm(dim=1, keepdim=True) / (2 * ghosts.norm(dim=1, keepdim=True).clamp(min=1e-6))
        error = (ghosts * half.detach() - left).square().sum(1).mean()
        main = left.square().sum(1).mean()
        return self.settings.revive * error * (main / error.detach().clamp(min=1e-6))


def trainable(settings: TranscoderSettings, d_in: int, d_out: int, scale: Scale) -> TrainableTranscoder:
    """A fresh transcoder, to be trained."""
    from sae_lens.saes import transcoder as at

    classes: dict[tuple[bool, bool], tuple[Any, Any]] = {  # (top-k, skip) -> how sae-lens runs it
        (False, False): (at.Transcoder, at.TranscoderConfig),
        (False, True): (at.SkipTranscoder, at.SkipTranscoderConfig),
        (True, False): (at.JumpReLUTranscoder, at.JumpReLUTranscoderConfig),
        (True, True): (at.JumpReLUSkipTranscoder, at.JumpReLUSkipTranscoderConfig),
    }
    model, config = classes[settings.kind == "topk", settings.skip]
    inner = model(config(d_in=d_in, d_out=d_out, d_sae=settings.n_features, apply_b_dec_to_input=False))
    return TrainableTranscoder(inner, settings, scale)


@torch.no_grad()
def fold(model: TrainableTranscoder, threshold: float) -> Any:
    """sae-lens's transcoder on unscaled activations. Decoder rows keep norm 1: the scale of the output goes into the codes.

    With inputs s·x and outputs t·y: codes / t decode to y, so encoder, its bias and the threshold are divided by t.
    """
    inner, (s, t, _, _) = model.inner, model.scale
    inner.W_enc.mul_(s / t)
    inner.b_enc.div_(t)
    inner.b_dec.div_(t)
    if model.settings.skip:
        inner.W_skip.mul_(s / t)
    if hasattr(inner, "threshold"):
        inner.threshold.fill_(threshold / t)
    model.release()
    return inner.requires_grad_(False)
