"""Ctrl-C stops a long computation soon and leaves the model usable; other threads go on while the engine computes."""

import signal
import threading
import time

import numpy as np
import pytest
import torch
import transformers

import glassformer


@pytest.fixture(scope="module")
def model():
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=256, n_embd=256, n_layer=8, n_head=8, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    return glassformer.load(transformers.GPT2LMHeadModel(config).eval())


def sweep(model, trace, count):
    """Patches every position of every layer; takes many seconds."""
    forks = []
    for index in range(count):
        forks.append(trace.fork())
        forks[-1].set(("resid_pre", index % model.config.n_layers), 0.01 * index, np.s_[:, index % 64])
    return glassformer.read_all(forks, "logits")


@pytest.fixture
def interrupt():
    """Sends SIGINT to this process after a while, as Ctrl-C does; the time when it did is in the list."""
    sent, timers = [], []

    def send():
        sent.append(time.perf_counter())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def after(seconds):
        timers.append(threading.Timer(seconds, send))
        timers[-1].start()
        return sent

    yield after
    for timer in timers:
        timer.cancel()
        timer.join()


def test_interrupt_stops_a_sweep_and_leaves_everything_usable(model, interrupt):
    tokens = torch.arange(128)
    trace = model.trace(tokens)
    clean = trace.logits_at(-1)
    sent = interrupt(0.4)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, trace, 3000)
    assert time.perf_counter() - sent[0] < 0.5
    assert torch.equal(trace.logits_at(-1), clean)
    fork = trace.fork()
    fork.set("resid_pre4", 0.5, np.s_[:, 60])
    fresh = model.trace(tokens)
    fresh.set("resid_pre4", 0.5, np.s_[:, 60])
    torch.testing.assert_close(fork.logits, fresh.logits, rtol=1e-4, atol=1e-4)


def test_what_was_computed_before_the_interrupt_stays(model, interrupt):
    trace = model.trace(torch.arange(256).repeat(8, 1) % 200)
    interrupt(0.15)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            trace.logits_at(-1)
            trace = model.trace(trace.tokens)
    done = trace.work()
    trace.logits_at(-1)
    work = trace.work()
    assert all(work[name] >= rows for name, rows in done.items())
    assert work["blocks.0.mlp.hook_pre"] == 8 * 256  # Not computed again.


COMPUTING = {
    "read": lambda trace: trace.read("logits"),
    "run": lambda trace: trace.run("logits"),
    "edit": lambda trace: trace.edit("logits", lambda value: value),
}


@pytest.mark.parametrize("computing", COMPUTING)
def test_other_threads_go_on_while_the_engine_computes(model, computing):
    counts, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counts[0] += 1
            time.sleep(0.001)

    trace = model.trace(torch.arange(256).repeat(8, 1) % 200)
    thread = threading.Thread(target=count)
    thread.start()
    begin = time.perf_counter()
    before = counts[0]
    COMPUTING[computing](trace)  # One call of the engine.
    during, seconds = counts[0] - before, time.perf_counter() - begin
    stop.set()
    thread.join()
    assert seconds > 0.02 and during >= 0.1 * seconds / 0.001


def test_threads_may_trace_one_model_at_the_same_time(model):
    tokens = [torch.arange(40) + seed for seed in range(6)]
    expected = [model.trace(one).logits for one in tokens]
    found = [None] * 6

    def run(index):
        for _ in range(3):
            found[index] = model.trace(tokens[index]).logits

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
