"""The page Circuit in a real browser on the default model: the threshold moves numbers and drawing, a click picks a node."""

import pytest

pytestmark = pytest.mark.default_model
_NODE = """(plot, name) => {
    const trace = plot._fullData.find(one => one.name === 'nodes'), axes = plot._fullLayout, box = plot.getBoundingClientRect();
    const i = trace.customdata.indexOf(name);
    return [box.x + axes.xaxis._offset + axes.xaxis.l2p(trace.x[i]), box.y + axes.yaxis._offset + axes.yaxis.l2p(trace.y[i])];
}"""
_NAMES = "plot => plot._fullData.find(one => one.name === 'nodes').customdata"


def test_the_threshold_moves_the_point_and_the_drawing_and_a_click_picks_a_node(tab):
    tab.page.set_viewport_size(
        {"width": 1280, "height": 2800}
    )  # the drawing is taller than a screen: its nodes in view
    tab.open("circuit", circuit_prompts="2", circuit_size="0.1 %")
    tab.page.get_by_role("button", name="Find the circuit").click()
    tab.page.get_by_text("Smallest score").wait_for()
    tab.settle()
    drawing = tab.keyed("circuit_drawing").locator(".js-plotly-plot")
    before, names = (
        {one: tab.metric(one) for one in ("Faithfulness", "Edges", "Smallest score")},
        drawing.evaluate(_NAMES),
    )
    thumb = tab.keyed("circuit_size").get_by_role("slider")
    thumb.focus()
    for _ in range(3):
        tab.page.keyboard.press("ArrowRight")
    tab.page.wait_for_function("() => location.href.includes('circuit_size=0.5')")
    tab.settle()
    after = {one: tab.metric(one) for one in before}
    assert all(after[one] != before[one] for one in before), (before, after)
    assert int(after["Edges"].replace(",", "")) > int(before["Edges"].replace(",", ""))
    assert len(drawing.evaluate(_NAMES)) > len(names) and "circuit_size=0.5" in tab.page.url
    other = next(name for name in drawing.evaluate(_NAMES) if ".h" in name)
    drawing.scroll_into_view_if_needed()
    tab.page.mouse.move(*drawing.evaluate(_NODE, other))
    tab.page.wait_for_timeout(150)
    tab.page.mouse.click(*drawing.evaluate(_NODE, other))
    tab.settle()
    assert f"circuit_node={other}" in tab.page.url
    assert f"What {other} attends to" in tab.text() and "Direct effect on the logit difference" in tab.text()
