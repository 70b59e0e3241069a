"""Losses, draws and activation functions: TransformerLens' numbers and ours."""

import itertools
import types

import pandas
import pytest
import torch
from helpers import assert_close
from torch.nn import functional
from transformer_lens import utilities as judge
from transformer_lens.factories.activation_function_factory import ActivationFunctionFactory as JudgesFactory
from transformer_lens.utilities import activation_functions as judge_functions

from glassformer.transformer_lens import utilities as ours
from glassformer.transformer_lens.factories.activation_function_factory import ActivationFunctionFactory
from glassformer.transformer_lens.utilities import activation_functions as our_functions

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
# The judge's errors and torch's; ours are of a class among the first.
REFUSED = (AssertionError, KeyError, ValueError, RuntimeError)


def random(*shape, dtype=torch.float64, seed=0, scale=3.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def random_tokens(*shape, d_vocab, seed=0):
    return torch.randint(0, d_vocab, shape, generator=torch.Generator().manual_seed(seed))


MASKS = {
    "none": None,
    "left": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]),
    "holes": torch.tensor([[1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 1, 1]]).bool(),
    "nothing": torch.zeros(3, 7, dtype=torch.int64),
}


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_losses_and_their_gradients(dtype, mask, per_token):
    results = []
    for side in (ours, judge):
        logits = random(3, 7, 50, dtype=dtype).requires_grad_()
        loss = side.lm_cross_entropy_loss(logits, random_tokens(3, 7, d_vocab=50), MASKS[mask], per_token)
        (loss * random(*loss.shape, seed=1).to(dtype)).sum().backward()
        results.append((loss.detach(), logits.grad))
    for found, expected in zip(*results, strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found.isnan(), expected.isnan())
        assert_close(found.nan_to_num(), expected.nan_to_num(), TOLERANCES[dtype], mask)


@pytest.mark.parametrize("shape,d_vocab", [((1, 2), 3), ((7,), 5), ((2, 3, 4), 9), ((4, 300), 9001), ((2, 1), 4)])
def test_losses_of_other_shapes(shape, d_vocab):
    logits, tokens = random(*shape, d_vocab), random_tokens(*shape, d_vocab=d_vocab)
    for given in (logits, logits.expand(2, *logits.shape)[1].mT.contiguous().mT):  # Rows that don't lie in one piece.
        for per_token in (True, False):
            found, expected = (side.lm_cross_entropy_loss(given, tokens, None, per_token) for side in (ours, judge))
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_accuracies():
    for dtype, shape in itertools.product(TOLERANCES, [(1, 2), (3, 40), (2, 1)]):
        logits, tokens = random(*shape, 4, dtype=dtype), random_tokens(*shape, d_vocab=4)
        for per_token in (True, False):
            found, expected = (side.lm_accuracy(logits, tokens, per_token) for side in (ours, judge))
            assert found.dtype == expected.dtype
            assert torch.allclose(found.float(), expected.float(), rtol=0, atol=1e-7, equal_nan=True)


WRONG_LOSSES = [
    (random(2, 3, 5), torch.tensor([[0, 1, 5], [0, 0, 0]]), None, "no token 5"),
    (random(2, 3, 5), torch.tensor([[0, 1, 2], [0, -1, 0]]), None, "no token -1"),
    (random(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64), None, r"\[2, 3, 5\] and tokens \[2, 4\]"),
    (random(2, 3, 5), torch.zeros(3, 3, dtype=torch.int64), None, r"\[2, 3, 5\] and tokens \[3, 3\]"),
    (random(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 2), r"attention_mask \[2, 2\]"),
    (random(2, 3, 5), torch.zeros(2, 3), None, "whole numbers; found Float"),
    (torch.ones(2, 3, 5, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), None, "floating point; found Long"),
]


@pytest.mark.parametrize("logits,tokens,mask,message", WRONG_LOSSES, ids=range(len(WRONG_LOSSES)))
def test_losses_that_mean_nothing(logits, tokens, mask, message):
    with pytest.raises(REFUSED):
        judge.lm_cross_entropy_loss(logits, tokens, mask)
    for per_token in (True, False):
        with pytest.raises(ValueError, match=message):
            ours.lm_cross_entropy_loss(logits, tokens, mask, per_token)


def test_a_batch_of_logits_with_tokens_of_one_text_is_refused():
    """The judge takes the first row for all."""
    with pytest.raises(ValueError, match="expected … pos d_vocab"):
        ours.lm_cross_entropy_loss(random(2, 3, 5), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected … pos d_vocab"):
        ours.lm_accuracy(random(2, 3, 5), torch.zeros(1, 3, dtype=torch.int64))


RULES = [
    {},
    {"temperature": 0.0, "freq_penalty": 2.0, "top_k": -3, "top_p": 7.0},
    {"temperature": 0.0, "repetition_penalty": 5.0},
    {"temperature": 0.7, "repetition_penalty": 5.0, "freq_penalty": 0.7},
    {"freq_penalty": -5.0},
    {"freq_penalty": 1.5, "temperature": 3.0},
    {"top_k": 4, "top_p": 9.0},
    {"top_k": 10_000, "top_p": 0.1},
    {"top_p": 0.6, "temperature": 1.4},
]


def drawn(side, logits, **options):
    torch.manual_seed(3)
    return torch.stack([side.sample_logits(logits, **options) for _ in range(60)])


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("with_tokens", [True, False])
def test_draws(rules, with_tokens):
    logits = random(5, 60)
    kept = logits.clone()
    tokens = random_tokens(5, 12, d_vocab=20)
    given = dict(rules)
    if with_tokens:
        given["tokens"] = tokens
    elif rules.get("freq_penalty", 0) > 0 and rules.get("temperature") != 0.0:
        for side in (ours, judge):
            with pytest.raises((AssertionError, ValueError)):
                side.sample_logits(logits, **given)
        return
    found, expected = (drawn(side, logits, **given) for side in (ours, judge))
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert torch.equal(logits, kept)
    assert rules.get("temperature") == 0.0 or found.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("shape", [(9,), (2, 3, 9), (1, 9)])
def test_draws_of_other_shapes(shape):
    for options in ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.4}):
        found, expected = (drawn(side, random(*shape).requires_grad_(), **options) for side in (ours, judge))
        assert found.shape == expected.shape and torch.equal(found, expected)


def test_draws_that_mean_nothing():
    logits, tokens = random(2, 9), random_tokens(2, 4, d_vocab=9)
    for options in ({"top_k": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": -1.0}):
        for side in (ours, judge):
            with pytest.raises((AssertionError, ValueError)):
                side.sample_logits(logits, **options)
    for wrong in (tokens.view(-1), tokens[:, :, None]):
        for side in (ours, judge):
            with pytest.raises((AssertionError, ValueError)):
                side.sample_logits(logits, freq_penalty=1.0, tokens=wrong)
    with pytest.raises(ValueError, match="3 texts for 2 rows"):
        ours.sample_logits(logits, freq_penalty=1.0, tokens=tokens[:1].repeat(3, 1))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", judge_functions.SUPPORTED_ACTIVATIONS)
def test_activation_functions(name, dtype):
    assert list(our_functions.SUPPORTED_ACTIVATIONS) == list(judge_functions.SUPPORTED_ACTIVATIONS)
    results = []
    for functions in (our_functions, judge_functions):
        x = random(3, 5, 40, dtype=dtype)
        x[0, 0, :4] = torch.tensor([0.0, -1e-7, 30.0, -30.0])
        x.requires_grad_()
        made = functions.SUPPORTED_ACTIVATIONS[name](x)
        (made * random(3, 5, 40, seed=1).to(dtype)).sum().backward()
        results.append((made.detach(), x.grad))
    # The judge's gelu_fast knows sqrt(2/pi) to ten digits; in 16 bits its formulas round after every operation.
    tolerance = 1e-10 if dtype is torch.float64 else TOLERANCES[dtype] * (3 if dtype is torch.bfloat16 else 10)
    for found, expected in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert_close(found, expected, tolerance, name)


def test_xielu_that_learns():
    modules = [functions.XIELU(alpha_p_init=0.7, beta_init=0.4) for functions in (our_functions, judge_functions)]
    state = modules[1].state_dict()
    assert list(modules[0].state_dict()) == list(state)
    for name, number in modules[0].state_dict().items():
        assert number.dtype == state[name].dtype and abs(number - state[name]) < 1e-6
    modules[0].load_state_dict(state)
    results = []
    for module in modules:
        x = random(4, 50).requires_grad_()
        made = module(x)
        made.square().sum().backward()
        results.append((made.detach(), x.grad, module.alpha_p.grad, module.alpha_n.grad))
        assert module(x.float()).dtype == torch.float32
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, 1e-6 if found.dtype == torch.float32 else 1e-12, "xielu")


def test_soft_caps():
    x = random(4, 6)
    for cap in (None, -1.0, 0, 0.0, 2.5, 30):
        assert our_functions.softcap_enabled(cap) == judge_functions.softcap_enabled(cap)
        found, expected = (functions.apply_softcap(x, cap) for functions in (our_functions, judge_functions))
        assert (found is x) == (expected is x)
        assert_close(found, expected, 1e-14, str(cap))
    assert our_functions.SOFTCAP_DISABLED == judge_functions.SOFTCAP_DISABLED


def test_the_function_of_a_config():
    for name in judge_functions.SUPPORTED_ACTIVATIONS:
        cfg = types.SimpleNamespace(act_fn=name)
        found, expected = (each.pick_activation_function(cfg) for each in (ActivationFunctionFactory, JudgesFactory))
        assert isinstance(found, torch.nn.Module) == isinstance(expected, torch.nn.Module)
        assert_close(found(random(2, 9)).detach(), expected(random(2, 9)).detach(), 1e-6, name)
    for name in (None, "gelu_old", "tanh"):
        for factory in (ActivationFunctionFactory, JudgesFactory):
            with pytest.raises(ValueError):
                factory.pick_activation_function(types.SimpleNamespace(act_fn=name))


class Letters:
    def decode(self, tokens):
        return "".join(chr(97 + token) for token in tokens)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_logits_as_a_table(dtype):
    logits = random(20, dtype=dtype)
    logits[3] = -200.0  # Its probability is 0 in float32; its logarithm isn't.
    for tokenizer, top_k in itertools.product([None, Letters()], [None, 5, 100, 0]):
        found, expected = (side.logits_to_df(logits.requires_grad_(), tokenizer, top_k) for side in (ours, judge))
        pandas.testing.assert_frame_equal(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="one position"):
        ours.logits_to_df(random(2, 3))


def test_the_mathematics_is_the_cores(monkeypatch):
    """Nothing here is computed by torch from Python."""

    def refuse(*args, **options):
        raise AssertionError("computed in Python")

    for owner, names in (
        (torch, ["matmul", "softmax", "log_softmax", "einsum", "bmm", "logsumexp", "multinomial", "tanh", "exp"]),
        (functional, ["softmax", "log_softmax", "gelu", "relu", "silu", "softplus", "linear", "cross_entropy"]),
        (torch.Tensor, ["__matmul__", "matmul", "softmax", "log_softmax", "logsumexp", "topk", "sort", "argmax"]),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
    logits, tokens = random(2, 4, 9), random_tokens(2, 4, d_vocab=9)
    for per_token in (True, False):
        ours.lm_cross_entropy_loss(logits, tokens, torch.ones(2, 4), per_token)
        ours.lm_accuracy(logits, tokens, per_token)
    ours.sample_logits(logits[:, -1], top_p=0.5, freq_penalty=0.5, repetition_penalty=1.2, tokens=tokens)
    ours.sample_logits(logits[:, -1], top_k=5)
    for function in our_functions.SUPPORTED_ACTIVATIONS.values():
        function(logits)
    our_functions.XIELU()(logits)
    ours.logits_to_df(logits[0, 0])
