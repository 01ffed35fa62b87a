"""The Lens: a model with eyes and hands.

lens = Lens(load())
run = lens.run("When Mary and John went to the store, John gave a drink to", read=["L5H3.pattern", "L9.resid_post@-1"])
run["L5H3.pattern"]                                     # [batch, query, key]
lens.run(prompts, edits=[patch("L9H6", source="clean")], sources={"clean": other_prompts})
"""

from __future__ import annotations

# pyright: reportImportCycles=false
# ``Lens.effects`` opens the one door from lens up to patching, inside the method.
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mechlab.errors import EditError, PromptError, SiteError
from mechlab.lens.apply import Source, Window, check_source, check_touched
from mechlab.lens.attention import use
from mechlab.lens.edit import Edit
from mechlab.lens.generate import Generation, OnToken, Sampling, generate
from mechlab.lens.hooks import Placed, Tap, count_touched, installed, make_taps
from mechlab.lens.layout import layout
from mechlab.lens.reading import Run, at_ends, by_position, joined, view
from mechlab.lens.site import Site, site
from mechlab.lens.splice import Spliceable, check_splices
from mechlab.lens.tokens import Prompts, Tokens, tokenize
from mechlab.models.model import Model
from mechlab.models.twin import over_same_weights

if TYPE_CHECKING:
    import pandas as pd

    from mechlab.patching.plan import Plan
    from mechlab.patching.task import Task
    from mechlab.results.effects import Effects

_LOGITS = Site("logits")
Sources = Mapping[str, "Prompts | Run"]
Dictionaries = Mapping[str, Spliceable]


@dataclass(frozen=True, eq=False)
class Gradients:
    """``metric`` ``[batch]`` at each prompt and its gradient at each site, shaped as the activation there."""

    tokens: Tokens
    metric: Tensor
    gradients: Mapping[Site, Tensor]

    def __getitem__(self, at: str | Site) -> Tensor:
        return self.gradients[site(at)]


class Lens:
    """Runs a model with edits and reads what happens inside.

    Args:
        model: from ``mechlab.load``. Its attention is switched to mechlab's function (same numbers, see ``mechlab check``).
        prepend_bos: how text is tokenised (see ``tokenize``).

    Raises:
        ModelError: a family whose layout cannot be read.
    """

    def __init__(self, model: Model, *, prepend_bos: bool | None = None) -> None:
        self.model = model
        self.prepend_bos = prepend_bos
        use(model.hf)
        self.layout = layout(model)

    def tokens(self, prompts: Prompts) -> Tokens:
        """The tokens the model will really see (``.show()`` prints them)."""
        return tokenize(self.model, prompts, prepend_bos=self.prepend_bos)

    def run(
        self,
        prompts: Prompts,
        edits: Iterable[Edit] = (),
        read: Iterable[str | Site] = (),
        *,
        sources: Sources | None = None,
        dictionaries: Dictionaries | None = None,
        logits: Literal["all", "last", "none"] = "all",
        batch_size: int = 64,
    ) -> Run:
        """One forward pass over the prompts, with ``edits`` applied in order and the sites in ``read`` kept.

        Args:
            sources: the runs that edits name, as prompts (run here, unedited) or as a Run that read the whole sites.
            dictionaries: those that ``splice`` edits name.
            logits: where to unembed; ``"last"`` saves a fifth of the work on small models.
            batch_size: prompts per forward pass; it changes memory and speed, not results (beyond float rounding).

        Raises:
            SiteError: a site this model lacks. EditError: an edit without its source, or one that touches nothing.
            PromptError: prompts that cannot be run, unknown positions, or unequal lengths where edits need equal ones.
        """
        if batch_size < 1:
            raise PromptError(f"batch_size {batch_size} runs no prompt: use 1 or more.")
        tokens, edits = self.tokens(prompts), tuple(edits)
        sites = tuple(dict.fromkeys(site(s) for s in read))
        named = dictionaries or {}
        self._check(tokens, edits, sites, named)
        found = self._sources(tokens, edits, sources or {})
        parts: list[Run] = []
        touched: Counter[Edit] = Counter()
        for start in range(0, len(tokens), batch_size):
            rows = tuple(range(start, min(start + batch_size, len(tokens))))
            parts.append(self._forward(tokens, rows, edits, sites, found, named, logits, touched))
        check_touched(edits, touched)
        return parts[0] if len(parts) == 1 else joined(tokens, sites, parts, logits)

    def generate(
        self,
        prompts: Prompts,
        max_new_tokens: int = 20,
        edits: Iterable[Edit] = (),
        *,
        sources: Sources | None = None,
        dictionaries: Dictionaries | None = None,
        sampling: Sampling | None = None,
        stop_at_eos: bool = True,
        on_token: OnToken | None = None,
    ) -> list[Generation]:
        """Continues each prompt, greedily or by seeded sampling, with edits on prompt tokens, generated tokens or both (``Edit.phase``).

        Args:
            on_token: told each new token at once, as ``(index of the prompt, token id)``; prompts of one length go together.

        Raises:
            EditError: an edit that takes values by position from another run must have ``phase="prompt"`` or a position.
        """
        tokens, edits = self.tokens(prompts), tuple(edits)
        named = dictionaries or {}
        self._check(tokens, edits, (), named)
        found = self._sources(tokens, edits, sources or {})
        return generate(
            self.model, self.layout, tokens, edits, found, max_new_tokens, sampling, stop_at_eos, named, on_token
        )

    def gradients(
        self,
        prompts: Prompts,
        metric: Callable[[Tensor], Tensor],
        at: Iterable[str | Site],
        edits: Iterable[Edit] = (),
        *,
        sources: Sources | None = None,
        dictionaries: Dictionaries | None = None,
    ) -> Gradients:
        """Gradient of ``metric`` (``[batch, vocab]`` logits at each prompt's last token -> ``[batch]``) at sites.

        Each prompt's metric depends on that prompt alone, so row i of a gradient is that of metric i.

        Raises:
            SiteError: a site that the metric does not depend on at all (after the last token's logits), or that is absent.
        """
        tokens, edits, sites = self.tokens(prompts), tuple(edits), tuple(dict.fromkeys(site(s) for s in at))
        self._check(tokens, edits, sites, dictionaries or {})
        found = self._sources(tokens, edits, sources or {})
        window = Window(tokens, tuple(range(len(tokens))), tokens.width, found, len(tokens))
        # Nothing in the model asks for gradients; the graph begins where the embedding is made to.
        taps = make_taps(window, map(Placed, edits), [*sites, Site("embed")], dictionaries)
        next(tap for tap in taps if tap.kind == "embed").starts_graph = True
        with torch.enable_grad(), installed(self.layout, self.model.hf, taps):
            output = self.model.hf(input_ids=tokens.ids.to(self.model.device), use_cache=False)
            values = metric(at_ends(output.logits, tokens))
        kept = {(tap.kind, tap.layer): tap.kept for tap in taps}
        wholes = list(dict.fromkeys(s.whole for s in sites))
        tensors = [kept[whole.kind, whole.layer] for whole in wholes]
        slopes = torch.autograd.grad(values.sum(), [t for t in tensors if t is not None], allow_unused=True)
        check_touched(edits, count_touched(taps))
        by_whole = dict(zip(wholes, slopes, strict=True))
        for whole, gradient in by_whole.items():
            if gradient is None:  # pyright: ignore[reportUnnecessaryComparison]
                raise SiteError(
                    f"Site {whole} has no influence on the metric: choose a site before the last token's logits."
                )
        return Gradients(tokens, values.detach(), {s: view(s, by_whole[s.whole], tokens) for s in sites})  # pyright: ignore[reportArgumentType]

    def effects(
        self,
        task: Task,
        interventions: Sequence[Edit | Sequence[Edit]],
        metric: str = "logit_difference",
        *,
        base: Literal["clean", "corrupted"] = "corrupted",
        exhaustive: bool = False,
        screen: Literal["bf16", "fp16"] | None = None,
        verify: int = 50,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Effects:
        """The effect of each intervention on each prompt of a task; see ``mechlab.patching.effects``.

        ``screen``: rank in lower precision, compute only the ``verify`` strongest exactly; see ``mechlab.patching.screen``.
        """
        from mechlab.patching.effects import effects  # the one door from lens up to patching
        from mechlab.patching.screen import screened

        if screen is not None:
            return screened(
                self, task, interventions, metric, base=base, screen=screen, verify=verify, progress=progress
            )

        return effects(self, task, interventions, metric, base=base, exhaustive=exhaustive, progress=progress)

    def path_effects(
        self,
        task: Task,
        senders: Sequence[str | Site],
        receivers: Sequence[str | Site] = (),
        metric: str = "logit_difference",
        *,
        base: Literal["clean", "corrupted"] = "clean",
        freeze_mlps: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Effects:
        """Path patching: each sender's effect through the receivers only (none: the logits); see ``mechlab.patching.paths``."""
        from mechlab.patching.paths import path_effects

        sites = ([site(at) for at in senders], [site(at) for at in receivers])
        return path_effects(self, task, *sites, metric, base=base, freeze_mlps=freeze_mlps, progress=progress)

    def edge_effects(
        self,
        task: Task,
        metric: str = "logit_difference",
        *,
        base: Literal["clean", "corrupted"] = "clean",
        edges: Callable[[str], bool] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> pd.DataFrame:
        """The exact effect of every edge of the model, or of those whose name ``edges`` accepts; see ``mechlab.patching.edges``."""
        from mechlab.patching.edges import edge_effects

        return edge_effects(self, task, metric, base=base, edges=edges, progress=progress)

    def plan(
        self,
        task: Task,
        interventions: Sequence[Edit | Sequence[Edit]],
        *,
        base: Literal["clean", "corrupted"] = "corrupted",
    ) -> Plan:
        """What ``effects`` would compute and cost: rows, tokens, FLOPs, memory, time. Only a matrix product is run, for its speed."""
        from mechlab.patching.effects import plan_effects

        return plan_effects(self, task, interventions, base=base)

    def bridge(self) -> Any:
        """A TransformerLens TransformerBridge over the same weights (no copy of them), for those who want its API.

        It works on its own module tree, so its hooks and this lens's never meet.
        """
        from transformer_lens.model_bridge import TransformerBridge

        twin = over_same_weights(self.model.hf)
        twin.set_attn_implementation("eager")
        return TransformerBridge.boot_transformers(
            twin.config._name_or_path or self.model.name,  # pyright: ignore[reportPrivateUsage]
            hf_model=twin,
            tokenizer=self.model.tokenizer,
        )

    def _check(self, tokens: Tokens, edits: Sequence[Edit], sites: Sequence[Site], dictionaries: Dictionaries) -> None:
        for at in (*sites, *(edit.site for edit in edits)):
            self.layout.check(at)
            if at.pos is not None:
                tokens.positions(at.pos)
        check_splices(edits, dictionaries, self.model)

    def _sources(self, tokens: Tokens, edits: Sequence[Edit], given: Sources) -> dict[str, Source]:
        """Runs (or looks up) what the edits take values from."""
        needed: dict[str, list[Site]] = {}
        for edit in edits:
            if edit.source is not None:
                needed.setdefault(edit.source, []).append(edit.site.whole)
        found: dict[str, Source] = {}
        for name, wholes in needed.items():
            if name not in given:
                raise EditError(
                    f"Source {name!r} is named by an edit but was not given: pass sources={{{name!r}: prompts}}."
                )
            value = given[name]
            run = value if isinstance(value, Run) else self.run(value, read=wholes, logits="none")
            found[name] = Source(run.tokens, {(w.kind, w.layer): by_position(w, run[w]) for w in wholes})
        for edit in edits:
            if edit.source is not None:
                check_source(edit, tokens, found[edit.source].tokens)
        return found

    def _forward(
        self,
        tokens: Tokens,
        rows: tuple[int, ...],
        edits: Sequence[Edit],
        sites: Sequence[Site],
        sources: Mapping[str, Source],
        dictionaries: Dictionaries,
        logits: str,
        touched: Counter[Edit],
    ) -> Run:
        batch = tokens.select(rows)
        window = Window(batch, rows, batch.width, sources, len(tokens))
        taps = make_taps(window, map(Placed, edits), sites, dictionaries)
        unembeds_all = logits == "all" or any(tap.kind == "logits" for tap in taps)
        ends = torch.tensor(batch.lengths if logits == "last" else (), dtype=torch.long) - 1  # "none" unembeds nothing
        kept, output = self._pass(batch, taps, None if unembeds_all else ends)
        touched.update(count_touched(taps))
        activations = {s: view(s, kept[s.kind, s.layer], batch) for s in sites}
        if logits == "none":
            return Run(batch, None, None, activations)
        last = at_ends(output, batch) if unembeds_all else output[:, 0]
        return Run(batch, view(_LOGITS, output, batch) if logits == "all" else last[:, None], last, activations)

    @torch.no_grad()
    def _pass(self, batch: Tokens, taps: Sequence[Tap], ends: Tensor | None) -> tuple[dict[Any, Tensor], Tensor]:
        with installed(self.layout, self.model.hf, taps, ends):
            output = self.model.hf(input_ids=batch.ids.to(self.model.device), use_cache=False)
        return {(tap.kind, tap.layer): tap.kept for tap in taps if tap.kept is not None}, output.logits
