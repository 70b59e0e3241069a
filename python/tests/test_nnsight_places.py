"""Where the body of a trace may stand, who may watch it, and what becomes of its exceptions. Values are compared with
forward hooks of torch."""

import asyncio
import bdb
import code
import subprocess
import sys
import textwrap
import threading
import traceback

import pytest
import torch
from nnsight_truth import PROMPT, SHORT, new_model, same, truth, zero

import glassformer


@pytest.fixture
def model():
    return new_model()


# --- where the body may stand

BODY = """
with model.trace(PROMPT):
    first = model.transformer.h[1].output[0]
    model.transformer.h[0].output[0][:] = 0
    logits = model.lm_head.output
"""


def assert_body_ran(names):
    assert same(names["first"], truth(PROMPT)[0][1]) and same(names["logits"], truth(PROMPT, {0: zero})[1])


def test_in_exec_of_a_string(model):
    names = {"model": model, "PROMPT": PROMPT}
    exec(BODY, names)
    assert_body_ran(names)
    names = {"model": model, "PROMPT": PROMPT}
    exec(compile("\n" * 50 + BODY, "no such file", "exec"), names)  # As cell magics do.
    assert_body_ran(names)


def test_in_a_console(model):
    names = {"model": model, "PROMPT": PROMPT}
    console = code.InteractiveConsole(names)
    for line in [*BODY.strip().splitlines(), ""]:
        console.push(line)
    assert_body_ran(names)


def test_from_standard_input(demo_model):
    program = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from glassformer.nnsight import LanguageModel
        model = LanguageModel({str(demo_model)!r})
        with model.trace("The cat"):
            found = model.model.layers[0].output[0]
        print(list(found.shape))
    """
    run = subprocess.run(
        [sys.executable, "-"], input=textwrap.dedent(program), capture_output=True, text=True, timeout=120
    )
    assert run.stdout.strip() == "[1, 2, 576]", run.stderr


def test_on_one_line(model):
    with model.trace(PROMPT): first = model.transformer.h[1].output[0]  # fmt: skip  # noqa: E701
    assert same(first, truth(PROMPT)[0][1])


def test_a_body_that_begins_with_try(model):
    with model.trace(PROMPT):
        try:
            model.transformer.h[7].output.sum()
        except IndexError:
            found = model.transformer.h[1].output[0]
    assert same(found, truth(PROMPT)[0][1])


def test_comments_and_strings_at_the_margin(model):
    with model.trace(PROMPT):
        text = """
with model.trace(SHORT):
    raise ValueError
"""
        # A comment at the margin.
        found = model.transformer.h[1].output[0]  # fmt: skip
    assert same(found, truth(PROMPT)[0][1]) and "raise" in text


def test_in_methods_closures_comprehensions_and_generators(model):
    stream, _ = truth(PROMPT)

    class Reader:
        def read(self):
            with model.trace(PROMPT):
                self.found = model.transformer.h[1].output[0]
            return self

    count = 0

    def counted():
        nonlocal count
        with model.trace(PROMPT):
            count += 1
            return [block.output[0] for block in model.transformer.h][count]

    def yielded():
        with model.trace(PROMPT):
            for block in model.transformer.h:
                yield block.output[0]

    assert same(Reader().read().found, stream[1]) and same(counted(), stream[1]) and count == 1
    assert all(map(same, yielded(), stream))


def test_with_traces_entered_by_hand(model):
    opened = model.trace(PROMPT)
    tracer = opened.__enter__()
    value = model.transformer.h[1].output[0]
    opened.__exit__(None, None, None)
    assert same(value, truth(PROMPT)[0][1]) and tracer is not None


def test_under_a_trace_function(model):
    """Debuggers, coverage and profilers see every line of the body, once."""
    lines = []

    def watch(frame, event, arg):
        if frame.f_code.co_name != "body":
            return None
        if event == "line":
            lines.append(frame.f_lineno - frame.f_code.co_firstlineno)
        return watch

    def body():
        with model.trace(PROMPT):
            found = model.transformer.h[1].output[0]
            model.transformer.h[0].output[0][:] = 0
        return found

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        found = body()
        assert sys.gettrace() is watch
    finally:
        sys.settrace(before)
    assert same(found, truth(PROMPT)[0][1])
    assert [line for line in dict.fromkeys(lines) if line in (2, 3, 4)] == [2, 3, 4] and lines.count(2) == 1


def test_under_a_debugger(model):
    class Debugger(bdb.Bdb):
        stopped = 0

        def user_line(self, frame):
            if "model" in frame.f_locals and frame.f_code.co_filename == "<string>":
                self.stopped += 1
            self.set_step()

    names = {"model": model, "PROMPT": PROMPT}
    debugger = Debugger()
    before = sys.gettrace()
    try:
        debugger.run(BODY, names, names)
    finally:
        sys.settrace(before)
    assert debugger.stopped >= 4
    assert_body_ran(names)


def test_in_tasks_side_by_side(model):
    async def read(prompt, layer):
        with model.trace(prompt):
            await asyncio.sleep(0.01)
            first = model.transformer.h[layer].output[0]
            await asyncio.sleep(0.01)
            return first, model.lm_head.output

    async def both():
        return await asyncio.gather(read(PROMPT, 0), read(SHORT, 2), read(PROMPT, 1))

    for (value, logits), (prompt, layer) in zip(
        asyncio.run(both()), [(PROMPT, 0), (SHORT, 2), (PROMPT, 1)], strict=True
    ):
        assert same(value, truth(prompt)[0][layer]) and same(logits, truth(prompt)[1])


def test_in_threads_side_by_side(model):
    found = {}
    expected = {prompt: truth(prompt, {0: zero}) for prompt in (PROMPT, SHORT)}

    def read(number, prompt):
        for _ in range(10):
            with model.trace(prompt):
                model.transformer.h[0].output[0][:] = 0
                value = [model.transformer.h[2].output[0], model.lm_head.output].save()
            found.setdefault(number, []).append(value)

    threads = [threading.Thread(target=read, args=(number, (PROMPT, SHORT)[number % 2])) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        stream, logits = expected[(PROMPT, SHORT)[number % 2]]
        assert len(found[number]) == 10
        assert all(same(value, stream[2]) and same(out, logits) for value, out in found[number])


# --- exceptions


def test_an_error_in_the_body_is_the_users_own(model):
    class Own(Exception):
        pass

    try:
        with model.trace(PROMPT):
            model.transformer.h[0].output[0].sum()
            raise Own("mine")
    except Own as error:
        frames = traceback.extract_tb(error.__traceback__)
        assert str(error) == "mine" and len(frames) == 1
        assert frames[0].filename == __file__ and 'raise Own("mine")' in frames[0].line
    with model.trace(PROMPT):
        assert same(model.lm_head.output, truth(PROMPT)[1])


def test_an_error_of_ours_points_at_the_users_line(model):
    try:
        with model.trace(PROMPT):
            model.transformer.h[0].output[0][:] = torch.zeros(3)
    except (RuntimeError, glassformer.Error) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__]
        assert len(frames) == 1 and "torch.zeros(3)" in frames[0].line
    with pytest.raises(AttributeError, match="no module or attribute 'nothing'"), model.trace(PROMPT):
        model.transformer.nothing.output.sum()


def test_an_error_in_an_invoke_closes_everything(model):
    with pytest.raises(ZeroDivisionError), model.trace() as tracer:
        with tracer.invoke(PROMPT):
            model.transformer.h[0].output[0][:] = 0
        with tracer.invoke(SHORT):
            raise ZeroDivisionError
    with pytest.raises(glassformer.UnavailableError):
        model.lm_head.output.sum()
    with model.trace(PROMPT):
        assert same(model.lm_head.output, truth(PROMPT)[1])


def test_values_outside_of_a_trace_say_so(model):
    for value in ("output", "input", "inputs"):
        with pytest.raises(glassformer.UnavailableError, match=r"inside `with model\.trace"):
            getattr(model.transformer.h[0], value)
    with pytest.raises(glassformer.UnavailableError):
        model.transformer.h[0].output = torch.zeros(1)


def test_a_trace_of_nothing_says_so(model):
    with pytest.raises(glassformer.UnavailableError, match="no invoke"), model.trace():
        model.lm_head.output.sum()


def test_unknown_keywords_say_so(model):
    with pytest.raises(glassformer.InputError, match=r"max_new_token\b"):
        model.generate(PROMPT, max_new_token=3)
    with pytest.raises(glassformer.UnsupportedError, match="num_beams"):
        model.generate(PROMPT, num_beams=3)
    with pytest.raises(glassformer.UnsupportedError, match="remote"):
        model.trace(PROMPT, remote=True)
