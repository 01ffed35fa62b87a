"""Responses: equal to a plain loop, streamed in bounded memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mechlab.analyses.responses import Responses, responses, streamed_to
from mechlab.analyses.units import mlp_kinds, units_of
from mechlab.analyses.units_by_label import find, labellings, shuffled, strongest_of_each_site
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.reading import Run
from mechlab.lens.tokens import Prompts
from mechlab.models import tiny


class Counting(Lens):
    """Notes what each forward pass keeps, in bytes."""

    kept: list[int]

    def run(self, prompts: Prompts, edits=(), read=(), **options) -> Run:
        found = super().run(prompts, edits, read, **options)
        self.kept.append(sum(4 * part.numel() for part in found.activations.values()))
        return found


def lens() -> Counting:
    made = Counting(tiny("llama"))
    made.kept = []
    return made


def prompts(n: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(5, 60, size=int(length)).tolist() for length in generator.integers(2, 9, size=n)]


@pytest.mark.parametrize("reduction", ["mean", "mean_abs", "max", "last"])
def test_equal_to_one_prompt_at_a_time(reduction: str, tmp_path: Path) -> None:
    of = lens()
    units, texts = units_of(of, mlp_kinds(of)), prompts(7)
    found = responses(of, texts, units, reduction, folder=tmp_path)  # pyright: ignore[reportArgumentType]
    plain = {
        "mean": lambda x: x.mean(0),
        "mean_abs": lambda x: abs(x).mean(0),
        "max": lambda x: x.max(0),
        "last": lambda x: x[-1],
    }
    for row, ids in enumerate(texts):
        run = of.run([ids], read=units.sites)
        want = np.concatenate([plain[reduction](run[at][0].numpy()) for at in units.sites])
        assert np.allclose(found.of(np.arange(len(units)))[row], want, atol=1e-5)
    chosen = [500, 3, 100]
    assert np.array_equal(found.of(chosen), found.of(np.arange(len(units)))[:, chosen])


def test_no_pass_keeps_more_than_the_budget_and_groups_agree() -> None:
    of = lens()
    units, texts = units_of(of, mlp_kinds(of)), prompts(20)
    free = responses(of, texts, units)
    of.kept.clear()
    budget = 4 * 88 * 9 * 3  # one prompt's worth of three sites
    tight = responses(of, texts, units, budget=budget)
    assert max(of.kept) <= budget and len(of.kept) > 40  # several groups of sites
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(free.parts, tight.parts, strict=True))


def test_memory_does_not_grow_with_prompts(tmp_path: Path) -> None:
    """Streamed to a folder, four times the prompts take as much memory: the numbers are on disk, the passes are bounded."""
    of = lens()
    units = units_of(of, mlp_kinds(of))
    peaks: list[int] = []
    for n in (30, 120):
        folder = tmp_path / str(n)
        folder.mkdir()
        texts = of.tokens(prompts(n))
        tracemalloc.start()
        found = responses(of, texts, units, folder=folder, budget=2**20)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(path.stat().st_size for path in folder.iterdir()) >= 4 * n * len(units)
        assert all(isinstance(part, Path) for part in found.kept)
    assert peaks[1] < peaks[0] + 120 * len(units)  # far below the 4 bytes per number that it would cost to keep them


def test_float16_halves_the_files_and_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    of = lens()
    units = units_of(of, ["mlp_out"])
    half = responses(of, prompts(5), units, dtype="float16", folder=tmp_path)
    assert half.part(0).dtype == np.float16
    assert np.allclose(half.of([0, 70]), responses(of, prompts(5), units).of([0, 70]), rtol=2e-3, atol=1e-3)
    of.layout.blocks[0].down.weight.data.mul_(1e6)  # pyright: ignore
    with pytest.raises(MechlabError, match="too large for float16"):
        responses(of, prompts(5), units, dtype="float16")


def test_the_folder_is_gone_afterwards() -> None:
    with streamed_to() as folder:
        assert folder.is_dir()
    assert not folder.exists()


def made_up(seed: int = 0) -> tuple[Responses, list[str]]:
    """Unit 2 tells label b; unit 5 tells it too, by a wider margin."""
    units = units_of(Lens(tiny("llama")), ["mlp_out"], [1])
    labels = ["a"] * 8 + ["b"] * 4 + ["c"] * 6
    values = np.random.default_rng(seed).normal(size=(18, 64)).astype(np.float32)
    values[:, 2] = [0.1 * (label == "b") + 0.01 * i / 18 for i, label in enumerate(labels)]
    values[:, 5] = [float(label == "b") + 0.001 * i / 18 for i, label in enumerate(labels)]
    return Responses(units, (values,)), labels


def test_units_are_found_by_precision_then_by_separation() -> None:
    read, labels = made_up()
    found = find(read, labels, lambda p, s: np.lexsort((-s, -p))[:2], negatives=None, seed=0)
    assert found.precision["b"][[2, 5]].tolist() == [1, 1]
    assert found.sets["b"].tolist() == found.top("b", 2).tolist() == [5, 2]
    assert found.prevalence == {"a": 8 / 18, "b": 4 / 18, "c": 6 / 18}
    of_label = np.array(labels) == "b"
    values = read.part(0).astype(np.float64)
    want = (values[of_label].mean(0) - values[~of_label].mean(0)) / values.std(0)
    assert np.allclose(found.separation["b"], want)
    share = strongest_of_each_site(read.units, found.precision["b"], found.separation["b"], 2 / 64)
    assert share.tolist() == [5, 2]


def test_negatives_are_drawn_from_other_labels() -> None:
    _, labels = made_up()
    by = labellings(labels, negatives=2, seed=1)
    assert by.names == ("a", "b", "c")
    assert by.among.sum(axis=1).tolist() == [18, 12, 18]  # of a and c fewer others are left than asked for
    assert (by.positive & ~by.among).sum() == 0
    assert sorted(shuffled(labels, 0)) == sorted(labels) != shuffled(labels, 0)
    with pytest.raises(MechlabError, match="All prompts have the label x"):
        labellings(["x", "x"])
