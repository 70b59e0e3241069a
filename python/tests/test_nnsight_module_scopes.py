"""Several inputs, nested traces, threads, and the rest of the vocabulary of `NNsight`."""

import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch_modules import make
from wrapped_modules import Counted, constant, expected, filled, layers_that_count, nothing_stays, wrapped

import glassformer
from glassformer.nnsight.nnsight_module import NNsight

__all__ = ["nothing_stays"]


# --- several inputs


def test_invokes():
    model, x = wrapped("mlp")
    other = x.flip(0)[:2]
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(x):
            first = model.first.output
            barrier()
        with tracer.invoke(other):
            barrier()
            model.first.output = first[:2]
            out = model.output
            assert torch.equal(tracer.result, out)
    edit = ("model.first", 0, "output", constant(first[:2].detach()))
    assert torch.equal(out, expected("mlp", edit, x=other)["model", 0, "output"])


def test_empty_invokes():
    model, x = wrapped("mlp")
    with model.trace() as tracer:
        with tracer.invoke(x):
            out = model.output
        with tracer.invoke():
            first = model.first.output
            model.second.output = torch.zeros(4, 8, dtype=torch.float64)
        with tracer.invoke():
            edited = model.output
    values = expected("mlp")
    assert torch.equal(out, values["model", 0, "output"]) and torch.equal(first, values["model.first", 0, "output"])
    zero = ("model.second", 0, "output", constant(torch.zeros(4, 8, dtype=torch.float64)))
    assert torch.equal(edited, expected("mlp", zero)["model", 0, "output"])


def test_wrong_invokes():
    model, x = wrapped("mlp")
    with pytest.raises(glassformer.InputError, match="has no input: give it one"), model.trace():
        pass
    with pytest.raises(glassformer.InputError, match="has an input itself"), model.trace(x) as tracer, tracer.invoke(x):
        pass
    with pytest.raises(glassformer.UnavailableError, match="no input yet"), model.trace() as tracer:
        print(tracer.result)
    with (
        pytest.raises(glassformer.UnavailableError, match="there is none yet"),
        model.trace() as tracer,
        tracer.invoke(),
    ):
        pass
    with pytest.raises(glassformer.UnsupportedError, match="runs of their own"), model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(x):
                pass
        with tracer.invoke():
            pass
    with model.trace() as tracer:
        with tracer.invoke(x):
            inside = model[0].output
        for asked in (
            lambda: model[0].output,
            lambda: model[0].skip(0),
            lambda: setattr(model[0], "input", x),
            lambda: model[0].next(),
            lambda: model.iter,
            lambda: model.all(),
        ):
            with pytest.raises(glassformer.UnavailableError, match=r"has no input here; .* tracer\.invoke"):
                asked()
        assert torch.equal(model[0](x), inside)
    error = pytest.raises(glassformer.InputError, match="inside of another")
    with error, model.trace() as tracer, tracer.invoke(x), tracer.invoke(x):
        pass


def test_inputs_that_are_no_arguments():
    model, x = wrapped("mlp")
    for wrong in (x, None, (x,), (x, {}), ((x,), None)):
        with model.trace(x):
            with pytest.raises(
                glassformer.InputError, match=r"model\.first\.inputs: expected \(\(…,\), \{…\}\); found"
            ):
                model[0].inputs = wrong
            model[0].inputs = ([x], {})


def test_stop_ends_one_input():
    model, x = layers_that_count()
    seen = []
    with model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(x):
                seen.append(model[0].output)
                tracer.stop()
        seen.append("after")
    assert len(seen) == 3 and len(Counted.runs) == 2


# --- nested and side by side


def test_nested_traces():
    model, x = wrapped("mlp")
    other, y = wrapped("residual")
    with model.trace(x):
        first = model.first.output
        with model.trace(x * 2):
            inner = model.first.output
            with other.trace(y):
                blocks = other.layers[1].output
            model.second.output[:] = 0
        again = model.second.output
        model.second.output[:, 0] = 1
        out = model.output

    def change(value):
        value[:, 0] = 1

    assert torch.equal(first, expected("mlp")["model.first", 0, "output"])
    assert torch.equal(inner, expected("mlp", x=x * 2)["model.first", 0, "output"])
    assert torch.equal(blocks, expected("residual")["model.layers.1", 0, "output"])
    assert torch.equal(again[:, 1:], expected("mlp")["model.second", 0, "output"][:, 1:])
    assert torch.equal(out, expected("mlp", ("model.second", 0, "output", change))["model", 0, "output"])


def test_stopping_an_outer_trace():
    model, x = wrapped("mlp")
    with model.trace(x) as outer:
        with model.trace(x * 2):
            seen = model.first.output
            outer.stop()
        raise AssertionError("the body went on")
    assert torch.equal(seen, expected("mlp", x=x * 2)["model.first", 0, "output"])


def test_two_threads():
    """Traces of one module in several threads don't see each other; neither do plain calls beside them."""
    model, x = wrapped("residual")
    wrong, known = [], {}
    for number in range(3):
        edit = ("model.layers.1", 0, "output", filled(number + 1.0))
        known[number] = [expected("residual", *edits, x=x * (number + 1)) for edits in ([edit], [])]

    def work(number):
        scale = number + 1.0
        for _ in range(10):
            with torch.no_grad(), model.trace(x * scale):
                early = model.layers[0].output
                model.layers[1].output[:, 0] = scale
                out = model.output

            values, clean = known[number]
            if not (
                torch.equal(out, values["model", 0, "output"])
                and torch.equal(early, values["model.layers.0", 0, "output"])
                and torch.equal(model._module(x * scale), clean["model", 0, "output"])
            ):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_plain_call_in_another_thread_while_a_trace_runs():
    model, x = wrapped("residual")
    module, plain = model._module, []

    def beside(*_):
        handle.remove()
        thread = threading.Thread(target=lambda: plain.append(module(x * 3)))
        thread.start()
        thread.join()

    handle = module.layers[0].register_forward_hook(beside)
    with model.trace(x):
        model.layers[2].output = torch.ones(2, 5, 6, dtype=torch.float64)
        seen = [layer.output for layer in model.layers]
    assert torch.equal(plain[0], expected("residual", x=x * 3)["model", 0, "output"])
    assert torch.equal(seen[1], expected("residual")["model.layers.1", 0, "output"])


@pytest.mark.parametrize("where", ["body", "module"])
def test_exceptions(where):
    """They go through as they are; nothing stays (see `nothing_stays`), and the model can be traced again."""
    model, x = wrapped("mlp")
    with pytest.raises(ZeroDivisionError if where == "body" else RuntimeError), model.trace(x):
        model.first.output  # noqa: B018
        if where == "body":
            1 / 0  # noqa: B018
        model.second.input = torch.ones(4, 3, dtype=torch.float64)
        model.output  # noqa: B018
    with model.trace(x):
        out = model.output
    assert torch.equal(out, expected("mlp")["model", 0, "output"])
    with model.trace(x):
        with pytest.raises(RuntimeError):
            model.second.input = torch.ones(4, 3, dtype=torch.float64)
            model.output  # noqa: B018
        model.second.input = torch.ones(4, 8, dtype=torch.float64)
        model.output  # noqa: B018


def test_nothing_is_kept_alive():
    model, x = wrapped("mlp")
    with model.trace(x) as tracer:
        model.second.output *= 2
        value = weakref.ref(model.output)
        model.output  # noqa: B018
    assert value() is None
    module = weakref.ref(model._module)
    del model
    gc.collect()
    assert module() is None and tracer is not None


# --- the rest of the vocabulary


def test_cache():
    model, x = wrapped("residual")
    with model.trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
        early = cache.layers[0].output
        model.layers[0].output[:] = 0.5
    values = expected("residual", ("model.layers.0", 0, "output", constant(torch.full((2, 5, 6), 0.5).double())))
    assert torch.equal(early, expected("residual")["model.layers.0", 0, "output"])
    for path, _ in model.named_modules():
        if (path, 0, "output") in values:
            assert torch.equal(cache[path].output, values[path, 0, "output"]), path
            assert torch.equal(cache[path].input, values[path, 0, "inputs"][0][0]), path
    assert list(cache.keys()) == [path for path, _, what in values if what == "inputs"]
    assert cache.layers[1].keys() == [key for key in cache.keys() if key.startswith("model.layers.1")]  # noqa: SIM118
    assert torch.equal(cache["layers.1.up"].output, cache.model.layers[1].up.output) and "model.layers.1.up" in cache
    assert "model.layers" not in cache and not cache.layers[0].output.requires_grad
    with pytest.raises(
        glassformer.NameError, match=r"model\.layers is not in the cache; it has: model, model\.layers\.0"
    ):
        print(cache.layers.output)
    with pytest.raises(glassformer.InputError, match="choose one"):
        print(cache.output)
    stored = pickle.loads(pickle.dumps(cache))
    assert torch.equal(stored["model.head"].output, cache.head.output)
    with pytest.raises(glassformer.UnavailableError, match="no model"):
        print(stored.head)


def test_cache_of_some():
    model, x = wrapped("recurrent")
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[model.cell, "model.out"], detach=False, device=None, dtype=torch.float32)
    values = expected("recurrent")
    assert [len(cache.cell), list(cache.keys())] == [5, ["model.cell", "model.out"]]
    for step, state in enumerate(cache.cell.output):
        assert torch.equal(state, values["model.cell", step, "output"].float()) and state.requires_grad


def test_cache_of_a_body_that_stops():
    model, x = layers_that_count()
    with model.trace(x) as tracer:
        cache = tracer.cache()
        model[1].output  # noqa: B018
        tracer.stop()
    assert "model.1" in cache and "model.2" not in cache


def test_scan():
    model, x = wrapped("cnn", training=True)
    state = {name: buffer.clone() for name, buffer in model._module.named_buffers()}
    drawn = torch.random.get_rng_state()
    with model.scan(x):
        shapes = [model.conv1.output.shape, model.head.input.shape, model.output.dtype]
        model.conv2.output[:, 0] = 0
        device = model.output.device
    assert shapes == [(4, 4, 6, 6), (4, 4), torch.float64] and device.type == "cpu"
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert all(torch.equal(buffer, state[name]) for name, buffer in model._module.named_buffers())
    with model.trace(x):
        assert model.conv1.output.shape == shapes[0]


def test_session_and_plain_calls():
    model, x = wrapped("mlp")
    with model.session():
        things = [].save()
        with model.trace(x):
            things.append(model.first.output)
        with model.trace(x):
            model.first.output = things[0] * 2
            out = model.output
    doubled = ("model.first", 0, "output", constant(things[0].detach() * 2))
    assert torch.equal(out, expected("mlp", doubled)["model", 0, "output"])
    plain = make("mlp")[0](x)
    assert torch.equal(model(x), plain) and torch.equal(model.trace(x, trace=False), plain)


def test_modules_called_in_the_body():
    model, x = wrapped("residual")
    torch.manual_seed(1)
    model.layers[1].probe = nn.Sequential(nn.Linear(6, 2), nn.Tanh()).double()
    assert isinstance(model._module.layers[1].probe, nn.Sequential)
    with model.trace(x):
        hidden = model.layers[1].output
        lens = model.head(hidden)
        probed = model.layers[1].probe(hidden, hook=True)
        inner, given = model.layers[1].probe[0].output, model.layers[1].probe.input
        assert model.layers[1].probe.output is probed
        probed[:] = 1  # One's own.
        with pytest.raises(glassformer.UnsupportedError, match="belongs to a call in the body"):
            model.layers[1].probe.output = probed
        kept = inner.clone()
        inner += 1
        with pytest.raises(glassformer.UnsupportedError, match="belongs to a call in the body"):
            model.output  # noqa: B018
        out = model.output
    values = expected("residual")
    assert torch.equal(lens, model._module.head(values["model.layers.1", 0, "output"]))
    assert torch.equal(kept, model._module.layers[1].probe[0](values["model.layers.1", 0, "output"]))
    assert torch.equal(given, hidden) and torch.equal(out, values["model", 0, "output"])


def test_a_probe_in_the_path_learns():
    """A module of the user's own between two layers has gradients."""
    model, x = wrapped("residual")
    torch.manual_seed(1)
    model.layers[1].probe = nn.Linear(6, 6).double()
    with model.trace(x):
        model.layers[1].output = model.layers[1].probe(model.layers[1].output, hook=True)
        (model.output**2).sum().backward()
    module = model._module
    found = module.layers[1].probe.weight.grad.clone()
    module.zero_grad()
    handle = module.layers[1].register_forward_hook(lambda layer, args, output: layer.probe(output))
    (module(x) ** 2).sum().backward()
    handle.remove()
    assert torch.allclose(found, module.layers[1].probe.weight.grad, atol=1e-13, rtol=0)


def test_the_tree():
    module, x = make("bert")
    model = NNsight(module, rename={"encoder.layer": "layers", "pooler": ["summary", "top"]})
    assert model._module is module and model.path == "model" and model.layers[1] is model.encoder.layer[1]
    assert len(model.layers) == 3 and [each.path for each in model.layers][2] == "model.encoder.layer.2"
    assert model.encoder.layer[0].E_output.path == "model.encoder.layer.0.output"
    assert model.encoder.layer[0].attention.self.query.weight is module.encoder.layer[0].attention.self.query.weight
    assert model.summary is model.top is model.pooler and model.config is module.config
    assert model.device == torch.device("cpu") and model.to(torch.float32) is model and module.dtype == torch.float32
    model.to(torch.float64)
    with model.trace(x):
        hidden = model.layers[1].E_output.dense.output
    assert torch.equal(hidden, expected("bert")["model.encoder.layer.1.output.dense", 0, "output"])
    twice, _ = wrapped("twice")
    assert twice.again is twice.inner
    assert [path for path, _ in twice.named_modules()].count("model.inner") == 1
    with pytest.raises(glassformer.InputError, match="takes a torch module; found str"):
        NNsight("gpt2")


def test_results_and_other_functions():
    class Generating(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Linear(6, 6)

        def forward(self, x):
            return self.step(x)

        def generate(self, x, times=3):
            seen = [x]
            for _ in range(times):
                seen.append(torch.tanh(self(seen[-1])))
            return torch.stack(seen)

    torch.manual_seed(0)
    model, x = NNsight(Generating().double()), torch.randn(2, 6, dtype=torch.float64)
    with model.trace(x, times=4, fn="generate") as tracer:
        clean = tracer.result
        for _ in tracer.iter[2]:
            model.step.output[:] = 0
        result = tracer.result
        calls = len([model.output for _ in tracer.iter[:]])
    module = model._module
    assert torch.equal(clean, module.generate(x, times=4)) and calls == 4
    assert torch.equal(result[:3], clean[:3]) and not result[3].any()
    assert torch.equal(result[4], torch.tanh(module(torch.zeros(2, 6, dtype=torch.float64))))
    with model.trace(x, fn=lambda x: module.generate(x, times=1)) as tracer:
        assert torch.equal(tracer.result, clean[:2])


def test_half_and_whole_numbers():
    model = NNsight(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4)).to(torch.bfloat16))
    tokens = torch.tensor([[1, 2, 3]])
    with model.trace(tokens):
        model[0].input[0, 1] = 6
        out = model.output
    module = model._module
    assert torch.equal(out, module(torch.tensor([[1, 6, 3]]))) and out.dtype == torch.bfloat16
    assert torch.equal(tokens, torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused(reentrant):
    """Its second forward, in the backward pass, is not the trace's: gradients would be wrong."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=reentrant))

    model, x = NNsight(Checkpointed().double()), torch.randn(2, 6, dtype=torch.float64)
    with (
        pytest.raises(glassformer.UnsupportedError, match=r"model\.block runs under torch\.utils\.check"),
        model.trace(x),
    ):
        print(model.output)
    with torch.no_grad(), model.trace(x):
        model.block[0].output *= 2
        out = model.output
    module = model._module
    assert torch.equal(out, module.head(torch.tanh(module.block[0](x) * 2)))
    with pytest.raises(glassformer.UnsupportedError, match=r"model\.block\.source"):
        print(model.block.source)


def test_compiled_modules_run_as_they_are_written():
    module, x = make("mlp")
    compiled = torch.compile(module, backend="eager")
    compiled(x)
    model = NNsight(compiled)
    with model.trace(x):
        model.second.output[:, 0] = 2
        out = model.output
    assert torch.equal(out, expected("mlp", ("model.second", 0, "output", filled(2)))["model", 0, "output"])
