"""What users of nnsight have to beware of, and needn't here: orders, barriers, padding, loops, saving, computing too
much. Values are compared with forward hooks of torch."""

import collections
import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from nnsight_truth import PROMPT, SHORT, new_model, reference, same, truth, zero
from small_models import byte_tokenizer

import glassformer


@pytest.fixture
def model():
    return new_model()


# --- order


def test_modules_are_read_in_any_order(model):
    stream, logits = truth(PROMPT)
    with model.trace(PROMPT):
        last = model.lm_head.output
        third = model.transformer.h[2].output[0]
        first = model.transformer.h[0].output[0]
        second = model.transformer.h[1].output[0]
        again = model.transformer.h[2].output[0]
    assert same(last, logits) and same(third, stream[2]) and same(again, stream[2])
    assert same(first, stream[0]) and same(second, stream[1])


def test_modules_are_set_in_any_order(model):
    expected, logits = truth(PROMPT, {0: zero, 1: lambda value: value + 1})
    with model.trace(PROMPT):
        clean = model.lm_head.output
        model.transformer.h[0].output[0][:] = 0
        shifted = model.transformer.h[1].output[0] + 1
        model.transformer.h[1].output[0][:] = shifted
        found = model.lm_head.output
        stream = [block.output[0] for block in model.transformer.h]
    assert same(clean, truth(PROMPT)[1]) and same(found, logits)
    assert all(same(mine, theirs) for mine, theirs in zip(stream, expected, strict=True))


def test_an_edit_upstream_of_what_was_read(model):
    with model.trace(PROMPT):
        before = model.transformer.h[2].output[0]
        model.transformer.h[0].output[0][:] = 0
        after = model.transformer.h[2].output[0]
    assert same(before, truth(PROMPT)[0][2]) and same(after, truth(PROMPT, {0: zero})[0][2])


def test_constant_edits_backwards(model):
    """The later layer first: both stand."""
    with model.trace(PROMPT):
        model.transformer.h[1].output[0][:, -1] = 0.5
        model.transformer.h[0].output[0][:] = 0
        found = model.lm_head.output

    def last(value):
        value[:, -1] = 0.5
        return value

    assert same(found, truth(PROMPT, {0: zero, 1: last})[1])


def test_a_value_made_from_what_an_earlier_edit_changes_is_no_silent_number(model):
    with pytest.raises(glassformer.OrderError, match=r"blocks\.0"), model.trace(PROMPT):
        model.transformer.h[1].output[0].mul_(2)
        model.lm_head.output.sum()
        model.transformer.h[0].output[0][:] = 0
        model.lm_head.output.sum()


def test_a_value_that_was_read_stays(model):
    stream, _ = truth(PROMPT)
    with model.trace(PROMPT):
        kept = model.transformer.h[0].output[0]
        model.transformer.h[0].output = (torch.zeros_like(kept),)
        changed = model.transformer.h[0].output[0]
    assert same(kept, stream[0]) and same(changed, torch.zeros_like(stream[0]))


def test_what_is_done_to_a_copy_is_no_edit(model):
    _, logits = truth(PROMPT)
    with model.trace(PROMPT):
        copied = model.transformer.h[0].output[0].clone()
        copied[:] = 0
        new = model.transformer.h[0].output[0] * 0
        new[:] = 5
        found = model.lm_head.output
    assert same(found, logits)


@pytest.mark.parametrize("place", ["transformer.h.1.mlp.output", "transformer.h.1.attn.c_proj.input"])
@pytest.mark.parametrize("with_graph", [True, False])
def test_changes_that_torch_does_not_count(model, place, with_graph):
    """`.data` and `.numpy()` write to the value, too."""
    path, _, what = place.rpartition(".")
    with torch.set_grad_enabled(with_graph):
        with model.trace(PROMPT):
            setattr(model.get(path), what, torch.zeros_like(model.get(place)))
            expected = model.lm_head.output
        with model.trace(PROMPT):
            model.get(place).data[:] = 0
            by_data = model.lm_head.output
        with model.trace(PROMPT):
            model.get(place).detach().numpy()[:] = 0
            by_numpy = model.lm_head.output
    assert same(by_data, expected.detach()) and same(by_numpy, expected.detach())


def test_changes_after_the_block_are_no_edits(model):
    with model.trace(PROMPT) as tracer:
        value = model.transformer.h[0].output[0]
        logits = model.lm_head.output
    value[:] = 0
    assert same(logits, truth(PROMPT)[1]) and tracer.traces[0].edited == []
    with model.trace(PROMPT):
        assert same(model.lm_head.output, truth(PROMPT)[1])


# --- invokes


def test_values_between_invokes_without_a_barrier(model):
    first, _ = truth(PROMPT)
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            taken = model.transformer.h[1].output[0][:, -1]
        with tracer.invoke(SHORT):
            model.transformer.h[1].output[0][:, -1] = taken
            own = model.transformer.h[2].output[0][:, -1]
            found = model.lm_head.output
        with tracer.invoke(PROMPT):
            model.transformer.h[0].output[0][:, -1] = own
            back = model.lm_head.output

    def put(value):
        def run(output):
            output[:, -1] = value
            return output

        return run

    expected = truth(SHORT, {1: put(first[1][:, -1])})
    assert same(found, expected[1]) and not same(found, truth(SHORT)[1])
    assert same(back, truth(PROMPT, {0: put(expected[0][2][:, -1])})[1])


def test_invokes_have_no_padding(model):
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.transformer.h[1].output[0]
            first = model.transformer.wte.input
        with tracer.invoke(PROMPT):
            long = model.transformer.h[1].output[0]
    assert same(short, truth(SHORT)[0][1]) and same(long, truth(PROMPT)[0][1])
    assert first[0].tolist() == byte_tokenizer()(SHORT)["input_ids"]


def test_tokens_are_counted_without_padding(model):
    with model.trace([SHORT, PROMPT]):
        first = model.transformer.h[1].output[0].t[0]
        last = model.transformer.h[1].output[0].token[-1]
        model.transformer.h[1].output[0].t[1] = 0
        logits = model.lm_head.output
    stream = [truth(prompt)[0][1] for prompt in (SHORT, PROMPT)]
    assert same(first, torch.cat([value[:, 0] for value in stream]))
    assert same(last, torch.cat([value[:, -1] for value in stream]))

    def second(value):
        value[:, 1] = 0
        return value

    n_short = stream[0].shape[1]
    assert same(logits[:1, -n_short:], truth(SHORT, {1: second})[1]) and same(logits[1:], truth(PROMPT, {1: second})[1])


def test_an_empty_invoke_before_all_others_says_so(model):
    with (
        pytest.raises(glassformer.UnavailableError, match="no invoke"),
        model.trace() as tracer,
        tracer.invoke(),
    ):
        model.lm_head.output.sum()


# --- steps


def test_what_stands_behind_an_open_loop_runs(model):
    with model.generate(PROMPT, max_new_tokens=4, do_sample=False) as tracer:
        tokens = []
        for _ in tracer.iter[:]:
            tokens.append(int(model.lm_head.output[0, -1].argmax()))
        behind = "ran"
        ids = tracer.result
    assert behind == "ran" and len(tokens) == 4 and ids[0, -4:].tolist() == tokens


def test_what_stands_behind_a_loop_that_is_too_long_runs(model):
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        steps = list(tracer.iter[1:100])
        ids = model.generator.output
    prompt = byte_tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    expected = reference().generate(prompt, max_new_tokens=3, do_sample=False)
    assert steps == [1, 2] and ids.tolist() == expected.tolist()


def test_loops_that_are_left(model):
    """`break`, `continue` and `return` mean what they mean."""

    def first_odd():
        with model.generate(PROMPT, max_new_tokens=6, do_sample=False) as tracer:
            for step in tracer.iter[:]:
                if step % 2 == 0:
                    continue
                return step, model.lm_head.output[0, -1].argmax()

    with model.generate(PROMPT, max_new_tokens=6, do_sample=False) as tracer:
        for step in tracer.iter[:]:
            value = model.lm_head.output[0, -1].argmax()
            if step == 1:
                break
    assert first_odd() == (1, value) and step == 1


@pytest.mark.parametrize("change", [lambda value: value.mul_(0), lambda value: value.__setitem__(slice(None), 0)])
def test_a_value_of_an_earlier_step_is_not_changed(model, change):
    """The tokens behind it were drawn already."""
    with (
        pytest.raises(glassformer.Error),
        model.generate(PROMPT, max_new_tokens=5, do_sample=False) as tracer,
    ):
        for step in tracer.iter[:]:
            if step == 0:
                value = model.transformer.h[0].output[0]
            if step == 2:
                change(value)
            model.lm_head.output.sum()


def test_an_earlier_step_is_not_edited(model):
    with (
        pytest.raises(glassformer.Error),
        model.generate(PROMPT, max_new_tokens=5, do_sample=False) as tracer,
    ):
        tokens = [model.lm_head.output[0, -1].argmax() for _ in tracer.iter[:]]
        assert len(tokens) == 5
        for _ in tracer.iter[:2]:
            model.transformer.h[0].output[0][:] = 0
        model.lm_head.output.sum()


@pytest.mark.parametrize("written", ["tracer.iter[:]", "tracer.iter[1:3]", "tracer.iter[2]", "tracer.all()"])
def test_with_forms_of_loops_say_what_to_write(model, written):
    with (
        pytest.raises(glassformer.UnsupportedError) as raised,
        model.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer,
        eval(written, {"tracer": tracer}),
    ):
        pass
    assert f"for step in {written}:" in str(raised.value)


# --- saving


def test_nothing_needs_to_be_saved(model):
    stream, logits = truth(PROMPT)
    with model.trace(PROMPT):
        value = model.transformer.h[0].output[0]
        values = [block.output[0] for block in model.transformer.h]
        computed = model.lm_head.output.softmax(-1)
        number = float(computed[0, -1, 3].detach())
        table = {"shape": value.shape, "logits": model.lm_head.output}
    assert same(value, stream[0]) and all(map(same, values, stream)) and same(table["logits"], logits)
    assert abs(number - logits.softmax(-1)[0, -1, 3]) < 1e-9 and table["shape"] == stream[0].shape


def test_a_saved_name_may_be_bound_again(model):
    with model.trace(PROMPT):
        value = model.transformer.h[0].output[0].save()
        value = value * 2
    assert same(value, truth(PROMPT)[0][0] * 2)


def test_values_are_ordinary_tensors(model):
    with model.trace(PROMPT):
        value = model.transformer.h[0].output[0]
        logits = model.lm_head.output
    expected = truth(PROMPT)[0][0]
    assert isinstance(value, torch.Tensor) and value.value is value and value.save() is value
    assert same(pickle.loads(pickle.dumps(value)), expected) and same(copy.deepcopy(value), expected)
    assert same(torch.from_numpy(value.detach().numpy()), expected)
    assert same(torch.stack([value, value])[0], expected) and same(logits.detach().cpu(), truth(PROMPT)[1])


def test_saved_outputs_are_as_they_were_and_keep_no_trace(model):
    with model.trace(PROMPT) as tracer:
        pair, whole = model.transformer.h[2].attn.output.save(), model.output.save()
        written = model.transformer.h[1].output.save()
        pattern, past = pair[1].clone(), whole.past_key_values[2][0].clone()
        model.transformer.h[0].output[0][:, 1] = 0
        assert same(pair[1], pattern) and not same(model.transformer.h[2].attn.output[1], pattern)
        written[0] = ones = torch.ones(24, dtype=torch.float64)
        assert same(model.transformer.h[1].output[0][0, 3], ones) and same(written[0][0, 0], ones)
    assert same(whole.logits, truth(PROMPT)[1]) and same(whole.past_key_values[2][0], past) and same(pair[1], pattern)
    with pytest.raises(glassformer.UnavailableError, match="closed"):
        pair[0] = pattern
    trace, tracer = weakref.ref(tracer.traces[0]), None
    gc.collect()
    assert trace() is None and same(pair[1], pattern)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_outputs_can_be_copied_and_stored(model, copied):
    with model.trace(PROMPT):
        block, attention, whole = model.transformer.h[0].output, model.transformer.h[1].attn.output, model.output
        inside = [copied(each) for each in (block, attention, whole)]
        with pytest.raises(
            AttributeError, match="has no 'lgits'; it has loss, logits, past_key_values, and what logits"
        ):
            _ = whole.lgits
    for pair in (inside, [copied(each) for each in (block, attention, whole)]):
        assert type(pair[0]) is type(pair[1]) is tuple and same(pair[0][0], truth(PROMPT)[0][0])
        assert all(map(same, pair[1], attention)) and same(pair[2].logits, truth(PROMPT)[1])
        assert pair[2].loss is None and same(pair[2].past_key_values[1][1], whole.past_key_values[1][1])


BUILT_IN = [[], {}, (), set(), frozenset(), 1, True, 1.5, 2j, "x", b"x", range(2), slice(1), None, bytearray(b"x")]
BUILT_IN += [collections.OrderedDict(), collections.defaultdict(list), collections.deque()]


def test_save_on_everything_in_a_trace_and_nowhere_else(model):
    def having():
        return [each for each in [*BUILT_IN, torch.zeros(1), torch.Size([1])] if hasattr(each, "save")]

    assert having() == []
    with model.trace(PROMPT):
        assert len(having()) == len(BUILT_IN) + 2
        assert [each.save() for each in BUILT_IN] == BUILT_IN
        with model.trace(SHORT):
            assert len(having()) == len(BUILT_IN) + 2
        assert len(having()) == len(BUILT_IN) + 2
    assert having() == []
    with pytest.raises(ZeroDivisionError), model.trace(PROMPT), model.trace(SHORT):
        raise ZeroDivisionError
    assert having() == []
    with model.trace(PROMPT) as tracer:
        tracer.stop()
    assert having() == []
    assert "save" not in dir([]) and "save" not in vars(list) and not hasattr(object(), "save")


def test_other_threads_see_no_save(model):
    seen = []
    with model.trace(PROMPT):
        thread = threading.Thread(target=lambda: seen.append([hasattr(each, "save") for each in BUILT_IN]))
        thread.start()
        thread.join()
    assert seen == [[False] * len(BUILT_IN)]


def test_own_save_methods_stay(model):
    class Own(list):
        def save(self):
            return "own"

    with model.trace(PROMPT):
        assert Own().save() == "own"
        assert glassformer.nnsight.save("x") == "x"
    assert Own().save() == "own"


def test_classes_that_are_derived_in_a_trace_have_what_they_define(model):
    with model.trace(PROMPT):

        class Own(list):
            def save(self):
                return "own"

        assert Own().save() == "own" and not hasattr(type("Plain", (list,), {})(), "save")
    assert Own().save() == "own"


# --- outputs


def test_a_blocks_output_is_a_tuple_and_answers_like_its_hidden_state(model):
    stream, _ = truth(PROMPT)
    with model.trace(PROMPT):
        output = model.transformer.h[1].output
        assert isinstance(output, tuple) and len(output) == 1
        (unpacked,) = output
        assert same(output[0], stream[1]) and same(unpacked, stream[1])
        assert output.shape == stream[1].shape and same(output[:, -1], stream[1][:, -1])
        attention = model.transformer.h[1].attn.output
        assert isinstance(attention, tuple) and len(attention) == 2 and attention[0].shape == stream[1].shape
        assert isinstance(model.transformer.h[1].mlp.output, torch.Tensor)


@pytest.mark.parametrize("as_tuple", [True, False])
def test_a_blocks_output_is_set_either_way(model, as_tuple):
    with model.trace(PROMPT):
        value = model.transformer.h[1].output[0] * 2
        model.transformer.h[1].output = (value,) if as_tuple else value
        found = model.lm_head.output
    assert same(found, truth(PROMPT, {1: lambda value: value * 2})[1])


# --- traces in traces, and only what is needed


def test_a_trace_inside_a_trace(model):
    with model.trace(PROMPT):
        outer = model.transformer.h[0].output[0]
        with model.trace(SHORT):
            inner = model.transformer.h[0].output[0]
            model.transformer.h[1].output[0][:] = 0
        logits = model.lm_head.output
    assert same(outer, truth(PROMPT)[0][0]) and same(inner, truth(SHORT)[0][0]) and same(logits, truth(PROMPT)[1])


def test_two_models_at_once(model):
    other = new_model()
    with model.trace(PROMPT), other.trace(SHORT):
        mine, theirs = model.lm_head.output, other.lm_head.output
    assert same(mine, truth(PROMPT)[1]) and same(theirs, truth(SHORT)[1])


def layers_computed(tracer):
    """The layers at which anything was computed."""
    return {int(name.split(".")[1]) for trace in tracer.traces for name in trace.work() if name.startswith("blocks.")}


def test_what_is_not_read_is_not_computed(model):
    with model.trace(PROMPT) as tracer:
        model.transformer.h[0].output[0].sum()
    assert layers_computed(tracer) == {0}
    with model.trace(PROMPT) as tracer:
        model.transformer.h[1].output[0].sum()
        tracer.stop()
        model.lm_head.output.sum()
    assert layers_computed(tracer) == {0, 1}
    with model.trace(PROMPT) as tracer:
        pass
    assert layers_computed(tracer) == set()


def test_a_generation_that_is_stopped_draws_no_more(model):
    with model.generate(PROMPT, max_new_tokens=8, do_sample=False) as tracer:
        for step in tracer.iter[:]:
            last = model.lm_head.output[0, -1].argmax()
            if step == 2:
                tracer.stop()
    assert tracer.traces[0].length == len(byte_tokenizer()(PROMPT)["input_ids"]) + 2 and last is not None


def test_stop_in_loops_and_sessions(model):
    found = []
    with model.session():
        for prompt in (PROMPT, SHORT):
            with model.trace(prompt) as tracer:
                found.append(model.transformer.h[0].output[0])
                tracer.stop()
                raise AssertionError("behind the stop")
        found.append("the end")
    assert len(found) == 3 and same(found[0], truth(PROMPT)[0][0]) and same(found[1], truth(SHORT)[0][0])


def test_one_module_is_cached_as_a_list_of_one(model):
    h = model.transformer.h
    with model.trace(PROMPT) as tracer:
        caches = [tracer.cache(modules=each) for each in (h[1], "transformer.h.1", [h[1]], h)]
        for wrong in ([3], [None]):
            with pytest.raises(glassformer.InputError, match=r"expected modules of the model or their paths; found"):
                tracer.cache(modules=wrong)
    assert [len(cache.keys()) for cache in caches] == [1, 1, 1, len(h)]
    assert all(same(cache["model.transformer.h.1"].output[0], truth(PROMPT)[0][1]) for cache in caches)


def in_a_trace(model):
    with model.trace(PROMPT) as tracer:
        model.transformer.h[1].output[0][:, -1] *= 2
        return tracer, model.transformer.h[0].output[0], model.lm_head.output[0, -1].argmax()


def in_invokes(model):
    with model.trace() as tracer:
        for prompt in (PROMPT, SHORT):
            with tracer.invoke(prompt):
                model.transformer.h[1].output[0][:, -1] *= 2
        with tracer.invoke():
            return tracer, model.transformer.h[0].output[0], model.lm_head.output[0, -1].argmax()


def in_a_generation(model):
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            value = model.transformer.h[0].output[0]
        return tracer, value, tracer.result


def with_a_cache(model):
    with model.trace(PROMPT) as tracer:
        cache = tracer.cache()
        value = model.transformer.h[0].output[0]
    return tracer, value, cache


def of_an_edited_model(model):
    with model.edit() as edited:
        edited.transformer.h[0].output[0][:] = 0
    with edited.trace(PROMPT) as tracer:
        return tracer, edited.transformer.h[1].output[0], edited.lm_head.output


@pytest.mark.parametrize("run", [in_a_trace, in_invokes, in_a_generation, with_a_cache, of_an_edited_model])
def test_traces_are_gone_with_their_last_name(model, run):
    """Without waiting for Python's collection of cycles: what was computed can be large. Values keep no trace alive."""
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            tracer, *kept = run(model)
        traces = [weakref.ref(trace) for trace in tracer.traces]
        assert traces
        del tracer
        assert [reference() for reference in traces] == [None] * len(traces) and kept
    finally:
        gc.enable()
