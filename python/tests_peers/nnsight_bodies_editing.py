"""Bodies of edits and of scans that run on nnsight and on ours alike: each gives the streams that it makes."""

import torch
from nnsight_bodies import (
    attention,
    blocks,
    embedding,
    final_norm,
    first_norm,
    heads_input,
    hidden,
    last_of_mlp,
    put,
    second_norm,
)


class Autoencoder(torch.nn.Module):
    """A sparse autoencoder."""

    def __init__(self, width, dtype, seed=3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.encoder = torch.nn.Linear(width, 40, dtype=dtype)
        self.decoder = torch.nn.Linear(40, width, dtype=dtype)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=dtype) * 0.2)

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x)))


def stream_of(model, prompt, **options):
    """The stream behind each block, and the logits."""
    with model.trace(prompt, **options):
        stream = [].save()
        for block in blocks(model):
            stream.append(hidden(block.output).clone())
        logits = model.lm_head.output.save()
    return [*stream, logits]


def texts_of(model, prompt, steps=5):
    """The ids that are generated, and the last logits of each step."""
    with model.generate(prompt, max_new_tokens=steps, do_sample=False) as tracer:
        rows = [].save()
        for _ in tracer.iter[:steps]:
            rows.append(model.lm_head.output[:, -1])
        ids = tracer.result.save()
    return ids, rows


# --- edits of one model, with what they do


def in_place(model, edited):
    hidden(blocks(edited)[1].output)[:, 1] = 0


def in_place_through_a_view(model, edited):
    found = hidden(blocks(edited)[0].output)
    found[:, -1, :5].mul_(3)
    found[:, :2].add_(1)


def assigned(model, edited):
    put(blocks(edited)[1], hidden(blocks(edited)[1].output) * 0.5 + 1)


def assigned_twice(model, edited):
    put(blocks(edited)[1], hidden(blocks(edited)[1].output) + 1)
    put(blocks(edited)[1], hidden(blocks(edited)[1].output) * 2)
    hidden(blocks(edited)[1].output)[:, -1] = 0.25


def constant(model, edited):
    hidden(blocks(edited)[0].output)[:] = torch.linspace(-1, 1, model.config.hidden_size, dtype=torch.float64)


def heads_off(model, edited):
    inputs = heads_input(blocks(edited)[1]).input
    n_heads = model.config.num_attention_heads
    batch, length, width = inputs.shape
    by_head = inputs.view(batch, length, n_heads, width // n_heads)
    by_head[:, :, 1] = 0
    by_head[:, 0, 0] *= 2


def mlp_input(model, edited):
    blocks(edited)[1].mlp.input = blocks(edited)[1].mlp.input * 2


def mlp_input_in_place(model, edited):
    blocks(edited)[1].mlp.input[:, 1:] += 1


def norm_input(model, edited):
    first_norm(blocks(edited)[1]).input = first_norm(blocks(edited)[1]).input * 2 + 1


def second_norm_input(model, edited):
    second_norm(blocks(edited)[0]).input = second_norm(blocks(edited)[0]).input - 0.5


def block_input(model, edited):
    blocks(edited)[1].input = blocks(edited)[1].input * torch.cos(blocks(edited)[1].input)


def attention_output(model, edited):
    put(attention(blocks(edited)[1]), hidden(attention(blocks(edited)[1]).output) * -1)


def activations(model, edited):
    chosen = last_of_mlp(blocks(edited)[2]).input
    last_of_mlp(blocks(edited)[2]).input = torch.where(chosen > 0, chosen, torch.zeros_like(chosen))


def embeddings(model, edited):
    embedding(edited).output = embedding(edited).output.clone().flip(1)


def centred(model, edited):
    found = hidden(blocks(edited)[1].output)
    put(blocks(edited)[1], found - found.mean(dim=1, keepdim=True) + torch.arange(found.shape[1])[None, :, None])


def layer_to_layer(model, edited):
    early = hidden(blocks(edited)[0].output)
    direction = early.softmax(-1).detach()
    put(blocks(edited)[2], hidden(blocks(edited)[2].output) + direction)


def left_out(model, edited):
    blocks(edited)[1].skip(
        (hidden(blocks(edited)[0].output),)
        if isinstance(blocks(edited)[1].output, tuple)
        else hidden(blocks(edited)[0].output)
    )


def logits(model, edited):
    edited.lm_head.output[:, :, 7] = 30.0


def lens(model, edited):
    found = hidden(blocks(edited)[0].output)
    scores = edited.lm_head(final_norm(edited)(found))
    edited.lm_head.output = edited.lm_head.output + scores


def several_at_once(model, edited):
    mlp_input(model, edited)
    in_place(model, edited)
    logits(model, edited)


EDITS = (
    in_place,
    in_place_through_a_view,
    assigned,
    assigned_twice,
    constant,
    heads_off,
    mlp_input,
    mlp_input_in_place,
    norm_input,
    second_norm_input,
    block_input,
    attention_output,
    activations,
    embeddings,
    centred,
    layer_to_layer,
    logits,
    lens,
    several_at_once,
)


def edited_by(model, edit, prompt):
    """The stream of an edited copy, of another one next to it, and of the model that was copied."""
    with model.edit() as (_, edited):
        edit(model, edited)
    with model.edit() as (_, other):
        hidden(blocks(other)[0].output)[:, 0] = 1
    return stream_of(edited, prompt), stream_of(other, prompt), stream_of(model, prompt)


def edited_generation(model, edit, prompt):
    """An edit of the prompt's step alone, in a generation."""
    with model.edit() as (_, edited):
        edit(model, edited)
    return texts_of(edited, prompt)


def edited_generation_at(model, edit, prompt, steps):
    """An edit at some steps of a generation."""
    with model.edit() as (tracer, edited):
        for _ in tracer.iter[steps]:
            edit(model, edited)
    return texts_of(edited, prompt)


def edited_generation_at_all(model, edit, prompt):
    """An edit at all steps, and another one in the first alone."""
    with model.edit() as (tracer, edited):
        for _ in tracer.all():
            edit(model, edited)
    with edited.edit() as (_, twice):
        hidden(blocks(twice)[2].output)[:, 0] = 2
    return texts_of(twice, prompt)


def edited_in_place(model, prompt):
    """Edits of the model itself, on top of each other, and without them again."""
    found = [stream_of(model, prompt)]
    with model.edit(inplace=True):
        hidden(blocks(model)[0].output)[:, 0] = 1
    found.append(stream_of(model, prompt))
    with model.edit(inplace=True):
        put(blocks(model)[0], hidden(blocks(model)[0].output) * 2)
    found.append(stream_of(model, prompt))
    model.clear_edits()
    found.append(stream_of(model, prompt))
    return found


def edited_and_changed(model, prompt):
    """A trace of an edited model that makes changes of its own."""
    with model.edit() as (_, edited):
        put(blocks(edited)[1], hidden(blocks(edited)[1].output) * 2)
    with edited.trace(prompt):
        put(blocks(edited)[0], hidden(blocks(edited)[0].output) + 1)
        before = hidden(blocks(edited)[1].output).clone().save()
        put(blocks(edited)[1], before - 3)
        hidden(blocks(edited)[1].output)[:, 0] = 0.5
        after = hidden(blocks(edited)[2].output).save()
    return before, after


def edited_invokes(model, prompts):
    """Prompts of one length and of several: the last position of each."""
    with model.edit() as (_, edited):
        hidden(blocks(edited)[0].output)[:, -1] += 1
        put(blocks(edited)[1], hidden(blocks(edited)[1].output) * 2)
    with edited.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                found.append(hidden(blocks(edited)[2].output)[:, -1].clone())
    return found


def autoencoder(model, prompt, dtype):
    """A module of one's own in the tree, which an edit calls, and whose inner values a trace reads and sets."""
    block = blocks(model)[1]
    block.sae = Autoencoder(model.config.hidden_size, dtype)
    with model.edit() as (_, edited):
        mine = blocks(edited)[1]
        put(mine, mine.sae(hidden(mine.output), hook=True))
    with edited.trace(prompt):
        mine = blocks(edited)[1]
        inner = mine.sae.encoder.output.clone().save()
        whole = mine.sae.output.clone().save()
        after = hidden(blocks(edited)[2].output).save()
    with edited.trace(prompt):
        mine = blocks(edited)[1]
        mine.sae.encoder.output = torch.full_like(inner, 0.5)
        set_to = hidden(blocks(edited)[2].output).save()
    with torch.no_grad():
        block.sae.decoder.bias += 1  # Trained afterwards.
    return inner, whole, after, set_to, stream_of(edited, prompt)


def autoencoder_gradients(model, prompt, dtype):
    """What the parameters of a module that an edit calls get from a loss."""
    block = blocks(model)[1]
    block.sae = Autoencoder(model.config.hidden_size, dtype)
    with model.edit() as (_, edited):
        mine = blocks(edited)[1]
        put(mine, mine.sae(hidden(mine.output), hook=True))
    with edited.trace(prompt):
        logits = edited.lm_head.output.save()
    logits[:, -1].square().sum().backward()
    sae = block.sae._module if hasattr(block.sae, "_module") else block.sae
    found = [parameter.grad.clone() for parameter in sae.parameters()]
    return found


def scanned(model, prompt):
    """The shapes of everything on the way."""
    with model.scan(prompt):
        found = {}.save()
        for number, block in enumerate(blocks(model)):
            found[f"{number} heads"] = tuple(heads_input(block).input.shape)
            found[f"{number} mlp"] = tuple(block.mlp.output.shape)
            stream = hidden(block.output)
            found[number] = tuple(stream.shape)
        found["mean"] = tuple((stream * 2).mean(dim=1).shape)
        found["lens"] = tuple(model.lm_head(final_norm(model)(stream)).shape)
        found["dtype"] = str(stream.dtype)
        found["logits"] = tuple(model.output.logits.shape)
    return found
