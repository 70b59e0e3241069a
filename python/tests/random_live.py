"""Random changes of values that traces handed out, and what the oracle has to know of them."""

import contextlib

import pytest
import torch
from helpers import choices, shape_of
from oracle import Derived, has_keys

import glassformer


class Held:
    """A value that a trace handed out: a node's at these positions."""

    def __init__(self, node, rows, tensor):
        self.node, self.rows, self.tensor = node, rows, tensor
        self.released = None  # The last numbers, once the user has let go of it.
        self.is_stale = False  # Changes of it are refused.
        self.is_outdated = False  # A weight changed: they are refused once the trace has seen that.
        self.settle()

    def now(self):
        return self.tensor.detach().clone() if self.released is None else self.released

    def has_changed(self):
        # Bits count: -0.0 is another number than 0.
        now = self.now()
        return now.numpy().tobytes() != self.baseline.numpy().tobytes()

    def settle(self):
        self.baseline = self.now()

    def release(self):
        self.released, self.tensor = self.now(), None

    def n_keys(self):
        return self.baseline.shape[3] if has_keys(self.node.name) else None


class LiveOperations:
    """What a `Session` does with values that it was handed out."""

    def hand_out(self, index, pair, node=None):
        """A value to change, sooner or later."""
        self.collect(index, pair)
        node = node or self.editable(pair)
        if self.may_be_ambiguous(pair, node):
            return None
        first, length = pair.first(node), pair.trace.length
        rows, source = list(range(first, length)), pair.trace
        if self.random.random() < 0.3:
            rows = sorted(self.random.sample(rows, self.random.randint(1, len(rows))))
            source = pair.trace.at([row if self.random.random() < 0.7 else row - length for row in rows])
        self.log.append(f"{index}: hand out {node.name} {rows}")
        tensor = source[node.name]
        self.follow_weights(pair)
        found = [held for held in pair.held if held.tensor is tensor]
        if not found:
            pair.held.append(Held(node, rows, tensor))
        held = found[0] if found else pair.held[-1]
        expected = pair.expected(self.tiny.oracle, self.edits_reaching(pair, node))[node.name]
        self.compare(held.now(), expected[self.index_of(held)], node)
        return held

    @staticmethod
    def index_of(held):
        if held.n_keys() is not None:
            return (slice(None), slice(None), held.rows, slice(held.n_keys()))
        return (slice(None), held.rows)

    def live(self, index, pair):
        """Changes a value that was handed out, now or before."""
        known = [held for held in pair.held if held.released is None and self.may_edit(pair, held.node)]
        held = self.random.choice(known) if known and self.random.random() < 0.6 else self.hand_out(index, pair)
        if held is None:
            pair.trace.core.collect()
            return
        if held.is_outdated and not held.is_stale and self.random.random() < 0.7:
            self.collect(index, pair)
            pair.trace.read("attention_mask")
            self.follow_weights(pair)
        self.random.choice([self.assign, self.augment, self.change, self.change])(index, pair, held)
        if self.random.random() < 0.4:
            self.log.append(f"{index}: released")
            held.release()
        if held.is_outdated or self.random.random() < 0.4:
            self.collect(index, pair)
            pair.trace.core.collect()

    def augmented_item(self, index, pair):
        """`trace[name] += 1` and such, also on a window; `trace[name] = trace[name]`."""
        held = self.hand_out(index, pair)
        if held is None or held.is_stale:
            return
        whole = held.rows == list(range(pair.first(held.node), pair.trace.length))
        window = pair.trace if whole else pair.trace.at(held.rows)
        self.log.append(f"{index}: augment the item")
        with torch.no_grad() if self.random.random() < 0.3 else contextlib.nullcontext():
            if held.tensor.is_floating_point() and self.random.random() < 0.8:
                value = window[held.node.name]
                own = next((other for other in pair.held if other.tensor is value), None)  # Where there is a graph.
                del value
                window[held.node.name] *= self.factor()
                again = window.read(held.node.name)
                made = self.derived(pair, held, held.baseline, again.detach().clone())
                if made.before.numpy().tobytes() != made.after.numpy().tobytes():
                    self.add_edit(pair, made, held.node, own)
                for settled in (held, own or held):
                    settled.settle()
            else:
                window[held.node.name] = window[held.node.name]

    def factor(self):
        return self.random.choice([0.5, 0.75, 1.25])

    def derived(self, pair, held, before, after):
        made = Derived(before, after, held.n_keys(), held.rows)
        made.state = None if held.is_outdated else self.state_before(pair, held.node.name)
        made.has_graph = pair.trace.requires_grad or (held.tensor is not None and held.tensor.requires_grad)
        return made

    def add_edit(self, pair, made, node, held):
        pair.edits.setdefault(node.name, []).append(made)
        self.detach(pair, node.name, held)

    def detach(self, pair, name, held=None):
        """After an edit of a node: values of it, and of what it changes, are no longer to be changed."""
        for other in pair.held:
            if other is not held and (name is None or other.node.name in self.reaching[name]):
                other.is_stale = True

    def follow_weights(self, pair):
        for held in pair.held:
            held.is_stale = held.is_stale or held.is_outdated
            held.is_outdated = False

    # --- Ways to change a value ---------------------------------------------------------------------------------------

    def assign(self, index, pair, held):
        """By index: a constant, whatever has become of the value."""
        self.collect(index, pair)
        tensor, chosen = held.tensor, self.some_index(held)
        flat = torch.arange(tensor.numel()).reshape(tensor.shape)
        picked = torch.zeros(tensor.shape, dtype=torch.bool)
        picked.view(-1)[flat[chosen].reshape(-1)] = True
        value = self.some_value(held.node, flat[chosen].shape)
        if isinstance(value, torch.Tensor):
            value = value.to(tensor.dtype)
        # With a graph it would end there, as torch has it, without a number that is another.
        is_view = isinstance(chosen, tuple) and not tensor.requires_grad and self.random.random() < 0.2
        if is_view:
            chosen = self.random.choice([(slice(None), 0), (slice(None), slice(0, 1))])
            picked.zero_()[chosen] = True
            source = self.random.choice([0, -1])
            value = tensor.detach().narrow(1, source, 1)
            value = value[:, 0] if isinstance(chosen[1], int) else value
        self.log.append(f"{index}: assign {held.node.name} {chosen} stale={held.is_stale}")
        mask, numbers, is_gone = self.in_node(pair, held, picked)
        if is_gone:
            writes_back = is_view and torch.equal(tensor.detach()[chosen], value)  # Changes nothing, so edits nothing.
            with contextlib.nullcontext() if writes_back else pytest.raises(glassformer.InputError):
                tensor[chosen] = value
            held.settle()
            return
        before = held.baseline
        tensor[chosen] = value
        held.settle()
        if is_view and torch.equal(before, held.baseline):
            return  # `x[i] += 0` looks the same.
        _, numbers, _ = self.in_node(pair, held, picked)
        if mask.any():
            self.add_edit(pair, (mask, numbers), held.node, held)

    def in_node(self, pair, held, picked):
        """What was picked as a mask of the node, its numbers, and whether some of it is gone from the trace."""
        shape = shape_of(held.node, pair.tokens.shape[0], pair.trace.length)
        keys = held.n_keys()
        rows = 2 if keys is not None else 1
        wide = list(shape)
        wide[rows] = max(shape[rows], held.rows[-1] + 1)
        if keys is not None:
            wide[3] = max(shape[3], keys)
        mask, numbers = torch.zeros(wide, dtype=torch.bool), torch.zeros(wide, dtype=held.baseline.dtype)
        mask[self.index_of(held)], numbers[self.index_of(held)] = picked, held.now()
        inside = tuple(slice(size) for size in shape)
        return mask[inside], numbers[inside], bool(mask.sum() != mask[inside].sum())

    def augment(self, index, pair, held):
        """`x[i] *= 2`: as a change through a view where the index makes one, else an assignment."""
        if not held.tensor.is_floating_point():
            return
        self.collect(index, pair)
        pair.trace.core.collect()  # What waits was changed before this.
        chosen, factor = self.basic_index(held), self.factor()
        self.log.append(f"{index}: augment {held.node.name} {chosen} stale={held.is_stale}")
        before = held.baseline
        expected = before.clone()
        expected[chosen] *= factor
        if held.is_outdated:
            pair.trace.read("attention_mask")
            self.follow_weights(pair)
        changes = expected.numpy().tobytes() != before.numpy().tobytes()
        if held.is_stale and changes:
            with pytest.raises(glassformer.StaleEditError):
                held.tensor[chosen] *= factor
            held.settle()
            return
        held.tensor[chosen] *= factor
        held.settle()
        assert torch.equal(held.baseline, expected)
        if changes:
            self.add_edit(pair, self.derived(pair, held, before, expected), held.node, held)

    def change(self, index, pair, held):
        """In place and through views; it waits for the trace's next operation."""
        if sum(other.has_changed() for other in pair.held) > self.random.choice([0, 0, 1]):
            self.collect(index, pair)
            pair.trace.core.collect()
        self.log.append(f"{index}: change {held.node.name} stale={held.is_stale}")
        tensor, chosen, factor = held.tensor, self.basic_index(held), self.factor()
        if held.node.name == "attention_mask":
            self.random.choice([tensor.logical_not_, tensor[chosen].logical_not_])()
        elif not tensor.is_floating_point():
            tensor.data[chosen] = self.random.randrange(choices(held.node.name))
        else:
            ways = [
                lambda: tensor.mul_(factor),
                lambda: tensor.__imul__(factor),
                lambda: tensor[chosen].mul_(factor),
                lambda: tensor.transpose(0, 1)[0].mul_(factor),
                lambda: tensor.data[chosen].mul_(factor),
                lambda: tensor.detach().numpy().__imul__(factor),
                lambda: tensor.copy_(tensor.detach() * factor),
            ]
            if not held.node.name.endswith(("scale", "pattern", "scores")):
                ways += [lambda: tensor.add_(factor), lambda: tensor.clamp_(min=0), lambda: tensor[chosen].zero_()]
            self.random.choice(ways)()

    def basic_index(self, held):
        """Slices and numbers."""
        chosen = []
        for size in held.baseline.shape[: self.random.randint(1, held.baseline.ndim)]:
            first = self.random.randrange(size)
            ways = [slice(None), slice(None), slice(first, None), slice(first - size, None, 2), slice(first, first + 1)]
            chosen.append(self.random.choice([*ways, first, first - size]))
        return (
            (Ellipsis, *chosen) if self.random.random() < 0.1 and len(chosen) == held.baseline.ndim else tuple(chosen)
        )

    def some_index(self, held):
        draw, shape = self.random.random(), held.baseline.shape
        if draw < 0.4:
            return self.basic_index(held)
        if draw < 0.5:
            return torch.rand(shape, generator=self.generator()) < 0.4
        if draw < 0.55:
            return (slice(None), slice(0, 0))
        lists = [[self.random.randrange(-size, size) for _ in range(2)] for size in shape]
        axis = self.random.randrange(len(shape))
        chosen = [slice(None)] * axis + [lists[axis]]
        if draw < 0.65 and axis > 0:
            chosen[axis - 1] = lists[axis - 1]  # Pairs.
        elif draw < 0.72 and axis > 0:
            chosen[0] = self.random.randrange(shape[0])
        elif draw < 0.8:
            chosen[axis] = torch.tensor(lists[axis])
        elif draw < 0.9:
            chosen[axis] = list(range(shape[axis]))[:: self.random.choice([1, -1, 2])]
        return tuple(chosen)

    def some_value(self, node, shape):
        if node.name == "attention_mask":
            return self.random.random() < 0.4
        if choices(node.name):
            return self.random.randrange(choices(node.name))
        if self.random.random() < 0.4:
            return self.random.uniform(0.1, 1)
        shape = shape if self.random.random() < 0.7 else shape[len(shape) - 1 :]
        return torch.rand(shape, generator=self.generator(), dtype=torch.float64)

    # --- Collecting ---------------------------------------------------------------------------------------------------

    def collect(self, index, pair):
        """What the trace's next operation does: to be called just before it. Where it must refuse a change, does one."""  # noqa: E501
        changed = [held for held in sorted(pair.held, key=lambda h: self.order[h.node.name]) if held.has_changed()]
        if any(held.is_outdated and not held.is_stale for held in changed):
            try:  # Whether the trace has seen the new weight yet is nobody's business: both are errors in the end.
                pair.trace.core.collect()
            except glassformer.StaleEditError:
                for held in changed:
                    held.is_stale = held.is_stale or held.is_outdated
                    held.settle()
                changed = []
        refused = False
        for held in changed:
            before = held.baseline
            held.settle()
            refused = refused or held.is_stale
            if not held.is_stale:
                self.add_edit(pair, self.derived(pair, held, before, held.baseline), held.node, held)
        pair.held = [held for held in pair.held if held.released is None]
        if refused:
            self.refused_operation(index, pair)

    def refused_operation(self, index, pair):
        trace, node = pair.trace, self.random.choice(self.nodes)
        operations = {
            "collect": lambda: trace.core.collect(),
            "read": lambda: trace.read(node.name),
            "item": lambda: trace[node.name],
            "read_all": lambda: glassformer.read_all([trace], node.name),
            "set": lambda: trace.set(node.name, 1),
            "hook": lambda: trace.hook(node.name, lambda value, call: value * 0),
            "edit": lambda: trace.edit(node.name, lambda value: value * 0),
            "unset": lambda: trace.unset(node.name),
            "fork": lambda: trace.fork(),
            "run": lambda: trace.run(),
            "truncate": lambda: trace.truncate(pair.n_past + 1),
            "requires_grad_": lambda: trace.requires_grad_(not trace.requires_grad),
            "grad": lambda: trace.grad(lambda fork: fork.logits.sum(), "logits"),
            "with": lambda: trace.__exit__(None, None, None),
        }
        if trace.begin_node == "hook_tokens":
            operations["append"] = lambda: trace.append(torch.zeros(pair.tokens.shape[0], 1, dtype=torch.int64))
        name = self.random.choice(list(operations))
        self.log.append(f"{index}: refused {name}")
        with pytest.raises(glassformer.StaleEditError, match="read it again"):
            operations[name]()

    def let_go(self, index, pair):
        """Leaves a `with` block: what was handed out may be changed as one likes."""
        self.collect(index, pair)
        self.log.append(f"{index}: let go")
        with pair.trace:
            pass
        # To torch a tensor that is changed after its use is another one, which has no gradient from before.
        pair.spoiled |= {held.node.name for held in pair.held if held.tensor.requires_grad}
        for held in pair.held:
            held.tensor[:, -1:] = held.tensor[:, :1] if choices(held.node.name) else 1
            held.tensor.data.zero_()
        pair.held = []


def cut_derived(entry, length, first):
    """What is left of a change in place of a node whose positions begin at `first` when the trace is cut."""
    kept = [number for number, row in enumerate(entry.rows) if row < length]
    if len(kept) == len(entry.rows) and (entry.n_keys is None or entry.n_keys <= length):
        return entry
    if not kept or min(entry.rows) < first:
        return None
    rows = (slice(None), kept) if entry.n_keys is None else (slice(None), slice(None), kept, slice(length))
    n_keys = None if entry.n_keys is None else min(entry.n_keys, length)
    made = Derived(entry.before[rows], entry.after[rows], n_keys, [entry.rows[number] for number in kept])
    made.state, made.has_graph = None, entry.has_graph  # Other edits than when it was made.
    return made
