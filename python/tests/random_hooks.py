"""Hooks of random sessions."""

import torch


def halve(value):
    return value * 0.5


def clamp(value):
    return value.clamp(min=0) if value.is_floating_point() else value


def mix(value):
    """Looks at later positions of its segment."""
    return value - 0.3 * value.flip(1) if value.ndim != 4 or value.shape[2] != value.shape[3] else value


def uniform(value):
    return torch.full_like(value, 1 / value.shape[-1])


def same(value):
    return value


class HookOf:
    """A hook that notes its calls; for the engine and, through `__call__`, for the oracle."""

    def __init__(self, session, node, change, segments, in_place):
        self.session, self.node, self.change = session, node, change
        self.segments, self.in_place = segments, in_place
        self.inputs = []
        session.n_hooks += 1
        self.number = session.n_hooks

    def for_engine(self, value, call):
        assert call.name == self.node.name
        assert self.segments is None or call.segment in self.segments
        assert value.shape[2 if "key_pos" in self.node.axes[3:] else 1] == call.end - call.begin
        key = (call.begin, call.end, value.detach().numpy().tobytes())
        assert key not in self.inputs or value.requires_grad, "called twice for one input"
        self.inputs.append(key)
        # To find out whether what a hook makes carries a graph it is called without one first.
        self.session.fired.append((value.requires_grad, self.session.order[call.name], self.number, call.begin))
        if not self.in_place:
            return self.change(value)
        value[...] = self.change(value.clone())  # Its derivative may need the value as it was.
        return None

    def __call__(self, value, segment):
        return self.change(value) if self.segments is None or segment in self.segments else value
