"""Planted dictionaries are found again; a resumed run is the unbroken one; what is saved is what was trained."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechlab.dictionaries.activations import ActivationSource, TokenTable
from mechlab.dictionaries.files import load_dictionary
from mechlab.dictionaries.training import SaeSettings, train
from mechlab.errors import MechlabError
from mechlab.lens.site import Site, site

AT = "L0.resid_post"
D, N_TRUE = 24, 32


class Planted(ActivationSource):
    """Sparse positive sums of known unit directions, with a mean that is not zero."""

    def __init__(self, n: int = 8000, seed: int = 0, scale: float = 7.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randn(N_TRUE, D, generator=torch.Generator().manual_seed(99))
        self.truth = truth / truth.norm(dim=1, keepdim=True)
        active = torch.rand(n, N_TRUE, generator=generator).argsort(1) < 3  # three a row
        codes = active * (1 + torch.rand(n, N_TRUE, generator=generator))
        self.values = scale * (codes @ self.truth + 0.5)
        rows = torch.arange(n, dtype=torch.int32)
        table = TokenTable(rows % 7, rows // 10, rows % 10, torch.ones(n, dtype=torch.bool), torch.arange(n // 10), {})
        super().__init__("planted", f"fingerprint {seed}", f"data {seed}", {site(AT): D}, table)

    def read(self, sites: Sequence[str | Site], rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.values[rows] for _ in sites)

    def _starts(self) -> Tensor:
        return torch.arange(0, len(self) + 1, 1000)


def settings(architecture: str, **changes: object) -> SaeSettings:
    base = {"n_features": 40, "tokens": 60_000, "batch": 250, "lr": 4e-3, "warm_up": 10, "dead_after": 50, "k": 3}
    return SaeSettings.model_validate({**base, "architecture": architecture, **changes})


def fvu(dictionary: object, values: Tensor) -> float:
    error = dictionary.decode(dictionary.encode(values)) - values  # pyright: ignore[reportAttributeAccessIssue]
    return float(error.square().sum() / (values - values.mean(0)).square().sum())


def test_topk_finds_the_planted_directions(tmp_path: Path) -> None:
    planted = Planted()
    found = train(planted, AT, settings("topk"), tmp_path / "topk")
    cosines = (planted.truth @ (found.directions / found.directions.norm(dim=1, keepdim=True)).T).amax(1)
    assert cosines.median() > 0.97
    assert (cosines > 0.9).sum() >= 28
    held = Planted(2000, seed=5)
    assert fvu(found, held.values) < 0.15
    assert int((found.encode(held.values) != 0).sum(1).max()) <= 3
    assert found.origin.settings["dead"] <= 8


@pytest.mark.parametrize(
    ("architecture", "changes", "most"),
    [
        ("standard", {"sparsity": 0.3}, 0.3),
        ("gated", {"sparsity": 0.3}, 0.3),
        ("jumprelu", {"sparsity": 0.2}, 0.3),
        ("batchtopk", {}, 0.3),
        ("matryoshka_batchtopk", {}, 0.3),
        ("matching_pursuit", {}, 0.3),
    ],
)
def test_every_architecture_trains_and_is_saved_whole(
    architecture: str, changes: dict[str, object], most: float, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    planted, asked = Planted(), settings(architecture, tokens=30_000, **changes)
    found = train(planted, AT, asked, tmp_path / "a", progress=lambda _, done, total: told.append((done, total)))
    assert told == [(i + 1, 120) for i in range(120)]
    held = Planted(2000, seed=5).values
    assert fvu(found, held) < most
    loaded = load_dictionary(tmp_path / "a")
    assert torch.equal(loaded.encode(held), found.encode(held))
    assert torch.equal(loaded.decode(loaded.encode(held)), found.decode(found.encode(held)))
    assert loaded.origin == found.origin
    assert (loaded.origin.method, loaded.origin.site, loaded.origin.model) == (architecture, AT, "planted")
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"cfg.json", "sae_weights.safetensors", "origin.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]  # no checkpoint is left


def test_batch_topk_gets_a_threshold_that_lets_k_through(tmp_path: Path) -> None:
    """After 120 steps sae-lens's running mean has not arrived; the one set on held-out rows lets k features a row through."""
    asked = settings("batchtopk", tokens=30_000)
    found = train(Planted(), AT, asked, tmp_path / "a", held_out=Planted(3000, seed=4))
    thresholds = found.origin.settings["threshold"]
    assert thresholds["running"] < 0.9 * thresholds["calibrated"]
    held = Planted(3000, seed=5).values
    assert float((found.encode(held) != 0).sum(1).float().mean()) == pytest.approx(3, rel=0.05)
    assert torch.unique(found.sae.threshold).numel() == 1
    assert float(found.sae.threshold[0]) == pytest.approx(thresholds["calibrated"], rel=1e-6)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batchtopk", "matching_pursuit"])
def test_a_resumed_run_is_the_unbroken_one(architecture: str, tmp_path: Path) -> None:
    planted, asked = Planted(), settings(architecture, tokens=10_000)

    def stop(_label: str, done: int, _total: int) -> None:
        if done == 27:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(planted, AT, asked, tmp_path / "a", progress=stop, checkpoint_every=10)
    assert [p.name for p in (tmp_path / ".a.training").iterdir()] == ["step-00000020"]
    first: list[int] = []
    resumed = train(
        planted, AT, asked, tmp_path / "a", progress=lambda _, done, __: first.append(done), checkpoint_every=10
    )
    assert first[0] == 21
    whole = train(planted, AT, asked, tmp_path / "b")
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name
    assert resumed.origin == whole.origin


def test_rows_left_out_are_not_trained_on(tmp_path: Path) -> None:
    clean, dirty = Planted(), Planted()
    dirty.table.kept[::9] = False
    dirty.values[::9] = 1e6
    clean.table.kept[::9] = False
    a = train(clean, AT, settings("topk", tokens=5000), tmp_path / "a")
    b = train(dirty, AT, settings("topk", tokens=5000), tmp_path / "b")
    assert torch.equal(a.sae.W_dec, b.sae.W_dec)


def test_seed_decides(tmp_path: Path) -> None:
    one, two, same = (
        train(Planted(), AT, settings("topk", tokens=5000, seed=seed), tmp_path / name)
        for seed, name in ((1, "a"), (2, "b"), (1, "c"))
    )
    assert torch.equal(one.sae.W_dec, same.sae.W_dec)
    assert not torch.equal(one.sae.W_dec, two.sae.W_dec)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    planted = Planted(1000)
    for asked, words in [
        (settings("topk", k=41), "k 41 is more than the 40 features"),
        (settings("topk", k=2.5), "no whole number"),
        (settings("topk", tokens=2000), "8 steps, too few for 10 of warm-up"),
        (settings("topk", options={"spice": 1}), r"sae-lens refuses these settings of topk: .*spice"),
        (settings("matryoshka_batchtopk", widths=(20, 10)), r"\[20, 10\] do not grow to 40"),
        (settings("matryoshka_batchtopk", widths=(10, 20)), r"\[10, 20\] do not grow to 40"),
    ]:
        with pytest.raises(MechlabError, match=words):
            train(planted, AT, asked, tmp_path / "a")
    (tmp_path / "there").mkdir()
    with pytest.raises(MechlabError, match="there exists: train into another folder"):
        train(planted, AT, settings("topk"), tmp_path / "there")
    with pytest.raises(MechlabError, match=r"loss is .* lower lr"):
        planted.values[500] = float("nan")
        train(planted, AT, settings("topk", tokens=5000), tmp_path / "a")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    def stop(_label: str, done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    asked = settings("topk", tokens=5000)
    with pytest.raises(KeyboardInterrupt):
        train(Planted(), AT, asked, tmp_path / "a", progress=stop, checkpoint_every=5)
    with pytest.raises(MechlabError, match=r"other fingerprint, data\).* resume=False"):
        train(Planted(seed=1), AT, asked, tmp_path / "a")
    with pytest.raises(MechlabError, match=r"other settings\)"):
        train(Planted(), AT, settings("topk", tokens=5250), tmp_path / "a")
    afresh = train(Planted(seed=1), AT, asked, tmp_path / "a", resume=False)
    assert json.loads((tmp_path / "a" / "origin.json").read_text())["data"] == "data 1" == afresh.origin.data
