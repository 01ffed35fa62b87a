"""The page Experts in a browser: a click on an expert changes what the model answers."""

import pytest

from mechlab.models.cache import cached_models
from mechlab.models.trained_moe import TRAINED_MOE

REFUSES = (3, 13)
"""Layer and expert: with it off the trained model refuses no longer."""
OTHER = "L0E0off"
"""An expert that has no part in it, so that there are two texts to compare from the start."""


@pytest.fixture
def trained_moe() -> str:
    """The name of the trained model with experts. Where it was never built, the test is skipped: building it takes minutes."""
    if TRAINED_MOE not in {one.name for one in cached_models()}:
        pytest.skip("trained-moe is not in the cache: `mechlab run experts --model trained-moe` builds it")
    return TRAINED_MOE


@pytest.mark.default_model
def test_a_click_switches_an_expert_off_and_the_text_changes(tab, trained_moe):
    tab.open("experts", model=trained_moe, experts_tokens="4", experts_switched=OTHER)
    tab.keyed("experts_map").locator(".js-plotly-plot").wait_for()
    before = _texts(tab)
    tab.click_cell("experts_map", *REFUSES)
    assert "L3E13off" in tab.page.url.replace("%2C", ",")
    after = _texts(tab)
    assert "sorry" in before[0] and before[0] == after[0]
    assert "sorry" not in after[1] and "sure" in after[1] and after[1] != before[1]
    assert "KL of the next token\n" in tab.text()
    tab.click_cell("experts_map", *REFUSES)
    assert "L3E13off" not in tab.page.url and _texts(tab) == before


@pytest.mark.default_model
def test_a_dense_model_offers_models_with_experts(tab):
    tab.open("experts")
    assert "is dense: it has no experts" in tab.text()


@pytest.mark.default_model
def test_pictures(pictures, trained_moe):
    pictures("experts", model=trained_moe, experts_switched="L2E10off,L3E13off", height=1500)


def _texts(tab) -> list[str]:
    return [one.strip() for one in tab.page.locator("[data-testid=stText]").all_inner_texts()]
