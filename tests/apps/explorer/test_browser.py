"""The explorer in a real browser, on the default model: clicks, links, tabs, and pictures to look at."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.default_model
EDITS = '[{"verb": "zero", "site": "L23H3"}, {"verb": "patch", "site": "L9.resid_pre@9", "source": "clean"}]'


def number(tab: Any, label: str, place: int = 0) -> float:
    """The number that the page shows under this label."""
    return float(tab.metric(label, place).split()[0].replace("−", "-"))


def choose(tab: Any, key: str, words: str) -> None:
    tab.keyed(key).get_by_role("radio", name=words, exact=True).click()
    tab.settle()


def test_a_cell_is_clicked_its_head_ablated_and_the_link_shared(tab: Any, browser: Any) -> None:
    tab.open("patch")
    before = number(tab, "Logit difference before")
    assert before < 0, "the corrupted prompt is answered with the foil"
    tab.click_cell("patch_head_map", 17, 4)
    assert "patch_head=L17H4" in tab.page.url and tab.page.get_by_role("heading", name="L17H4", exact=True).count() == 1
    changed = number(tab, "Patching it changes the logit difference by")
    choose(tab, "patch_verb", "patch")
    assert number(tab, "After") - before == pytest.approx(changed, abs=0.02)
    choose(tab, "patch_verb", "ablate (to zero)")
    ablated = number(tab, "After")
    assert ablated != before
    tab.keyed("patch_add").get_by_role("button").click()
    tab.settle()
    assert number(tab, "After", 1) == ablated, "the basket holds this one edit"
    assert "mechlab edit" in tab.page.locator("[data-testid=stMain]").inner_html()
    other = browser.new_context().new_page()
    shared = type(tab)(other, tab.server)
    other.goto(tab.page.url)
    shared.settle()
    assert number(shared, "After") == ablated and number(shared, "After", 1) == ablated
    other.context.close()


def test_tokens_cells_and_heads_are_clicked(tab: Any) -> None:
    tab.open("prompt")
    assert "·Mary" in tab.page.locator("[data-testid=stMetric]").first.inner_text()
    tab.keyed("prompt_pos").get_by_role("radio").nth(0).click()
    tab.settle()
    assert "After token 0" in tab.text()
    tab.click_cell("prompt_layers_map", 24, 4)
    assert "After token 4" in tab.text() and "After layer 24, at token 4" in tab.text()
    tab.click_cell("prompt_heads_map", 5, 18)
    assert "prompt_head=L18H5" in tab.page.url
    assert "Attention of L18H5" in tab.keyed("prompt_pattern").inner_text()
    tab.page.get_by_role("button", name="Patch this prompt there").click()
    tab.page.wait_for_url("**/patch*")
    tab.settle()
    assert "Both prompts are the same" in tab.text()


def test_two_tabs_and_other_pages_do_not_disturb_a_job(tab: Any, browser: Any) -> None:
    tab.page.goto(f"{tab.server}/patch?patch_map=layer+%C3%97+position")  # its job is running while the others work
    second = type(tab)(browser.new_context().new_page(), tab.server).open(
        "prompt", prompt_text="The capital of France is"
    )
    assert "Paris" in second.page.locator("[data-testid=stMetric]").first.inner_text()
    tab.page.get_by_role("link", name="Prompt").click()
    tab.settle()
    assert "·Mary" in tab.page.locator("[data-testid=stMetric]").first.inner_text()
    tab.page.get_by_role("link", name="Patch").click()
    tab.settle()
    assert "L" in tab.text() and number(tab, "Share restored") == pytest.approx(1.0, abs=0.5)
    second.page.context.close()


def test_bad_input_and_unknown_links_are_told(tab: Any) -> None:
    tab.open("patch", patch_answer=" Mary Mary", model="../../etc", patch_head="L99H1")
    assert "single token" in tab.text() and "Traceback" not in tab.text()


@pytest.mark.parametrize(
    ("page", "height", "press", "address"),
    [
        ("prompt", 2900, None, {}),
        ("patch", 4300, None, {"edits": EDITS}),
        ("circuit", 3000, "Find the circuit", {"circuit_prompts": "2", "circuit_size": "0.1 %"}),
        ("features", 2000, None, {"features_layer": "5", "features_count": "16", "features_search": "The king lived"}),
        ("sinks", 1500, None, {}),
        ("relations", 2600, "Find units", {"relations_detection": "12"}),
        ("steering", 1500, None, {"steering_tokens": "3", "steering_prompt": "I feel"}),
        ("runs", 1900, None, {"runs_run": "first"}),
    ],
)
def test_pictures(
    pictures: Callable[..., list[Path]], page: str, height: int, press: str | None, address: dict[str, str]
) -> None:
    assert all(file.stat().st_size > 50_000 for file in pictures(page, height=height, press=press, **address))
