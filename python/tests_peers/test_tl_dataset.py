"""A model's data set, and a text of it by chance, beside the judge's."""

import sys

import numpy as np
import pytest
import torch
from tl_words import word_model, word_tokenizer

from glassformer.transformer_lens import HookedTransformer, utilities

TEXTS = [{"text": text, "meta": 0} for text in ("the cat sat", "a dog ran on the road " * 12, "Why", "on a mat")]


@pytest.fixture
def both(tmp_path):
    judge = word_model()
    ours = HookedTransformer({**judge.cfg.to_dict(), "init_weights": False}, tokenizer=word_tokenizer(tmp_path))
    return judge, ours


def stand_in(asked):
    def get_dataset(name, **options):
        asked.append((name, options))
        return TEXTS

    return get_dataset


def test_a_text_by_chance(both, monkeypatch):
    asked = [], []
    monkeypatch.setattr(sys.modules["transformer_lens.HookedTransformer"].utils, "get_dataset", stand_in(asked[0]))
    monkeypatch.setattr(utilities, "get_dataset", stand_in(asked[1]))
    for architecture in ("neel", "neel-solu-old", "GPT2LMHeadModel", "GPTNeoForCausalLM", "OPTForCausalLM"):
        for model in both:
            model.cfg.original_architecture, model.dataset = architecture, None
            assert model.load_sample_training_dataset(cache_dir="there") is model.dataset is TEXTS
    for model in both:
        model.dataset = None
    for options in ({}, {"tokenize": True}, {"tokenize": True, "prepend_bos": False, "padding_side": "left"}):
        results = []
        for model in both:
            np.random.seed(4)
            results.append([model.sample_datapoint(**options) for _ in range(12)])
        for expected, found in zip(*results, strict=True):
            assert torch.equal(found, expected) if options else found == expected
        assert not options or max(tokens.shape[1] for tokens in results[1]) in (39, 40)  # One less without <s>.
    assert asked[0] == asked[1] and len(asked[1]) == 6


def test_a_model_without_a_data_set(both):
    for model in both:
        with pytest.raises(ValueError, match=r"dataset|data set"):
            model.sample_datapoint()
        model.dataset = [{"text": "the cat"}]
        assert model.sample_datapoint() == "the cat"
