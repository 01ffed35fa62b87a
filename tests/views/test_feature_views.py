"""Figures of features: every token is shown as it is, whatever it holds."""

import numpy as np
import pytest

from mechlab.views.features import codes_figure, examples_figure, examples_html, logits_figure, token_strip

EVIL = "<script>alert(1)</script>"


def test_a_strip_escapes_tokens_and_scales_colour():
    strip = token_strip([EVIL, ' "a"', "\n"], [None, 1.0, 4.0])
    assert "<script" not in strip
    assert "&lt;script&gt;" in strip
    assert 'title="no code"' in strip
    assert "rgba(33,113,181,0.25)" in strip
    assert "rgba(33,113,181,1.00)" in strip
    assert "&quot;a&quot;" in strip
    assert "↵" in strip
    assert "rgba(178,24,43,1.00)" in token_strip(["x"], [-2.0])
    assert "rgba(33,113,181,0.00)" in token_strip(["x"], [0.0])


def test_a_page_has_one_scale_and_a_safe_heading():
    page = examples_html(f"feature 7 {EVIL}", [(["a", "b"], [1.0, 2.0]), (["c"], [4.0])])
    assert "<script" not in page
    assert page.count("<li>") == 2
    assert "rgba(33,113,181,0.50)" in page


def test_examples_stand_on_their_strongest_token():
    figure = examples_figure([(["a", "<b>x</b>", "c"], [None, 5.0, 1.0], 1), (["d", "e"], [7.0, 0.0], 0)])
    cells = figure.data[0]
    assert list(cells.x) == [-1, 0, 1]
    assert np.asarray(cells.z)[:, 1].tolist() == [5.0, 7.0]
    assert cells.text[0][1] == "&lt;b&gt;x…" or cells.text[0][1].startswith("&lt;b&gt;")
    assert np.isnan(np.asarray(cells.z)[1, 0])


def test_codes_and_logits():
    codes = codes_figure([3, 0, 1], [0.0, 1.0, 2.0, 4.0])
    assert list(codes.data[0].x) == [0.5, 1.5, 3.0]
    assert list(codes.data[0].width) == [1.0, 1.0, 2.0]
    logits = logits_figure([(" up", 2.0), (EVIL, 1.0)], [(" down", -3.0), (" low", -1.0)])
    assert list(logits.data[0].x) == [2.0, 1.0, -1.0, -3.0]
    labels = list(logits.layout.yaxis.ticktext)
    assert labels[0] == "·up"
    assert labels[3] == "·down"
    assert all("<" not in label for label in labels)


def test_values_and_tokens_must_match():
    with pytest.raises(ValueError, match="zip"):
        token_strip(["a", "b"], [1.0])
