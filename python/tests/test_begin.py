"""Traces that begin at a node, against the oracle, in which the value given is a constant there."""

import numpy as np
import pytest
import torch
from helpers import assert_close, available, constant, everywhere, nodes_of, some_values, subject
from tiny_models import random_tokens

import glassformer

KINDS = ["gpt2", "llama_grouped", "mistral_window", "llama_dynamic", "llama_longrope"]
EXACT = 1e-10
SOURCES = ["hook_embed", "resid_pre1", "resid_mid1", "resid_post2"]


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


@pytest.mark.parametrize("source", SOURCES)
def test_begin_at_a_node_equals_a_constant_there(tiny, source):
    name = tiny.model.node_name(source)
    value = some_values(tiny.model, source, 2, 19)
    expected = tiny.oracle.run(random_tokens(2, 19), {name: constant(value)})
    trace = tiny.model.trace_from(source, value)
    assert (trace.batch, trace.length, trace.begin, trace.begin_node) == (2, 19, 0, name)
    assert torch.equal(trace[source], value)
    names = available(trace, tiny.model)
    assert {name, "logits"} <= set(names)
    assert trace.work().keys() <= set(names)
    for node in names:
        assert_close(trace[node], expected[node], EXACT, node)
    assert_close(trace.logits_at(-1), expected["logits"][:, -1], EXACT)
    alone = tiny.model.trace_from(source, value[1])  # Without the batch.
    assert_close(alone.logits, expected["logits"][1:], EXACT)


def test_what_is_available_is_what_avoids_the_tokens():
    model = subject("gpt2").model
    names = list(nodes_of(model))

    def missing(source):
        trace = model.trace_from(source, some_values(model, source, 1, 4))
        return sorted(set(names) - set(available(trace, model)), key=names.index)

    assert missing("hook_embed") == ["hook_tokens"]
    before = names[: names.index("blocks.1.hook_resid_pre")]
    assert missing("resid_pre1") == [
        name for name in before if name not in ("positions", "attention_mask", "hook_pos_embed")
    ]
    # Where the residual stream is not given, nothing that adds to it is there.
    assert "blocks.1.hook_mlp_in" in missing("attn_out1") and "logits" in missing("attn_out1")
    assert "logits" in missing("hook_pos_embed") and "hook_embed" in missing("hook_pos_embed")
    # The norm's output makes q, k and v past the inputs of each head.
    trace = model.trace_from("blocks.1.ln1.hook_normalized", some_values(model, "resid_pre1", 1, 4))
    assert trace["attn_out1"].shape == (1, 4, 24)
    assert "blocks.1.hook_q_input" in missing("blocks.1.ln1.hook_normalized")
    # One head's input makes q alone, and a shared one all three.
    assert "blocks.1.attn.hook_k" in missing("q_input1") and "blocks.1.attn.hook_q" not in missing("q_input1")
    assert "blocks.1.hook_attn_out" not in missing("attn_in1") and "blocks.1.ln1.hook_out" in missing("attn_in1")


@pytest.mark.parametrize(
    "source", ["blocks.1.ln1.hook_out", "blocks.1.ln1.hook_normalized", "attn_in1", "z1", "result1"]
)
def test_begin_inside_a_block(source):
    tiny = subject("gpt2")
    name = tiny.model.node_name(source)
    value = some_values(tiny.model, source, 2, 6)
    trace = tiny.model.trace_from(source, value)
    expected = tiny.oracle.run(random_tokens(2, 6), {name: constant(value)})
    for node in available(trace, tiny.model):
        assert_close(trace[node], expected[node], EXACT, node)
    assert "blocks.1.hook_attn_out" in available(trace, tiny.model)


def test_unavailable_nodes_are_named():
    model = subject("llama_grouped").model
    trace = model.trace_from("resid_pre1", some_values(model, "resid_pre1", 1, 4))
    above = "blocks.0.hook_mlp_out isn't available: the trace begins at blocks.1.hook_resid_pre, which comes after it"
    uses = [
        lambda: trace.read("mlp_out0"),
        lambda: trace.read("mlp_out0", [-1]),
        lambda: trace.set("mlp_out0", 0),
        lambda: trace.set("mlp_out0", 0, np.s_[:, 1]),
        lambda: trace.edit("mlp_out0", lambda value: value),
        lambda: trace.hook("mlp_out0", lambda value, call: value),
        lambda: trace.run("mlp_out0"),
        lambda: trace.explain("mlp_out0"),
        lambda: trace.at([1]).read("mlp_out0"),
        lambda: trace.at([1]).set("mlp_out0", 0),
        lambda: glassformer.read_all([model.trace([1, 2]), trace], "mlp_out0"),
    ]
    for use in uses:
        with pytest.raises(glassformer.UnavailableError, match=above):
            use()
    beside = model.trace_from("attn_out1", some_values(model, "attn_out1", 1, 4))
    with pytest.raises(glassformer.UnavailableError, match=r"takes more than that to compute it.*residual stream"):
        beside.logits_at(-1)
    for read in (lambda: trace.tokens, lambda: trace.str_tokens):
        with pytest.raises(glassformer.UnavailableError, match="hook_tokens isn't available"):
            read()
    assert repr(trace).endswith("batch 1, length 4, from blocks.1.hook_resid_pre)")
    assert trace.edited == []
    assert "given" in trace.explain("resid_pre1") and "given" in trace.explain("positions")


def test_wrong_beginnings_are_named():
    model = subject("llama_grouped").model
    value = some_values(model, "resid_pre1", 2, 4)
    wrong = [
        (glassformer.InputError, "can begin at an activation", "hook_tokens", value),
        (glassformer.InputError, "can begin at an activation", "pattern1", value),
        (glassformer.NameError, "no node", "resid_prae1", value),
        (glassformer.ShapeError, r"'batch pos d_model', like \[2, 1, 32\]", "resid_pre1", value[:, :, :5]),
        (glassformer.ShapeError, "batch pos d_model", "resid_pre1", value[0, 0]),
        (glassformer.InputError, "no positions", "resid_pre1", value[:, :0]),
        (glassformer.InputError, "no tokens; found Long", "resid_pre1", [[1, 2, 3]]),
        (glassformer.InputError, "no text", "resid_pre1", "Hello"),
        (glassformer.InputError, "49 positions; the model's context is 48", "resid_pre1", torch.zeros(49, 32)),
    ]
    for kind, text, node, given in wrong:
        with pytest.raises(kind, match=text):
            model.trace_from(node, given)
    trace = model.trace_from("resid_pre1", value)
    for kind, text, given in [
        (glassformer.InputError, "no tokens; found Long", [[1], [2]]),
        (glassformer.InputError, "no text", "Hello"),
        (glassformer.ShapeError, r"like \[2, 1, 32\] for one position", value[:1]),
        (glassformer.InputError, "no positions", value[:, :0]),
    ]:
        with pytest.raises(kind, match=text):
            trace.append(given)
    assert trace.length == 4


def test_append_truncate_and_forks_of_values(tiny):
    node = "blocks.1.hook_resid_pre"
    value = some_values(tiny.model, node, 2, 20)
    trace = tiny.model.trace_from(node, value[:, :4])
    trace.logits_at(-1)
    for begin, end in ((4, 5), (5, 11), (11, 20)):
        trace.append(value[:, begin:end])
        expected = tiny.oracle.run(random_tokens(2, end), {node: constant(value[:, :end])})
        assert_close(trace.logits, expected["logits"], EXACT, f"{end}")
    fork = trace.fork()
    fork.truncate(7)
    other = some_values(tiny.model, node, 2, 3, seed=3)
    second = fork.fork()
    fork.append(other)
    joined = torch.cat([value[:, :7], other], dim=1)
    assert torch.equal(fork[node], joined)
    assert_close(fork.logits, tiny.oracle.run(random_tokens(2, 10), {node: constant(joined)})["logits"], EXACT)
    short = tiny.oracle.run(random_tokens(2, 7), {node: constant(value[:, :7])})
    assert_close(second["resid_post2"], short["blocks.2.hook_resid_post"], EXACT)
    assert_close(trace.logits, expected["logits"], EXACT)


def test_edits_and_hooks_after_a_beginning(tiny):
    node = "blocks.1.hook_resid_pre"
    value = some_values(tiny.model, node, 2, 8)
    trace = tiny.model.trace_from(node, value)
    trace.logits_at(-1)
    calls = []

    def halve(found, call):
        calls.append((call.segment, call.begin, call.end))
        return found * 0.5

    trace.hook(node, halve)
    trace.set(node, 0.3, np.s_[:, 5])
    trace.set("z1", -0.25, np.s_[:, :, 2])
    trace.set("positions", 4, np.s_[0, 2])
    trace.edit("resid_post1", lambda found: found * 1.5)
    more = some_values(tiny.model, node, 2, 2, seed=1)
    d_model, d_head = value.shape[-1], trace["z1"].shape[-1]
    edits = {
        node: [*constant(value), lambda found, number: found * 0.5, ([[0, 1], [5], list(range(d_model))], 0.3)],
        "blocks.1.attn.hook_z": [([[0, 1], list(range(8)), [2], list(range(d_head))], -0.25)],
        "positions": [([[0], [2]], 4)],
    }
    plain = tiny.oracle.run(random_tokens(2, 8), edits, length=8)["blocks.1.hook_resid_post"]
    edits["blocks.1.hook_resid_post"] = constant(plain * 1.5)
    assert_close(trace.logits, tiny.oracle.run(random_tokens(2, 8), edits, length=8)["logits"], EXACT)
    assert calls == [(0, 0, 8)]
    trace.append(more)
    edits[node][0] = constant(torch.cat([value, more], dim=1))[0]
    trace.run()
    assert calls == [(0, 0, 8), (1, 8, 10)]
    expected = tiny.oracle.run(random_tokens(2, 10), edits, length=10, segments=[(0, 8), (8, 10)])
    assert_close(trace.logits, expected["logits"], EXACT)
    trace[node] = 0.125
    trace.unset("z1"), trace.unset("positions"), trace.unset("resid_post1")
    whole = {node: [(everywhere((2, 10, d_model)), 0.125)]}
    assert_close(trace.logits, tiny.oracle.run(random_tokens(2, 10), whole)["logits"], EXACT)
    trace.unset(node)
    whole = {node: constant(torch.cat([value, more], dim=1))}
    assert_close(trace.logits, tiny.oracle.run(random_tokens(2, 10), whole)["logits"], EXACT)


def test_an_edit_of_the_positions_leaves_what_is_given():
    tiny = subject("llama_grouped")
    node = "blocks.1.hook_resid_pre"
    value = some_values(tiny.model, node, 1, 6)
    trace = tiny.model.trace_from(node, value)
    before = trace.logits
    trace.set("positions", torch.tensor([7, 3, 1, 0, 2, 9]), np.s_[0])
    assert torch.equal(trace[node], value)
    positions = torch.tensor([[7, 3, 1, 0, 2, 9]])
    expected = tiny.oracle.run(random_tokens(1, 6), {node: constant(value)}, positions=positions)
    assert_close(trace.logits, expected["logits"], EXACT)
    trace.unset("positions")
    assert torch.equal(trace.logits, before)


def test_edits_above_do_not_concern_what_is_given():
    """No hook on what leads to rotary angles is called, and no change of them in doubt, where only what is given is
    read."""
    model = subject("llama_grouped").model
    trace = model.trace_from("resid_pre1", some_values(model, "resid_pre1", 1, 6))
    calls = []
    trace.hook("positions", lambda value, call: calls.append(call.name))
    trace.edit("rotary.hook_cos", lambda value: value * 0.5)
    calls.clear()
    trace.set("positions", 3, np.s_[:, 2])
    assert trace["resid_pre1"].shape == (*trace["q1"].shape[:2], 32)
    assert calls == []
    with pytest.raises(glassformer.OrderError):
        trace.read("rot_q1")


def test_mask_and_positions_of_a_trace_from_a_node(tiny):
    node = "blocks.1.hook_resid_pre"
    value = some_values(tiny.model, node, 2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    trace = tiny.model.trace_from(node, value, attention_mask=mask, positions=positions, keep="needed")
    options = {"mask": mask, "positions": positions}
    expected = tiny.oracle.run(random_tokens(2, 6), {node: constant(value)}, **options, length=6)
    assert_close(trace.logits, expected["logits"], EXACT)
    assert_close(trace["pattern2"], expected["blocks.2.attn.hook_pattern"], EXACT)


def test_read_all_with_ordinary_traces(tiny):
    node = "blocks.1.hook_resid_pre"
    tokens = random_tokens(2, 8)
    value = some_values(tiny.model, node, 2, 8)
    ordinary, begun = tiny.model.trace(tokens), tiny.model.trace_from(node, value)
    edited, cut = begun.fork(), begun.fork()
    edited.set("z2", 0.5, np.s_[:, 3])
    cut.truncate(5)
    d_head = edited["z2"].shape[-1]
    region = [[0, 1], [3], list(range(4)), list(range(d_head))]
    edits = {node: constant(value), "blocks.2.attn.hook_z": [(region, 0.5)]}
    for name in ("logits", "blocks.2.attn.hook_pattern", "blocks.2.attn.hook_z"):
        found = glassformer.read_all([ordinary, begun, edited, cut], name)
        expected = [
            tiny.oracle.run(tokens),
            tiny.oracle.run(tokens, {node: constant(value)}),
            tiny.oracle.run(tokens, edits),
            tiny.oracle.run(tokens[:, :5], {node: constant(value[:, :5])}),
        ]
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other[name], EXACT, name)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_read_elsewhere_gives_the_same_logits(name, dtype):
    """Bit for bit: the steps after the node are the same ones."""
    model = subject(name, dtype).model
    trace = model.trace(random_tokens(2, 7))
    again = model.trace_from("resid_pre2", trace["resid_pre2"])
    assert again["resid_pre2"].dtype == dtype
    assert torch.equal(again.logits, trace.logits)


def test_generation_wants_tokens():
    model = subject("llama_grouped").model
    trace = model.trace_from("hook_embed", some_values(model, "hook_embed", 1, 4))
    core = glassformer._core
    sampler = glassformer.Sampler().core()
    with pytest.raises(glassformer.UnavailableError, match="hook_tokens isn't available"):
        core.Generation([trace.core], 3, sampler, None, None, [], [], [])


@pytest.mark.parametrize("source", ["hook_tokens", "hook_embed"])
def test_a_hook_on_what_is_given_sees_what_was_appended_after_a_cut(source):
    """Other tokens from a position on than before, or than those of a fork."""
    tiny = subject("llama_grouped")
    tokens, other = random_tokens(1, 6), random_tokens(1, 3, seed=2)
    embedding = tiny.model.weights["embed.weight"]

    def given(ids):
        return ids if source == "hook_tokens" else embedding[ids]

    trace = tiny.model.trace(tokens) if source == "hook_tokens" else tiny.model.trace_from(source, given(tokens))
    trace.logits_at(-1)
    fork = trace.fork()
    seen = []
    for each in (fork, trace):
        each.hook(source, lambda value, call: seen.append(value.clone()))
    trace.truncate(4)
    fork.append(given(tokens[:, :2]))
    for each in (trace, fork):
        each.append(given(other))
    expected = torch.cat([tokens[:, :4], other], dim=1)
    assert_close(trace.logits, tiny.oracle.run(expected)["logits"], EXACT)
    assert torch.equal(seen[-1], given(other))
    expected = torch.cat([tokens, tokens[:, :2], other], dim=1)
    assert_close(fork.logits, tiny.oracle.run(expected)["logits"], EXACT)
