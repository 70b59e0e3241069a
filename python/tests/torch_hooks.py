"""What plain torch hooks see of a module, with edits: the oracle for `NNsight`."""

import copy
import random

import torch


class Hooked:
    """A module as it is, run once with hooks. `edits` are (path, call, "inputs" or "output", function): the function
    changes the value in place and returns None, or returns another one; they are applied in their order."""

    def __init__(self, module):
        self.module = module

    def run(self, args, kwargs=None, edits=(), grad=False, seed=0, copies=True):
        """All values as they are passed on, by (path, call, what), in the order of the run; and the module, which was a
        copy. Without `copies` they are the very tensors, with their gradients to come, and `versions` how often each
        had been changed in place. Random numbers begin with the seed, and are left as they were; `drawn_after` are
        those that come after the run."""
        module = copy.deepcopy(self.module)
        values, calls, self.versions = {}, {}, {}

        def changed(place, value):
            for path, call, what, function in edits:
                if (path, call, what) == place:
                    made = function(value)
                    value = value if made is None else made
            values[place] = _kept(value, not copies)
            self.versions[place] = [each._version for each in tensors(values[place])]
            return value

        def enter(path):
            def hook(_, args, kwargs):
                call = calls.get(path, 0)
                calls[path] = call + 1
                return changed((path, call, "inputs"), (args, kwargs))

            return hook

        def leave(path):
            open_calls = []

            def begin(*_):
                open_calls.append(calls[path] - 1)

            def hook(_, args, kwargs, output):
                return changed((path, open_calls.pop(), "output"), output)

            return begin, hook

        for name, child in module.named_modules():
            path = f"model.{name}" if name else "model"
            child.register_forward_pre_hook(enter(path), with_kwargs=True)
            begin, end = leave(path)
            child.register_forward_pre_hook(begin)
            child.register_forward_hook(end, with_kwargs=True)
        state = random.getstate()
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
            torch.manual_seed(seed)
            random.seed(seed)
            self.result = module(*_kept(args, not copies), **(kwargs or {}))
            self.drawn_after = torch.rand(3), random.random()
        random.setstate(state)
        return values, module


def _kept(value, grad):
    if isinstance(value, torch.Tensor):
        if grad:
            if value.requires_grad and not value.is_leaf:
                value.retain_grad()
            return value
        return value.detach().clone()
    if isinstance(value, tuple):
        return tuple(_kept(each, grad) for each in value)
    if isinstance(value, list):
        return [_kept(each, grad) for each in value]
    if type(value) is dict:
        return {key: _kept(each, grad) for key, each in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {key: _kept(getattr(value, key), grad) for key in value.__dataclass_fields__}
    return value


def tensors(value):
    """All tensors in a structure, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [each for child in value for each in tensors(child)]
    if hasattr(value, "__dataclass_fields__"):
        return [each for key in value.__dataclass_fields__ for each in tensors(getattr(value, key))]
    if isinstance(value, dict):
        return [each for child in value.values() for each in tensors(child)]
    return []
