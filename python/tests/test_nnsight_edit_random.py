"""Random edits of many modules, several on top of each other, against the same changes made by hand in a trace."""

import random

import pytest
import torch
from helpers import error
from tiny_models import make_model, random_tokens

from glassformer.nnsight import LanguageModel

N_RUNS = 25
WIDTHS = {"gpt2": 24, "llama_grouped": 32}


def sites(model, kind):
    """Modules in the order in which they run: each a function that gives it, and what of it."""
    found = []
    for layer in range(3):
        names = (
            ["ln_1.input", "attn.c_attn.output", "attn.c_proj.input", "attn.output", "ln_2.input", "mlp.c_fc.output"]
            if kind == "gpt2"
            else ["input_layernorm.input", "self_attn.q_proj.output", "self_attn.o_proj.input", "self_attn.output"]
        )
        last = ["mlp.c_proj.input"] if kind == "gpt2" else ["mlp.gate_proj.output", "mlp.down_proj.input"]
        trunk = "transformer.h" if kind == "gpt2" else "model.layers"
        found += [f"{trunk}.{layer}.{name}" for name in (*names, *last, "mlp.output", "output")]
    return [*found, "lm_head.input", "lm_head.output"]


def hidden(value):
    return value[0] if isinstance(value, tuple) else value


def get(model, site):
    path, _, what = site.rpartition(".")
    return hidden(getattr(model.get(path), what))


def put(model, site, value):
    path, _, what = site.rpartition(".")
    setattr(model.get(path), what, value)


def change(chooser, site, places=(0, 1, -1, slice(1, None), [0, -1])):
    """A random change of a site: a function of the model and of a list of values from before."""
    kind = chooser.choice(
        ["scale", "add", "rows", "view", "constant", "mean", "mask", "carry", "carry", "tokens", "two"]
    )
    number, place = chooser.uniform(0.5, 2), chooser.choice(places)
    vector = torch.randn(1, generator=torch.Generator().manual_seed(chooser.randrange(10**6)), dtype=torch.float64)

    def run(model, values):
        if kind == "scale":
            put(model, site, get(model, site) * number)
        elif kind == "add":
            get(model, site)[:, place] += vector
        elif kind == "rows":
            get(model, site)[:, place] = number
        elif kind == "view":
            get(model, site)[..., ::2].mul_(number)
        elif kind == "constant":
            put(model, site, vector)
        elif kind == "mean":
            value = get(model, site)
            put(
                model,
                site,
                value - value.mean(1, keepdim=True) + torch.arange(value.shape[1])[:, None] / value.shape[1],
            )
        elif kind == "mask":
            value = get(model, site)
            value[value > number] = number
        elif kind == "tokens":
            get(model, site).t[-1] *= number
        elif kind == "two":
            put(model, site, get(model, site) + 1)
            get(model, site)[:, 0] = get(model, site)[:, -1] * number
        elif values:
            value = get(model, site)
            carried = values[int(number * 100) % len(values)]
            put(model, site, value + carried.mean(-1, keepdim=True) * number)
        values.append(get(model, site) if kind == "mask" else get(model, site).clone())

    return kind, run


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("seed", range(N_RUNS))
def test_random_edits(kind, seed):
    chooser = random.Random(f"{kind} {seed}")
    model = LanguageModel(make_model(kind, torch.float64))
    every = sites(model, kind)
    chosen = sorted(chooser.choices(range(len(every)), k=chooser.randint(1, 6)))
    made = [(every[place], *change(chooser, every[place])) for place in chosen]
    # Several edits on top of each other: each makes the changes from one place to the next.
    cuts = sorted(chooser.sample(range(len(made) + 1), min(chooser.randint(0, 2), len(made))))
    parts = [made[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(made)], strict=True)]
    edited = model
    for part in parts:
        with edited.edit() as edited:
            values = []
            for _, _, run in part:
                run(edited, values)
    ids = random_tokens(2, 5, seed=seed) if seed % 2 else [[3, 1, 4, 1, 5], [9, 2, 6]]
    found = streams(edited, ids, every, lambda: None)

    def by_hand():
        for part in parts:
            values = []
            for _, _, run in part:
                run(model, values)

    if seed % 2:
        expected = [streams(model, ids, every, by_hand)]
        rows = [slice(None)]
    else:
        expected = [streams(model, [row], every, by_hand) for row in ids]
        rows = [slice(0, 1), slice(1, 2)]
    for row, wanted in zip(rows, expected, strict=True):
        for site, a, b in zip(every, found, wanted, strict=True):
            difference = error(a[row, -b.shape[1] :], b)
            assert difference < 1e-11, f"{site}: {difference:.3g}; {[(place, name) for place, name, _ in made]}, {cuts}"


def streams(model, ids, every, change):
    with torch.no_grad(), model.trace(ids):
        change()
        return [get(model, site).clone() for site in every]


SELECTIONS = [slice(None), slice(1, 3), slice(2, None), slice(None, None, 2), 0, 2, [0, 3], None]


def has(selection, step):
    if selection is None:
        return step == 0
    if isinstance(selection, slice):
        return step in range(
            selection.start or 0, 100 if selection.stop is None else selection.stop, selection.step or 1
        )
    return step in (selection if isinstance(selection, list) else [selection])


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("seed", range(N_RUNS))
def test_random_edits_of_generations(kind, seed):
    chooser = random.Random(f"steps {kind} {seed}")
    model = LanguageModel(make_model(kind, torch.float64))
    every = sites(model, kind)
    chosen = sorted(chooser.choices(range(len(every)), k=chooser.randint(1, 4)))
    made = [
        (every[place], *change(chooser, every[place], [0, -1, slice(None)]), chooser.choice(SELECTIONS))
        for place in chosen
    ]
    with model.edit() as (tracer, edited):
        for _, _, run, selection in made:
            for _ in [0] if selection is None else tracer.iter[selection]:
                run(edited, [])
    prompts = [random_tokens(1, 5, seed=seed)[0].tolist(), [3, 1, 4]][: 1 + seed % 2]

    def by_hand(step):
        for _, _, run, selection in made:
            if has(selection, step):
                run(model, [])

    together, _ = texts(edited, prompts, every, lambda step: None)
    for row, prompt in enumerate(prompts):
        found, ids = texts(edited, [prompt], every, lambda step: None)
        expected, wanted = texts(model, [prompt], every, by_hand)
        assert ids.tolist() == wanted.tolist()
        told = [(site, name, selection) for site, name, _, selection in made]
        for step, (one, other) in enumerate(zip(found, expected, strict=True)):
            for site, a, b, both in zip(every, one, other, together[step], strict=True):
                difference = error(a, b)
                if len(both) == len(prompts):  # Neither has ended.
                    difference = max(difference, error(both[row : row + 1, -b.shape[1] :], b))
                assert difference < 1e-11, f"step {step}, {site}: {difference:.3g}; {told}"


def texts(model, ids, every, change):
    with model.generate(ids, max_new_tokens=5) as tracer:
        rows = []
        for step in tracer.iter[:]:
            change(step)
            rows.append([get(model, site).clone() for site in every])
        return rows, tracer.result.clone()
