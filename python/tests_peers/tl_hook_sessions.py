"""Small modules with hook points, written once on our classes and on TransformerLens', and scripts run on both."""

import types
import warnings

import torch
import transformer_lens.hook_points as judge_points
from torch import nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import (
    BaseTensorConversion as JudgeConversion,
)
from transformer_lens.HookedRootModule import HookedRootModule as JudgeRoot
from transformer_lens.utilities import Slice as JudgeSlice

import glassformer.transformer_lens.hook_points as our_points
from glassformer.transformer_lens.HookedRootModule import HookedRootModule
from glassformer.transformer_lens.utilities import Slice


def modules_of(root, point):
    """The test's modules, written once, on one side's classes."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.hook_in, self.hook_out = point(), point()

        def forward(self, x):
            return self.hook_out(torch.tanh(self.linear(self.hook_in(x))))

    class Small(root):
        """`batch pos 4`, two layers, a scalar at the end if `scalar`."""

        def __init__(self, first=None):
            super().__init__()
            self.hook_embed = point()
            self.blocks = nn.ModuleList([Layer(), Layer()])
            self.heads = nn.ModuleDict({"hook_z": point()})
            self.final = nn.Sequential(nn.Linear(4, 2), point())
            self.setup()

        def forward(self, x, scale=1.0, scalar=False):
            x = self.hook_embed(x * scale)
            for block in self.blocks:
                x = x + block(x)
            heads = self.heads["hook_z"](x.reshape(*x.shape[:-1], 2, 2))
            x = self.final(heads.reshape(x.shape))
            return x.square().sum() if scalar else x

    class TwoOutputs(root):
        """A point that a pair goes through, one that is used twice, and one that is never used."""

        def __init__(self):
            super().__init__()
            self.hook_pair, self.hook_twice, self.hook_never = point(), point(), point()
            self.linear = nn.Linear(4, 8)
            self.setup()

        def forward(self, x):
            left, right = self.hook_pair(self.linear(self.hook_twice(x)).split(4, -1))
            return self.hook_twice(left), right

    class Outer(root):
        """A root inside a root, and one hook point under two names."""

        def __init__(self):
            super().__init__()
            self.inner = Small()
            self.hook_last = point()
            self.again = self.inner.hook_embed
            self.setup()

        def forward(self, x):
            return self.hook_last(self.again(self.inner(x).sum()))

    return types.SimpleNamespace(Small=Small, TwoOutputs=TwoOutputs, Outer=Outer)


OURS = types.SimpleNamespace(
    points=our_points,
    point=our_points.HookPoint,
    slice=Slice,
    conversion=our_points.BaseTensorConversion,
    **vars(modules_of(HookedRootModule, our_points.HookPoint)),
)
JUDGE = types.SimpleNamespace(
    points=judge_points,
    point=judge_points.HookPoint,
    slice=JudgeSlice,
    conversion=JudgeConversion,
    **vars(modules_of(JudgeRoot, judge_points.HookPoint)),
)
RAISED = (AssertionError, KeyError, ValueError, RuntimeError, TypeError, IndexError, AttributeError, ZeroDivisionError)


def numbers(value):
    """Something that == can compare, bit for bit."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.requires_grad, value.detach().flatten().tolist())
    if isinstance(value, dict):
        return [(key, numbers(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(numbers, value)]
    return value


def inputs(seed=0, pos=3):
    return torch.randn(2, pos, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Session:
    """One side's module and what was seen of it."""

    def __init__(self, side, kind="Small"):
        torch.manual_seed(5)
        self.side, self.log = side, []
        self.module = getattr(side, kind)().double()

    def hook(self, label, returned=None):
        """A hook that writes down what it sees, and returns `returned(value)`."""

        def hook(value, hook):
            self.log.append((label, hook.name, numbers(value), dict(hook.ctx)))
            hook.ctx[label] = hook.ctx.get(label, 0) + 1
            return None if returned is None else returned(value)

        return hook

    def note(self, what):
        self.log.append(numbers(what))

    def state(self):
        """All that is known about hooks from outside."""
        points = self.module.hook_dict.items()
        self.note([(name, repr(point), point.name, dict(point.ctx)) for name, point in points])
        self.note([(h.is_permanent, h.context_level) for _, p in points for h in p.fwd_hooks + p.bwd_hooks])
        self.note([self.module.is_caching, self.module.context_level])
        for options in ({}, {"dir": "fwd"}, {"dir": "bwd"}, {"including_permanent": False}):
            found = self.module.list_hooks(**options)
            self.note([(name, [h.is_permanent for h in handles]) for name, handles in found.items()])


def both(script, kind="Small"):
    """Run the script on both sides; the records, and what is raised, must be equal. Returns ours."""
    records = []
    for side in (OURS, JUDGE):
        session = Session(side, kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                script(session)
            except RAISED as error:
                session.log.append(("raised", error_class(error)))
        records.append(session.log)
    assert records[0] == records[1]
    assert records[0]
    return records[0]


def error_class(error):
    """The built-in class of an error; ours are also one."""
    return next(each for each in type(error).__mro__ if each.__module__ == "builtins" and each in RAISED)


def doubled(value):
    return value * 2
