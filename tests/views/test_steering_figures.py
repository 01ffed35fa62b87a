"""Figures of steering show the numbers they were given."""

import math

import pandas as pd

from mechlab.views.steering import dose_response, front, pareto

FRAME = pd.DataFrame(
    {
        "method": ["a", "a", "b", "b"],
        "strength": [1.0, 0.0, 0.0, 1.0],
        "wanted": [0.5, 0.1, 0.1, 0.4],
        "kl": [0.2, 0.0, 0.0, 0.3],
        "low": [0.4, 0.0, math.nan, 0.3],
        "high": [0.6, 0.2, math.nan, 0.5],
    }
)


def test_a_line_per_method_in_order_of_strength_with_a_band_where_there_are_bounds():
    figure = dose_response(FRAME, "strength", "wanted", "method", low="low", high="high", base=0.1)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [(line.name, list(line.x), list(line.y)) for line in lines] == [
        ("a", [0, 1], [0.1, 0.5]),
        ("b", [0, 1], [0.1, 0.4]),
    ]
    (band,) = [trace for trace in figure.data if trace.fill == "toself"]
    assert list(band.y) == [0.2, 0.6, 0.4, 0.0]
    assert figure.layout.shapes[0].y0 == 0.1


def test_the_front_is_what_no_other_point_beats():
    assert front([0.5, 0.1, 0.1, 0.4], [0.2, 0.0, 0.0, 0.3]) == [0, 1, 2]
    assert front([1.0, 2.0, math.nan], [1.0, 1.0, 0.0]) == [1]


def test_effect_against_damage():
    figure = pareto(FRAME, "wanted", "kl", "method", label="method", log_damage=True)
    points = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert points == {"best trade-offs": ([0.2], [0.5]), "a": ([0.2], [0.5]), "b": ([0.3], [0.4])}
    assert figure.layout.xaxis.type == "log"
