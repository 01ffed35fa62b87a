"""EAP with integrated gradients along activations: each sublayer's output in turn goes from ablated to clean.

As the EAP-IG code has it: for the embeddings and for the attention and the MLP of every layer there are runs in which what it writes lies
at k / steps of the way, k = 1 .. steps, everything else being computed from there; the gradient at each edge is the mean over all runs.
Hanna, Pezzelle and Belinkov, arXiv 2403.17806; the MIB circuit track, arXiv 2504.13151.
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
    """Settings of EAP-IG along activations."""

    steps: int = Field(default=5, ge=1, description="points on the way from ablated to clean, for each sublayer")


def run(wiring: Wiring, task: Task, settings: Settings, progress: Progress) -> Found:
    """``steps * (2 * layers + 1)`` forward and backward passes per pair."""

    def points(clean: Parts, away: Parts) -> Iterator[Override]:
        sublayers = [("embed", 0, clean.embed, away.embed)]
        for layer in range(wiring.graph.n_layers):
            sublayers += [
                ("z", layer, clean.z[layer], away.z[layer]),
                ("mlp", layer, clean.mlp[layer], away.mlp[layer]),
            ]
        for kind, layer, full, none in sublayers:
            for k in range(1, settings.steps + 1):
                yield Override(kind, layer, (none + k / settings.steps * (full - none))[None])

    return integrated(wiring, task, settings, progress, points, settings.steps * (2 * wiring.graph.n_layers + 1))


METHOD = Method(
    name="eap-ig-activations",
    title="EAP-IG (activations)",
    paper="Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806",
    line="EAP with the gradient averaged over runs in which one sublayer's output goes from corrupted to clean.",
    level="edge",
    exact=False,
    settings=Settings,
    run=run,
)
