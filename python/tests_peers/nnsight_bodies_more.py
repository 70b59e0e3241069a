"""Bodies with skipped modules, sessions, edits that stay, scans, caches, calls of modules and modules of one's own, for
nnsight and ours alike."""

import torch
from nnsight_bodies import attention, blocks, embedding, final_norm, first_norm, hidden, put, second_norm, trunk

# --- skip


def skipped(model, prompt, first, last):
    """Blocks `first` to `last` are skipped: the stream passes them by."""
    with model.trace(prompt):
        for number in range(first, last + 1):
            block = blocks(model)[number]
            block.skip(block.input)
        stream = hidden(blocks(model)[2].output).save()
        logits = model.lm_head.output.save()
    return stream, logits


def skipped_with_value(model, prompt, factor):
    """A block is skipped, with a value of the user's own."""
    with model.trace(prompt):
        block = blocks(model)[1]
        block.skip(block.input * factor)
        before = hidden(block.output).clone().save()
        logits = model.lm_head.output.save()
    return before, logits


def skipped_with_constant(model, prompt, shape):
    with model.trace(prompt):
        blocks(model)[0].skip(torch.linspace(-1, 1, 24 * 500, dtype=torch.float64)[: shape.numel()].reshape(shape))
        logits = model.lm_head.output.save()
    return logits


def skipped_parts(model, prompt):
    """Modules inside a block are skipped."""
    with model.trace(prompt):
        mlp = blocks(model)[0].mlp
        mlp.skip(torch.zeros_like(mlp.input))
        norm = first_norm(blocks(model)[1])
        norm.skip(norm.input * 0.1)
        mixed = attention(blocks(model)[2])
        mixed.skip((mixed.input * 0.5, None))
        logits = model.lm_head.output.save()
    return logits


def skipped_and_edited(model, prompt):
    """What stands in a skipped block's place can be edited."""
    with model.trace(prompt):
        block = blocks(model)[1]
        block.skip(block.input.clone())
        hidden(block.output)[:, -1] = 0.5
        put(blocks(model)[2], hidden(blocks(model)[2].output) * 2)
        logits = model.lm_head.output.save()
    return logits


def skipped_in_invokes(model, prompts):
    """Every invoke skips the same block, each with its own value."""
    with model.trace() as tracer:
        found = [].save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                block = blocks(model)[1]
                block.skip(block.input * (number + 1))
                found.append([model.lm_head.output])
    return found


def skipped_in_generation(model, prompt, n, steps):
    """An MLP is skipped at some steps, and a block at all of them: the judge's cache of keys stands no other."""
    with model.generate(prompt, max_new_tokens=n, do_sample=False) as tracer:
        logits = [].save()
        for step in tracer.iter[:n]:
            if step in steps:
                mlp = blocks(model)[0].mlp
                mlp.skip(mlp.input * 0.5)
            block = blocks(model)[1]
            block.skip(block.input * 0.5)
            logits.append(model.lm_head.output[:, -1].clone())
    return logits


# --- session


def session(model, prompt, other):
    """Values go from one trace to the next."""
    with model.session():
        with model.trace(prompt):
            taken = hidden(blocks(model)[1].output)[:, -1]
        with model.trace(other):
            hidden(blocks(model)[1].output)[:, -1] = taken
            logits = model.lm_head.output.save()
        doubled = (taken * 2).save()
    return logits, doubled


def session_with_loop(model, prompts):
    with model.session():
        found = [].save()
        mean = 0
        for prompt in prompts:
            with model.trace(prompt):
                mean = mean + hidden(blocks(model)[1].output)[0, -1] / len(prompts)
        for prompt in prompts:
            with model.trace(prompt):
                hidden(blocks(model)[1].output)[:, -1] = mean
                found.append(model.lm_head.output)
    return found


# --- edits that stay


def zeroed(model, layer):
    """A model whose block gives zeros at the last position, and whose next MLP is doubled."""
    with model.edit() as (_, edited):
        hidden(blocks(edited)[layer].output)[:, -1] = 0.25
        blocks(edited)[layer + 1].mlp.output = blocks(edited)[layer + 1].mlp.output * 2
    return edited


def scaled(model, layer, factor):
    with model.edit() as (_, edited):
        put(blocks(edited)[layer], hidden(blocks(edited)[layer].output) * factor)
    return edited


def plain_logits(model, prompt):
    with model.trace(prompt):
        stream = [hidden(block.output).clone() for block in blocks(model)].save()
        logits = model.lm_head.output.clone().save()
    return stream, logits


def edited_models(model, prompt):
    """The edited model, the plain one, and edits on edits."""
    once = zeroed(model, 0)
    twice = scaled(once, 1, 3)
    other_way = zeroed(scaled(model, 1, 3), 0)
    return [plain_logits(each, prompt) for each in (once, model, twice, other_way)]


def edited_and_edited_in_trace(model, prompt):
    """An edit of the trace comes after those of the model."""
    edited = zeroed(model, 0)
    with edited.trace(prompt):
        put(blocks(edited)[0], hidden(blocks(edited)[0].output) + 1)
        logits = edited.lm_head.output.save()
    return logits


def edited_in_invokes(model, prompts):
    edited = zeroed(model, 0)
    with edited.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                found.append([hidden(blocks(edited)[1].output), edited.lm_head.output])
    return found


def edited_in_place(model, prompt):
    """The model itself is edited, until its edits are cleared."""
    before = plain_logits(model, prompt)
    with model.edit(inplace=True):
        hidden(blocks(model)[1].output)[:] = 0.5
    once = plain_logits(model, prompt)
    with model.edit(inplace=True):
        model.lm_head.output = model.lm_head.output * 2
    twice = plain_logits(model, prompt)
    model.clear_edits()
    after = plain_logits(model, prompt)
    return before, once, twice, after


def edited_with_value(model, prompt, other):
    """An edit that holds a value of another trace."""
    with model.trace(other):
        taken = hidden(blocks(model)[1].output)[:, -1].clone().save()
    with model.edit() as (_, edited):
        hidden(blocks(edited)[1].output)[:, -1] = taken
    return plain_logits(edited, prompt)


def edited_generation(model, prompt, n):
    """An edit that says nothing of steps is one of the first; under `iter` one of every step."""
    once = scaled(model, 1, 2.5)
    with model.edit() as (tracer, always):
        for _ in tracer.iter[:]:
            put(blocks(always)[1], hidden(blocks(always)[1].output) * 2.5)
    found = []
    for edited in (once, always, model):
        with edited.generate(prompt, max_new_tokens=n, do_sample=False) as generation:
            logits = [].save()
            for _ in generation.iter[:n]:
                logits.append(edited.lm_head.output[:, -1])
        found.append(list(logits))
    return found


# --- scan


def shapes(model, prompt):
    """The shapes of values, without a run."""
    with model.scan(prompt):
        found = {}.save()
        found["embedding"] = tuple(embedding(model).output.shape)
        for number, block in enumerate(blocks(model)):
            found[f"block {number} input"] = tuple(block.input.shape)
            found[f"mlp {number}"] = tuple(block.mlp.output.shape)
            found[f"block {number}"] = tuple(hidden(block.output).shape)
        found["norm"] = tuple(final_norm(model).output.shape)
        found["logits"] = tuple(model.lm_head.output.shape)
        width = hidden(model.lm_head.output).shape[-1].save()
    return dict(found), width


# --- cache


def caches(model, prompt, modules=None, edit=False, **options):
    """`{path: output's hidden state (and inputs' first)}` of a cache."""
    with model.trace(prompt) as tracer:
        cache = tracer.cache(modules=modules, **options)
        if edit:
            hidden(blocks(model)[0].output)[:] = 1
            blocks(model)[1].mlp.output *= 2
            second_norm(blocks(model)[2]).output = second_norm(blocks(model)[2]).output * 2
    return cache


def cached_generation(model, prompt, n, modules, **options):
    with model.generate(prompt, max_new_tokens=n, do_sample=False) as tracer:
        cache = tracer.cache(modules=modules, **options)
    return cache


def cached_invokes(model, prompts, modules):
    with model.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                found.append(tracer.cache(modules=modules))
    return found


# --- modules that are called


def logit_lens(model, prompt):
    """The prediction after every block."""
    with model.trace(prompt):
        found = [].save()
        for block in blocks(model):
            found.append(model.lm_head(final_norm(model)(hidden(block.output))))
        logits = model.lm_head.output.save()
    return found, logits


def called_modules(model, prompt):
    """Parts of a block on something else; the block's own values are not touched."""
    with model.trace(prompt):
        block = blocks(model)[1]
        given = block.input
        normed = first_norm(block)(given * 2)
        made = block.mlp(normed)
        of_one = block.mlp(normed[:, -1])
        words = embedding(model)(torch.tensor([[3, 4]]))
        own = block.mlp.output
        logits = model.lm_head.output.save()
        found = [normed, made, of_one, words, own].save()
    return found, logits


def called_outside(model):
    """Without a trace."""
    with torch.no_grad():
        vector = torch.linspace(-1, 1, model.config.hidden_size, dtype=torch.float64)[None, None]
        return model.lm_head(final_norm(model)(vector)), blocks(model)[0].mlp(vector)


# --- modules of one's own


class Autoencoder(torch.nn.Module):
    """Two matrices with random numbers."""

    def __init__(self, d_model, n_features):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.encoder = torch.nn.Linear(d_model, n_features, dtype=torch.float64)
        self.decoder = torch.nn.Linear(n_features, d_model, dtype=torch.float64)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)

    def forward(self, x):
        return self.decoder(torch.relu(self.encoder(x)))


def with_autoencoder(model, prompt):
    """An autoencoder in the tree, called in a trace; its features can be read."""
    model_block = blocks(model)[1]
    model_block.sae = Autoencoder(model.config.hidden_size, 40)
    with model.trace(prompt):
        value = hidden(model_block.output)
        rebuilt = model_block.sae(value, hook=True)
        put(model_block, rebuilt)
        logits = model.lm_head.output.save()
    return rebuilt_of(model, prompt), logits


def rebuilt_of(model, prompt):
    with model.trace(prompt):
        rebuilt = blocks(model)[1].sae(hidden(blocks(model)[1].output)).save()
    return rebuilt


def with_autoencoder_in_an_edit(model, prompt):
    """The edited model runs the autoencoder; a trace of it reads the features."""
    blocks(model)[1].sae = Autoencoder(model.config.hidden_size, 40)
    with model.edit() as (_, edited):
        block = blocks(edited)[1]
        put(block, block.sae(hidden(block.output), hook=True))
    with edited.trace(prompt):
        features = blocks(edited)[1].sae.encoder.output.save()
        rebuilt = blocks(edited)[1].sae.output.save()
        logits = edited.lm_head.output.save()
    return features, rebuilt, logits


# --- stop


def stopped(model, prompt, layer):
    with model.trace(prompt) as tracer:
        value = hidden(blocks(model)[layer].output).save()
        tracer.stop()
    return value


def stopped_when(model, prompt, limit):
    """A condition decides where to stop."""
    with model.trace(prompt) as tracer:
        found = [].save()
        for block in blocks(model):
            found.append(hidden(block.output))
            if len(found) > limit:
                tracer.stop()
    return found


def got(model, prompt):
    """Values by path."""
    name = "transformer.h.1.mlp" if trunk(model).path == "model.transformer" else "model.layers.1.mlp"
    with model.trace(prompt):
        given = model.get(name + ".input").save()
        value = model.get(name + ".output").save()
    return given, value


def edited_by(model, prompts, functions):
    """A model with an edit made of functions of a model, in traces of several prompts, one after another."""
    with model.edit() as (_, edited):
        for function in functions:
            function(edited)
    found = [plain_logits(edited, prompt) for prompt in prompts]
    # Without the last block's output: what is put in the place of the final norm's input is there, too, in ours.
    return [(stream[:-1], logits) for stream, logits in found]


def edited_by_in_generation(model, prompt, n, functions):
    """The same at every step of a generation."""
    with model.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            for function in functions:
                function(edited)
    with edited.generate(prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False) as generation:
        logits = [].save()
        for _ in generation.iter[:n]:
            logits.append(edited.lm_head.output[:, -1])
        ids = generation.result.save()
    return logits, ids
