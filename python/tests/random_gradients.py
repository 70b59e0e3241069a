"""Random gradients of traces, against torch's own through the oracle."""

import torch
from helpers import choices, shape_of
from oracle import Derived, Leaf, rows_of

import glassformer

INPUTS = ("hook_tokens", "positions", "attention_mask")
HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")


def is_computed(node):
    """Whether a node has numbers that one can differentiate by."""
    return node.name not in INPUTS and not choices(node.name)


class GradientOperations:
    """What a `Session` does with gradients."""

    def tracked(self, index, pair):
        """From now on, or no longer, ordinary reads carry a graph."""
        self.collect(index, pair)
        on = not pair.trace.requires_grad
        self.log.append(f"{index}: requires_grad_ {on}")
        pair.trace.requires_grad_(on)

    def gradient(self, index, pair):
        self.collect(index, pair)
        end = [n for n in self.nodes if is_computed(n)][-1]  # The logits, or the last one that the trace has.
        if self.may_be_ambiguous(pair, end):
            return
        floats = [n for n in self.nodes if is_computed(n) and not n.name.endswith(HEAD_INPUTS)]
        floats = [n for n in floats if self.may_edit(pair, n)]
        nodes = self.random.sample(floats, self.random.randint(1, min(3, len(floats))))
        last = self.random.random() < 0.4
        shape = shape_of(end, pair.tokens.shape[0], 1 if last else pair.trace.length - pair.first(end))
        weights = torch.rand(shape, generator=self.generator(), dtype=torch.float64) - 0.5

        def scalar(value):
            return ((value[:, -1:] if last else value) * weights).sum()

        names = [node.name for node in nodes]
        # A change in place of a value with a graph is on the trace's own graph; to forks and the oracle it is numbers.
        derived = any(isinstance(entry, Derived) for entries in pair.edits.values() for entry in entries)
        own = pair.trace.requires_grad and not derived and self.random.random() < 0.7
        self.log.append(f"{index}: grad {names} last={last} own={own}")
        first = pair.first(end)
        expected, sharpness = self.oracle_gradients(
            pair, nodes, end, lambda values: scalar(values[end.name][:, first:])
        )
        if own:  # Else a fork follows.
            self.follow_weights(pair)
        try:
            asked = scalar(pair.trace.read(end.name)) if own else lambda trace: scalar(trace.read(end.name))
            found = pair.trace.grad(asked, names)
        except glassformer.InputError as error:
            if "does not depend" not in str(error):
                raise
            if own and pair.spoiled.intersection(names):
                return
            assert any(each is None or not each.any() or not each.isfinite().all() for each in expected), error
            return
        for node, gradient, wanted in zip(nodes, found, expected, strict=True):
            self.compare_gradient(pair, node, gradient, wanted, 1e-9 * sharpness)

    def compare_gradient(self, pair, node, found, expected, tolerance):
        if expected is None:
            assert not found.any(), node.name
            return
        expected = expected[rows_of(node.name, pair.first(node), pair.trace.length)]
        if not expected.isfinite().all():
            return
        assert found.shape == expected.shape
        # Some are rounding alone: those of a query with one key.
        distance = (found - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert distance <= tolerance, f"gradient of {node.name}: {distance:.3g}"

    def oracle_gradients(self, pair, nodes, end, scalar):
        """By a zero that is added to each node after its edits; and how sharp attention is. The fused kernel's gradient
        of a softmax is a difference of two numbers, of which a one-hot pattern leaves rounding, times the scores."""
        leaves = []
        edits = {name: list(entries) for name, entries in self.edits_reaching(pair, end).items()}
        for node in nodes:
            shape = shape_of(node, pair.tokens.shape[0], pair.trace.length)
            leaves.append(torch.zeros(shape, dtype=torch.float64, requires_grad=True))
            edits.setdefault(node.name, []).append(Leaf(leaves[-1]))
        values = pair.expected(self.tiny.oracle, edits)
        scores = [value for name, value in values.items() if name.endswith("attn_scores")]
        largest = max(float(each.detach().nan_to_num(0, 0, 0).abs().max()) for each in scores)
        sharpness = max(1.0, largest / 1000)
        loss = scalar(values)
        if not loss.requires_grad:
            return [None] * len(leaves), sharpness
        return torch.autograd.grad(loss, leaves, allow_unused=True), sharpness
