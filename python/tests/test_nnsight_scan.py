"""Scans: shapes against those of the same body in a trace, what asks for values, and that nothing is computed."""

import copy
import logging

import numpy
import pytest
import torch
from tiny_models import make_model, random_tokens

import glassformer
from glassformer.nnsight import LanguageModel

KINDS = ["gpt2", "llama_grouped", "mistral_window"]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return LanguageModel(make_model(request.param, torch.float64))


def modules_of(model):
    return [each for each in model.modules() if getattr(each, "place", None) is not None and each.place.outputs]


def shape(value):
    if isinstance(value, tuple):
        return tuple(shape(each) for each in value)
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return (tuple(value.shape), value.dtype, value.device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    "ids", [random_tokens(2, 6), random_tokens(1, 1), [[1, 2, 3], [4, 5]]], ids=["two", "one", "?"]
)
def test_every_module(model, ids):
    def everything():
        found = {}
        for module in modules_of(model):
            output = module.output
            found[module.path, "output"] = shape(tuple(output) if isinstance(output, tuple) else output[:])
            if module.place.inputs:
                found[module.path, "input"] = shape(module.input)
                found[module.path, "inputs"] = shape(module.inputs)
            for operation in module.source:
                found[operation.node] = shape(operation.output)
        found["logits"] = shape(model.output.logits)
        return found

    with model.trace(ids) as tracer:
        expected = everything()
    with model.scan(ids) as tracer:
        found = everything()
        traces = tracer.traces
    assert found == expected
    assert all(trace.work() == {} for trace in traces)


def test_types_below_float32():
    model = LanguageModel(make_model("llama_grouped", torch.bfloat16))
    with model.scan([1, 2]):
        nodes = {operation.node: operation.output.dtype for each in modules_of(model) for operation in each.source}
    trace = model.engine.trace([1, 2])
    assert nodes == {node: trace.read(node).dtype for node in nodes}


def test_invokes(model):
    with model.scan() as tracer:
        with tracer.invoke([1, 2, 3]):
            first = model.output.logits
        with tracer.invoke(random_tokens(2, 5)):
            second = model.output.logits
        with tracer.invoke():
            both = model.output.logits
            norm = modules_of(model)[-1].output
    assert [list(each.shape[:2]) for each in (first, second, both, norm)] == [[1, 3], [2, 5], [3, 5], [3, 5]]


def stream(model):
    return (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[1].output


def test_operations_and_values_afterwards(model):
    with model.scan(random_tokens(2, 6)):
        hidden = stream(model)[0]
        mixed = torch.ones(6, 6, dtype=torch.float64) @ hidden + torch.ones(1)
        best = hidden.max(dim=-1)
        hidden[:, 1] = 0
        hidden[hidden > 0] = 1
        first = hidden.t[0]
        several = hidden.token[[0, -1]]
        scores = model.lm_head(hidden)
        rows = [row.shape for row in hidden]
        copied = copy.deepcopy(hidden)
    assert mixed.shape == (2, 6, hidden.shape[-1]) and best.values.shape == best.indices.shape == (2, 6)
    assert first.shape == (2, hidden.shape[-1]) and several.shape == (2, 2, hidden.shape[-1])
    assert scores.shape == (2, 6, model.node_axes["logits"].sizes[-1]) and len(rows) == len(hidden) == 2
    assert copied.shape == hidden.shape and (hidden * 2).sum().shape == () and hidden.save().value is hidden
    assert hidden.device == model.device and "ShapeTensor" in repr(hidden)


VALUES = {
    "bool(tensor)": lambda x: bool(x.sum() > 0),
    ".item()": lambda x: x.sum().item(),
    ".tolist()": lambda x: x.tolist(),
    ".numpy()": lambda x: x.numpy(),
    "numpy": lambda x: numpy.asarray(x),
    "float(tensor)": lambda x: (float(x.sum()), torch.tensor([x.sum()])),
    "int(tensor)": lambda x: int(x.sum()),
    "an index": lambda x: [1, 2, 3][x.argmax()],
    "torch.equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "tensor[mask]": lambda x: x[x > 0],
    ".backward": lambda x: x.sum().backward(),
    ".grad": lambda x: x.grad,
    "add_": lambda x: torch.zeros(x.shape).add_(x),
    "__setitem__": lambda x: torch.zeros(3).__setitem__(0, x.sum()),
    "pickling": lambda x: __import__("pickle").dumps(x),
}


@pytest.mark.parametrize("asked", VALUES)
def test_values_are_refused_by_name(model, asked):
    with model.scan([1, 2, 3]):
        hidden = stream(model)[0]
        with pytest.raises(glassformer.UnsupportedError, match="a scan knows shapes only") as refused:
            VALUES[asked](hidden)
    assert asked in str(refused.value)


def test_numbers_of_a_trace_are_refused_one_by_one(model):
    total = torch.zeros(())
    with model.scan([1, 2, 3]):
        hidden = stream(model)[0]
        for asking in (lambda: torch.tensor([hidden.sum()]), lambda: total.__iadd__(hidden.sum())):
            with pytest.raises(glassformer.UnsupportedError, match="shapes only"):
                asking()
    assert total == 0


def test_conditions_are_refused(model):
    with pytest.raises(glassformer.UnsupportedError, match="`if tensor`"), model.scan([1, 2, 3]):
        if stream(model)[0].sum() > 0:
            pass


def test_sets_check_shapes(model):
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[0]
    with model.scan([1, 2, 3]):
        width = block.output[0].shape[-1]
        block.output = torch.zeros(1, 3, width)
        block.mlp.input = block.mlp.input * 2
        block.output[0][:] = 1
        for wrong in (torch.zeros(width + 1), torch.zeros(1, 4, width), torch.zeros(2, 1, 3, width)):
            with pytest.raises(glassformer.ShapeError, match="expected"):
                block.output = wrong
            with pytest.raises(glassformer.ShapeError, match="expected"):
                block.mlp.input = wrong
        norm = next(each for each in block.children if each.place.part == "attn_norm")
        norm.input = norm.input + 1
        with pytest.raises(glassformer.ShapeError, match="expected"):
            norm.input = torch.zeros(width + 1)
        with pytest.raises(glassformer.ShapeError, match="last axis"):
            block.mlp(torch.zeros_like(block.output[0])[..., 1:])
        with pytest.raises(RuntimeError):
            block.output[0] + torch.zeros(width + 1)
    with pytest.raises(glassformer.UnavailableError, match="trace"):
        block.output = 0


def test_torchs_log_stays_silent(model, caplog, capfd):
    with model.scan([1, 2, 3]), pytest.raises(RuntimeError):
        stream(model)[0] + torch.zeros(7)
    assert not caplog.records and capfd.readouterr() == ("", "")
    assert not logging.getLogger("torch._subclasses.fake_tensor").disabled


class Probe(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = torch.nn.Linear(width, 5, dtype=torch.float64)

    def forward(self, x):
        return torch.relu(self.inner(x)).sum(-1)


def test_modules_of_ones_own(model):
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[0]
    width = model.node_axes["blocks.0.hook_resid_post"].sizes[-1]
    block.probe = Probe(width)
    with model.scan(random_tokens(2, 4)):
        with pytest.raises(glassformer.UnavailableError, match="hook=True"):
            block.probe.output  # noqa: B018
        assert block.probe(block.output[0]).shape == (2, 4)
        block.probe(block.output[0], hook=True)
        assert block.probe.inner.output.shape == (2, 4, 5) and block.probe.input.shape == (2, 4, width)


def test_modules_of_ones_own_in_an_invoke(model):
    model.probe = torch.nn.Linear(3, 2, dtype=torch.float64)
    with model.scan() as tracer, tracer.invoke(random_tokens(1, 4)):
        model.probe.input = torch.zeros(5, 3, dtype=torch.float64)
        found = model.probe(torch.zeros(9, 3, dtype=torch.float64), hook=True)
        assert model.probe.input.shape == (5, 3) and found.shape == (5, 2)


def test_scans_of_one_model_in_a_trace_of_another(model):
    other = LanguageModel(make_model("gpt2", torch.float64))
    with other.trace([1, 2, 3]):
        with model.scan([1, 2]):
            assert stream(model)[0].shape[1] == 2
        found = stream(other)[0]
    assert found.shape[1] == 3 and found.isfinite().all()


def test_loss(model):
    ids = random_tokens(2, 6)
    with model.scan(ids, labels=ids):
        assert model.output.loss.shape == ()


def test_modules_called_on_shapes(model):
    ids = random_tokens(2, 5)
    listed = [each for each in modules_of(model) if each.place.inputs and each is not model]
    called = [each for each in listed if each.place.part != "rotary"]
    expected, found = {}, {}
    with model.trace(ids):
        for module in called:
            output = module(module.input)
            expected[module.path] = shape(tuple(output) if isinstance(output, tuple) else output[:])
    with model.scan(ids):
        for module in called:
            output = module(module.input)
            found[module.path] = shape(output if isinstance(output, tuple) else output[:])
        for rotary in set(listed) - set(called):
            with pytest.raises(glassformer.UnsupportedError, match="can't be run on shapes"):
                rotary(rotary.input)
        with pytest.raises(glassformer.InputError, match="takes one tensor; found tuple"):
            model.lm_head((model.lm_head.input,))
        with pytest.raises(glassformer.ShapeError, match="a last axis of"):
            model.lm_head(model.lm_head.output)
        with pytest.raises(glassformer.ShapeError, match="expected batch pos d_model"):
            blocks_of(model)[0](blocks_of(model)[0].input[0])
    assert len(called) > 15 and found == expected


def blocks_of(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def test_tokens_by_index(model):
    with model.scan([[1, 2, 3], [4, 5]]):
        hidden = blocks_of(model)[0].output[0]
        assert hidden.t[-1].shape == hidden.token[0].shape == (2, hidden.shape[-1])
        assert hidden.token[[0, 1]].shape == hidden.token[:2].shape == (2, 2, hidden.shape[-1])
        hidden.token[0] = 1
        hidden.t[0] += 1
        assert hidden[0].t().shape == hidden.shape[:0:-1]
        with pytest.raises(glassformer.InputError, match="token 2: sequence 1 has 2 tokens"):
            hidden.token[2]
        with pytest.raises(glassformer.InputError, match="different numbers of these tokens: 3, 2"):
            hidden.token[:]
        with pytest.raises(glassformer.InputError, match="found a tensor that was computed from one"):
            (hidden + 1).token[0]


def test_what_python_asks_of_tensors(model):
    with model.scan(random_tokens(2, 5)):
        hidden = blocks_of(model)[0].output[0]
        assert f"{hidden}" == repr(hidden) and "shape=[2, 5," in f"{hidden}"
        assert [each.shape for each in reversed(hidden)] == [hidden.shape[1:]] * 2
        assert copy.deepcopy(hidden).shape == hidden.shape
        with pytest.raises(TypeError, match="0-d tensor"):
            len(hidden.sum())
        pair = blocks_of(model)[0].output
    with pytest.raises(glassformer.UnavailableError, match="closed"):
        pair[0] = 1
    with model.scan(random_tokens(2, 5)), pytest.raises(glassformer.UnsupportedError, match="together with another's"):
        blocks_of(model)[0].output[0] + hidden


def test_old_inputs(model):
    """`.input[0][0]` is the whole argument where an index can't be a row's; an output's is a row."""
    mlp = model.get("transformer.h.1.mlp" if hasattr(model, "transformer") else "model.layers.1.mlp")
    for opened in (model.scan(random_tokens(2, 6)), model.trace(random_tokens(2, 6))):
        with opened:
            whole, row = mlp.input, mlp.input[0][0]
            assert [*row.shape] == [*whole.shape[2:]]
            assert row[:, 1].shape == whole[:, 1].shape and row.t[0].shape == whole[:, 0].shape
            assert (
                row[0].shape == () and type(row[0]) is type(row.sum()) and mlp.input[0][1:].shape == whole[0, 1:].shape
            )
            row[:, 1] = 2
            ids = model.get("transformer.wte" if hasattr(model, "transformer") else "model.embed_tokens").input
            assert ids[0][0][:, 1].shape == (2,) and ids[0][0].t[0].shape == (2,)
            with pytest.raises(IndexError):
                mlp.output[0][0][:, 1]
