"""What is at the edges of a trace: inference mode, what values keep, inputs and indices that are none."""

import contextvars
import gc
import warnings
import weakref

import pytest
import torch
from nnsight_truth import PROMPT, new_model, same, truth

import glassformer
import glassformer.nnsight


@pytest.fixture
def model():
    return new_model()


TWO = [[3, 4, 5], [6, 7]]


def test_traces_in_inference_mode(model):
    """Around a trace, a generation, and as a decorator."""
    with torch.inference_mode(), model.trace(PROMPT):
        h = model.transformer.h[1].output[0]
        before = h.clone()
        h[:, 0] = 0
        h *= 2
        model.transformer.h[2].attn.c_proj.input[:, :, :8] = 0
        after = model.lm_head.output
    with torch.no_grad(), model.trace(PROMPT):
        h = model.transformer.h[1].output[0]
        h[:, 0] = 0
        h *= 2
        model.transformer.h[2].attn.c_proj.input[:, :, :8] = 0
        expected = model.lm_head.output
    assert same(before, truth(PROMPT)[0][1]) and same(after, expected)
    with torch.inference_mode(), model.generate(PROMPT, max_new_tokens=2) as tracer:
        found = [model.lm_head.output[0, -1].argmax() for _ in tracer.iter[:]]
    assert len(found) == 2 and not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_outputs_that_were_saved_by_the_function(model):
    with model.trace(PROMPT):
        block = glassformer.nnsight.save(model.transformer.h[2].output)
        model.transformer.h[0].output[0][:] = 0
    assert same(block[0], truth(PROMPT)[0][2])


@pytest.mark.parametrize("way", ["batch", "tokens", "invokes", "heads"])
def test_values_keep_no_trace(model, way):
    with torch.no_grad(), model.trace() as tracer:
        if way == "heads":
            with tracer.invoke([[1, 2, 3]]):
                kept = model.transformer.h[1].attn.c_proj.input
        elif way == "invokes":
            for prompt in ([[1, 2, 3]], [[4, 5, 6]]):
                with tracer.invoke(prompt):
                    pass
            with tracer.invoke():
                kept = model.lm_head.output
        else:
            with tracer.invoke(TWO):
                kept = model.transformer.h[1].output[0]
                kept = kept.t[-1] if way == "tokens" else kept
    trace, tracer = weakref.ref(tracer.traces[0].core), None
    gc.collect()
    assert trace() is None and kept.abs().max() > 0


@pytest.mark.parametrize("prompts", [TWO[:1], TWO])
@pytest.mark.parametrize("way", ["put back", "taken", "method"])
def test_tokens_that_are_changed_in_place_belong_to_their_value(model, prompts, way):
    with model.trace(prompts):
        hidden = model.transformer.h[2].output[0]
        if way == "put back":
            hidden.t[0] *= 2
        elif way == "taken":
            first = hidden.t[0]
            first += 1
        else:
            hidden.t[0].mul_(2)
        model.transformer.h[0].output[0][:] = 0
        with pytest.raises(glassformer.OrderError):
            _ = model.lm_head.output


NO_TOKENS = [[True, False], torch.tensor([True, False, True]), 1.0, None, "a", (slice(0, 2), 1), ...]


@pytest.mark.parametrize("index", NO_TOKENS)
def test_tokens_that_are_none(model, index):
    with model.trace(PROMPT), pytest.raises(glassformer.InputError, match="takes a number"):
        _ = model.transformer.h[0].output[0].t[index]


def test_masks_and_inputs_that_are_none(model):
    ids = torch.tensor([[1, 2, 3]])
    for mask in (torch.ones(1, 2), torch.full((1, 3), float("nan")), torch.zeros(1, 3), torch.tensor([[1, 2, 1]])):
        with pytest.raises(glassformer.Error, match="attention_mask"):
            model.trace(ids, attention_mask=mask)
    with pytest.raises(glassformer.InputError, match="found one and input_ids="):
        model.trace(ids, input_ids=ids)
    with pytest.raises(glassformer.InputError, match="found bytes"):
        model.trace(b"abc")
    with model.trace(ids) as tracer:
        for wrong in (torch.zeros(1, 3, 24), None, (1,), (torch.zeros(1), {})):
            with pytest.raises(glassformer.InputError, match="inputs: expected"):
                model.transformer.h[1].inputs = wrong
        with pytest.raises(glassformer.InputError, match="no step before step 0"):
            tracer.next(-1)


def test_what_is_misspelt_is_not_set(model):
    hidden = torch.zeros(1, 1, 24, dtype=torch.float64)
    with model.trace(PROMPT):
        for name in ("outptu", "weight", "path"):
            with pytest.raises(glassformer.InputError, match=rf"h\.1 has no '{name}' that can be set; .* output"):
                setattr(model.transformer.h[1], name, hidden)
        model.transformer.h[1].output = hidden
        assert same(model.transformer.h[1].output[0][0, 3], hidden[0, 0])
    before = model.transformer.h[1].ln_1.weight.detach().clone()
    with torch.no_grad():
        model.transformer.h[1].ln_1.weight += 1
    assert same(model.engine.weights["blocks.1.ln1.weight"], before + 1)
    model.transformer.h[1].probe = torch.nn.Linear(24, 2)
    model.transformer.h[1].probe.bias = made = torch.nn.Parameter(torch.ones(2))
    assert model.transformer.h[1].probe._module.bias is made
    with pytest.raises(glassformer.InputError, match="probe has no 'bais'"):
        model.transformer.h[1].probe.bais = made
    model.note = "kept"  # A model may carry things of its user's.
    assert model.note == "kept"


def test_a_trace_that_is_left_in_another_context(model):
    tracer = model.trace(PROMPT)
    tracer.__enter__()
    hidden = model.transformer.h[1].output[0]
    contextvars.Context().run(tracer.__exit__, None, None, None)
    assert not tracer.is_open and same(hidden, truth(PROMPT)[0][1])
    tracer.__exit__(None, None, None)
    with pytest.raises(glassformer.UnavailableError, match="none of this model is open"):
        _ = model.lm_head.output
    with model.trace(PROMPT):
        assert [1].save() == [1]
    assert not hasattr([], "save")


def test_a_generation_ends_at_the_end_of_the_context_with_a_warning(model):
    prompt = torch.arange(4)[None]
    room = model.config.n_positions - 4
    told = pytest.warns(UserWarning, match=f"end of the model's context, after {room + 1} new tokens of max_new")
    with told, model.generate(prompt, max_new_tokens=room + 9, eos_token_id=None) as tracer:
        ids = tracer.result
    assert ids.shape == (1, room + 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.generate(prompt, max_new_tokens=room + 1, eos_token_id=None) as tracer:
            assert tracer.result.equal(ids)
