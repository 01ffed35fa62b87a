"""The lens's ``run`` as one nnsight trace: here, or on an NDIF server that holds the model.

lens = NnsightLens(Lens(load()), remote="http://my.server")            # a model that is here too
lens = NnsightLens.distant("meta-llama/Llama-3.1-70B", remote=True)     # one that is not: configuration and tokenizer are
lens.run(prompts, edits=[patch("L9H6")], read=["L9.resid_post@-1"], sources={"clean": other_prompts})
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechlab.backends.distant import distant_layout
from mechlab.backends.perform import perform
from mechlab.backends.program import OPERATION, Step, compiled
from mechlab.errors import ModelError, SiteError
from mechlab.lens.apply import Source, Window
from mechlab.lens.edit import Edit
from mechlab.lens.layout import Layout
from mechlab.lens.lens import Lens, Sources
from mechlab.lens.reading import Run, at_ends, view
from mechlab.lens.site import Site
from mechlab.lens.splice import Spliceable
from mechlab.lens.tokens import Prompts, Tokens
from mechlab.models.model import Model
from mechlab.models.twin import over_same_weights

Remote = bool | str
_LOGITS = Site("logits")


class NnsightLens:
    """Runs the same edits at the same sites as a Lens, each batch in one nnsight trace with a single invoke.

    Never two invokes: nnsight 0.8 gives a second invoke the rows of both where a module folds batch and positions together, as the
    experts of every MoE family do.

    All site kinds and verbs of ``Lens.run`` work, here and remotely. ``generate``, ``gradients`` and ``effects`` are the Lens's alone.

    Args:
        lens: tells where sites live; its weights are shared, its modules and hooks are left alone.
        remote: False runs here; ``"local"`` serialises the run as for a server and runs it here; a URL, or True for nnsight's configured
            host, sends it to an NDIF server. The server runs whoever's code it is sent: use one you trust, or run your own.

    Raises:
        ModelError: nnsight is not installed; ``remote`` is no server; a model that no server can know. When run: a server that fails.
    """

    def __init__(self, lens: Lens, *, remote: Remote = False) -> None:
        self._traced = _Traced(lens.model, lens.layout, lens.prepend_bos, _wrapped(lens), remote)

    @classmethod
    def distant(
        cls, checkpoint: str, *, remote: Remote = True, revision: str | None = None, prepend_bos: bool | None = None
    ) -> NnsightLens:
        """A lens on a model whose weights stay on the server; of ``checkpoint``, configuration and tokenizer are read.

        Raises:
            ModelError: nnsight is not installed; a checkpoint that cannot be found; a family whose sites are not known without weights.
        """
        wrapped = _unloaded(checkpoint, revision)
        model = Model(checkpoint, checkpoint, wrapped._module, wrapped.tokenizer)
        made = cls.__new__(cls)
        made._traced = _Traced(model, distant_layout(model), prepend_bos, wrapped, remote)
        return made

    @property
    def model(self) -> Model:
        return self._traced.model

    @property
    def layout(self) -> Layout:
        return self._traced.layout

    def tokens(self, prompts: Prompts) -> Tokens:
        """The tokens the model will really see."""
        return self._traced.tokens(prompts)

    def run(
        self,
        prompts: Prompts,
        edits: Iterable[Edit] = (),
        read: Iterable[str | Site] = (),
        *,
        sources: Sources | None = None,
        logits: Literal["all", "last", "none"] = "all",
        batch_size: int = 64,
    ) -> Run:
        """As ``Lens.run``: the same arguments, the same result, the same errors."""
        return self._traced.run(prompts, edits, read, sources=sources, logits=logits, batch_size=batch_size)


class _Traced(Lens):
    """A Lens whose forward pass is a trace: checks, sources, batches and what a Run is are the Lens's own."""

    def __init__(  # not Lens's: the layout is read already, and attention stays transformers' own
        self, model: Model, layout: Layout, prepend_bos: bool | None, wrapped: Any, remote: Remote
    ) -> None:
        self.model = model
        self.prepend_bos = prepend_bos
        self.layout = layout
        self.remote = _checked(remote, model, wrapped)
        self._paths: dict[nn.Module, str] = {module: path for path, module in model.hf.named_modules()}
        self._nnsight = wrapped

    def _forward(
        self,
        tokens: Tokens,
        rows: tuple[int, ...],
        edits: Sequence[Edit],
        sites: Sequence[Site],
        sources: Mapping[str, Source],
        dictionaries: Mapping[str, Spliceable],  # noqa: ARG002 (a splice is refused when the program is made)
        logits: str,
        touched: Counter[Edit],
    ) -> Run:
        batch = tokens.select(rows)
        window = Window(batch, rows, batch.width, sources, len(tokens))
        unit_less = {at: at.whole.at(at.pos) for at in sites}
        reads = dict.fromkeys(unit_less.values())
        ends = _LOGITS.at(None if logits == "all" else -1)
        if logits != "none":
            reads[ends] = None
        program = compiled(self.layout, self._paths, window, edits, reads, self.model.dtype)
        touched.update(program.touched)
        kept = self._sent(batch, program.steps)
        activations = {at: _part(at, kept[str(whole)], batch) for at, whole in unit_less.items()}
        if logits == "none":
            return Run(batch, None, None, activations)
        seen = kept[str(ends)]
        last = at_ends(seen, batch) if logits == "all" else seen
        return Run(batch, view(_LOGITS, seen, batch) if logits == "all" else last[:, None], last, activations)

    def _sent(self, batch: Tokens, steps: list[Step]) -> dict[str, Tensor]:
        from nnsight.intervention.backends.remote import RemoteError

        self._check_attention(steps)
        try:
            return self._trace(batch, steps)
        except (RemoteError, OSError) as error:  # nobody listens: a plain ConnectionRefusedError
            where = self.remote if isinstance(self.remote, str) else "of nnsight's configuration"
            raise ModelError(
                f"The server {where} did not run {self.model.name}: {error}; check that it is up and serves it."
            ) from error

    @torch.no_grad()
    def _trace(self, batch: Tokens, steps: list[Step]) -> dict[str, Tensor]:
        import nnsight

        nnsight.register(perform.__module__)  # its functions travel as source
        # The trace takes along what its lines name: these, and not this object.
        save, model, inputs, remote = nnsight.save, self._nnsight, {"input_ids": batch.ids}, self.remote
        with model.trace(inputs, use_cache=False, remote=remote):
            kept = save(perform(model, steps))
        return kept  # noqa: RET504 (nnsight fills the name in when the block ends)

    def _check_attention(self, steps: list[Step]) -> None:
        for step in steps:
            if step["port"] == "attention" and OPERATION not in self._nnsight.get(step["path"]).source.names:
                have = ", ".join(
                    kind for kind in self.layout.kinds(0) if kind not in ("q", "k", "v", "scores", "pattern")
                )
                raise SiteError(
                    f"Site {step['taps'][0]['kind']} is out of nnsight's reach in {self.model.name}, whose {step['path']} does not "
                    f"call transformers' attention function: use {have}."
                )


def _checked(remote: Remote, model: Model, wrapped: Any) -> Remote:
    if isinstance(remote, str) and remote != "local" and not remote.startswith(("http://", "https://")):
        raise ModelError(f"remote={remote!r} is no server: give a URL (http://...), True, False or 'local'.")
    if remote not in (False, "local") and not wrapped.repo_id:
        raise ModelError(
            f"{model.name} was made here, and no server knows it: load a model by its hub id or its folder."
        )
    return remote


def _wrapped(lens: Lens) -> Any:
    """nnsight's model over the lens's weights, on modules of its own, with transformers' own attention."""
    twin = over_same_weights(lens.model.hf)
    try:
        twin.set_attn_implementation("sdpa")  # what the lens runs where nobody looks inside
    except ValueError:  # families with soft-capping or sinks, in which the lens runs the plain formula too
        twin.set_attn_implementation("eager")
    return _named(_nnsight_model()(twin, tokenizer=lens.model.tokenizer, task="text-generation"))


def _unloaded(checkpoint: str, revision: str | None) -> Any:
    """nnsight's model without weights (it would load them if it were run here)."""
    from transformers import AutoTokenizer

    make = _nnsight_model()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
        return _named(make(checkpoint, tokenizer=tokenizer, task="text-generation", revision=revision))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint!r} has no configuration and tokenizer that can be read: give a hub id or a folder ({error})."
        ) from error


def _nnsight_model() -> Any:
    try:
        from nnsight import TransformersModel
    except ImportError as error:
        raise ModelError("nnsight is not installed: run pip install 'mechlab-workbench[remote]'.") from error
    return TransformersModel


def _named(wrapped: Any) -> Any:
    """A server may hold a folder under its path; nnsight would ask the hub for its name."""
    from nnsight.modeling import huggingface

    name = str(wrapped.repo_id)
    if wrapped.repo_id and Path(name).is_dir():
        huggingface._ID_CACHE.setdefault(name, name)  # pyright: ignore[reportPrivateUsage]
    return wrapped


def _part(at: Site, kept: Tensor, batch: Tokens) -> Tensor:
    """The part a site names of what was kept for it: its positions are cut already, its unit is not."""
    if at.pos is None:
        return view(at, kept, batch)
    return kept if at.index is None else kept.select(1, at.index)
