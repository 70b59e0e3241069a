"""Bodies for every way of giving an input, for nnsight and ours alike."""

import torch
from nnsight_bodies import blocks, hidden, put


def read(model, *inputs, **options):
    """The stream and the logits of a trace with any arguments."""
    with model.trace(*inputs, **options):
        stream = [hidden(block.output) for block in blocks(model)].save()
        logits = model.lm_head.output.save()
    return stream, logits


def edited(model, *inputs, **options):
    """An edit at the last position, and one of the first row."""
    with model.trace(*inputs, **options):
        hidden(blocks(model)[0].output)[:, -1] = 0.5
        hidden(blocks(model)[1].output)[0] *= 2
        logits = model.lm_head.output.save()
    return logits


def loss(model, *inputs, **options):
    """The loss that the model gives for labels, and a gradient of it."""
    with model.trace(*inputs, **options):
        value = hidden(blocks(model)[1].output)
        found = model.output.loss.save()
        with found.backward():
            gradient = value.grad.save()
    return found, gradient


def generated(model, *inputs, **options):
    with model.generate(*inputs, **options) as tracer:
        ids = tracer.result.save()
    return ids


def generated_by_step(model, n, *inputs, **options):
    """What each step reads, and what comes out."""
    with model.generate(*inputs, max_new_tokens=n, min_new_tokens=n, **options) as tracer:
        logits = [].save()
        for _ in tracer.iter[:n]:
            logits.append(model.lm_head.output[:, -1])
        ids = tracer.result.save()
    return logits, ids


def learned(model, prompt, n_steps):
    """A vector in an edit is learned."""
    vector = torch.zeros(model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    with model.edit() as (_, edited_model):
        put(blocks(edited_model)[1], hidden(blocks(edited_model)[1].output) + vector)
    optimiser = torch.optim.SGD([vector], lr=0.05)
    losses = []
    for _ in range(n_steps):
        optimiser.zero_grad()
        with edited_model.trace(prompt):
            value = edited_model.lm_head.output[:, -1].log_softmax(-1)[:, 3].sum().save()
        (-value).backward()
        optimiser.step()
        losses.append(value.detach())
    return losses, vector.detach()
