"""Random programs: edits and reads in the model's order for the judge, in any order here; with invokes, and in
generations."""

import random

import nnsight_bodies as bodies
import pytest
import torch
from nnsight_judge import KINDS, PROMPT, assert_same, padded_pair, pair, quiet, unpadded

N_PROGRAMS = 10
PROMPTS = [PROMPT, "The", "The cat sat on the mat"]


def places_of(model, kind):
    """`[(path, what)]` in the order in which the forward pass comes by, without "model"."""
    is_gpt2 = kind.startswith("gpt2")
    found = [("transformer.wte" if is_gpt2 else "model.embed_tokens", "output")]
    for number in range(len(bodies.blocks(model))):
        block = f"transformer.h.{number}" if is_gpt2 else f"model.layers.{number}"
        mixing = ["attn.c_attn"] if is_gpt2 else ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        last = "attn.c_proj" if is_gpt2 else "self_attn.o_proj"
        norms = ["ln_1", "ln_2"] if is_gpt2 else ["input_layernorm", "post_attention_layernorm"]
        inner = ["mlp.c_fc"] if is_gpt2 else ["mlp.gate_proj", "mlp.up_proj"]
        down = "mlp.c_proj" if is_gpt2 else "mlp.down_proj"
        found.append((block, "input"))
        found.append((f"{block}.{norms[0]}", "output"))
        found += [(f"{block}.{name}", "output") for name in mixing]
        found += [(f"{block}.{last}", "input"), (f"{block}.{last.partition('.')[0]}", "output")]
        found.append((f"{block}.{norms[1]}", "output"))
        found += [(f"{block}.{name}", "output") for name in inner]
        found += [(f"{block}.{down}", "input"), (f"{block}.mlp", "output"), (block, "output")]
    return [*found, ("transformer.ln_f" if is_gpt2 else "model.norm", "output"), ("lm_head", "output")]


def random_program(chooser, places, n_tokens):
    """`[(place, positions from the end, features, value)]` in the forward pass' order, at most one edit at a place."""
    program = []
    for place in sorted(chooser.sample(range(len(places)), chooser.randint(1, 6))):
        position = chooser.choice([slice(None), -1, -chooser.randint(1, n_tokens), slice(-2, None)])
        begin = chooser.randint(0, 10)
        features = chooser.choice([slice(None), slice(begin, begin + 5), slice(None, None, 3)])
        program.append((place, position, features, chooser.uniform(-1, 1)))
    return program


def value_at(model, place):
    path, what = place
    return bodies.hidden(model.get(f"{path}.{what}"))


def edit_at(model, place, position, features, number):
    value_at(model, place)[:, position, features] = number


def forward(model, prompt, places, program, reads):
    """The judge's way: one place after another."""
    with model.trace(prompt):
        found = {}.save()
        for number, place in enumerate(places):
            for edited, position, features, value in program:
                if edited == number:
                    edit_at(model, place, position, features, value)
            if number in reads:
                found[number] = value_at(model, place).clone()
    return dict(found)


def in_any_order(model, prompt, places, program, reads, chooser):
    """Ours: edits of constants in any order, with reads between them, and the reads that count in any order."""
    program, reads = chooser.sample(program, len(program)), chooser.sample(reads, len(reads))
    with model.trace(prompt):
        for edited, *edit in program:
            if chooser.random() < 0.5:
                value_at(model, places[chooser.choice(reads)]).sum()
            edit_at(model, places[edited], *edit)
        found = {number: value_at(model, places[number]) for number in reads}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_any_order(kind):
    both = pair(kind)
    places = places_of(both.ours, kind)
    chooser = random.Random(f"order {kind}")
    for _ in range(N_PROGRAMS):
        program = random_program(chooser, places, 11)
        reads = sorted(chooser.sample(range(len(places)), 8))
        expected = quiet(forward, both.judge, PROMPT, places, program, reads)
        found = in_any_order(both.ours, PROMPT, places, program, reads, chooser)
        for number in reads:
            what = f"{places[number]} after {[(places[edit[0]], *edit[1:]) for edit in program]}"
            assert_same(found[number], expected[number], both.tolerance, what)


def forward_in_invokes(model, prompts, places, programs, reads):
    with model.trace() as tracer:
        found = {}.save()
        for row, (prompt, program) in enumerate(zip(prompts, programs, strict=True)):
            with tracer.invoke(prompt):
                mine = []
                for number, place in enumerate(places):
                    for edited, position, features, value in program:
                        if edited == number:
                            edit_at(model, place, position, features, value)
                    if number in reads:
                        mine.append(value_at(model, place).clone())
                found[row] = mine  # The judge's invokes end in the order of what they ask for last.
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_invokes(kind):
    both = padded_pair(kind)
    places = places_of(both.ours, kind)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    chooser = random.Random(f"invokes {kind}")
    for _ in range(N_PROGRAMS):
        programs = [random_program(chooser, places, 1) for _ in PROMPTS]
        # At positions from the end: the judge's rows are padded, and a short prompt has but one token.
        programs = [[(edit[0], -1, *edit[2:]) for edit in program] for program in programs]
        reads = sorted(chooser.sample(range(len(places)), 5))
        expected = quiet(forward_in_invokes, both.judge, PROMPTS, places, programs, reads)
        found = forward_in_invokes(both.ours, PROMPTS, places, programs, reads)
        for row, length in enumerate(lengths):
            theirs = [value[:, -length:] for value in expected[row]]
            assert_same(unpadded(found[row], length), theirs, both.tolerance, f"{PROMPTS[row]!r}: {programs[row]}")


def forward_in_steps(model, prompt, places, programs, reads):
    n = len(programs)
    with model.generate(prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False) as tracer:
        found = [].save()
        for step in tracer.iter[:n]:
            mine = []
            for number, place in enumerate(places):
                for edited, position, features, value in programs[step]:
                    if edited == number:
                        edit_at(model, place, position, features, value)
                if number in reads:
                    mine.append(value_at(model, place).clone())
            found.append(mine)
        ids = tracer.result.save()
    return found, ids


@pytest.mark.parametrize("kind", KINDS)
def test_generations(kind):
    both = pair(kind)
    places = places_of(both.ours, kind)
    chooser = random.Random(f"steps {kind}")
    with torch.no_grad():
        for _ in range(N_PROGRAMS):
            programs = [random_program(chooser, places[:-1], 1) for _ in range(4)]
            programs = [program if chooser.random() < 0.7 else [] for program in programs]
            programs = [[(edit[0], -1, *edit[2:]) for edit in program] for program in programs]
            reads = sorted(chooser.sample(range(len(places) - 1), 4))
            expected, ids = quiet(forward_in_steps, both.judge, PROMPT, places, programs, reads)
            found, mine = forward_in_steps(both.ours, PROMPT, places, programs, reads)
            assert_same(found, expected, both.tolerance, f"{programs}")
            assert_same(mine, ids, 0, f"{programs}")


def invokes_in_steps(model, prompts, places, programs, reads, n):
    """`programs[row][step]`."""
    with model.generate(max_new_tokens=n, min_new_tokens=n, do_sample=False) as tracer:
        found = {}.save()
        ids = {}.save()
        for row, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                mine = []
                found[row] = mine
                for step in tracer.iter[:n]:
                    for number, place in enumerate(places):
                        for edited, position, features, value in programs[row][step]:
                            if edited == number:
                                edit_at(model, place, position, features, value)
                        if number in reads:
                            mine.append(value_at(model, place)[:, -1].clone())
                ids[row] = tracer.result
    return dict(found), dict(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_invokes_in_generations(kind):
    both = padded_pair(kind)
    places = places_of(both.ours, kind)
    chooser = random.Random(f"invokes in steps {kind}")
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    with torch.no_grad():
        for _ in range(N_PROGRAMS):
            programs = [[random_program(chooser, places[:-1], 1) for _ in range(3)] for _ in PROMPTS]
            programs = [
                [[(edit[0], -1, *edit[2:]) for edit in program] if chooser.random() < 0.7 else [] for program in row]
                for row in programs
            ]
            reads = sorted(chooser.sample(range(len(places)), 4))
            expected, ids = quiet(invokes_in_steps, both.judge, PROMPTS, places, programs, reads, 3)
            found, mine = invokes_in_steps(both.ours, PROMPTS, places, programs, reads, 3)
            assert_same(found, expected, both.tolerance, f"{programs}")
            for row, length in enumerate(lengths):
                assert_same(mine[row], ids[row][:, -(length + 3) :], 0, f"{programs}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    """Of what random edits left, by values all over the model that no edit changes."""
    both = pair(kind)
    places = places_of(both.ours, kind)
    # A block's output is the next one's input: in the judge one tensor, whose gradient is that behind the edit.
    names = list(range(len(places)))
    for number in range(1, len(places)):
        if places[number][1] == "input" and places[number][0].rpartition(".")[2].isdigit():
            names[number] = number - 1
    chooser = random.Random(f"gradients {kind}")
    for _ in range(N_PROGRAMS):
        program = random_program(chooser, places[:-1], 11)
        taken = {names[edit[0]] for edit in program}
        reads = sorted(chooser.sample([n for n in range(len(places)) if names[n] not in taken], 4))
        expected = quiet(gradients, both.judge, PROMPT, places, program, reads)
        found = gradients(both.ours, PROMPT, places, program, reads)
        largest = max((value.abs().max() for value in expected.values() if value is not None), default=0)
        for number in reads:
            theirs = expected[number]
            what = f"{places[number]} after {[(places[edit[0]], *edit[1:]) for edit in program]}"
            assert (found[number] is None) == (theirs is None), what
            if theirs is not None and theirs.abs().max() > max(1e-5 * largest, 1e-6):  # The rest is rounding.
                assert_same(found[number], theirs, both.tolerance * 10, what)


def gradients(model, prompt, places, program, reads):
    with model.trace(prompt):
        values = {}
        for number, place in enumerate(places):
            for edited, position, features, value in program:
                if edited == number:
                    edit_at(model, place, position, features, value)
            if number in reads:
                values[number] = value_at(model, place)
        loss = (model.lm_head.output[:, -1] * torch.linspace(-1, 1, 359, dtype=torch.float64)).sum()
        found = {}.save()
        for number in reads:
            found[number] = torch.autograd.grad(loss, values[number], retain_graph=True, allow_unused=True)[0]
    return dict(found)
