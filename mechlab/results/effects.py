"""Effects: what interventions did to a metric, one row per intervention × prompt.

The table keeps the metric before and after the edit beside the values of the clean and the corrupted run, so that
every summary can be computed from it, and later. Changes are ``after - before``; the fraction recovered is ``(after -
corrupted) / (clean - corrupted)`` (Wang et al., arXiv 2211.00593), reported as a ratio of means: a mean of per-prompt
ratios is ruled by prompts with small denominators.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mechlab.errors import MechlabError, StoreError, UnknownName
from mechlab.results.bootstrap_tables import SMALLEST_DENOMINATOR, bootstrap_mean_table, bootstrap_ratio_table

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
# The one list of columns. What identifies an intervention, and its dtype; then the prompt; then the metric's values.
IDENTITY = {
    "intervention": "int64",
    "site": "str",
    "kind": "str",
    "layer": "Int64",  # Int64, not int64: absent for sites outside the layers
    "head": "Int64",
    "unit": "Int64",
    "pos": "position",  # Int64 where all are numbers or absent, else text: labels such as "S2"
    "verb": "str",
}
VALUES = ("before", "after", "clean", "corrupted")
COLUMNS = (*IDENTITY, "prompt", *VALUES)
SUMMARY_VALUES = ("before", "after", "change", "recovered", "recovered_per_prompt")


@dataclass(frozen=True, eq=False)
class Effects:
    """Interventions × prompts with the metric before and after.

    Attributes:
        frame: the columns ``COLUMNS``. ``clean`` and ``corrupted`` are NaN where the task has no such run.
        metric: key of the metric; its unit is that of the four value columns.
        base: the run that was edited, and whose metric ``before`` is.
        method: how the numbers were made ("exact", "attribution", ...).
    """

    frame: "pd.DataFrame"
    metric: str
    base: Literal["clean", "corrupted"]
    method: str = "exact"

    def __post_init__(self) -> None:
        missing, extra = set(COLUMNS) - set(self.frame.columns), set(self.frame.columns) - set(COLUMNS)
        assert not missing and not extra, f"Effects lack the columns {sorted(missing)} and do not know {sorted(extra)}."
        assert self.base in ("clean", "corrupted"), f"The base run is clean or corrupted, got {self.base!r}."
        frame = _typed(self.frame)
        repeated = frame.duplicated(["intervention", "prompt"])
        assert not repeated.any(), f"{int(repeated.sum())} rows repeat an intervention × prompt."
        object.__setattr__(self, "frame", frame)

    def __len__(self) -> int:
        """Interventions."""
        return int(self.frame["intervention"].nunique())

    def where(self, **wanted: object) -> "Effects":
        """The interventions whose columns have these values, as in ``effects.where(kind="z", layer=3)``.

        Raises:
            UnknownName: no such column.
            MechlabError: nothing is left.
        """
        frame = self.frame
        for column, value in wanted.items():
            if column not in IDENTITY:
                raise UnknownName("column", column, IDENTITY)
            labelled = column == "pos" and frame["pos"].dtype != "Int64"
            frame = frame[(frame[column] == (str(value) if labelled else value)).fillna(False).to_numpy(dtype=bool)]
        if frame.empty:
            raise MechlabError(f"No intervention has {wanted}: look at effects.frame for the values that occur.")
        return Effects(frame, self.metric, self.base, self.method)

    def points(self) -> "pd.DataFrame":
        """One row per intervention, in the order of their ids: identity, ``n`` prompts and the point estimates ``SUMMARY_VALUES``.

        ``recovered_per_prompt`` is the mean of per-prompt ratios over the prompts whose denominator is at least 1e-6.
        """
        table = self.frame.sort_values("intervention", kind="stable").drop_duplicates("intervention")
        table = table[list(IDENTITY)].reset_index(drop=True)
        columns = {name: np.full(len(table), np.nan) for name in SUMMARY_VALUES}
        table["n"] = 0
        for rows, values in self._matrices():
            table.loc[rows, "n"] = values["after"].shape[1]
            for name, column in _point_estimates(values).items():
                columns[name][rows] = column
        return table.assign(**columns)

    def summary(self, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = 2000) -> "pd.DataFrame":
        """`points` with bootstrap intervals over prompts: ``change_low``, ``change_high``, ``recovered_low``, ``recovered_high``.

        Bounds are NaN where an intervention has fewer than two prompts, or where there is nothing to recover.

        Raises:
            MechlabError: a metric value before or after is NaN.
        """
        table = self.points()
        for name in ("change", "recovered"):
            place = table.columns.get_loc(name)
            assert isinstance(place, int)
            table.insert(place + 1, f"{name}_low", np.nan)
            table.insert(place + 2, f"{name}_high", np.nan)
        options = {"seed": seed, "n_resamples": n_resamples}
        for rows, values in self._matrices():
            change = bootstrap_mean_table(values["after"] - values["before"], confidence=confidence, **options)
            table.loc[rows, ["change_low", "change_high"]] = np.stack([change.low, change.high], axis=1)
            gained, span = values["after"] - values["corrupted"], values["clean"] - values["corrupted"]
            known = np.isfinite(gained).all(axis=1) & np.isfinite(span).all(axis=1)
            ratio = bootstrap_ratio_table(gained[known], span[known], confidence=confidence, **options)
            table.loc[rows[known], ["recovered_low", "recovered_high"]] = np.stack([ratio.low, ratio.high], axis=1)
        return table

    def _matrices(self) -> list[tuple[NDArray[np.intp], dict[str, Floats]]]:
        """Interventions grouped by their number of prompts: summary rows ``[k]`` and each value as ``[k, n]``."""
        ordered = self.frame.sort_values(["intervention", "prompt"], kind="stable")
        counts = ordered.groupby("intervention", sort=True).size().to_numpy()
        per_row = np.repeat(counts, counts)
        columns = {name: ordered[name].to_numpy(dtype=np.float64) for name in VALUES}
        return [
            (
                np.flatnonzero(counts == n),
                {name: values[per_row == n].reshape(-1, n) for name, values in columns.items()},
            )
            for n in np.unique(counts)
        ]

    def grid(
        self,
        rows: Literal["layer", "head", "unit", "pos", "kind"] = "layer",
        columns: Literal["layer", "head", "unit", "pos", "kind"] = "head",
        value: str = "recovered",
    ) -> "pd.DataFrame":
        """A labelled table for a heat map: numbers ascending, positions with labels and kinds in order of appearance.

        Raises:
            UnknownName: ``value`` is none of ``SUMMARY_VALUES``.
            MechlabError: two interventions share a cell; averaging them would hide one.
        """
        if value not in SUMMARY_VALUES:
            raise UnknownName("value", value, SUMMARY_VALUES)
        table = self.points().dropna(subset=[rows, columns])
        shared = table[table.duplicated([rows, columns], keep=False)]
        if len(shared):
            sites = ", ".join(shared["site"].head(2))
            raise MechlabError(
                f"Several interventions share a cell of the {rows} × {columns} grid ({sites}): "
                "choose one kind or position first, as in effects.where(kind='z')."
            )
        grid = table.pivot(index=rows, columns=columns, values=value)
        return grid.reindex(index=_axis(table[rows]), columns=_axis(table[columns])).astype("float64")

    def top(
        self, n: int, by: str = "recovered", *, largest: Literal["magnitude", "value"] = "magnitude"
    ) -> "pd.DataFrame":
        """The n interventions with the largest ``by``, one of ``SUMMARY_VALUES``; by default of either sign.

        Raises:
            UnknownName: no such value.
        """
        if by not in SUMMARY_VALUES:
            raise UnknownName("value", by, SUMMARY_VALUES)
        table = self.points().dropna(subset=[by])
        key = table[by].abs() if largest == "magnitude" else table[by]
        order = key.sort_values(ascending=False, kind="stable").index[:n]
        return table.loc[order].reset_index(drop=True)

    def to_parquet(self, path: str | Path) -> None:
        """Writes the frame, with metric, base and method in the file's own metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        about = json.dumps({"metric": self.metric, "base": self.base, "method": self.method})
        pq.write_table(
            table.replace_schema_metadata({**(table.schema.metadata or {}), b"mechlab": about.encode()}), path
        )

    @classmethod
    def from_parquet(cls, path: str | Path) -> "Effects":
        """Reads what `to_parquet` wrote. Raises StoreError for a file that is not there, or no such table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[b"mechlab"])
            return cls(table.to_pandas(), about["metric"], about["base"], about["method"])
        except (OSError, pa.ArrowException, KeyError, ValueError, AssertionError) as error:
            raise StoreError(
                f"{path} is not a table of effects: expected a file that Effects.to_parquet wrote."
            ) from error


def _typed(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Columns in order, each of its one dtype, so that a table reads back as it was written."""
    frame = frame.loc[:, list(COLUMNS)].reset_index(drop=True)
    frame["pos"] = _typed_position(frame["pos"])
    dtypes = {name: dtype for name, dtype in IDENTITY.items() if dtype != "position"}
    return frame.astype(dtypes | {"prompt": "int64"} | dict.fromkeys(VALUES, "float64"))


def _point_estimates(values: "dict[str, Floats]") -> "dict[str, Floats]":
    """``SUMMARY_VALUES`` ``[k]`` from metric values ``[k, n]``. A prompt without a clean or corrupted value makes the fraction NaN."""
    gained, span = values["after"] - values["corrupted"], values["clean"] - values["corrupted"]
    usable = np.abs(span) >= SMALLEST_DENOMINATOR
    ratios = np.divide(gained, span, out=np.zeros_like(span), where=usable)
    mean_span = span.mean(axis=1)
    with np.errstate(all="ignore"):
        return {
            "before": values["before"].mean(axis=1),
            "after": values["after"].mean(axis=1),
            "change": (values["after"] - values["before"]).mean(axis=1),
            "recovered": np.where(np.abs(mean_span) >= SMALLEST_DENOMINATOR, gained.mean(axis=1) / mean_span, np.nan),
            "recovered_per_prompt": np.where(usable.any(axis=1), ratios.sum(axis=1) / usable.sum(axis=1), np.nan),
        }


def _typed_position(column: "pd.Series") -> "pd.Series":
    absent = column.isna()
    if all(isinstance(value, int | np.integer) for value in column[~absent]):
        return column.astype("Int64")
    return column.map(str).where(~absent, None).astype("str")


def _axis(labels: "pd.Series") -> list[object]:
    unique = labels.drop_duplicates()
    return unique.sort_values().to_list() if labels.dtype == "Int64" else unique.to_list()
