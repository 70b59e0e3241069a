"""Many steps, each with edits or hooks, and many forks: the numbers against the oracle, and what is held against the
budget."""

import numpy as np
import pytest
import torch
from helpers import assert_close, subject
from test_trace_random import LONGEST, Session, go_through
from tiny_models import N_CTX, random_tokens

import glassformer


class LongSession(Session):
    """Token after token with something put at the newest position, so that rows of one node lie in many lineages."""

    def __init__(self, name, seed):
        super().__init__(name, seed)
        self.longest = LONGEST.get(name, 40)

    def step(self):
        if self.random.random() < 0.004 or len(self.pairs) > 5:
            self.start()
        choices = [self.append] * 12 + [self.set] * 6 + [self.read] * 4 + [self.hook, self.fork, self.truncate]
        choices += [self.read_all, self.unset, self.drop, self.run]
        operation = self.random.choice(choices)
        index = self.random.randrange(len(self.pairs))
        operation(index, self.pairs[index])

    most_appended = 1

    def append(self, index, pair):
        super().append(index, pair)
        if self.random.random() < 0.6:
            self.read(index, pair)

    def truncate(self, index, pair):
        if self.random.random() < 0.3:
            super().truncate(index, pair)

    def some_region(self, shape, rows, first):
        """Mostly at the last position, as the steps of a generation are."""
        region = super().some_region(shape, rows, first)
        if self.random.random() < 0.9:
            region[rows] = [shape[rows] - 1]
        return region


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "mistral_window", "llama_dynamic"])
def test_random_long_traces(name, seed):
    go_through(LongSession(name, seed))


def scaled_reference(reference, tokens, layer, factor):
    """The logits of `transformers` with the output of one block scaled, all at once and without a cache."""

    def scale(_module, _arguments, output):
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    blocks = reference.transformer.h if hasattr(reference, "transformer") else reference.model.layers
    handle = blocks[layer].register_forward_hook(scale)
    try:
        with torch.no_grad():
            return reference(tokens, use_cache=False).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
@pytest.mark.parametrize("way", ["hook", "edit"])
def test_generation_to_the_end_of_the_context_with_a_change_at_every_step(name, way):
    """Each step's numbers are those of one pass over all tokens."""
    tiny = subject(name)
    hooks = [glassformer.StepHook("resid_post1", lambda value, call: value * 1.5)]
    edits = [glassformer.StepEdit("resid_post1", 0.25, np.s_[:, :, 3])]
    options = {"hooks": hooks} if way == "hook" else {"edits": edits}
    found = tiny.model.generate([5, 6, 7], max_new_tokens=1000, stop_tokens=[], **options)
    assert found.finish == "context" and len(found.ids) == N_CTX - 3 + 1
    tokens = torch.tensor([[5, 6, 7, *found.ids[:-1]]])
    if way == "hook":
        expected = scaled_reference(tiny.reference, tokens, 1, 1.5)
    else:
        region = [[0], list(range(N_CTX)), [3]]
        change = {"blocks.1.hook_resid_post": [(region, torch.tensor(0.25, dtype=torch.float64))]}
        expected = tiny.oracle.run(tokens, change)["logits"]
    assert found.ids == expected[0, 2:].argmax(-1).tolist()
    tolerance = 1e-6 if way == "hook" and name == "llama_grouped" else 1e-10  # Llama's norms there are of float32.
    assert_close(found.trace.logits, expected, tolerance)
    fork = found.trace.fork()
    fork.truncate(30)
    fork.append([9])  # Others go on where this one was: its rows are its own.
    fork.run()
    assert_close(found.trace.logits, expected, tolerance)
    found.trace.truncate(40)
    assert_close(found.trace.logits, expected[:, :40], tolerance)


def test_a_step_computes_one_row_of_each_node_at_any_length():
    model = subject("llama_grouped").model
    trace = model.trace([3, 4])
    trace.hook("resid_post0", lambda value, call: value * 1.1)
    trace.hook("v1", lambda value, call: value + 0.1)
    trace.logits_at(-1)
    for token in range(N_CTX - 2):
        trace.reset_work()
        trace.append([token])
        trace.set("z2", 0.5, np.s_[:, -1, 1])
        trace.logits_at(-1)
        assert set(trace.work().values()) == {1}, trace.length


def test_numbers_that_stand_where_a_query_looks_ahead():
    """An edit at a later position reaches an earlier one, whose own numbers were compared before it was there."""
    tiny = subject("llama_grouped")
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    trace.set("pattern1", 1 / 6)
    own = trace["resid_post2"][:, 2:3]
    trace.set("resid_post2", own, np.s_[:, [2]])  # Changes nothing yet.
    assert torch.equal(trace["resid_post2"][:, 2:3], own)
    trace.set("resid_pre0", 0.3, np.s_[:, 5])
    every = [[0], list(range(4)), list(range(6)), list(range(6))]
    changes = {
        "blocks.1.attn.hook_pattern": [(every, torch.tensor(1 / 6, dtype=torch.float64))],
        "blocks.0.hook_resid_pre": [([[0], [5], list(range(32))], torch.tensor(0.3, dtype=torch.float64))],
        "blocks.2.hook_resid_post": [([[0], [2], list(range(32))], own)],
    }
    expected = tiny.oracle.run(tokens, changes)["blocks.2.hook_resid_post"]
    assert torch.equal(trace["resid_post2"][:, 2:3], own)
    assert_close(trace["resid_post2"], expected, 1e-10)


def test_forks_that_ended_no_longer_count():
    """One fork at a time fits the budget beside the trace: nothing of the trace is ever computed again."""
    model = subject("llama_grouped").model
    trace = model.trace(random_tokens(1, 40), budget_bytes=1_400_000)
    trace.read("logits")
    for number in range(30):
        fork = trace.fork()
        fork.set("resid_pre0", number, np.s_[:, 0])
        fork.read("logits")
        del fork
    trace.reset_work()
    for layer in range(3):
        for node in ("resid_pre", "attn_out", "mlp_out", "q"):
            trace.read((node, layer))
    assert trace.work() == {}
    forks = [trace.fork() for _ in range(30)]
    for number, fork in enumerate(forks):  # All of them at once don't fit.
        fork.set("resid_pre0", number, np.s_[:, 0])
        fork.read("logits")
    trace.reset_work()
    for layer in range(3):
        trace.read(("mlp.hook_pre", layer))
    assert trace.work() != {}


def test_a_hooked_batch_that_is_appended_to_computes_one_row_a_step():
    """Prompts of different lengths: the hook is called once a step, for the new segment only."""
    model = subject("llama_grouped").model
    batch = model.trace([[3, 4], [5, 6, 7]])
    called = []
    batch.hook("resid_post0", lambda value, call: called.append(call.segment) or value * 1.1)
    batch.logits_at(-1)
    for step in range(1, 12):
        for trace in batch.traces:
            trace.reset_work()
            trace.append([step])
        batch.logits_at(-1)
        assert [set(trace.work().values()) for trace in batch.traces] == [{1}, {1}]
    assert called == list(range(12))
    batch.traces[1].set("resid_mid0", 0.5, np.s_[:, 13])  # Of the last segment: the others' inputs are what they were.
    batch.logits_at(-1)
    assert called == [*range(12), 11]
