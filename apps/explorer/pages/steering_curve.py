"""The lower half of the page Steering: effect and damage by strength, beside random directions."""

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from apps.explorer import jobs, loaded, state, style
from apps.explorer.pages import steering_dose as dosing
from mechlab.errors import PromptError
from mechlab.texts import passages
from mechlab.views.steering import dose_response, pareto
from steering.application import Rule

if TYPE_CHECKING:
    from steering.vector import SteeringVector

PROMPTS = """The film was
My day at work has been
The meal at the new restaurant was
Everyone says that this town is
Her answer made me feel
The weather this week is"""
WORDS = "good, great, happy, wonderful, beautiful, amazing, excellent, delicious, perfect, fun"
STRENGTHS = {"absolute": "0, 1, 2, 4", "rms": "0, 0.5, 1, 2"}
DAMAGES = {"kl": "KL on neutral text, nats per token", "perplexity": "perplexity on neutral text / unsteered"}
NEUTRAL, CHARACTERS = 6, 200


def curve(vector: "SteeringVector", vector_inputs: tuple[object, ...], rule: Rule) -> None:
    """The boxes, the work in the background, the figures."""
    st.subheader("Effect and damage by strength")
    left, right = st.columns(2)
    prompts = left.text_area(
        "Prompts (one a line; none of the examples)", PROMPTS, height=170, key="steering_prompts", **state.SHARED
    )
    kind = right.selectbox(
        "Effect", list(dosing.JUDGES), format_func=dosing.JUDGES.__getitem__, key="steering_judge", **state.SHARED
    )
    words = right.text_input("Words", WORDS, key="steering_words", **state.SHARED)
    a, b = right.columns(2)
    strengths = a.text_input("Strengths", STRENGTHS[rule.unit], key=f"steering_strengths_{rule.unit}", **state.SHARED)
    draws = int(b.number_input("Random directions", 1, 20, 2, key="steering_draws", **state.SHARED))
    inputs = (vector_inputs, rule, prompts, kind, words, strengths, draws)
    asked = dosing.strengths_of(strengths)
    if not [one for one in words.split(",") if one.strip()]:
        raise PromptError("The effect is counted in words and none is written: write some, with commas between.")
    name = loaded.model_name()

    def work(told: jobs.Progress) -> pd.DataFrame:
        lens = loaded.another_lens(name)
        neutral = tuple(passages(count=NEUTRAL, part="held-out", characters=CHARACTERS))
        trial = dosing.Trial(
            tuple(dosing.lines(prompts)), dosing.judge(lens, kind, words), neutral, 0 if kind == "next" else 16
        )
        return dosing.dose(lens, vector, asked, rule, trial, draws, told)

    frame = jobs.computed("steering dose", inputs, "Measuring", work, ask="Measure")
    if frame is None:
        st.caption(
            f"Damage is measured on {NEUTRAL} neutral passages; a good vector has effect where random directions as long have none."
        )
        return
    _figures(frame, dosing.JUDGES[kind])


def _figures(frame: pd.DataFrame, effect: str) -> None:
    damage = st.segmented_control(
        "Damage",
        list(DAMAGES),
        format_func=DAMAGES.__getitem__,
        default="kl",
        required=True,
        key="steering_damage",
        **state.SHARED,
    )
    shown = frame.assign(label=[f"{strength:g}" for strength in frame["strength"]])
    left, right = st.columns(2)
    with left:
        st.markdown("**Effect against damage** (numbers: strength)")
        figure = pareto(
            shown,
            "effect",
            damage,
            "who",
            label="label",
            wanted_title=effect,
            damage_title=DAMAGES[damage],
            intervals=True,
        )
        style.chart(figure, "steering_pareto", alt="Effect against damage, by strength")
    with right:
        st.markdown("**Effect by strength**")
        base = float(frame.loc[frame["strength"] == 0, "effect"].iloc[0]) if (frame["strength"] == 0).any() else None
        figure = dose_response(
            shown,
            "strength",
            "effect",
            "who",
            low="effect_low",
            high="effect_high",
            x_title="strength",
            y_title=effect,
            base=base,
        )
        style.chart(figure, "steering_response", alt="Effect by strength")
    st.caption("Intervals: 95 %, bootstrap over prompts (effect) and over passages (damage).")
    st.dataframe(frame, hide_index=True, height=210)
    st.download_button(
        "Download the table", frame.to_csv(index=False), "steering.csv", "text/csv", icon=":material/download:"
    )
