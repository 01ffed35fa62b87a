"""The page Steering: a vector, a layer, a strength; texts side by side, and effect against damage."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import streamlit as st

from apps.explorer import jobs, loaded, state
from apps.explorer.pages import continuations
from apps.explorer.pages import steering_dose as dosing
from apps.explorer.pages.steering_curve import curve
from mechlab.results.wording import three_digits
from steering.application import Rule

if TYPE_CHECKING:
    from mechlab.models.model import Model
    from steering.vector import SteeringVector

WANTED = """I love this film, it is wonderful.
What a beautiful and happy day it was.
The food was delicious and the people were kind.
She is the best friend that I ever had.
This is the most exciting book of the year.
We had a fantastic time at the party.
The music was lovely and everybody smiled.
I am so glad and thankful for your help."""
OTHER = """I hate this film, it is terrible.
What an ugly and miserable day it was.
The food was disgusting and the people were rude.
She is the worst enemy that I ever had.
This is the most boring book of the year.
We had an awful time at the party.
The music was horrible and everybody cried.
I am so angry and disappointed by your help."""
PROMPT = "When I think about my life, I feel"
WIDEST: dict[str, float] = {"absolute": 10.0, "rms": 4.0}
UNITS = {"absolute": "times the vector's own length", "rms": "times the residual's RMS"}


@dataclass(frozen=True, eq=False)
class Chosen:
    """A vector and what tells it from others."""

    vector: "SteeringVector"
    inputs: tuple[object, ...]


def show() -> None:
    """Draws the page."""
    st.caption(
        "A direction added to the residual stream: what it does to a text, and what it costs, beside random directions."
    )
    model = loaded.lens().model
    chosen = _vector(model)
    if chosen is None:
        return
    strength, rule = _strength()
    _texts(chosen, strength, rule)
    curve(chosen.vector, chosen.inputs, rule)


def _vector(model: "Model") -> Chosen | None:
    where = st.segmented_control(
        "Vector",
        ["from examples", "from a file"],
        default="from examples",
        required=True,
        key="steering_from",
        **state.SHARED,
    )
    chosen = _of_file(model) if where == "from a file" else _of_examples(model)
    if chosen is not None:
        _about(chosen.vector, model)
    return chosen


def _of_examples(model: "Model") -> Chosen | None:
    left, right = st.columns(2)
    wanted = left.text_area("Towards (one text a line)", WANTED, height=190, key="steering_wanted", **state.SHARED)
    other = right.text_area(
        "Away from (line i is paired with line i)", OTHER, height=190, key="steering_other", **state.SHARED
    )
    lines = {one.name: one.line for one in dosing.ON_THE_SPOT}
    left, right = st.columns(2)
    how = left.selectbox("Method", list(lines), key="steering_method", **state.SHARED)
    left.caption(lines[how])
    layer = right.slider(
        "Layer (its output is steered)",
        0,
        model.n_layers - 1,
        model.n_layers // 2,
        key="steering_layer",
        **state.SHARED,
    )
    name = loaded.model_name()
    inputs = (name, wanted, other, how, layer)
    vector = jobs.computed(
        "steering vector",
        inputs,
        "Finding the vector",
        lambda told: dosing.found_vector(loaded.another_lens(name), wanted, other, how, layer, told),
    )
    return None if vector is None else Chosen(vector, inputs)


def _of_file(model: "Model") -> Chosen | None:
    given = st.file_uploader(
        "Vector file", [ending[1:] for ending in dosing.FORMATS], key="steering_file", help="Read as data only."
    )
    if given is None:
        st.caption("A file that this page, `mechlab steer make`, llama.cpp or repeng wrote.")
        return None
    content = given.getvalue()
    vector = state.remembered(
        ("vector file", model.fingerprint, given.file_id), lambda: dosing.opened(given.name, content, model)
    )
    sites = [str(at) for at in vector.sites]
    kept = st.multiselect("Sites", sites, sites, key="steering_sites") if len(sites) > 1 else sites
    if not kept:
        st.info("No site is chosen, so nothing would be steered: choose one at least.")
        return None
    return Chosen(vector.only(kept), (loaded.model_name(), given.file_id, tuple(kept)))


def _about(vector: "SteeringVector", model: "Model") -> None:
    """Where the vector comes from, and its files."""
    origin = vector.origin
    lengths = ", ".join(f"{at} (length {three_digits(float(one.norm()))})" for at, one in vector.directions.items())
    columns = st.columns([6, 2, 2], vertical_alignment="center")
    columns[0].caption(f"{origin.method}, {origin.n_prompts} examples; {lengths}")
    columns[1].download_button(
        "Vector, safetensors",
        dosing.saved(vector, model, ".safetensors"),
        "vector.safetensors",
        icon=":material/download:",
        width="stretch",
    )
    if all(at.kind == "resid_post" and at.layer for at in vector.sites):
        columns[2].download_button(
            "Vector, GGUF",
            dosing.saved(vector, model, ".gguf"),
            "vector.gguf",
            icon=":material/download:",
            width="stretch",
        )


def _strength() -> tuple[float, Rule]:
    left, right = st.columns([1, 2])
    unit: Literal["absolute", "rms"] = left.selectbox(
        "Unit of the strength", list(UNITS), format_func=UNITS.__getitem__, key="steering_unit", **state.SHARED
    )  # pyright: ignore[reportAssignmentType]
    widest = WIDEST[unit]
    strength = right.slider(
        "Strength", -widest, widest, widest / 5, widest / 40, key=f"steering_{unit}", **state.SHARED
    )
    return float(strength), Rule(unit=unit)


def _texts(chosen: Chosen, strength: float, rule: Rule) -> None:
    left, right = st.columns([4, 1])
    prompt = left.text_input("Prompt", PROMPT, key="steering_prompt", **state.SHARED)
    n_tokens = int(right.number_input("New tokens", 1, 200, 24, key="steering_tokens", **state.SHARED))
    versions = dosing.versions(loaded.lens(), chosen.vector, strength, rule)
    inputs = (chosen.inputs, strength, rule, prompt, n_tokens)
    continuations.side_by_side("steering text", inputs, prompt, versions, n_tokens)
