"""Figures of experts hold the numbers they are given, where they belong."""

import numpy as np
import pandas as pd

from mechlab.views.experts import coactivation, dose_response, expert_map, slanted
from mechlab.views.figures import bars_with_intervals

VALUES = np.array([[0.1, -0.2, 0.3], [0.0, 0.5, -0.1]])


def test_the_map_shows_layers_upwards_and_marks_experts_by_rank():
    figure = expert_map(VALUES, [3, 7], "relevance", marked=[(7, 1), (3, 2)])
    cells, marks = figure.data
    assert np.array_equal(cells.z, VALUES)
    assert (cells.zmin, cells.zmid, cells.zmax) == (-0.5, 0, 0.5)
    assert list(figure.layout.yaxis.ticktext) == ["3", "7"] and figure.layout.yaxis.autorange != "reversed"
    assert (list(marks.x), list(marks.y), list(marks.text)) == ([1, 2], [1, 0], ["1", "2"])
    assert len(expert_map(VALUES, [3, 7], "load", diverging=False).data) == 1


def test_dose_and_response_draws_a_line_and_a_band_for_each():
    frame = pd.DataFrame(
        {
            "who": ["top", "top", "random", "random"],
            "n": [1, 4, 1, 4],
            "share": [0.4, 0.1, 0.9, 0.8],
            "low": [0.3, 0.0, 0.8, 0.6],
            "high": [0.5, 0.2, 1.0, 0.9],
        }
    )
    figure = dose_response(frame, x_title="experts", y_title="share")
    band, line = figure.data[:2]
    assert (list(band.x), list(band.y)) == ([1, 4, 4, 1], [0.5, 0.2, 0.0, 0.3])
    assert (line.name, list(line.y)) == ("top", [0.4, 0.1])
    assert [trace.name for trace in figure.data if trace.name] == ["top", "random"]
    assert list(figure.layout.xaxis.tickvals) == [1, 4] and figure.layout.xaxis.type == "log"


def test_pairs_that_never_meet_stay_empty():
    values = np.array([[np.nan, 1.0], [1.0, np.nan]])
    [cells] = coactivation(values).data
    assert np.array_equal(cells.z, values, equal_nan=True)


def test_slanted_labels_have_room():
    frame = pd.DataFrame({"label": ["a long label"], "y": [1.0], "low": [0.5], "high": [1.5]})
    figure = slanted(bars_with_intervals(frame, "label", "y", "low", "high", title=""))
    assert figure.layout.xaxis.tickangle == -40 and figure.layout.margin.l == 150
