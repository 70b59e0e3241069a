"""Inputs in every form: texts, ids, masks, positions, labels; and what generations take."""

import nnsight_bodies_inputs as bodies
import pytest
import torch
import transformers
from nnsight_judge import (
    KINDS,
    PROMPT,
    assert_both_same,
    assert_same,
    judge_of,
    ours_of,
    padded_pair,
    pair,
    quiet,
    run_both,
)
from small_models import byte_tokenizer
from tokenizers.processors import TemplateProcessing

OF_ONE_LENGTH = ["The cat sat on the mat", "The dog ran to the road"]
MIXED = [PROMPT, "The", "The cat sat on the mat"]


def ids_of(texts):
    return [byte_tokenizer()(text)["input_ids"] for text in texts]


def padded(texts, side, pad=0):
    """`(ids, mask)` of texts, padded at a side."""
    rows = ids_of(texts)
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        empty = [pad] * (width - len(row))
        zeros, ones = [0] * len(empty), [1] * len(row)
        ids.append(empty + row if side == "left" else row + empty)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return torch.tensor(ids), torch.tensor(mask)


def assert_real_same(both, body, mask, *inputs, **options):
    """Compares where the mask is one."""
    found, expected = run_both(both, body, *inputs, **options)
    for mine, theirs in zip([*found[0], found[1]], [*expected[0], expected[1]], strict=True):
        assert mine.shape == theirs.shape
        assert_same(mine[mask.bool()], theirs[mask.bool()], both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind):
    both = padded_pair(kind)
    for side in ("left", "right"):
        ids, mask = padded(MIXED, side)
        assert_real_same(both, bodies.read, mask, ids, attention_mask=mask)
        assert_real_same(both, bodies.read, mask, {"input_ids": ids, "attention_mask": mask})
        assert_real_same(both, bodies.read, mask, input_ids=ids, attention_mask=mask)
    ids, mask = padded(OF_ONE_LENGTH, "left")
    assert_both_same(both, bodies.edited, ids, attention_mask=mask)
    encoding = byte_tokenizer()(OF_ONE_LENGTH, return_tensors="pt")
    assert isinstance(encoding, transformers.BatchEncoding)
    assert_both_same(both, bodies.edited, encoding)


@pytest.mark.parametrize("kind", KINDS)
def test_ids(kind):
    both = pair(kind)
    rows = ids_of(OF_ONE_LENGTH)
    for given in (OF_ONE_LENGTH, rows, torch.tensor(rows), [torch.tensor(row) for row in rows], tuple(OF_ONE_LENGTH)):
        assert_both_same(both, bodies.edited, given)
    for given in (rows[0], torch.tensor(rows[0]), torch.tensor(rows[0]).numpy(), OF_ONE_LENGTH[0], [OF_ONE_LENGTH[0]]):
        assert_both_same(both, bodies.edited, given)
    assert_both_same(both, bodies.edited, input_ids=torch.tensor(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_positions(kind):
    both = pair(kind)
    ids = torch.tensor(ids_of(OF_ONE_LENGTH))
    positions = torch.arange(ids.shape[1]).expand(2, -1) + 3
    shifted, plain = (assert_both_same(both, bodies.read, ids, **given) for given in ({"position_ids": positions}, {}))
    assert kind.startswith("gpt2") != torch.allclose(shifted[1], plain[1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_labels(kind):
    both = pair(kind)
    ids = torch.tensor(ids_of(OF_ONE_LENGTH))
    labels = ids.clone()
    labels[0, :3] = -100
    for given in (ids, labels):
        for args, options in (((ids,), {"labels": given}), (({"input_ids": ids, "labels": given},), {})):
            found, expected = run_both(both, bodies.loss, *args, **options)
            assert_same(found, [value.double() for value in expected], 1e-5)  # `transformers` takes it in float32.


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_with_a_begin(kind):
    """Texts get the tokens that the tokenizer adds, on both sides, alone and in batches."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer.from_str(byte_tokenizer().backend_tokenizer.to_str()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    reference = pair(kind).reference
    ours, judge = ours_of(reference, tokenizer), judge_of(reference, tokenizer)
    for prompt in (PROMPT, OF_ONE_LENGTH):
        found, expected = bodies.read(ours, prompt), quiet(bodies.read, judge, prompt)
        assert_same(found, expected, pair(kind).tolerance)
    assert found[1].shape[1] == 1 + len(ids_of(OF_ONE_LENGTH)[0])
    options = {"max_new_tokens": 4, "do_sample": False}
    assert_same(bodies.generated(ours, PROMPT, **options), quiet(bodies.generated, judge, PROMPT, **options), 0)


GREEDY = {"do_sample": False}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_generations(kind):
    both = padded_pair(kind)
    rows = ids_of(OF_ONE_LENGTH)
    ids, mask = padded(MIXED, "left")
    with torch.no_grad():
        for given in (OF_ONE_LENGTH, rows, torch.tensor(rows), {"input_ids": torch.tensor(rows)}, MIXED):
            assert_both_same(both, bodies.generated_by_step, 4, given, **GREEDY)
        assert_both_same(both, bodies.generated_by_step, 4, ids, attention_mask=mask, **GREEDY)
        assert_both_same(both, bodies.generated_by_step, 4, input_ids=ids, attention_mask=mask, **GREEDY)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_settings_of_generations(kind):
    both = pair(kind)
    config = transformers.GenerationConfig(max_new_tokens=6, do_sample=False, repetition_penalty=1.4, eos_token_id=2)
    with torch.no_grad():
        assert_both_same(both, bodies.generated, PROMPT, generation_config=config)
        assert_both_same(both, bodies.generated, PROMPT, generation_config=config, max_new_tokens=3)
        plain = bodies.generated(both.ours, PROMPT, max_new_tokens=8, min_new_tokens=8, **GREEDY)
        words = [both.tokenizer.decode(token) for token in plain[0, 11:]]
        word = next(word for word in words[1:-1] if word.isascii())
        options = {"max_new_tokens": 8, "stop_strings": [word], "tokenizer": both.tokenizer}
        stopped = assert_both_same(both, bodies.generated, PROMPT, **options, **GREEDY)
        assert stopped.shape[1] < plain.shape[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_a_vector_that_is_learned(kind):
    losses, vector = assert_both_same(pair(kind), bodies.learned, PROMPT, 4)
    assert losses[-1] > losses[0] and vector.abs().max() > 0
