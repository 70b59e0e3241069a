"""What modules return that is more than a tensor: tuples that stand for their hidden state, and outputs of models."""

import operator

import pytest
import torch
from tiny_models import make_model

import glassformer
from glassformer.nnsight import LanguageModel

IDS, OTHER = [1, 5, 3, 7, 9], [4, 2, 8, 6, 0]


@pytest.fixture
def model():
    return LanguageModel(make_model("gpt2", torch.float64))


def logits_of(model, ids, change=lambda h: None):
    with model.trace(ids):
        change(model.transformer.h)
        return model.lm_head.output.clone()


def test_a_tuple_stands_for_its_hidden_state(model):
    with model.trace(IDS):
        output = model.transformer.h[1].output
        hidden = output[0].clone()
        assert isinstance(output, tuple) and len(output) == 1 and output.value is output and hash(output) is not None
        assert output.shape == hidden.shape and torch.equal(output.mean(-1), hidden.mean(-1))
        for name in ("add", "sub", "mul", "truediv", "pow", "lt", "le", "gt", "ge", "eq", "ne"):
            function = getattr(operator, name)
            assert torch.equal(function(output, 2), function(hidden, 2))
        for name in ("add", "sub", "mul", "truediv"):
            function = getattr(operator, name)
            assert torch.equal(function(0.5, output), function(0.5, hidden))
        assert torch.equal(output @ hidden.mT, hidden @ hidden.mT)
        assert torch.equal(-output, -hidden) and torch.equal(output + output, hidden + hidden)
        assert torch.equal(torch.cat([output, hidden]), torch.cat([hidden, hidden]))
        assert torch.equal(torch.stack((output, output)), torch.stack((hidden, hidden)))
        assert torch.equal(torch.nn.functional.relu(input=output), hidden.relu())
        assert torch.equal(output[:, -1], hidden[:, -1]) and torch.equal(output[:1][0], hidden)
        assert repr(output) == repr((hidden,))
        for wrong in (7, -2):
            with pytest.raises(IndexError, match=rf"a tuple of 1; found index {wrong}"):
                output[wrong]
        with pytest.raises(AttributeError):
            output._nothing  # noqa: B018


def test_changes_of_a_tuple_are_those_of_its_hidden_state(model):
    def by_index(h):
        h[1].output[:, -1] = 3

    def in_place(h):
        h[1].output += 1
        h[1].output *= 2

    assert torch.equal(logits_of(model, IDS, by_index), logits_of(model, IDS, lambda h: h[1].output[0][:, -1].fill_(3)))
    assert torch.equal(logits_of(model, IDS, in_place), logits_of(model, IDS, lambda h: h[1].output[0].add_(1).mul_(2)))


def test_a_saved_tuple_keeps_its_hidden_state(model):
    with model.trace(IDS):
        saved = model.transformer.h[1].output.save()
        before = saved[0].clone()
        model.transformer.h[1].output = before * 2
        after = model.transformer.h[1].output[0]
    assert torch.equal(saved[0], before) and torch.equal(after, before * 2)


def test_outputs_of_a_model(model):
    expected = logits_of(model, IDS)
    with model.trace(IDS):
        output = model.output
        assert list(output) == output.keys() == ["logits", "past_key_values"] and len(output) == 2
        assert "logits" in output and "loss" not in output and output.loss is None
        assert [name for name, _ in output.items()] == output.keys()
        for found in (output.logits, output["logits"], output[0], output[:1][0], output.values()[0]):
            assert torch.equal(found, expected)
        assert torch.equal(output.to_tuple()[0], expected)
        assert output.shape == expected.shape and torch.equal(output[:, -1], expected[:, -1])
        assert output.value is output and repr(output).startswith("CausalLMOutputWithPast(loss=None, logits=tensor(")
        with pytest.raises(KeyError, match="no field 'nothing'; it has loss, logits"):
            output["nothing"]
        with pytest.raises(AttributeError):
            output._nothing  # noqa: B018
        with pytest.raises(AttributeError, match="'loss' can't be set here; logits can"):
            output.loss = 0


def test_setting_a_models_output(model):
    expected, other = logits_of(model, IDS), logits_of(model, OTHER)
    with model.trace(IDS):
        saved = model.output.save()
        model.output.logits = other
        assert torch.equal(model.output.logits, other)
        model.output[0] = other + 1
        assert torch.equal(model.output["logits"], other + 1)
        model.output["logits"] = other + 2
        assert torch.equal(model.output.logits, other + 2)
        model.output[:, -1] = 3
        assert torch.equal(model.output.logits[:, -1], torch.full_like(other[:, -1], 3))
        model.output = saved
        assert torch.equal(model.output.logits, expected)
    assert torch.equal(saved.logits, expected)


def test_caches_by_names_and_parts(model):
    model.probe = torch.nn.Identity()
    with model.trace(IDS) as tracer:
        cache = tracer.cache(["transformer.h.1", model.transformer.h[0].mlp], include_inputs=True)
        expected = model.transformer.h[1].output[0].clone()
    assert list(cache.keys()) == ["model.transformer.h.1", "model.transformer.h.0.mlp"] and cache
    assert torch.equal(cache.transformer.h[1].output[0], expected)
    assert torch.equal(cache["model.transformer.h.1"].output[0], cache.model.transformer.h[1].output[0])
    assert torch.equal(cache.transformer.h[1].input, cache.transformer.h[1].inputs[0][0])
    assert repr(cache) == "CacheView(all: model.transformer.h.1, model.transformer.h.0.mlp)"
    assert "transformer.h.1" in cache and "transformer.h.0" not in cache and "transformer.nothing" not in cache
    with pytest.raises(AttributeError, match=r"model\.transformer\.weight|no module"):
        cache.transformer.training  # noqa: B018
    with pytest.raises(glassformer.UnavailableError, match="probe"), model.trace(IDS) as tracer:
        tracer.cache(["probe"])


def test_steps_are_chosen_by_an_index(model):
    with model.generate(IDS, max_new_tokens=2) as tracer:
        with pytest.raises(TypeError, match=r"indexed by the steps: tracer.iter\[:\]"):
            next(iter(tracer.iter))
        assert list(tracer.iter[:]) == [0, 1]


def test_the_source_of_a_module(model):
    source = model.transformer.h[1].attn.source
    assert len(source) == len(list(source)) > 3 and source["hook_pattern"].node == "blocks.1.attn.hook_pattern"
    assert "hook_pattern" in repr(source) and "not computed" in repr(source.pattern)
    assert len(model.transformer.h.source) == 0 and repr(model.transformer.h.source).endswith("computes nothing")
    with pytest.raises(glassformer.NameError, match=r"source has no node 'nothing'; it has .*hook_q"):
        source.nothing  # noqa: B018
    with model.trace(IDS):
        pattern = source.pattern.output
        assert torch.equal(pattern, model.transformer.h[1].attn.output[1])
        assert "[1, 4, 5, 5]" in repr(source.pattern)  # Of the open trace.
        source.pattern.output = pattern * 0
        assert model.transformer.h[1].attn.c_proj.input.abs().max() == 0


def test_settings_that_change_nothing(model):
    assert model.eval() is model and model.train(False) is model and model.dispatched
    with pytest.raises(glassformer.UnsupportedError, match="no training mode"):
        model.train()
    with pytest.raises(glassformer.UnsupportedError, match="on this machine"):
        model.edit(backend="elsewhere")
