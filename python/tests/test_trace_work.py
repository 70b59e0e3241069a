"""What is computed: only what a read needs, only what an edit made stale, only the new positions after an append."""

import collections

import numpy as np
import pytest
import torch
from helpers import assert_close, number_of, subject
from tiny_models import random_tokens

import glassformer

KINDS = ["gpt2", "llama_grouped"]


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


def layers_of(work):
    return {number_of(name) for name in work if number_of(name) is not None}


def test_reading_an_early_node_computes_only_what_is_before_it(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("resid_post1")
    assert layers_of(trace.work()) == {0, 1} and "logits" not in trace.work()
    trace.reset_work()
    trace.read("resid_mid2")
    assert layers_of(trace.work()) == {2}
    assert not any(".mlp." in name or ".ln2." in name for name in trace.work())


def test_nothing_is_computed_twice(tiny):
    trace = tiny.model.trace(random_tokens(2, 6), keep="all")
    trace.read("logits")
    once = trace.work()
    trace.read("logits")
    trace.read("resid_pre2")
    trace.read("z0", [3])
    assert trace.work() == once
    assert all(rows == 12 for name, rows in once.items()), once


def test_fork_with_an_edit_computes_nothing_below_it(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("logits")
    trace.reset_work()
    fork = trace.fork()
    fork["resid_mid1"] = 0.5
    fork.read("logits")
    work = fork.work()
    assert layers_of(work) == {1, 2}
    assert not any("blocks.1.attn" in name or "blocks.1.ln1" in name for name in work)


def test_edit_at_a_position_computes_positions_from_there(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("logits")
    trace.reset_work()
    fork = trace.fork()
    fork.set("resid_pre1", 0.5, np.s_[:, 4])
    fork.read("logits")
    assert set(fork.work().values()) == {2}, fork.work()


def test_edit_that_only_later_positions_see(tiny):
    """Keys and values of the last position: nothing but its own row is stale."""
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("logits")
    trace.reset_work()
    fork = trace.fork()
    fork.set("v1", 0.5, np.s_[:, 5])
    fork.read("logits")
    work = fork.work()
    assert set(work.values()) == {1}
    assert "blocks.1.attn.hook_q" not in work and "blocks.1.attn.hook_k" not in work


def test_appending_a_token_computes_one_position(tiny):
    trace = tiny.model.trace(random_tokens(2, 9))
    trace.read("logits")
    for _ in range(3):
        trace.reset_work()
        trace.append([[5], [6]])
        trace.logits_at(-1)
        work = trace.work()
        assert set(work.values()) == {2}, work  # A row for each of the two sequences.
        assert layers_of(work) == {0, 1, 2}


def test_last_logits_need_one_row_of_the_last_block(tiny):
    trace = tiny.model.trace(random_tokens(1, 9))
    trace.logits_at(-1)
    work = trace.work()
    for name in ("attn.hook_q", "attn.hook_z", "hook_attn_out", "mlp.hook_pre", "hook_mlp_out", "hook_resid_post"):
        assert work[f"blocks.2.{name}"] == 1, name
    for name in ("attn.hook_k", "attn.hook_v", "ln1.hook_out"):
        assert work[f"blocks.2.{name}"] == 9, name
    assert work["logits"] == work["unembed.hook_out"] == work["ln_final.hook_out"] == 1
    assert work["blocks.1.hook_resid_post"] == 9


def test_skipped_nodes_cost_nothing_until_read(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("logits")
    skipped = [
        "attn.hook_attn_scores",
        "attn.hook_pattern",
        "attn.hook_result",
        "ln1.hook_scale",
        "ln1.hook_normalized",
    ]
    skipped += ["hook_q_input", "hook_k_input", "hook_v_input"]
    assert not any(f"blocks.1.{name}" in trace.work() for name in skipped)
    trace.reset_work()
    trace.read("pattern1", [3])
    assert trace.work() == {"blocks.1.attn.hook_attn_scores": 1, "blocks.1.attn.hook_pattern": 1}


def test_activation_of_a_gated_mlp_costs_nothing_until_read_or_edited():
    trace = subject("llama_grouped").model.trace(random_tokens(1, 6))
    trace.read("logits")
    assert not any("hook_act" in name for name in trace.work())
    trace.reset_work()
    trace.read("act1", [5])
    assert trace.work() == {"blocks.1.mlp.hook_act": 1}
    trace.reset_work()
    trace.set("act1", 0.5, np.s_[:, 5, 1])
    trace.read("logits")
    work = trace.work()
    assert work["blocks.1.mlp.hook_post"] == 1 and not any("hook_act" in name for name in work)


def test_edited_head_opens_its_own_layer_only(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.read("logits")
    trace.reset_work()
    trace.set("pattern1", 0.5, np.s_[:, 0, 3, 1])
    trace.read("logits")
    work = trace.work()
    opened = {name for name in work if name.endswith(("hook_pattern", "hook_attn_scores"))}
    assert all(number_of(name) == 1 for name in opened)
    assert work["blocks.2.hook_resid_post"] == 3


def test_sweep_counts_only_stale_rows(tiny):
    clean = tiny.model.trace(random_tokens(1, 8))
    clean.read("logits")
    clean.reset_work()
    forks = []
    for position in range(8):
        forks.append(clean.fork())
        forks[-1].set("resid_pre2", 0.1, np.s_[:, position])
    glassformer.read_all(forks, "logits")
    stale = sum(8 - position for position in range(8))
    work = clean.work()
    assert layers_of(work) == {2}
    assert work["blocks.2.mlp.hook_pre"] == work["logits"] == stale


def test_unset_returns_to_what_was_there(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    clean = trace.logits
    trace["attn_out1"] = 0.0
    trace.read("logits")
    trace.reset_work()
    trace.unset("attn_out1")
    assert torch.equal(trace.logits, clean) and trace.work() == {}


def test_equal_numbers_upstream_of_computed_values_cost_nothing(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    logits = trace.logits
    own = trace["mlp_out0"]
    trace.reset_work()
    fork = trace.fork()
    fork.set("mlp_out0", own[:, 2:4], np.s_[:, 2:4])
    assert torch.equal(fork.logits, logits) and trace.work() == {}


# The counter itself, judged by torch's profiler.

LINEAR = {"aten::linear", "mkldnn::_linear_pointwise", "aten::mkldnn_linear"}


def rows_multiplied(run, d_in, d_out):
    """The rows of all linear layers of that shape while `run` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run()
    rows = 0
    for event in profile.events():
        shapes = event.input_shapes
        parent = event.cpu_parent
        while parent is not None and parent.name not in LINEAR:
            parent = parent.cpu_parent
        if event.name not in LINEAR or parent is not None or len(shapes) < 2 or list(shapes[1]) != [d_out, d_in]:
            continue
        rows += int(np.prod(shapes[0][:-1]))
    return rows


@pytest.mark.parametrize("name", ["gpt2_inner", "llama_grouped"])
def test_profiler_agrees_with_the_counter(name):
    tiny = subject(name)
    config = tiny.model.config
    trace = tiny.model.trace(random_tokens(1, 9))
    counted = collections.Counter()

    def check(run):
        trace.reset_work()
        rows = rows_multiplied(run, config.d_model, config.d_mlp)
        nodes = ("mlp.hook_pre", "mlp.hook_pre_linear")
        work = sum(count for node, count in trace.work().items() if node.split(".", 2)[-1] in nodes)
        assert rows == work
        counted[rows] += 1

    each = 2 if config.gated_mlp else 1
    check(lambda: trace.logits_at(-1))
    check(lambda: trace.logits)
    check(lambda: trace.logits)
    fork = trace.fork()
    fork.set("resid_pre1", 0.3, np.s_[:, 6])
    check(lambda: fork.logits)
    fork.append([4])
    check(lambda: fork.logits_at(-1))
    check(lambda: fork.read("resid_mid2"))
    assert counted == {19 * each: 1, 8 * each: 1, 6 * each: 1, 3 * each: 1, 0: 2}


def test_count_is_of_the_family(tiny):
    trace = tiny.model.trace(random_tokens(1, 4))
    fork = trace.fork()
    trace.read("resid_post0")
    assert fork.work() == trace.work() != {}
    assert_close(fork["resid_post0"], trace["resid_post0"], 0)
