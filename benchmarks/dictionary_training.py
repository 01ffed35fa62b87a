"""Training sparse autoencoders: tokens a second beside sae-lens's own trainer, and what the default site's autoencoder reaches.

    python -m benchmarks.dictionary_training                # both parts, into benchmarks/results/dictionaries.md
    python -m benchmarks.dictionary_training --only speed

Both parts use activations of SmolLM2-135M at L12.resid_post, harvested in bfloat16 from the bundled text into ``--folder`` (kept, and
found again by the next run, as is the trained autoencoder with the time it took). The layer was chosen because its stream has few
massive activations outside the first position: outlying tokens hold much of the variance, and a small share of it unexplained says
little. The few that there are (rows longer than three times the median) are counted, and the share is given without them too. Times are
CPU seconds of this process, with one thread, so that other work on the machine does not count.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.dictionaries import PAGE, write_section
from mechlab.dictionaries.activations import Activations, ActivationSource
from mechlab.dictionaries.dictionary import Dictionary
from mechlab.dictionaries.files import load_dictionary
from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.training import SaeSettings, train
from mechlab.dictionaries.training_settings import sae_config, trainer_config
from mechlab.lens.lens import Lens
from mechlab.models.loading import load
from mechlab.texts import passages

AT = "L12.resid_post"
WIDTH, K = 4608, 64
BATCH = 1024
KINDS = (("topk", False), ("topk", True), ("batchtopk", False), ("jumprelu", False))
OUTLIER = 3.0  # times the median norm
GOAL = "FVU <= 0.25 at L0 <= 64 in <= 20 minutes"


def activations(folder: Path) -> tuple[Activations, Activations, dict[str, float]]:
    """Of the fit and the held-out part of the bundled text, and what harvesting them took (0 where they were there)."""
    lens = Lens(load())
    made, seconds = [], {}
    for part, count in (("fit", 6100), ("held-out", 400)):
        started = time.process_time()
        texts = passages(count=count, part=part)  # pyright: ignore[reportArgumentType]
        made.append(harvest(lens, texts, [AT], folder / part, dtype="bfloat16"))
        seconds[f"harvest {part} (cpu s)"] = round(time.process_time() - started, 1)
    return made[0], made[1], seconds


def speed(source: ActivationSource, steps: int, repeats: int) -> list[dict[str, Any]]:
    """CPU time of runs of each kind through our ``train`` and through sae-lens's ``SAETrainer.fit``, runs of the two in turn.

    Ours includes reading and shuffling the activations; sae-lens's gets batches that lie in memory. Steps are timed from the end of the
    first to the end of the last (of sae-lens, from the moment it asks for the second batch to when it asks for the last), and the whole
    run, with what comes before and after, beside them.
    """
    rows = []
    for architecture, bf16 in KINDS:
        settings = SaeSettings.model_validate(
            {
                "architecture": architecture,
                "n_features": WIDTH,
                "k": K,
                "tokens": steps * BATCH,
                "batch": BATCH,
                "warm_up": 2,
                "decay": 0,
                "bf16": bf16,
            }
        )
        ready = [x for (x,) in source.batches(AT, size=BATCH, epochs=1)][:steps]
        _ours(source, settings)  # warms up
        runs = [(_ours(source, settings), _theirs(settings, ready, source.width(AT))) for _ in range(repeats)]
        ours, theirs = (
            Timed(median(t.step for t in some), median(t.whole for t in some)) for some in zip(*runs, strict=True)
        )
        rows.append(
            {
                "architecture": architecture,
                "bf16": bf16,
                "ours (tokens/cpu s)": round(BATCH / ours.step),
                "sae-lens (tokens/cpu s)": round(BATCH / theirs.step),
                "ours / sae-lens": round(theirs.step / ours.step, 3),
                "before and after, ours (cpu s)": round(ours.whole - steps * ours.step, 2),
                "sae-lens (cpu s)": round(theirs.whole - steps * theirs.step, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


@dataclass(frozen=True)
class Timed:
    """CPU seconds of a step, and of the whole run."""

    step: float
    whole: float


def timed(work: Callable[[list[float]], object]) -> Timed:
    """``work`` writes the time of one moment of every step into its list."""
    started, moments = time.process_time(), list[float]()
    work(moments)
    return Timed((moments[-1] - moments[0]) / (len(moments) - 1), time.process_time() - started)


def _ours(source: ActivationSource, settings: SaeSettings) -> Timed:
    def work(moments: list[float]) -> None:
        def tell(label: str, done: int, total: int) -> None:  # noqa: ARG001
            moments.append(time.process_time())

        with tempfile.TemporaryDirectory() as place:
            train(source, AT, settings, Path(place) / "sae", progress=tell)

    return timed(work)


def _theirs(settings: SaeSettings, ready: Sequence[Tensor], d_in: int) -> Timed:
    from sae_lens import SAETrainer
    from sae_lens.registry import get_sae_training_class

    config = trainer_config(settings, "cpu")
    config.n_batches_for_norm_estimate = 2

    def work(moments: list[float]) -> None:
        def batches() -> Iterator[Tensor]:
            for x in cycle(ready):
                moments.append(time.process_time())
                yield x

        model = get_sae_training_class(settings.architecture)[0](sae_config(settings, d_in))
        trained: Any = SAETrainer(config, model, data_provider=batches()).fit()
        del moments[: config.n_batches_for_norm_estimate]  # those were no steps
        with tempfile.TemporaryDirectory() as place:
            trained.save_inference_model(place)

    return timed(work)


def site(fit: ActivationSource, held_out: ActivationSource, settings: SaeSettings, folder: Path) -> dict[str, Any]:
    """The default site's autoencoder: what it reaches on held-out text, in how much time."""
    record = folder.with_suffix(".json")
    if not record.exists():
        record.write_text(json.dumps(trained(fit, settings, folder)), encoding="utf-8")
    made = load_dictionary(folder)
    return {
        **json.loads(record.read_text(encoding="utf-8")),
        **{f"held-out {name}": value for name, value in quality(made, held_out).items()},
        **{f"fit {name}": value for name, value in quality(made, fit).items()},
        "goal": GOAL,
    }


def trained(fit: ActivationSource, settings: SaeSettings, folder: Path) -> dict[str, Any]:
    """Trains it into ``folder``; its settings and times."""
    started, wall, seen = time.process_time(), time.time(), [0.0]

    def tell(label: str, done: int, total: int) -> None:
        if time.time() - seen[0] > 30 or done == total:
            seen[0] = time.time()
            print(f"{label} {done}/{total} cpu {time.process_time() - started:.0f} s", flush=True)

    made = train(fit, AT, settings, folder, progress=tell, checkpoint_every=200)
    return {
        "settings": settings.model_dump(),
        "rows": len(fit.rows),
        "epochs": round(settings.tokens / len(fit.rows), 2),
        "train (cpu s)": round(time.process_time() - started, 1),
        "train (wall s)": round(time.time() - wall, 1),
        "dead": made.origin.settings["dead"],
    }


@torch.no_grad()
def quality(dictionary: Dictionary, source: ActivationSource, most: int = 16_384) -> dict[str, float]:
    """Over rows evenly spread: share of the variance unexplained, the same of rows that are no outliers and how many are, features a
    row, and features that never fire.
    """
    rows = source.rows[torch.linspace(0, len(source.rows) - 1, min(most, len(source.rows))).long()]
    (values,) = source.read([AT], rows)
    active, fired, errors = 0, torch.zeros(dictionary.n_features, dtype=torch.bool), list[Tensor]()
    for part in values.split(2048):
        codes = dictionary.encode(part)
        errors.append((dictionary.decode(codes) - part).square().sum(1))
        active += int((codes != 0).sum())
        fired |= (codes != 0).any(0)
    error, norms = torch.cat(errors), values.norm(dim=1)
    usual = norms <= OUTLIER * norms.median()
    return {
        "fvu": round(_unexplained(error, values), 4),
        "usual fvu": round(_unexplained(error[usual], values[usual]), 4),
        "outliers": int((~usual).sum()),
        "rows": len(values),
        "l0": round(active / len(values), 2),
        "silent": int((~fired).sum()),
    }


def _unexplained(error: Tensor, values: Tensor) -> float:
    return float(error.sum() / (values - values.mean(0)).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/dictionary_training"), help="where activations are kept"
    )
    parser.add_argument("--only", choices=["speed", "site"])
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--steps", type=int, default=20, help="steps of a run of the speed part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="rows seen by the default site's autoencoder")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--fp32", action="store_true", help="multiply in float32 in the site part")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fit, held_out, found = activations(given.folder)
    print({"site": AT, "rows": len(fit.rows), **found}, flush=True)
    if given.only != "site":
        write_section(
            given.out,
            "Training, tokens a second",
            _speed_text(speed(fit, given.steps, given.repeats), given.steps, given.repeats),
        )
    if given.only != "speed":
        settings = SaeSettings.model_validate(
            {
                "n_features": WIDTH,
                "k": K,
                "tokens": given.tokens,
                "lr": given.lr,
                "batch": 512,
                "decay": 0.3,
                "bf16": not given.fp32,
            }
        )
        made = site(fit, held_out, settings, given.folder / f"sae-{given.tokens}")
        print(json.dumps(made, indent=1))
        write_section(given.out, f"An autoencoder of {AT}", _site_text(made))


def _speed_text(rows: list[dict[str, Any]], steps: int, repeats: int) -> str:
    head = list(rows[0])
    lines = [
        "| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *(row.values() for row in rows))
    ]
    note = (
        f"Autoencoders of {WIDTH:,} features on the same activations of {AT}, one thread: medians of {repeats} runs of {steps} steps of "
        f"{BATCH:,} rows each, ours and sae-lens's trainer in turn. Tokens a second of the steps themselves, ours with reading and "
        "shuffling the activations, sae-lens's with batches that lie in memory. Before and after: activations' statistics and first "
        "buffer, loading and saving; it does not grow with the run. Goal: not slower.\n"
    )
    return "\n".join([note, *lines])


def _site_text(made: dict[str, Any]) -> str:
    settings = made["settings"]
    return (
        f"{settings['architecture']}, {settings['n_features']} features, k {settings['k']}, {settings['tokens']:,} rows seen "
        f"({made['epochs']} times the {made['rows']:,} there are), bf16 products: {settings['bf16']}.\n"
        f"Trained in {made['train (cpu s)'] / 60:.1f} minutes of CPU time of one thread.\n"
        f"On held-out text FVU {made['held-out usual fvu']} at L0 {made['held-out l0']} over {made['held-out rows']:,} rows without the "
        f"{made['held-out outliers']} that are longer than {OUTLIER:g} times the median (FVU {made['held-out fvu']} with them: they are "
        f"easy, and hold much of the variance); {made['held-out silent']} features silent.\n"
        f"On the text it was fitted on FVU {made['fit usual fvu']} without the {made['fit outliers']} such rows of {made['fit rows']:,}.\n"
        f"Goal: {made['goal']}."
    )


if __name__ == "__main__":
    main()
