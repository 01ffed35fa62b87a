"""EAP with integrated gradients along the embeddings (Hanna, Pezzelle and Belinkov, arXiv 2403.17806).

Gradients are averaged over runs whose embeddings lie at k / steps of the way from the ablated to the clean ones, k = 0 .. steps - 1: the
points of the EAP-IG code (a left sum, which takes in the ablated end and leaves out the clean one).
"""

from collections.abc import Iterator

from pydantic import Field

from circuits.methods.gradient import integrated
from circuits.methods.method import Found, Method, MethodSettings
from circuits.prepared import Parts
from circuits.slopes import Override
from circuits.wiring import Wiring
from mechlab.patching.task import Task
from mechlab.results.study import Progress


class Settings(MethodSettings):
    """Settings of EAP-IG."""

    steps: int = Field(default=5, ge=1, description="points on the way from ablated to clean")


def run(wiring: Wiring, task: Task, settings: Settings, progress: Progress) -> Found:
    """``steps`` forward and backward passes per pair, and two forward passes."""

    def points(clean: Parts, away: Parts) -> Iterator[Override]:
        for k in range(settings.steps):
            yield Override("embed", 0, (away.embed + k / settings.steps * (clean.embed - away.embed))[None])

    return integrated(wiring, task, settings, progress, points, settings.steps)


METHOD = Method(
    name="eap-ig",
    title="EAP-IG (inputs)",
    paper="Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806",
    line="EAP with the gradient averaged over embeddings between corrupted and clean.",
    level="edge",
    exact=False,
    settings=Settings,
    run=run,
)
