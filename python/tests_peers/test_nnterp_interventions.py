"""Activations of many prompts, lenses, patchscopes and runs of prompts: the same numbers as nnterp's."""

import nnterp
import nnterp.interventions
import nnterp.prompt_utils
import pytest
import torch
from nnterp_judge import KINDS, MIXED, SIX, pair

from glassformer import InputError, UnsupportedError
from glassformer.nnterp import interventions, nnsight_utils, prompt_utils

THEIRS = nnterp.interventions
TARGETS = {"correct_answer": "Paris", "traps": ["London", "Madrid"], "longstring": "the country of France"}
pytestmark = pytest.mark.parametrize("kind", KINDS)


def one_by_one(function, prompts, axis):
    """What nnterp gives for prompts of different lengths, without its padding."""
    return torch.cat([function(prompt) for prompt in prompts], dim=axis)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [1]},
        {"layers": [0, -1]},
        {"idx": -2},
        {"get_activations": "mlp"},
        {"layers": [0, 2], "get_activations": "attention", "idx": -3},
    ],
)
@pytest.mark.parametrize("prompts", [SIX[0], SIX])
def test_token_activations(kind, prompts, options):
    both = pair(kind)
    sides = []
    for model, module in ((both.ours, nnsight_utils), (both.judge, nnterp.nnsight_utils)):
        functions = {"mlp": module.get_mlp_output, "attention": module.get_attention_output}
        given = {**options, "get_activations": functions.get(options.get("get_activations"))}
        values = [module.get_token_activations(model, prompts, **given)]
        if isinstance(prompts, list):
            for size in (1, 2, 5):
                values.append(module.collect_token_activations_batched(model, prompts, size, **given))
        sides.append(values)
    for ours, theirs in zip(*sides, strict=True):
        both.close(ours, theirs)
    assert sides[0][0].shape == (
        len(options.get("layers", "abc")),
        5 if isinstance(prompts, list) else 1,
        24 + 8 * (kind != "gpt2"),
    )


def test_token_activations_of_prompts_of_different_lengths(kind):
    both = pair(kind)
    expected = one_by_one(lambda text: nnterp.nnsight_utils.get_token_activations(both.judge, text), MIXED, 1)
    both.close(nnsight_utils.get_token_activations(both.ours, MIXED), expected)
    both.close(nnsight_utils.collect_token_activations_batched(both.ours, MIXED, 3), expected)
    bars = []

    def bar(numbers):
        bars.append(list(numbers))
        return numbers

    both.close(nnsight_utils.collect_token_activations_batched(both.ours, MIXED, 3, tqdm=bar), expected)
    assert bars == [[0, 3]]
    both.close(nnsight_utils.collect_last_token_activations_session(both.ours, MIXED, 3), expected)


def test_tokens_from_the_beginning(kind):
    """They are counted in each prompt; nnterp refuses most of them, and takes padding for token 0."""
    both = pair(kind)
    texts = [text for text in MIXED if text != "a"]
    for idx in (0, 1, 2):

        def their_value(text, idx=idx):
            with torch.no_grad(), both.judge.trace(text):
                found = [both.judge.layers_output[layer][:, idx].clone() for layer in range(3)].save()
            return torch.stack(found)

        both.close(nnsight_utils.get_token_activations(both.ours, texts, idx=idx), one_by_one(their_value, texts, 1))
    for idx in (1, -2):
        with pytest.raises(InputError, match=f"token {idx}: prompt 1 has 1 tokens"):
            nnsight_utils.get_token_activations(both.ours, MIXED, idx=idx)
    with pytest.raises(InputError, match="give prompts"):
        nnsight_utils.get_token_activations(both.ours)


def test_token_activations_of_an_open_trace(kind):
    both = pair(kind)
    sides = []
    for model, module in ((both.ours, nnsight_utils), (both.judge, nnterp.nnsight_utils)):
        with torch.no_grad(), model.trace(SIX) as tracer:
            module.get_layer_output(model, 0)[:, -1] *= 2
            found = module.get_token_activations(model, tracer=tracer, layers=[0, 2]).save()
        sides.append(found)
    both.close(*sides)


@pytest.mark.parametrize("prompts", [SIX[0], SIX])
@pytest.mark.parametrize("inverted", [False, True])
def test_logit_lens(kind, prompts, inverted):
    both = pair(kind)
    expected = THEIRS.logit_lens(both.judge, prompts, return_inv_logits=inverted)
    found = interventions.logit_lens(both.ours, prompts, return_inv_logits=inverted)
    for ours, theirs in zip(found, expected, strict=True) if inverted else [(found, expected)]:
        both.close(ours, theirs)
        assert ours.shape == (len(prompts) if isinstance(prompts, list) else 1, 3, both.ours.vocab_size)


def test_logit_lens_of_prompts_of_different_lengths(kind):
    both = pair(kind)
    both.close(
        interventions.logit_lens(both.ours, MIXED),
        one_by_one(lambda text: THEIRS.logit_lens(both.judge, text), MIXED, 0),
    )
    with pytest.raises(UnsupportedError, match="this machine"):
        interventions.logit_lens(both.ours, MIXED, remote=True)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (None, {}),
        (("Paris is", -1), {}),
        (("The cat sat on the mat", 2), {"layers": [0, 2]}),
        (("The cat sat on the mat", -3), {"layers": 1}),
        ([("The cat sat", 0), ("Paris is", 1), ("cat dog", -1), ("Paris is", -2), ("The cat sat", -1)], {}),
    ],
)
@pytest.mark.parametrize("by_latents", [False, True])
def test_patchscope_lens(kind, target, options, by_latents):
    both = pair(kind)
    sides = []
    for model, module, utils in (
        (both.ours, interventions, nnsight_utils),
        (both.judge, THEIRS, nnterp.nnsight_utils),
    ):
        given = None
        if isinstance(target, list):
            given = [module.TargetPrompt(*one) for one in target]
        elif target is not None:
            given = module.TargetPrompt(*target)
        sources = {"source_prompts": SIX}
        if by_latents:
            layers = options.get("layers", [0, 1, 2])
            chosen = [layers] if isinstance(layers, int) else layers
            sources = {"latents": utils.get_token_activations(model, SIX, layers=chosen)}
        sides.append(module.patchscope_lens(model, target_patch_prompts=given, **sources, **options))
    both.close(*sides)
    layers = options.get("layers", [0, 1, 2])
    assert sides[0].shape == (5, 1 if isinstance(layers, int) else len(layers), both.ours.vocab_size)
    assert (sides[0][0] - sides[0][1]).abs().max() > 1e-4


def test_patchscope_lens_of_prompts_of_different_lengths(kind):
    """Of sources and of targets, and indices in each target's own tokens."""
    both = pair(kind)
    targets = [("The cat sat", 1), ("a", 0), ("The capital of France is", -2), ("hello said the king", 3)]
    expected = torch.cat(
        [
            THEIRS.patchscope_lens(both.judge, source, THEIRS.TargetPrompt(*target))
            for source, target in zip(MIXED, targets, strict=True)
        ]
    )
    found = interventions.patchscope_lens(both.ours, MIXED, [interventions.TargetPrompt(*target) for target in targets])
    both.close(found, expected)


def test_patchscope_lens_refuses(kind):
    ours = pair(kind).ours
    target = interventions.TargetPrompt("Paris is", -1)
    for sources, latents in ((None, None), ("a", torch.zeros(3, 1, ours.hidden_size))):
        with pytest.raises(InputError, match="either source_prompts or latents"):
            interventions.patchscope_lens(ours, sources, target, latents=latents)
    with pytest.raises(InputError, match="latents of 2 layers for 1"):
        interventions.patchscope_lens(ours, None, target, layers=1, latents=torch.zeros(2, 1, ours.hidden_size))
    with pytest.raises(InputError, match="5 sources and 2 target prompts"):
        interventions.patchscope_lens(ours, SIX, [target, target])
    with pytest.raises(InputError, match="token 3: prompt 0 has 3 tokens"):
        interventions.patchscope_lens(ours, SIX[:1], interventions.TargetPrompt("Paris is", 3))


@pytest.mark.parametrize("max_batch_size", [32, 2])
def test_patchscope_generate(kind, max_batch_size):
    both = pair(kind)
    sides = []
    for model, module in ((both.ours, interventions), (both.judge, THEIRS)):
        target = module.TargetPrompt("The cat sat on the mat", 2)
        sides.append(module.patchscope_generate(model, SIX[:2], target, 5, max_batch_size=max_batch_size))
    assert list(sides[0]) == list(sides[1]) == [0, 1, 2]
    for layer, ids in sides[0].items():
        assert ids.tolist() == sides[1][layer].tolist()
        assert ids.shape == (2, 11)
    alone = interventions.patchscope_generate(both.ours, SIX[0], interventions.TargetPrompt(SIX[0], 2), 5, layers=[2])
    assert alone[2].shape == (1, 11)
    assert list(alone) == [2]


@pytest.mark.parametrize("sources", [SIX[4], SIX[1:4]])
@pytest.mark.parametrize("index", [0, 2, -2])
@pytest.mark.parametrize("num_patches", [1, 2, 5])
def test_attention_to_the_tokens_of_others(kind, sources, index, num_patches):
    both = pair(kind)
    targets = SIX[:3]
    expected = THEIRS.patch_object_attn_lens(both.judge, sources, targets, index, num_patches)
    found = interventions.patch_object_attn_lens(both.ours, sources, targets, index, num_patches)
    both.close(found, expected)
    some = interventions.patch_object_attn_lens(both.ours, sources, targets, index, num_patches, layers=[2, 0])
    both.close(some, expected[:, [2, 0]])


def test_attention_to_the_tokens_of_others_in_prompts_of_different_lengths(kind):
    both = pair(kind)
    expected = torch.cat([THEIRS.patch_object_attn_lens(both.judge, SIX[0], text, 0, 2) for text in MIXED])
    both.close(interventions.patch_object_attn_lens(both.ours, SIX[0], MIXED, 0, 2), expected)
    with pytest.raises(InputError, match="2 source and 4 target prompts"):
        interventions.patch_object_attn_lens(both.ours, SIX[:2], MIXED, 0)


@pytest.mark.parametrize("texts", [SIX, MIXED])
@pytest.mark.parametrize("lens", [False, True])
def test_runs_of_prompts(kind, texts, lens):
    """`batch`, and with the lens `batch layer`; nnterp has an axis of one layer in the first case."""
    both = pair(kind)
    batches = []
    for model, module, functions, size in (
        (both.ours, prompt_utils, interventions, 3),
        (both.judge, nnterp.prompt_utils, THEIRS, 1),
    ):
        prompts = [module.Prompt.from_strings(text, TARGETS, model.tokenizer) for text in texts]
        given = {"get_probs_func": functions.logit_lens} if lens else {}
        batches.append(module.run_prompts(model, prompts, batch_size=size, **given))
    found, expected = batches
    assert list(found) == list(expected) == list(TARGETS)
    for name, values in found.items():
        both.close(values, expected[name] if lens else expected[name][:, 0])
        assert values.shape == ((len(texts), 3) if lens else (len(texts),))


def test_next_token_probabilities(kind):
    both = pair(kind)
    expected = nnterp.prompt_utils.next_token_probs_unsqueeze(both.judge, SIX)
    both.close(prompt_utils.next_token_probs_unsqueeze(both.ours, SIX), expected)
    both.close(nnsight_utils.compute_next_token_probs(both.ours, SIX), expected[:, 0])
    prompt = prompt_utils.Prompt.from_strings(SIX[0], TARGETS, both.ours)
    run = prompt.run(both.ours, interventions.logit_lens)
    theirs = nnterp.prompt_utils.Prompt.from_strings(SIX[0], TARGETS, both.judge).run(both.judge, THEIRS.logit_lens)
    for name, values in theirs.items():
        both.close(run[name], values)
