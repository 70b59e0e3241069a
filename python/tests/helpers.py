"""Comparisons and models that several tests share."""

import copy
import functools
import types

import torch
from experts_model import N_EXPERTS, experts_subject
from oracle import Oracle, first_row, rows_of
from tiny_models import make_model

import glassformer


@functools.cache
def subject(name, dtype=torch.float64):
    """A tiny model three times: of `transformers`, ours on the same weights, and the oracle."""
    if name == "experts":
        return experts_subject(dtype)
    reference = make_model(name, dtype)
    return types.SimpleNamespace(reference=reference, model=glassformer.load(reference), oracle=Oracle(reference))


def error(found, expected):
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape, f"{list(found.shape)} instead of {list(expected.shape)}"
    found, expected = found.double(), expected.double()
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    assert torch.equal(found[~finite], expected[~finite])
    if not finite.any():
        return 0.0
    return ((found - expected)[finite].abs().max() / expected[finite].abs().max().clamp(min=1e-30)).item()


def assert_close(found, expected, tolerance, what=""):
    assert error(found, expected) <= tolerance, f"{what}: {error(found, expected):.3g} of the largest value"


def run_reference(reference, tokens, **options):
    """What `transformers` computes: logits, hidden states, attention patterns. Scaled rotary tables start anew."""
    reference = copy.deepcopy(reference)
    with torch.no_grad():
        return reference(tokens, output_hidden_states=True, output_attentions=True, use_cache=False, **options)


def residuals(output):
    """The residual stream before each block; the last entry of `transformers` is after the final norm."""
    return output.hidden_states[:-1]


def shape_of(node, batch, length):
    """A node's shape for a trace of that size."""
    return [batch if word == "batch" else size or length for word, size in zip(node.axes, node.sizes, strict=True)]


def choices(name):
    """Of a node of whole numbers, how many there are to choose from; 0 for all others."""
    if name.endswith("hook_expert_indices"):
        return N_EXPERTS
    return 40 if name in ("hook_tokens", "positions") else 0


def everywhere(shape):
    """The region of a whole tensor, as the oracle takes it: all indices of each axis."""
    return [list(range(size)) for size in shape]


def number_of(name):
    """The layer of a node, or None."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def nodes_of(model):
    """The nodes by name."""
    return {node.name: node for node in model.nodes()}


def some_values(model, node, batch, length, seed=0):
    """Random numbers in the shape of a node."""
    shape = shape_of(nodes_of(model)[model.node_name(node)], batch, length)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def constant(value):
    """The edit, as the oracle takes it, that puts a value in the place of a whole node."""
    return [(everywhere(value.shape), value)]


def available(trace, model):
    """The names of the nodes that a trace has."""
    found = []
    for name in nodes_of(model):
        try:
            trace.read(name, [-1])
            found.append(name)
        except glassformer.UnavailableError:
            pass
    return found


def past_of(trace, length):
    """Keys and values of the first positions of a trace."""
    return [(keys[:, :length], values[:, :length]) for keys, values in trace.past()]


def at_available(value, name, n_past):
    """The rows of a node that a trace with a past has."""
    return value[rows_of(name, first_row(name, n_past), None)]
