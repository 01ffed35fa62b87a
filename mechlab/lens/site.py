"""Sites: where an activation lives. A frozen value, one parser for its text form.

People type a short form; programs print it back the same::

    L5H3            output of head 3 of layer 5 before the output projection (z)
    L5H3.q@-1       its query, at each prompt's last token
    L5KV1.k         key of KV head 1 (keys and values are indexed by KV head)
    L5N1204         MLP neuron 1204 (mlp_post)
    L5E7            expert 7's router logit
    L5D12.resid_post  dimension 12 of the residual stream
    L5.resid_pre@S2 the residual stream at the position labelled S2
    final_norm@-1   a site outside the layers

The TransformerLens hook name of a kind is accepted wherever the short form is (``blocks.5.attn.hook_z@-1``). Layers count from 0.
"""

import re
from dataclasses import dataclass, replace

from mechlab.errors import SiteError, UnknownName

__all__ = ["site"]


@dataclass(frozen=True)
class Kind:
    """One kind of site.

    ``axes`` are those of the activation as it is read, after ``batch``; ``index`` names what an index into the site counts.
    """

    name: str
    hook: str
    axes: tuple[str, ...]
    index: str | None
    meaning: str

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.hook


_D = ("pos", "d_model")
_MLP = ("pos", "d_mlp")
# In the order of the forward pass: sites sort by (layer, this order).
_KIND_LIST = [
    Kind("embed", "hook_embed", _D, "dimension", "token embedding, as it enters the model"),
    Kind("resid_pre", "blocks.{layer}.hook_resid_pre", _D, "dimension", "residual stream entering the layer"),
    Kind(
        "q", "blocks.{layer}.attn.hook_rot_q", ("pos", "head", "d_head"), "head", "queries, after any rotary embedding"
    ),
    Kind(
        "k",
        "blocks.{layer}.attn.hook_rot_k",
        ("pos", "kv_head", "d_head"),
        "KV head",
        "keys, after any rotary embedding",
    ),
    Kind("v", "blocks.{layer}.attn.hook_v", ("pos", "kv_head", "d_head"), "KV head", "values"),
    Kind(
        "scores",
        "blocks.{layer}.attn.hook_attn_scores",
        ("head", "query", "key"),
        "head",
        "attention scores before softmax; masked entries are -inf",
    ),
    Kind("pattern", "blocks.{layer}.attn.hook_pattern", ("head", "query", "key"), "head", "attention after softmax"),
    Kind(
        "z",
        "blocks.{layer}.attn.hook_z",
        ("pos", "head", "d_head"),
        "head",
        "head outputs before the output projection",
    ),
    Kind(
        "result",
        "blocks.{layer}.attn.hook_result",
        ("pos", "head", "d_model"),
        "head",
        "each head's output through its slice of the output projection, without its bias; scaled as attn_out is",
    ),
    Kind(
        "attn_out",
        "blocks.{layer}.hook_attn_out",
        _D,
        "dimension",
        "what attention adds to the residual stream (after a post-norm or a multiplier, where there is one)",
    ),
    Kind(
        "resid_mid",
        "blocks.{layer}.hook_resid_mid",
        _D,
        "dimension",
        "residual stream between attention and MLP; absent in parallel blocks",
    ),
    Kind("mlp_in", "blocks.{layer}.mlp.hook_in", _D, "dimension", "input of the MLP, after its norm"),
    Kind(
        "router",
        "blocks.{layer}.mlp.gate.hook_out",
        ("pos", "expert"),
        "expert",
        "router logits, before the top-k choice",
    ),
    Kind(
        "expert_weights",
        "blocks.{layer}.mlp.hook_expert_weights",
        ("pos", "expert"),
        "expert",
        "weights with which the experts' outputs are summed; 0 for experts not chosen",
    ),
    Kind(
        "expert_choice",
        "blocks.{layer}.mlp.hook_expert_indices",
        ("pos", "choice"),
        None,
        "numbers of the experts chosen for each token",
    ),
    Kind(
        "expert_out",
        "blocks.{layer}.mlp.hook_expert_out",
        ("pos", "expert", "d_model"),
        "expert",
        "each expert's part of the layer's output, weighted, scaled as mlp_out is; zero for experts not chosen",
    ),
    Kind(
        "mlp_pre",
        "blocks.{layer}.mlp.hook_pre",
        _MLP,
        "neuron",
        "MLP neurons before the activation function (the gate, in a gated MLP)",
    ),
    Kind("mlp_pre_linear", "blocks.{layer}.mlp.hook_pre_linear", _MLP, "neuron", "the ungated branch of a gated MLP"),
    Kind(
        "mlp_post",
        "blocks.{layer}.mlp.hook_post",
        _MLP,
        "neuron",
        "MLP neurons: the input of the MLP's output projection",
    ),
    Kind(
        "mlp_out",
        "blocks.{layer}.hook_mlp_out",
        _D,
        "dimension",
        "what the MLP adds to the residual stream (after a post-norm or a multiplier, where there is one)",
    ),
    Kind("resid_post", "blocks.{layer}.hook_resid_post", _D, "dimension", "residual stream leaving the layer"),
    Kind("final_norm", "ln_final.hook_out", _D, "dimension", "output of the final norm: what is unembedded"),
    Kind("logits", "unembed.hook_out", ("pos", "vocab"), "token id", "logits, after any final soft-capping"),
]
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KIND_LIST}
BY_HEAD = ("scores", "pattern")
"""Kinds with a value for each pair of tokens: read ``[head, query, key]``, edited by position, ``[query, head, key]``."""
_ORDER = {kind.name: i for i, kind in enumerate(_KIND_LIST)}
_LETTER = {"head": "H", "KV head": "KV", "neuron": "N", "expert": "E", "dimension": "D", "token id": "T"}
_DEFAULT_KIND = {"H": "z", "N": "mlp_post", "E": "router"}
_EXAMPLE_KIND = {None: "resid_post", "KV": "k", "D": "resid_post", "T": "logits"}
# The same tensors under names that other tools use too.
_HOOK_ALIASES = {
    "blocks.{layer}.hook_in": "resid_pre",
    "blocks.{layer}.hook_out": "resid_post",
    "blocks.{layer}.attn.hook_out": "attn_out",
    "hook_out": "logits",
}
_SHORT = re.compile(r"^(?:L(?P<layer>\d+))?(?:(?P<letter>KV|H|N|E|D|T)(?P<index>\d+))?(?:\.?(?P<kind>[a-z][a-z_]*))?$")


@dataclass(frozen=True)
class Site:
    """A place where an activation lives.

    Attributes:
        kind: a name in ``KINDS``.
        layer: 0-based, or None for sites outside the layers.
        index: head, KV head, neuron, expert or dimension, by kind; None for all of them.
        pos: token position inside each prompt (negative: from its own end), a label of the prompts (``"S2"``), or None for all.
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    pos: int | str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("site kind", self.kind, KINDS)
        kind = KINDS[self.kind]
        if kind.per_layer and self.layer is None:
            raise SiteError(f"Site kind {self.kind!r} lives in a layer: write for example L0.{self.kind}.")
        if not kind.per_layer and self.layer is not None:
            raise SiteError(
                f"Site kind {self.kind!r} lives outside the layers: write {self.kind!r} without L{self.layer}."
            )
        if self.index is not None and kind.index is None:
            raise SiteError(f"Site kind {self.kind!r} has no units: write L{self.layer}.{self.kind} without one.")
        for name, number in (("layer", self.layer), ("index", self.index)):
            if number is not None and number < 0:
                raise SiteError(f"Site {name} {number} is negative: layers, heads and units count from 0.")

    @property
    def hook_name(self) -> str:
        """TransformerLens's name of this site's hook (of the whole tensor: index and position are not part of it)."""
        return KINDS[self.kind].hook.format(layer=self.layer)

    @property
    def whole(self) -> "Site":
        """The tensor this site is part of: all units, all positions."""
        return Site(self.kind, self.layer)

    def at(self, pos: int | str | None) -> "Site":
        """The same site at another position."""
        return replace(self, pos=pos)

    @property
    def sort_key(self) -> tuple[int, int, int, str]:
        """Order of the forward pass."""
        first, last = -1, 10**6
        layer = self.layer if self.layer is not None else (first if self.kind == "embed" else last)
        return (layer, _ORDER[self.kind], -1 if self.index is None else self.index, str(self.pos))

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        text = "" if self.layer is None else f"L{self.layer}"
        letter = _LETTER[kind.index] if kind.index else ""
        if self.index is not None:
            text += f"{letter}{self.index}"
        if self.index is None or _DEFAULT_KIND.get(letter) != self.kind:
            text += f".{self.kind}" if text else self.kind
        return text if self.pos is None else f"{text}@{self.pos}"


def site(text: "str | Site") -> Site:
    """Parses a site from its short form or its TransformerLens hook name.

    Raises:
        SiteError, UnknownName: text that is no site, with what was expected.
    """
    if isinstance(text, Site):
        return text
    body, at, pos_text = text.strip().partition("@")
    if at and not pos_text:
        raise SiteError(
            f"Site {text!r} has an empty position: write a number or a label after @, as in L5.resid_pre@-1."
        )
    pos = None if not at else int(pos_text) if re.fullmatch(r"-?\d+", pos_text) else pos_text
    return _hook_site(body, text, pos) if "hook_" in body else _short_site(body, text, pos)


def _hook_site(body: str, text: str, pos: int | str | None) -> Site:
    layer = re.search(r"blocks\.(\d+)\.", body)
    template = re.sub(r"blocks\.\d+\.", "blocks.{layer}.", body)
    by_hook = {kind.hook: kind.name for kind in _KIND_LIST} | _HOOK_ALIASES
    if template in ("blocks.{layer}.attn.hook_q", "blocks.{layer}.attn.hook_k"):
        raise SiteError(
            f"Site {text!r} names the tensor before the rotary embedding; mechlab reads it after: "
            f"write {body.replace('hook_', 'hook_rot_')}."
        )
    if template not in by_hook:
        raise UnknownName("hook name", body, [hook.format(layer="0") for hook in by_hook])
    return Site(by_hook[template], int(layer[1]) if layer else None, pos=pos)


def _short_site(body: str, text: str, pos: int | str | None) -> Site:
    match = _SHORT.match(body)
    if not match or not body:
        raise SiteError(
            f"Site {text!r} does not parse: write for example L5H3, L5.resid_pre@-1, L5N1204, L5KV1.k or logits."
        )
    letter, index = match["letter"], match["index"]
    name = match["kind"] or _DEFAULT_KIND.get(letter or "")
    if name is None:
        raise SiteError(f"Site {text!r} names no kind: write for example {body}.{_EXAMPLE_KIND[letter]}.")
    if name not in KINDS:
        raise UnknownName("site kind", name, KINDS)
    expected = _LETTER[KINDS[name].index or "head"]
    if letter and letter != expected:
        raise SiteError(
            f"Site {text!r}: {name} is indexed by {KINDS[name].index}, "
            f"written {expected}: for example {body.replace(letter + str(index), expected + str(index))}."
        )
    return Site(name, int(match["layer"]) if match["layer"] else None, int(index) if index else None, pos)
