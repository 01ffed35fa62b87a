"""A prompt's numbers do not depend on what it is batched with."""

import pytest
import torch
from torch.testing import assert_close

from mechlab.errors import EditError, PromptError
from mechlab.lens.edit import add, mean, patch, resample, route, zero

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def prompts(long) -> list[list[int]]:
    return [long[2:9], long, long[5:6], long[:12], long[4:11]]


def every_site(lens) -> list[str]:
    return [*lens.layout.kinds(), *(f"L{layer}.{kind}" for layer in (1, 2) for kind in lens.layout.kinds(layer))]


def test_unequal_prompts_give_what_each_gives_alone(lens, prompts):
    read = every_site(lens)
    together = lens.run(prompts, read=read)
    for row, ids in enumerate(prompts):
        alone, n = lens.run([ids], read=read), len(ids)
        assert_close(together.logits[row, :n], alone.logits[0], **CLOSE)
        assert_close(together.last_logits[row], alone.logits[0, -1], **CLOSE)
        assert not together.logits[row, n:].any()
        for site, activation in together.activations.items():
            mine = activation[row]
            if site.kind in ("scores", "pattern"):
                assert_close(mine[:, :n, :n], alone[site][0], **CLOSE, msg=lambda m, s=site: f"{s}: {m}")
                assert not mine[:, n:].any()
                later = mine[:, :n, n:]
                assert later.isneginf().all() if site.kind == "scores" else not later.any()
            else:
                assert_close(mine[:n], alone[site][0], **CLOSE, msg=lambda m, s=site: f"{s}: {m}")
                assert not mine[n:].any(), site


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "qwen2_moe", "gpt_oss"])
def test_batch_size_changes_nothing(lens, prompts):
    read = every_site(lens)
    read += ["L1H2.pattern", "L1H2.scores", "L1.scores@-1", "L1H1.pattern@0", "L1KV1.k", "L1H0.z@-1", "L2D5.resid_post"]
    whole = lens.run(prompts, read=read, batch_size=64)
    for size in (1, 2):
        split = lens.run(prompts, read=read, batch_size=size)
        assert_close(split.logits, whole.logits, **CLOSE)
        assert split.tokens.lengths == whole.tokens.lengths
        for site, activation in whole.activations.items():
            assert_close(split[site], activation, **CLOSE, msg=lambda m, s=site: f"{s}: {m}")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mixtral"])
def test_parts_of_a_site_are_parts_of_the_whole(lens, prompts):
    read = ["L1.pattern", "L1.k", "L1.resid_post"]
    part = [
        "L1H2.pattern",
        "L1.pattern@-1",
        "L1H2.pattern@0",
        "L1KV1.k",
        "L1KV1.k@-1",
        "L1D3.resid_post",
        "L1.resid_post@0",
    ]
    run, end = lens.run(prompts, read=[*read, *part]), torch.tensor([len(ids) - 1 for ids in prompts])
    rows = torch.arange(len(prompts))
    pattern, key, resid = (run[s] for s in read)
    for site, expected in (
        ("L1H2.pattern", pattern[:, 2]),
        ("L1.pattern@-1", pattern[rows, :, end]),
        ("L1H2.pattern@0", pattern[:, 2, 0]),
        ("L1KV1.k", key[:, :, 1]),
        ("L1KV1.k@-1", key[rows, end, 1]),
        ("L1D3.resid_post", resid[:, :, 3]),
        ("L1.resid_post@0", resid[:, 0]),
    ):
        assert_close(run[site], expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gpt_oss"])
def test_logits_last_and_none(lens, prompts):
    everything = lens.run(prompts)
    for size in (2, 64):
        last = lens.run(prompts, logits="last", batch_size=size)
        assert last.logits.shape == (5, 1, lens.model.vocab_size)
        assert_close(last.logits[:, 0], everything.last_logits, **CLOSE)
        assert_close(last.last_logits, everything.last_logits, **CLOSE)
        none = lens.run(prompts, read=["L1.z"], logits="none", batch_size=size)
        assert none.logits is None and none.last_logits is None
        both = lens.run(prompts, read=["logits"], logits="last", batch_size=size)
        assert both.logits.shape == last.logits.shape
        assert_close(both["logits"], everything.logits, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "olmoe", "gpt_oss"])
@pytest.mark.parametrize("pos", [-1, "HERE", None])
def test_edits_on_unequal_lengths_are_those_of_each_prompt(lens, pos, prompts):
    here = tuple(len(ids) // 2 for ids in prompts)
    tokens = lens.tokens(prompts).labelled(HERE=here)
    at = "" if pos is None else f"@{pos}"
    edits = [add(f"L0.resid_post{at}", torch.linspace(-1, 1, 64)), zero(f"L1H2.z{at}"), add(f"L1H1.scores{at}", 2.0)]
    if lens.layout.n_experts:
        edits.append(route(f"L2E1{at}", "off"))
    for size in (2, 64):
        together = lens.run(tokens, edits=edits, batch_size=size, read=["L2.mlp_out"])
        for row, ids in enumerate(prompts):
            alone = lens.run(lens.tokens([ids]).labelled(HERE=[here[row]]), edits=edits, read=["L2.mlp_out"])
            assert_close(together.logits[row, : len(ids)], alone.logits[0], **CLOSE)
            assert_close(together["L2.mlp_out"][row, : len(ids)], alone["L2.mlp_out"][0], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_sources_pair_row_by_row_also_when_split(lens, prompts, long):
    others = [long[9:16], long[::-1], long[1:2], long[7:19], long[8:15]]
    for edit in (patch("L1.resid_post"), patch("L1H2.pattern"), patch("L1.resid_post@-1"), patch("L1H1.scores@-1")):
        for size in (1, 2, 64):
            together = lens.run(prompts, edits=[edit], sources={"clean": others}, batch_size=size)
            for row, (ids, other) in enumerate(zip(prompts, others, strict=True)):
                alone = lens.run([ids], edits=[edit], sources={"clean": [other]})
                assert_close(together.logits[row, : len(ids)], alone.logits[0], **CLOSE)


def test_one_source_prompt_serves_all_and_a_run_can_be_a_source(lens_of, long):
    lens = lens_of("llama")
    prompts, other = [long[:6], long[3:9], long[7:13]], [long[10:16]]
    one = lens.run(prompts, edits=[patch("L1.resid_post")], sources={"clean": other}).logits
    assert_close(one, lens.run(other * 3).logits, **CLOSE)
    given = lens.run(other, read=["L1.resid_post"])
    assert_close(lens.run(prompts, edits=[patch("L1.resid_post")], sources={"clean": given}).logits, one, **CLOSE)
    from_2 = lens.run(
        prompts, edits=[patch("L1.resid_post@-1", source_pos=2)], sources={"clean": given}, read=["L1.resid_post@-1"]
    )
    assert_close(from_2["L1.resid_post@-1"], given["L1.resid_post"][:, 2].expand(3, -1), rtol=0, atol=0)


def test_resample_draws_by_its_seed(lens_of, long):
    lens = lens_of("gpt2")
    prompts, pool = [long[i : i + 5] for i in range(8)], [long[i : i + 5] for i in range(9, 14)]
    values = lens.run(pool, read=["L1.resid_post"])["L1.resid_post"]
    drawn = {}
    for seed in (0, 1, 2):
        for size in (3, 64):
            run = lens.run(
                prompts,
                [resample("L1.resid_post", seed=seed)],
                ["L1.resid_post"],
                sources={"pool": pool},
                batch_size=size,
            )
            rows = [next(i for i, v in enumerate(values) if torch.equal(v, x)) for x in run["L1.resid_post"]]
            assert drawn.setdefault(seed, rows) == rows
    assert len({tuple(rows) for rows in drawn.values()}) == 3
    assert len(set(drawn[0])) > 1


def test_means_by_hand(lens_of, long):
    lens = lens_of("llama")
    prompts, pool = [long[:5], long[2:7]], [long[i : i + 5] for i in range(9, 12)]
    sources, read = {"pool": pool}, ["L1.z", "L1.z@-1"]
    values = lens.run(pool, read=["L1.z"])["L1.z"]
    by_position = lens.run(prompts, [mean("L1.z")], read, sources=sources)
    assert_close(by_position["L1.z"], values.mean(0).expand(2, -1, -1, -1), **CLOSE)
    by_token = lens.run(prompts, [mean("L1.z", over="tokens")], read, sources=sources)
    assert_close(by_token["L1.z"], values.flatten(0, 1).mean(0).expand(2, 5, -1, -1), **CLOSE)
    ragged = [long[9:14], long[3:5], long[1:9]]
    tokens = torch.cat([lens.run([ids], read=["L1.z"])["L1.z"][0] for ids in ragged])
    over = lens.run([*prompts, long], [mean("L1H1.z", over="tokens")], ["L1H1.z"], sources={"pool": ragged})["L1H1.z"]
    assert_close(over[2], tokens.mean(0)[1].expand(19, -1), **CLOSE)
    assert not over[0, 5:].any()
    ends = torch.stack([lens.run([ids], read=["L1.z@-1"])["L1.z@-1"][0] for ids in ragged])
    at_end = lens.run([*prompts, long], [mean("L1.z@-1")], ["L1.z@-1"], sources={"pool": ragged})["L1.z@-1"]
    assert_close(at_end, ends.mean(0).expand(3, -1, -1), **CLOSE)


@pytest.mark.parametrize(
    ("edit", "n_sources", "length", "message"),
    [
        (patch("L1.z"), 2, 4, "use prompts of equal token length"),
        (patch("L1.z"), 3, 5, "give one per prompt, or a single one"),
        (mean("L1.z"), 3, 4, "use prompts of equal token length"),
        (resample("L1.z"), 3, 4, "use prompts of equal token length"),
        (patch("L1.z@4"), 2, 4, "Position 4 is outside a prompt of 4 tokens"),
        (patch("L1.z@-1", source_pos="X"), 2, 5, "label 'X' is unknown"),
    ],
)
def test_sources_that_do_not_fit_are_refused(lens_of, long, edit, n_sources, length, message):
    with pytest.raises(PromptError, match=message):
        lens_of("gpt2").run([long[:5], long[5:10]], [edit], sources={edit.source: [long[:length]] * n_sources})


def test_an_edit_without_its_source_is_refused(lens_of, long):
    with pytest.raises(EditError, match="Source 'clean' is named by an edit but was not given"):
        lens_of("gpt2").run([long[:5]], [patch("L1.z")])
