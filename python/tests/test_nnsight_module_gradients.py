"""Gradients of torch modules in traces, against autograd."""

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch_hooks import Hooked, tensors
from torch_modules import make
from wrapped_modules import constant, expected, nothing_stays, wrapped

import glassformer
from glassformer.nnsight.nnsight_module import NNsight

__all__ = ["nothing_stays"]


def test_gradients_in_any_order():
    model, x = wrapped("mlp")
    with model.trace(x):
        loss = (model.output**2).sum()
        first, second = model.first.output, model.second.output
        with loss.backward():
            by_first, by_second = first.grad, second.grad
            second.grad = second.grad * 0
            changed = first.grad
        leaf = model.first.weight.grad.clone()
    values, module = Hooked(make("mlp")[0]).run((x,), grad=True, copies=False)
    (values["model", 0, "output"] ** 2).sum().backward()
    assert torch.allclose(by_first, values["model.first", 0, "output"].grad, atol=1e-14, rtol=0)
    assert torch.allclose(by_second, values["model.second", 0, "output"].grad, atol=1e-14, rtol=0)
    values, module = Hooked(make("mlp")[0]).run((x,), grad=True, copies=False)
    values["model.second", 0, "output"].register_hook(lambda gradient: gradient * 0)
    (values["model", 0, "output"] ** 2).sum().backward()
    assert torch.allclose(changed, values["model.first", 0, "output"].grad, atol=1e-14, rtol=0)
    assert torch.allclose(leaf, module.first.weight.grad, atol=1e-14, rtol=0)


def test_gradients_by_autograd_and_after_the_trace():
    model, x = wrapped("mlp")
    with model.trace(x):
        given, second = model.second.input, model.second.output
        loss = (model.output**2).sum()
        by_given, by_second = torch.autograd.grad(loss, [given, second], retain_graph=True)
    values, _ = Hooked(make("mlp")[0]).run((x,), grad=True, copies=False)
    (values["model", 0, "output"] ** 2).sum().backward()
    assert torch.allclose(by_second, values["model.second", 0, "output"].grad, atol=1e-14, rtol=0)
    # The residual connection takes the same tensor.
    assert torch.allclose(by_given, values["model.second", 0, "inputs"][0][0].grad, atol=1e-14, rtol=0)
    with loss.backward():
        assert torch.equal(given.grad, by_given)
        given.grad = torch.zeros_like(given)
    assert not model.first.weight.grad.any() and model.head.weight.grad.any()
    assert torch.allclose(second.grad, by_second, atol=1e-14, rtol=0)


def test_gradients_by_a_tensor_that_several_modules_have():
    """What the model returns is a tensor that a module inside was given, and that was changed there."""
    model, x = wrapped("many")

    def double(value):
        tensors(value)[0].mul_(2)

    with model.trace(x):
        double(model.join.mix.inputs)
        returned = model.output
        (returned.total**2).sum().backward()
    values, _ = Hooked(make("many")[0]).run(
        (x,), edits=[("model.join.mix", 0, "inputs", double)], grad=True, copies=False
    )
    theirs = values["model", 0, "output"]
    (theirs["total"] ** 2).sum().backward()
    for ours, other in zip(returned.parts, theirs["parts"], strict=True):
        assert torch.allclose(ours.grad, other.grad, atol=1e-13, rtol=0)


def test_gradients_by_what_was_changed_in_place():
    """By the tensor as it is now; what it was computed from has another one."""
    model, x = wrapped("twice")
    with model.trace(x):
        inner = model.inner[1].output
        hidden = model.inner.output
        hidden.mul_(2)
        hidden[:, 0] = 3
        (model.output**2).sum().backward()

    module, _ = make("twice")
    now = (module.inner(x) * 2).detach()
    now[:, 0] = 3
    ((module.inner(module.other(now.requires_grad_())) + x) ** 2).sum().backward()
    by_hidden = now.grad
    assert torch.allclose(hidden.grad, by_hidden, atol=1e-13, rtol=0)
    assert torch.allclose(inner.grad[:, 1:], 2 * by_hidden[:, 1:], atol=1e-13, rtol=0) and not inner.grad[:, 0].any()


def test_gradients_by_what_was_set_in_a_region():
    model, x = wrapped("twice")
    with model.trace(x):
        hidden = model.inner.output
        hidden[:, 0] = 3
        (model.output**2).sum().backward()
    module, _ = make("twice")
    now = module.inner(x).detach()
    now[:, 0] = 3
    ((module.inner(module.other(now.requires_grad_())) + x) ** 2).sum().backward()
    assert now.grad[:, 0].any() and torch.allclose(hidden.grad, now.grad, atol=1e-13, rtol=0)


def test_gradients_by_what_a_forward_changes_in_place():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.first(x)
            x *= 2
            return self.second(x)

    model, x = NNsight(Doubling().double()), torch.randn(3, 6, dtype=torch.float64)
    with model.trace(x):
        first, given = model.first.output, model.second.input
        out = model.output
        (out**2).sum().backward()
    by_given = 2 * out.detach() @ model.second.weight
    assert torch.allclose(given.grad, by_given, atol=1e-13, rtol=0)
    assert torch.allclose(first.grad, 2 * by_given, atol=1e-13, rtol=0)


def test_no_gradient_by_a_value_of_an_earlier_run():
    model, x = wrapped("mlp")
    with model.trace(x):
        late = model.act.output
        model.second.output = model.second.output * 2
        loss = model.output.sum()
        loss.backward()
        with pytest.raises(
            glassformer.OrderError, match=r"model\.act\.output was read before model\.second\.output was set"
        ):
            print(late.grad)
        with pytest.raises(glassformer.OrderError, match="read it again"):
            torch.autograd.grad(loss, late, allow_unused=True)
        with loss.backward(), pytest.raises(glassformer.OrderError, match="read it again"):
            print(late.grad)
        again = model.act.output
        assert torch.autograd.grad(model.output.sum(), again)[0].any()
    with pytest.raises(glassformer.OrderError):
        print(late.grad)


def test_gradients_by_what_was_put_in():
    model, x = wrapped("mlp")
    steering = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    with model.trace(x):
        model.first.output = model.first.output + steering
        (model.output**2).sum().backward()
    values, _ = Hooked(make("mlp")[0]).run((x,), grad=True, copies=False)
    (values["model", 0, "output"] ** 2).sum().backward()
    assert torch.allclose(steering.grad, values["model.first", 0, "output"].grad.sum(0), atol=1e-13, rtol=0)


def test_both_losses_of_a_clean_and_an_edited_run():
    """Editing breaks no graph that was there before."""
    model, x = wrapped("mlp")
    with model.trace(x):
        clean = model.output
        hidden = model.act.output
        hidden.mul_(2)
        difference = ((model.output - clean) ** 2).sum()
        difference.backward()
    module, _ = make("mlp")
    stream = torch.tanh(module.first(x))
    active = module.act(module.second(stream))
    ((module.head(active * 2 + stream) - module.head(active + stream)) ** 2).sum().backward()
    for name, parameter in module.named_parameters():
        ours = model._module.get_parameter(name).grad
        assert torch.allclose(ours, parameter.grad, atol=1e-13, rtol=0), name


def test_modes():
    model, x = wrapped("mlp")
    with torch.no_grad(), model.trace(x):
        assert not model.output.requires_grad
    with torch.inference_mode(), model.trace(x):
        model.first.output[:] = 0
        out = model.output
    with model.trace(x):
        with torch.no_grad():
            hidden = model.second.output
        assert hidden.requires_grad
    zero = ("model.first", 0, "output", constant(torch.zeros(4, 8, dtype=torch.float64)))
    assert torch.equal(out, expected("mlp", zero)["model", 0, "output"])
