"""Kinds of attention heads: TransformerLens' scores and ours, each of its own model on the same weights."""

import itertools
import logging

import pytest
import torch
import transformer_lens.head_detector as judge
from tl_words import word_model

import glassformer.transformer_lens
import glassformer.transformer_lens.head_detector as ours

TEXT = "the cat sat on the mat the cat ran on a road"
SIDES = (ours, judge)
ERRORS = (AssertionError, KeyError, ValueError, RuntimeError, IndexError)


@pytest.fixture(scope="module")
def models():
    return {ours: word_model(package=glassformer.transformer_lens), judge: word_model()}


@pytest.fixture
def caches(models):
    return {side: model.run_with_cache(TEXT, remove_batch_dim=True)[1] for side, model in models.items()}


def same_scores(models, *args, caches=None, **options):
    found, expected = (
        side.detect_head(models[side], *args, cache=caches and caches[side], **options) for side in SIDES
    )
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12), (args, options)
    return found


@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("name", judge.HEAD_NAMES)
def test_known_kinds(models, name, measure):
    for bos, current in itertools.product([False, True], repeat=2):
        options = {"exclude_bos": bos, "exclude_current_token": current, "error_measure": measure}
        scores = same_scores(models, TEXT, name, **options)
        assert scores.unique().numel() > 4  # "abs" is rounded.
        same_scores(models, [TEXT, "Why the the cat Why the"], name, **options)
        for heads in ([(0, 1), (1, 2), (1, 0)], {1: [2]}, {0: [], 1: [0, 1, 2]}, []):
            some = same_scores(models, TEXT, name, heads, **options)
            assert (some == -1).sum() == 6 - sum(1 for _ in pairs_of(heads))


def pairs_of(heads):
    return heads if isinstance(heads, list) else [(layer, head) for layer in heads for head in heads[layer]]


def test_own_patterns_and_caches(models, caches, caplog):
    length = models[judge].to_tokens(TEXT).shape[1]
    torch.manual_seed(0)
    kept = {name: value.clone() for name, value in caches[ours].items()}
    for pattern in (torch.eye(length), torch.ones(length, length).tril(), torch.rand(length, length).tril().double()):
        for measure in ("mul", "abs"):
            with caplog.at_level(logging.WARNING):
                caplog.clear()
                found = same_scores(models, TEXT, pattern, caches=caches, exclude_bos=True, error_measure=measure)
            # Both sides warn, or neither.
            assert len(caplog.records) == (
                2 if measure == "mul" and not set(pattern.unique().tolist()) <= {0, 1} else 0
            )
            assert len({record.getMessage() for record in caplog.records}) <= 1
            assert found.shape == (2, 3)
    assert all(torch.equal(caches[ours][name], value) for name, value in kept.items())


@pytest.mark.parametrize("tokens", [[[4, 4, 4, 5]], [[1, 2, 1, 2, 3, 1]], [[7]], [3, 1, 3, 3]])
def test_patterns(tokens):
    for name in ours.HEAD_NAMES:
        found, expected = (getattr(side, f"get_{name}_detection_pattern")(torch.tensor(tokens)) for side in SIDES)
        assert found.dtype == expected.dtype and torch.equal(found, expected), name


def test_scores_of_one_head():
    torch.manual_seed(1)
    for dtype, measure in itertools.product([torch.float64, torch.float32, torch.bfloat16], ["mul", "abs"]):
        attention = torch.rand(6, 6, dtype=torch.float64).tril().to(dtype)
        expected_pattern = torch.randint(0, 2, (6, 6)).tril().float()
        for bos, current in itertools.product([False, True], repeat=2):
            options = {"exclude_bos": bos, "exclude_current_token": current, "error_measure": measure}
            found, expected = (
                side.compute_head_attention_similarity_score(attention.clone(), expected_pattern, **options)
                for side in SIDES
            )
            assert type(found) is type(expected) is float
            assert found == pytest.approx(expected, abs={torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 1e-2))
    options = {"exclude_bos": False, "exclude_current_token": False, "error_measure": "abs"}
    for attention in (torch.rand(6, 5), torch.rand(6, 6), torch.rand(2, 6, 6), torch.rand(5, 5).tril()):
        for side in SIDES:
            with pytest.raises(ERRORS):
                side.compute_head_attention_similarity_score(attention, expected_pattern, **options)


WRONG = [
    ((TEXT, "previous_head"), {}),
    ((TEXT, "induction_head"), {"error_measure": "square"}),
    ((TEXT, torch.ones(13, 13)), {}),
    ((TEXT, torch.eye(12)), {}),
    ((TEXT, torch.eye(13)[:12]), {}),
    ((TEXT, torch.zeros(13)), {}),
    ((" ".join(["cat"] * 39), "induction_head"), {}),
    (("", "induction_head"), {}),
    (([TEXT], "induction_head"), {"cache": {}}),
    ((TEXT, "induction_head", [(2, 0)]), {}),
    ((TEXT, "induction_head", [(0, 3)]), {}),
]


@pytest.mark.parametrize("args,options", WRONG, ids=range(len(WRONG)))
def test_what_is_refused(models, args, options):
    for side in SIDES:
        with pytest.raises(ERRORS):
            side.detect_head(models[side], *args, **options)


def test_own_patterns_on_several_texts(models, caches):
    """The mean; the judge takes the first text for all."""
    texts = [TEXT, "the " * 5 + "cat " * 7]
    pattern = torch.eye(13)
    alone = [judge.detect_head(models[judge], text, pattern, exclude_bos=True) for text in texts]
    found = ours.detect_head(models[ours], texts, pattern, exclude_bos=True)
    assert torch.allclose(found, torch.stack(alone).mean(0), rtol=0, atol=1e-12)
    same_scores(models, texts[:1], pattern, caches=caches)
    with pytest.raises(ValueError, match=r"shape \[13, 13\]; expected \[3, 3\]"):
        ours.detect_head(models[ours], [TEXT, "the cat"], pattern)
    with pytest.raises(ValueError, match="leave it out for 2"):
        ours.detect_head(models[ours], texts, "induction_head", cache={})


def test_names(capsys):
    assert ours.HEAD_NAMES == judge.HEAD_NAMES
    printed = []
    for side in SIDES:
        side.get_supported_heads()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
