"""Several threads: a model serves many, a trace and its forks one at a time; functions and values may end anywhere."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import assert_close, subject
from tiny_models import make_model, random_tokens

import glassformer


def everything(model, seed):
    """Reads, edits, hooks, forks, gradients and appends of one trace; numbers that depend on all of them."""
    tokens = random_tokens(1, 7, seed=seed)
    trace = model.trace(tokens, budget_bytes=1)
    trace["z1"][:, :, 1] = 0
    trace.hook("resid_post0", lambda value, call: value * 1.5)
    fork = trace.fork()
    fork["resid_pre2"] += 0.25
    gradient = fork.grad(lambda t: t.logits[0, -1, 3], "resid_pre1")
    trace.append(tokens[:, :3])
    logits = glassformer.read_all([trace, fork], "logits", [-1])
    return torch.cat([gradient.flatten(), *(each.flatten() for each in logits)])


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_threads_with_traces_of_one_model(name):
    model = glassformer.load(make_model(name, torch.float64))  # Its weights are loaded by whoever comes first.
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: everything(model, seed), list(range(6)) * 8))
    for seed, found in enumerate(together):
        assert_close(found, together[seed % 6], 1e-12)
    for seed in range(6):
        assert_close(together[seed], everything(model, seed), 1e-12)


def while_a_hook_waits(trace, during):
    """Runs `during` in this thread while a read in another one stands in a hook."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(value, call):
        inside.set()
        assert go_on.wait(30)
        return value * 2

    trace.hook("resid_pre1", wait)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: trace.logits)
        assert inside.wait(30)
        try:
            during()
        finally:
            go_on.set()
        return reading.result()


OPERATIONS = {
    "read": lambda trace: trace.read("z0"),
    "live": lambda trace: trace["z0"],
    "set": lambda trace: trace.set("z0", 0),
    "edit": lambda trace: trace.edit("z0", lambda value: value),
    "hook": lambda trace: trace.hook("z0", lambda value, call: value),
    "unset": lambda trace: trace.unset("z0"),
    "fork": lambda trace: trace.fork(),
    "append": lambda trace: trace.append([1]),
    "truncate": lambda trace: trace.truncate(2),
    "run": lambda trace: trace.run(),
    "explain": lambda trace: trace.explain("z0"),
    "edited": lambda trace: trace.edited,
    "read_all": lambda trace: glassformer.read_all([trace], "z0"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_second_thread_in_a_family_is_refused(operation):
    tiny, tokens = subject("gpt2"), random_tokens(1, 5)
    trace = tiny.model.trace(tokens)
    fork = trace.fork()

    def during():
        for each in (trace, fork):
            with pytest.raises(glassformer.OrderError, match="one thread at a time"):
                OPERATIONS[operation](each)
        everything(tiny.model, 0)  # Others of the model go on.

    found = while_a_hook_waits(trace, during)
    edits = {"blocks.1.hook_resid_pre": [lambda value, _: value * 2]}
    assert_close(found, tiny.oracle.run(tokens, edits)["logits"], 1e-10)
    OPERATIONS[operation](fork)  # Afterwards anybody may.


def test_forks_that_end_while_another_thread_is_inside():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 5)
    trace = tiny.model.trace(tokens)
    forks = []
    for number in range(5):
        fork = trace.fork()
        fork["resid_pre1"] *= 1 + number
        fork.hook("z1", lambda value, call: value * 3)
        fork.logits  # noqa: B018
        forks.append(fork)
    del fork
    found = while_a_hook_waits(trace, lambda: (forks.clear(), gc.collect()))
    edits = {"blocks.1.hook_resid_pre": [lambda value, _: value * 2]}
    assert_close(found, tiny.oracle.run(tokens, edits)["logits"], 1e-10)
    assert torch.equal(trace.logits, found)


def test_functions_and_values_end_on_any_thread():
    ended = []

    class Function:
        def __call__(self, value, call):
            return value * 2

        def __del__(self):
            ended.append(threading.get_ident())

    model, tokens = subject("gpt2").model, random_tokens(1, 4)
    traces, values = [], []
    for _ in range(20):
        trace = model.trace(tokens)
        trace.hook("resid_pre1", Function())
        trace.hook_gradient("resid_pre2", Function())
        traces.append(trace)
        values.append(trace["z1"])

    def drop(number):
        value = values[number]
        value += 1
        traces[number] = values[number] = None

    del trace
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(drop, range(20)))
    gc.collect()
    assert len(ended) == 40


def test_an_exception_in_a_hook_leaves_all_that_was_computed():
    tiny, tokens = subject("llama_grouped"), random_tokens(1, 5)
    for with_graph in (False, True):
        trace = tiny.model.trace(tokens).requires_grad_(with_graph)
        fail = [True]

        def hook(value, call, fail=fail):
            if fail[0]:
                raise LookupError("not now")
            return value * 2

        trace.hook("resid_pre2", hook)
        with pytest.raises(LookupError, match="not now"):
            trace.logits  # noqa: B018
        computed = trace.work()["blocks.1.hook_mlp_out"]
        fail[0] = False
        edits = {"blocks.2.hook_resid_pre": [lambda value, _: value * 2]}
        assert_close(trace.logits.detach(), tiny.oracle.run(tokens, edits)["logits"], 1e-10)
        assert trace.work()["blocks.1.hook_mlp_out"] == computed


def test_an_exception_in_a_gradient_function():
    trace = subject("gpt2").model.trace(random_tokens(1, 5)).requires_grad_()

    def fail(gradient, call):
        raise LookupError("not now")

    trace.hook_gradient("resid_pre1", fail)
    loss = trace.logits[0, -1, 3]
    with pytest.raises(LookupError, match="not now"):
        trace.grad(loss, "hook_embed")
    trace.unset("resid_pre1")
    assert trace.grad(trace.logits[0, -1, 3], "hook_embed").abs().sum() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_backward_in_another_thread(name):
    model, tokens = subject(name).model, random_tokens(1, 5)
    trace = model.trace(tokens).requires_grad_()
    value, loss = trace["resid_pre1"], trace.logits[0, -1, 3]
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert_close(value.grad, model.trace(tokens).grad(lambda t: t.logits[0, -1, 3], "resid_pre1"), 1e-12)
