"""Bodies of traces with several invokes, for nnsight and ours alike.

The judge pads prompts on the left, so what is compared are the last positions; edits count positions from the end.
"""

import torch
from nnsight_bodies import attention, blocks, embedding, final_norm, first_norm, heads_input, hidden, put, trunk


def read_each(model, prompts):
    """For each prompt: the stream behind every block, the final norm, the logits."""
    with model.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                mine = [hidden(block.output) for block in blocks(model)]
                mine.append(final_norm(model).output)
                mine.append(model.lm_head.output)
                mine.append(model.output.logits)
                found.append(mine)
    return found


def read_each_by_name(model, prompts):
    """Two invokes written out, each with names of its own."""
    first, second = prompts
    with model.trace() as tracer:
        with tracer.invoke(first):
            early = hidden(blocks(model)[0].output).save()
            first_logits = model.lm_head.output.save()
        with tracer.invoke(second):
            late = hidden(blocks(model)[2].output).save()
            second_logits = model.lm_head.output.save()
    return [[early, first_logits], [late, second_logits]]


def edit_each(model, prompts):
    """Another edit in every invoke, at its last positions."""
    with model.trace() as tracer:
        found = [].save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                hidden(blocks(model)[0].output)[:, -1] = number
                value = hidden(attention(blocks(model)[1]).output)
                value[:, -1] *= number + 2
                norm = first_norm(blocks(model)[2])
                norm.input = norm.input * (0.5 + number)
                mine = [hidden(blocks(model)[2].output).clone()]
                model.lm_head.output[:, -1, number] = 50
                mine.append(model.lm_head.output.clone())
                found.append(mine)
    return found


def edit_one(model, prompts, which):
    """An edit in one invoke leaves the others alone."""
    with model.trace() as tracer:
        found = [].save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                if number == which:
                    put(blocks(model)[0], hidden(blocks(model)[0].output) * 2)
                    value = heads_input(blocks(model)[1]).input
                    value[:, :, :5] = 0
                found.append([model.lm_head.output])
    return found


def assign_each(model, prompts):
    """Whole values are set, each prompt's its own."""
    with model.trace() as tracer:
        found = [].save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                embedding(model).output = embedding(model).output * (number + 1)
                blocks(model)[1].input = blocks(model)[1].input + number
                blocks(model)[1].mlp.output = -blocks(model)[1].mlp.output
                found.append([hidden(blocks(model)[2].output), model.lm_head.output])
    return found


def passed_on(model, prompts, source, target, barrier):
    """The first prompt's last position at one layer goes into the second prompt at another one."""
    with model.trace() as tracer:
        meet = tracer.barrier(2) if barrier else None
        with tracer.invoke(prompts[0]):
            taken = hidden(blocks(model)[source].output)[:, -1].clone()
            if meet:
                meet()
            first = model.lm_head.output.save()
        with tracer.invoke(prompts[1]):
            if meet:
                meet()
            hidden(blocks(model)[target].output)[:, -1] = taken
            second = model.lm_head.output.save()
    return [[first], [second]]


def passed_back(model, prompts, barrier):
    """The second prompt's value goes into the first prompt, a layer later."""
    with model.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(prompts[1]):
            taken = hidden(blocks(model)[0].output)[:, -1].clone()
            if barrier:
                meet()
            second = model.lm_head.output.save()
        with tracer.invoke(prompts[0]):
            if barrier:
                meet()
            hidden(blocks(model)[1].output)[:, -1] = taken
            first = model.lm_head.output.save()
    return [[first], [second]]


def added_up(model, prompts):
    """A later layer of the third prompt gets what the first two had at an earlier one: no barrier is needed."""
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            one = hidden(blocks(model)[0].output)[:, -1].clone()
            first = model.lm_head.output.save()
        with tracer.invoke(prompts[1]):
            two = hidden(blocks(model)[0].output)[:, -1].clone()
            second = model.lm_head.output.save()
        with tracer.invoke(prompts[2]):
            hidden(blocks(model)[2].output)[:, -1] += one - two
            third = model.lm_head.output.save()
    return [[first], [second], [third]]


def with_empty_invoke(model, prompts):
    """An empty invoke sees all rows."""
    with model.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                found.append([model.lm_head.output])
        with tracer.invoke():
            stream = [hidden(block.output) for block in blocks(model)].save()
            logits = model.lm_head.output.save()
    return found, [*stream, logits]


def edited_in_empty_invoke(model, prompts):
    """An edit in an empty invoke is one of all rows."""
    with model.trace() as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                pass
        with tracer.invoke():
            hidden(blocks(model)[0].output)[:, -1] = 1
            hidden(blocks(model)[1].output)[1] *= 2
            blocks(model)[2].mlp.output[:, -2:, ::2] = 0
        with tracer.invoke():
            stream = hidden(blocks(model)[2].output).save()
            logits = model.lm_head.output.save()
    return stream, logits


def inputs_of_empty_invoke(model, prompts):
    """Tokens and the rows of the whole batch."""
    with model.trace() as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                pass
        with tracer.invoke():
            tokens = embedding(model).input.save()
            n_rows = hidden(blocks(model)[0].output).shape[0].save()
            best = model.lm_head.output[:, -1].argmax(-1).save()
    return n_rows, tokens, best


def rows_in_one_invoke(model, several, one):
    """An invoke with several prompts of one length has as many rows."""
    with model.trace() as tracer:
        with tracer.invoke(several):
            hidden(blocks(model)[0].output)[1, -1] = 2
            first = hidden(blocks(model)[1].output).clone().save()
            first_logits = model.lm_head.output.save()
        with tracer.invoke(one):
            second = hidden(blocks(model)[1].output).save()
            second_logits = model.lm_head.output.save()
    return [[first, first_logits], [second, second_logits]]


def one_invoke(model, prompt):
    """A single invoke is a trace."""
    with model.trace() as tracer:
        with tracer.invoke(prompt):
            hidden(blocks(model)[1].output)[:, 0] = 0.5
            logits = model.lm_head.output.save()
        with tracer.invoke():
            whole = model.output.logits.save()
    return logits, whole


def result_of_each(model, prompts):
    """What the traced call gives, in each invoke."""
    with model.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                found.append([tracer.result.logits])
    return found


def compared(model, clean, corrupted, layer):
    """Activation patching over positions: every position of a clean run in the corrupted one, in one batch each."""
    with model.trace(clean):
        saved = hidden(blocks(model)[layer].output).save()
    differences = []
    n_tokens = saved.shape[1]
    with model.trace() as tracer:
        logits = [].save()
        for position in range(n_tokens):
            with tracer.invoke(corrupted):
                hidden(blocks(model)[layer].output)[:, position] = saved[:, position]
                logits.append(model.lm_head.output[:, -1])
    for one in logits:
        differences.append(one[0, 3] - one[0, 4])
    return torch.stack(differences)


def trunk_of_each(model, prompts):
    """What a part of the model returns, in each invoke."""
    with model.trace() as tracer:
        found = [].save()
        for prompt in prompts:
            with tracer.invoke(prompt):
                found.append([trunk(model).output.last_hidden_state])
    return found
