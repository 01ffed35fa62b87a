"""Nothing of the engine's mixes devices: it runs whole with a model on another device than the prompts and tables.

The other device is PyTorch's ``meta``, which every machine has: tensors with shapes and no values, which refuse to meet one of the CPU's
just as an accelerator's do. Where the code asks for a value it gets a plain one, so nothing is said here about numbers.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from toys import WITH_EDGES, toy_task

from circuits.methods import eap, eap_ig
from circuits.methods.method import MethodSettings
from circuits.wiring import Wiring
from mechlab.lens.edit import Edit, add, patch, scale, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import KINDS, Site
from mechlab.models import FAMILIES, tiny
from mechlab.patching.task import Task

_ASK_VALUES = (
    "pattern",
    "router",
    "expert_weights",
    "expert_out",
    "expert_choice",
)  # their edits and reads look at numbers


@pytest.fixture(autouse=True)
def values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain values wherever one is asked of a tensor without any."""

    def instead(name: str, plain: Callable[[Tensor], object]) -> None:
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, *args: plain(self) if self.is_meta else real(self, *args))

    instead("__bool__", lambda _: True)
    instead("item", lambda _: 0)
    instead("cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))


def elsewhere(lens: Lens) -> Task:
    """A task for a tiny model, which then moves: what was learned of it before, stays."""
    task = toy_task(lens, n=3)
    lens.model.hf.to("meta")
    if lens.layout.n_experts:
        lens.model.hf.set_experts_implementation("batched_mm")  # the grouped kernel asks for values
    assert lens.model.device.type == "meta"
    return task


def edits(lens: Lens) -> Iterator[Edit]:
    for kind in lens.layout.kinds(1):
        if kind not in _ASK_VALUES:
            yield patch(Site(kind, 1))
            yield zero(Site(kind, 1, pos=-1))
    yield add("L1.resid_post@-1", [1.0] * lens.model.d_model)
    yield scale("L1H1", 2.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_and_whole_passes(family: str) -> None:
    lens = Lens(tiny(family))
    task, every = elsewhere(lens), list(edits(lens))
    for exhaustive in (False, True):
        assert len(lens.effects(task, every, exhaustive=exhaustive).frame) == len(task) * len(every)
    lens.effects(task, [patch("L1H0@3")], "kl")
    lens.path_effects(task, ["L0H0"], receivers=["L1KV0.k"])
    read = [Site(kind, 1) for kind in lens.layout.kinds(1) if kind not in _ASK_VALUES[1:]]
    run = lens.run(task.clean, read=read, logits="all")
    assert all(run[at].is_meta and run[at].ndim == 1 + len(KINDS[at.kind].axes) for at in read)


@pytest.mark.parametrize("family", WITH_EDGES)
def test_edge_attribution(family: str) -> None:
    lens = Lens(tiny(family))
    wiring = Wiring.of(lens)
    task = elsewhere(lens)
    for method, settings in (
        (eap.METHOD, MethodSettings(batch_size=2)),
        (eap_ig.METHOD, eap_ig.Settings(batch_size=2, steps=2)),
    ):
        assert method.score(wiring, task, settings).values.shape == wiring.graph.shape


def test_the_other_device_refuses_to_mix() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device="meta") + torch.ones(2)
