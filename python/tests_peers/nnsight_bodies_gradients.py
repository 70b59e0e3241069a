"""Bodies with backward passes, for nnsight and ours alike. The judge gives gradients in the order of the backward pass
only, from the last layer to the first."""

import torch
from nnsight_bodies import attention, blocks, embedding, final_norm, heads_input, hidden, put


def loss_of(model, kind="one logit"):
    logits = model.lm_head.output
    if kind == "one logit":
        return logits[:, -1, 3].sum()
    if kind == "difference":
        return (logits[:, -1, 3] - logits[:, 0, 5]).sum()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.arange(logits.shape[1] - 1) % 7)


def gradients_of_layers(model, prompt, kind):
    """The gradients of every block's output, from the last to the first."""
    with model.trace(prompt):
        values = [hidden(block.output) for block in blocks(model)]
        loss = loss_of(model, kind)
        found = [].save()
        with loss.backward():
            for value in values[::-1]:
                found.append(value.grad)
        number = loss.save()
    return found, number


def gradients_of_parts(model, prompt):
    """Of what a layer consists of."""
    with model.trace(prompt):
        embedded = embedding(model).output
        given = blocks(model)[1].input
        heads = heads_input(blocks(model)[1]).input
        mixed = hidden(attention(blocks(model)[1]).output)
        made = blocks(model)[1].mlp.output
        normed = final_norm(model).output
        logits = model.lm_head.output
        loss = logits[:, -1].logsumexp(-1).sum()
        found = [].save()
        with loss.backward():
            for value in (logits, normed, made, mixed, heads, given, embedded):
                found.append(value.grad)
    return found


def replaced(model, prompt, factor):
    """A gradient is replaced on its way back: what lies before sees it."""
    with model.trace(prompt):
        first = hidden(blocks(model)[0].output)
        second = hidden(blocks(model)[1].output)
        loss = loss_of(model)
        found = [].save()
        with loss.backward():
            before = second.grad.clone()
            second.grad = before * factor
            found.append(before)
            found.append(first.grad)
    return found


def replaced_in_part(model, prompt):
    """The gradient flows back through one position alone."""
    with model.trace(prompt):
        first = hidden(blocks(model)[0].output)
        second = hidden(blocks(model)[1].output)
        loss = loss_of(model, "cross entropy")
        found = [].save()
        with loss.backward():
            gradient = second.grad.clone()
            gradient[:, :-1] = 0
            second.grad = gradient
            found.append(first.grad)
    return found


def replaced_twice(model, prompt):
    """Two gradients are replaced."""
    with model.trace(prompt):
        embedded = embedding(model).output
        values = [hidden(block.output) for block in blocks(model)]
        loss = loss_of(model)
        found = [].save()
        with loss.backward():
            values[2].grad = values[2].grad * 2
            values[1].grad = values[1].grad + 1
            found.append(values[0].grad)
            found.append(embedded.grad)
    return found


def two_passes(model, prompt):
    """Two losses, one after another."""
    with model.trace(prompt):
        value = hidden(blocks(model)[0].output)
        logits = model.lm_head.output
        found = [].save()
        with logits[:, -1, 3].sum().backward(retain_graph=True):
            found.append(value.grad)
        with logits[:, -1, 4].sum().backward(retain_graph=True):
            found.append(value.grad)
        with (logits[:, -1, 3] * logits[:, -1, 4]).sum().backward():
            found.append(value.grad)
    return found


def through_edits(model, prompt):
    """Edits take part in the graph."""
    with model.trace(prompt):
        first = hidden(blocks(model)[0].output)
        put(blocks(model)[0], first * 3)
        second = hidden(blocks(model)[1].output)
        put(blocks(model)[1], torch.tanh(second))
        blocks(model)[2].mlp.output = blocks(model)[2].mlp.output * 0.5
        loss = loss_of(model)
        found = [].save()
        with loss.backward():
            found.append(second.grad)
            found.append(first.grad)
    return found


def through_an_edit_in_place(model, prompt):
    """A block's output is changed in place; what comes before has its gradients."""
    with model.trace(prompt):
        given = blocks(model)[1].input
        value = hidden(blocks(model)[1].output)
        value[:, -1] = value[:, -1] * 3
        value[:, 0] = 0
        loss = loss_of(model, "difference")
        found = [].save()
        with loss.backward():
            found.append(given.grad)
    return found


def of_a_vector(model, prompt):
    """A steering vector of the user's own that is learned."""
    steering = torch.zeros(model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    with model.trace(prompt):
        put(blocks(model)[1], hidden(blocks(model)[1].output) + steering)
        loss = loss_of(model, "difference").save()
    loss.backward()
    return loss.detach(), steering.grad


def of_a_leaf(model, prompt):
    """A layer's value is cut off from what comes before."""
    with model.trace(prompt):
        leaf = hidden(blocks(model)[1].output).detach().clone().requires_grad_().save()
        put(blocks(model)[1], leaf)
        loss = loss_of(model).save()
    loss.backward()
    return leaf.grad


def with_autograd(model, prompt):
    """torch.autograd.grad inside a trace."""
    with model.trace(prompt):
        first = hidden(blocks(model)[0].output)
        second = hidden(blocks(model)[1].output)
        loss = loss_of(model, "cross entropy")
        found = torch.autograd.grad(loss, [first, second])
        one = found[0].save()
        other = found[1].save()
    return one, other


def behind_the_trace(model, prompt):
    """A backward pass after the trace, on values that it gave."""
    with model.trace(prompt):
        value = hidden(blocks(model)[1].output).save()
        value.retain_grad()
        loss = loss_of(model).save()
    loss.backward()
    return value.grad


def entered_behind_the_trace(model, prompt):
    """The same, entered."""
    with model.trace(prompt):
        first = hidden(blocks(model)[0].output).save()
        value = hidden(blocks(model)[1].output).save()
        loss = loss_of(model).save()
    found = []
    with loss.backward():
        found.append(value.grad.save())
        value.grad = value.grad * 2
        found.append(first.grad.save())
    return found


def each_invoke(model, prompts):
    """A loss of each invoke's own."""
    with model.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                value = hidden(blocks(model)[1].output)
                loss = model.lm_head.output[:, -1, 3].sum()
                with loss.backward(retain_graph=True):
                    found.append([value.grad])
    return found


def of_both_invokes(model, prompts, barrier):
    """One loss of the logits of two invokes; gradients of both."""
    with model.trace() as tracer:
        meet = tracer.barrier(2) if barrier else None
        with tracer.invoke(prompts[0]):
            first = hidden(blocks(model)[0].output)
            first_logits = model.lm_head.output
            if meet:
                meet()
        with tracer.invoke(prompts[1]):
            second = hidden(blocks(model)[1].output)
            second_logits = model.lm_head.output
            if meet:
                meet()
            loss = (first_logits[:, -1, 3] * second_logits[:, -1, 4]).sum()
            with loss.backward():
                of_second = second.grad.save()
                of_first = first.grad.save()
    return [[of_first], [of_second]]


def attribution(model, clean, corrupted):
    """Attribution patching: gradients of a corrupted run times the difference to a clean one."""
    with torch.no_grad(), model.trace(clean):
        wanted = [hidden(block.output) for block in blocks(model)].save()
    with model.trace(corrupted):
        there = [hidden(block.output) for block in blocks(model)]
        loss = loss_of(model, "difference")
        found = [].save()
        with loss.backward():
            for number in (2, 1, 0):
                found.append(((wanted[number] - there[number]) * there[number].grad).sum(-1))
    return found
