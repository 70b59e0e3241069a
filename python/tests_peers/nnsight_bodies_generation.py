"""Bodies of generations, for nnsight and ours alike. In the judge nothing runs that stands behind an open loop."""

import torch
from nnsight_bodies import attention, blocks, embedding, final_norm, heads_input, hidden, put, trunk


def generated(model, prompt, **options):
    """The ids, prompt and all."""
    with model.generate(prompt, **options) as tracer:
        ids = tracer.result.save()
    return ids


def generator_output(model, prompt, **options):
    """The ids as older versions have them."""
    with model.generate(prompt, **options):
        ids = model.generator.output.save()
    return ids


def both_outputs(model, prompt, **options):
    with model.generate(prompt, **options) as tracer:
        older = model.generator.output.save()
        ids = tracer.result.save()
    return older, ids


def called(model, prompt, **options):
    """A generation without a block."""
    return model.generate(prompt, **options)


def every_step(model, prompt, steps, **options):
    """What every chosen step reads, `steps` as in `tracer.iter[steps]`."""
    with model.generate(prompt, **options) as tracer:
        found = [].save()
        for step in tracer.iter[steps]:
            first = embedding(model).input
            pattern = attention(blocks(model)[1]).output[1]
            stream = hidden(blocks(model)[1].output)
            logits = model.lm_head.output[:, -1]  # The judge has only these at the first step.
            found.append((step, first, pattern, stream, logits))
    return found


def all_steps(model, prompt, **options):
    with model.generate(prompt, **options) as tracer:
        found = [].save()
        for step in tracer.all():
            found.append((step, model.lm_head.output[:, -1].argmax(-1)))
    return found


def closed_loop_and_behind(model, prompt, stop, **options):
    """A loop that ends, and the result behind it."""
    with model.generate(prompt, **options) as tracer:
        found = [].save()
        for _ in tracer.iter[:stop]:
            found.append(model.lm_head.output[0, -1].argmax(-1))
        ids = tracer.result.save()
    return found, ids


def two_loops(model, prompt, **options):
    with model.generate(prompt, **options) as tracer:
        found = [].save()
        for _ in tracer.iter[:2]:
            found.append(hidden(blocks(model)[0].output))
        for step in tracer.iter[2:4]:
            found.append((step, model.lm_head.output[:, -1]))
        ids = tracer.result.save()
    return found, ids


def first_step(model, prompt, **options):
    """Without a loop: the first step, the whole prompt."""
    with model.generate(prompt, **options) as tracer:
        value = hidden(blocks(model)[1].output).save()
        logits = model.lm_head.output[:, -1].save()
        ids = tracer.result.save()
    return value, logits, ids


def edited_at(model, prompt, steps, **options):
    """An edit at the chosen steps."""
    with model.generate(prompt, **options) as tracer:
        logits = [].save()
        for step in tracer.iter[steps]:
            hidden(blocks(model)[0].output)[:] = step
            hidden(blocks(model)[1].output)[:, -1] *= 2
            logits.append(model.lm_head.output[:, -1].clone())
    return logits


def edited_when(model, prompt, condition, n, **options):
    """An edit at steps that meet a condition."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        logits = [].save()
        for step in tracer.iter[:n]:
            if condition(step):
                put(blocks(model)[0], hidden(blocks(model)[0].output) * -1 + 0.5)
                heads_input(blocks(model)[1]).input = heads_input(blocks(model)[1]).input * 3
            logits.append(model.lm_head.output[:, -1].clone())
        ids = tracer.result.save()
    return logits, ids


def edited_first_step(model, prompt, **options):
    """An edit of the prompt stays in the keys and values of what follows."""
    with model.generate(prompt, **options) as tracer:
        hidden(blocks(model)[0].output)[:, 1] = 2
        ids = tracer.result.save()
    return ids


def steered(model, prompt, n, strength, **options):
    """A direction of a first trace, added at every step."""
    with model.trace("The king"):
        direction = hidden(blocks(model)[1].output)[:, -1:].save()
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        for _ in tracer.iter[:n]:
            put(blocks(model)[1], hidden(blocks(model)[1].output) + strength * direction)
        ids = tracer.result.save()
    return ids


def logits_edited(model, prompt, n, token, **options):
    """A token is forbidden by an edit of the logits: another one is drawn."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        for step in tracer.iter[:n]:
            model.lm_head.output[:, -1, token] = -100
            if step == 2:
                model.lm_head.output[:, -1, 5] = 1000
        ids = tracer.result.save()
    return ids


def tokens_of_the_streamer(model, prompt, n, **options):
    """The prompt, and each new token but the last."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        found = [].save()
        for _ in tracer.iter[:n]:
            found.append(model.generator.streamer.output)
    return found


def values_across_steps(model, prompt, n, **options):
    """One step's value is added at the next step."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        logits = [].save()
        before = None
        for _ in tracer.iter[:n]:
            value = hidden(blocks(model)[1].output)
            if before is not None:
                value[:, -1] += before
            before = value[:, -1].clone()
            logits.append(model.lm_head.output[:, -1])
    return logits


def result_set(model, prompt, **options):
    """The last token is replaced in what comes out."""
    with model.generate(prompt, **options) as tracer:
        ids = tracer.result.clone()
        ids[:, -1] = 3
        ids = ids.save()
    return ids


# --- several prompts


def each_invoke(model, prompts, n, **options):
    """The ids of each prompt, and what each step predicts."""
    with model.generate(max_new_tokens=n, **options) as tracer:
        ids = [].save()
        tokens = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                mine = []
                tokens.append(mine)
                for _ in tracer.iter[:n]:
                    mine.append(model.lm_head.output[:, -1].argmax(-1))
                ids.append(tracer.result)
    return ids, tokens


def each_invoke_edited(model, prompts, n, **options):
    """The prompts are edited at different steps."""
    with model.generate(max_new_tokens=n, **options) as tracer:
        ids = [].save()
        logits = [].save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                mine = []
                logits.append(mine)
                for step in tracer.iter[:n]:
                    if step == number:
                        hidden(blocks(model)[0].output)[:, -1] = 1
                        blocks(model)[1].mlp.output = blocks(model)[1].mlp.output * 2
                    mine.append(model.lm_head.output[:, -1].clone())
                ids.append(tracer.result)
    return ids, logits


def empty_invoke(model, prompts, n, **options):
    """All rows at every step."""
    with model.generate(max_new_tokens=n, **options) as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                pass
        with tracer.invoke():
            found = [].save()
            for _ in tracer.iter[:n]:
                found.append(model.lm_head.output[:, -1])
            ids = tracer.result.save()
    return found, ids


def in_an_empty_invoke_all_steps(model, prompt, n, **options):
    """The loop of one invoke has no end; another invoke has the result."""
    with model.generate(max_new_tokens=n, **options) as tracer:
        with tracer.invoke(prompt):
            found = [].save()
            for _ in tracer.iter[:]:
                found.append(final_norm(model).output[:, -1])
        with tracer.invoke():
            ids = tracer.result.save()
    return found, ids


def embeddings_passed_on(model, prompts, n, barrier, **options):
    """The first prompt's embeddings take the second one's place, at the first step (both of one length)."""
    with model.generate(max_new_tokens=n, **options) as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(prompts[0]):
            taken = embedding(model).output
            if barrier:
                meet()
            first = tracer.result.save()
        with tracer.invoke(prompts[1]):
            if barrier:
                meet()
            embedding(model).output = taken
            second = tracer.result.save()
    return first, second


def logits_of(model, prompt, n, **options):
    """Every step's logits at the last position, stacked."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        rows = [].save()
        for _ in tracer.iter[:n]:
            rows.append(model.lm_head.output[0, -1])
    return torch.stack(list(rows))


def tokens_edited(model, prompt, steps, n, **options):
    """Other tokens are embedded at some steps; what was drawn stays what it is."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        logits = [].save()
        for step in tracer.iter[:n]:
            if step in steps:
                embedding(model).input[:, -1] = 7
            logits.append(model.lm_head.output[:, -1])
        ids = tracer.result.save()
    return logits, ids


def whole_outputs(model, prompt, n, **options):
    """What the model and its trunk return at each step."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        found = [].save()
        for _ in tracer.iter[:n]:
            inner = trunk(model).output.last_hidden_state
            logits = model.output.logits[:, -1]
            found.append((inner, logits))
    return found


def kept_over_steps(model, prompt, n, **options):
    """Values that are kept while the generation goes on."""
    with model.generate(prompt, max_new_tokens=n, **options) as tracer:
        kept = []
        for _ in tracer.iter[:n]:
            kept.append(hidden(blocks(model)[1].output))
        together = torch.cat(kept, dim=1).save()
    return together
