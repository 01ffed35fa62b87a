"""Effects: summaries worked out by hand, grids with labels, files that read back."""

import math

import numpy as np
import pandas as pd
import pytest

from mechlab.errors import MechlabError, StoreError, UnknownName
from mechlab.results import Effects, bootstrap_mean, bootstrap_ratio
from mechlab.results.effects import COLUMNS

CLEAN, CORRUPTED = [4.0, 2.0, 0.0], [0.0, -2.0, 0.0]  # the third prompt has nothing to recover


def rows(intervention, site, after, *, kind="z", layer=0, head=None, pos=None, clean=CLEAN, corrupted=CORRUPTED):
    return [
        dict(zip(COLUMNS, (intervention, site, kind, layer, head, None, pos, "patch", i, c, a, k, c), strict=True))
        for i, (a, k, c) in enumerate(zip(after, clean, corrupted, strict=True))
    ]


def effects(*groups):
    return Effects(pd.DataFrame([row for group in groups for row in group]), "logit_difference", "corrupted")


@pytest.fixture
def three():
    return effects(
        rows(7, "L2H1", [2.0, 0.0, 0.0], layer=2, head=1),
        rows(3, "L0H0", [0.0, -2.0, 0.0], layer=0, head=0),
        rows(5, "L2H0", [-2.0, -2.0, 1.0], layer=2, head=0),
    )


def test_points_by_hand(three):
    table = three.points()
    assert table["intervention"].tolist() == [3, 5, 7] and table["site"].tolist() == ["L0H0", "L2H0", "L2H1"]
    assert table["n"].tolist() == [3, 3, 3] and len(three) == 3
    assert table["change"].tolist() == pytest.approx([0, -1 / 3, 4 / 3])
    assert table["recovered"].tolist() == pytest.approx([0, -1 / 8, 4 / 8]), (
        "ratio of means: sum of gains / sum of spans"
    )
    assert table["recovered_per_prompt"].tolist() == pytest.approx([0, -1 / 4, 1 / 2]), (
        "over the two prompts with a span"
    )


def test_ratio_of_means_and_mean_of_ratios_differ_where_denominators_do():
    table = effects(rows(0, "L0H0", [1.0, 1.0], clean=[10.0, 1.0], corrupted=[0.0, 0.0], head=0)).points()
    assert table["recovered"][0] == pytest.approx(2 / 11) and table["recovered_per_prompt"][0] == pytest.approx(0.55)


def test_summary_intervals_are_those_of_the_prompts():
    random = np.random.default_rng(0)
    clean, corrupted = random.normal(3, 1, 30), random.normal(-2, 1, 30)
    after = corrupted + random.normal(0.4, 0.2, 30) * (clean - corrupted)
    shuffled = pd.DataFrame(rows(0, "L0H0", after, head=0, clean=clean, corrupted=corrupted)).sample(
        frac=1, random_state=1
    )
    line = Effects(shuffled, "m", "corrupted").summary(n_resamples=20_000).iloc[0]
    change = bootstrap_mean(after - corrupted, n_resamples=20_000)
    ratio = bootstrap_ratio(after - corrupted, clean - corrupted, n_resamples=20_000)
    assert [line["change_low"], line["change_high"]] == pytest.approx([change.low, change.high], abs=0.03)
    assert line["change"] == pytest.approx(change.estimate) and line["recovered"] == pytest.approx(ratio.estimate)
    assert [line["recovered_low"], line["recovered_high"]] == pytest.approx([ratio.low, ratio.high], abs=0.005)


def test_interventions_may_have_unequal_prompts_and_no_corrupted_run():
    table = effects(
        rows(0, "L0H0", [1.0, 2.0, 3.0], head=0, clean=[1.0, 2.0, 4.0], corrupted=[math.nan] * 3),
        rows(1, "L0H1", [1.0, 3.0], head=1, clean=[2.0, 3.0], corrupted=[0.0, 1.0]),
        rows(2, "L0H2", [1.0], head=2, clean=[2.0], corrupted=[0.0]),
    )
    frame = table.frame.assign(before=table.frame["before"].fillna(0.0))
    summary = Effects(frame, "m", "clean").summary()
    assert summary["n"].tolist() == [3, 2, 1]
    assert summary["change"].tolist() == [2.0, 1.5, 1.0]
    assert math.isnan(summary["recovered"][0]) and math.isnan(summary["recovered_low"][0])
    assert summary["recovered"].tolist()[1:] == [0.75, 0.5]
    assert summary["change_low"][0] < 2.0 < summary["change_high"][0] and math.isnan(summary["change_low"][2])


def test_a_missing_metric_value_is_an_error_in_the_summary():
    with pytest.raises(MechlabError, match="NaN"):
        effects(rows(0, "L0H0", [1.0, math.nan, 1.0], head=0)).summary()


def test_grid_has_labels_in_order_and_leaves_absent_cells_empty(three):
    grid = three.grid()
    assert grid.index.tolist() == [0, 2] and grid.columns.tolist() == [0, 1]
    assert (grid.index.name, grid.columns.name) == ("layer", "head")
    assert grid.loc[2].tolist() == pytest.approx([-1 / 8, 1 / 2]) and grid.loc[0, 0] == 0 and math.isnan(grid.loc[0, 1])
    assert three.grid(value="change").loc[2, 1] == pytest.approx(4 / 3)


def test_grid_over_positions_keeps_labels_in_order_of_appearance():
    labels = ["S2", "IO", -1]
    groups = [rows(i, f"L1@{p}", [1.0, 0.0, 0.0], kind="resid_pre", layer=1, pos=p) for i, p in enumerate(labels)]
    grid = effects(*groups).grid(columns="pos")
    assert grid.columns.tolist() == ["S2", "IO", "-1"]
    numbers = [rows(i, f"L1@{p}", [1.0, 0.0, 0.0], layer=1, pos=p) for i, p in enumerate([10, 9, -1])]
    assert effects(*numbers).grid(columns="pos").columns.tolist() == [-1, 9, 10]


def test_grid_refuses_to_average_two_interventions_and_where_selects_one():
    both = effects(
        rows(0, "L0H0", [1.0, 0.0, 0.0], head=0),
        rows(1, "L0H0.q", [2.0, 0.0, 0.0], head=0, kind="q", pos="S2"),
    )
    with pytest.raises(MechlabError, match=r"L0H0, L0H0\.q"):
        both.grid()
    assert both.where(kind="q").grid().loc[0, 0] == pytest.approx((2 + 2) / 8)
    assert len(both.where(pos="S2")) == 1 and len(both.where(layer=0, kind="z")) == 1
    with pytest.raises(MechlabError, match="No intervention"):
        both.where(layer=9)
    with pytest.raises(UnknownName):
        both.where(layers=0)


def test_top_is_by_size_of_either_sign_unless_asked_for_the_largest(three):
    assert three.top(2)["site"].tolist() == ["L2H1", "L2H0"]
    assert three.top(2, largest="value")["site"].tolist() == ["L2H1", "L0H0"]
    assert three.top(1, by="change")["site"].tolist() == ["L2H1"]
    with pytest.raises(UnknownName):
        three.top(1, by="recoverd")
    with pytest.raises(UnknownName):
        three.grid(value="size")


@pytest.mark.parametrize("positions", [[None, "S2", -1], [None, 4, -1], [None, None, None], ["S2", "IO", "END"]])
def test_parquet_reads_back_the_same(tmp_path, positions):
    groups = [rows(i, f"s{i}", [1.0, 0.0, 0.0], layer=None if p is None else 3, pos=p) for i, p in enumerate(positions)]
    written = Effects(effects(*groups).frame, "kl", "clean", "attribution")
    written.to_parquet(tmp_path / "e.parquet")
    read = Effects.from_parquet(tmp_path / "e.parquet")
    pd.testing.assert_frame_equal(read.frame, written.frame)
    assert (read.metric, read.base, read.method) == ("kl", "clean", "attribution")


def test_files_that_are_no_effects_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("hello")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    for name in ("text", "other", "absent"):
        with pytest.raises(StoreError, match="not a table of effects"):
            Effects.from_parquet(tmp_path / f"{name}.parquet")


def test_wrong_columns_and_repeated_rows_are_our_mistakes(three):
    with pytest.raises(AssertionError, match="after"):
        Effects(three.frame.drop(columns="after"), "m", "clean")
    with pytest.raises(AssertionError, match="repeat"):
        Effects(pd.concat([three.frame, three.frame]), "m", "clean")


def test_the_callers_frame_is_left_alone():
    frame = pd.DataFrame(rows(0, "L0H0", [1.0, 0.0, 0.0], head=0, pos=-1))
    before = frame.copy()
    Effects(frame, "m", "clean").summary()
    pd.testing.assert_frame_equal(frame, before)
