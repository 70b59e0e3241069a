"""Gradients in nnsight's vocabulary beside those of the ordinary course: stored, replaced, and what is refused."""

import pytest
import torch
from tiny_models import make_model

import glassformer
from glassformer.nnsight import LanguageModel

IDS, OTHER = [1, 5, 3, 7, 9], [4, 2, 8]


@pytest.fixture
def model():
    return LanguageModel(make_model("gpt2", torch.float64))


def gradient_of(model, ids, change=lambda gradient: None):
    """The gradients of the sum of the logits' squares by the outputs of blocks 1 and 0, by hooks on the `transformers`
    model; `change` of that of block 1 flows on."""
    found, handles = {}, []

    def watch(number, function):
        def keep(_, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden.register_hook(lambda gradient: (found.__setitem__(number, gradient.clone()), function(gradient))[1])

        handles.append(model._live.transformer.h[number].register_forward_hook(keep))

    watch(1, change)
    watch(0, lambda gradient: None)
    (model._live(torch.tensor([ids])).logits ** 2).sum().backward()
    for handle in handles:
        handle.remove()
    model._live.zero_grad()
    return found[1], found[0]


def close(found, expected):
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("what", ["hidden", "computed", "heads"])
def test_a_stored_gradient_is_the_users(model, what):
    with model.trace(IDS):
        block = model.transformer.h[1]
        value = {"hidden": block.output[0], "computed": block.mlp.output * 2, "heads": block.attn.c_proj.input}[what]
        if what == "computed":
            value.retain_grad()
        loss = (value**2).sum()
        loss.backward()
        close(value.grad, 2 * value.detach().as_subclass(torch.Tensor))
        value.grad = torch.ones_like(value)
        assert torch.equal(value.grad, torch.ones_like(value))
        loss.backward()
        close(value.grad, 1 + 2 * value.detach().as_subclass(torch.Tensor))
        value.grad = None
        assert value.grad is None
        loss.backward()
        del value.grad
        assert value.grad is None


def test_of_some_inputs_alone(model):
    with model.trace(IDS):
        early, late = model.transformer.h[0].output[0], model.transformer.h[1].output[0]
        (model.output.logits**2).sum().backward(inputs=[late])
        assert early.grad is None
        close(late.grad, gradient_of(model, IDS)[0])


def test_values_that_are_read_after_the_loss(model):
    expected, earlier = gradient_of(model, IDS)
    with model.trace(IDS):
        loss = (model.output.logits**2).sum()
        late, early = model.transformer.h[1].output[0], model.transformer.h[0].output[0]
        with loss.backward():
            close(late.grad, expected)
            close(early.grad, earlier)
        (found,) = torch.autograd.grad(loss, late)
        close(found, expected)


def test_tokens_have_gradients(model):
    whole, other = gradient_of(model, IDS)[0], gradient_of(model, OTHER)[0]

    def without_the_last(gradient):
        return torch.cat([gradient[:, :-1], torch.zeros_like(gradient[:, -1:])], 1)

    below = [gradient_of(model, ids, change=without_the_last)[1] for ids in (IDS, OTHER)]
    with model.trace([IDS, OTHER]):
        early, hidden = model.transformer.h[0].output[0], model.transformer.h[1].output[0]
        last, first = hidden.token[-1], hidden.t[[0, 1]]
        used = [tokens.sum() for tokens in (last, first)]
        loss = model.output.logits
        loss = (loss[0] ** 2).sum() + (loss[1, -len(OTHER) :] ** 2).sum() + 0 * sum(used)
        with loss.backward():
            close(last.grad, torch.cat([whole[:, -1], other[:, -1]]))
            close(first.grad, torch.cat([whole[:, :2], other[:, :2]]))
            last.grad = torch.zeros_like(last)
            close(early.grad[:1], below[0])
            close(early.grad[1:, -len(OTHER) :], below[1])


def test_hooks_on_gradients(model):
    expected, below = gradient_of(model, IDS, change=lambda gradient: gradient * 2)
    seen = []
    with model.trace(IDS):
        early, hidden = model.transformer.h[0].output[0], model.transformer.h[1].output[0]
        hidden.register_hook(lambda gradient: (seen.append(gradient), gradient * 2)[1])
        heads = model.transformer.h[1].attn.c_proj.input
        heads.register_hook(lambda gradient: seen.append(gradient.shape))
        (model.output.logits**2).sum().backward()
        close(seen[0], expected)
        assert seen[1] == heads.shape
        close(early.grad, below)
    with model.trace([IDS, OTHER]):
        padded = model.transformer.h[1].output[0]
        with pytest.raises(glassformer.UnsupportedError, match="made of several nodes or prompts"):
            padded.register_hook(seen.append)


def test_what_gradients_refuse(model):
    with model.trace(IDS):
        early, late = model.transformer.h[0].output[0], model.transformer.h[1].output[0]
        loss = (early**2).sum()
        with pytest.raises(RuntimeError, match="a tensor has no gradient: what was differentiated"):
            torch.autograd.grad(loss, late)
        assert torch.autograd.grad(loss, late, allow_unused=True) == (None,)
        with loss.backward():
            assert late.grad is None
            with pytest.raises(glassformer.InputError, match="does not require grad"):
                early.detach().grad = torch.zeros_like(early)
            with pytest.raises(glassformer.OrderError, match="its gradient can't be replaced"):
                late.grad = torch.zeros_like(late)
        again = (early**3).sum()
        with pytest.raises(glassformer.InputError, match="the graph is gone before the block begins"):
            again.backward(retain_graph=False).__enter__()
