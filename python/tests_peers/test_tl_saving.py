"""Saved and copied models, other types, a training step, and classes made of HookedTransformer, beside the judge's."""

import copy
import io
import pickle

import pytest
import torch
from helpers import assert_close
from test_tl_hooked_transformer import EXACT, KINDS, pair_of, some, tokens_of
from transformer_lens import HookedTransformer as Judge

from glassformer.transformer_lens import HookedTransformer


@pytest.fixture(params=KINDS)
def both(request):
    return pair_of(KINDS[request.param])


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def others(ours):
    """A model of this kind with other weights."""
    other = HookedTransformer({**ours.cfg.to_dict(), "seed": 77, "init_weights": True})
    assert not torch.equal(other.embed.W_E, ours.embed.W_E)
    return other


def test_state_dicts_in_files_both_ways(both):
    judge, ours = both
    tokens = tokens_of()
    other = others(ours)
    assert str(other.load_state_dict(through_a_file(ours.state_dict()))) == "<All keys matched successfully>"
    assert torch.equal(other(tokens), ours(tokens))
    other = others(ours)
    assert not any(other.load_state_dict(through_a_file(judge.state_dict())))
    assert_close(other(tokens), judge(tokens), EXACT)
    theirs = Judge(judge.cfg).double()  # Its experts come in float32.
    assert not any(theirs.load_state_dict(through_a_file(ours.state_dict())))
    assert_close(ours(tokens), theirs(tokens), EXACT)


def test_state_dicts_that_do_not_fit(both):
    for model in both:
        state = model.state_dict()
        first = state.pop("embed.W_E")
        assert model.load_state_dict(state, strict=False).missing_keys == ["embed.W_E"]
        extra = {**state, "embed.W_E": first, "more": first}
        assert model.load_state_dict(extra, strict=False).unexpected_keys == ["more"]
        for wrong in (state, extra, {**state, "embed.W_E": first[1:]}):
            with pytest.raises(RuntimeError, match="Error"):
                model.load_state_dict(wrong)


def test_values_may_be_assigned(both):
    judge, ours = both
    for model in both:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state["blocks.1.attn.W_O"] *= 2
        model.load_state_dict(state, assign=True)
    assert_close(ours(tokens_of()), judge(tokens_of()), EXACT)


def shifted(value, hook):
    return value + 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "file"])
def test_copies(copied, both):
    judge, ours = both
    tokens = tokens_of()
    before = ours(tokens)
    if copied == "file":
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = copied(ours)
    assert twin.cfg == ours.cfg and torch.equal(twin(tokens), before)
    assert list(twin.hook_dict) == list(ours.hook_dict)
    assert all(twin.hook_dict[name] is not point for name, point in ours.hook_dict.items())
    theirs = copy.deepcopy(judge)
    with torch.no_grad():
        for model in (twin, theirs):
            model.unembed.b_U.add_(1)
    assert_close(twin(tokens), theirs(tokens), EXACT)
    assert torch.equal(ours(tokens), before)
    with twin.hooks([("blocks.0.hook_resid_post", shifted)]), theirs.hooks([("blocks.0.hook_resid_post", shifted)]):
        assert_close(twin(tokens), theirs(tokens), EXACT)
    assert torch.equal(ours(tokens), before)


def test_hooks_go_along_with_copies():
    judge, ours = pair_of(KINDS["gpt2_like"])
    for model in (judge, ours):
        model.add_hook("blocks.0.hook_resid_post", shifted)
    twin = copy.deepcopy(ours)
    assert_close(twin(tokens_of()), judge(tokens_of()), EXACT)
    twin.reset_hooks()
    assert_close(ours(tokens_of()), judge(tokens_of()), EXACT)
    judge.reset_hooks()
    assert_close(twin(tokens_of()), judge(tokens_of()), EXACT)


MOVES = {
    "double": (lambda model: model.to(torch.float64), EXACT),
    "float": (lambda model: model.float(), 1e-4),
    "to float": (lambda model: model.to(torch.float32), 1e-4),
    "half": (lambda model: model.half(), 0.05),
    "bfloat16": (lambda model: model.to(torch.bfloat16), 0.2),
    "cpu": (lambda model: model.to("cpu"), EXACT),
    "device": (lambda model: model.to(torch.device("cpu")), EXACT),
    "cpu()": (lambda model: model.cpu(), EXACT),
    "back": (lambda model: model.to(torch.float32).to(torch.float64), 1e-4),
}


@pytest.mark.parametrize("move", MOVES)
def test_types_and_devices(move, both):
    change, tolerance = MOVES[move]
    judge, ours = both
    ours(tokens_of())  # What was built for the former type must go.
    before = judge(tokens_of())
    judge, found = change(judge), change(ours)
    assert found is ours
    assert (found.cfg.dtype, found.cfg.device) == (judge.cfg.dtype, judge.cfg.device)
    assert [weight.dtype for weight in found.parameters()] == [weight.dtype for weight in judge.parameters()]
    with torch.no_grad():
        logits = found(tokens_of())
    assert logits.dtype == judge.embed.W_E.dtype
    assert_close(logits.double(), before.double(), tolerance)


def test_modes_and_gradients(both):
    judge, ours = both
    for model in both:
        assert model.eval() is model and not model.training and not model.blocks[0].attn.training
        assert model.train() is model and model.training and model.blocks[0].attn.training
        assert model.requires_grad_(False) is model and not any(weight.requires_grad for weight in model.parameters())
        assert not model(tokens_of()).requires_grad
        model.unembed.W_U.requires_grad_(True)
        some(model(tokens_of())).backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is not None] == ["unembed.W_U"]
    assert_close(ours.unembed.W_U.grad, judge.unembed.W_U.grad, EXACT)
    for model in both:
        model.zero_grad()
        assert model.unembed.W_U.grad is None


def test_steps_of_adam(both):
    judge, ours = both
    tokens = tokens_of()
    losses = []
    for model in both:
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-2)
        losses.append([])
        for step in range(4):
            optimiser.zero_grad()
            loss = model(tokens).square().mean()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
            if step == 1:  # A state of training goes through a file.
                saved = through_a_file(optimiser.state_dict())
                optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-2)
                optimiser.load_state_dict(saved)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[1][3] < losses[1][0]
    for (name, expected), found in zip(judge.named_parameters(), ours.parameters(), strict=True):
        assert_close(found, expected, 1e-5, name)


def with_a_head(base):
    class WithAHead(base):
        """The model with a classifier on its last residual stream, and a gate on its embeddings."""

        def __init__(self, cfg, **options):
            super().__init__(cfg, **options)
            self.classifier = torch.nn.Linear(cfg.d_model, 3, dtype=cfg.dtype)
            self.gate = torch.nn.Parameter(torch.ones(cfg.d_model, dtype=cfg.dtype))
            self.setup()

        def forward(self, tokens, scale=1.0, **options):
            last = f"blocks.{self.cfg.n_layers - 1}.hook_resid_post"
            kept = []

            def keep(value, hook):
                kept.append(value)

            def gated(value, hook):
                return value * self.gate * scale

            with self.hooks([(last, keep), ("hook_embed", gated)]):
                logits = super().forward(tokens, **options)
            return self.classifier(kept[0][:, -1]), logits

    return WithAHead


def test_classes_of_it_with_a_forward_of_their_own(both):
    first = both[0]
    models = [with_a_head(Judge)(first.cfg).double(), with_a_head(HookedTransformer)(both[1].cfg)]
    state = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    state |= first.state_dict()
    for model in models:
        assert not any(model.load_state_dict(state))
        assert "classifier" in model.mod_dict
    results = []
    for model in models:
        classes, logits = model(tokens_of(), scale=0.7)
        (some(classes) + some(logits)).backward()
        results.append([classes, logits, model.gate.grad, model.classifier.weight.grad, model.embed.W_E.grad])
        assert not model.hook_dict["hook_embed"].fwd_hooks
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, 2e-5)
    names = [[name for name, _ in model.named_parameters()] for model in models]
    assert names[0] == names[1]
    caches = [model.run_with_cache(tokens_of(), return_cache_object=False)[1] for model in models]
    assert list(caches[0]) == list(caches[1])
    for name, expected in caches[0].items():
        assert_close(caches[1][name], expected, EXACT, name)
