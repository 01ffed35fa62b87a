"""Edge attribution: equal to the derivative of runs with weighted edges, to a plain reference, exact where the model is linear."""

from functools import partial

import pytest
import torch
from planted_tasks import TASKS
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from toys import NO_EDGES, WITH_EDGES, toy_task
from transformers import PhiConfig

from circuits.attribution import attribute
from circuits.methods import clean_corrupted, eap, eap_ig, eap_ig_activations
from circuits.methods.method import Method, MethodSettings, scalar
from circuits.slopes import Override, slopes
from circuits.wiring import Wiring
from mechlab.errors import PromptError, SiteError
from mechlab.lens.edit import patch
from mechlab.lens.lens import Lens
from mechlab.models import PLANTED, tiny
from mechlab.models.model import Model
from mechlab.models.twin import fresh
from mechlab.patching.task import Task
from mechlab.results.metrics import logit_difference


def mask_slope(wiring: Wiring, task: Task, at: float) -> Tensor:
    """Derivative of the summed logit difference with respect to every edge's weight, all weights being ``at``."""
    masks = torch.full((1, *wiring.graph.shape), at, requires_grad=True)
    logits = wiring.run(task.clean, wiring.record(task.corrupted), masks)[0]
    return torch.autograd.grad(logit_difference(logits, task.answers, task.foils).sum(), masks)[0][0]


@pytest.mark.parametrize("family", WITH_EDGES)
def test_eap_is_the_derivative_with_respect_to_edge_weights(family: str) -> None:
    lens = Lens(tiny(family))
    task, wiring = toy_task(lens), Wiring.of(lens)
    found = eap.METHOD.score(wiring, task, MethodSettings(batch_size=2))
    expected = mask_slope(wiring, task, 1.0) / len(task)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found.values, expected, atol=2e-5, rtol=1e-4)


def test_eap_where_one_norm_serves_attention_and_mlp() -> None:
    """Phi: the MLP reads its norm's output together with attention, and its gradient must not take in theirs."""
    base = tiny("llama")
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    hf = fresh(PhiConfig(vocab_size=base.vocab_size, initializer_range=0.3, **sizes), torch.float32, 0)
    hf.config.architectures = ["PhiForCausalLM"]
    lens = Lens(Model("tiny-phi", "tiny", hf, base.tokenizer))
    assert lens.layout.blocks[0].ln1 is lens.layout.blocks[0].ln2
    task, wiring = toy_task(lens), Wiring.of(lens)
    expected = mask_slope(wiring, task, 1.0) / len(task)
    assert expected.abs().max() > 0.1
    found = eap.METHOD.score(wiring, task, MethodSettings()).values
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2_moe"])
def test_prompts_beside_and_a_later_start_change_no_gradient(family: str) -> None:
    """Unequal lengths; linear maps of another kind (GPT-2); maps that see tokens without their rows (experts)."""
    lens = Lens(tiny(family))
    task, wiring = toy_task(lens, n=3), Wiring.of(lens)
    others = task.corrupted.select([2, 0])
    metric = scalar(MethodSettings(), task)
    plain = slopes(wiring, task.clean, metric)
    found = slopes(wiring, task.clean, metric, beside=others.ids, start=2)
    pairs = [*zip(found.mlp, plain.mlp, strict=True), (found.final, plain.final)]
    pairs += [(found.maps[module], plain.maps[module]) for module in plain.maps]
    torch.testing.assert_close(found.metric, plain.metric)
    for got, expected in pairs:
        assert got.shape == expected.shape
        torch.testing.assert_close(got[:, :, 2:], expected[:, :, 2:], atol=1e-5, rtol=1e-4)
    if family == "llama":
        assert (found.mlp[0][:, :, :2] - plain.mlp[0][:, :, :2]).abs().max() > 1e-3  # not gone back to
    assert found.beside is not None and plain.beside is None
    for got, tokens in ((found.written, task.clean), (found.beside, others)):
        apart = got.minus(wiring.record(tokens))
        assert max(float(part[tokens.mask].abs().max()) for part in (apart.embed, *apart.z, *apart.mlp)) < 1e-5


@pytest.mark.parametrize("family", NO_EDGES)
def test_families_without_separate_edges_are_refused(family: str) -> None:
    with pytest.raises(SiteError, match="score nodes instead of edges"):
        Wiring.of(Lens(tiny(family)))


def plain_eap(lens: Lens, wiring: Wiring, task: Task) -> Tensor:
    """The formula pair by pair for a model like Llama, written out: every receiver has a leaf of its own added to what it reads."""
    total = torch.zeros(wiring.graph.shape)
    for pair in range(len(task)):
        one = task.select([pair])
        for i, mine in enumerate(plain_differences(lens, wiring, one)):
            for j, slope in enumerate(plain_slopes(lens, wiring, one)):
                total[i, j] += (mine * slope).sum() if i < wiring.graph.before[j] else 0.0
    return total / len(task)


def plain_differences(lens: Lens, wiring: Wiring, one: Task) -> list[Tensor]:
    """Clean minus corrupted, ``[pos, d_model]`` per sender."""
    size = lens.model.d_head
    apart = wiring.record(one.clean).minus(wiring.record(one.corrupted))
    sent = [apart.embed[0]]
    for layer, (z, mlp) in enumerate(zip(apart.z, apart.mlp, strict=True)):
        out = lens.model.hf.model.layers[layer].self_attn.o_proj.weight
        out = out * getattr(lens.model.config, "residual_multiplier", 1.0)
        sent += [z[0, :, head] @ out[:, head * size : (head + 1) * size].T for head in range(wiring.graph.n_heads)]
        sent.append(mlp[0])
    return sent


def plain_slopes(lens: Lens, wiring: Wiring, one: Task) -> tuple[Tensor, ...]:
    """Gradient ``[pos, d_model]`` at what each receiver reads."""
    hf, graph, size = lens.model.hf, wiring.graph, lens.model.d_head
    ids = one.clean.ids[:, : one.clean.lengths[0]]
    leaves = [torch.zeros(ids.shape[1], lens.model.d_model, requires_grad=True) for _ in graph.receivers]
    handles = []
    for layer, block in enumerate(hf.model.layers):
        at, seen = graph.into(layer), dict[str, Tensor]()
        handles.append(block.input_layernorm.register_forward_pre_hook(lambda _m, a, s=seen: s.update(x=a[0])))
        for name, skip in (("q_proj", 0), ("k_proj", graph.n_heads), ("v_proj", graph.n_heads + graph.n_kv_heads)):
            project = partial(plain_projection, block.input_layernorm, seen, leaves[at.start + skip :], size)
            handles.append(getattr(block.self_attn, name).register_forward_hook(project))
        into_mlp = _through(block.post_attention_layernorm, leaves[at.stop])
        mlp = block.block_sparse_moe if hasattr(block, "block_sparse_moe") else block.mlp
        handles.append(mlp.register_forward_pre_hook(into_mlp))
    handles.append(hf.model.norm.register_forward_pre_hook(lambda _m, a: (a[0] + leaves[-1],)))
    logits = hf(ids).logits[:, -1]
    for handle in handles:
        handle.remove()
    return torch.autograd.grad(logit_difference(logits, one.answers, one.foils).sum(), leaves)


def plain_projection(norm, seen, leaves, size: int, module: nn.Linear, _args: object, _output: Tensor) -> Tensor:
    """What the map gives if each head reads the stream through a norm and a leaf of its own."""
    heads = zip(leaves, module.weight.split(size), strict=False)
    made = torch.cat([type(norm).forward(norm, seen["x"] + leaf) @ weight.T for leaf, weight in heads], dim=-1)
    return made if module.bias is None else made + module.bias


def _through(norm: nn.Module, leaf: Tensor):
    """Puts ``leaf`` before a norm whose output a module reads."""
    kept: dict[str, Tensor] = {}
    norm.register_forward_pre_hook(lambda _m, args: kept.update(x=args[0]))
    return lambda _m, _args: (type(norm).forward(norm, kept["x"] + leaf),)


@pytest.mark.parametrize("family", ["llama", "qwen2", "granite", "granitemoe"])
def test_eap_equals_a_plain_reference(family: str) -> None:
    lens = Lens(tiny(family))
    task, wiring = toy_task(lens, n=3), Wiring.of(lens)
    expected = plain_eap(Lens(tiny(family)), wiring, task)  # on a copy: the reference leaves hooks behind
    found = eap.METHOD.score(wiring, task, MethodSettings())
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["z", "mlp"])
@pytest.mark.parametrize("family", ["llama", "granite", "granitemoe"])
def test_an_override_is_what_a_sublayer_writes(family: str, kind: str) -> None:
    """The other side's own, put in by hand where it is computed, leads to the same metric and is what is noted."""
    lens = Lens(tiny(family))
    task, wiring = toy_task(lens, n=3), Wiring.of(lens)
    values = getattr(wiring.record(task.corrupted), kind)[1]
    found = slopes(wiring, task.clean, scalar(MethodSettings(), task), Override(kind, 1, values[None]))
    torch.testing.assert_close(getattr(found.written, kind)[1], values, atol=1e-6, rtol=1e-6)
    at = f"L1.{'z' if kind == 'z' else 'mlp_out'}"
    logits = lens.run(task.clean, [patch(at)], sources={"clean": task.corrupted}, logits="last").last_logits
    expected = logit_difference(logits, task.answers, task.foils)
    torch.testing.assert_close(found.metric[0], expected, atol=1e-4, rtol=0)


def linear_model() -> Lens:
    """Three layers without norms and with silent MLPs: what a value or the logits read goes through linearly."""
    model = tiny("llama")
    for block in model.hf.model.layers:
        nn.init.zeros_(block.mlp.down_proj.weight)
        block.input_layernorm = Scaled()
        block.post_attention_layernorm = Scaled()
    model.hf.model.norm = Scaled()
    return Lens(model)


class Scaled(nn.Module):
    """A norm that is none (and not the identity, so that skipping it shows)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * 0.5


def test_eap_is_exact_on_edges_that_are_linear() -> None:
    lens = linear_model()
    task, wiring = toy_task(lens), Wiring.of(lens)
    graph, n = wiring.graph, len(task)
    scores = eap.METHOD.score(wiring, task, MethodSettings()).values
    last = graph.into(graph.n_layers - 1)
    columns = [*range(last.start + graph.n_heads + graph.n_kv_heads, last.stop), len(graph.receivers) - 1]
    edges = [(i, j) for j in columns for i in range(graph.before[j])]
    masks = torch.ones(len(edges) + 1, *graph.shape)
    for k, (i, j) in enumerate(edges):
        masks[k, i, j] = 0
    with torch.no_grad():
        logits = wiring.run(task.clean, wiring.record(task.corrupted), masks)
    values = torch.stack([logit_difference(one, task.answers, task.foils) for one in logits]).sum(dim=1) / n
    measured = values[-1] - values[:-1]
    assert measured.abs().max() > 0.03
    torch.testing.assert_close(torch.stack([scores[i, j] for i, j in edges]), measured, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_scores_of_edges_that_leave_the_embedding_add_up_to_the_whole_effect(family: str) -> None:
    """Completeness of integrated gradients at that cut, better with more steps."""
    lens = Lens(tiny(family))
    task, wiring = toy_task(lens, n=2), Wiring.of(lens)
    clean, corrupted = (lens.run(side, logits="last").last_logits for side in (task.clean, task.corrupted))
    assert clean is not None and corrupted is not None
    sides = [logit_difference(one, task.answers, task.foils).mean() for one in (clean, corrupted)]
    whole = float(sides[0] - sides[1])
    error = {
        steps: abs(float(eap_ig.METHOD.score(wiring, task, eap_ig.Settings(steps=steps)).values[0].sum()) - whole)
        for steps in (5, 80)
    }
    assert abs(whole) > 0.1
    assert error[80] < 0.05 * abs(whole)
    assert error[80] < error[5]


def test_integrated_gradients_are_the_mean_over_their_points() -> None:
    """Run by run with overrides written here; also: grouping runs and splitting prompts changes nothing."""
    lens = Lens(tiny("qwen2"))
    task, wiring = toy_task(lens), Wiring.of(lens)
    clean, away = wiring.record(task.clean), wiring.record(task.corrupted)
    expected = torch.zeros(wiring.graph.shape)
    for k in range(4):
        embed = away.embed * (1 - k / 4) + clean.embed * (k / 4)
        at_mask = _slopes_at(wiring, task, embed)
        expected += attribute(wiring, clean.minus(away), at_mask, task.clean) / 4 / len(task)
    for batch_size in (1, 2, 5):
        found = eap_ig.METHOD.score(wiring, task, eap_ig.Settings(steps=4, batch_size=batch_size))
        torch.testing.assert_close(found.values, expected, atol=2e-5, rtol=1e-4)


def _slopes_at(wiring: Wiring, task: Task, embed: Tensor):
    return slopes(wiring, task.clean, scalar(MethodSettings(), task), Override("embed", 0, embed[None]))


def test_clean_corrupted_is_the_mean_of_both_ends() -> None:
    lens = Lens(tiny("gpt_neox"))
    task, wiring = toy_task(lens), Wiring.of(lens)
    swapped = Task("swapped", task.corrupted, task.clean, task.answers, task.foils)
    at_clean = eap.METHOD.score(wiring, task, MethodSettings()).values
    at_corrupted = eap.METHOD.score(wiring, swapped, MethodSettings()).values  # differences with the other sign
    found = clean_corrupted.METHOD.score(wiring, task, MethodSettings()).values
    torch.testing.assert_close(found, (at_clean - at_corrupted) / 2, atol=2e-5, rtol=1e-4)


def test_gradients_along_activations() -> None:
    """With one step every run is the clean one, with one sublayer's output held. So the logits see what EAP sees, the last MLP in all runs
    but the one that holds it."""
    lens = Lens(tiny("gpt2"))
    task, wiring = toy_task(lens, n=2), Wiring.of(lens)
    plain = eap.METHOD.score(wiring, task, MethodSettings()).values
    one, three = (
        eap_ig_activations.METHOD.score(wiring, task, eap_ig_activations.Settings(steps=s)).values for s in (1, 3)
    )
    n_sublayers = 2 * wiring.graph.n_layers + 1
    at_mlp = wiring.graph.into(wiring.graph.n_layers - 1).stop
    torch.testing.assert_close(one[:, -1], plain[:, -1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(one[:, at_mlp], plain[:, at_mlp] * (n_sublayers - 1) / n_sublayers, atol=2e-5, rtol=1e-4)
    assert (three[:, -1] - plain[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("method", [eap.METHOD, eap_ig.METHOD, clean_corrupted.METHOD, eap_ig_activations.METHOD])
def test_metrics_without_a_gradient_are_refused(method: Method) -> None:
    lens = Lens(tiny("gpt2"))
    task, wiring = toy_task(lens, n=2), Wiring.of(lens)
    with pytest.raises(PromptError, match="no gradient"):
        method.score(wiring, task, method.settings(metric="accuracy"))
    if method is eap.METHOD:
        with pytest.raises(PromptError, match="flat at the clean run"):
            method.score(wiring, task, method.settings(metric="kl"))
    else:
        assert method.score(wiring, task, method.settings(metric="kl")).values.abs().max() > 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_integrated_gradients_find_the_planted_edges(name: str) -> None:
    """Attention of the planted models is saturated, so the gradient of one run misses edges that a walk through the embeddings meets."""
    planted = PLANTED[name]()
    lens = Lens(planted.model)
    wiring, task = Wiring.of(lens), TASKS[name](lens, n=6)
    truth, real = wiring.graph.select(planted.edges), wiring.graph.real
    scores = {
        method.name: method.score(wiring, task, settings).values
        for method, settings in (
            (eap.METHOD, MethodSettings()),
            (eap_ig.METHOD, eap_ig.Settings(steps=30)),
        )
    }
    auroc = {name: roc_auc_score(truth[real], found[real]) for name, found in scores.items()}
    assert auroc["eap-ig"] >= 0.95
    assert auroc["eap"] < auroc["eap-ig"]
