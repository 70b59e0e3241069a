"""Generations: tokens, what each step reads and what edits at chosen steps do, several prompts, sampling."""

import nnsight_bodies as parts
import nnsight_bodies_generation as bodies
import pytest
import torch
from nnsight_judge import KINDS, PROMPT, assert_both_same, assert_same, demo_pair, padded_pair, pair, quiet, run_both

GREEDY = {"do_sample": False}
SEVEN = {"max_new_tokens": 7, "do_sample": False}
PROMPTS = [PROMPT, "The", "The cat sat on the mat"]
OF_ONE_LENGTH = ["The cat sat on the mat", "The dog ran to the road"]


@pytest.fixture(autouse=True)
def no_gradients():
    """`transformers` generates without gradients; what a test compares with must too."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_greedy(kind):
    both = pair(kind)
    for body in (bodies.generated, bodies.generator_output, bodies.both_outputs, bodies.first_step):
        assert_both_same(both, body, PROMPT, **SEVEN)
    for options in ({"max_new_tokens": 1}, {"max_length": 14}):
        assert_both_same(both, bodies.generated, PROMPT, **options, **GREEDY)
    ids = torch.tensor([both.tokenizer(PROMPT)["input_ids"]])
    assert_both_same(both, bodies.generated, ids, **SEVEN)
    assert_same(
        bodies.generated(both.ours, PROMPT, **SEVEN), quiet(both.reference.generate, ids, **SEVEN), both.tolerance
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_block(kind):
    both = pair(kind)
    found, expected = run_both(both, bodies.called, PROMPT, **SEVEN)
    assert_same(found[:], expected, 0)  # It is still a tracer, which gives what it generates to whoever asks.
    assert found.shape == expected.shape and len(found) == len(expected) and torch.equal(torch.add(found, 0), expected)


STEPS = [slice(None), slice(0, 3), slice(1, 3), slice(2, None), 0, 3, [0, 2, 4], [5], slice(3, 100)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_chosen_steps(kind, steps):
    both = pair(kind)
    found, expected = run_both(both, bodies.every_step, PROMPT, steps, **SEVEN)
    for i, (step, tokens, pattern, *values) in enumerate(expected):
        n_keys = pattern.shape[-1]  # The judge's cache has no keys before the window.
        assert n_keys == found[i][2].shape[-1] or kind == "mistral_window"
        assert_same(found[i][2][..., -n_keys:], pattern, both.tolerance)
        assert_same([*found[i][:2], *found[i][3:]], [step, tokens, *values], both.tolerance)
        assert tokens.shape[1] == (11 if step == 0 else 1)
    assert len(found) == len(expected)
    unedited = bodies.logits_of(both.ours, PROMPT, 7, **GREEDY)
    changed = assert_both_same(both, bodies.edited_at, PROMPT, steps, **SEVEN)
    assert not torch.allclose(changed[0][0], unedited[found[0][0]])


@pytest.mark.parametrize("kind", KINDS)
def test_loops(kind):
    both = pair(kind)
    assert_both_same(both, bodies.all_steps, PROMPT, **SEVEN)
    assert_both_same(both, bodies.closed_loop_and_behind, PROMPT, 4, **SEVEN)
    assert_both_same(both, bodies.two_loops, PROMPT, **SEVEN)
    assert_both_same(both, bodies.in_an_empty_invoke_all_steps, PROMPT, 5, **GREEDY)
    for n in (1, 4):
        assert_both_same(both, bodies.tokens_of_the_streamer, PROMPT, n, **GREEDY)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_outputs_and_tokens(kind):
    both = pair(kind)
    assert_both_same(both, bodies.whole_outputs, PROMPT, 4, **GREEDY)
    assert_both_same(both, bodies.kept_over_steps, PROMPT, 4, **GREEDY)
    for steps in ([0], [1], [0, 1, 2, 3]):
        assert_both_same(both, bodies.tokens_edited, PROMPT, steps, 4, **GREEDY)


CONDITIONS = {
    "first": lambda step: step == 0,
    "later": lambda step: step >= 3,
    "odd": lambda step: step % 2,
    "all": lambda step: True,
}


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_steps(kind):
    both = pair(kind)
    for condition in CONDITIONS.values():
        assert_both_same(both, bodies.edited_when, PROMPT, condition, 6, **GREEDY)
    assert_both_same(both, bodies.edited_first_step, PROMPT, **SEVEN)
    assert_both_same(both, bodies.values_across_steps, PROMPT, 6, **GREEDY)
    assert_both_same(both, bodies.result_set, PROMPT, **SEVEN)
    for strength in (0.5, 5.0):
        assert_both_same(both, bodies.steered, PROMPT, 6, strength, **GREEDY)
    plain = bodies.generated(both.ours, PROMPT, max_new_tokens=6, **GREEDY)
    token = int(plain[0, 13])
    changed = assert_both_same(both, bodies.logits_edited, PROMPT, 6, token, **GREEDY)
    assert token not in changed[0, 11:] and changed[0, 13] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_end_of_sequence(kind):
    """A generation that stops early gives the steps that it had, to a loop without an end."""
    both = pair(kind)
    plain = bodies.generated(both.ours, PROMPT, max_new_tokens=8, **GREEDY)[0, 11:].tolist()
    for place in (0, 2, 5):
        end = plain[place]
        first = plain.index(end)
        options = {"max_new_tokens": 8, "eos_token_id": end, **GREEDY}
        ids = assert_both_same(both, bodies.generated, PROMPT, **options)
        assert ids.shape[1] == 11 + first + 1
        if first + 1 < 8:
            assert_both_same(both, bodies.generated, PROMPT, min_new_tokens=first + 2, **options)
        assert len(assert_both_same(both, bodies.all_steps, PROMPT, **options)) == first + 1
        several = {**options, "eos_token_id": [end, 358]}
        assert_both_same(both, bodies.generated, PROMPT, **several)


def tails(both, ids, prompts):
    """Without the padding on the left, which only the judge's ids have."""
    return [row[:, -(row.shape[1] - longest(both, prompts) + length_of(both, prompt)) :]
            for row, prompt in zip(ids, prompts, strict=True)]  # fmt: skip


def length_of(both, prompt):
    return len(both.tokenizer(prompt)["input_ids"])


def longest(both, prompts):
    return max(length_of(both, prompt) for prompt in prompts)


def assert_ids_same(both, found, expected, prompts):
    """Of each prompt; what ended early is filled with the end's token by the judge alone."""
    end = both.reference.generation_config.eos_token_id
    for mine, theirs, prompt in zip(found, tails(both, expected, prompts), prompts, strict=True):
        length = mine.shape[1]
        assert mine.tolist() == theirs[:, :length].tolist(), prompt
        assert (theirs[:, length:] == end).all() and (length == theirs.shape[1] or mine[0, -1] == end), prompt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[1:], OF_ONE_LENGTH])
def test_several_prompts(kind, prompts):
    both = padded_pair(kind)
    for body in (bodies.each_invoke_edited, bodies.each_invoke):
        (ids, values), (expected, theirs) = run_both(both, body, prompts, 5, **GREEDY)
        assert_ids_same(both, ids, expected, prompts)
        steps = [len(row[0]) - length_of(both, prompt) for row, prompt in zip(ids, prompts, strict=True)]
        assert_same(values, [row[:n] for row, n in zip(theirs, steps, strict=True)], both.tolerance)
    (found, all_ids), (expected, theirs) = run_both(both, bodies.empty_invoke, prompts, 5, **GREEDY)
    for step, (mine, judged) in enumerate(zip(found, expected, strict=True)):
        going = [row for row, n in enumerate(steps) if n > step]
        assert_same(mine[going], judged[going], both.tolerance, f"step {step}")
    assert_same(all_ids, theirs, 0)
    assert_both_same(both, bodies.generated, prompts, **SEVEN)


@pytest.mark.parametrize("kind", KINDS)
def test_several_prompts_that_end_early(kind):
    """Rows that are done are filled with the token for padding, and the others go on."""
    both = padded_pair(kind)
    each = [bodies.generated(both.ours, prompt, max_new_tokens=6, **GREEDY)[0, -6:].tolist() for prompt in PROMPTS]
    for end in {row[place] for row in each for place in (0, 2)}:
        options = {"max_new_tokens": 6, "eos_token_id": end, **GREEDY}
        for pad in ({}, {"pad_token_id": 0}, {"pad_token_id": 9}):
            assert_both_same(both, bodies.generated, PROMPTS, **options, **pad)
        del options["max_new_tokens"]
        (found, ids), (expected, theirs) = run_both(both, bodies.empty_invoke, PROMPTS, 1, **options)
        assert_same(found, expected, both.tolerance)
        assert_same(ids, theirs, 0)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_embeddings_from_another_prompt(kind):
    both = padded_pair(kind)
    expected = quiet(bodies.embeddings_passed_on, both.judge, OF_ONE_LENGTH, 4, True, **GREEDY)
    for barrier in (True, False):
        found = bodies.embeddings_passed_on(both.ours, OF_ONE_LENGTH, 4, barrier, **GREEDY)
        assert_same(found, expected, both.tolerance)
    assert found[0][0, 6:].tolist() == found[1][0, 6:].tolist()


SAMPLING = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7, "top_k": 0},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
@pytest.mark.parametrize("options", SAMPLING.values(), ids=SAMPLING)
def test_sampling(kind, options):
    """The same numbers are drawn as in `transformers`."""
    both = pair(kind)
    ids = torch.tensor([both.tokenizer(PROMPT)["input_ids"]])
    options = {"do_sample": True, "max_new_tokens": 10, **options}
    drawn = []
    for seed in range(4):
        found = []
        for generate in (both.ours, both.judge):
            torch.manual_seed(seed)
            found.append(quiet(bodies.generated, generate, PROMPT, **options))
        torch.manual_seed(seed)
        found.append(quiet(both.reference.generate, ids, attention_mask=torch.ones_like(ids), **options))
        assert found[0].tolist() == found[1].tolist() == found[2].tolist(), seed
        drawn.append(tuple(found[0][0].tolist()))
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_sampling_with_edits_and_several_prompts(kind):
    both = padded_pair(kind)
    for seed in range(3):
        found = []
        for model in (both.ours, both.judge):
            torch.manual_seed(seed)
            one = quiet(bodies.steered, model, PROMPT, 6, 2.0, do_sample=True, temperature=1.3)
            several = quiet(bodies.generated, model, PROMPTS, max_new_tokens=6, do_sample=True)
            found.append((one, several))
        assert_same(found[0], found[1], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_repetition_penalty_of_the_greedy(kind):
    both = pair(kind)
    for penalty in (1.3, 2.0, 0.7):
        assert_both_same(both, bodies.generated, PROMPT, repetition_penalty=penalty, **SEVEN)


# --- what the judge has no more: versions before 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_next(kind):
    """`tracer.next()` and `module.next()` go on to the next step; the judge's loop reads the same."""
    both = pair(kind)
    expected = [row[3] for row in quiet(bodies.every_step, both.judge, PROMPT, slice(0, 3), **SEVEN)]
    model = both.ours
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        first = parts.hidden(parts.blocks(model)[1].output)
        tracer.next()
        second = parts.hidden(parts.blocks(model)[1].output)
        tracer.next()
        third = parts.hidden(parts.blocks(model)[1].output)
    assert_same([first, second, third], expected, both.tolerance)
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False):
        block = parts.blocks(model)[1]
        found = [parts.hidden(block.output), parts.hidden(block.next().output), parts.hidden(block.next().output)]
    assert_same(found, expected, both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_with_next(kind):
    both = pair(kind)
    expected = quiet(bodies.edited_when, both.judge, PROMPT, lambda step: step == 2, 5, **GREEDY)[1]
    model = both.ours
    with model.generate(PROMPT, max_new_tokens=5, do_sample=False) as tracer:
        tracer.next(2)
        block = parts.blocks(model)[0]
        parts.put(block, parts.hidden(block.output) * -1 + 0.5)
        heads = parts.heads_input(parts.blocks(model)[1])
        heads.input = heads.input * 3
        ids = tracer.result
    assert_same(ids, expected, 0)


def test_the_demo_model():
    both = demo_pair()
    greedy = {"do_sample": False}
    ids = assert_both_same(both, bodies.generated, PROMPT, max_new_tokens=6, **greedy)
    assert_both_same(both, bodies.closed_loop_and_behind, PROMPT, 3, max_new_tokens=4, **greedy)
    assert_both_same(both, bodies.edited_when, PROMPT, lambda step: step == 0, 3, **greedy)
    end = int(ids[0, -3])
    assert_both_same(both, bodies.generated, PROMPT, max_new_tokens=6, eos_token_id=end, **greedy)
