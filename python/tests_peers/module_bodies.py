"""Bodies of traces, run both by nnsight and by us. They read in the order of the run, as nnsight has it, and return
what they saved."""

import torch


def read_mlp(model, x):
    with model.trace(x):
        first = model.first.output.save()
        given = model.second.input.save()
        args = model.second.inputs.save()
        out = model.output.save()
    return first, given, args[0][0], out


def keyword_arguments(model, x):
    with model.trace(x, scale=0.5) as tracer:
        kwargs = model.inputs[1].save()
        out = tracer.result.save()
    return kwargs["scale"], out


def set_values(model, x):
    with model.trace(x):
        model.first.output = model.first.output * 2
        model.second.input = torch.ones_like(model.second.input)
        model.second.output[:, 2:4] = 0.5
        model.act.output[1] += 1
        out = model.output.save()
    return out


def set_without_reading(model, x):
    with model.trace(x):
        model.second.output = torch.linspace(-1, 1, 8, dtype=x.dtype).expand(4, 8)
        out = model.output.save()
    return out


def mask_by_value(model, x):
    with model.trace(x):
        hidden = model.second.output
        hidden[hidden < 0] = 0
        out = model.output.save()
    return out


def through_a_view(model, x):
    with model.trace(x):
        model.second.output.view(-1)[3:9].mul_(-1)
        model.second.output.T[0] = 2
        out = model.output.save()
    return out


def input_in_place(model, x):
    """Others that have the same tensor see it too: the residual connection."""
    with model.trace(x):
        model.layers[1].norm.input[:, 0] = 0
        out = model.output.save()
    return out


def skip_modules(model, x):
    with model.trace(x):
        model.layers[1].skip(model.layers[1].input)
        model.layers[2].down.skip(torch.ones_like(model.layers[2].norm.output))
        out = model.output.save()
    return out


def steer_all_layers(model, x):
    seen = []
    with model.trace(x):
        for index, layer in enumerate(model.layers):
            layer.output += 0.1 * index
            seen.append(layer.output.clone().save())
        out = model.output.save()
    return (*seen, out)


def stop_early(model, x):
    with model.trace(x) as tracer:
        seen = model.layers[1].output.save()
        tracer.stop()
    return (seen,)


def tuples(model, x):
    with model.trace(x, shift=torch.ones(4, dtype=x.dtype)):
        left = model.split.output[0].save()
        model.split.output[1][:, 0] = 3
        kwargs = model.join.inputs[1].save()
        model.join.output["sum"][:] += 1
        product = model.join.output["product"].save()
        out = model.output.total.save()
        note = model.output.note.save()
    return left, kwargs["right"], product, out, note


def whole_tuples(model, x):
    with model.trace(x):
        left, right, nothing = model.split.output
        model.split.output = (left * 2, right, nothing)
        joined = model.join.output
        model.join.output = {"sum": joined["product"], "product": joined["sum"]}
        out = model.output.total.save()
    return (out,)


def whole_inputs(model, x):
    with model.trace(x):
        args, kwargs = model.join.inputs
        model.join.inputs = ((args[0] + 1,), {"right": kwargs["right"] * 2})
        out = model.output.total.save()
    return (out,)


def used_twice(model, x):
    seen = []
    with model.trace(x) as tracer:
        for step in tracer.iter[:2]:
            seen.append(model.inner[0].output.save())
            if step == 1:
                model.inner[0].output[:] = 0
            seen.append(model.inner.output.save())
        out = model.output.save()
    return (*seen, out)


def second_name(model, x):
    with model.trace(x):
        seen = model.again.output.save()
    return (seen,)


def recurrent_steps(model, x):
    states = []
    with model.trace(x) as tracer:
        embedded = model.embed.output.save()
        for step in tracer.iter[1:4]:
            if step == 2:
                model.cell.output[:, :3] = 0.25
            states.append(model.cell.output.save())
    return (embedded, *states)


def recurrent_edit(model, x):
    with model.trace(x) as tracer:
        for _ in tracer.iter[[0, 3]]:
            model.cell.output *= 2
        out = tracer.result.save()
    return (out,)


def gradients(model, x):
    with model.trace(x):
        first = model.first.output
        hidden = model.second.output
        loss = (model.output**2).sum()
        with loss.backward():
            by_hidden = hidden.grad.save()
            by_first = first.grad.save()
    return by_first, by_hidden


def changed_gradients(model, x):
    with model.trace(x):
        first = model.first.output
        hidden = model.second.output
        loss = (model.output**2).sum()
        with loss.backward():
            hidden.grad = hidden.grad * 2
            by_first = first.grad.save()
    weight = model.first.weight.grad.clone()
    model.first.weight.grad = None
    return by_first, weight


def gradients_after_edits(model, x):
    with model.trace(x):
        first = model.first.output
        model.second.output[:, 0] = 0
        hidden = model.second.output
        loss = (model.output**2).sum()
        with loss.backward():
            by_hidden = hidden.grad.save()
            by_first = first.grad.save()
    return by_first, by_hidden


def backward_outside(model, x):
    with model.trace(x):
        hidden = model.second.output.save()
        loss = (model.output**2).sum().save()
    with loss.backward():
        found = hidden.grad.save()
    return (found,)


def all_cached(model, x):
    with model.trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
        model.layers[1].output *= 2
    values = [cache[path].output for path in sorted(cache.keys())]
    return (
        *values,
        cache["model.layers.1.norm"].input,
        cache.model.layers[2].inputs[0][0],
        cache.layers[0].up.output,
        len(cache.layers[0].up),
        sorted(cache.keys()),
        "model.head" in cache,
        "model.nothing" in cache,
    )


def some_cached(model, x):
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[model.cell, "model.out"], dtype=torch.float32)
    return (*cache["model.cell"].output, cache.out.output, len(cache.cell), sorted(cache.keys()))


def one_invoke_and_an_empty_one(model, x):
    with model.trace() as tracer:
        with tracer.invoke(x):
            late = model.layers[3].output.save()
        with tracer.invoke():
            early = model.layers[0].output.save()
    return early, late


def one_session(model, x):
    with model.session():
        with model.trace(x):
            hidden = model.layers[1].output
        with model.trace(x):
            model.layers[0].output = hidden
            out = model.output.save()
    return (out,)


def logit_lens(model, x):
    with model.trace(x):
        early = model.layers[0].output
        lens = model.head(early).save()
    return (lens,)


def added_module(model, x):
    torch.manual_seed(9)
    model.layers[1].probe = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()).double()
    with model.trace(x):
        acts = model.layers[1].output
        model.layers[1].output = model.layers[1].probe(acts, hook=True)
        out = model.output.save()
    return (out,)


def plain_calls(model, x):
    return model(x), model.trace(x, trace=False), model.layers[0](x)


def another_method(model, x):
    with model.layers[1].trace(x):
        inner = model.layers[1].up.output.save()
        out = model.layers[1].output.save()
    return inner, out


def encoder(model, x):
    with model.trace(x):
        model.layers[0].linear1.output[:, :, :4] = 0
        attended = model.layers[1].self_attn.output[0].save()
        model.layers[2].norm1.input = model.layers[2].norm1.input * 1.5
        out = model.output.save()
    return attended, out


def gpt_neo(model, x):
    with model.trace(x):
        model.transformer.h[0].output[0][:, -1] = 0.1
        attended = model.transformer.h[1].attn.output[0].save()
        model.transformer.h[1].mlp.output[:] *= 2
        logits = model.lm_head.output.save()
        model.lm_head.output[:, -1, 3] = 100
        out = model.output.logits.save()
    return attended, logits.clone(), out


def bert(model, x):
    with model.trace(x):
        inner = model.encoder.layer[0].attention.self.output[0].save()
        model.encoder.layer[1].output[:, 0] = 0
        hidden = model.encoder.layer[2].E_output.dense.output.save()
        pooled = model.pooler.output.save()
        out = model.output.last_hidden_state.save()
    return inner, hidden, pooled, out


def hidden_states(model, x):
    """What transformers collects has the edits."""
    with model.trace(x, output_hidden_states=True):
        model.encoder.layer[1].output[:, 0] = 0
        hidden = model.output.hidden_states.save()
    return tuple(hidden)


def output_that_is_the_input(model, x):
    """What the function in place returns isn't used: its argument is."""
    with model.trace(x) as tracer:
        for _ in tracer.iter[1]:
            model.relu.output[:, 1] = 0.3
        out = model.output.save()
    return (out,)


def training_cnn(model, x):
    torch.manual_seed(3)
    with model.trace(x):
        model.norm1.output[:, 0] = 0
        dropped = model.drop1.output.save()
        model.conv2.output *= 2
        out = model.output.save()
    state = [each.clone() for each in model._module.buffers()]
    return (dropped, out, *state, torch.rand(2))


CASES = [
    ("mlp", read_mlp),
    ("mlp", keyword_arguments),
    ("mlp", set_values),
    ("mlp", set_without_reading),
    ("mlp", mask_by_value),
    ("mlp", through_a_view),
    ("residual", input_in_place),
    ("residual", skip_modules),
    ("residual", steer_all_layers),
    ("residual", stop_early),
    ("many", tuples),
    ("many", whole_tuples),
    ("many", whole_inputs),
    ("twice", used_twice),
    ("twice", second_name),
    ("recurrent", recurrent_steps),
    ("recurrent", recurrent_edit),
    ("mlp", gradients),
    ("mlp", changed_gradients),
    ("mlp", gradients_after_edits),
    ("mlp", backward_outside),
    ("residual", all_cached),
    ("recurrent", some_cached),
    ("residual", one_invoke_and_an_empty_one),
    ("residual", one_session),
    ("residual", logit_lens),
    ("residual", added_module),
    ("residual", plain_calls),
    ("residual", another_method),
    ("encoder", encoder),
    ("gpt_neo", gpt_neo),
    ("bert", bert),
    ("bert", hidden_states),
    ("cnn", training_cnn),
    ("cnn", output_that_is_the_input),
]
