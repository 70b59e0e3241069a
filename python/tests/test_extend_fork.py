"""Traces forked onto extended models: what comes along, what is shared, and what is computed again."""

import numpy as np
import pytest
import torch
from autoencoder import Autoencoder, spliced
from helpers import assert_close, subject
from tiny_models import random_tokens

import glassformer


@pytest.fixture(params=["gpt2", "llama_grouped"])
def tiny(request):
    return subject(request.param)


def test_a_fork_shares_what_is_computed(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)
    trace = tiny.model.trace(random_tokens(2, 6), keep="all")
    logits = trace.logits
    sae.calls = 0
    fork = trace.fork(model)
    assert fork.model is model and fork.length == 6 and fork.batch == 2
    assert torch.equal(fork.logits, logits) and torch.equal(fork["resid_post1"], trace["resid_post1"])
    assert fork.work() == {} and sae.calls == 0
    fork.set("sae.acts", 0, np.s_[:, 4:, 1])
    fork.read("logits")
    work = fork.work()
    above = [name for name in work if name.startswith(("blocks.0", "hook_", "blocks.1.")) and "resid_post" not in name]
    assert above == []
    assert work["sae.hook_acts"] == work["blocks.2.attn.hook_q"] == 4  # Positions 4 and 5 of two sequences.
    fresh = model.trace(trace.tokens)
    fresh.set("sae.acts", 0, np.s_[:, 4:, 1])
    assert_close(fork.logits, fresh.logits, 1e-10)
    assert torch.equal(trace.logits, logits)  # The trace itself is as it was.


def test_a_fork_shares_only_what_is_there(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)
    trace = tiny.model.trace(random_tokens(1, 6), keep="all")
    trace.read("resid_pre1")
    fork = trace.fork(model)
    trace.read("logits")
    fork.read("logits")
    work = fork.work()
    assert "blocks.0.hook_resid_pre" not in work and "blocks.0.attn.hook_z" not in work
    assert work["blocks.1.attn.hook_z"] == 6


def test_edits_and_hooks_come_along(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    calls = []

    def scale(value, call):
        calls.append((call.name, call.begin))
        return value * 1.5

    trace.hook("resid_post0", scale)
    trace.set("mlp_out1", 0.25, np.s_[:, 3:])
    trace.edit("resid_post1", lambda value: value + 1)
    trace.set("z2", 0, np.s_[:, :, 1])
    logits = trace.logits
    fork = trace.fork(model)
    assert torch.equal(fork.logits, logits)
    assert fork.work() == {} and len(calls) == 1
    assert fork.edited == ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "sae.hook_in", "blocks.2.attn.hook_z"]
    with torch.no_grad():  # The autoencoder sees what was edited.
        assert_close(fork["sae.acts"], sae.encode(trace["resid_post1"]), 1e-10)
    more = random_tokens(1, 2, seed=5)
    fork.append(more)
    trace.append(more)
    assert_close(fork.logits, trace.logits, 1e-10)
    assert len(calls) == 3  # Once for the new segment of each.
    fork.unset("resid_post0")
    trace.unset("resid_post0")
    for one in (fork, trace):
        with pytest.raises(glassformer.OrderError):
            one.logits_at(-1)
        one.unset("sae.hook_in" if one is fork else "resid_post1")
    assert_close(fork.logits, trace.logits, 1e-10)
    fork.set("sae.acts", 2, np.s_[:, :, 0])
    assert not torch.allclose(fork.logits, trace.logits)


def test_edits_that_nobody_read_come_along(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    model = spliced(tiny, "resid_post1", sae)
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.set("resid_post1", 0.5, np.s_[:, 2])
    trace.hook("mlp_out0", lambda value, call: value * 0)
    fork = trace.fork(model)
    assert_close(fork.logits, trace.logits, 1e-10)


def test_a_branch_and_a_mask_come_along(tiny):
    model = spliced(tiny, "resid_post0", Autoencoder(tiny.model.config.d_model))
    mask = [[0, 1, 1, 1], [1, 1, 1, 1]]
    tokens = random_tokens(2, 4)
    trace = tiny.model.trace(tokens, attention_mask=mask, positions=[[0, 0, 1, 2], [0, 1, 2, 3]])
    other = trace.fork()
    trace.append([[1, 2], [3, 4]])
    trace.read("logits")
    other.append([[5], [6]])
    before = other.logits
    fork = other.fork(model)
    assert torch.equal(fork.tokens, other.tokens)
    assert torch.equal(fork.logits, before) and torch.equal(fork["positions"], other["positions"])
    for one in (other, fork):
        one.append([[7, 8], [9, 10]])
    assert_close(fork.logits, other.logits, 1e-10)


def test_tokens_of_a_branch_come_along_below_an_edit_of_them(tiny):
    tokens = random_tokens(1, 5)
    trace = tiny.model.trace(tokens[:, :3])
    branch = trace.fork()
    trace.append(tokens[:, :1])
    branch.append(tokens[:, 3:])
    branch.set("hook_tokens", 7, (slice(None), slice(2, 4)))
    branch.read("logits")
    fork = branch.fork(spliced(tiny, "resid_post1", Autoencoder(tiny.model.config.d_model)))
    fork.unset("hook_tokens")
    assert_close(fork.logits, tiny.model.trace(tokens).logits, 1e-10)


def test_lengths_that_change_rotary_angles():
    tiny = subject("llama_dynamic")
    model = spliced(tiny, "k1", Autoencoder(tiny.model.config.d_head))
    tokens = random_tokens(1, 24)
    trace = tiny.model.trace(tokens[:, :14])
    trace.logits_at(-1)
    short = trace.fork(model)
    trace.append(tokens[:, 14:20])
    trace.logits_at(-1)
    long = trace.fork(model)
    short.append(tokens[:, 14:20])
    assert_close(short.logits, trace.logits, 1e-10)
    assert torch.equal(long.logits, trace.logits)
    for one in (trace, short, long):
        one.append(tokens[:, 20:])
        one.set("z0", 0, np.s_[:, 21:])
    assert_close(short.logits, trace.logits, 1e-10)
    assert_close(long.logits, trace.logits, 1e-10)


def test_forks_of_forks_and_several_models(tiny):
    sae = Autoencoder(tiny.model.config.d_model)
    one = spliced(tiny, "resid_post0", sae, "one")
    both = one.splice("resid_post1", "two", sae.encode, sae.decode)
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("logits")
    straight = trace.fork(both)
    steps = trace.fork(one)
    steps.set("one.acts", 0, np.s_[:, 3:, 2])
    steps.read("logits")
    steps = steps.fork(both)
    assert steps.work() == {}
    steps.read("logits")
    assert steps.work() == {}
    straight.set("one.acts", 0, np.s_[:, 3:, 2])
    for fork in (straight, steps):
        fork.set("two.acts", 1, np.s_[:, 4, 5])
    assert_close(steps.logits, straight.logits, 1e-10)
    with pytest.raises(glassformer.InputError, match=r"one\.hook_acts.*doesn't have.*unset it first"):
        steps.fork(tiny.model)
    with pytest.raises(glassformer.InputError, match="loaded by itself"):
        trace.fork(glassformer.load(tiny.reference))
    assert torch.equal(trace.fork(tiny.model).logits, trace.logits)


def test_back_to_the_model_below(tiny):
    """What was edited of the node goes back onto it; the rest is computed anew."""
    model = spliced(tiny, "resid_post0", Autoencoder(tiny.model.config.d_model))
    tokens = random_tokens(1, 6)
    trace, plain = model.trace(tokens), tiny.model.trace(tokens)
    trace.set("sae.hook_in", 0.5, np.s_[:, 1])
    trace.set("resid_post0", 0.25, np.s_[:, 4])
    trace.hook("mlp_out2", lambda value, call: value * 2)
    trace.read("logits")
    plain.set("resid_post0", 0.5, np.s_[:, 1])
    plain.set("resid_post0", 0.25, np.s_[:, 4])
    plain.hook("mlp_out2", lambda value, call: value * 2)
    assert_close(trace.fork(tiny.model).logits, plain.logits, 1e-10)


def test_onto_a_model_with_another_node_of_that_name(tiny):
    """Edits go onto it; what belongs to the old node's value doesn't."""

    def with_node(factor):
        def run(x):
            return x * factor

        return tiny.model.extend([glassformer.NewNode("mine", ["resid_post1"], f"batch pos d={d_model}", run)])

    d_model = tiny.model.config.d_model
    ours, others = with_node(2), with_node(3)
    trace = ours.trace(random_tokens(1, 6))
    calls = []
    trace.hook("mine", lambda value, call: calls.append(value) or value + 1)
    assert_close(trace["mine"], trace["resid_post1"] * 2 + 1, 1e-12)
    fork = trace.fork(others)
    assert_close(fork["mine"], fork["resid_post1"] * 3 + 1, 1e-12)
    assert len(calls) == 2
    trace.unset("mine")
    trace.edit("mine", lambda value: value + 1)
    trace.read("mine")
    with pytest.raises(glassformer.OrderError):
        trace.fork(others).read("mine")
    trace.set("mine", 0, np.s_[:, 2])
    assert torch.equal(trace.fork(ours)["mine"], trace["mine"])
    wider = tiny.model.extend([glassformer.NewNode("mine", ["resid_post1"], "batch pos d=1", lambda x: x[..., :1])])
    with pytest.raises(glassformer.InputError, match=r"mine \(batch pos d\).*doesn't have"):
        trace.fork(wider)


def test_a_batch_on_an_extended_model(tiny):
    model = spliced(tiny, "resid_post1", Autoencoder(tiny.model.config.d_model))
    batch = tiny.model.trace([random_tokens(length, seed=length).tolist() for length in (3, 6)])
    batch.hook("resid_post0", lambda value, call: value.flip(0))
    before = batch.logits
    fork = batch.fork(model)
    assert torch.equal(fork.logits, before)
    fork.unset("mlp_out0")
    fork.set("mlp_out0", 0, np.s_[:, -1])
    batch.set("mlp_out0", 0, np.s_[:, -1])
    assert_close(fork.logits, batch.logits, 1e-10)
    fork.set("sae.acts", 1, np.s_[:, :, 3])
    assert not torch.allclose(fork.logits, batch.logits)
