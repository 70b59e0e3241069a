"""Models in other dtypes and on other devices."""

import copy

import pytest
import torch
from helpers import assert_close, run_reference, subject
from tiny_models import as_dtype, make_model, random_tokens

import glassformer


@pytest.mark.parametrize("source", ["live", "file", "loaded file"])
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_models_in_other_dtypes(tmp_path, name, dtypes, source):
    old, new = (getattr(torch, dtype) for dtype in dtypes)
    reference, tokens = make_model(name), random_tokens(1, 6)
    if source != "live":
        reference.save_pretrained(tmp_path)
    as_dtype(reference, old)
    model = glassformer.load(reference) if source == "live" else glassformer.load(tmp_path, dtype=old)
    trace = model.trace(tokens)
    if source == "loaded file":
        trace.run()
    if source != "file":
        model.weights["blocks.1.mlp.out.weight"].mul_(2)
        if source == "loaded file":
            with torch.no_grad():
                parameter = dict(reference.named_parameters())[
                    "transformer.h.1.mlp.c_proj.weight" if name == "gpt2" else "model.layers.1.mlp.down_proj.weight"
                ]
                parameter.mul_(2)
    other = model.to(new)
    assert (other.dtype, other.name, model.dtype) == (new, model.name, old)
    before = trace.logits
    expected_from = as_dtype(copy.deepcopy(reference), new)
    expected = glassformer.load(expected_from)
    for key in other.weights:
        assert other.weights[key].dtype == new and torch.equal(other.weights[key], expected.weights[key]), key
    assert torch.equal(other.trace(tokens).logits, expected.trace(tokens).logits)
    limit = 0.05 if new == torch.bfloat16 else 1e-5
    assert_close(other.trace(tokens).logits, run_reference(expected_from, tokens).logits, limit)
    for weight in model.weights.values():
        weight.mul_(0.5)
    for key in other.weights:
        assert torch.equal(other.weights[key], expected.weights[key]), key
    changed = trace.logits
    assert not torch.equal(changed, before)
    other.weights["embed.weight"].mul_(3)
    assert torch.equal(trace.logits, changed) and trace.model is model


def test_a_conversion_is_of_one_moment(tmp_path):
    """What is converted, and when, doesn't depend on what was loaded before."""
    make_model("gpt2").save_pretrained(tmp_path)
    model = glassformer.load(tmp_path)
    model.weights["ln_final.weight"].mul_(2)
    other = model.to(torch.float64)
    for weight in model.weights.values():
        weight.mul_(7)
    fresh = glassformer.load(tmp_path).weights
    for name in other.weights:
        factor = 2 if name == "ln_final.weight" else 1
        assert torch.equal(other.weights[name], fresh[name].double() * factor), name
    reference = make_model("gpt2")
    copied = glassformer.load(reference, dtype=torch.float64)
    kept = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(2)
    assert torch.equal(copied.weights["embed.weight"], kept["transformer.wte.weight"].double())


def test_the_ways_to_ask_for_another_dtype():
    model = glassformer.load(make_model("gpt2"))
    for same in (model.to("cpu"), model.to(torch.float32), model.to(dtype="float32", device="cpu"), model.to()):
        assert same is model
    narrow = [
        model.to(torch.bfloat16),
        model.to("bfloat16"),
        model.to("cpu", torch.bfloat16),
        model.to(dtype=torch.bfloat16),
        model.to(torch.device("cpu"), dtype="bfloat16"),
    ]
    assert all(one.dtype == torch.bfloat16 and one.device == torch.device("cpu") for one in narrow)
    assert not model.weights["embed.weight"].requires_grad
    weights = model.requires_grad_().to(torch.float64).weights
    assert all(weight.requires_grad and weight.is_leaf for weight in weights.values())
    assert weights["embed.weight"] is weights["unembed.weight"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.int8,), {}, glassformer.UnsupportedError, "dtype Char is not supported; supported: float32"),
        (("meta",), {}, glassformer.UnsupportedError, "device meta holds no numbers"),
        (("nowhere",), {}, glassformer.InputError, "'nowhere' is no device; expected one like cpu or cuda:0"),
        ((), {"dtype": "float33"}, glassformer.InputError, "'float33' is no dtype"),
        (("cpu",), {"device": "cpu"}, glassformer.InputError, "takes one dtype and one device"),
        ((1.5,), {}, TypeError, "takes a dtype and a device; found float"),
    ],
)
def test_wrong_conversions(arguments, options, error, message):
    model = subject("gpt2").model
    with pytest.raises(error, match=message) as caught:
        model.to(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)
    message = "^device cuda is not there: this torch or this machine has none; use cpu$"
    for ask in (
        lambda: subject("gpt2").model.to("cuda"),
        lambda: glassformer.load(tmp_path, device="cuda"),
        lambda: glassformer.load(subject("gpt2").reference, device="cuda"),
    ):
        with pytest.raises(glassformer.UnsupportedError, match=message):
            ask()
