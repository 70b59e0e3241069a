"""Traces that begin with a past: against one pass over everything, the oracle, in which the past is constants, and
`transformers`. And windows, of these and other traces."""

import numpy as np
import pytest
import torch
from experts_model import experts_subject
from helpers import assert_close, at_available, constant, everywhere, nodes_of, past_of, subject
from tiny_models import random_tokens

import glassformer

KINDS = ["gpt2", "llama_grouped", "mistral_window", "llama_dynamic", "llama_longrope"]
EXACT = 1e-10


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


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


def test_keys_of_a_past_come_out_of_their_norm():
    tiny = experts_subject()
    tokens = random_tokens(2, 9)
    whole, expected = tiny.model.trace(tokens), tiny.oracle.run(tokens)
    for layer, (k, v) in enumerate(whole.past()):
        assert_close(k, expected[f"blocks.{layer}.attn.k_norm.hook_out"], EXACT)
        assert_close(v, expected[f"blocks.{layer}.attn.hook_v"], EXACT)
    rest = tiny.model.trace(tokens[:, 5:], past=[(k[:, :5], v[:, :5]) for k, v in whole.past()])
    assert_close(rest.logits, expected["logits"][:, 5:], EXACT)
    assert_close(rest["k2"], expected["blocks.2.attn.hook_k"][:, 5:], EXACT)
    assert rest["k_norm.hook_out", 2].shape[1] == 9
    with pytest.raises(glassformer.UnavailableError, match=r"blocks.2.attn.hook_k"):
        rest.read("k2", positions=[4])


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
