"""Traces that begin at a node or with a past, masks and positions given, windows: against the oracle, in which what is
given stands as constants, and against `transformers`."""

import numpy as np
import pytest
import torch
from helpers import assert_close, everywhere, shape_of, subject
from oracle import first_row, rows_of
from tiny_models import random_tokens

import glassformer

KINDS = ["gpt2", "llama_grouped", "mistral_window", "llama_dynamic", "llama_longrope"]
EXACT = 1e-10
SOURCES = ["hook_embed", "resid_pre1", "resid_mid1", "resid_post2"]


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


def nodes_of(model):
    return {node.name: node for node in model.nodes()}


def keyed(name):
    return name.endswith(("hook_attn_scores", "hook_pattern"))


def some_values(model, node, batch, length, seed=0):
    shape = shape_of(nodes_of(model)[model.node_name(node)], batch, length)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def constant(value):
    return [(everywhere(value.shape), value)]


def available(trace, model):
    """The names of the nodes that a trace has."""
    found = []
    for name in nodes_of(model):
        try:
            trace.read(name, [-1])
            found.append(name)
        except glassformer.UnavailableError:
            pass
    return found


# Beginning at a node.


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


# Beginning with a past.


def past_of(trace, length):
    return [(keys[:, :length], values[:, :length]) for keys, values in trace.past()]


def at_available(value, name, n_past):
    """The rows of a node that a trace with a past has."""
    return value[rows_of(name, first_row(name, n_past), value.shape[2 if keyed(name) else 1])]


@pytest.mark.parametrize("length", [9, 20])  # 20 crosses every threshold.
def test_past_and_rest_equal_one_pass(tiny, length):
    tokens = random_tokens(2, length)
    whole = tiny.model.trace(tokens)
    expected = tiny.oracle.run(tokens)
    trace = tiny.model.trace(tokens[:, 5:], past=past_of(whole, 5))
    assert (trace.begin, trace.length, trace.n_segments, trace.batch) == (5, length, 1, 2)
    assert torch.equal(trace.tokens, tokens[:, 5:])
    assert_close(trace.logits_at(-1), expected["logits"][:, -1], EXACT)
    for name in nodes_of(tiny.model):
        assert_close(trace[name], at_available(expected[name], name, 5), EXACT, name)
        assert_close(trace[name], at_available(whole[name], name, 5), EXACT, name)
    assert torch.equal(trace["k2"][:, :5], whole["k2"][:, :5])
    for (k, v), (other_k, other_v) in zip(trace.past(), whole.past(), strict=True):
        assert_close(k, other_k, EXACT)
        assert_close(v, other_v, EXACT)
    assert trace.work()["blocks.0.hook_resid_mid"] == 2 * (length - 5)


@pytest.mark.parametrize("n_past", [1, 5, 9])
def test_past_of_a_prefix_is_what_the_prefix_computed(tiny, n_past):
    """Keys and values given are constants of a pass over everything. Up to a threshold of the rotary scaling that is
    what one pass over everything computes; beyond it those of the prefix come from other angles."""
    tokens = random_tokens(2, 20)
    prefix = tiny.model.trace(tokens[:, :n_past])
    past = prefix.past()
    plain = tiny.oracle.run(tokens[:, :10])
    within = tiny.model.trace(tokens[:, n_past:10], past=past)
    assert_close(within.logits, plain["logits"][:, n_past:], EXACT)
    trace = tiny.model.trace(tokens[:, n_past:12], past=past)
    trace.logits_at(-1)
    trace.append(tokens[:, 12:])
    edits = {}
    for layer, parts in enumerate(past):
        for part, value in zip("kv", parts, strict=True):
            region = everywhere(value.shape)
            edits[f"blocks.{layer}.attn.hook_{part}"] = [(region, value)]
    expected = tiny.oracle.run(tokens, edits)
    for name in nodes_of(tiny.model):
        assert_close(trace[name], at_available(expected[name], name, n_past), EXACT, name)


def rotated(tiny, past):
    """A cache of `transformers` with this past: its keys are rotated ones."""
    from transformers import DynamicCache

    cache = DynamicCache(config=tiny.reference.config)
    n_past = past[0][0].shape[1]
    for layer, (keys, values) in enumerate(past):
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if tiny.oracle.rotary is not None:
            positions = torch.arange(n_past).expand(keys.shape[0], n_past)
            cos, sin = (part[:, None] for part in tiny.reference.model.rotary_emb(keys, positions))
            first, second = keys.chunk(2, dim=-1)
            keys = keys * cos + torch.cat([-second, first], dim=-1) * sin
        cache.update(keys, values, layer)
    return cache


@pytest.mark.parametrize("masked", [False, True])
def test_past_as_transformers_has_it(tiny, masked):
    tokens = random_tokens(2, 10)
    mask = torch.ones(2, 10, dtype=torch.int64)
    if masked:
        mask[1, 1:3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "positions": positions} if masked else {}
    prefix = {name: value[:, :6] for name, value in given.items()}
    past = tiny.model.trace(tokens[:, :6], **prefix).past()
    trace = tiny.model.trace(tokens[:, 6:], past=past, **given)
    with torch.no_grad():
        first = tiny.reference(tokens[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6], use_cache=True)
        second = tiny.reference(
            tokens[:, 6:], attention_mask=mask, position_ids=positions[:, 6:], past_key_values=first.past_key_values
        )
    assert_close(trace.logits, second.logits, 1e-6)  # Its rotary tables are in float32.
    if not masked:
        with torch.no_grad():
            ours = tiny.reference(tokens[:, 6:], past_key_values=rotated(tiny, past), use_cache=True)
        assert_close(trace.logits, ours.logits, 1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_a_past_with_mask_and_positions(tiny, padded):
    tokens = random_tokens(2, 8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 1] = mask[1, 6] = False  # Of the past, and of the prompt.
    positions = torch.arange(8).expand(2, 8) + 2
    given = {"positions": positions} if padded else {}
    whole = tiny.model.trace(tokens, attention_mask=mask, **given)
    trace = tiny.model.trace(tokens[:, 4:], past=past_of(whole, 4), attention_mask=mask, **given)
    expected = tiny.oracle.run(tokens, mask=mask, positions=positions if padded else None, length=8)
    assert_close(trace.logits, expected["logits"][:, 4:], EXACT)
    more = random_tokens(2, 2, seed=4)
    whole.append(more)
    trace.append(more)
    assert torch.equal(trace["positions"], whole["positions"])
    assert_close(trace["pattern2"], whole["pattern2"][:, :, 4:], EXACT)
    assert_close(trace.logits, whole.logits[:, 4:], EXACT)
    trace.truncate(9)
    whole.truncate(9)
    assert_close(trace.logits, whole.logits[:, 4:], EXACT)
    with pytest.raises(glassformer.InputError, match="8 positions and can't be cut to 7"):
        trace.truncate(7)


def test_positions_of_a_past_are_unavailable():
    model = subject("llama_grouped").model
    tokens = random_tokens(1, 8)
    trace = model.trace(tokens[:, 3:], past=past_of(model.trace(tokens), 3))
    text = "blocks.1.hook_resid_pre isn't available at position 2: the trace begins at position 3, after a past"
    uses = [
        lambda: trace.read("resid_pre1", [4, 2]),
        lambda: trace.read("resid_pre1", [-6]),
        lambda: trace.read("resid_pre1", slice(2, 5)),
        lambda: trace.set("resid_pre1", 0, np.s_[:, 2]),
        lambda: trace.set("resid_pre1", 0, np.s_[:, 2:]),
        lambda: trace.at([2]).read("resid_pre1"),
        lambda: trace.at([2, 5]).set("resid_pre1", 0),
        lambda: trace.set("resid_pre1", 0, torch.arange(8)[None, :, None].expand(1, 8, 32) >= 2),
        lambda: glassformer.read_all([model.trace(tokens), trace], "resid_pre1", [2]),
    ]
    for use in uses:
        with pytest.raises(glassformer.UnavailableError, match=text):
            use()
    with pytest.raises(glassformer.UnavailableError, match="logits isn't available at position 0"):
        trace.logits_at(0)
    assert trace.edited == []
    assert repr(trace).endswith("batch 1, length 8, past 3)")
    for length in (0, 3, 9):
        with pytest.raises(glassformer.InputError, match="8 positions can be cut to 4 to 8 of them"):
            trace.truncate(length)
    explained = trace.explain("pattern1")
    assert "[1, 4, 5, 8]" in explained
    trace.logits_at(-1)
    assert "computed\n" in trace.explain("resid_post1") and "computed at" not in trace.explain("k2").split("\n")[1]


def test_edits_of_a_trace_with_a_past(tiny):
    """Whole nodes, regions, hooks and changes in place cover what there is; later keys given stay as given."""
    tokens = random_tokens(2, 9)
    past = past_of(tiny.model.trace(tokens), 4)
    trace = tiny.model.trace(tokens[:, 4:], past=past)
    trace.logits_at(-1)
    d_model, heads = tiny.model.config.d_model, trace["k1"].shape[2:]
    both, rest = [0, 1], list(range(4, 9))
    given = {}
    for layer, parts in enumerate(past):
        for part, value in zip("kv", parts, strict=True):
            given[f"blocks.{layer}.attn.hook_{part}"] = [(everywhere(value.shape), value)]

    def check(edits, options=()):
        merged = {name: list(entries) for name, entries in given.items()}
        for name, entries in edits.items():
            merged[name] = merged.get(name, []) + entries
        expected = tiny.oracle.run(tokens, merged, **dict(options))
        for name in ("logits", "blocks.1.attn.hook_pattern", "blocks.2.attn.hook_k", "blocks.1.hook_resid_mid"):
            assert_close(trace[name], at_available(expected[name], name, 4), EXACT, name)

    check({})
    value = torch.randn(2, 5, d_model, dtype=torch.float64)
    trace["resid_pre1"] = value
    assert torch.equal(trace["resid_pre1"], value)
    edits = {"blocks.1.hook_resid_pre": [([both, rest, list(range(d_model))], value)]}
    check(edits)
    trace.set("resid_pre1", 0.5, np.s_[:, -2, 3])
    edits["blocks.1.hook_resid_pre"].append(([both, [7], [3]], 0.5))
    check(edits)
    trace.set("k1", 0.2, np.s_[:, [1, 6]])  # A key of the past can be edited.
    edits["blocks.1.attn.hook_k"] = [([both, [1, 6], *(list(range(size)) for size in heads)], 0.2)]
    check(edits)
    trace.set("positions", 3, np.s_[:, 2])
    edits["positions"] = [([both, [2]], 3)]
    check(edits, {"length": 9}.items())
    calls = []

    def double(found, call):
        calls.append((call.name, call.begin, call.end, found.shape[1]))
        return found * 2

    trace.hook("v1", double)
    trace.hook("attn_out1", double)
    trace.edit("mlp_out1", lambda found: found + 1)
    trace.logits_at(-1)
    assert calls == [("blocks.1.attn.hook_v", 0, 9, 9), ("blocks.1.hook_attn_out", 4, 9, 5)]
    edits["blocks.1.attn.hook_v"] = [lambda found, number: found * 2]
    edits["blocks.1.hook_attn_out"] = [lambda found, number: found * 2]
    edits["blocks.1.hook_mlp_out"] = []
    merged = {name: given.get(name, []) + edits.get(name, []) for name in {**given, **edits}}
    before = tiny.oracle.run(tokens, merged, length=9)["blocks.1.hook_mlp_out"]
    edits["blocks.1.hook_mlp_out"] = constant(before + 1)
    check(edits, {"length": 9}.items())
    for name in trace.edited:
        trace.unset(name)
    check({})


def test_a_whole_node_after_a_past_drops_its_hooks():
    tiny = subject("llama_grouped")
    tokens = random_tokens(1, 9)
    trace = tiny.model.trace(tokens[:, 4:8], past=past_of(tiny.model.trace(tokens), 4))
    calls = []
    for node in ("resid_pre1", "k1"):
        trace.hook(node, lambda value, call: calls.append(call.name))
        trace[node] = 0.5
    trace.append(tokens[:, 8:])
    trace.run()
    assert calls == []


def test_a_text_after_a_past_has_no_special_tokens(demo_model):
    model = glassformer.load(demo_model)
    whole = model.trace("The capital of France is")
    rest = model.trace(" France is", past=model.trace("The capital of").past())
    assert torch.equal(rest.tokens, whole.tokens[:, 3:]) and rest.str_tokens == [" France", " is"]
    assert_close(rest.logits, whole.logits[:, 3:], 1e-4)
    assert_close(rest["resid_post29"], whole["resid_post29"][:, 3:], 1e-4)
    lens, other = (glassformer.logit_lens(trace, positions=[-1]) for trace in (rest, whole))
    assert torch.equal(lens.top_ids, other.top_ids)


def test_a_hook_on_the_first_layer_leaves_given_keys():
    """Keys and values of later layers at past positions don't change with what comes before them."""
    tiny = subject("mistral_window")
    tokens = random_tokens(1, 8)
    whole = tiny.model.trace(tokens)
    trace = tiny.model.trace(tokens[:, 4:], past=past_of(whole, 4))
    before = trace["k2"]
    trace.set("v0", 0.0, np.s_[:, 1])
    assert torch.equal(trace["k2"][:, :4], before[:, :4])
    assert not torch.equal(trace["k2"][:, 4:], before[:, 4:])


def test_a_pattern_edit_that_looks_ahead_after_a_past():
    tiny = subject("llama_grouped")
    tokens = random_tokens(1, 8)
    whole = tiny.model.trace(tokens)
    past = past_of(whole, 3)
    trace = tiny.model.trace(tokens[:, 3:], past=past)
    trace.set("pattern1", 0.2, np.s_[:, :, 4, 6])
    trace.set("resid_pre1", 0.5, np.s_[:, 6])
    edits = {
        "blocks.1.attn.hook_pattern": [([[0], list(range(4)), [4], [6]], 0.2)],
        "blocks.1.hook_resid_pre": [([[0], [6], list(range(32))], 0.5)],
    }
    expected = tiny.oracle.run(tokens, edits)
    assert_close(trace.logits, expected["logits"][:, 3:], EXACT)


def test_forks_appends_and_sweeps_after_a_past(tiny):
    tokens = random_tokens(1, 20)
    whole = tiny.model.trace(tokens[:, :9])
    trace = tiny.model.trace(tokens[:, 4:9], past=past_of(whole, 4), keep="needed")
    fork = trace.fork()
    fork.append(tokens[:, 9:])
    full = tiny.model.trace(tokens)
    edits = {}
    for layer, parts in enumerate(past_of(whole, 4)):
        for part, value in zip("kv", parts, strict=True):
            edits[f"blocks.{layer}.attn.hook_{part}"] = [(everywhere(value.shape), value)]
    sweep = [trace, fork, full]
    expected = [tiny.oracle.run(tokens[:, :9], edits), tiny.oracle.run(tokens, edits), tiny.oracle.run(tokens)]
    for name in ("logits", "blocks.2.attn.hook_z", "blocks.2.attn.hook_k"):
        for one, other, n_past in zip(glassformer.read_all(sweep, name), expected, (4, 4, 0), strict=True):
            assert_close(one, at_available(other[name], name, n_past), EXACT, name)
    other = trace.fork()
    other.append(random_tokens(1, 2, seed=5))
    joined = torch.cat([tokens[:, :9], random_tokens(1, 2, seed=5)], dim=1)
    assert_close(other.logits, tiny.oracle.run(joined, edits)["logits"][:, 4:], EXACT)
    fork.truncate(6)
    assert_close(fork.logits, tiny.oracle.run(tokens[:, :6], edits)["logits"][:, 4:], EXACT)


def test_wrong_pasts_are_named():
    model = subject("llama_grouped").model
    tokens = random_tokens(2, 6)
    past = model.trace(tokens).past()
    k, v = past[0]
    wrong = [
        (glassformer.ShapeError, "of 3 layers; found 2", past[:2]),
        (glassformer.ShapeError, "every layer; found none", []),
        (
            glassformer.ShapeError,
            r"layer 0, values: expected shape \[batch, past_pos, 2, 8\]",
            [(k, v[:, :3]), *past[1:]],
        ),
        (glassformer.ShapeError, "layer 1, keys", [past[0], (k.transpose(1, 2), v), past[2]]),
        (glassformer.ShapeError, "layer 0, keys", [(k[:, :0], v[:, :0])] * 3),
        (glassformer.ShapeError, "of 2 sequences; found 1", [(k[:1], v[:1])] * 3),
        (glassformer.InputError, "layer 2, keys: expected a dense tensor of floating", [*past[:2], (k.long(), v)]),
        (glassformer.InputError, "list with \\(keys, values\\)", [k, k, v]),
    ]
    for kind, text, given in wrong:
        with pytest.raises(kind, match=text):
            model.trace(tokens, past=given)
    for name in ("attention_mask", "positions"):
        with pytest.raises(glassformer.ShapeError, match=rf"{name}: expected shape \[2, 12\]"):
            model.trace(tokens, past=past, **{name: torch.ones(2, 6)})
    with pytest.raises(glassformer.InputError, match="50 tokens; the model's context is 48"):
        model.trace(random_tokens(2, 44), past=past)
    with pytest.raises(glassformer.InputError, match="the prompt has no tokens"):
        model.trace(tokens[:, :0], past=past)
    with pytest.raises(glassformer.InputError, match="past need prompts of equal length"):
        model.trace([[1], [2, 3]], past=past)


def test_generation_after_a_past_goes_on_as_after_the_whole():
    model = subject("llama_grouped").model
    tokens = random_tokens(1, 9)
    core = glassformer._core
    ids = []
    for trace in (model.trace(tokens), model.trace(tokens[:, 4:], past=past_of(model.trace(tokens), 4))):
        seen = []
        hooks = [("resid_post1", lambda value, call, seen=seen: seen.append((call.begin, call.end)), [])]
        edits = [("k1", torch.tensor(0.5), None, [2]), ("z1", torch.tensor(0.25), np.s_[:, [6 - trace.begin]], [0])]
        run = core.Generation([trace.core], 6, glassformer.Sampler().core(), None, [], [], edits, hooks)
        while not run.done():
            run.step()
        assert seen == [(trace.begin, 9), *((end, end + 1) for end in range(9, 14))]
        ids.append(run.results()[0].ids)
    assert ids[0] == ids[1] and len(ids[0]) == 6


# Windows.


def test_windows(tiny):
    trace = tiny.model.trace(random_tokens(2, 7))
    window = trace.at([5, -7, 5, 2])
    assert torch.equal(window["q1"], trace["q1"][:, [5, 0, 5, 2]])
    assert torch.equal(window["pattern1"], trace["pattern1"][:, :, [5, 0, 5, 2]])
    with pytest.raises(glassformer.InputError, match="index 5 of axis 'pos' is given twice"):
        window["resid_pre1"] = 0.0
    value = torch.randn(2, 3, tiny.model.config.d_model, dtype=torch.float64)
    trace.at([5, 0, -3])["resid_pre1"] = value
    assert torch.equal(trace["resid_pre1"][:, [5, 0, 4]], value)
    last = trace.at([-1, 2])
    trace.truncate(5)
    for use in (lambda: last["q1"], lambda: last.set("q1", 0)):
        with pytest.raises(glassformer.InputError, match="position 6 is outside the trace's 5 positions"):
            use()
    for positions in ([5], [-6]):
        with pytest.raises(glassformer.InputError, match="outside the trace's 5 positions"):
            trace.at(positions)
    with pytest.raises(glassformer.InputError, match="no positions"):
        trace.at([]).read("q1")
    trace.append([[1, 2], [3, 4]])
    assert torch.equal(last["q1"], trace["q1"][:, [6, 2]])


def test_windows_of_a_trace_with_a_past():
    model = subject("mistral_window").model
    tokens = random_tokens(1, 8)
    whole = model.trace(tokens)
    trace = model.trace(tokens[:, 3:], past=past_of(whole, 3))
    assert_close(trace.at([-1, 3])["z2"], whole["z2"][:, [7, 3]], EXACT)
    assert_close(trace.at([1, 6])["rot_k1"], whole["rot_k1"][:, [1, 6]], EXACT)
    trace.at([1, 6])["k1"] = 0.5
    whole.at([1, 6])["k1"] = 0.5
    # Of the whole trace the edit changes the second layer's keys at 1 as well: those are given here.
    assert_close(trace["k1"], whole["k1"], EXACT)
    assert_close(trace["z1"], whole["z1"][:, 3:], EXACT)


# Masks and positions given.


def as_additive(allowed):
    """`batch query_pos key_pos` as the mask that `transformers` adds to the scores."""
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -1e30)[:, None]


def causal(mask, window=None):
    """Which keys each query sees, with padding: `batch query_pos key_pos`."""
    query, key = torch.arange(mask.shape[1])[:, None], torch.arange(mask.shape[1])
    order = (key <= query) & (key > query - (window or mask.shape[1]))
    return order & mask.bool()[:, None]


def test_left_padding_append_and_truncate_as_transformers(tiny):
    lengths, prompt, end = (3, 6), 6, 10
    tokens = random_tokens(2, end)
    mask = torch.tensor([[0] * (prompt - length) + [1] * (length + end - prompt) for length in lengths])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    window = getattr(tiny.reference.config, "sliding_window", None)

    def check(trace, tokens):
        count = tokens.shape[1]
        real = mask[:, :count].bool()
        allowed = as_additive(causal(mask[:, :count], window))
        with torch.no_grad():
            expected = tiny.reference(tokens, attention_mask=allowed, position_ids=positions[:, :count])
        assert_close(trace.logits[real], expected.logits[real], 1e-6)
        for row, length in enumerate(lengths):  # And as each prompt alone.
            alone = tiny.model.trace(tokens[row, prompt - length :])
            assert_close(trace.logits[row, prompt - length :], alone.logits[0], EXACT)

    given = {"attention_mask": mask[:, :prompt], "positions": positions[:, :prompt]}
    trace = tiny.model.trace(tokens[:, :prompt], **given)
    check(trace, tokens[:, :prompt])
    trace.append(tokens[:, prompt:8])
    trace.append(tokens[:, 8:])
    assert torch.equal(trace["positions"], positions) and torch.equal(trace["attention_mask"], mask.bool())
    check(trace, tokens)
    trace.truncate(7)
    check(trace, tokens[:, :7])
    other = random_tokens(2, 2, seed=9)
    trace.append(other)
    check(trace, torch.cat([tokens[:, :7], other], dim=1))
    with pytest.raises(glassformer.InputError, match="attention_mask for its 6 positions and can't be cut to 5"):
        trace.truncate(5)


def looking_ahead(length, batch=2, seed=0):
    """A mask that lets some queries see later keys, hides one key from all, and one query from everything."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(batch, length, length, generator=generator) < 0.6
    allowed[0, :, 2] = False
    allowed[1, 3] = False
    allowed[:, 0, length - 1] = True
    return allowed


def check_all(tiny, trace, tokens, mask, edits=None, **options):
    expected = tiny.oracle.run(tokens, edits, mask=mask, **options)
    for name in nodes_of(tiny.model):
        assert_close(trace[name], expected[name], EXACT, name)


def test_a_mask_for_each_query(tiny):
    tokens = random_tokens(2, 7)
    mask = looking_ahead(7)
    check_all(tiny, tiny.model.trace(tokens, attention_mask=mask), tokens, mask)
    trace = tiny.model.trace(tokens, attention_mask=mask.long())
    expected = tiny.oracle.run(tokens, mask=mask)
    assert_close(trace.logits_at(2), expected["logits"][:, 2], EXACT)  # Keys after it are computed for it.
    assert_close(trace.logits_at(-1), expected["logits"][:, -1], EXACT)
    assert torch.equal(trace["attention_mask"], mask.any(1))
    mask[1, 3] = True  # In transformers a query that sees nothing sees everything.
    with torch.no_grad():
        reference = tiny.reference(tokens, attention_mask=as_additive(mask))
    assert_close(tiny.model.trace(tokens, attention_mask=mask).logits, reference.logits, 1e-6)
    plain = causal(torch.ones(2, 7), getattr(tiny.reference.config, "sliding_window", None))
    assert_close(tiny.model.trace(tokens, attention_mask=plain).logits, tiny.model.trace(tokens).logits, EXACT)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_a_mask_for_each_query_below_float32(name):
    tiny = subject(name, torch.bfloat16)
    tokens, mask = random_tokens(2, 7), looking_ahead(7)
    exact = subject(name, torch.float64).model.trace(tokens, attention_mask=mask)
    assert_close(tiny.model.trace(tokens, attention_mask=mask).logits, exact.logits.bfloat16(), 0.1)


@pytest.mark.parametrize("end", [9, 20])
def test_append_after_a_mask_for_each_query(tiny, end):
    tokens, mask = random_tokens(2, end), looking_ahead(6)
    trace = tiny.model.trace(tokens[:, :6], attention_mask=mask)
    trace.logits_at(-1)
    trace.append(tokens[:, 6:8])
    fork = trace.fork()
    trace.append(tokens[:, 8:])
    check_all(tiny, trace, tokens, mask)
    check_all(tiny, fork, tokens[:, :8], mask)
    trace.truncate(7)
    check_all(tiny, trace, tokens[:, :7], mask)


def test_edits_under_a_mask_that_looks_ahead(tiny):
    """What comes before an edited position is stale too; edits of appended positions reach no earlier one."""
    tokens, mask = random_tokens(2, 9), looking_ahead(7)
    trace = tiny.model.trace(tokens[:, :7], attention_mask=mask)
    trace.logits_at(-1)
    d_model, d_head, both = tiny.model.config.d_model, tiny.model.config.d_head, [0, 1]
    kv_heads = tiny.model.config.n_kv_heads
    places = {
        "blocks.1.hook_resid_pre": ([both, [5], list(range(d_model))], 0.3),
        "blocks.0.attn.hook_k": ([both, [6], [1], list(range(d_head))], -0.4),
        "blocks.1.attn.hook_v": ([both, [4], list(range(kv_heads)), [0, 2]], 0.7),
        "blocks.2.attn.hook_q": ([both, [3], [0], [1]], 2.0),
        "blocks.1.attn.hook_pattern": ([both, [2], [3], [0, 1, 4]], 0.3),
        "blocks.2.attn.hook_attn_scores": ([both, [0], [5], [1, 6]], 0.1),
        "attention_mask": ([both, [1]], False),
        "hook_tokens": ([[0], [6]], 3),
    }
    edits = {}
    for name, (region, value) in places.items():
        trace.set(name, value, tuple(region))
        alone = tiny.model.trace(tokens[:, :7], attention_mask=mask)
        alone.logits_at(1)
        alone.set(name, value, tuple(region))
        check_all(tiny, alone, tokens[:, :7], mask, {name: [(region, value)]})
        edits[name] = [(region, value)]
        check_all(tiny, trace, tokens[:, :7], mask, edits)
    trace.append(tokens[:, 7:])
    before = trace.read("logits", range(7))
    check_all(tiny, trace, tokens, mask, edits)
    trace.set("resid_mid0", 0.5, np.s_[:, 8])
    edits["blocks.0.hook_resid_mid"] = [([both, [8], list(range(d_model))], 0.5)]
    trace.reset_work()
    check_all(tiny, trace, tokens, mask, edits)
    assert torch.equal(trace.read("logits", range(7)), before)
    assert trace.work()["blocks.1.hook_mlp_out"] == 2
    for name in list(edits):
        trace.unset(name)
    check_all(tiny, trace, tokens, mask)


def test_a_mask_that_looks_one_key_ahead(tiny):
    tokens = random_tokens(2, 7)
    mask = (torch.arange(7) <= torch.arange(7)[:, None] + 1).repeat(2, 1, 1)
    trace = tiny.model.trace(tokens, attention_mask=mask)
    trace.logits_at(-1)
    trace.set("v2", 0.5, np.s_[:, 4, 1])
    edits = {"blocks.2.attn.hook_v": [([[0, 1], [4], [1], list(range(tiny.model.config.d_head))], 0.5)]}
    check_all(tiny, trace, tokens, mask, edits)
    rest = tiny.model.trace(tokens[:, 3:], past=past_of(tiny.model.trace(tokens), 3), attention_mask=mask[:, 3:])
    rest.logits_at(4)
    rest.set("v2", 0.5, np.s_[:, 6, 1])
    again = rest.fork()
    again.set("v2", rest["v2"])
    assert_close(again.logits, rest.logits, EXACT)
    expected = torch.einsum("bhqk,bkhe->bqhe", rest["pattern2"], heads_of(tiny, rest["v2"]))
    assert_close(rest["z2"], expected, EXACT)


def heads_of(tiny, x):
    return x.repeat_interleave(tiny.model.config.n_heads // tiny.model.config.n_kv_heads, dim=2)


def test_hooks_under_a_mask_that_looks_ahead(tiny):
    tokens, mask = random_tokens(2, 8), looking_ahead(6)
    trace = tiny.model.trace(tokens[:, :6], attention_mask=mask)
    trace.logits_at(-1)

    def change(value, number=0):
        del number
        value = value.clone()
        value[:, -1] *= 2
        return value

    trace.hook("resid_pre1", lambda value, call: change(value))
    trace.set("z0", 0.25, np.s_[:, 4])
    d_head = tiny.model.config.d_head
    edits = {
        "blocks.1.hook_resid_pre": [change],
        "blocks.0.attn.hook_z": [([[0, 1], [4], list(range(4)), list(range(d_head))], 0.25)],
    }
    check_all(tiny, trace, tokens[:, :6], mask, edits)
    trace.append(tokens[:, 6:])
    check_all(tiny, trace, tokens, mask, edits, segments=[(0, 6), (6, 8)])


def test_sweep_under_a_mask_that_looks_ahead(tiny):
    tokens, mask = random_tokens(2, 6), looking_ahead(6)
    clean = tiny.model.trace(tokens, attention_mask=mask)
    other = tiny.model.trace(tokens, attention_mask=looking_ahead(6, seed=1))
    plain = tiny.model.trace(tokens)
    forks = []
    for position in range(6):
        forks.append(clean.fork())
        forks[-1].set("resid_pre1", 0.2, np.s_[:, position])
    found = glassformer.read_all([*forks, clean, other, plain], "logits", [0, -1])
    region = [[0, 1], [0], list(range(tiny.model.config.d_model))]
    for position, value in enumerate(found[:6]):
        region[1] = [position]
        expected = tiny.oracle.run(tokens, {"blocks.1.hook_resid_pre": [(region, 0.2)]}, mask=mask)
        assert_close(value, expected["logits"][:, [0, -1]], EXACT, str(position))
    for value, own in zip(found[6:], (mask, looking_ahead(6, seed=1), None), strict=True):
        assert_close(value, tiny.oracle.run(tokens, mask=own)["logits"][:, [0, -1]], EXACT)


def test_a_mask_for_each_query_after_a_past_and_from_a_node(tiny):
    tokens = random_tokens(2, 9)
    mask = looking_ahead(8)
    mask[:, :3] = torch.ones(3, 8, dtype=torch.bool).tril()
    whole = tiny.model.trace(tokens[:, :8], attention_mask=mask)
    trace = tiny.model.trace(tokens[:, 3:8], past=past_of(whole, 3), attention_mask=mask[:, 3:])
    expected = tiny.oracle.run(tokens[:, :8], mask=mask)
    for name in nodes_of(tiny.model):
        if name != "attention_mask":  # Keys that no query sees: of fewer queries, maybe more.
            assert_close(trace[name], at_available(expected[name], name, 3), EXACT, name)
    node = "blocks.1.hook_resid_pre"
    value = some_values(tiny.model, node, 2, 8)
    begun = tiny.model.trace_from(node, value, attention_mask=mask)
    begun.logits_at(-1)
    begun.set("v1", 0.5, np.s_[:, 7, 0, 1])
    edits = {node: constant(value), "blocks.1.attn.hook_v": [([[0, 1], [7], [0], [1]], 0.5)]}
    assert_close(begun.logits, tiny.oracle.run(tokens[:, :8], edits, mask=mask)["logits"], EXACT)


def test_wrong_masks_are_named():
    model = subject("llama_grouped").model
    tokens = random_tokens(2, 6)
    expected = r"expected shape \[2, 6\] \(batch key_pos\) or \[2, 6, 6\] \(batch query_pos key_pos\)"
    for shape in ((2, 5), (1, 6, 6), (2, 6, 5), (2, 1, 6, 6), (3, 6)):
        with pytest.raises(glassformer.ShapeError, match=expected):
            model.trace(tokens, attention_mask=torch.ones(shape))
    for mask in (torch.zeros(2, 6, 6).masked_fill(~looking_ahead(6), -1e9), torch.full((2, 6), 2)):
        with pytest.raises(glassformer.InputError, match="expected 1 where a key may be seen and 0 elsewhere"):
            model.trace(tokens, attention_mask=mask)


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
