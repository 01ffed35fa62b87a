"""Faithfulness curves: areas worked by hand, intervals, and the curve of a model whose circuit is known."""

import numpy as np
import pytest
import torch
from planted_tasks import TASKS
from toys import toy_task

from circuits.circuit import Origin, Scores
from circuits.curve import SIZES, Curve, area_difference, curve
from circuits.wiring import Wiring
from mechlab.errors import MechlabError, PromptError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models import PLANTED, tiny
from mechlab.patching.task import Task
from mechlab.results.statistics import bootstrap_ratio


def origin(model, **changes):
    fields = {
        "task": "toy",
        "method": "by hand",
        "metric": "logit_difference",
        "ablation": "corrupted",
        "seed": 0,
        "n_prompts": 1,
        "model": model.name,
        "fingerprint": model.fingerprint,
    }
    return Origin(**(fields | changes))


def made(values, clean, empty, sizes=(0.1, 0.5, 1.0), **changes):
    made_up = Origin(
        task="t",
        method="m",
        metric="logit_difference",
        ablation="corrupted",
        seed=0,
        n_prompts=2,
        model="x",
        fingerprint="y",
    )
    counts = tuple(range(1, len(sizes) + 1))
    fields = {"origin": made_up, "task": "t", "metric": "logit_difference", "ablation": "corrupted", "sizes": sizes}
    arrays = (np.array(x, dtype=float) for x in (values, clean, empty))
    return Curve(
        **(fields | changes),
        n_edges=counts,
        kept_edges=counts,
        **dict(zip(("values", "clean", "empty"), arrays, strict=True)),
    )


def test_areas_by_hand():
    # means: empty 1, clean 5, circuits 0, 7, 5 -> f = -1/4, 3/2, 1
    one = made([[1, -1], [4, 10], [4, 6]], clean=[4, 6], empty=[0, 2])
    assert one.faithfulness == pytest.approx([-0.25, 1.5, 1.0])
    # CPR: .4 (-.25 + 1.5)/2 + .5 (1.5 + 1)/2; CMD: .4 (1.25 + .5)/2 + .5 (.5 + 0)/2
    assert one.area("cpr").estimate == pytest.approx(0.25 + 0.625)
    assert one.area("cmd").estimate == pytest.approx(0.35 + 0.125)
    assert one.per_prompt == pytest.approx(np.array([[0.25, -0.75], [1.0, 2.0], [1.0, 1.0]]))
    frame = one.frame()
    assert list(frame) == [
        "fraction",
        "n_edges",
        "kept_edges",
        "faithfulness",
        "low",
        "high",
        "mean_ratio",
        "median_ratio",
    ]
    assert frame["mean_ratio"].tolist() == pytest.approx([-0.25, 1.5, 1.0])
    assert (frame["low"].iloc[-1], frame["high"].iloc[-1]) == pytest.approx((1, 1))


def test_chance_areas_at_the_sizes_of_mib():
    """Nothing kept until every edge is: CPR (1 - .5)/2 = .25 and CMD .749, as published for random circuits."""
    values = np.zeros((len(SIZES), 3))
    values[-1] = 2
    one = made(values, clean=[2, 2, 2], empty=[0, 0, 0], sizes=SIZES)
    assert one.area("cpr").estimate == pytest.approx(0.25)
    assert one.area("cmd").estimate == pytest.approx(0.749)


def test_a_ratio_without_denominator_is_left_out_of_the_mean():
    one = made([[3, 8], [3, 2]], clean=[3, 4], empty=[3, 0], sizes=(0.5, 1.0))
    assert np.isnan(one.per_prompt[:, 0]).all()
    assert one.frame()["mean_ratio"].tolist() == [2.0, 0.5]
    assert one.faithfulness.tolist() == [2.0, 0.5]  # here the first prompt adds nothing to either mean


def noisy(seed, n=40, level=0.6):
    draw = np.random.default_rng(seed)
    clean, empty = draw.normal(5, 1, n), draw.normal(0, 1, n)
    values = (
        empty + np.array([[level / 2], [level], [1]]) * (clean - empty) + draw.normal(0, 1, (3, n)) * [[1], [1], [0]]
    )
    return clean, empty, values


def test_intervals_hold_their_estimate_and_resample_prompts_whole():
    clean, empty, values = noisy(0)
    one = made(values, clean, empty)
    for which in ("cpr", "cmd"):
        found = one.area(which)
        assert found.low < found.estimate < found.high and found.n == 40
    # f below 1 throughout: |1 - f| = 1 - f, so CMD = width - CPR, and its bounds are those of CPR turned round
    cpr, cmd = one.area("cpr"), one.area("cmd")
    assert cmd.estimate == pytest.approx(0.9 - cpr.estimate)
    assert [cmd.low, cmd.high] == pytest.approx([0.9 - cpr.high, 0.9 - cpr.low], abs=0.01)
    frame = one.frame()
    assert (frame["low"] <= frame["faithfulness"]).all() and (frame["faithfulness"] <= frame["high"]).all()
    # values proportional to what there is to keep: no resample of whole prompts can change f
    same = made(empty + np.array([[0.3], [0.7], [1]]) * (clean - empty), clean, empty)
    for which in ("cpr", "cmd"):
        found = same.area(which)
        assert found.high - found.low < 1e-9, which


def test_interval_of_an_area_covers_the_truth():
    """2 x 100 made-up tasks: the 95 % intervals of CMD and CPR hold the true area nearly always."""
    truth = {"cpr": 0.4 * (0.3 + 0.6) / 2 + 0.5 * (0.6 + 1) / 2}
    truth["cmd"] = 0.9 - truth["cpr"]
    held = {"cpr": 0, "cmd": 0}
    for seed in range(100):
        clean, empty, values = noisy(seed)
        for which, true in truth.items():
            found = made(values, clean, empty).area(which, n_resamples=300)
            held[which] += found.low <= true <= found.high
    assert all(86 <= count <= 100 for count in held.values()), held
    assert all(count < 100 for count in held.values()), held


def test_constant_difference_is_a_point():
    clean, empty, values = noisy(1)
    first, second = made(values, clean, empty), made(values, clean, empty)
    for which in ("cpr", "cmd"):
        found = area_difference(first, second, which)
        assert (found.estimate, found.low, found.high) == (0, 0, 0)
    # twice as far from the clean run at each size, on every prompt, by the same share of its span
    lower = made(values - 0.1 * (clean - empty), clean, empty)
    found = area_difference(lower, first, "cpr")
    assert [found.estimate, found.low, found.high] == pytest.approx([-0.09] * 3)
    lower = made(empty + 0.2 * np.ones((3, 1)) * (clean - empty), clean, empty)
    same = made(empty + 0.5 * np.ones((3, 1)) * (clean - empty), clean, empty)
    found = area_difference(lower, same, "cmd")
    assert [found.estimate, found.low, found.high] == pytest.approx([0.27] * 3)


def test_difference_is_paired():
    """The interval of a difference is far narrower than the two areas' own when both share the prompts' noise."""
    clean, empty, values = noisy(2)
    first = made(values, clean, empty)
    second = made(values - 0.1 * (clean - empty) + np.random.default_rng(0).normal(0, 0.01, values.shape), clean, empty)
    for which, sign in (("cpr", 1), ("cmd", -1)):
        found = area_difference(first, second, which)
        assert found.estimate == pytest.approx(first.area(which).estimate - second.area(which).estimate)
        assert sign * found.low > 0 and sign * found.high > 0
        assert found.high - found.low < (first.area(which).high - first.area(which).low) / 5


def test_no_bounds_where_the_data_give_none():
    one_prompt = made([[1], [2], [4]], clean=[4], empty=[0])
    open_sign = made([[1, 1], [2, 2], [5, -4]], clean=[5, -4], empty=[0, 0])
    for one in (one_prompt, open_sign):
        for which in ("cpr", "cmd"):
            found = one.area(which)
            assert np.isfinite(found.estimate) and np.isnan(found.low) and np.isnan(found.high)


def planted(name):
    planted = PLANTED[name]()
    wiring = Wiring.of(Lens(planted.model))
    truth = wiring.graph.select(planted.edges)
    scores = Scores(wiring.graph, truth.float(), origin(planted.model))
    return planted, wiring, TASKS[name](wiring.lens, n=9, seed=1), scores


@pytest.mark.parametrize("name", ["induction", "grouped"])
def test_true_circuit_keeps_everything_and_a_part_of_it_nothing(name):
    planted_model, wiring, task, scores = planted(name)
    n_true, n_edges = len(planted_model.edges), wiring.graph.n_edges
    # the truth less its last edge, the truth, everything
    sizes = ((n_true - 1 + 0.5) / n_edges, (n_true + 0.5) / n_edges, 1.0)
    assert (
        scores.ranked()[:n_true].tolist()
        == wiring.graph.select(planted_model.edges).flatten().nonzero().flatten().tolist()
    )
    found = curve(wiring, task, scores, sizes=sizes, batch_size=4)
    assert found.n_edges == (n_true - 1, n_true, n_edges)
    assert found.kept_edges[0] < n_true - 1  # without the last edge the path breaks off
    assert found.kept_edges[1:] == (n_true, n_edges)
    assert found.faithfulness[1:] == pytest.approx([1, 1], abs=1e-4)
    assert found.faithfulness[0] < 0.9
    assert found.origin.ranking == "signed" and found.task == task.name
    assert bootstrap_ratio(found.values[1] - found.empty, found.clean - found.empty).low == pytest.approx(1, abs=1e-4)


def test_rankings_and_small_sizes():
    lens = Lens(tiny("gpt2"))
    wiring, task = Wiring.of(lens), toy_task(lens)
    values = torch.randn(wiring.graph.shape, generator=torch.Generator().manual_seed(0)) * wiring.graph.real
    scores = Scores(wiring.graph, values, origin(lens.model))
    curves = {ranking: curve(wiring, task, scores, ranking=ranking) for ranking in ("signed", "absolute")}
    n_edges = wiring.graph.n_edges
    for ranking, found in curves.items():
        assert found.n_edges == tuple(max(1, int(size * n_edges)) for size in SIZES)
        assert found.n_edges[0] == 1 and found.origin.ranking == ranking
        assert found.values[-1] == pytest.approx(found.clean)
        for i, n in enumerate(found.n_edges):
            assert found.kept_edges[i] == scores.top(n, ranking).n_edges
    assert abs(curves["signed"].values - curves["absolute"].values).max() > 0.01
    for which in ("cpr", "cmd"):
        found = area_difference(curves["signed"], curves["absolute"], which)
        assert found.estimate == pytest.approx(
            curves["signed"].area(which).estimate - curves["absolute"].area(which).estimate
        )


def test_errors():
    lens = Lens(tiny("gpt2"))
    wiring, task = Wiring.of(lens), toy_task(lens)
    scores = Scores(wiring.graph, wiring.graph.real.float(), origin(lens.model))
    same = Task("same", task.clean, task.clean, task.answers, task.foils)
    with pytest.raises(PromptError, match=r"task same is .* the same with everything ablated"):
        curve(wiring, same, scores)
    with pytest.raises(MechlabError, match="These scores are of tiny-gpt2, not of"):
        curve(wiring, task, Scores(wiring.graph, scores.values, origin(lens.model, fingerprint="other")))
    for sizes in ((), (0.5, 0.1), (0.0, 1.0), (0.5, 1.5), (0.5, 0.5)):
        with pytest.raises(MechlabError, match="must be shares of all edges that rise"):
            curve(wiring, task, scores, sizes=sizes)
    one = made([[1, 2], [3, 4], [4, 6]], clean=[4, 6], empty=[0, 2])
    with pytest.raises(UnknownName, match="Unknown area 'cmp'"):
        one.area("cmp")
    for other in (
        made([[1, 2], [3, 4], [4, 6]], clean=[4, 7], empty=[0, 2]),
        made([[1, 2], [3, 4], [4, 6]], clean=[4, 6], empty=[0, 2], sizes=(0.2, 0.5, 1.0)),
        made([[1], [3], [4]], clean=[4], empty=[0]),
    ):
        with pytest.raises(MechlabError, match="compare like with like"):
            area_difference(one, other)
