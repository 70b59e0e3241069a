"""Sampling: with the same seed, the tokens that TransformerLens and transformers draw."""

import pytest
import torch
import transformers
from tiny_models import random_tokens
from tl_judge import pair
from transformer_lens.utilities import sample_logits

from glassformer import Sampler, _core

D_VOCAB, BATCH, DRAWS = 211, 4, 100


def draws(one, seed=0):
    """Tokens of many draws: `draw batch`."""
    torch.manual_seed(seed)
    return torch.stack([one(index) for index in range(DRAWS)])


def case():
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(DRAWS, BATCH, D_VOCAB, generator=generator) * 2.5
    texts = torch.randint(0, 40, (DRAWS, BATCH, 30), generator=generator)
    return logits, texts


def our_draws(sampler, logits, texts):
    options = sampler.core()
    return draws(lambda index: _core.sample(logits[index], texts[index].tolist(), options))


TL_RULES = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.4},
    {"temperature": 0.0, "freq_penalty": 3.0},
    {"temperature": 0.6},
    {"temperature": 1.8},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 5000},
    {"top_p": 0.5},
    {"top_p": 0.05},
    {"top_p": 1.0},
    {"top_p": 0.9, "temperature": 1.5},
    {"top_k": 10, "top_p": 0.2},
    {"freq_penalty": 0.8},
    {"freq_penalty": 0.8, "temperature": 2.0, "top_k": 30},
    {"freq_penalty": 0.8, "temperature": 0.5, "top_p": 0.7},
    {"repetition_penalty": 1.3, "temperature": 0.7},
    {"repetition_penalty": 0.7, "freq_penalty": 0.3, "temperature": 1.3, "top_p": 0.8},
]


def sampler_for_tl(rules):
    renamed = {"freq_penalty": "frequency_penalty"}
    return Sampler(
        sample=True, order="transformer_lens", **{renamed.get(name, name): value for name, value in rules.items()}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rules", TL_RULES, ids=str)
def test_draws_of_transformer_lens(rules, dtype):
    logits, texts = case()
    logits = logits.to(dtype)
    expected = draws(lambda index: sample_logits(logits[index].clone(), tokens=texts[index], **rules))
    assert torch.equal(our_draws(sampler_for_tl(rules), logits, texts), expected)


HF_RULES = [
    {},
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 0.5},
    {"top_p": 0.03},
    {"min_p": 0.05},
    {"min_p": 0.9},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.6},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.8},
    {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
]


def hf_processors(rules):
    """As `generate` puts them together."""
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **rules})
    model = pair("gpt2").reference
    return model._get_logits_processor(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rules", HF_RULES, ids=str)
def test_draws_of_transformers(rules, dtype):
    logits, texts = case()
    logits = logits.to(dtype)
    processors = hf_processors(rules)

    def one(index):
        scores = processors(texts[index], logits[index].to(torch.float32, copy=True))
        return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)

    assert torch.equal(our_draws(Sampler(sample=True, **rules), logits, texts), draws(one))


def test_the_processors_are_those_meant():
    names = [type(each).__name__ for each in hf_processors(HF_RULES[-1])]
    assert names == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]


GENERATIONS = [
    {"sample": False},
    {"sample": False, "repetition_penalty": 1.5},
    {"sample": True, "temperature": 0.8},
    {"sample": True, "top_k": 6, "temperature": 1.4},
    {"sample": True, "top_p": 0.7},
]


@pytest.mark.parametrize("rules", GENERATIONS, ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_generation_of_transformers(kind, rules):
    both = pair(kind)
    prompts = random_tokens(3, 5, seed=8)
    given = {"top_k": 0, **rules, "do_sample": rules["sample"]}
    given.pop("sample")
    torch.manual_seed(4)
    expected = both.reference.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=20, eos_token_id=None, pad_token_id=0, **given
    )
    torch.manual_seed(4)
    found = both.model.generate(prompts, max_new_tokens=20, stop_tokens=[], **rules)
    assert [each.ids for each in found] == expected[:, 5:].tolist()


@pytest.mark.parametrize(
    "rules", [*GENERATIONS, {"sample": True, "frequency_penalty": 0.6}, {"sample": True, "temperature": 0.0}], ids=str
)
@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_generation_of_transformer_lens(kind, rules):
    both = pair(kind)
    prompts = random_tokens(3, 5, seed=9)
    renamed = {"sample": "do_sample", "frequency_penalty": "freq_penalty"}
    given = {renamed.get(name, name): value for name, value in rules.items()}
    if "repetition_penalty" in given and not given["do_sample"]:
        pytest.skip("the judge's greedy choice is before the penalty")
    torch.manual_seed(5)
    # Its cache of keys gives other tokens than its own forward pass where positions are learned.
    options = {"use_past_kv_cache": kind != "gpt2", "stop_at_eos": False, "verbose": False}
    expected = both.judge.generate(prompts, max_new_tokens=20, **options, **given)
    torch.manual_seed(5)
    found = both.model.generate(prompts, max_new_tokens=20, stop_tokens=[], order="transformer_lens", **rules)
    assert [each.ids for each in found] == expected[:, 5:].tolist()
