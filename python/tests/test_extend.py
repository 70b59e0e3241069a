"""Autoencoders spliced into models, against plain torch and `transformers`."""

import copy
import types

import numpy as np
import pytest
import torch
from autoencoder import N_FEATURES, Autoencoder, spliced, width_of
from helpers import assert_close, subject
from tiny_models import random_tokens

import glassformer


@pytest.fixture(params=["gpt2", "llama_grouped"])
def tiny(request):
    return subject(request.param)


def with_autoencoder(tiny, layer, sae, change=None, keep_error=True):
    """The logits of `transformers` where a block's output goes through the autoencoder, its features changed."""
    reference = copy.deepcopy(tiny.reference)
    blocks = reference.transformer.h if hasattr(reference, "transformer") else reference.model.layers

    def replace(module, arguments, output):
        x = output[0] if isinstance(output, tuple) else output
        acts = sae.encode(x)
        error = x - sae.decode(acts)
        if change is not None:
            acts = change(acts.clone())
        x = sae.decode(acts) + error if keep_error else sae.decode(acts)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    blocks[layer].register_forward_hook(replace)

    def run(tokens):
        with torch.no_grad():
            return reference(tokens).logits

    return run


EVERYWHERE = [
    "hook_embed",
    "resid_pre1",
    "resid_mid0",
    "resid_post1",
    "resid_post2",
    "attn_out1",
    "mlp_out0",
    "z1",
    "q0",
    "k1",
    "v1",
    "result1",
    "q_input1",
    "v_input0",
    "mlp_post1",
    "blocks.1.mlp.hook_pre",
    "blocks.1.ln1.hook_normalized",
    "blocks.2.ln2.hook_out",
    "ln_final.hook_out",
    "unembed.hook_in",
    "logits",
]


@pytest.mark.parametrize("node", EVERYWHERE)
def test_splicing_alone_changes_nothing(tiny, node):
    sae = Autoencoder(width_of(tiny.model, node))
    model = spliced(tiny, node, sae)
    sae.calls = 0
    tokens = random_tokens(2, 7)
    plain, trace = tiny.model.trace(tokens), model.trace(tokens)
    assert torch.equal(trace.logits, plain.logits)
    assert sae.calls == 0
    for one in tiny.model.nodes():
        assert torch.equal(trace[one.name], plain[one.name]), one.name
    full = tiny.model.node_name(node)
    assert torch.equal(trace["sae.hook_in"], plain[full])
    with torch.no_grad():
        acts = sae.encode(plain[full])
        assert_close(trace["sae.hook_acts"], acts, 1e-12)
        assert_close(trace["sae.recon"], sae.decode(acts), 1e-12)
        assert_close(trace["sae.hook_error"], plain[full] - sae.decode(acts), 1e-12)
    trace["sae.hook_acts"] = trace["sae.hook_acts"]  # What is there already changes nothing.
    assert torch.equal(trace.logits, plain.logits)


@pytest.mark.parametrize("node", EVERYWHERE)
def test_a_feature_that_is_set_counts(tiny, node):
    """As setting the node itself to what the decoder makes of it, computed by hand."""
    sae = Autoencoder(width_of(tiny.model, node))
    model = spliced(tiny, node, sae)
    tokens = random_tokens(1, 6)
    by_hand, trace = tiny.model.trace(tokens), model.trace(tokens)
    with torch.no_grad():
        value = by_hand[node]
        acts = sae.encode(value)
        changed = acts.clone()
        changed[:, 3:, ..., 5] = 2.5
        value = sae.decode(changed) + (value - sae.decode(acts))
    trace.set("sae.hook_acts", 2.5, np.s_[:, 3:, ..., 5])
    by_hand[node] = value
    assert not torch.allclose(by_hand.logits, tiny.model.trace(tokens).logits)
    assert_close(trace.logits, by_hand.logits, 1e-10)
    assert_close(trace[node], by_hand[node], 1e-10)
    before = tiny.model.trace(tokens)
    assert_close(trace.logits[:, :3], before.logits[:, :3], 1e-12)
    assert trace.work()[tiny.model.node_name(node)] == 6


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_against_transformers(tiny, layer):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, ("resid_post", layer), sae)
    tokens = random_tokens(2, 7)
    tolerance = 1e-10 if tiny.model.config.norm == "layer" else 2e-6  # Its RMS norm goes down to float32.

    def ablate(acts):
        acts[..., 2] = 0
        acts[:, 4, 7] = 3
        return acts

    assert_close(model.trace(tokens).logits, with_autoencoder(tiny, layer, sae)(tokens), tolerance)
    trace = model.trace(tokens)
    trace.set("sae.acts", 0, np.s_[:, :, 2])
    trace.set("sae.acts", 3, np.s_[:, 4, 7])
    assert_close(trace.logits, with_autoencoder(tiny, layer, sae, ablate)(tokens), tolerance)
    hooked = model.trace(tokens)
    hooked.hook("sae.acts", lambda acts, call: ablate(acts))
    assert_close(hooked.logits, trace.logits, tolerance)
    trace["sae.error"] = 0
    assert_close(trace.logits, with_autoencoder(tiny, layer, sae, ablate, keep_error=False)(tokens), tolerance)
    reconstructed = model.trace(tokens)
    reconstructed["sae.error"] = 0
    assert_close(reconstructed.logits, with_autoencoder(tiny, layer, sae, None, keep_error=False)(tokens), tolerance)


def test_append_is_one_pass(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post0", sae)
    tokens = random_tokens(2, 9)
    whole, grown = model.trace(tokens), model.trace(tokens[:, :5])
    for trace in (whole, grown):
        trace.hook("sae.acts", lambda acts, call: acts * torch.arange(N_FEATURES))
    grown.logits_at(-1)
    grown.reset_work()
    grown.append(tokens[:, 5:7])
    assert_close(grown.logits, whole.logits[:, :7], 1e-10)
    assert grown.work()["sae.hook_acts"] == 4
    grown.append(tokens[:, 7:])
    assert_close(grown.logits, whole.logits, 1e-10)
    grown.truncate(6)
    assert_close(grown.logits, whole.logits[:, :6], 1e-10)


def test_prompts_of_different_lengths(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)
    prompts = [random_tokens(length, seed=length).tolist() for length in (3, 7, 5, 7)]
    batch = model.trace(prompts)
    alone = [model.trace(prompt) for prompt in prompts]
    for trace in (*batch.traces, *alone):
        trace.set("sae.acts", 1.5, np.s_[:, 1:, 4])
    for together, trace in zip(glassformer.read_all(batch.traces, "logits"), alone, strict=True):
        assert_close(together, trace.logits, 1e-10)
    assert_close(batch.read_at("sae.acts", -1)[1], alone[1].read("sae.acts", [-1])[0], 1e-10)


def test_a_sweep_over_features(tiny):
    """Each as alone; what the features don't change is computed once for all."""
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)
    trace = model.trace(random_tokens(1, 6))
    trace.read("logits")
    trace.reset_work()
    sweep = [trace.fork() for _ in range(N_FEATURES)]
    for feature, fork in enumerate(sweep):
        fork.set("sae.acts", 1.5, np.s_[:, 2:, feature])
    values = glassformer.read_all(sweep, "logits", [-1])
    assert trace.work()["sae.hook_error"] == 4 and trace.work()["sae.hook_recon"] == 4 * N_FEATURES
    for feature, value in enumerate(values):
        alone = model.trace(trace.tokens)
        alone.set("sae.acts", 1.5, np.s_[:, 2:, feature])
        assert_close(value, alone.read("logits", [-1]), 1e-10)


def test_generating_with_features_changed(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)

    def change(acts, call):
        return acts * torch.arange(N_FEATURES)

    prompts = [random_tokens(length, seed=length).tolist() for length in (3, 5)]
    found = model.generate(prompts, max_new_tokens=5, stop_tokens=[], hooks=[glassformer.StepHook("sae.acts", change)])
    plain = model.generate(prompts, max_new_tokens=5, stop_tokens=[])
    assert [one.ids for one in plain] == [
        one.ids for one in tiny.model.generate(prompts, max_new_tokens=5, stop_tokens=[])
    ]
    for prompt, generated in zip(prompts, found, strict=True):
        for _ in range(5):
            trace = model.trace(prompt)
            trace.hook("sae.acts", change)
            prompt = [*prompt, trace.logits_at(-1).argmax().item()]
        assert generated.ids == prompt[-5:]
    assert [one.ids for one in found] != [one.ids for one in plain]


def test_analyses_see_what_comes_out(tiny):
    """Contributions still sum to the logit: the node's name stands for what is added to the residual stream."""
    model = spliced(tiny, "mlp_out1", Autoencoder(tiny.model.config.d_model))
    trace = model.trace(random_tokens(1, 6))
    trace.set("sae.acts", 3, np.s_[:, :, 1])
    result = glassformer.direct_logit_attribution(trace, 5)
    total = sum(component.logit for component in result.components)
    assert total == pytest.approx(trace.logits_at(-1)[0, 5].item(), rel=1e-6)
    plain = glassformer.direct_logit_attribution(tiny.model.trace(trace.tokens), 5)
    assert total != pytest.approx(sum(component.logit for component in plain.components), rel=1e-3)


def test_splices_upon_splices(tiny):
    """An autoencoder of another's features, of its error, and a second one on the same node."""
    first, second = Autoencoder(tiny.model.config.d_model), Autoencoder(N_FEATURES, 5, seed=4)
    third = Autoencoder(tiny.model.config.d_model, 7, seed=5)
    model = spliced(tiny, "mlp_out1", first, "one")
    model = model.splice("one.hook_acts", "two", second.encode, second.decode)
    model = model.splice("mlp_out1", "three", third.encode, third.decode)
    model = model.splice("one.error", "four", third.encode, third.decode)
    tokens = random_tokens(1, 6)
    plain = tiny.model.trace(tokens)
    assert torch.equal(model.trace(tokens).logits, plain.logits)
    trace = model.trace(tokens)
    trace.set("two.acts", 0.7, np.s_[:, :, 1])
    trace.set("three.acts", 0.3, np.s_[:, 2:, 6])
    trace["four.error"] = 0
    with torch.no_grad():
        value = plain["mlp_out1"]
        acts = first.encode(value)
        features = second.encode(acts)
        changed = features.clone()
        changed[..., 1] = 0.7
        edited = second.decode(changed) + (acts - second.decode(features))
        error = third.decode(third.encode(value - first.decode(acts)))
        value = first.decode(edited) + error
        features = third.encode(value)
        changed = features.clone()
        changed[:, 2:, 6] = 0.3
        value = third.decode(changed) + (value - third.decode(features))
    by_hand = plain.fork()
    by_hand["mlp_out1"] = value
    assert_close(trace["mlp_out1"], value, 1e-10)
    assert_close(trace.logits, by_hand.logits, 1e-10)


def test_a_transcoder_reads_another_node(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "mlp_out1", sae, reads="blocks.1.ln2.hook_out")
    tokens = random_tokens(1, 6)
    plain, trace = tiny.model.trace(tokens), model.trace(tokens)
    assert torch.equal(trace.logits, plain.logits)
    trace.set("sae.acts", 0, np.s_[:, :, 3])
    with torch.no_grad():
        acts = sae.encode(plain["blocks.1.ln2.hook_out"])
        changed = acts.clone()
        changed[..., 3] = 0
        plain["mlp_out1"] = plain["mlp_out1"] + sae.decode(changed) - sae.decode(acts)
    assert_close(trace.logits, plain.logits, 1e-10)


def test_heads_have_features_of_their_own(tiny):
    sae = Autoencoder(tiny.model.config.d_head)
    heads, d_head = tiny.model.config.n_heads, tiny.model.config.d_head
    by_head = spliced(tiny, "z1", sae)
    whole = tiny.model.splice(
        "z1", "flat", lambda z: sae.encode(z[:, :, 0]), lambda acts: acts[..., :1, None] * torch.ones(heads, d_head)
    )
    shapes = {node.name: node.shape for node in [*by_head.nodes(), *whole.nodes()]}
    assert shapes["sae.hook_acts"] == f"batch pos head={heads} feature={N_FEATURES}"
    assert shapes["flat.hook_acts"] == f"batch pos feature={N_FEATURES}"
    named = spliced(tiny, "z1", sae, axes=f"batch pos head={heads} latent={N_FEATURES}")
    assert {node.name: node.axes for node in named.nodes()}["sae.hook_acts"] == ("batch", "pos", "head", "latent")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_splices_in_other_dtypes(dtype):
    tiny = subject("llama_grouped", dtype)
    sae = Autoencoder(32, dtype=torch.float32)

    def encode(x):
        return sae.encode(x.float())

    model = tiny.model.splice("resid_post1", "sae", encode, lambda acts: sae.decode(acts.float()))
    tokens = random_tokens(1, 6)
    trace, plain = model.trace(tokens), tiny.model.trace(tokens)
    assert torch.equal(trace.logits, plain.logits)
    assert trace["sae.acts"].dtype == trace["sae.error"].dtype == dtype
    trace.set("sae.acts", 1, np.s_[:, 2, 3])
    with torch.no_grad():
        acts = encode(plain["resid_post1"]).to(dtype)
        error = plain["resid_post1"] - sae.decode(acts.float()).to(dtype)
        acts[:, 2, 3] = 1
        expected = sae.decode(acts.float()).to(dtype) + error
    assert torch.equal(trace["resid_post1"][:, 2:], expected[:, 2:])


def test_splices_that_can_not_be(tiny):
    d_model = tiny.model.config.d_model
    sae = Autoencoder(d_model)
    for target in ("hook_tokens", "attention_mask", "pattern1"):
        with pytest.raises(glassformer.InputError, match="nothing can be spliced onto"):
            spliced(tiny, target, sae)
    with pytest.raises(glassformer.NameError, match="resid_post1"):
        spliced(tiny, "resid_pots1", sae)
    with pytest.raises(glassformer.InputError, match=r"which comes after blocks\.0\.hook_mlp_out"):
        spliced(tiny, "mlp_out0", sae, reads="resid_post0")
    with pytest.raises(glassformer.InputError, match=r"'sae.hook_in' is sae.hook_in already"):
        spliced(types.SimpleNamespace(model=spliced(tiny, "mlp_out0", sae)), "mlp_out1", sae)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        spliced(tiny, "mlp_out0", Autoencoder(d_model + 1))
    with pytest.raises(
        glassformer.ShapeError,
        match=rf"sae\.hook_recon: its step returned \[1, 1, 7\]; expected \[1, 1, {d_model}\] \(batch pos d_model\)",
    ):
        tiny.model.splice("mlp_out0", "sae", sae.encode, lambda acts: acts[..., :7])
    with pytest.raises(glassformer.ShapeError, match=r"sae\.hook_acts: .*\[1, 1, 12\]; expected \[1, 1, 13\]"):
        spliced(tiny, "mlp_out0", sae, axes="batch pos feature=13")
    with pytest.raises(glassformer.ShapeError, match=r"encode returned \[\] for"):
        tiny.model.splice("mlp_out0", "sae", lambda x: x.sum(), sae.decode)
    with pytest.raises(TypeError, match="encode is a function"):
        tiny.model.splice("mlp_out0", "sae", sae.weight, sae.decode)
