"""A harvest keeps what the model computes, token by token, whatever kills it meanwhile, and refuses what is not its own."""

from pathlib import Path

import pytest
import torch

from mechlab.dictionaries.activations import Activations
from mechlab.dictionaries.activations_files import MANIFEST
from mechlab.dictionaries.activations_live import LiveActivations
from mechlab.dictionaries.harvest import harvest
from mechlab.errors import MechlabError, PromptError, SiteError, StoreError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models.tiny_models import tiny

SITES = ("L1.resid_post", "L0H1.z", "L1.z", "L0N3", "L1.mlp_post", "L0.mlp_in", "L1.mlp_out", "L0.resid_pre", "embed")


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(tiny("llama"))


def prompts(lens: Lens, n: int = 12, seed: int = 0) -> list[list[int]]:
    """Ids of unequal lengths without special tokens, one special in the first."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda length: torch.randint(5, lens.model.vocab_size, (length,), generator=generator).tolist()  # noqa: E731
    made = [draw(4 + i % 5) for i in range(n)]
    made[0][2] = lens.model.tokenizer.eos_token_id
    return made


def test_rows_are_what_single_runs_give(lens: Lens, tmp_path: Path) -> None:
    ids = prompts(lens)
    found = harvest(lens, ids, SITES, tmp_path / "a", shard_rows=20, batch_tokens=24)
    assert len(found.manifest.shards) > 2
    assert max(found.manifest.shards) < 20 + max(map(len, ids))  # what memory holds at once
    for name in SITES:
        (values,) = found.read([name], torch.arange(len(found)))
        expected = torch.cat([lens.run([p], read=[name])[name][0].reshape(len(p), -1) for p in ids])
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    assert found.widths[found.sites[1]] * lens.layout.n_heads == found.widths[found.sites[2]]


def test_rows_keep_the_order_they_are_asked_in(lens: Lens, tmp_path: Path) -> None:
    found = harvest(lens, prompts(lens), ["L1.resid_post", "L0N3"], tmp_path / "a", shard_rows=20)
    both = found.read(["L1.resid_post", "L0N3"], torch.arange(len(found)))
    rows = torch.tensor([40, 3, 3, 61, 0])
    for value, whole in zip(found.read(["L1.resid_post", "L0N3"], rows), both, strict=True):
        assert torch.equal(value, whole[rows])


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_layers_above_the_last_site_are_left_out_and_put_back(family: str, tmp_path: Path) -> None:
    lens = Lens(tiny(family))
    calls: list[int] = []
    handle = lens.layout.blocks[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = prompts(lens, 4)
    found = harvest(lens, ids, ["L0.resid_post"], tmp_path / "a")
    handle.remove()
    assert not calls
    (values,) = found.read(["L0.resid_post"], torch.arange(len(ids[0])))
    run = lens.run([ids[0]], read=["L0.resid_post"])
    torch.testing.assert_close(values, run["L0.resid_post"][0], atol=1e-5, rtol=1e-5)
    assert run.logits is not None and run.logits.std() > 0.01


def test_first_positions_and_special_tokens_do_not_count(lens: Lens, tmp_path: Path) -> None:
    ids = prompts(lens)
    found = harvest(lens, ids, ["L0N3"], tmp_path / "a")
    firsts = torch.tensor([0, *map(len, ids)]).cumsum(0)[:-1].tolist()
    assert set(range(len(found))) - set(found.rows.tolist()) == {*firsts, 2}
    (counted,) = found.read(["L0N3"], found.rows)
    assert found.statistics("L0N3").n_rows == len(counted)
    torch.testing.assert_close(found.statistics("L0N3").mean, counted.mean(0))


def test_statistics_by_hand(lens: Lens, tmp_path: Path) -> None:
    found = harvest(lens, prompts(lens), ["L1.resid_post"], tmp_path / "a", shard_rows=10)
    (x,) = found.read(["L1.resid_post"], found.rows)
    stats = found.statistics("L1.resid_post")
    torch.testing.assert_close(stats.mean, x.mean(0), atol=1e-6, rtol=1e-5)
    assert stats.mean_norm == pytest.approx(float(x.norm(dim=1).mean()), rel=1e-5)
    assert stats.variance == pytest.approx(float((x - x.mean(0)).square().sum(1).mean()), rel=1e-4)


def test_contexts_stay_inside_the_prompt(lens: Lens, tmp_path: Path) -> None:
    ids = prompts(lens)
    found = harvest(lens, ids, ["L0N3"], tmp_path / "a")
    row = len(ids[0]) + 1  # second token of the second prompt
    context = found.context(row, before=9, after=2)
    assert context.pieces == tuple(str(lens.model.tokenizer.decode([i])) for i in ids[1][:4])
    assert (context.at, context.text, context.prompt, context.position) == (1, 1, 1, 1)
    with pytest.raises(MechlabError, match="outside these activations"):
        found.context(len(found))


def test_long_texts_become_several_prompts(lens: Lens, tmp_path: Path) -> None:
    ids = [prompts(lens, 1, seed=2)[0] * 4, prompts(lens, 1, seed=3)[0]]
    found = harvest(lens, ids, ["L0.resid_post"], tmp_path / "a", max_tokens=6)
    assert found.table.texts.tolist() == [0, 0, 0, 1]
    assert found.table.ids.tolist() == ids[0] + ids[1]
    assert int(found.table.positions.max()) == 5
    (values,) = found.read(["L0.resid_post"], torch.arange(6, 12))
    torch.testing.assert_close(values, lens.run([ids[0][6:12]], read=["L0.resid_post"])["L0.resid_post"][0])


def test_half_precision_is_near_and_said(lens: Lens, tmp_path: Path) -> None:
    exact = harvest(lens, prompts(lens), ["L1.resid_post"], tmp_path / "a")
    half = harvest(lens, prompts(lens), ["L1.resid_post"], tmp_path / "b", dtype="bfloat16")
    assert (exact.manifest.dtype, half.manifest.dtype) == ("float32", "bfloat16")
    assert half.fingerprint == lens.model.fingerprint
    assert lens.model.dtype == torch.float32
    (x,), (y,) = exact.read(["L1.resid_post"], exact.rows), half.read(["L1.resid_post"], half.rows)
    assert 0 < float((x - y).norm() / x.norm()) < 0.05


def test_live_activations_are_the_harvested_ones(lens: Lens, tmp_path: Path) -> None:
    ids, sites = prompts(lens), ["L1.resid_post", "L0H1.z"]
    disk = harvest(lens, ids, sites, tmp_path / "a")
    live = LiveActivations(lens, ids, sites)
    assert live.data == disk.data
    assert torch.equal(live.rows, disk.rows)
    rows = torch.tensor([30, 2, 2, 17])
    for a, b in zip(disk.read(sites, rows), live.read(sites, rows), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    first = next(live.batches("L0H1.z", size=8, seed=1))[0]
    assert torch.equal(first, next(live.batches("L0H1.z", size=8, seed=1))[0])


def test_split_parts_texts(lens: Lens, tmp_path: Path) -> None:
    found = harvest(lens, prompts(lens), ["L0N3"], tmp_path / "a")
    fit, held = found.split(0.25)
    assert set(held.table.prompts[held.rows].tolist()) == {3, 7, 11}
    assert sorted([*fit.rows.tolist(), *held.rows.tolist()]) == found.rows.tolist()
    with pytest.raises(MechlabError, match="one side empty"):
        found.split(0.9)


def test_a_folder_of_something_else_is_refused(lens: Lens, tmp_path: Path) -> None:
    ids = prompts(lens)
    harvest(lens, ids, ["L0N3"], tmp_path / "a")
    other = Lens(tiny("llama", seed=1))
    with pytest.raises(MechlabError, match=r"activations of tiny-llama .* loaded is tiny-llama-1"):
        harvest(other, ids, ["L0N3"], tmp_path / "a")
    with pytest.raises(MechlabError, match=r"of 12 texts .* and 11 others"):
        harvest(lens, ids[1:], ["L0N3"], tmp_path / "a")
    with pytest.raises(MechlabError, match="at L0N3 and L0N4 were asked"):
        harvest(lens, ids, ["L0N4"], tmp_path / "a")
    with pytest.raises(MechlabError, match="in float32 and bfloat16"):
        harvest(lens, ids, ["L0N3"], tmp_path / "a", dtype="bfloat16")
    with pytest.raises(MechlabError, match=r"of tiny-llama .* loaded is tiny-llama-1"):
        Activations(tmp_path / "a").check_made_by(other)
    Activations(tmp_path / "a").check_made_by(lens)


def test_damaged_folders_are_told(lens: Lens, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no activations"):
        Activations(tmp_path)
    found = harvest(lens, prompts(lens), ["L0N3"], tmp_path / "a")
    shard = next((tmp_path / "a").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(StoreError, match="delete it and call harvest again"):
        found.read(["L0N3"], found.rows)
    (tmp_path / "a" / "tokens.safetensors").write_bytes(b"no")
    with pytest.raises(StoreError, match=r"tokens in .* cannot be read"):
        Activations(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    with pytest.raises(MechlabError, match="shards that no manifest describes"):
        harvest(lens, prompts(lens), ["L0N3"], tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_text("{}")
    with pytest.raises(StoreError, match="does not describe activations"):
        Activations(tmp_path / "a")


def test_bad_requests_are_refused(lens: Lens, tmp_path: Path) -> None:
    ids = prompts(lens)
    for sites, error, words in [
        ([], MechlabError, "No site"),
        (["L9.resid_post"], SiteError, "layers 0 to 2"),
        (["L0.pattern"], MechlabError, "each pair of tokens"),
        (["L0.resid_post@-1"], MechlabError, "harvest keeps all: write L0.resid_post"),
    ]:
        with pytest.raises(error, match=words):
            harvest(lens, ids, sites, tmp_path / "a")
    with pytest.raises(MechlabError, match="at least one text"):
        harvest(lens, [], ["L0N3"], tmp_path / "a")
    with pytest.raises(MechlabError, match="at least one text"):
        harvest(lens, "one text", ["L0N3"], tmp_path / "a")
    with pytest.raises(PromptError, match="empty"):
        harvest(lens, ["text", ""], ["L0N3"], tmp_path / "a")
    with pytest.raises(MechlabError, match="outside the vocabulary"):
        harvest(lens, [[5, 10**6]], ["L0N3"], tmp_path / "a")
    with pytest.raises(MechlabError, match="Prompts of 1 tokens"):
        harvest(lens, ids, ["L0N3"], tmp_path / "a", max_tokens=1)
    with pytest.raises(MechlabError, match="Precision 'int8'"):
        harvest(lens, ids, ["L0N3"], tmp_path / "a", dtype="int8")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "a").exists()
    found = harvest(lens, ids, ["L0N3"], tmp_path / "a")
    with pytest.raises(MechlabError, match="batch of 999 rows"):
        next(found.batches("L0N3", size=999))
    with pytest.raises(UnknownName, match="L0N4"):
        next(found.batches("L0N4", size=2))
