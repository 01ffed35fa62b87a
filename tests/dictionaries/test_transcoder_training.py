"""Planted transcoders are found again, in sae-lens's layout, with decoder rows of norm 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUTranscoder, SkipTranscoder, Transcoder
from torch import Tensor

from mechlab.dictionaries.activations import ActivationSource, TokenTable
from mechlab.dictionaries.files import load_dictionary
from mechlab.dictionaries.sae import SaeDictionary
from mechlab.dictionaries.training_settings import TranscoderSettings
from mechlab.dictionaries.transcoder_training import train_transcoder
from mechlab.dictionaries.transcoder_training_models import Scale, fold, trainable
from mechlab.errors import MechlabError, UnknownName
from mechlab.lens.site import Site, site

AT, TARGET = site("L0.mlp_in"), site("L0.mlp_out")
D_IN, D_OUT, N_TRUE = 24, 20, 24


class Planted(ActivationSource):
    """Inputs are sparse sums of known directions; outputs the same codes in other directions, plus a linear map if asked."""

    def __init__(self, n: int = 6000, seed: int = 0, linear: float = 0.0) -> None:
        truth = torch.Generator().manual_seed(7)
        unit = lambda *size: torch.nn.functional.normalize(torch.randn(*size, generator=truth), dim=-1)  # noqa: E731
        self.reads, self.writes, self.linear = unit(N_TRUE, D_IN), unit(N_TRUE, D_OUT), unit(D_IN, D_OUT)
        generator = torch.Generator().manual_seed(seed)
        active = torch.rand(n, N_TRUE, generator=generator).argsort(1) < 2
        codes = active * (1 + torch.rand(n, N_TRUE, generator=generator))
        x = codes @ self.reads + linear * torch.randn(n, D_IN, generator=generator)
        self.values = {AT: 3 * x, TARGET: 11 * (codes @ self.writes + linear * x @ self.linear + 0.4)}
        rows = torch.arange(n, dtype=torch.int32)
        table = TokenTable(rows, rows // 10, rows % 10, torch.ones(n, dtype=torch.bool), torch.arange(n // 10), {})
        super().__init__("planted", f"f{seed}", f"d{seed}", {AT: D_IN, TARGET: D_OUT}, table)

    def read(self, sites: Sequence[str | Site], rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.values[site(at)][rows] for at in sites)

    def _starts(self) -> Tensor:
        return torch.arange(0, len(self) + 1, 1000)


def settings(**changes: Any) -> TranscoderSettings:
    base: dict[str, Any] = {"n_features": 36, "tokens": 50_000, "batch": 250, "lr": 5e-3, "warm_up": 10, "k": 2}
    return TranscoderSettings(**{**base, "dead_after": 40, "sparsity": 0.5, **changes})


def unexplained(found: SaeDictionary, source: Planted) -> float:
    x, y = source.values[AT], source.values[TARGET]
    return float((found.reconstruct(x) - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize(
    ("changes", "kind", "most"),
    [({}, Transcoder, 0.15), ({"kind": "topk"}, JumpReLUTranscoder, 0.15)],
)
def test_planted_transcoders_are_found(changes: dict[str, Any], kind: type, most: float, tmp_path: Path) -> None:
    source = Planted()
    found = train_transcoder(source, AT, TARGET, settings(**changes), tmp_path / "a")
    cosines = (source.writes @ found.directions.T).amax(1)
    assert cosines.median() > 0.9
    assert unexplained(found, Planted(1500, seed=3)) < most
    assert (found.directions.norm(dim=1) - 1).abs().max() < 1e-5
    loaded = SAE.load_from_disk(tmp_path / "a")
    assert type(loaded) is kind
    x = Planted(100, seed=4).values[AT]
    assert torch.equal(loaded(x), found.reconstruct(x))
    again = load_dictionary(tmp_path / "a")
    assert torch.equal(again.encode(x), found.encode(x))
    assert (str(again.site), str(again.target), again.origin.model) == ("L0.mlp_in", "L0.mlp_out", "planted")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_skip_takes_the_linear_part(tmp_path: Path) -> None:
    source, held = Planted(linear=0.7), Planted(1500, seed=3, linear=0.7)
    few = settings(n_features=8, sparsity=0.1)
    plain = train_transcoder(source, AT, TARGET, few, tmp_path / "plain")
    skip = train_transcoder(source, AT, TARGET, few.model_copy(update={"skip": True}), tmp_path / "skip")
    assert unexplained(skip, held) < 0.6 * unexplained(plain, held)
    loaded = SAE.load_from_disk(tmp_path / "skip")
    assert type(loaded) is SkipTranscoder
    x = held.values[AT]
    assert torch.equal(loaded(x), skip.reconstruct(x))


@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("skip", [False, True])
def test_folding_changes_no_prediction(kind: Any, skip: bool) -> None:
    source = Planted(500)
    scale = Scale(0.7, 0.2, source.values[AT].mean(0), source.values[TARGET].mean(0))
    model = trainable(settings(kind=kind, skip=skip, k=4), D_IN, D_OUT, scale)
    x = source.values[AT]
    with torch.no_grad():
        if skip:
            model.inner.W_skip.copy_(torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(1)))
        threshold = model.threshold_for(x, 4)
        before, codes = model.codes(x * 0.7)
        if kind == "topk":
            codes = before * (before > threshold)
            assert float((codes != 0).sum(1).float().mean()) == pytest.approx(4, rel=0.01)
        made = codes @ model.inner.W_dec + model.inner.b_dec
        expected = (made + (x * 0.7 @ model.inner.W_skip.T if skip else 0)) / 0.2
        torch.testing.assert_close(fold(model, threshold)(x), expected, atol=1e-4, rtol=1e-4)


def test_the_decoder_moves_along_the_sphere_only() -> None:
    source = Planted(500)
    model = trainable(
        settings(), D_IN, D_OUT, Scale(1.0, 1.0, source.values[AT].mean(0), source.values[TARGET].mean(0))
    )
    from sae_lens.saes.sae import TrainStepInput

    batch = torch.cat([source.values[AT], source.values[TARGET]], 1)
    model.training_forward_pass(TrainStepInput(batch, {"l1": 0.1}, None, 0, False)).loss.backward()
    gradient, rows = model.inner.W_dec.grad, model.inner.W_dec
    assert gradient is not None and gradient.abs().max() > 1e-3
    assert (gradient * rows).sum(1).abs().max() < 1e-4 * gradient.norm(dim=1).max()


def test_loss_by_hand() -> None:
    from sae_lens.saes.sae import TrainStepInput

    model = trainable(settings(n_features=2), 2, 2, Scale(2.0, 0.5, torch.zeros(2), torch.zeros(2)))
    with torch.no_grad():
        model.inner.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        model.inner.W_dec.copy_(torch.eye(2))
    batch = torch.tensor([[1.0, 3.0, 4.0, 2.0]])  # input (2, 6) scaled, wanted (2, 1), codes (2, 0), made (2, 0)
    output = model.training_forward_pass(TrainStepInput(batch, {"l1": 0.25}, torch.tensor([False, True]), 0, False))
    assert output.feature_acts.tolist() == [[2.0, 0.0]]
    error, l1, revival = (output.losses[name].item() for name in ("error", "l1", "revival"))
    assert (error, l1) == (1.0, 0.5)
    # what is left is (0, 1); the ghost points along it at half its length: error 0.25, rescaled to the main error
    assert revival == pytest.approx(1.0)
    output.loss.backward()
    # by the bias: 2 (0.5 - 1) 0.5 = -0.5 of the error, times 4 for its rescaling: the feature is pulled up
    assert model.inner.b_enc.grad[1].item() == pytest.approx(-0.5 * 4)


def test_dead_features_come_back(tmp_path: Path) -> None:
    """Encoders that begin far below zero: with the ghost term most fire in the end, without it they never do."""
    import mechlab.dictionaries.transcoder_training as module

    def buried(*arguments: Any) -> Any:
        model = trainable(*arguments)
        with torch.no_grad():
            model.inner.b_enc[:18] -= 8
        return model

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "trainable", buried)
    silent: list[int] = []
    for revive in (0.0, 1.0):
        asked = settings(revive=revive, dead_after=10, sparsity=0.05, lr=2e-2, tokens=100_000)
        found = train_transcoder(Planted(), AT, TARGET, asked, tmp_path / str(revive))
        assert found.origin.settings["dead"] >= 0
        silent.append(int((found.encode(Planted(1500, seed=3).values[AT]) > 0).any(0).logical_not().sum()))
    patch.undo()
    assert silent[0] >= 18 > 9 > silent[1]


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    def stop(_label: str, done: int, _total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    asked = settings(tokens=8000, kind="topk")
    with pytest.raises(KeyboardInterrupt):
        train_transcoder(Planted(), AT, TARGET, asked, tmp_path / "a", progress=stop, checkpoint_every=10)
    resumed = train_transcoder(Planted(), AT, TARGET, asked, tmp_path / "a", checkpoint_every=10)
    whole = train_transcoder(Planted(), AT, TARGET, asked, tmp_path / "b")
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="k 37 is more than the 36"):
        train_transcoder(Planted(), AT, TARGET, settings(kind="topk", k=37), tmp_path / "a")
    with pytest.raises(UnknownName, match=r"L1\.mlp_out"):
        train_transcoder(Planted(), AT, "L1.mlp_out", settings(), tmp_path / "a")
