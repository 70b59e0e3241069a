"""What the tests of `NNsight` share: wrapped modules, and what plain hooks see of them."""

import typing
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch_hooks import Hooked
from torch_modules import make

from glassformer.nnsight.nnsight_module import NNsight

WRAPPED = weakref.WeakSet()


def wrapped(kind, training=False):
    module, x = make(kind, training)
    WRAPPED.add(module)
    return NNsight(module), x


def expected(kind, *edits, x=None, training=False):
    module, made = make(kind, training)
    return Hooked(module).run((made if x is None else x,), edits=edits)[0]


def filled(number):
    def change(value):
        value[:, 0] = number

    return change


def constant(value):
    return lambda _: value


class Counted(nn.Module):
    """Notes how often it runs, where no trace can see it."""

    runs: typing.ClassVar = []

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        Counted.runs.append(self)
        return self.inner(*args, **kwargs)


@pytest.fixture(autouse=True)
def nothing_stays():
    """After every test built-in types are as before, and nobody's module has a hook or a forward of ours."""
    yield
    for kind in (list, dict, int, str, torch.Tensor):
        assert not hasattr(kind, "save")
    for module in [each for root in WRAPPED for each in root.modules()]:
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        assert not any(each.__module__.startswith("glassformer") for each in hooks) and "forward" not in vars(module)


def layers_that_count(n_layers=12):
    Counted.runs.clear()
    layers = [Counted(nn.Sequential(nn.Linear(6, 6), nn.Tanh())) for _ in range(n_layers)]
    return NNsight(nn.Sequential(*layers).double()), torch.randn(3, 6, dtype=torch.float64)
