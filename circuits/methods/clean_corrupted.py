"""Clean-corrupted attribution: the mean of the gradients at the two ends (Hanna, Pezzelle and Belinkov, arXiv 2403.17806)."""

from collections.abc import Iterator

from circuits.methods.gradient import integrated
from circuits.methods.method import Found, Method, MethodSettings
from circuits.prepared import Parts
from circuits.slopes import Override
from circuits.wiring import Wiring
from mechlab.patching.task import Task
from mechlab.results.study import Progress


def run(wiring: Wiring, task: Task, settings: MethodSettings, progress: Progress) -> Found:
    """Two forward and backward passes per pair, and two forward passes."""

    def ends(clean: Parts, away: Parts) -> Iterator[Override]:
        yield Override("embed", 0, clean.embed[None])
        yield Override("embed", 0, away.embed[None])

    return integrated(wiring, task, settings, progress, ends, 2)


METHOD = Method(
    name="clean-corrupted",
    title="Clean-corrupted",
    paper="Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806",
    line="Edge attribution with the mean of the gradients of the clean and the corrupted run.",
    level="edge",
    exact=False,
    settings=MethodSettings,
    run=run,
)
