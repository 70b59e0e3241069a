"""How often `NNsight` runs a module, what runs leave behind, and calls of modules that run several times."""

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch_hooks import Hooked
from torch_modules import make
from wrapped_modules import Counted, constant, expected, layers_that_count, nothing_stays, wrapped

import glassformer
from glassformer.nnsight.nnsight_module import NNsight

__all__ = ["nothing_stays"]


# --- how often the module runs


def test_reading_all_layers_runs_each_once():
    model, x = layers_that_count()
    with model.trace(x):
        seen = [layer.output for layer in model]
    assert len(Counted.runs) == 12 and len(seen) == 12


def test_reading_backwards_runs_each_once():
    model, x = layers_that_count()
    with model.trace(x):
        assert len([layer.output for layer in reversed(list(model))]) == 12
    assert len(Counted.runs) == 12


def test_reading_and_editing_layer_by_layer_runs_each_once():
    model, x = layers_that_count()
    with model.trace(x):
        for layer in model:
            layer.output += layer.inner[0].output
        out = model.output
    assert len(Counted.runs) == 12
    for layer in model._module:
        x = layer.inner(x) + layer.inner[0](x)
    assert torch.equal(out, x)


def test_an_edit_runs_again_only_what_comes_after_it():
    model, x = layers_that_count()
    with model.trace(x):
        model.output  # noqa: B018
        model[9].output = torch.zeros(3, 6, dtype=torch.float64)
        model.output  # noqa: B018
    assert len(Counted.runs) == 12 + 2


def test_the_end_runs_what_has_not_run():
    for body, runs in [("nothing", 12), ("read", 12), ("stop", 3), ("edit", 12)]:
        model, x = layers_that_count()
        with model.trace(x) as tracer:
            if body in ("read", "stop"):
                model[2].output  # noqa: B018
            if body == "edit":
                model[3].output = torch.zeros(3, 6, dtype=torch.float64)
            if body == "stop":
                tracer.stop()
                raise AssertionError("the body went on")
        assert len(Counted.runs) == runs, body


# --- what runs leave behind


def test_random_numbers_and_buffers_are_those_of_one_run():
    values, module = Hooked(make("cnn", True)[0]).run((make("cnn")[1],), seed=4)
    model, x = wrapped("cnn", training=True)
    torch.manual_seed(4)
    with model.trace(x):
        for path in ("drop2", "norm1", "drop1", "conv2"):
            assert torch.equal(getattr(model, path).output, values[f"model.{path}", 0, "output"])
        model.conv2.output[:, 0] = 0
        model.output  # noqa: B018
        model.head.output = model.head.output * 2
    drawn = torch.rand(3)

    def change(value):
        value[:, 0] = 0

    hooked = Hooked(make("cnn", True)[0])
    _, module = hooked.run((x,), edits=[("model.conv2", 0, "output", change)], seed=4)
    assert torch.equal(drawn, hooked.drawn_after[0])
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, model._module.get_buffer(name)), name
    assert model._module.training


def test_random_numbers_of_the_body_are_its_own():
    """What the body draws isn't what the module draws, and runs in between don't repeat it."""
    model, x = wrapped("cnn", training=True)
    torch.manual_seed(4)
    with model.trace(x):
        one = torch.rand(4)
        dropped = model.drop1.output
        two = torch.rand(4)
        model.norm2.output *= 2
        model.output  # noqa: B018
        three = torch.rand(4)
    hooked = make("cnn", True)[0]
    torch.manual_seed(4)
    assert torch.equal(one, torch.rand(4))
    seen = []
    hooked.drop1.register_forward_hook(lambda *args: seen.append(args[2]))
    hooked(x)
    assert torch.equal(dropped, seen[0])
    assert torch.equal(two, torch.rand(4)) and torch.equal(three, torch.rand(4))


def test_attributes_are_those_of_one_run():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.count, self.generator = nn.Linear(6, 6), 0, torch.Generator().manual_seed(1)

        def forward(self, x):
            self.count += 1
            return self.linear(x) + self.count + torch.rand(6, generator=self.generator)

    torch.manual_seed(0)
    module = nn.Sequential(Counting(), Counting()).double()
    x = torch.ones(2, 6, dtype=torch.float64)
    torch.manual_seed(0)
    other = nn.Sequential(Counting(), Counting()).double()
    model = NNsight(module)
    with model.trace(x):
        before = model.output
        model[1].input = model[0].output * 2
        out = model.output
    assert torch.equal(before, other(x)) and module[0].count == module[1].count == 1
    other[1].generator.manual_seed(1)
    other[1].count = 0
    other[0].generator.manual_seed(1)
    other[0].count = 0
    assert torch.equal(out, other[1](other[0](x) * 2))
    assert torch.equal(torch.rand(2, generator=module[1].generator), torch.rand(2, generator=other[1].generator))


def test_weights_and_modes_that_change_in_the_body():
    model, x = wrapped("cnn")
    with torch.no_grad(), model.trace(x):
        model.output  # noqa: B018
        model.head.weight.mul_(2)
        doubled = model.output
        model._module.drop2.train()
        torch.manual_seed(1)
        dropped = model.output
        model._module.drop2.p = 0.0
        kept = model.output
        model.head.output = model.head.output * 2
        again = model.output
    assert model._module.drop2.p == 0.0 and torch.equal(again, kept * 2)
    module, _ = make("cnn")
    with torch.no_grad():
        module.head.weight.mul_(2)
        assert torch.equal(doubled, module(x))
        module.drop2.train()
        torch.manual_seed(1)
        assert torch.equal(dropped, module(x))
        assert torch.equal(kept, module.eval()(x))


def test_a_buffer_that_changes_behind_torchs_back():
    model, x = wrapped("cnn")
    with torch.no_grad(), model.trace(x):
        model.output  # noqa: B018
        model.norm1.running_mean.data.add_(1)
        model.head.output = torch.zeros(4, 3, dtype=torch.float64)  # The next read runs the module.
        model.output  # noqa: B018
        normed = model.norm1.output
    module = model._module
    assert torch.equal(normed, module.norm1(module.conv1(x)))


def test_a_buffer_that_both_change():
    model, x = wrapped("cnn", training=True)
    error = pytest.raises(glassformer.OrderError, match=r"norm1\.running_mean was changed after the module had run")
    with error, model.trace(x):
        model.output  # noqa: B018
        model.norm1.running_mean.zero_()
        model.conv2.output *= 2
        model.output  # noqa: B018


def test_modules_that_do_not_compute_the_same_again():
    class Listing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.seen = nn.Linear(6, 6), nn.Linear(6, 6), []

        def forward(self, x):
            self.seen.append(1)
            return self.second(self.first(x) * len(self.seen))

    model, x = NNsight(Listing().double()), torch.ones(2, 6, dtype=torch.float64)
    with (
        pytest.raises(glassformer.UnsupportedError, match=r"model\.second\.inputs: the module computed something else"),
        model.trace(x),
    ):
        model.output  # noqa: B018
        model.second.output *= 2
        model.output  # noqa: B018


def test_objects_that_runs_change():
    """A cache of keys is filled as by one run, whether the module makes it or is given it."""
    from transformers import DynamicCache

    module, x = make("gpt_neo")
    with torch.no_grad():
        plain = module(x)
    model, given = NNsight(module), DynamicCache()
    with torch.no_grad(), model.trace(x, past_key_values=given):
        model.transformer.h[2].mlp.output *= 2
        model.transformer.h[1].attn.output  # noqa: B018
        model.transformer.h[2].output[0][:, -1] *= 1
        cache = model.output.past_key_values
        logits = model.output.logits
    assert cache.get_seq_length() == given.get_seq_length() == 7
    for ours, theirs in zip(given.layers, plain.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    with torch.no_grad(), model.trace(x):
        model.transformer.h[2].mlp.output *= 2
        made = model.output.past_key_values
        assert torch.equal(model.output.logits, logits)
    assert torch.equal(made.layers[0].keys, plain.past_key_values.layers[0].keys) and made.get_seq_length() == 7


def test_users_hooks():
    """Those on the way in come before the trace, those on the way out after it: they see edits."""
    model, x = wrapped("mlp")
    module, seen = model._module, []
    handles = [
        module.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
        module.first.register_forward_hook(lambda module, args, output: output + 1),
        module.act.register_forward_hook(lambda module, args, output: seen.append(output)),
    ]
    with model.trace(x):
        given, first = model.first.input, model.first.output
        model.act.output[:, 0] = 3
        model.output  # noqa: B018
        model.head.output = model.head.output * 1
        out = model.output
    for handle in handles:
        handle.remove()
    assert torch.equal(given, x * 2) and torch.equal(first, module.first(x * 2))
    stream = torch.tanh(module.first(x * 2) + 1)
    active = module.act(module.second(stream))
    active[:, 0] = 3
    assert torch.equal(seen[-1], active) and torch.equal(out, module.head(active + stream))


def test_hooks_that_modules_put_on_one_another():
    """transformers collects hidden states by hooks that a model installs while it runs, and once only."""
    module, x = make("bert")
    for _ in range(2):
        model = NNsight(module)
        with torch.no_grad(), model.trace(x, output_hidden_states=True):
            model.output  # noqa: B018
            model.encoder.layer[1].output[:, 0] = 0
            model.output  # noqa: B018
            model.pooler.output = model.pooler.output * 1
            hidden = model.output.hidden_states
            layers = [layer.output for layer in model.encoder.layer]
        assert len(hidden) == 4 and all(torch.equal(a, b) for a, b in zip(hidden[1:], layers, strict=True))
        assert not hidden[2][:, 0].any()
        with torch.no_grad():
            assert len(module(x, output_hidden_states=True).hidden_states) == 4


# --- steps


def test_steps():
    module, x = make("recurrent")
    values = Hooked(module).run((x,))[0]
    states = [values["model.cell", step, "output"] for step in range(5)]
    model = NNsight(module)
    for chosen, steps in [(slice(None), [0, 1, 2, 3, 4]), (slice(1, 3), [1, 2]), (3, [3]), ([4, 0], [4, 0])]:
        with model.trace(x) as tracer:
            found = [(step, model.cell.output) for step in tracer.iter[chosen]]
            assert torch.equal(model.cell.output, states[0])
        assert [step for step, _ in found] == steps
        assert all(torch.equal(value, states[step]) for step, value in found)
    with model.trace(x) as tracer:
        assert [len([model.cell.output for _ in tracer.all()]), len([model.out.output for _ in tracer.all()])] == [5, 1]
        assert torch.equal(model.cell.next().output, states[1])
        assert torch.equal(model.cell.next(2).output, states[3])
        assert torch.equal(model.embed.output, values["model.embed", 0, "output"])
    with model.trace(x) as tracer:
        tracer.next()
        assert torch.equal(model.cell.output, states[1])
        for step in tracer.iter[:]:
            if step == 2:
                break
        assert torch.equal(model.cell.output, states[1])


def test_edits_of_steps():
    model, x = wrapped("recurrent")
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            if step % 2:
                model.cell.output = torch.full((3, 6), step / 10, dtype=torch.float64)
        out = model.output
    edits = [
        ("model.cell", step, "output", constant(torch.full((3, 6), step / 10, dtype=torch.float64))) for step in (1, 3)
    ]
    assert torch.equal(out, expected("recurrent", *edits)["model", 0, "output"])
