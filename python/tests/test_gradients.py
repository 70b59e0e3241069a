"""Gradients through traces, against torch's own through a plain evaluation."""

import copy

import pytest
import torch
from helpers import assert_close, error, shape_of, subject
from tiny_models import make_model, random_tokens

import glassformer

MODELS = ["gpt2", "llama", "llama_grouped", "mistral_window", "llama_longrope"]
HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
TARGET = 7


def loss_of(logits):
    """A number that depends on several positions and sequences."""
    return logits[..., TARGET].square().sum() + logits[:, -1, 3].sum()


def is_float(node):
    return node.name not in ("hook_tokens", "positions", "attention_mask")


def shift_by(leaf):
    return lambda value, segment: value + leaf.to(value.dtype)[tuple(slice(size) for size in value.shape)]


def oracle_gradients(tiny, tokens, names, edits=None, mask=None):
    """The gradient by each node, all in one pass: by a zero that is added to it."""
    nodes = {node.name: node for node in tiny.model.nodes()}
    leaves, all_edits = {}, {name: list(entries) for name, entries in (edits or {}).items()}
    for name in names:
        shape = shape_of(nodes[name], *tokens.shape)
        leaves[name] = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        all_edits.setdefault(name, []).append(shift_by(leaves[name]))
    values = tiny.oracle.run(tokens, all_edits, mask=mask)
    gradients = torch.autograd.grad(loss_of(values["logits"]), list(leaves.values()), allow_unused=True)
    return dict(zip(names, gradients, strict=True))


def names_of(tiny, head_inputs):
    return [n.name for n in tiny.model.nodes() if is_float(n) and n.name.endswith(HEAD_INPUTS) == head_inputs]


@pytest.mark.parametrize("name", MODELS)
def test_every_node_has_the_oracles_gradient(name):
    tiny, tokens = subject(name), random_tokens(2, 6)
    names = names_of(tiny, head_inputs=False)
    expected = oracle_gradients(tiny, tokens, names)
    found = tiny.model.trace(tokens).grad(lambda trace: loss_of(trace.logits), names)
    for each, gradient in zip(names, found, strict=True):
        assert_close(gradient, expected[each], 1e-9, each)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_every_head_input_has_the_oracles_gradient(name):
    tiny, tokens = subject(name), random_tokens(1, 5)
    trace = tiny.model.trace(tokens).requires_grad_()
    loss = loss_of(trace.logits)
    for each in names_of(tiny, head_inputs=True):
        expected = oracle_gradients(tiny, tokens, [each])[each]
        assert_close(trace.grad(loss, each), expected, 1e-9, each)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_gradients_through_edits_and_hooks(name):
    tiny, tokens = subject(name), random_tokens(2, 6)
    trace = tiny.model.trace(tokens)
    trace.set("z0", 0, region=(slice(None), slice(None), 1))
    trace.hook("resid_post0", lambda value, call: value * value.sigmoid())
    uniform = torch.tril(torch.ones(6, 6, dtype=torch.float64))
    trace.set("pattern2", uniform / uniform.sum(-1, keepdim=True))
    width = trace.read("z0").shape[-1]
    heads = trace.read("z0").shape[2]
    region = [[0, 1], list(range(6)), [1], list(range(width))]
    edits = {
        "blocks.0.attn.hook_z": [(region, torch.tensor(0.0))],
        "blocks.0.hook_resid_post": [lambda value, segment: value * value.sigmoid()],
        "blocks.2.attn.hook_pattern": [
            (
                torch.ones(2, heads, 6, 6, dtype=torch.bool),
                (uniform / uniform.sum(-1, keepdim=True)).expand(2, heads, 6, 6),
            )
        ],
    }
    names = ["hook_embed", "blocks.0.hook_resid_post", "blocks.1.attn.hook_v", "blocks.1.attn.hook_pattern"]
    expected = oracle_gradients(tiny, tokens, names, edits)
    found = trace.grad(lambda fork: loss_of(fork.logits), names)
    for each, gradient in zip(names, found, strict=True):
        # The leaf of the oracle is added after the edits, as the value that a trace hands out is.
        assert_close(gradient, expected[each], 1e-9, each)


def test_gradients_do_not_pass_a_value_that_was_set():
    tiny, tokens = subject("gpt2"), random_tokens(1, 5)
    trace = tiny.model.trace(tokens)
    trace.set("resid_pre1", trace.read("resid_pre1") * 1.5)
    with pytest.raises(glassformer.InputError, match=r"does not depend on blocks.0.hook_resid_post"):
        trace.grad(lambda fork: loss_of(fork.logits), ["resid_post0"])
    trace.unset("resid_pre1")
    whole = trace.grad(lambda fork: loss_of(fork.logits), "resid_post0")
    trace.set("resid_pre1", trace.read("resid_pre1")[:, 1:3], region=(slice(None), [1, 2]))  # The very same numbers.
    part = trace.grad(lambda fork: loss_of(fork.logits), "resid_post0")
    assert torch.equal(part[:, 1:3], torch.zeros_like(part[:, 1:3]))
    assert_close(part[:, [0, 3, 4]], whole[:, [0, 3, 4]], 1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_backward_fills_grad_of_what_was_handed_out(name):
    tiny, tokens = subject(name), random_tokens(1, 6)
    trace = tiny.model.trace(tokens).requires_grad_()
    stream, pattern, late = trace["resid_pre1"], trace["pattern1"], trace.read("resid_post2")
    loss = loss_of(trace.logits)
    loss.backward()
    expected = oracle_gradients(
        tiny, tokens, ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_pattern", "blocks.2.hook_resid_post"]
    )
    for value, gradient in zip((stream, pattern, late), expected.values(), strict=True):
        assert_close(value.grad, gradient, 1e-9)


def test_one_forks_backward_leaves_the_others_graph():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 6)
    first = tiny.model.trace(tokens).requires_grad_()
    first.set("z0", 0, region=(slice(None), slice(None), 2))
    second = first.fork()
    one, two = loss_of(first.logits), loss_of(second.logits)
    value = second["resid_pre1"]
    two = loss_of(second.logits)
    one.backward()  # Frees its graph.
    assert value.grad is None
    two.backward()
    assert_close(value.grad, first.fork().grad(lambda fork: loss_of(fork.logits), "resid_pre1"), 1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "llama_tied"])
def test_weights_have_the_gradients_that_transformers_computes(name):
    reference = make_model(name, torch.float64)
    model = glassformer.load(copy.deepcopy(reference))
    for weight in model.weights.values():
        weight.requires_grad_()
    tokens = random_tokens(2, 7)
    loss_of(model.trace(tokens).logits).backward()
    loss_of(reference(tokens).logits).backward()
    parameters = dict(reference.named_parameters())
    if name == "gpt2":
        q, k, v = parameters["transformer.h.1.attn.c_attn.weight"].grad.T.chunk(3)
        expected = {
            "blocks.1.attn.q.weight": q,
            "blocks.1.attn.k.weight": k,
            "blocks.1.attn.v.weight": v,
            "blocks.0.mlp.in.weight": parameters["transformer.h.0.mlp.c_fc.weight"].grad.T,
            "blocks.2.ln2.bias": parameters["transformer.h.2.ln_2.bias"].grad,
            "embed.weight": parameters["transformer.wte.weight"].grad,
        }
    else:
        expected = {
            "blocks.1.attn.q.weight": parameters["model.layers.1.self_attn.q_proj.weight"].grad,
            "blocks.0.mlp.gate.weight": parameters["model.layers.0.mlp.gate_proj.weight"].grad,
            "blocks.2.ln1.weight": parameters["model.layers.2.input_layernorm.weight"].grad,
            "embed.weight": parameters["model.embed_tokens.weight"].grad,
        }
    for each, gradient in expected.items():
        assert_close(model.weights[each].grad, gradient, 1e-5, each)  # transformers' norms go down to float32


def test_grad_of_weights():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 4)
    model = glassformer.load(make_model("llama_grouped", torch.float64))
    trace = model.trace(tokens)
    with pytest.raises(glassformer.InputError, match="doesn't require grad"):
        trace.grad(lambda fork: fork.logits[0, -1, 1], "blocks.1.mlp.out.weight")
    model.weights["blocks.1.mlp.out.weight"].requires_grad_()
    logits = trace.logits
    assert logits.requires_grad
    gradient = trace.grad(logits[0, -1, 1], "blocks.1.mlp.out.weight")
    step = 1e-5
    changed = glassformer.load(make_model("llama_grouped", torch.float64))
    changed.weights["blocks.1.mlp.out.weight"][2, 3] += step
    difference = (changed.trace(tokens).logits - tiny.model.trace(tokens).logits)[0, -1, 1] / step
    assert abs(difference - gradient[2, 3]) < 1e-4 * gradient.abs().max()
    assert not trace.read("z0").requires_grad  # Nothing before that weight depends on it.


def test_what_a_hook_learns_is_called_once_and_gets_its_gradient():
    tiny, tokens = subject("gpt2"), random_tokens(1, 6)
    vector = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    calls = []

    def steer(value, call):
        calls.append(call.name)
        return value + vector

    trace = tiny.model.trace(tokens)
    trace.hook("resid_pre1", steer)
    loss_of(trace.logits).backward()
    expected = oracle_gradients(tiny, tokens, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
    assert_close(vector.grad, expected.sum((0, 1)), 1e-9)
    assert calls == ["blocks.1.hook_resid_pre"]


def test_a_value_that_was_set_keeps_its_graph():
    tiny, tokens = subject("gpt2"), random_tokens(1, 6)
    vector = torch.full((24,), 0.5, dtype=torch.float64, requires_grad=True)
    trace = tiny.model.trace(tokens)
    trace.set("resid_pre1", vector * 2, region=(slice(None), 3))
    with torch.no_grad():
        assert not trace.logits.requires_grad
    loss_of(trace.logits).backward()
    region = [[0], [3], list(range(24))]
    edits = {"blocks.1.hook_resid_pre": [(region, torch.ones(1, 1, 24, dtype=torch.float64))]}
    expected = oracle_gradients(tiny, tokens, ["blocks.1.hook_resid_pre"], edits)["blocks.1.hook_resid_pre"]
    assert_close(vector.grad, 2 * expected[0, 3], 1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_gradient_functions(name):
    tiny, tokens = subject(name), random_tokens(1, 6)
    seen = []

    def halve(gradient, call):
        seen.append((call.name, gradient.clone()))
        return gradient * 0.5

    def stop_head(gradient, call):
        gradient[:, 0] = 0

    trace = tiny.model.trace(tokens)
    trace.hook_gradient("resid_pre2", halve)
    trace.hook_gradient("pattern1", stop_head)
    found = trace.grad(lambda fork: loss_of(fork.logits), "hook_embed")

    def watched(change):
        def keep(value, segment):
            value = value + 0 * value
            if value.requires_grad:
                value.register_hook(change)
            return value

        return keep

    def cut(gradient):
        gradient = gradient.clone()
        gradient[:, 0] = 0
        return gradient

    leaf = torch.zeros(*tokens.shape, trace.read("hook_embed").shape[-1], dtype=torch.float64, requires_grad=True)
    edits = {
        "hook_embed": [shift_by(leaf)],
        "blocks.2.hook_resid_pre": [watched(lambda gradient: gradient * 0.5)],
        "blocks.1.attn.hook_pattern": [watched(cut)],
    }
    values = tiny.oracle.run(tokens, edits)
    (expected,) = torch.autograd.grad(loss_of(values["logits"]), leaf)
    assert_close(found, expected, 1e-9)
    assert [entry[0] for entry in seen] == ["blocks.2.hook_resid_pre"]
    plain = tiny.model.trace(tokens).grad(lambda fork: loss_of(fork.logits), "hook_embed")
    assert error(found, plain) > 1e-3
    trace.unset("resid_pre2")
    trace.unset("pattern1")
    assert_close(trace.grad(lambda fork: loss_of(fork.logits), "hook_embed"), plain, 1e-12)


def test_a_gradient_of_another_shape_is_refused():
    trace = subject("gpt2").model.trace(random_tokens(1, 4))
    trace.hook_gradient("resid_pre2", lambda gradient, call: gradient[:, :1])
    with pytest.raises(glassformer.ShapeError, match=r"resid_pre.*expected a gradient of shape"):
        trace.grad(lambda fork: loss_of(fork.logits), "hook_embed")


def test_changes_in_place_with_a_graph():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 6)
    trace = tiny.model.trace(tokens).requires_grad_()
    early = trace["resid_pre1"]
    value = trace["resid_post1"]
    value *= 2
    value[:, 2] = 0
    loss_of(trace.logits).backward()

    def change(value, segment):
        value = value * 2
        value[:, 2] = 0
        return value

    edits = {"blocks.1.hook_resid_post": [change]}
    names = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
    expected = oracle_gradients(tiny, tokens, names, edits)
    assert_close(early.grad, expected[names[0]], 1e-9)
    assert_close(trace.logits.detach(), tiny.oracle.run(tokens, edits)["logits"], 1e-12)


def test_after_an_append_gradients_are_those_of_one_pass():
    tiny, tokens = subject("llama_longrope"), random_tokens(1, 12)
    names = ["hook_embed", "blocks.1.attn.hook_z", "blocks.2.attn.hook_pattern"]
    trace = tiny.model.trace(tokens[:, :5])
    trace.grad(lambda fork: loss_of(fork.logits), "hook_embed")
    trace.append(tokens[:, 5:])
    expected = tiny.model.trace(tokens).grad(lambda fork: loss_of(fork.logits), names)
    for found, one_pass in zip(trace.grad(lambda fork: loss_of(fork.logits), names), expected, strict=True):
        assert_close(found, one_pass, 1e-12)


def test_a_batch_with_one_hook_for_all():
    tiny = subject("gpt2")
    prompts = [random_tokens(1, 6)[0].tolist(), random_tokens(1, 4, seed=3)[0].tolist()]
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    batch = tiny.model.trace(prompts)
    for trace in batch.traces:
        trace.requires_grad_()
    batch.hook("resid_pre1", lambda value, call: value * scale)
    loss_of(batch.logits).backward()
    alone = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for prompt in prompts:
        trace = tiny.model.trace(prompt)
        trace.hook("resid_pre1", lambda value, call: value * alone)
        total = total + loss_of(trace.logits)
    total.backward()
    assert_close(scale.grad, alone.grad, 1e-10)


def test_padding_that_sees_nothing_gives_no_nan():
    tiny, tokens = subject("llama_grouped"), random_tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    names = ["hook_embed", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_q"]
    for opened in (False, True):
        trace = tiny.model.trace(tokens, attention_mask=mask).requires_grad_()
        if opened:
            trace.read("pattern0"), trace.read("pattern1"), trace.read("pattern2")
        gradients = trace.grad(trace.logits[:, 2:].square().sum(), names)
        for gradient in gradients:
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_have_transformers_gradients(dtype):
    reference = make_model("llama_grouped", dtype)
    model, tokens = glassformer.load(copy.deepcopy(reference)), random_tokens(1, 7)
    embedded = reference.model.embed_tokens(tokens).detach().requires_grad_()
    reference(inputs_embeds=embedded).logits[0, -1, 3].backward()
    found = model.trace(tokens).grad(lambda trace: trace.logits[0, -1, 3], "hook_embed")
    assert found.dtype == dtype
    assert error(found, embedded.grad) < (2e-5 if dtype == torch.float32 else 0.1)


def test_without_gradients_nothing_has_a_graph():
    trace = subject("gpt2").model.trace(random_tokens(1, 4))
    assert not trace.logits.requires_grad
    trace.requires_grad_()
    with torch.no_grad():
        assert not trace.read("logits").requires_grad
    assert trace.read("logits").requires_grad
    trace.requires_grad_(False)
    assert not trace.read("logits").requires_grad


def test_what_grad_refuses():
    tiny = subject("gpt2")
    trace = tiny.model.trace(random_tokens(1, 4))
    with pytest.raises(glassformer.InputError, match="carries no graph"):
        trace.grad(trace.logits[0, -1, 1], "z1")
    trace.requires_grad_()
    with pytest.raises(glassformer.ShapeError, match="one number"):
        trace.grad(trace.logits, "z1")
    early = trace["resid_pre1"].sum()
    with pytest.raises(glassformer.InputError, match=r"does not depend on blocks.1.attn.hook_z"):
        trace.grad(early, "z1")
    with pytest.raises(glassformer.NameError, match="resid_pre"):
        trace.grad(early, "resid_prae1")
    other = tiny.model.trace(random_tokens(1, 4)).requires_grad_()
    with pytest.raises(glassformer.InputError, match="does not depend"):
        other.grad(early, "resid_pre1")


def test_a_hook_with_dropout_is_read_twice():
    trace = subject("gpt2").model.trace(random_tokens(1, 8))
    trace.hook("resid_pre1", lambda value, call: torch.nn.functional.dropout(value))
    assert torch.equal(trace.logits, trace.logits)
    learned = trace.fork().requires_grad_()
    assert torch.equal(learned.logits.detach(), learned.logits.detach())


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_attribution_patching_is_the_slope_of_activation_patching(name):
    tiny, tokens = subject(name), random_tokens(1, 6)
    other = tokens.clone()
    other[0, 2] = (other[0, 2] + 5) % 61
    clean, corrupted = tiny.model.trace(tokens), tiny.model.trace(other)

    def metric(logits):
        return (logits[..., 4] - logits[..., 9]).sum()

    found = glassformer.attribution_patching(clean, corrupted, metric)
    assert list(found) == [node.name for node in tiny.model.nodes() if is_float(node)]
    slope = 1e-6
    for node, position in [("blocks.1.hook_resid_pre", 2), ("blocks.1.hook_mlp_out", 3), ("blocks.0.attn.hook_v", 2)]:
        patched = corrupted.fork()
        here, there = corrupted.read(node)[:, position], clean.read(node)[:, position]
        patched.set(node, here + slope * (there - here), region=(slice(None), position))
        change = (metric(patched.logits_at(-1)) - metric(corrupted.logits_at(-1))) / slope
        assert_close(found[node][:, position].sum(), change, 1e-4, node)
    heads = glassformer.attribution_patching(clean, corrupted, metric, ["z1", ("pattern", 2)])
    assert torch.equal(heads["blocks.1.attn.hook_z"], found["blocks.1.attn.hook_z"])
    assert found["blocks.2.attn.hook_pattern"].isfinite().all()
    assert found["blocks.2.attn.hook_attn_scores"].isfinite().all()
    with pytest.raises(glassformer.ShapeError, match="one number"):
        glassformer.attribution_patching(clean, corrupted, lambda logits: logits)


def test_with_a_graph_hooks_are_called_in_computing_order():
    """Those on nodes that have none among them."""
    trace = subject("llama").model.trace(random_tokens(1, 4)).requires_grad_()
    calls = []
    for name in ("blocks.0.hook_resid_pre", "attention_mask", "blocks.0.attn.hook_z"):
        trace.hook(name, lambda value, call: calls.append(call.name))
    trace.read("logits")
    assert calls == ["attention_mask", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"]


def test_weights_that_learn_change_what_is_computed():
    model = glassformer.load(make_model("gpt2", torch.float64))
    weight = model.weights["blocks.1.mlp.out.weight"].requires_grad_()
    tokens = random_tokens(1, 5)
    optimiser = torch.optim.SGD([weight], lr=0.05)
    losses = []
    trace = model.trace(tokens)
    for _ in range(3):
        loss = -trace.logits.log_softmax(-1)[0, -1, 5]
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] > losses[1] > losses[2]


def test_the_value_at_which_a_trace_begins_keeps_its_graph():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 7)
    whole = tiny.model.trace(tokens)
    expected = whole.grad(lambda trace: loss_of(trace.logits), "resid_pre1")
    value = whole.read("resid_pre1").clone().requires_grad_()
    later = tiny.model.trace_from("resid_pre1", value[:, :4])
    later.append(value[:, 4:])
    fork = later.fork()
    loss_of(later.logits).backward()
    assert_close(value.grad, expected, 1e-10)
    fork.truncate(5)
    value.grad = None
    loss_of(fork.logits).backward()
    short = tiny.model.trace(tokens[:, :5]).grad(lambda trace: loss_of(trace.logits), "resid_pre1")
    assert_close(value.grad[:, :5], short, 1e-10)
    assert not value.grad[:, 5:].any()
    plain = tiny.model.trace_from("resid_pre1", value.detach()[:, :4])
    plain.append(value[:, 4:])
    value.grad = None
    loss_of(plain.logits).backward()
    assert_close(value.grad[:, 4:], expected[:, 4:], 1e-10)
    assert not value.grad[:, :4].any()


def test_gradients_after_a_past():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 7)
    names = ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_k", "blocks.2.attn.hook_pattern"]
    past = tiny.model.trace(tokens[:, :3]).past()
    rest = tiny.model.trace(tokens[:, 3:], past=past)
    found = rest.grad(lambda trace: trace.logits[..., TARGET].square().sum(), names)
    whole = tiny.model.trace(tokens)
    expected = whole.grad(lambda trace: trace.logits[:, 3:, TARGET].square().sum(), names)
    assert_close(found[0], expected[0][:, 3:], 1e-10)  # The past is constant, but what follows is the same.
    assert_close(found[1][:, 3:], expected[1][:, 3:], 1e-10)
    assert_close(found[2], expected[2][:, :, 3:], 1e-10)


def test_edits_of_the_node_at_which_a_trace_begins_count_once():
    tiny, tokens = subject("gpt2"), random_tokens(1, 5)
    value = tiny.model.trace(tokens).read("resid_pre1")
    trace = tiny.model.trace_from("resid_pre1", value)
    trace.hook("resid_pre1", lambda value, call: value * 2)
    plain = trace.logits
    assert_close(trace.requires_grad_().logits.detach(), plain, 1e-12)
    expected = tiny.model.trace(tokens)
    expected.set("resid_pre1", value * 2)
    assert_close(plain, expected.logits, 1e-12)


def test_gradients_through_an_edited_head_input():
    tiny, tokens = subject("gpt2"), random_tokens(1, 4)
    trace = tiny.model.trace(tokens)
    trace.set("v_input1", 0.7, region=(0, [1], [0, 1], [2, 3]))
    edits = {
        "blocks.1.hook_v_input": [([[0], [1], [0, 1], [2, 3]], torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64))]
    }
    names = ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.1.attn.hook_q"]
    expected = oracle_gradients(tiny, tokens, names, edits)
    for name, found in zip(names, trace.grad(lambda fork: loss_of(fork.logits), names), strict=True):
        assert_close(found, expected[name], 1e-9, name)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_a_head_input_in_a_users_hands_leaves_the_shared_norm_its_part(name):
    """The step that runs on the graph of a head input passes the shared norm over."""
    tiny, tokens = subject(name), random_tokens(1, 4)
    names = ["blocks.1.ln1.hook_out", "blocks.1.ln1.hook_scale", "blocks.1.hook_q_input", "blocks.0.hook_mlp_out"]
    trace = tiny.model.trace(tokens).requires_grad_()
    held = trace["q_input1"]
    loss = loss_of(trace.logits)
    for each in names:
        assert_close(trace.grad(loss, each), oracle_gradients(tiny, tokens, [each])[each], 1e-9, each)
    held.grad = None
    loss.backward()
    assert_close(held.grad, oracle_gradients(tiny, tokens, [names[2]])[names[2]], 1e-9)
    trace.set(names[0], 0.5)  # What is put there counts, whoever holds the head input.
    plain = tiny.model.trace(tokens)
    plain.set(names[0], 0.5)
    assert_close(trace.logits.detach(), plain.logits, 1e-12)


def test_numbers_in_the_place_of_a_whole_node_carry_a_graph_too():
    tiny, tokens = subject("gpt2"), random_tokens(1, 4)
    trace = tiny.model.trace(tokens).requires_grad_()
    trace.set("resid_pre2", 0.5)
    trace.set("logits", 0.25)
    stream = trace["resid_pre2"]
    trace.logits.sum().backward()
    assert torch.equal(trace.logits.grad, torch.ones_like(trace.logits))
    assert stream.grad is None
    trace.unset("logits")
    loss_of(trace.logits).backward()
    edits = {"blocks.2.hook_resid_pre": [([[0], range(4), range(24)], torch.tensor(0.5))]}
    expected = oracle_gradients(tiny, tokens, ["blocks.2.hook_resid_pre"], edits)["blocks.2.hook_resid_pre"]
    assert_close(stream.grad, expected, 1e-9)


def test_hooks_on_choices_are_called_once_where_there_is_a_graph():
    """A choice has no gradient; nothing that it is made of is computed a second time, without a graph, for its hook."""
    model, calls = subject("experts").model, []
    trace = model.trace([[5, 3, 8, 13, 21], [1, 2, 3, 4, 5]]).requires_grad_()
    names = [node.name for node in model.nodes() if node.name.startswith("blocks.") and "_input" not in node.name]
    for name in names:
        trace.hook(name, lambda value, call: calls.append(call.name))
    trace.logits.sum().backward()
    assert calls == names
