"""What users put onto a model's modules counts, as it does in the judge: attributes, methods, modules, copies."""

import copy
import io
import pickle

import pytest
import torch
from helpers import assert_close
from test_tl_config_live import CLOSE, assert_same_values
from test_tl_hooked_transformer import KINDS as ALL_KINDS
from test_tl_hooked_transformer import pair_of, tokens_of
from test_tl_native import SMALL, SWITCHES

from glassformer import _core

KINDS = {**{name: ALL_KINDS[name] for name in ("gpt2_like", "llama_like")}, "experts": SWITCHES["experts"]}


def identity(*names):
    def change(model):
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, torch.nn.Identity())

    return change


def without_norms(model):
    identity("blocks.0.ln1", "blocks.0.ln2", "blocks.1.ln1", "blocks.1.ln2", "ln_final")(model)
    model.cfg.normalization_type = None


def linear_mlp(model):
    torch.manual_seed(0)
    model.blocks[0].mlp = torch.nn.Linear(SMALL["d_model"], SMALL["d_model"]).double()


def local_attention(model):
    model.cfg.window_size = 2
    model.blocks[0].attn.attn_type = "local"


def exchange(model, name):
    first, second = (getattr(block, name) for block in model.blocks)
    setattr(model.blocks[0], name, second)
    setattr(model.blocks[1], name, first)


def other_config(model):
    cfg = copy.deepcopy(model.cfg)
    cfg.attn_scores_soft_cap = 0.5
    model.blocks[1].attn.cfg = cfg


CHANGES = {
    "scale": lambda model: setattr(model.blocks[0].attn, "attn_scale", -2.0),
    "eps": lambda model: setattr(model.blocks[1].ln1, "eps", 0.5),
    "eps of the last": lambda model: setattr(model.ln_final, "eps", 0.5),
    "attention": lambda model: setattr(model.blocks[1].attn, "forward", lambda query_input, **_: query_input),
    "mask": lambda model: setattr(model.blocks[0].attn, "apply_causal_mask", lambda scores, *_: scores),
    "scores": lambda model: setattr(
        model.blocks[0].attn, "calculate_attention_scores", lambda q, k: torch.ones(2, q.shape[2], 9, 9).double()
    ),
    "mlp": lambda model: setattr(model.blocks[0].mlp, "forward", lambda x: x * 2),
    "block": lambda model: setattr(model.blocks[1], "apply_mlp", lambda x: x * 2),
    "unembedding": lambda model: setattr(model.unembed, "forward", lambda x: x[..., :5]),
    "no ln1": identity("blocks.0.ln1"),
    "no last norm": identity("ln_final"),
    "last norm left out": lambda model: setattr(model.cfg, "normalization_type", None),
    "no norms": without_norms,
    "no mlp": identity("blocks.1.mlp"),
    "linear mlp": linear_mlp,
    "local": local_attention,
    "window": lambda model: (local_attention(model), setattr(model.cfg, "window_size", 3)),
    "config": other_config,
    "other order": lambda model: setattr(model, "blocks", torch.nn.ModuleList([*model.blocks][::-1])),
    "one block twice": lambda model: setattr(model, "blocks", torch.nn.ModuleList([model.blocks[0]] * 2)),
    "mlps exchanged": lambda model: exchange(model, "mlp"),
    "mlps exchanged and named": lambda model: (exchange(model, "mlp"), model.setup()),
    "exchanged": lambda model: setattr(model.blocks[0], "attn", copy.deepcopy(model.blocks[1].attn)),
    "fewer": lambda model: (setattr(model, "blocks", model.blocks[:1]), setattr(model.cfg, "n_layers", 1)),
    "first layer": lambda model: setattr(model.cfg, "n_layers", 1),
    "tied": lambda model: setattr(model.unembed, "W_U", torch.nn.Parameter(model.embed.W_E.T)),
}
OF_MLPS = {
    "activation": lambda model: setattr(model.blocks[0].mlp, "act_fn", torch.tanh),
    "activation as a module": lambda model: setattr(model.blocks[1].mlp, "act_fn", torch.nn.Tanh()),
}
OF_EXPERTS = {
    "activation of an expert": lambda model: setattr(model.blocks[0].mlp.experts[1], "act_fn", torch.tanh),
    "experts of a token": lambda model: setattr(model.blocks[0].mlp, "experts_per_token", 1),
}


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    return pair_of(KINDS[request.param])


def changes_of(kind):
    return {**CHANGES, **(OF_EXPERTS if kind == "experts" else OF_MLPS)}


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind in KINDS for change in changes_of(kind)])
def test_changes_count(kind, change):
    both, tokens = pair_of(KINDS[kind]), tokens_of()
    usual = both[1](tokens)
    for model in both:
        changes_of(kind)[change](model)
    with torch.no_grad():
        expected, found = (model.run_with_cache(tokens, return_cache_object=False) for model in both)
    assert found[0].shape != usual.shape or not torch.allclose(found[0], usual)
    assert_close(found[0], expected[0], CLOSE)
    assert_same_values(found[1], expected[1])


def test_changes_count_in_generation_and_may_be_taken_back(both):
    models = [copy.deepcopy(model) for model in both]
    tokens = tokens_of(2, 5)
    greedy = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    usual = models[1].generate(tokens, **greedy)
    for model in models:
        model.blocks[0].attn.forward = lambda query_input, **_: query_input * 3
    expected, found = (model.generate(tokens, use_past_kv_cache=False, **greedy) for model in models)
    assert torch.equal(found, expected) and not torch.equal(found, usual)
    del models[1].blocks[0].attn.forward
    assert torch.equal(models[1].generate(tokens, **greedy), usual)


@pytest.mark.parametrize("name", ["rotary_sin", "rotary_cos", "IGNORE"])
def test_buffers_that_are_changed_are_refused(name):
    _, ours = pair_of(KINDS["llama_like"])
    other = copy.deepcopy(ours)
    other.load_state_dict(ours.state_dict())
    tokens = tokens_of()
    assert torch.equal(other(tokens), ours(tokens))
    getattr(other.blocks[1].attn, name).fill_(0.3)
    with pytest.raises(_core.UnsupportedError, match=f"blocks.1.attn.{name} was changed"):
        other(tokens)
    ours.to(torch.bfloat16, print_details=False)(tokens)


def test_a_longer_table_of_angles_may_be_loaded():
    judge, ours = pair_of({**KINDS["llama_like"], "n_ctx": 32})
    for attn in (block.attn for block in judge.blocks):
        attn._extend_rotary_embeddings(64)
    assert not any(ours.load_state_dict(judge.state_dict()))
    assert_close(ours(tokens_of(2, 30)), judge(tokens_of(2, 30)), CLOSE)


def doubling(value, hook):
    hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
    return value * 2


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_a_file])
def test_copies_of_models_with_hooks(copied, both):
    ours = copy.deepcopy(both[1])
    tokens = tokens_of()
    bare = ours(tokens)
    ours.add_perma_hook("blocks.0.hook_resid_post", doubling)
    ours.add_hook("blocks.1.attn.hook_z", doubling)
    ours.add_hook("blocks.1.hook_resid_post", doubling, dir="bwd")
    hooked = ours(tokens)
    hooked.sum().backward()
    gradient = ours.embed.W_E.grad
    calls = ours.hook_dict["blocks.0.hook_resid_post"].ctx["calls"]
    other = copied(ours)
    other.zero_grad()
    made = other(tokens)
    assert torch.equal(made, hooked) and not torch.equal(made, bare)
    made.sum().backward()
    assert torch.equal(other.embed.W_E.grad, gradient)
    own, copies = (model.hook_dict["blocks.0.hook_resid_post"].ctx["calls"] for model in (ours, other))
    assert (own, copies) == ((calls + 1, calls) if copied is copy.deepcopy else (calls, calls + 1))
    other.reset_hooks(including_permanent=True)
    assert torch.equal(other(tokens), bare) and torch.equal(ours(tokens), hooked)


def test_subclasses_with_a_forward_of_their_own():
    made = []
    for model in pair_of(KINDS["gpt2_like"]):

        class Turned(type(model)):
            def forward(self, *given, **more):
                return -super().forward(*given, **more)

        model.__class__ = Turned
        options = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
        options["use_past_kv_cache"] = False
        streamed = [each.tolist() for each in model.generate_stream(tokens_of(), **options)]
        made.append((model.generate(tokens_of(), **options).tolist(), streamed))
    assert made[0] == made[1]


def test_caches_of_subclasses_with_a_forward_of_their_own():
    """Whether it calls the model's own or the modules."""
    judge, ours = pair_of(KINDS["gpt2_like"])
    tokens = tokens_of()
    for way in ("whole", "parts"):
        made = []
        for model in (judge, ours):
            base = next(cls for cls in type(model).__mro__ if cls.__name__ == "HookedTransformer")

            class Own(base):
                def forward(self, tokens, way=way, **more):
                    if way == "whole":
                        return -base.forward(self, tokens, **more)  # noqa: B023
                    return self.blocks[1](self.hook_embed(self.embed(tokens)))

            model.__class__ = Own
            made.append(model.run_with_cache(tokens, return_cache_object=False))
        assert_close(made[1][0], made[0][0], CLOSE)
        assert_same_values(made[1][1], made[0][1])


def test_models_without_layers():
    judge, ours = pair_of({"n_layers": 0, "act_fn": "gelu"})
    with torch.no_grad():
        expected, found = (model.run_with_cache(tokens_of(), return_cache_object=False) for model in (judge, ours))
    assert_close(found[0], expected[0], CLOSE)
    assert_same_values(found[1], expected[1])


@pytest.mark.parametrize("kind", ["gpt2_like", "llama_like", "bidirectional", "alibi"])
def test_padding_is_hidden_by_the_modules_too(kind):
    """Real places have the values of the engine, of a text alone, and (not in bidirectional models) the judge's."""
    judge, ours = pair_of({**ALL_KINDS, **SWITCHES}[kind])
    tokens, mask = tokens_of(length=6), torch.ones(2, 6, dtype=torch.int64)
    mask[0, :2] = 0
    with torch.no_grad():
        by_engine, alone = ours(tokens, attention_mask=mask), ours(tokens[:1, 2:])
        expected = judge(tokens, attention_mask=mask)
        ours.blocks[0].register_forward_hook(lambda *_: None)  # Now the modules run.
        assert not ours._engine.is_own()
        by_modules = ours(tokens, attention_mask=mask)
    real = mask.bool()
    assert_close(by_modules[real], by_engine[real], CLOSE)
    assert_close(by_engine[0, 2:], alone[0], CLOSE)
    if kind != "bidirectional":
        assert_close(by_engine[real], expected[real], CLOSE)
