"""StandardizedTransformer: every value is nnterp's, and every change does what it does there."""

import nnterp
import pytest
import torch
from nnterp_judge import KINDS, MIXED, SIX, asked, pair

from glassformer import InputError
from glassformer.nnterp import nnsight_utils

ACCESSORS = ["layers_input", "attentions_input", "attentions_output", "mlps_input", "mlps_output", "layers_output"]
"""In the order in which a block computes them: nnterp can't be asked in another one."""
pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_numbers(kind):
    both = pair(kind)
    for name in ("num_layers", "num_heads", "hidden_size", "vocab_size"):
        assert getattr(both.ours, name) == getattr(both.judge, name) > 0
    for name in ("layers_output", "attentions_output", "mlps_output", "layers_input"):
        assert isinstance(getattr(both.ours, name).returns_tuple, bool)
    assert both.ours.detect_layer_output_type() is None


@pytest.mark.parametrize("prompts", [SIX[0], SIX, [[3, 300, 5, 7]], MIXED[:1]])
def test_values(kind, prompts):
    def body(model):
        yield model.token_embeddings
        for layer in range(model.num_layers):
            for name in ACCESSORS:
                yield getattr(model, name)[layer]
        yield model.ln_final.output
        yield model.logits
        yield model.next_token_probs

    pair(kind).compare(prompts, body)


def test_values_in_any_order(kind):
    """nnterp raises here."""
    both = pair(kind)

    def forward(model):
        return [getattr(model, name)[layer] for layer in range(model.num_layers) for name in ACCESSORS]

    def backward(model):
        return [
            getattr(model, name)[layer] for layer in reversed(range(model.num_layers)) for name in reversed(ACCESSORS)
        ]

    found = asked(both.ours, SIX, backward)
    for ours, theirs in zip(reversed(found), asked(both.judge, SIX, forward), strict=True):
        both.close(ours, theirs)


def test_values_of_prompts_of_different_lengths(kind):
    both = pair(kind)

    def body(model):
        return [model.layers_output[1], model.mlps_output[2], model.logits]

    padded = asked(both.ours, MIXED, body)
    lengths = [len(both.ours.tokenizer(text).input_ids) for text in MIXED]
    for row, (text, length) in enumerate(zip(MIXED, lengths, strict=True)):
        for ours, theirs in zip(padded, asked(both.judge, text, body), strict=True):
            both.close(ours[row : row + 1, max(lengths) - length :], theirs)
            assert (ours[row, : max(lengths) - length] == 0).all()


@pytest.mark.parametrize("name", ACCESSORS)
@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("change", ["set", "assign", "in_place", "heads"])
def test_changes(kind, name, layer, change):
    both = pair(kind)
    ramp = torch.linspace(-1, 2, both.ours.hidden_size, dtype=torch.float64)

    def body(model):
        values = getattr(model, name)
        if model is both.judge and name == "attentions_input" and change in ("set", "in_place"):
            # nnterp gives llama's attention, which takes its input by name, a second one.
            values[layer][:] = values[layer].flip(0) * 1.5 if change == "set" else values[layer] * ramp
        elif change == "set":
            values[layer] = values[layer].flip(0) * 1.5
        elif change == "assign":
            values[layer][:, 2] = 0.25
        elif change == "in_place":
            values[layer] *= ramp
        else:
            values[layer][1:, -2:, :7].mul_(-1)
        return [model.logits]

    (changed,) = both.compare(SIX, body)
    (plain,) = asked(both.ours, SIX, lambda model: [model.logits])
    assert (changed - plain).abs().max() > 1e-3


def test_modules(kind):
    both = pair(kind)
    for layer in (0, 1, -1):
        assert both.ours.attentions[layer] is both.ours.layers[layer].self_attn
        assert both.ours.mlps[layer] is both.ours.mlps(layer) is both.ours.layers[layer].mlp
        assert type(both.judge.attentions[layer]._module).__name__ in repr(both.ours.attentions[layer])
    with pytest.raises(InputError, match="use attentions_input or attentions_output"):
        both.ours.attentions[0] = 1
    with pytest.raises(InputError, match="use mlps_input or mlps_output"):
        both.ours.mlps[0] = 1


@pytest.mark.parametrize("prompts", [SIX[0], SIX, MIXED])
def test_inputs(kind, prompts):
    both = pair(kind)

    def body(model):
        yield model.input_ids
        yield model.attention_mask
        yield torch.tensor(model.input_size)

    ids, mask, size = asked(both.ours, prompts, body)
    their_ids, their_mask, their_size = asked(both.judge, prompts, body)
    assert size.tolist() == their_size.tolist()
    assert mask.tolist() == their_mask.tolist()
    assert mask.dtype == their_mask.dtype == ids.dtype == their_ids.dtype
    assert (ids * mask).tolist() == (their_ids * their_mask).tolist()


def test_token_embeddings_can_be_set(kind):
    def body(model):
        model.token_embeddings = model.token_embeddings.flip(0)
        model.token_embeddings[:, 1] *= 2
        return [model.logits]

    pair(kind).compare(SIX, body)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_attention_probabilities(kind, layer):
    both = pair(kind, enable_attention_probs=True)
    assert both.ours.attn_probs_available is both.judge.attn_probs_available is True
    (probs,) = both.compare(SIX, lambda model: [model.attention_probabilities[layer]])
    assert probs.shape == (5, both.ours.num_heads, 6, 6)

    def renormalised(model):
        probs = model.attention_probabilities[layer]
        probs[:, :, :, 0] = 0
        probs /= probs.sum(dim=-1, keepdim=True).clamp(min=1e-3)
        return [model.logits]

    def replaced(model):
        model.attention_probabilities[layer] = model.attention_probabilities[layer].flip(1).tril(-1) * 0.5
        return [model.logits]

    (plain,) = asked(both.ours, SIX, lambda model: [model.logits])
    for body in (renormalised, replaced):
        (changed,) = both.compare(SIX, body)
        assert (changed - plain).abs().max() > 1e-3


def test_attention_probabilities_need_not_be_enabled(kind):
    both = pair(kind)
    assert both.ours.attn_probs_available
    for ours, theirs in zip(
        asked(both.ours, SIX, lambda model: [model.attention_probabilities[1]]),
        asked(pair(kind, True).judge, SIX, lambda model: [model.attention_probabilities[1]]),
        strict=True,
    ):
        both.close(ours, theirs)
    with pytest.raises(nnterp.rename_utils.RenamingError):
        asked(both.judge, SIX, lambda model: [model.attention_probabilities[1]])


@pytest.mark.parametrize("layers", [(0, 0), (1, 1), (1, 2), (0, 2), (2, 2)])
@pytest.mark.parametrize("given", [False, True])
def test_skipped_layers(kind, layers, given):
    first, last = layers

    def body(model):
        value = model.layers_input[first].flip(0) * 2 if given else None
        if first == last:
            model.skip_layer(first, skip_with=value)
        else:
            model.skip_layers(first, last, skip_with=value)
        return [model.logits]

    (changed,) = pair(kind).compare(SIX, body)
    (plain,) = asked(pair(kind).ours, SIX, lambda model: [model.logits])
    assert (changed - plain).abs().max() > 1e-3


STEERED = {
    "all": {},
    "factor": {"factor": -2.5},
    "layers": {"layers": [2, 0]},
    "token": {"token_positions": 1},
    "last_token": {"token_positions": -1},
    "tokens": {"token_positions": [1, 3, -1]},
    "tensor": {"token_positions": torch.tensor([0, 2])},
    "prompt": {"batch_index": 2},
    "prompts": {"batch_index": [0, 4]},
    "pairs": {"batch_index": [0, 3], "token_positions": [1, -2]},
    "one_of_prompts": {"batch_index": torch.tensor([0, 3]), "token_positions": 2},
    "twice": {"token_positions": [1, 1]},
    "slice": {"token_positions": slice(1, 5, 2)},
    "mask": {"token_positions": torch.tensor([False, True, True, False, False, True])},
    "slice_of_prompts": {"batch_index": [0, 3], "token_positions": slice(-2, None)},
    "mask_of_a_prompt": {"batch_index": 1, "token_positions": torch.tensor([True, False, True, False, False, False])},
    "mask_of_prompts": {"batch_index": torch.tensor([True, False, False, True, False])},
}


@pytest.mark.parametrize("options", STEERED.values(), ids=STEERED)
def test_steering(kind, options):
    both = pair(kind)
    vector = torch.randn(both.ours.hidden_size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def body(model):
        model.steer(**{"layers": 1, "steering_vector": vector} | options)
        return [model.logits]

    (changed,) = both.compare(SIX, body)
    (plain,) = asked(both.ours, SIX, lambda model: [model.logits])
    assert (changed - plain).abs().max() > 1e-3


def test_steering_by_the_old_name(kind):
    both = pair(kind)
    vector = torch.ones(both.ours.hidden_size, dtype=torch.float64)

    def body(model):
        with pytest.warns(DeprecationWarning):
            model.steer(0, vector, positions=2)
        return [model.logits]

    (found,) = asked(both.ours, SIX, body)
    (expected,) = asked(both.judge, SIX, lambda model: [model.steer(0, vector, token_positions=2), model.logits][1:])
    both.close(found, expected)
    with both.ours.trace(SIX), pytest.raises(InputError, match="old name"):
        both.ours.steer(0, vector, positions=2, token_positions=2)


def test_the_vocabulary(kind):
    both = pair(kind)
    hidden = torch.randn(4, both.ours.hidden_size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        for given in (hidden, hidden[0], hidden[None]):
            for project in ("method", "function"):
                found, expected = (
                    model.project_on_vocab(given) if project == "method" else module.project_on_vocab(model, given)
                    for model, module in ((both.ours, nnsight_utils), (both.judge, nnterp.nnsight_utils))
                )
                both.close(found, expected)
        for given, k in [(hidden, 5), (hidden[1], 3), (hidden[:1], 1)]:
            found, expected = (model.get_topk_closest_tokens(given, k) for model in (both.ours, both.judge))
            for ours, theirs in zip(
                *((each if given.ndim == 2 else [each]) for each in (found, expected)), strict=True
            ):
                assert list(ours) == list(theirs)
                assert len(ours) == k
                assert ours == pytest.approx(theirs, rel=both.tolerance)
        for given in (hidden[None], hidden[:, 1:], hidden[0, 1:]):
            with pytest.raises(InputError, match=f"expected d_model={both.ours.hidden_size}"):
                both.ours.get_topk_closest_tokens(given)
        ids, probs = torch.tensor([5, 300]), torch.tensor([0.25, 0.5])
        assert both.ours.probs_to_dict(ids, probs) == both.judge.probs_to_dict(ids, probs)


def test_functions(kind):
    """Those of nnsight_utils, on our model and on nnterp's."""
    both = pair(kind)

    def body(model, module):
        yield module.get_layer_input(model, 1)
        yield module.get_attention_output(model, 1)
        yield module.get_mlp_output(model, 1)
        yield module.get_layer_output(model, 1)
        module.set_layer_output(model, 2, module.get_layer_output(model, 2) * 2)
        yield module.get_logits(model)
        yield module.get_next_token_probs(model)

    found = asked(both.ours, SIX, lambda model: body(model, nnsight_utils))
    expected = asked(both.judge, SIX, lambda model: body(model, nnterp.nnsight_utils))
    for ours, theirs in zip(found, expected, strict=True):
        both.close(ours, theirs)
    assert nnsight_utils.get_num_layers(both.ours) == nnterp.nnsight_utils.get_num_layers(both.judge) == 3
    for name in ("get_embed_tokens", "get_layers", "get_unembed_norm", "get_unembed"):
        ours, theirs = getattr(nnsight_utils, name)(both.ours), getattr(nnterp.nnsight_utils, name)(both.judge)
        assert ours.path == theirs.path
    for name in ("get_layer", "get_attention", "get_mlp"):
        ours, theirs = getattr(nnsight_utils, name)(both.ours, -1), getattr(nnterp.nnsight_utils, name)(both.judge, -1)
        assert ours.path == theirs.path
