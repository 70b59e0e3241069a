"""Weights that change while traces are open."""

import copy
import gc
import itertools
import types

import numpy as np
import pytest
import torch
from helpers import assert_close, error, everywhere, run_reference, shape_of, subject
from test_gguf_llama import write
from test_memory import in_map
from tiny_models import as_dtype, make_model, random_tokens

import glassformer
from glassformer import analysis

KINDS = ["gpt2", "llama", "llama_grouped"]
TOLERANCE = 1e-10  # Against the oracle, in float64.
REFERENCE = 1e-5  # transformers has norms and softmax of Llama in float32 whatever the dtype.


def own(name, dtype=torch.float64):
    """A subject that nobody else has, so that its weights may be changed."""
    return subject.__wrapped__(name, dtype)


@pytest.fixture(params=KINDS)
def tiny(request):
    return own(request.param)


def change(weight):
    with torch.no_grad():
        weight.mul_(1.25).add_(0.05)


def check(trace, oracle, edits=None, names=None):
    """Every node of a trace against the oracle, which holds the same weights."""
    expected = oracle.run(trace.tokens, edits or {})
    for node in trace.model.nodes():
        if names is None or node.name in names:
            assert_close(trace.read(node.name), expected[node.name], TOLERANCE, node.name)


def parameters_of(tiny, layer):
    """Some parameters of a layer of the `transformers` model."""
    if tiny.reference.config.model_type == "gpt2":
        block = tiny.reference.transformer.h[layer]
        return types.SimpleNamespace(mlp_out=block.mlp.c_proj.weight, norm=block.ln_1.weight)
    block = tiny.reference.model.layers[layer]
    return types.SimpleNamespace(mlp_out=block.mlp.down_proj.weight, norm=block.input_layernorm.weight)


# Every weight.


def test_the_oracle_holds_the_same_weights(tiny):
    storages = {tensor.untyped_storage().data_ptr() for tensor in tiny.oracle.weights.values()}
    assert {weight.untyped_storage().data_ptr() for weight in tiny.model.weights.values()} <= storages


def test_every_weight_counts_at_every_node(tiny):
    tokens = random_tokens(2, 5)
    trace = tiny.model.trace(tokens, keep="all")
    check(trace, tiny.oracle)
    for name, weight in tiny.model.weights.items():
        before = {node.name: trace.read(node.name) for node in tiny.model.nodes()}
        trace.reset_work()
        change(weight)
        check(trace, tiny.oracle)
        changed = {node for node, value in before.items() if not torch.equal(trace.read(node), value)}
        assert changed, name
        order = list(before)
        work = trace.work()
        assert changed <= set(work)
        # GPT-2's q, k and v are parts of one parameter here, which counts as a whole.
        first = min(changed, key=order.index)
        first = first.replace("_k", "_q").replace("_v", "_q") if "_attn" in first or ".attn" in first else first
        assert all(order.index(node) >= order.index(first) for node in work), name


@pytest.mark.parametrize("part", ["hook_q_input", "attn.hook_attn_scores", "attn.hook_result", "ln2.hook_scale"])
def test_steps_around_an_edited_node_count_too(tiny, part):
    """Where a node that fast steps pass over is edited, other steps use the weights."""
    trace = tiny.model.trace(random_tokens(1, 5))
    node = next(node for node in tiny.model.nodes() if node.name == f"blocks.1.{part}")
    region = [indices[1:3] if len(indices) > 2 else indices for indices in everywhere(shape_of(node, 1, 5))]
    trace.set(node.name, 0.5, tuple(region))
    edits = {node.name: [(region, 0.5)]}
    for name, weight in tiny.model.weights.items():
        if name.startswith(("blocks.1", "embed")):
            trace.logits_at(-1)
            change(weight)
            check(trace, tiny.oracle, edits, ["logits", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"])


def test_only_what_depends_is_computed_again(tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)
    model = glassformer.load(tmp_path)
    trace = model.trace(random_tokens(1, 6), keep="all")
    for node in model.nodes():
        trace.read(node.name)
    kept = trace["pattern1"]
    trace.reset_work()
    change(model.weights["blocks.1.attn.v.weight"])
    trace.logits_at(-1)
    work = trace.work()
    assert "blocks.1.attn.hook_q" not in work and not any(name.startswith("blocks.0") for name in work)
    assert work["blocks.1.attn.hook_v"] == 6 and work["blocks.2.attn.hook_v"] == 6 and work["logits"] == 1
    trace.reset_work()
    assert torch.equal(trace["pattern1"], kept) and not trace.work()
    change(model.weights["unembed.weight"])  # Tied to the embedding.
    trace.reset_work()
    trace.logits_at(-1)
    assert trace.work()["hook_embed"] == 6
    trace.reset_work()
    trace.logits_at(-1)
    assert not trace.work()


# Edits and hooks.


def test_forks_with_edits_and_hooks(tiny):
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    calls = []

    def halve(value, call):
        calls.append(call.name)
        return value * 0.5

    forks = [trace.fork() for _ in range(3)]
    forks[0].set("blocks.1.attn.hook_z", 0, (slice(None), [2, 3], [1]))
    forks[1].hook("blocks.1.hook_resid_mid", halve)
    forks[2]["blocks.1.hook_resid_pre"] = trace["blocks.1.hook_resid_pre"]  # Changes nothing yet.
    d_head = list(range(tiny.model.config.d_head))
    whole = [[0], list(range(6)), list(range(tiny.model.config.d_model))]
    edits = [
        {"blocks.1.attn.hook_z": [([[0], [2, 3], [1], d_head], 0)]},
        {"blocks.1.hook_resid_mid": [lambda value, _: value * 0.5]},
        {"blocks.1.hook_resid_pre": [(whole, trace["blocks.1.hook_resid_pre"])]},
    ]
    glassformer.read_all(forks, "logits")
    assert len(calls) == 1
    assert torch.equal(forks[2].logits, trace.logits)
    for layer, n_calls in ((2, 1), (0, 2), (1, 2)):
        change(parameters_of(tiny, layer).mlp_out)
        found = glassformer.read_all([trace, *forks], "logits")
        for one, edit, logits in zip([trace, *forks], [{}, *edits], found, strict=True):
            assert_close(logits, tiny.oracle.run(tokens, edit)["logits"], TOLERANCE)
            assert torch.equal(one.logits, logits)
        assert len(calls) == n_calls
    assert error(forks[2].logits, trace.logits) > 1e-3


def test_a_change_that_is_undone(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    fork, calls = trace.fork(), []
    fork.hook("resid_mid2", lambda value, call: calls.append(call.name) or value.flip(1))
    fork["resid_pre1"] = trace["resid_pre1"]
    fork.edit("z1", lambda value: value * 1.5)
    before = [trace.logits, fork.logits]
    weight = parameters_of(tiny, 0).mlp_out
    kept = weight.detach().clone()
    change(weight)
    trace.run()
    with torch.no_grad():
        weight.copy_(kept)
    for one, logits in zip([trace, fork], before, strict=True):
        assert_close(one.logits, logits, TOLERANCE)
    assert len(calls) == 1


def test_a_change_made_in_place_of_another_value_is_refused(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.edit("resid_mid1", lambda value: value * 1.5)
    fork = trace.fork()
    fork["resid_mid1"] = 0.25
    trace.run()
    change(tiny.model.weights["blocks.2.ln1.weight"])
    trace.run()  # What it was made from is the same.
    change(tiny.model.weights["blocks.0.mlp.out.weight"])
    with pytest.raises(glassformer.OrderError, match=r"resid_mid\[:, :, :\] .* weight 'blocks\.0\.mlp\.out\.weight'"):
        trace.run()
    with pytest.raises(glassformer.OrderError, match="unset it and make the change again"):
        trace.fork().run()
    assert_close(trace["resid_pre1"], tiny.oracle.run(trace.tokens)["blocks.1.hook_resid_pre"], TOLERANCE)
    shape = [1, 6, tiny.model.config.d_model]
    check(fork, tiny.oracle, {"blocks.1.hook_resid_mid": [(everywhere(shape), 0.25)]}, ["logits"])
    trace.unset("resid_mid1")
    check(trace, tiny.oracle)


def test_appending_goes_on_with_the_new_weights(tiny):
    tokens = random_tokens(2, 9)
    trace = tiny.model.trace(tokens[:, :4])
    fired = []
    trace.hook("resid_mid0", lambda value, call: fired.append((call.begin, call.end)))
    trace.run()
    trace.append(tokens[:, 4:7])
    trace.logits_at(-1)
    change(tiny.model.weights["blocks.0.ln1.weight"])
    trace.append(tokens[:, 7:])
    check(trace, tiny.oracle)
    assert fired == [(0, 4), (4, 7), (0, 4), (4, 7), (7, 9)]
    trace.truncate(6)
    change(tiny.model.weights["embed.weight"])
    check(trace, tiny.oracle)


def test_generation_and_batches(tiny):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    run = tiny.model.generate_stream(prompts, 6, stop_tokens=[])
    batch = tiny.model.trace(prompts)
    calls = []
    batch.hook("resid_mid1", lambda value, call: calls.append(tuple(value.shape)) or value * 0.5)
    texts = [list(prompt) for prompt in prompts]
    for step, ids in enumerate(run):
        for text, next_id in zip(texts, ids, strict=True):
            logits = tiny.oracle.run(torch.tensor([text]))["logits"][0, -1]
            assert next_id == logits.argmax()
            text.append(int(next_id))
        edits = {"blocks.1.hook_resid_mid": [lambda value, _: value * 0.5]}
        expected = [tiny.oracle.run(torch.tensor([prompt]), edits)["logits"][0, -1] for prompt in prompts]
        assert_close(batch.logits_at(-1), torch.stack(expected), TOLERANCE)
        assert len(calls) == step + 1
        change(parameters_of(tiny, 0).norm)


def test_explain_and_run_see_it(tiny):
    trace = tiny.model.trace(random_tokens(1, 4))
    trace.run()
    assert "\n  computed" in trace.explain("resid_post1") and "\n  computed" in trace.explain("resid_post0")
    change(tiny.model.weights["blocks.1.mlp.out.weight"])
    assert "\n  not computed" in trace.explain("resid_post1") and "\n  computed" in trace.explain("resid_post0")
    trace.run("resid_post1")
    check(trace, tiny.oracle, names=["blocks.1.hook_resid_post"])
    fired = []
    trace.hook("q1", lambda value, call: fired.append(call.name))  # Which k1 doesn't need.
    trace.run("k1")
    change(tiny.model.weights["embed.weight"])
    trace.run("k1")
    assert fired == ["blocks.1.attn.hook_q"] * 2


def test_a_hook_that_changes_weights(tiny):
    trace = tiny.model.trace(random_tokens(1, 4))
    batch = tiny.model.trace([[1, 2], [3, 4, 5]])
    for each in (trace, batch):
        each.hook("z1", lambda value, call: change(tiny.model.weights["blocks.0.ln2.weight"]))
        with pytest.raises(glassformer.OrderError, match=r"weight 'blocks\.0\.ln2\.weight' was changed by a hook"):
            each.logits_at(-1)
    trace.unset("z1")
    check(trace, tiny.oracle)
    trace.hook(
        "z1", lambda value, call: change(tiny.model.weights["blocks.0.ln2.weight"]) or trace.fork()["resid_pre1"]
    )
    with pytest.raises(glassformer.OrderError, match="change weights between reads"):
        trace.run()


# Ways to change a weight.


@pytest.mark.parametrize("part", ["whole", "q", "k", "v"])
def test_a_live_parameter_of_three_weights(part):
    tiny = own("gpt2")
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.run()
    fused, d_model = tiny.reference.transformer.h[1].attn.c_attn, tiny.model.config.d_model
    start = 0 if part == "whole" else "qkv".index(part) * d_model
    end = 3 * d_model if part == "whole" else start + d_model
    with torch.no_grad():
        fused.weight[:, start:end] *= 1.5
        fused.bias[start:end] -= 0.25
    check(trace, tiny.oracle)
    assert_close(trace.logits, run_reference(tiny.reference, trace.tokens).logits, REFERENCE)
    tiny.model.weights[f"blocks.1.attn.{part if part != 'whole' else 'q'}.weight"].mul_(0.5)
    check(trace, tiny.oracle)
    assert_close(trace.logits, run_reference(tiny.reference, trace.tokens).logits, REFERENCE)


def test_training_a_live_model(tiny):
    tokens = random_tokens(2, 6)
    trace = tiny.model.trace(tokens)
    optimiser = torch.optim.Adam(tiny.reference.parameters(), lr=0.05)
    seen, start = [trace.logits], copy.deepcopy(tiny.reference.state_dict())
    for _ in range(3):
        optimiser.zero_grad()
        tiny.reference(tokens, labels=tokens).loss.backward()
        optimiser.step()
        assert_close(trace.logits, run_reference(tiny.reference, tokens).logits, REFERENCE)
        seen.append(trace.logits)
    assert all(error(one, other) > 1e-3 for one, other in itertools.pairwise(seen))
    tiny.reference.load_state_dict(start)
    assert_close(trace.logits, seen[0], TOLERANCE)


@pytest.mark.parametrize("foreach", [False, True])
def test_an_optimiser_on_our_weights(tiny, foreach):
    trace = tiny.model.trace(random_tokens(1, 5))
    before = trace.logits
    assert tiny.model.requires_grad_() is tiny.model
    weights = list({weight.data_ptr(): weight for weight in tiny.model.weights.values()}.values())
    assert all(weight.requires_grad and weight.is_leaf for weight in weights)
    assert all(parameter.grad is None for parameter in tiny.reference.parameters())
    assert trace.logits.requires_grad
    with torch.no_grad():
        assert not trace.logits.requires_grad and torch.equal(trace.logits, before)
    assert_close(tiny.model.trace(trace.tokens).logits, before, TOLERANCE)
    optimiser = torch.optim.SGD(weights, lr=0.1, foreach=foreach)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    expected = [(weight - 0.1).detach() for weight in weights]
    optimiser.step()
    for weight, numbers in zip(weights, expected, strict=True):
        assert torch.equal(weight, numbers)
    check(trace, tiny.oracle)
    assert all(parameter.grad is None for parameter in tiny.reference.parameters())
    assert not analysis.logit_lens(trace).top_logits.requires_grad
    found = analysis.direct_logit_attribution(trace, 3)
    assert not any(values.requires_grad for values in (found.heads, found.logit, found.components[0].logit))
    tiny.model.requires_grad_(False)
    assert not any(weight.requires_grad for weight in tiny.model.weights.values())


def test_assignment(tiny):
    trace = tiny.model.trace(random_tokens(1, 5))
    trace.run()
    weights, name = tiny.model.weights, "blocks.1.mlp.out.weight"
    turned = weights["blocks.0.attn.o.weight"].T.clone()
    weight = weights[name].requires_grad_()
    weights[name] = weight * 2
    assert weights[name] is weight and weight.is_leaf
    check(trace, tiny.oracle)
    weights["ln_final.weight"] *= 0.5
    weights["blocks.0.ln1.weight"] = np.linspace(0, 1, tiny.model.config.d_model, dtype=np.float32)
    weights["blocks.1.ln1.weight"] = torch.ones(tiny.model.config.d_model, dtype=torch.bfloat16)
    weights["blocks.0.attn.o.weight"] = weights["blocks.0.attn.o.weight"].T  # Square.
    weights["blocks.2.mlp.in.weight"] = 0
    assert not weights["blocks.2.mlp.in.weight"].any()
    assert torch.equal(weights["blocks.0.attn.o.weight"], turned)
    check(trace, tiny.oracle)
    shape = list(weight.shape)
    with pytest.raises(glassformer.ShapeError) as caught:
        weights[name] = torch.zeros(shape[1])
    assert str(caught.value) == f"weight '{name}': expected shape {shape}; found {shape[1:]}"
    with pytest.raises(glassformer.InputError, match="complex64"):
        weights[name] = torch.zeros(shape, dtype=torch.complex64)
    with pytest.raises(TypeError, match="must be numbers"):
        weights[name] = "zero"
    with pytest.raises(glassformer.NameError, match=r"blocks\.1\.mlp\.out\.weight"):
        weights["blocks.1.mlp.out.wieght"] = 0
    check(trace, tiny.oracle)


def test_what_torch_does_not_count(tiny):
    trace = tiny.model.trace(random_tokens(1, 5))
    fork = trace.fork()
    fork.edit("resid_mid2", lambda value: value * 1.5)
    before = trace.logits
    fork.run()
    weight = tiny.model.weights["blocks.0.mlp.out.weight"]
    for change_unseen in (lambda: weight.data.mul_(2), lambda: np.multiply(weight.numpy(), 0.75, out=weight.numpy())):
        change_unseen()
        assert torch.equal(trace.logits, before)
        tiny.model.weights_changed()
        check(trace, tiny.oracle)
        before = trace.logits
    with pytest.raises(glassformer.OrderError, match="a value that depends on a weight, which has changed since"):
        fork.run()


def test_inference_mode(tmp_path):
    """Weights loaded in it are ordinary tensors, and changes made in it count."""
    make_model("gpt2", torch.float64).save_pretrained(tmp_path)
    model = glassformer.load(tmp_path, dtype=torch.float64)
    with torch.inference_mode():
        before = model.trace([1, 2, 3, 4]).logits
    assert not any(weight.is_inference() for weight in model.weights.values())
    trace = model.trace([1, 2, 3, 4])
    assert_close(trace.logits, before, TOLERANCE)
    model.weights["blocks.0.mlp.out.weight"].mul_(2)
    once = trace.logits
    with torch.inference_mode():
        model.weights["blocks.0.mlp.out.weight"].mul_(2)
    assert error(once, before) > 1e-3 and error(trace.logits, once) > 1e-3
    assert_close(trace.logits, model.trace([1, 2, 3, 4]).logits, TOLERANCE)


def test_weights_made_in_inference_mode_have_to_be_told():
    with torch.inference_mode():
        reference = make_model("gpt2", torch.float64)
        for parameter in reference.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.clone()
        model = glassformer.load(reference)
        assert all(weight.is_inference() for weight in model.weights.values())
        trace = model.trace([1, 2, 3])
        trace.run()
        model.weights["blocks.0.mlp.out.weight"].mul_(2)
        model.weights_changed()
        assert_close(trace.logits, model.trace([1, 2, 3]).logits, TOLERANCE)


# Kernels and dtypes.


@pytest.mark.parametrize("n_tokens", [1, 3, 4, 5, 9])
def test_products_of_few_rows(tmp_path, n_tokens):
    """GPT-2's weights lie the other way round in the file; both ways have kernels of their own for few rows."""
    for name in KINDS:
        reference = make_model(name)
        reference.save_pretrained(tmp_path / name)
        model = glassformer.load(tmp_path / name)
        tokens = random_tokens(1, n_tokens)
        trace = model.trace(tokens)
        for layer in range(3):
            trace.logits_at(-1)
            for part in ("attn.q", "attn.o", "mlp.in", "mlp.out"):
                model.weights[f"blocks.{layer}.{part}.weight"].mul_(1.25)
                if part != "attn.q":
                    trace.logits_at(-1)
            attention = (
                reference.transformer.h[layer].attn if name == "gpt2" else reference.model.layers[layer].self_attn
            )
            mlp = reference.transformer.h[layer].mlp if name == "gpt2" else reference.model.layers[layer].mlp
            with torch.no_grad():
                if name == "gpt2":
                    attention.c_attn.weight[:, : model.config.d_model] *= 1.25
                    matrices = [attention.c_proj, mlp.c_fc, mlp.c_proj]
                else:
                    matrices = [attention.q_proj, attention.o_proj, mlp.up_proj, mlp.down_proj]
                for matrix in matrices:
                    matrix.weight.mul_(1.25)
            assert_close(trace.logits_at(-1), run_reference(reference, tokens).logits[:, -1], 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16(name):
    reference = make_model(name, torch.bfloat16)
    model = glassformer.load(reference)
    tokens = random_tokens(1, 7)
    trace = model.trace(tokens)
    trace.run()
    change(model.weights["blocks.1.mlp.out.weight"])
    change(next(reference.parameters()))
    assert torch.equal(trace.logits, glassformer.load(reference).trace(tokens).logits)
    exact = run_reference(as_dtype(copy.deepcopy(reference), torch.float32), tokens).logits
    theirs = run_reference(reference, tokens).logits
    assert error(trace.logits, exact) <= 2 * error(theirs, exact) + 1e-6


# Files.


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_the_file_never_changes(tmp_path, kind):
    reference = make_model("llama_grouped")
    path = tmp_path / f"model.{kind}"
    if kind == "gguf":
        write(path, reference)
    else:
        reference.save_pretrained(tmp_path)
    data = path.read_bytes()
    source = path if kind == "gguf" else tmp_path
    model = glassformer.load(source)
    trace = model.trace([1, 2, 3])
    before = trace.logits
    for weight in model.weights.values():
        weight.mul_(3).sub_(0.5)
    assert any(in_map(weight, path) for weight in model.weights.values())
    assert error(trace.logits, before) > 0.1
    assert path.read_bytes() == data
    assert torch.equal(glassformer.load(source).trace([1, 2, 3]).logits, before)
    del model, trace
    gc.collect()
    assert path.read_bytes() == data


def test_weights_that_are_not_loaded_yet(tmp_path):
    """Loading one is no change; changing one that a trace has not needed yet makes nothing stale."""
    reference = make_model("gpt2", torch.float64)
    reference.save_pretrained(tmp_path)
    model = glassformer.load(tmp_path, dtype=torch.float64)
    trace = model.trace(random_tokens(1, 5))
    trace["resid_pre1"]
    trace.reset_work()
    model.weights["blocks.2.mlp.out.weight"].mul_(2)
    for weight in model.weights.values():
        assert weight.numel()
    trace["resid_pre1"]
    assert not trace.work()
    with torch.no_grad():
        reference.transformer.h[2].mlp.c_proj.weight.mul_(2)
    assert_close(trace.logits, run_reference(reference, trace.tokens).logits, TOLERANCE)
