"""The page Relations: units that answer to one relation, and what is known without them."""

import hashlib
import tempfile
from pathlib import Path

import pandas as pd
import streamlit as st

from apps.explorer import clicks, jobs, loaded, state, style
from apps.explorer.pages import relations_units as finding
from apps.explorer.refused import plain
from mechlab.analyses.facts import Facts, load_facts
from mechlab.analyses.facts_answers import MIN_RIGHT
from mechlab.results.wording import measured_text
from mechlab.views.relations import accuracy_without_units, units_by_layer

USUAL = ["country_capital", "past_tense", "antonym", "plural"]


def show() -> None:
    """Draws the page."""
    st.caption(
        "MLP units whose value tells the prompts of one relation from those of others, and what is forgotten without them."
    )
    facts, source = _facts()
    n_detection, n_evaluation = _sizes()
    name = loaded.model_name()
    inputs = (name, source, tuple(facts.by_relation), n_detection, n_evaluation)
    of = jobs.computed(
        "relation units",
        inputs,
        "Finding units",
        lambda told: finding.find_units(loaded.another_lens(name), facts, n_detection, n_evaluation, 0, told),
        ask="Find units",
    )
    if of is None:
        st.caption(
            "Facts the model answers right are read; the units whose value tells a relation from the others are its units."
        )
        return
    left, right = st.columns(2)
    relation = left.selectbox("Relation", of.names, key="relations_one", **state.SHARED)
    k = int(
        right.number_input("Units of a relation", 1, len(of.units), of.default_k(), key="relations_k", **state.SHARED)
    )
    _units(of, relation, k)
    _without(of, relation, k, inputs)


def _facts() -> tuple[Facts, str]:
    """Of a file or bundled ones; and what tells them from others."""
    left, right = st.columns([3, 2])
    with right:
        given = st.file_uploader(
            "Facts of your own",
            "csv",
            key="relations_file",
            help="CSV: relation, subject, object, template, other_template.",
        )
    if given is not None:
        content = given.getvalue()
        with tempfile.TemporaryDirectory(prefix="mechlab-facts-") as folder:
            path = Path(folder) / "facts.csv"
            path.write_bytes(content)
            facts = _told_as(given.name, path)
        left.text(f"{len(facts.by_relation)} relations of your file: {', '.join(facts.by_relation)}")
        return facts, hashlib.sha256(content).hexdigest()
    known = list(load_facts().by_relation)
    chosen = left.multiselect("Relations", known, USUAL, key="relations_names", **state.SHARED)
    return load_facts(relations=chosen), "bundled"


def _told_as(name: str, path: Path) -> Facts:
    from mechlab.errors import MechlabError

    try:
        return load_facts(str(path))
    except MechlabError as error:
        raise MechlabError(str(error).replace(str(path), name)) from error


def _sizes() -> tuple[int, int]:
    columns = st.columns([1, 1, 2], vertical_alignment="bottom")
    n_detection = columns[0].number_input(
        "Facts to find units with",
        MIN_RIGHT,
        80,
        20,
        key="relations_detection",
        help="Of each relation, at most.",
        **state.SHARED,
    )
    n_evaluation = columns[1].number_input(
        "Facts to judge them by",
        2,
        40,
        12,
        key="relations_evaluation",
        help="Of each relation, at most; other subjects.",
        **state.SHARED,
    )
    return int(n_detection), int(n_evaluation)


def _units(of: finding.RelationUnits, relation: str, k: int) -> None:
    """The map of all relations, and the units of the one that is chosen."""
    for name, why in of.left_out.items():
        st.caption(f":material/info: {plain(name)} is left out: {plain(why)}.")
    left, right = st.columns([3, 2])
    with left:
        n_layers = 1 + max(int(at.layer or 0) for at in of.units.sites)
        figure = units_by_layer(of.by_layer(k), n_layers)
        clicks.heatmap(
            figure,
            "relations_layers",
            lambda at, _: state.put("relations_one", of.names[at]),
            picked=None,
            alt="Units by relation and layer",
        )
        shared = of.shared(k).loc[relation].drop(relation)
        told = ", ".join(f"{100 * share:.0f} % with {name}" for name, share in shared.items())
        st.caption(
            f"{relation} shares of its units: {told}. The model answered {_answered(of, relation)} detection facts right."
        )
    with right:
        st.dataframe(of.listed(relation, k), hide_index=True, height=300, column_config=_TWO_DIGITS)


_TWO_DIGITS = {
    "average precision": st.column_config.NumberColumn(format="%.3f"),
    "separation (SD)": st.column_config.NumberColumn(format="%.2f"),
}


def _answered(of: finding.RelationUnits, relation: str) -> str:
    asked, right = of.asked[relation]
    return f"{right} of {asked}"


def _without(of: finding.RelationUnits, relation: str, k: int, inputs: tuple[object, ...]) -> None:
    """Switches the units off."""
    st.subheader(f"Without the {k} units of {plain(relation)}")
    draws = int(
        st.number_input("Random sets to compare with", 2, 50, 10, key="relations_draws", width=240, **state.SHARED)
    )
    name = loaded.model_name()
    frame = jobs.computed(
        "relation without",
        (*inputs, relation, k, draws),
        "Switching units off",
        lambda told: finding.without_units(loaded.another_lens(name), of, relation, k, draws, 0, told),
        ask="Switch them off",
    )
    if frame is None:
        return
    _verdict(frame, relation)
    style.chart(
        accuracy_without_units(frame, relation), "relations_accuracy", alt="Accuracy with and without the units"
    )
    st.download_button("Download the table", frame.to_csv(index=False), f"without_{relation}.csv", "text/csv")


def _verdict(frame: pd.DataFrame, relation: str) -> None:
    """Own relation and the others, in numbers."""
    own, others = frame[frame["relation"] == relation], frame[frame["relation"] != relation]

    def said(what: str) -> str:
        value, low, high = (float(own[column].iloc[0]) for column in (what, f"{what}_low", f"{what}_high"))
        return measured_text(value, low, high)

    columns = st.columns(3)
    columns[0].metric(f"{plain(relation)}, {own['n'].iloc[0]} facts: share right", said("before"))
    columns[1].metric("without its units", said("after"))
    columns[2].metric("without random units", said("random"))
    lost = others["lost"].mean()
    st.caption(
        f"Other relations lose {100 * lost:.0f} points on average. Intervals: 95 %, bootstrap over facts; with so few facts they are rough."
    )
