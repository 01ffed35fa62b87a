"""What runs inside an nnsight trace: the steps of a compiled run, in plain torch.

A remote server has no mechlab. nnsight ships the source of this file's functions there, so they use torch, their arguments and each
other, and nothing else: no class of ours, no import of ours. Everything that can be decided beforehand (which cells an edit touches,
which source values go there, whether it is allowed) is decided by the caller, see ``program.py``.
"""

from __future__ import annotations  # annotations travel as text

from typing import Any

import torch


def perform(model: Any, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Edits and reads on the way through ``model`` (an nnsight model); what was read, by name.

    ``steps`` are in the order of the forward pass: nnsight serves each place once, as the model gets there.
    """
    kept: dict[str, Any] = {}
    ports = {
        "input": _at_input,
        "shared_input": _at_shared_input,
        "output": _at_output,
        "result": _at_result,
        "attention": _in_attention,
        "router": _at_router,
        "logits": _at_logits,
    }
    for step in steps:
        module = model.get(step["path"]) if step["path"] else model
        ports[step["port"]](module, step, kept)
    return kept


def _at_input(module: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    whole = module.input
    new = _through(_view(whole, step), step["taps"][0], kept)
    if step["taps"][0]["edits"]:
        module.input = _unview(new, whole, step)


def _at_shared_input(module: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    """The MLP's norm and the sum after the MLP read the same tensor: an edit is written into it, so that both see it."""
    shared, tap = module.input, step["taps"][0]
    for edit in tap["edits"]:
        shared.copy_(_edited(shared, edit))
    _keep(shared, tap, kept)


def _at_output(module: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    output = module.output
    whole = output if isinstance(output, torch.Tensor) else output[0]
    # what the residual stream gets, as in ``lens.added``
    added = whole if step["scale"] == 1 else whole * step["scale"]
    new = _through(_view(added, step), step["taps"][0], kept)
    if step["taps"][0]["edits"]:
        new = _unview(new, added, step)
        new = new if step["scale"] == 1 else torch.where(new == added, whole, new / step["scale"])
        module.output = new if isinstance(output, torch.Tensor) else (new, *output[1:])


def _view(whole: torch.Tensor, step: dict[str, Any]) -> torch.Tensor:
    """Heads apart, or one half of two maps in one module."""
    if step["heads"] is not None:
        return whole.unflatten(-1, step["heads"])
    return whole if step["half"] is None else whole.chunk(2, dim=-1)[step["half"]]


def _unview(new: torch.Tensor, whole: torch.Tensor, step: dict[str, Any]) -> torch.Tensor:
    if step["heads"] is not None:
        return new.flatten(-2)
    if step["half"] is None:
        return new
    halves = list(whole.chunk(2, dim=-1))
    halves[step["half"]] = new
    return torch.cat(halves, dim=-1)


def _at_result(module: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    """As ``hooks._result``: heads and bias sum to what is added; tokens that no edit changes keep the module's own bits."""
    z = module.input.unflatten(-1, step["heads"])
    weight = (module.weight.T if step["transposed"] else module.weight).unflatten(0, step["heads"])
    result = torch.einsum("bphd,hdm->bphm", z, weight)
    result = result if step["scale"] == 1 else result * step["scale"]
    output = module.output
    new = _through(result, step["taps"][0], kept)
    if step["taps"][0]["edits"]:
        changed = (new != result).flatten(2).any(dim=2, keepdim=True)
        bias = getattr(module, "bias", None)
        total = new.sum(dim=2) / step["scale"]
        module.output = torch.where(changed, total if bias is None else total + bias, output)


def _at_logits(model: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    output = model.output
    output.logits = _through(output.logits, step["taps"][0], kept)


def _in_attention(module: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    """q, k, v are what the module hands to its attention function; with scores or pattern wanted, the plain formula takes its place."""
    operation = getattr(module.source, step["operation"])
    args, kwargs = operation.inputs
    taps = {tap["kind"]: tap for tap in step["taps"]}
    qkv = list(args[1:4])
    for i, kind in enumerate(("q", "k", "v")):
        if kind in taps:
            qkv[i] = _through(qkv[i].transpose(1, 2), taps[kind], kept).transpose(1, 2)
    if "scores" in taps or "pattern" in taps:
        mask = args[4] if len(args) > 4 else kwargs.get("attention_mask")
        operation.skip((_attended(qkv, mask, kwargs, taps, kept), None))
    elif any(tap["edits"] for tap in step["taps"]):
        operation.inputs = ((args[0], *qkv, *args[4:]), kwargs)


def _attended(
    qkv: list[torch.Tensor], mask: Any, kwargs: dict[str, Any], taps: dict[str, Any], kept: dict[str, Any]
) -> torch.Tensor:
    """``[batch, query, head, d_head]``, as transformers' eager attention computes it, soft-capping and sinks included."""
    q, k, v = qkv
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scaling, softcap, sinks = (kwargs.get(name) for name in ("scaling", "softcap", "s_aux"))
    scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = _hidden(scores, mask)
    if "scores" in taps:
        scores = _through(scores.transpose(1, 2), taps["scores"], kept).transpose(1, 2)
    if sinks is None:
        pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    else:  # one more logit per head takes its share of the attention and is then left out
        column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[-2], -1)
        joint = torch.cat([scores, column], dim=-1)
        joint = joint - joint.max(dim=-1, keepdim=True).values
        pattern = torch.softmax(joint, dim=-1, dtype=joint.dtype)[..., :-1].to(q.dtype)
    if "pattern" in taps:
        pattern = _through(pattern.transpose(1, 2), taps["pattern"], kept).transpose(1, 2)
    return torch.matmul(pattern, v).transpose(1, 2).contiguous()


def _hidden(scores: torch.Tensor, mask: Any) -> torch.Tensor:
    """-inf where a query may not look. Masks are bool (True looks), added (very negative hides), or absent (plain causal)."""
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    return scores.masked_fill(mask < torch.finfo(mask.dtype).min / 2, float("-inf"))


def _at_router(module: Any, step: dict[str, Any], kept: dict[str, Any]) -> None:
    """Edits the logits, then chooses experts again: the block uses the chosen ones only, never the logits."""
    logits, weights, indices = module.output
    taps = {tap["kind"]: tap for tap in step["taps"]}
    if "router" in taps:
        by_pos = _through(logits.unflatten(0, (step["n_batch"], -1)), taps["router"], kept)
        if taps["router"]["edits"] or step["switches"]:
            logits = by_pos.flatten(0, 1)
            weights, indices = _chosen(step, logits, weights.dtype)
            module.output = (logits, weights, indices)
    if "expert_weights" in taps:
        dense = torch.zeros_like(logits).scatter(1, indices, weights.to(logits.dtype))
        _keep(dense.unflatten(0, (step["n_batch"], -1)), taps["expert_weights"], kept)
    if "expert_choice" in taps:
        _keep(indices.unflatten(0, (step["n_batch"], -1)), taps["expert_choice"], kept)


def _chosen(step: dict[str, Any], logits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The family's rule on edited logits ``[T, E]``: softmax then top-k, renormalised or not, or top-k then softmax.

    The rule of ``mechlab.lens.routing.choose`` and ``drop``, which cannot be here (see above); tests hold the two equal.
    """
    rule, none = step["rule"], torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    off, on, drop = (step["switches"].get(state, none).to(logits.device) for state in ("off", "on", "drop"))
    allowed = logits.masked_fill(off, float("-inf"))
    if rule["softmax"] == "over the chosen":
        indices = allowed.masked_fill(on, float("inf")).topk(rule["k"], dim=-1).indices
        weights = allowed.gather(1, indices).softmax(dim=1)
    else:
        probabilities = allowed.float().softmax(dim=-1)
        indices = probabilities.masked_fill(on, float("inf")).topk(rule["k"], dim=-1).indices
        weights = probabilities.gather(1, indices)
        if rule["renormalises"]:
            weights = weights / weights.sum(dim=-1, keepdim=True)
    weights = weights.to(dtype)
    before = weights.sum(dim=-1, keepdim=True)
    left = weights.masked_fill(drop.gather(1, indices), 0.0)
    after = left.sum(dim=-1, keepdim=True)
    rescaled = torch.where(after > 0, left * (before / after.clamp_min(1e-30)), left)
    return (rescaled if bool(drop.any()) else weights), indices


def _through(activation: torch.Tensor, tap: dict[str, Any], kept: dict[str, Any]) -> torch.Tensor:
    """The activation ``[batch, pos, ...]`` after the tap's edits; what the tap reads is kept."""
    for edit in tap["edits"]:
        activation = _edited(activation, edit)
    _keep(activation, tap, kept)
    return activation


def _keep(activation: torch.Tensor, tap: dict[str, Any], kept: dict[str, Any]) -> None:
    """Positions are cut here, so that only they travel back."""
    for name, at in tap["reads"].items():
        part = activation if at is None else activation[torch.arange(len(at)), torch.tensor(at)]
        kept[name] = part.detach()


def _edited(activation: torch.Tensor, edit: dict[str, Any]) -> torch.Tensor:
    """A copy of the activation with new values in the cells ``(batch, column)`` of one unit (``index``) or of all."""
    where: tuple[Any, ...] = (edit["batch"], edit["column"])
    if edit["index"] is not None:
        where = (*where, edit["index"])
    part = activation[where]
    new = _changed(part, edit) if edit["steer"] is None else _steered(part, edit, edit["steer"])
    new = new.to(activation.dtype)
    result = activation.clone()
    result[where] = new.masked_fill(part.isneginf(), float("-inf")) if edit["keeps_hidden"] else new
    return result


def _steered(part: torch.Tensor, edit: dict[str, Any], steer: dict[str, Any]) -> torch.Tensor:
    """What ``mechlab.lens.steer`` does, which cannot be here (see above); tests hold the two equal."""
    wide = part.to(torch.promote_types(part.dtype, torch.float32))
    along, gate = (None if steer[name] is None else steer[name].to(wide) for name in ("along", "gate"))
    if edit["change"] == "add":
        shift = edit["value"].to(wide)
        if steer["times_rms"]:
            shift = shift * wide.square().mean(-1, keepdim=True).sqrt()
        if steer["adaptive"] is not None:
            against = -torch.nn.functional.cosine_similarity(wide, shift, dim=-1)
            shift = shift * torch.sigmoid(steer["adaptive"] * against.clamp_min(0))[..., None]
        new = wide + shift
        if steer["keep_norm"]:
            new = new * (wide.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True).clamp_min(1e-30))
    elif along is not None:
        height = wide @ along
        new = wide + (height.clamp(*edit["value"]) - height)[..., None] * along
    else:
        new = _changed(part, edit)
    return new if gate is None else torch.where((wide @ gate > steer["threshold"])[..., None], new, part.to(new.dtype))


def _changed(part: torch.Tensor, edit: dict[str, Any]) -> torch.Tensor:
    change, value = edit["change"], edit["value"]
    value = value.to(part.device) if isinstance(value, torch.Tensor) else value
    if change == "set":
        return value.to(part.dtype).expand_as(part)
    if change == "scale":
        return part * value
    if change == "add":
        return part + value
    if change == "clamp":
        return part.clamp(*value)
    basis = edit["basis"].to(part)  # project: out of the subspace, and in it what comes from elsewhere
    return part - part @ basis.T @ basis + value.to(part.dtype)
