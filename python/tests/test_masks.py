"""Masks and positions given, with padding or a row of keys for each query, against the oracle and `transformers`."""

import numpy as np
import pytest
import torch
from helpers import assert_close, at_available, constant, nodes_of, past_of, some_values, subject
from tiny_models import random_tokens

import glassformer

KINDS = ["gpt2", "llama_grouped", "mistral_window", "llama_dynamic", "llama_longrope"]
EXACT = 1e-10


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


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
