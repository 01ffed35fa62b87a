"""Steps and greedy paths against brute force over the written-out weights of a llama."""

import math

import pytest
import torch
from feature_toys import random_transcoder

from circuits.features.attribution import attribute
from circuits.features.explained import Explained, explain
from circuits.features.paths import greedy_paths, path_graph, path_table
from circuits.features.steps import back, one_step, reading_of, step
from circuits.features.target import Target, feature_target, logit_target
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.models import FAMILIES, tiny

PROMPT = [[5, 9, 7, 12, 30]]


def explained_of(family: str = "llama", **more) -> Explained:
    lens = Lens(tiny(family))
    return explain(lens, PROMPT, [random_transcoder(lens, 0, n=12), random_transcoder(lens, 2, n=14, **more)])


@pytest.fixture(scope="module")
def explained() -> Explained:
    return explained_of()


def a_feature(explained: Explained, layer: int, pos: int) -> Target:
    active = explained.active
    here = ((active.layer == layer) & (active.pos == pos)).nonzero().flatten()
    return explained.target_of(int(here[active.value[here].argmax()]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_of_a_step_add_up_in_every_family(family):
    """Of the target, and of every part that can be followed back."""
    explained = explained_of(family, skip=True)
    for target in (logit_target(explained.run.lens, 7, 9), a_feature(explained, 2, 4)):
        reading = reading_of(explained, target)
        found = step(explained, reading)
        assert float(found.contributions.sum()) == pytest.approx(reading.value, abs=1e-4)
        assert reading.value == pytest.approx(explained.value(target))
        followed = 0
        for part, contribution in zip(found.parts, found.contributions.tolist(), strict=True):
            below = back(explained, reading, part)
            if below is not None:
                followed += 1
                assert below.value == pytest.approx(contribution, abs=1e-4)
                assert float(step(explained, below).contributions.sum()) == pytest.approx(contribution, abs=1e-4)
        assert followed > 20


def test_a_step_followed_to_its_end_is_the_sum_over_all_routes(explained):
    """Following heads back and nothing else, the routes of a feature of layer 0 add up to what one backward pass says."""
    target = logit_target(explained.run.lens, 7, 9)
    totals: dict[str, float] = {}

    def follow(reading):
        found = step(explained, reading)
        for part, contribution in zip(found.parts, found.contributions.tolist(), strict=True):
            if part.kind == "head":
                follow(back(explained, reading, part))
            else:
                totals[str(part)] = totals.get(str(part), 0.0) + contribution

    follow(reading_of(explained, target))
    table = attribute(explained, [target]).table()
    features = table[table.kind == "feature"]
    assert (features.contribution.abs() > 1e-3).sum() > 10
    for row in features.itertuples():
        # the top layer's features at earlier tokens reach nothing
        assert totals.get(f"L{row.layer}F{row.feature}@{row.pos}", 0.0) == pytest.approx(row.contribution, abs=1e-4)
    for row in table[table.kind == "embedding"].itertuples():
        assert totals[f"embedding@{row.pos}"] == pytest.approx(row.contribution, abs=1e-4)


def test_one_step_tells_the_factors(explained):
    target = a_feature(explained, 2, 4)
    table = one_step(explained, target)
    assert float(table.contribution.sum()) == pytest.approx(explained.value(target), abs=1e-4)
    features = table[table.kind == "feature"]
    assert len(features) and set(features.layer) == {0} and set(features.pos) == {4}
    assert torch.allclose(
        torch.tensor((features.activation * features["scale"] * features.invariant).to_numpy()),
        torch.tensor(features.contribution.to_numpy()),
    )
    hf = explained.run.lens.model.hf
    row, one = features.iloc[0], explained.transcoders
    assert target.feature is not None
    by_hand = (one[2].encoder[target.feature] * hf.model.layers[2].post_attention_layernorm.weight) @ one[0].directions[
        row.feature
    ]
    assert row.invariant == pytest.approx(float(by_hand), rel=1e-4)
    heads = table[table.kind == "head"]
    assert len(heads) == 3 * 4 * 5 and heads.groupby(["layer", "head"]).attention.sum().to_numpy() == pytest.approx(
        1.0, abs=1e-5
    )


def brute(explained: Explained, target: Target, depth: int) -> dict[tuple[str, ...], float]:
    """Every chain of up to ``depth`` parts below a target, from the weights of a llama written out. Raw contributions."""
    run, hf, one = explained.run, explained.run.lens.model.hf, explained.transcoders
    n_heads, width = run.lens.model.n_heads, run.lens.model.d_head
    group = n_heads // run.lens.model.n_kv_heads
    stream = run.lens.run(
        PROMPT, read=["L0.resid_pre", "L0.mlp_in", "L2.mlp_in", "L1.mlp_out", *(f"L{i}.resid_pre" for i in range(3))]
    )
    resid = run.lens.run(PROMPT, read=[f"L{i}.resid_mid" for i in range(3)])

    def rms(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def scaled(vector, x, weight):
        """A vector after the norm as it reads what came before it."""
        return vector * weight / (x.square().mean() + 1e-6).sqrt()

    def below(vector, pos, layers, mid):
        """(name, contribution, vector, pos, layers, mid) of all parts that write to that stream."""
        yield f"embedding@{pos}", float(stream["L0.resid_pre"][0, pos] @ vector), None
        for layer in range(layers + mid):
            block = hf.model.layers[layer]
            normed = rms(stream[f"L{layer}.resid_pre"][0], block.input_layernorm.weight)
            for head in range(n_heads):
                own = slice(head * width, (head + 1) * width)
                shared = slice(head // group * width, (head // group + 1) * width)
                written = block.self_attn.o_proj.weight[:, own].T @ vector
                read = block.self_attn.v_proj.weight[shared].T @ written
                for source in range(1, pos + 1):
                    attention = run.patterns[layer][head, pos, source]
                    x = stream[f"L{layer}.resid_pre"][0, source]
                    after = (scaled(read, x, block.input_layernorm.weight) * attention, source, layer, 0)
                    yield f"L{layer}H{head}@{source}", float(attention * (normed[source] @ read)), after
            if layer >= layers:
                continue
            if layer == 1 or pos == 0:
                name = f"L{layer}.mlp_out"
                yield f"L{layer} MLP@{pos}", float(run.lens.run(PROMPT, read=[name])[name][0, pos] @ vector), None
                continue
            codes = one[layer].encode(stream[f"L{layer}.mlp_in"][0, pos][None])[0]
            for feature in codes.nonzero().flatten().tolist():
                weight = one[layer].directions[feature] @ vector
                encoder = one[layer].encoder[feature] * weight
                x = resid[f"L{layer}.resid_mid"][0, pos]
                after = (scaled(encoder, x, block.post_attention_layernorm.weight), pos, layer, 1)
                yield f"L{layer}F{feature}@{pos}", float(codes[feature] * weight), after

    layer = target.place[1]
    first = scaled(
        target.vector,
        resid[f"L{layer}.resid_mid"][0, target.pos],
        hf.model.layers[layer].post_attention_layernorm.weight,
    )
    found: dict[tuple[str, ...], float] = {}

    def walk(names, at):
        if len(names) < depth and at is not None:
            for name, contribution, after in below(*at):
                found[(*names, name)] = contribution
                walk((*names, name), after)

    with torch.no_grad():
        walk((), (first, target.pos, layer, 1))
    return found


def greedy(chains: dict[tuple[str, ...], float], activation: float, depth: int, branches: int, raw: bool):
    """The search in plain words: chains kept at each depth, with their capped contribution."""

    def capped(names):
        limits = [activation] + [chains[names[:i]] for i in range(1, len(names)) if "F" in names[i - 1]]
        high = min([limit for limit in limits if limit >= 0], default=math.inf)
        low = max([limit for limit in limits if limit < 0], default=-math.inf)
        return chains[names] if raw else max(low, min(high, chains[names]))

    kept, depths = [()], []
    for _ in range(depth):
        new = []
        for names in kept:
            longer = [c for c in chains if c[:-1] == names]
            new += sorted(longer, key=lambda c: -capped(c))[:branches]
        kept = sorted(new, key=lambda c: -capped(c))[:branches]
        depths.append([(names, chains[names], capped(names)) for names in kept])
    return depths


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("branches", [1, 3, 8])
def test_greedy_paths_are_those_of_brute_force(explained, branches, raw):
    target = a_feature(explained, 2, 4)
    chains = brute(explained, target, 3)
    expected = greedy(chains, explained.value(target), 3, branches, raw)
    found = greedy_paths(explained, target, depth=3, branches=branches, raw=raw)
    expected = [wanted for wanted in expected if wanted]
    assert len(found.depths) == len(expected) and (branches < 8 or len(expected) == 3)
    for paths, wanted in zip(found.depths, expected, strict=True):
        assert sorted(tuple(map(str, path.parts)) for path in paths) == sorted(names for names, _, _ in wanted)
        assert [path.capped for path in paths] == pytest.approx([capped for _, _, capped in wanted], abs=1e-4)
        by_name = {tuple(map(str, path.parts)): path for path in paths}
        for names, contribution, _ in wanted:
            assert by_name[names].raw[-1] == pytest.approx(contribution, abs=1e-4)
    assert len(path_table(found)) == sum(map(len, expected))


def test_the_cap_is_the_tightest_limit_on_the_path():
    """Somewhere it binds; without it contributions are raw."""
    lens = Lens(tiny("llama"))
    some = [random_transcoder(lens, layer, n=30) for layer in range(3)]
    for one in some:
        one.encoder_bias = one.encoder_bias - 1.0  # what a feature reads is then more than what it is
    explained = explain(lens, PROMPT, some)
    here = (explained.active.layer == 2) & (explained.active.pos == 4)
    target = explained.target_of(int(here.nonzero()[explained.active.value[here].argmin()]))  # nearly off
    capped = greedy_paths(explained, target, depth=3, branches=60)
    raw = greedy_paths(explained, target, depth=3, branches=60, raw=True)
    paths = [path for paths in capped.depths for path in paths]
    binds_earlier = 0
    for path in paths:
        features = [path.raw[i] for i, part in enumerate(path.parts[:-1]) if part.kind == "feature"]
        limits = [limit for limit in (explained.value(target), *features) if limit >= 0]
        low = max([limit for limit in features if limit < 0], default=-math.inf)
        assert path.capped == pytest.approx(max(low, min(path.raw[-1], *limits, math.inf)))
        binds_earlier += len(limits) > 1 and path.capped < limits[-1] - 1e-6 and path.capped < path.raw[-1] - 1e-6
    assert binds_earlier  # a limit higher up than the last feature's
    assert all(path.capped == path.raw[-1] for paths in raw.depths for path in paths)


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_graph_of_paths_adds_up_node_by_node(explained, collapsed):
    target = a_feature(explained, 2, 4)
    found = greedy_paths(explained, target, depth=3, branches=6)
    graph = path_graph(found, sum_over_tokens=collapsed)
    into = graph.edges.groupby("target").contribution.sum()
    out_of = graph.edges.groupby("source").contribution.sum()
    expanded = graph.nodes.dropna(subset=["error"])
    assert len(expanded) >= 4 and not graph.nodes.node.duplicated().any()
    if not collapsed:
        for row in expanded.itertuples():
            total = into.get(row.node, 0.0) + row.error + row.bias + row.pruned
            assert row.contribution == pytest.approx(total, abs=1e-3)
        assert graph.nodes.node[0] == target.name
    for row in graph.nodes[graph.nodes.kind != "target"].itertuples():
        assert out_of[row.node] == pytest.approx(row.contribution, abs=1e-4)
    first = step(explained, reading_of(explained, target))
    errors = sum(c for part, c in zip(first.parts, first.contributions.tolist(), strict=True) if part.kind == "error")
    assert graph.nodes.error[0] == pytest.approx(errors, abs=1e-6) and abs(errors) > 1e-3


def test_a_search_that_finds_nothing_is_refused(explained):
    with pytest.raises(MechlabError, match="depth 0 with 5 branches"):
        greedy_paths(explained, feature_target(explained.transcoders[2], 0, 4), depth=0)
