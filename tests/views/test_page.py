"""The page: complete, self-contained, escaped."""

import json
import math
import re
from html.parser import HTMLParser

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechlab.results import Control, FigureItem, Finding, ModelInfo, Provenance, Report, Rule, Table
from mechlab.views import report_page

EVIL = "</script ><script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>\"'&"


def make_report(text="text", frame=None):
    def claim(key, estimate, low, high):
        control = Control(name=f"{text} heads", estimate=0.01, low=0.0, high=0.02, n=10, note=text)
        rule = Rule(direction=">", threshold=0.1)
        fields = dict(key=key, statement=f"{key} {text}", quantity=text, estimate=estimate, low=low, high=high, n=40)
        return Finding(**fields, controls=(control,), rule=rule)

    figure = go.Figure(go.Bar(x=[text], y=[1.0]), layout={"title": {"text": text}, "width": 1234})
    model = dict(name=text, source=text, fingerprint=text, dtype=text, device=text, attention=text)
    return Report(
        study="ioi",
        title=text,
        summary_text=text,
        paper=text,
        model=ModelInfo(**model, n_layers=3, n_heads=2, n_kv_heads=1, d_model=8),
        config={"name": text, text: [text]},
        findings=(claim("yes", 0.4123456, 0.3, 0.5), claim("no", 0.02, 0.01, 0.03), claim("unclear", 0.2, 0.05, 0.4)),
        tables=(Table("t", text, pd.DataFrame({"a": [text], text: [1.0]}) if frame is None else frame, text),),
        figures=(FigureItem("f", text, figure, "t", text), FigureItem("g", text, figure, "t", text)),
        provenance=Provenance(seed=7, versions={text: text}, platform=text, cpu=text, started="2026-01-02T03:04:05+00:00",
                              wall_seconds=12.3456, prompts_sha256=text, command=f"mechlab run {text}"),
    )  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, and the text of each element outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.raw, self._skip = [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._skip = tag if tag in ("script", "style") else None
        if self._skip:
            self.raw.append("")

    def handle_endtag(self, tag):  # noqa: ARG002
        self._skip = None

    def handle_data(self, data):
        if self._skip:
            self.raw[-1] += data
        elif data.strip():
            self.words.append(" ".join(data.split()))


def page_of(report):
    return Page(report_page(report))


def test_the_page_asks_nothing_of_any_server():
    html = report_page(make_report())
    without_library = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(?:src|href|action|data|srcset)\s*=\s*["']?(?:https?:)?//""", without_library)
    assert not re.search(r"@import|url\(", without_library)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "embed", "form", "base", "a")]
    assert not [attrs for tag, attrs in page.tags if tag == "script" and "src" in attrs]
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy
    assert "showSendToCloud: false" in html and 'plotlyServerURL: ""' in html
    assert len([text for text in page.raw if len(text) > 1_000_000]) == 1, "plotly.js is there, once"


def test_all_text_is_escaped():
    plain, evil = page_of(make_report()), page_of(make_report(EVIL))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags], "text adds no element"
    assert [sorted(attrs) for _, attrs in evil.tags] == [sorted(attrs) for _, attrs in plain.tags], "nor an attribute"
    assert evil.words.count(" ".join(EVIL.split())) >= 10, "and is still shown as written"


def test_figures_survive_escaping():
    page = page_of(make_report(EVIL))
    figures = [
        json.loads(raw) for (tag, attrs), raw in zip(scripts(page), page.raw[1:], strict=True) if attrs.get("data-plot")
    ]
    embedded = [raw for raw in page.raw if raw.startswith('{"data"')]
    assert len(embedded) == 5 and not any("<" in raw for raw in embedded), "a browser ends a script at '</script' alone"
    assert len(figures) == 5 and figures[3]["data"][0]["x"] == [EVIL]
    assert "width" not in figures[3]["layout"], "the page sets the width"


def scripts(page):
    return [item for item in page.tags if item[0] == "script"]


def test_every_verdict_is_told_as_plainly_as_the_others():
    page = page_of(make_report())
    chips = [attrs["class"] for tag, attrs in page.tags if tag == "span" and "chip" in attrs.get("class", "")]
    assert [chip.strip() for chip in chips] == [
        "chip supported", "chip not-supported", "chip inconclusive", "chip supported", "chip not-supported", "chip inconclusive"
    ]  # fmt: skip
    for words in ("1 supported", "1 not supported", "1 inconclusive", "supported", "not supported", "inconclusive"):
        assert words in page.words
    assert page.words.count("95 % interval above 0.1 and above every control") == 3


def test_findings_show_number_interval_rule_and_reason():
    words = page_of(make_report()).words
    assert "0.412" in words and "[0.3, 0.5]" in words and "n = 40" in words
    assert "Even the high end of the interval, 0.03, is not above the threshold 0.1." in words


def test_provenance_settings_and_command_are_there():
    words = page_of(make_report()).words
    assert "mechlab run text" in words and "2026-01-02T03:04:05+00:00" in words and "12.3 s" in words
    assert "3 layers, 2 heads (1 KV heads), d_model 8" in words and '["text"]' in words


def test_tables_are_rounded_cut_and_shown_once():
    frame = pd.DataFrame({
        "id": range(60),
        "value": [1234.5678, 0.000123456, math.nan, *[0.5] * 57],
        "layer": pd.array([None, 1, *[2] * 58], dtype="Int64"),
        "empty": [math.nan] * 60,
        "text": ["x"] * 60,
    })  # fmt: skip
    html = report_page(make_report(frame=frame))
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("table") == 1 and [tag for tag, _ in page.tags].count("tr") == 51
    for words in ("1235", "0.000123", "10 more rows are in", "tables/t.parquet", "49"):
        assert words in page.words
    assert "50" not in page.words and "empty" not in page.words
    assert page.words.count("–") == 2, "the missing value and the missing layer"


@pytest.mark.parametrize("missing", ["findings", "config", "figures"])
def test_reports_with_nothing_in_a_section_still_render(missing):
    from dataclasses import replace

    empty = {"findings": {"findings": ()}, "config": {"config": {}}, "figures": {"tables": (), "figures": ()}}[missing]
    page = page_of(replace(make_report(), **empty))
    assert "How to reproduce it" in page.words
