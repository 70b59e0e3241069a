"""Appending, forking, many traces at once, and windows: the same numbers as one pass each."""

import numpy as np
import pytest
import torch
from helpers import assert_close, error, everywhere, shape_of, subject
from tiny_models import random_tokens

import glassformer

EXACT = 1e-10
KINDS = ["gpt2", "llama_grouped", "mistral_window"]
SCALED = ["llama_dynamic", "llama_longrope"]


def names_of(model):
    return [node.name for node in model.nodes()]


# Rule 13: append equals one pass.


@pytest.mark.parametrize("name", KINDS + SCALED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_append_equals_one_pass(name, dtype):
    tiny = subject(name, dtype)
    tolerance = EXACT if dtype == torch.float64 else 1e-5
    tokens = random_tokens(2, 22)
    trace = tiny.model.trace(tokens[:, :5])
    trace.logits_at(-1)
    for begin, end in ((5, 6), (6, 10), (10, 11), (11, 16), (16, 17), (17, 22)):
        trace.append(tokens[:, begin:end])
        whole = tiny.model.trace(tokens[:, :end])
        assert_close(trace.logits_at(-1), whole.logits_at(-1), tolerance, f"{end} tokens")
    for node in names_of(tiny.model):
        assert_close(trace[node], whole[node], tolerance, node)
    expected = tiny.oracle.run(tokens)["logits"]
    assert_close(trace.logits, expected, max(tolerance, 1e-10))


@pytest.mark.parametrize("name", KINDS + SCALED)
def test_append_without_reading_in_between(name):
    tiny = subject(name)
    tokens = random_tokens(1, 20)
    trace = tiny.model.trace(tokens[:, :3])
    for position in range(3, 20):
        trace.append(tokens[0, position : position + 1].tolist())
    assert_close(trace.logits, tiny.oracle.run(tokens)["logits"], EXACT)


@pytest.mark.parametrize("name", SCALED)
def test_fork_of_a_shorter_sequence_keeps_its_own_angles(name):
    tiny = subject(name)
    tokens = random_tokens(1, 20)
    short = tiny.model.trace(tokens[:, :9])
    before = short.logits
    long = short.fork()
    long.append(tokens[:, 9:])
    assert_close(long.logits, tiny.oracle.run(tokens)["logits"], EXACT)
    assert torch.equal(short.logits, before)
    short.append(tokens[:, 9:10])
    assert_close(short.logits, tiny.oracle.run(tokens[:, :10])["logits"], EXACT)


@pytest.mark.parametrize("name", KINDS)
def test_edits_stay_where_they_were_made(name):
    """An edit of a whole node covers the positions that there were; the later ones are computed."""
    tiny = subject(name)
    tokens = random_tokens(2, 9)
    trace = tiny.model.trace(tokens[:, :6])
    trace["resid_pre1"] = 0.25
    trace.set("pattern2", 0.1, np.s_[:, 1, 3])
    trace.logits_at(-1)
    trace.append(tokens[:, 6:])
    edits = {
        "blocks.1.hook_resid_pre": [([[0, 1], list(range(6)), list(range(tiny.model.config.d_model))], 0.25)],
        "blocks.2.attn.hook_pattern": [([[0, 1], [1], [3], list(range(6))], 0.1)],
    }
    expected = tiny.oracle.run(tokens, edits)
    for node in names_of(tiny.model):
        assert_close(trace[node], expected[node], EXACT, node)


@pytest.mark.parametrize("name", KINDS + SCALED)
def test_forks_that_append_different_tokens(name):
    tiny = subject(name)
    prompt = random_tokens(1, 7)
    trunk = tiny.model.trace(prompt)
    trunk.logits_at(-1)
    ends = [random_tokens(1, length, seed=length) for length in (1, 4, 9)]
    forks = []
    for end in ends:
        fork = trunk.fork()
        fork.append(end)
        forks.append(fork)
    again = forks[1].fork()
    again.append([8, 9])
    wanted = [torch.cat([prompt, end], dim=1) for end in ends]
    wanted.append(torch.cat([wanted[1], torch.tensor([[8, 9]])], dim=1))
    forks.append(again)
    for fork, tokens in zip(forks, wanted, strict=True):
        assert torch.equal(fork.tokens, tokens)
        assert_close(fork.logits, tiny.oracle.run(tokens)["logits"], EXACT)
    assert_close(trunk.logits, tiny.oracle.run(prompt)["logits"], EXACT)
    for found, tokens in zip(glassformer.read_all(forks, "logits", [-1]), wanted, strict=True):
        assert_close(found[:, 0], tiny.oracle.run(tokens)["logits"][:, -1], EXACT)


def test_append_continues_the_positions_and_the_mask():
    tiny = subject("llama_grouped")
    tokens = random_tokens(2, 8)
    positions = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    trace = tiny.model.trace(tokens[:, :5], attention_mask=mask, positions=positions)
    trace.logits_at(-1)
    trace.append(tokens[:, 5:])
    positions = torch.cat([positions, positions[:, -1:] + torch.arange(1, 4)], dim=1)
    mask = torch.cat([mask, torch.ones(2, 3, dtype=torch.int64)], dim=1)
    assert torch.equal(trace["positions"], positions)
    expected = tiny.oracle.run(tokens, mask=mask, positions=positions)["logits"]
    assert_close(trace.logits, expected, EXACT)


# Forks.


@pytest.mark.parametrize("name", KINDS)
def test_forks_share_what_either_computes(name):
    model = subject(name).model
    trace = model.trace(random_tokens(1, 6))
    fork = trace.fork()
    logits = fork.logits
    trace.reset_work()
    assert torch.equal(trace.logits, logits) and torch.equal(trace.fork().fork().logits, logits)
    assert trace.work() == {}


@pytest.mark.parametrize("name", KINDS)
def test_edits_of_a_fork_are_its_own(name):
    tiny = subject(name)
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    clean = trace.logits
    fork = trace.fork()
    fork["attn_out1"] = 0.0
    assert not torch.equal(fork.logits, clean)
    assert torch.equal(trace.logits, clean) and trace.edited == []
    deeper = fork.fork()
    deeper.unset("attn_out1")
    assert torch.equal(deeper.logits, clean)
    assert fork.edited == ["blocks.1.hook_attn_out"]
    fork.unset("attn_out1")
    assert torch.equal(fork.logits, clean)


def test_forks_outlive_their_parent():
    tiny = subject("gpt2")
    tokens = random_tokens(1, 5)
    trace = tiny.model.trace(tokens)
    fork = trace.fork()
    fork["z0"] = 0.0
    del trace
    expected = tiny.oracle.run(tokens, {"blocks.0.attn.hook_z": [(everywhere((1, 5, 4, 6)), 0.0)]})
    assert_close(fork.logits, expected["logits"], EXACT)


# Rule 11: many traces, one computation.


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("node", ["logits", "blocks.2.attn.hook_pattern", "blocks.1.hook_resid_post"])
def test_sweep_equals_each_fork_alone(name, node):
    tiny = subject(name)
    tokens = random_tokens(2, 6)
    clean = tiny.model.trace(tokens)
    sites = [(layer, position) for layer in range(3) for position in range(6)]

    def forks():
        made = []
        for layer, position in sites:
            made.append(clean.fork())
            made[-1].set(("resid_pre", layer), 0.2, np.s_[:, position])
        pattern = clean.fork()
        pattern.set("pattern1", 0.3, np.s_[:, 0, 2, 5])
        twice = made[4].fork()
        twice["mlp_out1"] = 0.1
        return [*made, pattern, twice, clean, clean.fork()]

    together = glassformer.read_all(forks(), node)
    for index, (found, fork) in enumerate(zip(together, forks(), strict=True)):
        assert_close(found, fork[node], EXACT, str(index))
    last = glassformer.read_all(forks(), node, [-1])
    axis = 2 if node.endswith("pattern") else 1
    for found, whole in zip(last, together, strict=True):
        assert_close(found, whole.narrow(axis, 5, 1), EXACT)


def test_read_all_of_unrelated_traces():
    tiny = subject("llama_grouped")
    traces = [tiny.model.trace(random_tokens(2 if length == 4 else 1, length, seed=length)) for length in (4, 1, 9, 4)]
    traces[2].set("z0", 0.0, np.s_[:, :, 1])
    for found, trace in zip(glassformer.read_all(traces, "logits"), traces, strict=True):
        alone = tiny.model.trace(trace.tokens)
        for name in trace.edited:
            alone.set("z0", 0.0, np.s_[:, :, 1])
            assert name == "blocks.0.attn.hook_z"
        assert_close(found, alone.logits, EXACT)
    assert glassformer.read_all([], "logits") == []
    with pytest.raises(glassformer.InputError, match="different models"):
        glassformer.read_all([traces[0], subject("gpt2").model.trace([1])], "logits")


# Windows.


@pytest.mark.parametrize("name", KINDS)
def test_windows_read_and_edit_some_positions(name):
    tiny = subject(name)
    tokens = random_tokens(2, 7)
    trace = tiny.model.trace(tokens)
    window = trace.at([2, -1])
    assert torch.equal(window["z1"], trace["z1"][:, [2, 6]])
    assert torch.equal(window["pattern1"], trace["pattern1"][:, :, [2, 6]])
    value = torch.randn(2, 2, tiny.model.config.d_model, dtype=torch.float64)
    window["resid_mid1"] = value
    assert torch.equal(trace["resid_mid1"][:, [2, 6]], value)
    shape = shape_of(next(n for n in tiny.model.nodes() if n.name == "blocks.1.hook_resid_mid"), 2, 7)
    region = everywhere(shape)
    region[1] = [2, 6]
    expected = tiny.oracle.run(tokens, {"blocks.1.hook_resid_mid": [(region, value)]})
    assert_close(trace.logits, expected["logits"], EXACT)
    assert torch.equal(trace.at(slice(1, 4)).read("q2"), trace["q2"][:, 1:4])
    trace.append([[3], [4]])
    assert torch.equal(window["q2"], trace["q2"][:, [2, 6]])  # The positions that it was made for.
    assert torch.equal(trace.at(-1)["q2"], trace["q2"][:, [7]])


# Batches.


def test_batch_edits_and_forks():
    tiny = subject("llama_grouped")
    prompts = [random_tokens(length, seed=length).tolist() for length in (3, 6, 4)]
    batch = tiny.model.trace(prompts)
    fork = batch.fork()
    fork.set("z1", 0.5, np.s_[:, -2, 1])  # The position before the last of each, as padding stands left.
    value = torch.randn(3, 6, tiny.model.config.d_model, dtype=torch.float64)
    fork["attn_out0"] = value
    for row, prompt in enumerate(prompts):
        alone = tiny.model.trace(prompt)
        assert_close(batch.logits[row, 6 - len(prompt) :], alone.logits[0], EXACT)
        alone.set("z1", 0.5, np.s_[:, -2, 1])
        alone["attn_out0"] = value[row, 6 - len(prompt) :]
        assert_close(fork.logits[row, 6 - len(prompt) :], alone.logits[0], EXACT)
        assert_close(fork.traces[row]["q2"], alone["q2"], EXACT)
    fork.unset("z1")
    fork.unset("attn_out0")
    assert_close(fork.logits, batch.logits, EXACT)
    assert error(fork.read_at("resid_post2", -1), batch["resid_post2"][:, -1:]) <= EXACT


def test_batch_append():
    tiny = subject("llama_grouped")
    batch = tiny.model.trace([[1, 2, 3], [4]])
    batch.logits_at(-1)
    batch.append([[5], [6, 7]])
    for trace, ids in zip(batch.traces, ([1, 2, 3, 5], [4, 6, 7]), strict=True):
        assert trace.tokens.tolist() == [ids]
        assert_close(trace.logits, tiny.oracle.run(torch.tensor([ids]))["logits"], EXACT)
    with pytest.raises(glassformer.ShapeError, match="2 prompts"):
        batch.append([[1]])


# Rule 10: keeping changes cost, never results.


@pytest.mark.parametrize("name", KINDS)
def test_keeping_changes_no_result(name):
    tiny = subject(name)
    tokens = random_tokens(2, 9)
    found = []
    for options in ({"keep": "all"}, {"keep": "needed"}, {"budget_bytes": 1}, {}):
        trace = tiny.model.trace(tokens[:, :6], **options)
        trace.logits_at(-1)
        trace.set("z1", 0.2, np.s_[:, 2])
        values = [trace[node] for node in ("logits", "resid_pre2", "pattern1", "post1")]
        fork = trace.fork()
        fork["mlp_out0"] = 0.0
        values += glassformer.read_all([trace, fork], "resid_post2")
        fork.append(tokens[:, 6:])
        values += [fork[node] for node in names_of(tiny.model)]
        found.append(values)
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            assert_close(value, expected, EXACT)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "llama_dynamic"])
def test_truncate(name):
    tiny = subject(name)
    tokens = random_tokens(1, 9)
    trace = tiny.model.trace(tokens[:, :5])
    trace.append(tokens[:, 5:])
    trace.set("resid_pre1", 0.5, region=np.s_[:, [3, 7]])
    whole = trace.fork()
    before = whole.logits
    trace.truncate(6)
    assert (trace.length, trace.n_segments, whole.length) == (6, 2, 9)
    alone = tiny.model.trace(tokens[:, :6])
    alone.set("resid_pre1", 0.5, region=np.s_[:, 3])
    assert_close(trace.logits, alone.logits, 1e-10)
    other = random_tokens(1, 4, seed=8)
    for each in (trace, alone):
        each.append(other)
    assert_close(trace.logits, alone.logits, 1e-10)
    assert torch.equal(whole.logits, before)
    for length in (0, 11):
        with pytest.raises(glassformer.InputError, match="can be cut to 1 to 10"):
            trace.truncate(length)
