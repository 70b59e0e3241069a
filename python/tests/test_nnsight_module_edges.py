"""What is seldom asked of `NNsight`: arguments by name, entries of containers, modules that change their minds."""

import threading

import pytest
import torch
from torch import nn
from wrapped_modules import expected, nothing_stays, wrapped

import glassformer
from glassformer.nnsight.nnsight_module import NNsight

__all__ = ["nothing_stays"]


class Given(nn.Module):
    """Hands what it is given by name, and `function` of it, to its layer."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4).double(), function

    def forward(self, x):
        return self.layer(input=self.function(x))


class Bare(nn.Module):
    """Has a child that takes nothing, and one that may raise."""

    class Constant(nn.Module):
        def forward(self):
            return torch.arange(4.0)

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            if self.inner(x).sum() > 0:
                raise ArithmeticError
            return x * 2

    def __init__(self):
        super().__init__()
        self.constant, self.fragile = self.Constant(), self.Fragile()

    def forward(self, x):
        x = x + self.constant()
        try:
            return self.fragile(x)
        except ArithmeticError:
            return self.fragile(-x)


def test_inputs_by_name():
    model = NNsight(Given(torch.sin))
    x = torch.linspace(0, 1, 4, dtype=torch.float64)
    with model.trace(x=x):
        assert torch.equal(model.input, x) and torch.equal(model.layer.input, x.sin())
        assert torch.equal(model.layer.inputs[1]["input"], x.sin())
        model.layer.input = x
        assert torch.equal(model.output, model.layer(x))


def test_a_module_without_arguments_and_one_that_raises():
    model, x = NNsight(Bare()), torch.ones(4)
    with model.trace(x) as tracer:
        assert torch.equal(model.constant.output, torch.arange(4.0))
        with pytest.raises(glassformer.UnavailableError, match="module is called without arguments"):
            model.constant.input  # noqa: B018
        for call in tracer.iter[:2]:
            assert torch.equal(model.fragile.inner.output, (x + torch.arange(4.0)) * (-1) ** call)
        model.constant.output[:] = 2
        assert torch.equal(model.output, -2 * (x + 2))


def test_entries_of_containers():
    model, x = wrapped("many")
    values = expected("many")
    joined = {name: each.clone() for name, each in values["model.join", 0, "output"].items()}
    with model.trace(x):
        before = model.join.output
        before["sum"] = joined["sum"] * 2
        assert torch.equal(model.output.total, model.head(joined["sum"] * 2 * joined["product"]))
        model.split.output[0][:] = 0
        with pytest.raises(glassformer.StaleEditError, match="was changed, but it was read before"):
            before["sum"] = joined["sum"]
            model.output  # noqa: B018
    with model.trace(x), pytest.raises(glassformer.UnsupportedError, match="entries were added or removed"):
        model.join.output["more"] = x
        model.output  # noqa: B018
    with model.trace(x):
        model.join.output = {**joined, "sum": joined["product"]}
        assert torch.equal(model.output.total, model.head(joined["product"] ** 2))


def test_a_part_that_a_later_run_has_no_more():
    model = NNsight(nn.Sequential(nn.Linear(4, 4), Pairs(), Pairs()).double())
    x = torch.ones(2, 4, dtype=torch.float64)
    message = r"model.1.output\[1\] was set in a region, but it has no such part in this run"
    with pytest.raises(glassformer.ShapeError, match=message), model.trace(x):
        model[1].output[1][:, 0] = 1
        model[0].output = torch.full((2, 4), -1.0, dtype=torch.float64)


class Pairs(nn.Module):
    """Returns a pair, or of eight times -1 a tuple of one; of these the first."""

    def forward(self, x):
        if isinstance(x, tuple | list):
            return x[0]
        return (x, x.abs()) if x.sum() != -8 else (x,)


@pytest.mark.parametrize("change", ["numbers", "structure", "kind", "constant"])
def test_modules_that_compute_something_else_the_second_time(change):
    calls = []

    class Other(nn.Module):
        def forward(self, x):
            calls.append(x)
            again = len(calls) > 1
            if change == "numbers":
                return x + again, 1, None
            if change == "structure":
                return (x, 1, None)[: 2 if again else 3]
            return (1 if again else x, 1, None) if change == "kind" else (x, 1 + again, None)

    class Late(nn.Module):
        def forward(self, given):
            return given[0] * 2

    model = NNsight(nn.Sequential(nn.Dropout(0.5), Other(), Late()))
    with pytest.raises(glassformer.UnsupportedError, match="computed something else"), model.trace(torch.ones(3)):
        model[1].output  # noqa: B018
        model[2].input  # noqa: B018
        model[2].output[:] = 1
        model.output  # noqa: B018


def test_objects_that_belong_to_a_run():
    class Notes:
        """Remembers what was put into it."""

        def __init__(self):
            self.seen = []

    class Noting(nn.Module):
        def forward(self, x, notes):
            notes.seen.append(float(x.sum()))
            return x * 2, notes

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Noting(), Noting()

        def forward(self, x, notes):
            x, notes = self.first(x, notes)
            return self.second(x, notes)[0]

    model, notes = NNsight(Whole()), Notes()
    with model.trace(torch.ones(2), notes):
        args, kwargs = model.second.inputs
        with pytest.raises(glassformer.UnsupportedError, match="a Notes that was read from this trace belongs"):
            model.second.inputs = ((args[0] * 3, args[1]), kwargs)
        model.second.input = args[0] * 3
        assert torch.equal(model.output, torch.full((2,), 12.0))
    assert notes.seen == [2.0, 12.0]
    unknown = Notes()
    unknown.seen = [torch.ones(2, requires_grad=True) * 2]  # Which can't be copied.
    with (
        pytest.raises(glassformer.UnsupportedError, match=r"an argument of type Notes, .* can't be copied"),
        model.trace(torch.ones(2), unknown),
    ):
        model.output  # noqa: B018


def test_values_after_the_trace_are_ordinary_tensors():
    model, x = wrapped("mlp")
    with model.trace(x):
        first = model.first.output
    first[:, 0] = 7
    first[:, 1] += 1
    assert first[:, 0].unique().tolist() == [7]


def test_memory_that_isnt_torchs():
    numbers = torch.linspace(0, 1, 24, dtype=torch.float64).reshape(4, 6).numpy()
    model, _ = wrapped("mlp")
    x = torch.from_numpy(numbers)
    with model.trace(x):
        assert torch.equal(model.first.input, x)
        model.first.input[:] = 0
        found = model.output
    assert torch.equal(found, expected("mlp", x=torch.zeros_like(x))["model", 0, "output"]) and numbers[-1, -1] == 1


def test_a_trace_that_cannot_begin():
    model, x = wrapped("mlp")
    with pytest.raises(AttributeError, match="nothing"), model.trace(x, fn="nothing"):
        pass
    assert not hasattr([], "save")
    with model.trace() as tracer, tracer.invoke(x):
        pass
    with pytest.raises(glassformer.UnavailableError, match="belongs inside"), tracer.invoke(x):
        pass


def test_where_a_module_is():
    model, _ = wrapped("mlp")
    assert model.devices == {torch.device("cpu")} and model.cpu() is model
    with pytest.raises(glassformer.InputError, match="a module can't be called 'output'"):
        model.output = nn.Linear(2, 2)
    if torch.cuda.is_available():
        assert model.cuda() is model and model.device.type == "cuda"


def test_another_threads_forward_is_not_the_traces():
    model, x = wrapped("mlp")
    found = []

    class Elsewhere(nn.Module):
        def forward(self, x):
            thread = threading.Thread(target=lambda: found.append(model._module.second(x)))
            thread.start()
            thread.join()
            return x

    model._module.act = Elsewhere()
    again = NNsight(model._module)
    with again.trace(x):
        again.second.output = torch.zeros(4, 8, dtype=torch.float64)
        again.output  # noqa: B018
    assert torch.equal(found[0], model._module.second(torch.zeros(4, 8, dtype=torch.float64)))


def test_another_structure_in_the_place_of_a_dict():
    class Bag:
        """Has entries, and is no dict."""

        def __init__(self, entries):
            self.entries = entries

        def __getitem__(self, name):
            return self.entries[name]

    model, x = wrapped("many")
    values = expected("many")["model.join", 0, "output"]
    total, product = values["sum"].detach(), values["product"].detach()
    with model.trace(x):
        model.join.output = {"sum": total * 3, "product": product, "more": 1}
        assert torch.equal(model.output.total, model.head(total * 3 * product))
        assert model.join.output["more"] == 1
    with model.trace(x):
        old = model.join.output["product"]
        model.join.output = Bag({"sum": total, "product": product * 2})
        assert torch.equal(model.output.total, model.head(total * (product * 2)))
        with pytest.raises(glassformer.StaleEditError, match=r"read before model.join.output was set was changed in"):
            old += 1
            model.output  # noqa: B018
