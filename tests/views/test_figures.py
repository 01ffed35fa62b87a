"""Figures hold the numbers they were given, in the right places, centred and labelled."""

import json
import math

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest

from mechlab.results import Control, Finding, Rule
from mechlab.views import bars_with_intervals, heatmap, intervals_against_controls, pattern

GRID = pd.DataFrame(
    [[0.1, -0.4, 0.0], [0.2, math.nan, 0.05]],
    index=pd.Index([0, 3], name="layer"),
    columns=pd.Index([0, 2, 5], name="head"),
)


def test_diverging_colours_are_centred_at_zero_with_blue_above():
    cells = heatmap(GRID, "t", "recovered").data[0]
    assert (cells.zmin, cells.zmid, cells.zmax) == (-0.4, 0, 0.4)
    red_green_blue = [[int(x) for x in cells.colorscale[i][1][4:-1].split(",")] for i in (0, -1)]
    assert red_green_blue[0][0] > red_green_blue[0][2] and red_green_blue[1][2] > red_green_blue[1][0]


def test_layer_zero_is_at_the_bottom_and_labels_are_the_grids():
    figure = heatmap(GRID, "t", "recovered")
    cells = figure.data[0]
    assert list(cells.y) == [0, 1] and figure.layout.yaxis.autorange is None, "plotly counts rows upwards"
    assert list(figure.layout.yaxis.ticktext) == ["0", "3"] and list(figure.layout.xaxis.ticktext) == ["0", "2", "5"]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")
    assert cells.z[0][1] == -0.4 and math.isnan(cells.z[1][1])
    assert list(cells.customdata[1][2]) == ["5", "3"], "hovering names the column and the row"


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.full((2, 3), np.nan)])
def test_grids_without_contrast_still_draw(values):
    cells = heatmap(pd.DataFrame(values), "t", "c").data[0]
    assert cells.zmin == -1 and cells.zmax == 1


def test_sequential_heatmaps_are_not_forced_through_zero():
    cells = heatmap(GRID.abs() + 5, "t", "norm", diverging=False).data[0]
    assert cells.zmid is None and cells.zmin is None


def test_many_rows_get_fewer_ticks_than_rows():
    figure = heatmap(pd.DataFrame(np.eye(100)), "t", "c")
    assert list(figure.layout.yaxis.tickvals) == list(range(0, 100, 5)) and figure.layout.height <= 900
    assert figure.layout.yaxis.ticktext[3] == "15"


def test_repeated_tokens_stay_separate_rows():
    tokens = [" to", " a", " to", "\n", ""]
    matrix = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    figure = pattern(tokens, matrix)
    assert len(set(figure.data[0].y)) == 5 and np.asarray(figure.data[0].z).shape == (5, 5)
    assert list(figure.layout.yaxis.ticktext) == ["·to", "·a", "·to", "↵", "∅"]
    assert figure.layout.yaxis.autorange == "reversed", "the first token is at the top"
    assert figure.data[0].z[4][0] == pytest.approx(0.2) and math.isnan(figure.data[0].z[0][4])
    assert list(figure.data[0].customdata[2][1]) == ["·a", "·to"]
    with pytest.raises(AssertionError, match=r"\[5, 5\], got \[4, 4\]"):
        pattern(tokens, np.eye(4))


def test_bars_carry_unequal_interval_arms():
    frame = pd.DataFrame({"site": ["L0H0", "L0H0"], "m": [0.5, -0.2], "lo": [0.4, math.nan], "hi": [0.9, math.nan]})
    bar = bars_with_intervals(frame, "site", "m", "lo", "hi", title="t").data[0]
    assert bar.error_y.array[0] == pytest.approx(0.4) and bar.error_y.arrayminus[0] == pytest.approx(0.1)
    assert list(bar.x) == [0, 1] and list(bar.y) == [0.5, -0.2], "bars of one name stay two bars"


def finding(**changes):
    controls = (
        Control(name="random heads", estimate=0.02, low=-0.01, high=0.06, n=9),
        Control(name="twin", estimate=0.1, n=1),
    )
    fields = dict(key="k", statement="s", quantity="share", estimate=0.4, low=0.3, high=0.6, n=9, controls=controls)
    return Finding(**(fields | {"rule": Rule(direction=">", threshold=0.25)} | changes))


def test_the_claim_stands_above_each_control_with_the_threshold_dashed():
    figure = intervals_against_controls(finding())
    claim, first, second = figure.data
    assert (claim.x[0], claim.error_x.arrayminus[0], claim.error_x.array[0]) == pytest.approx((0.4, 0.1, 0.2))
    assert first.x[0] == 0.02 and first.error_x.array[0] == pytest.approx(0.04) and math.isnan(second.error_x.array[0])
    assert [trace.y[0] for trace in figure.data] == [0, 1, 2]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the claim is on top"
    assert list(figure.layout.yaxis.ticktext) == ["<b>this claim</b>", "random heads", "twin"]
    line = figure.layout.shapes[0]
    assert line.x0 == line.x1 == 0.25 and line.line.dash == "dash"


def test_the_three_verdicts_have_three_colours():
    claims = [finding(), finding(estimate=0.1, low=0.05, high=0.2), finding(low=0.2)]
    assert [claim.verdict for claim in claims] == ["supported", "not supported", "inconclusive"]
    assert len({intervals_against_controls(claim).data[0].marker.color for claim in claims}) == 3


def test_text_is_never_mark_up():
    bad = "<a href='https://x.y'>z</a>"
    grid = pd.DataFrame([[1.0]], index=[bad], columns=[bad])
    for figure in (
        heatmap(grid, bad, bad),
        pattern([bad], [[1.0]], bad),
        bars_with_intervals(
            pd.DataFrame({"s": [bad], "m": [1.0], "l": [0.0], "h": [2.0]}), "s", "m", "l", "h", title=bad
        ),
        intervals_against_controls(finding(quantity=bad, controls=(Control(name=bad, estimate=0, n=1),))),
    ):
        assert "<a" not in json.dumps(json.loads(figure.to_json()), ensure_ascii=False)


def test_nothing_global_changes():
    before = pio.templates.default
    figure = heatmap(GRID, "t", "c")
    assert pio.templates.default == before
    assert figure.layout.template.layout.paper_bgcolor == "white" and figure.layout.width is None
