"""Figures of sinks and massive activations: what is drawn is what the frame says."""

import math

import pandas as pd

from mechlab.views.paper import paper_with_intervals
from mechlab.views.sinks import lines, token_points


def test_a_line_per_name_and_nothing_below_zero_on_a_logarithmic_axis() -> None:
    frame = pd.DataFrame({"layer": [0, 1, 0, 1], "size": [2.0, 0.0, -1.0, 5.0], "what": ["b<i>", "b<i>", "a", "a"]})
    figure = lines(frame, "layer", "size", "what", log_y=True)
    assert [trace.name for trace in figure.data] == ["b&lt;i&gt;", "a"]
    assert [[math.isnan(value) for value in trace.y] for trace in figure.data] == [[False, True], [True, False]]
    assert figure.layout.yaxis.type == "log"
    plain = lines(frame, "layer", "size", "what", marks=False)
    assert list(plain.data[1].y) == [-1.0, 5.0] and plain.data[0].mode == "lines"
    words = lines(pd.DataFrame({"x": ["a", "b"], "y": [1.0, 2.0], "by": ["n", "n"]}), "x", "y", "by")
    assert words.layout.xaxis.type == "-"  # plotly tells text from numbers by itself
    many = lines(pd.DataFrame({"x": range(8), "y": range(8), "by": range(8)}), "x", "y", "by")
    assert [trace.line.dash for trace in many.data] == ["solid"] * 6 + ["dash"] * 2


def test_tokens_stand_out_by_their_flag() -> None:
    frame = pd.DataFrame(
        {"x": [1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0], "sink": [False, True, False], "piece": ["a", " the", "\n"]}
    )
    figure = token_points(frame, "x", "y", "sink", x_title="norm", y_title="attention", name="sinks", others="others")
    others, sinks = figure.data
    assert (list(sinks.x), list(sinks.text), sinks.name) == ([2.0], ["·the"], "sinks")
    assert list(others.text) == ["a", "↵"]


def test_the_paper_beside_ours_first_row_on_top() -> None:
    frame = pd.DataFrame(
        {
            "measure": ["first", "second"],
            "theirs": ["GPT2-XL", "none"],
            "paper": [77.0, math.nan],
            "ours": [71.0, 3.0],
            "low": [65.0, math.nan],
            "high": [75.0, math.nan],
        }
    )
    figure = paper_with_intervals(frame)
    paper, ours = figure.data
    assert list(ours.x) == [3.0, 71.0] and list(paper.x)[1] == 77.0
    assert list(ours.error_x.array)[1] == 4.0 and list(ours.error_x.arrayminus)[1] == 6.0
    assert figure.layout.yaxis.ticktext[1].startswith("first<br>")
