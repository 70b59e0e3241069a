"""TransformerLens' names and shapes of nodes with experts and norms of heads."""

import pytest
import torch
from experts_model import N_EXPERTS
from helpers import assert_close, subject

import glassformer
from glassformer.transformer_lens.presentation import presentations

TOKENS = [[5, 3, 8, 13, 21], [1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def model():
    return subject("experts").model


def test_experts_come_one_after_the_other(model):
    names = [name for name in presentations(model) if name.startswith("blocks.1.mlp.experts.")]
    assert names == [
        f"blocks.1.mlp.experts.{expert}.hook_{part}" for expert in range(N_EXPERTS) for part in ("gate", "pre", "post")
    ]


def test_shapes(model):
    shown, trace = presentations(model), model.trace(TOKENS)
    shapes = {
        "blocks.0.attn.q_norm.hook_scale": [2 * 5 * 4, 1],
        "blocks.0.attn.k_norm.hook_normalized": [2 * 5 * 2, 8],
        "blocks.0.mlp.hook_expert_weights": [10, N_EXPERTS],
        "blocks.0.mlp.hook_expert_indices": [10, 2],
        "blocks.0.attn.hook_q": [2, 5, 4, 8],
    }
    for name, shape in shapes.items():
        value = trace.read(shown[name].node)
        assert list(shown[name].show(value).shape) == shape
        assert torch.equal(shown[name].put(value, shown[name].show(value)), value)


def test_the_rows_of_an_expert(model):
    trace = model.trace(TOKENS)
    indices, slots = (trace.read(f"blocks.1.mlp.hook_expert_{part}") for part in ("indices", "post"))
    for expert in range(N_EXPERTS):
        presented = presentations(model)[f"blocks.1.mlp.experts.{expert}.hook_post"]
        rows = presented.show(slots, indices)
        by_hand = [
            slots[batch, pos, slot]
            for slot in range(2)
            for batch in range(2)
            for pos in range(5)
            if indices[batch, pos, slot] == expert
        ]
        assert torch.equal(rows, torch.stack(by_hand) if by_hand else slots.new_zeros(0, slots.shape[-1]))
        assert torch.equal(presented.put(slots, rows, indices), slots)
        with pytest.raises(ValueError, match=r"give the value of blocks\.1\.mlp\.hook_expert_indices"):
            presented.show(slots)


def test_a_hook_on_one_expert(model):
    trace = model.trace(TOKENS)
    presented = presentations(model)["blocks.0.mlp.experts.2.hook_pre"]
    indices, before = trace.read(presented.indices), trace.read(presented.node)
    calls = []

    def zero(rows, call):
        calls.append((list(rows.shape), call))
        rows[...] = 0

    fork = trace.fork()
    fork.hook(presented.node, presented.hook(zero))
    expected = before.masked_fill((indices == 2)[..., None], 0)
    assert torch.equal(fork.read(presented.node), expected)
    assert [shape for shape, _ in calls] == [[int((indices == 2).sum()), before.shape[-1]]]
    assert not torch.equal(fork.logits, trace.logits)
    with pytest.raises(glassformer.OrderError, match="has returned"):
        calls[0][1].read(presented.indices)


def test_choosing_other_experts(model):
    trace = model.trace(TOKENS)
    fork = trace.fork()
    fork.set("blocks.2.mlp.hook_expert_indices", torch.tensor([1, 3]))
    oracle = subject("experts").oracle
    edits = {"blocks.2.mlp.hook_expert_indices": [([[0, 1], list(range(5)), [0, 1]], torch.tensor([1, 3]))]}
    assert_close(fork.logits, oracle.run(torch.tensor(TOKENS), edits)["logits"], 1e-9, "logits")
    with pytest.raises(glassformer.InputError, match="expected numbers from 0 to 3"):
        fork.set("blocks.2.mlp.hook_expert_indices", 4)
    fork.requires_grad_()
    with pytest.raises(glassformer.InputError, match="does not depend on"):
        fork.grad(fork.logits.sum(), "blocks.2.mlp.hook_expert_indices")
    with pytest.raises(glassformer.InputError, match="a choice"):
        model.trace_from("blocks.2.mlp.hook_expert_indices", torch.zeros(1, 3, 2))


def test_only_what_is_needed(model):
    """The last logits take experts, in the last block, at the last position only; an edit of one row, that row."""
    trace = model.trace(TOKENS)
    trace.read("logits", [-1])
    rows = dict(trace.work())
    assert rows["blocks.2.hook_mlp_out"] == 2 and rows["blocks.1.hook_mlp_out"] == 10
    assert "blocks.1.mlp.hook_expert_gate" not in rows, "passed over"
