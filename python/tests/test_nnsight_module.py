"""Reading and editing torch modules in any order, against plain hooks. Random reads and edits have their own tests."""

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch_hooks import Hooked, tensors
from torch_modules import make
from wrapped_modules import Counted, constant, expected, filled, nothing_stays, wrapped

import glassformer
from glassformer.nnsight.nnsight_module import NNsight

__all__ = ["nothing_stays"]


# --- reading


@pytest.mark.parametrize("kind", ["mlp", "cnn", "twice", "recurrent", "many", "encoder", "gpt_neo", "bert"])
def test_everything_in_the_wrong_order(kind):
    """Every input and output of every call, read last to first, is what hooks see."""
    model, x = wrapped(kind)
    values, envoys = expected(kind), dict(model.named_modules())
    with torch.no_grad(), model.trace(x) as tracer:
        for path, call, what in reversed(values):
            for _ in tracer.iter[call]:
                found = getattr(envoys[path], what)
            ours, theirs = tensors(found), tensors(values[path, call, what])
            assert len(ours) == len(theirs)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), path


def test_the_body_runs_once_as_ordinary_python():
    model, x = wrapped("mlp")
    seen = []
    with model.trace(x):
        seen.append(model.second.output)
        total = sum(each.sum() for each in seen)
        names = {"here": list(locals())}
    assert len(seen) == 1 and total == expected("mlp")["model.second", 0, "output"].sum() and "total" in names["here"]


def test_values_stay_as_they_were_read():
    """A change in place changes no other value that was read, not even one that is the same tensor in the module."""
    model, x = wrapped("cnn")
    with model.trace(x):
        normed, active = model.norm1.output, model.relu.input
        kept = normed.clone()
        before = model.relu.output
        active[:] = 7
        after = model.relu.output
        after[:] = 5
    assert torch.equal(normed, kept) and torch.equal(before, kept.relu())
    assert torch.equal(active, torch.full_like(kept, 7)) and torch.equal(after, torch.full_like(kept, 5))


def test_no_save_is_needed_and_save_is_everywhere():
    model, x = wrapped("mlp")
    with model.trace(x):
        plain = model.first.output
        saved = model.first.output.save()
        number = plain.shape[0].save()
        things = [1, "a"].save()
        computed = (plain * 2).save()
    assert saved is plain and number == 4 and things == [1, "a"] and torch.equal(computed, plain * 2)
    assert plain.value is plain


def test_trailing_code_runs():
    model, x = wrapped("recurrent")
    states = []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            states.append(model.cell.output)
        after = model.out.output
        last = "it ran"
    assert len(states) == 5 and last == "it ran" and torch.equal(after, expected("recurrent")["model.out", 0, "output"])


def test_users_tensors_are_left_alone():
    model, x = wrapped("mlp")
    kept, steering = x.clone(), torch.ones(8, dtype=torch.float64)
    with model.trace(x):
        model.input[:] = 3
        model.second.output = steering.expand(4, 8)
        seen = model.second.output
        seen *= 2
        assert type(model.first.weight) is nn.Parameter
    assert torch.equal(x, kept) and type(x) is torch.Tensor and type(steering) is torch.Tensor
    assert torch.equal(steering, torch.ones(8, dtype=torch.float64))


def test_what_is_not_there_says_so():
    model, x = wrapped("recurrent")
    with pytest.raises(glassformer.UnavailableError, match=r"model\.cell\.output is a value of a trace"):
        print(model.cell.output)
    with (
        model.trace(x) as tracer,
        pytest.raises(glassformer.UnavailableError, match=r"called 1 time .* call 2 was asked"),
    ):
        tracer.next(2)
        print(model.out.output)
    with model.trace(x), pytest.raises(AttributeError, match="no module or attribute 'cel'; its modules: embed, cell"):
        print(model.cel.output)
    encoder, x = wrapped("encoder")
    with (
        encoder.trace(x),
        pytest.raises(glassformer.UnavailableError, match=r"out_proj\.output: the module doesn't run"),
    ):
        print(encoder.layers[0].self_attn.out_proj.output)
    with pytest.raises(glassformer.UnavailableError, match="the trace is over"):
        print(tracer.result)
    with pytest.raises(glassformer.InputError, match="entered before"), tracer:
        pass


def test_an_edit_of_what_is_not_called_is_an_error():
    model, x = wrapped("residual")
    model.layers[0]._module.unused = nn.Linear(2, 2)
    with (
        pytest.raises(glassformer.UnavailableError, match=r"unused\.output was set, but nothing came of it"),
        model.trace(x),
    ):
        model.layers[0].unused.output = 3


# --- edits


def test_edits_count_in_any_order():
    model, x = wrapped("mlp")
    ones, twos = torch.ones(4, 8, dtype=torch.float64), torch.full((4, 8), 2.0, dtype=torch.float64)
    with model.trace(x):
        out = model.output
        model.second.output = twos  # Later in the run first.
        model.first.output = ones
        given = model.second.input
        edited = model.output
    values = expected(
        "mlp", ("model.first", 0, "output", constant(ones)), ("model.second", 0, "output", constant(twos))
    )
    assert torch.equal(edited, values["model", 0, "output"]) and torch.equal(
        given, values["model.second", 0, "inputs"][0][0]
    )
    assert torch.equal(out, expected("mlp")["model", 0, "output"])


def test_constants_stand():
    """A region stands whatever changes before it; the rest follows."""
    model, x = wrapped("mlp")
    with model.trace(x):
        model.second.output[:, 2:5] = 0.5
        model.first.output = torch.zeros(4, 8, dtype=torch.float64)
        seen, out = model.second.output, model.output

    def region(value):
        value[:, 2:5] = 0.5

    values = expected(
        "mlp",
        ("model.first", 0, "output", constant(torch.zeros(4, 8, dtype=torch.float64))),
        ("model.second", 0, "output", region),
    )
    assert torch.equal(seen, values["model.second", 0, "output"]) and torch.equal(out, values["model", 0, "output"])


def test_changes_in_place_belong_to_their_value():
    model, x = wrapped("mlp")
    with model.trace(x):
        model.second.output.mul_(2)
        model.output  # noqa: B018
        with pytest.raises(glassformer.OrderError) as error:
            model.first.output = torch.zeros(4, 8, dtype=torch.float64)
            model.output  # noqa: B018
        assert "model.second.output was changed in place" in str(error.value)
        assert "model.first.output was set" in str(error.value) and "Make that edit first" in str(error.value)
        model.second.output = torch.ones(4, 8, dtype=torch.float64)  # A way out.
        out = model.output
    values = expected(
        "mlp",
        ("model.first", 0, "output", constant(torch.zeros(4, 8, dtype=torch.float64))),
        ("model.second", 0, "output", constant(torch.ones(4, 8, dtype=torch.float64))),
    )
    assert torch.equal(out, values["model", 0, "output"])


def test_an_order_error_at_the_end():
    model, x = wrapped("mlp")
    with pytest.raises(glassformer.OrderError), model.trace(x):
        model.second.output += 1
        model.first.output[0] = 0


def test_an_edit_upstream_that_changes_nothing_is_none():
    model, x = wrapped("mlp")
    with torch.no_grad(), model.trace(x):
        model.second.output *= 2
        out = model.output
        model.first.output = model.first.output.clone()
        assert torch.equal(model.output, out)
    with pytest.raises(glassformer.OrderError), model.trace(x):
        model.second.output *= 2
        model.first.output = model.first.output.detach()  # The same numbers, but another graph.


def test_stale_values():
    model, x = wrapped("mlp")
    with model.trace(x):
        hidden = model.second.output
        model.first.output = torch.zeros(4, 8, dtype=torch.float64)
        hidden += 1
        with pytest.raises(
            glassformer.StaleEditError, match=r"model\.second\.output: a value that was read before model\.f"
        ):
            model.output  # noqa: B018
        clean = model.output
        hidden[:, 0] = 9  # A constant counts all the same.
        edited = model.second.output
    first = ("model.first", 0, "output", constant(torch.zeros(4, 8, dtype=torch.float64)))
    values = expected("mlp", first)
    assert torch.equal(clean, values["model", 0, "output"])
    values["model.second", 0, "output"][:, 0] = 9
    assert torch.equal(edited, values["model.second", 0, "output"])


@pytest.mark.parametrize("how", ["numpy", "data", "view", "out"])
def test_changes_that_go_round_python(how):
    model, x = wrapped("mlp")
    with torch.no_grad(), model.trace(x):
        hidden = model.second.output
        if how == "numpy":
            hidden.numpy()[:, 1] = 4
        elif how == "data":
            hidden.data[:, 1] = 4
        elif how == "view":
            hidden.T[1].fill_(4)
        else:
            torch.mul(torch.ones(4, dtype=torch.float64), 4, out=hidden[:, 1])
        out = model.output

    def change(value):
        value[:, 1] = 4

    assert torch.equal(out, expected("mlp", ("model.second", 0, "output", change))["model", 0, "output"])


def test_a_numpy_array_that_is_changed_later():
    model, x = wrapped("mlp")
    with torch.no_grad(), model.trace(x):
        array = model.second.output.numpy()
        assert np.array_equal(array, expected("mlp")["model.second", 0, "output"].numpy())
        before = model.output
        array[:, 1] = 4
        out = model.output

    def change(value):
        value[:, 1] = 4

    assert torch.equal(before, expected("mlp")["model", 0, "output"])
    assert torch.equal(out, expected("mlp", ("model.second", 0, "output", change))["model", 0, "output"])


def test_what_a_function_in_place_returns_is_its_argument():
    """Nobody uses what the second call returns; the change reaches the tensor it was given."""
    model, x = wrapped("cnn")

    def change(value):
        value[:, 1] = 0.3

    with torch.no_grad(), model.trace(x) as tracer:
        for _ in tracer.iter[1]:
            change(model.relu.output)
        out = model.output
    values = expected("cnn", ("model.relu", 1, "output", change))
    assert torch.equal(out, values["model", 0, "output"])
    assert not torch.equal(out, expected("cnn")["model", 0, "output"])


def test_a_module_that_returns_its_argument():
    """It is one tensor: a change in place of what it returns is one of the argument, in every run."""

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.head = nn.Dropout(0.5), nn.Linear(6, 6)

        def forward(self, x):
            x = torch.tanh(x)
            return self.head(x + self.same(x) + x)

    module, x = Same().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    model = NNsight(module)
    with torch.no_grad(), model.trace(x):
        model.same.output[:, 0] = 5
        first = model.output
        model.head.output = model.head.output * 2
        out = model.output

    edits = [("model.same", 0, "output", filled(5))]
    assert torch.equal(first, Hooked(module).run((x,), edits=edits)[0]["model", 0, "output"])
    assert torch.equal(out, 2 * Hooked(module).run((x,), edits=edits)[0]["model.head", 0, "output"])


def test_an_input_that_was_put_is_nobody_elses():
    """A function in place changes what it was given, not what its caller has; a gradient by it is its own."""
    model, x = wrapped("cnn")
    with torch.no_grad(), model.trace(x) as tracer:
        for _ in tracer.iter[1]:
            model.relu.input = torch.full_like(model.relu.input, 3)
        out = model.output

    def replace(value):
        return (torch.full_like(value[0][0], 3),), value[1]

    assert torch.equal(out, expected("cnn", ("model.relu", 1, "inputs", replace))["model", 0, "output"])
    model, x = wrapped("mlp")
    with model.trace(x):
        model.second.input = model.second.input * 1
        given = model.second.input
        given.mul_(2)
        seen, loss = model.second.output, (model.output**2).sum()
        loss.backward()
    assert torch.allclose(given.grad, seen.grad @ model.second.weight, atol=1e-14, rtol=0)
    other, _ = wrapped("mlp")
    with other.trace(x):
        other.second.input = other.second.input * 2
        put, seen = other.second.input, other.second.output
        (other.output**2).sum().backward()
    assert torch.allclose(put.grad, seen.grad @ other.second.weight, atol=1e-14, rtol=0)
    module, _ = make("mlp")
    stream = torch.tanh(module.first(x))
    (module.head(module.act(module.second(stream * 2)) + stream) ** 2).sum().backward()
    assert torch.allclose(model.first.weight.grad, module.first.weight.grad, atol=1e-13, rtol=0)


def test_generation_of_a_model_with_a_cache():
    """Sampling, step by step, with reads and edits: tokens as from one call."""
    module, x = make("gpt_neo")
    module.generation_config.update(pad_token_id=0, eos_token_id=None, max_new_tokens=4)
    torch.manual_seed(0)
    plain = module.generate(x, do_sample=True)
    after = torch.rand(2)
    model = NNsight(module)
    torch.manual_seed(0)
    with model.trace(x, fn="generate", do_sample=True) as tracer:
        early = model.transformer.h[1].mlp.output
        logits = [model.lm_head.output[:, -1] for _ in tracer.iter[:]]
        ids = tracer.result
    assert torch.equal(ids, plain) and torch.equal(torch.rand(2), after) and len(logits) == 4 and early.shape[1] == 7
    with model.trace(x, fn="generate", do_sample=False) as tracer:
        greedy = tracer.result
        for step in tracer.iter[1:3]:
            model.lm_head.output[:, -1, step] = 1000
        ids = tracer.result
    assert ids[:, 8:10].tolist() == [[1, 2], [1, 2]] and torch.equal(ids[:, :8], greedy[:, :8])


def test_containers():
    """Entries of dicts, lists and dataclasses that modules return can be replaced."""
    model, x = wrapped("many")
    three = torch.full((4, 4), 3.0, dtype=torch.float64)
    with model.trace(x):
        model.join.output["sum"] = three
        model.output.parts[0] = three
        model.output.note = "another"
        out, note, parts = model.output.total, model.output.note, model.output.parts
        with pytest.raises(TypeError):
            model.split.output[0] = three
        with pytest.raises(glassformer.UnsupportedError, match="entries were added or removed"):
            model.join.output["more"] = three
            model.output  # noqa: B018

    def replace(value):
        value["sum"] = three

    values = expected("many", ("model.join", 0, "output", replace))
    assert torch.equal(out, values["model", 0, "output"]["total"]) and note == "another"
    assert torch.equal(parts[0], three) and torch.equal(parts[1], three)


def test_keyword_inputs():
    model, x = wrapped("many")
    with model.trace(x, shift=torch.ones(4, dtype=torch.float64)):
        model.join.inputs[1]["right"] = model.join.inputs[1]["right"] * 2
        model.split.inputs[1]["shift"][:] = 5
        total = model.output.total

    def double(value):
        return value[0], {"right": value[1]["right"] * 2}

    def shift(value):
        value[1]["shift"][:] = 5

    module, x = make("many")
    right = Hooked(module).run((x,), {"shift": torch.ones(4, dtype=torch.float64)})[0]["model.join", 0, "inputs"][1][
        "right"
    ]
    edits = [
        ("model.split", 0, "inputs", shift),
        ("model.join", 0, "inputs", lambda value: (value[0], {"right": right * 2})),
    ]
    values = Hooked(module).run((x,), {"shift": torch.ones(4, dtype=torch.float64)}, edits=edits)[0]
    assert torch.equal(total, values["model", 0, "output"]["total"])


def test_whole_numbers_and_other_things_can_be_put():
    model, x = wrapped("many")
    with model.trace(x):
        model.split.output = (torch.ones(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64), "word")
        given = model.split.output
        total = model.output.total
    values = expected(
        "many",
        ("model.split", 0, "output", constant((torch.ones(4, 4).double(), torch.zeros(4, 4).double(), "word"))),
    )
    assert given[2] == "word" and torch.equal(total, values["model", 0, "output"]["total"])


def test_skip_and_what_is_inside():
    Counted.runs.clear()
    module = nn.Sequential(nn.Linear(6, 6), Counted(nn.Linear(6, 6)), nn.Tanh()).double()
    model, x = NNsight(module), torch.randn(3, 6, dtype=torch.float64)
    with model.trace(x):
        model[1].skip(model[1].input * 2)
        out = model.output
        with pytest.raises(glassformer.UnavailableError, match=r"model\.1 is skipped"):
            model[1].inner.output  # noqa: B018
    assert Counted.runs == [] and torch.equal(out, torch.tanh(module[0](x) * 2))
