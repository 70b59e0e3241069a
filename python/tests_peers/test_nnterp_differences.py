"""Where nnterp 1.3.0 gives other numbers, or none: what docs/coming_from_nnterp.md says of it is so."""

import nnterp
import nnterp.interventions
import nnterp.prompt_utils
import pytest
import torch
from nnterp_judge import MIXED, SIX, asked, pair
from small_models import byte_tokenizer, published

from glassformer.nnterp import interventions, prompt_utils


def test_padding_counts_among_the_positions_of_gpt2():
    both = pair("gpt2")

    def body(model):
        return [model.logits[:, -1]]

    alone = torch.cat([asked(both.judge, text, body)[0] for text in MIXED])
    assert (asked(both.judge, MIXED, body)[0] - alone).abs().max() > 1e-2
    both.close(asked(both.ours, MIXED, body)[0], alone)


def test_first_tokens_where_every_text_gets_a_space():
    tokenizer = byte_tokenizer(add_prefix_space=True)
    plain = byte_tokenizer(add_prefix_space=False)
    expected = nnterp.prompt_utils.get_first_tokens("Paris", plain)
    assert prompt_utils.get_first_tokens("Paris", tokenizer) == expected
    assert nnterp.prompt_utils.get_first_tokens("Paris", tokenizer) == expected[1:]
    assert len(expected) == 2


def test_generations_of_some_layers():
    """nnterp takes the stream by the layer's number, out of those that were asked for."""
    both = pair("gpt2")
    with pytest.raises(Exception, match="out of bounds"):
        target = nnterp.interventions.TargetPrompt(SIX[0], 2)
        nnterp.interventions.patchscope_generate(both.judge, SIX[1], target, 5, layers=[2])
    target = interventions.TargetPrompt(SIX[0], 2)
    every = interventions.patchscope_generate(both.ours, SIX[1], target, 5)
    assert interventions.patchscope_generate(both.ours, SIX[1], target, 5, layers=[2])[2].tolist() == every[2].tolist()


def test_latents_of_all_layers():
    """nnterp takes the first ones, whatever the layers are."""
    both = pair("gpt2")
    latents = torch.randn(3, 2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def lens(module, model, layers, latents):
        target = module.TargetPrompt(SIX[0], -1)
        return module.patchscope_lens(model, target_patch_prompts=target, layers=layers, latents=latents)

    right = lens(nnterp.interventions, both.judge, [2], latents[2:])
    assert (lens(nnterp.interventions, both.judge, [2], latents) - right).abs().max() > 1e-3
    both.close(lens(interventions, both.ours, [2], latents), right)


def test_the_input_of_attention_can_be_set():
    both = pair("llama")

    def body(model):
        model.attentions_input[1] = model.attentions_input[1] * 2
        return [model.logits]

    with pytest.raises(Exception, match="multiple values for argument 'hidden_states'"):
        asked(both.judge, SIX, body)
    assert asked(both.ours, SIX, body)[0].isfinite().all()


def test_attention_probabilities_of_gpt2():
    with pytest.raises(Exception, match="module_attn_dropout_0"):
        nnterp.StandardizedTransformer(published("gpt2")[1], device_map="cpu", enable_attention_probs=True)


def test_bars_can_be_left_out():
    both = pair("gpt2")
    prompts = [nnterp.prompt_utils.Prompt(SIX[0], {"a": [5]})]
    with pytest.raises(TypeError):
        nnterp.prompt_utils.run_prompts(both.judge, prompts, tqdm=None)
    assert prompt_utils.run_prompts(both.ours, prompts, tqdm=None)["a"].shape == (1,)
