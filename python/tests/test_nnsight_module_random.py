"""Random reads and edits of torch modules, against plain torch hooks: bit for bit, in any order."""

import copy
import os
import random

import pytest
import torch
from torch_hooks import Hooked, tensors
from torch_modules import make

from glassformer.nnsight.nnsight_module import NNsight

SEEDS = [*range(4), 18, 33]
if "GLASSFORMER_RANDOM_SEEDS" in os.environ:
    SEEDS = range(*map(int, os.environ["GLASSFORMER_RANDOM_SEEDS"].split(":")))
KINDS = [("mlp", False), ("twice", False), ("recurrent", False), ("many", False), ("residual", False)]
KINDS += [("cnn", False), ("cnn", True), ("encoder", False), ("encoder", True), ("gpt_neo", False), ("bert", True)]


def same(one, other):
    one, other = tensors(one), tensors(other)
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def filled(index, number):
    def change(value):
        tensors(value)[index][..., 0] = number

    return change


def multiplied(index, number):
    def change(value):
        tensors(value)[index].mul_(number)

    return change


class Session:
    """A trace of ours and the oracle's edits side by side."""

    def __init__(self, kind, training, seed):
        self.module, self.x = make(kind, training)
        self.oracle = Hooked(copy.deepcopy(self.module))
        self.choose, self.seed = random.Random(seed), seed
        self.model = NNsight(self.module)
        self.envoys = dict(self.model.named_modules())
        self.places = list(self.oracle.run((self.x,))[0])
        self.edits, self.derived, self.log, self.reads = [], [], [], []

    def expected(self):
        grad = torch.is_grad_enabled()
        return self.oracle.run((self.x,), edits=self.edits, seed=self.seed, grad=grad)

    def steps(self, tracer):
        for _ in range(self.choose.randint(1, 10)):
            number = self.choose.randrange(len(self.places))
            path, call, what = self.places[number]
            envoy = self.envoys[path]
            kind = self.choose.choice(["read", "read", "put", "region", "derived"])
            if kind != "read" and any(each > number for each in self.derived):
                continue  # This would be an OrderError, which has a test of its own.
            self.log.append((kind, path, call, what))
            for _ in tracer.iter[call]:
                getattr(self, f"do_{kind}")(envoy, number, what)

    def current(self, envoy, number, what):
        found, expected = getattr(envoy, what), self.expected()[0][self.places[number]]
        assert same(found, expected), self.log
        return found

    def do_read(self, envoy, number, what):
        found = self.current(envoy, number, what)
        self.reads.append((number, found, [each.detach().clone() for each in tensors(found)]))

    def do_put(self, envoy, number, what):
        if self.choose.random() < 0.5:
            self.current(envoy, number, what)
        there = self.expected()[0][self.places[number]]
        if what == "inputs":
            if not there[0] or not there[0][0].is_floating_point():
                return
            new = torch.full_like(there[0][0], self.choose.random())
            envoy.input = new
            self.edits.append((*self.places[number], lambda value: ((new.clone(), *value[0][1:]), value[1])))
        elif isinstance(there, torch.Tensor):
            new = torch.full_like(there, self.choose.random())
            envoy.output = new
            self.edits.append((*self.places[number], lambda value: new.clone()))
            self.derived = [each for each in self.derived if each != number]

    def do_region(self, envoy, number, what):
        self.in_place(envoy, number, what, filled)

    def do_derived(self, envoy, number, what):
        if self.in_place(envoy, number, what, multiplied):
            self.derived.append(number)

    def in_place(self, envoy, number, what, kind):
        found = self.current(envoy, number, what)
        usable = [index for index, each in enumerate(tensors(found)) if each.is_floating_point() and each.ndim]
        if not usable:
            return False
        change = kind(self.choose.choice(usable), self.choose.random() + 0.5)
        change(found)
        self.edits.append((*self.places[number], change))
        self.reads = [each for each in self.reads if each[0] != number]
        return True


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "training"), KINDS)
def test_reads_and_edits(kind, training, seed):
    """Whatever is read is what hooks see with all edits so far; afterwards buffers and random numbers are as after one
    run."""
    session = Session(kind, training, seed)
    torch.manual_seed(seed)
    random.seed(seed)
    with torch.no_grad(), session.model.trace(session.x) as tracer:
        session.steps(tracer)
        for _, found, kept in session.reads:
            assert all(torch.equal(a, b) for a, b in zip(tensors(found), kept, strict=True)), session.log
    _, module = session.expected()
    drawn = session.oracle.drawn_after
    assert torch.equal(drawn[0], torch.rand(3)) and drawn[1] == random.random(), session.log
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, session.module.get_buffer(name)), (session.log, name)


def loss_of(value):
    return sum(
        ((each.as_subclass(torch.Tensor) - 0.3) ** 2).sum() for each in tensors(value) if each.is_floating_point()
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "training"), [each for each in KINDS if each[0] != "cnn"])
def test_gradients_after_reads_and_edits(kind, training, seed):
    """Gradients by weights, and by every value that stands at its place, are those of one run with hooks."""
    session = Session(kind, training, seed)
    torch.manual_seed(seed)
    random.seed(seed)
    problem = ""
    with session.model.trace(session.x) as tracer:
        session.steps(tracer)
        found = {}
        for path, call, what in session.choose.sample(session.places, min(4, len(session.places))):
            for _ in tracer.iter[call]:
                found[path, call, what] = getattr(session.envoys[path], what)
        try:
            loss_of(session.model.output).backward()
        except RuntimeError as error:
            problem = str(error)
    try:
        values, module = session.oracle.run((session.x,), edits=session.edits, grad=True, copies=False, seed=seed)
        loss_of(values["model", 0, "output"]).backward()
    except RuntimeError as error:
        assert "inplace operation" in str(error) or str(error) == problem
        return  # With hooks alone these edits have no gradients.
    assert problem == "", session.log
    for name, parameter in module.named_parameters():
        close(session.module.get_parameter(name).grad, parameter.grad, (session.log, name))
    for place, value in found.items():
        if place in [each[:3] for each in session.edits]:
            continue
        listed = zip(tensors(value), tensors(values[place]), session.oracle.versions[place], strict=True)
        for one, other, version in listed:
            # Where the tensor was changed later, as another module's value, torch's gradient is that by the result.
            if other.requires_grad and not other.is_leaf and other._version == version:
                close(one.grad, other.grad, (session.log, place))


def close(found, expected, where):
    if expected is None or found is None:
        assert (found is None or not found.any()) and (expected is None or not expected.any()), where
    else:
        assert (found - expected).abs().max() <= 1e-12 * (1 + expected.abs().max()), where
