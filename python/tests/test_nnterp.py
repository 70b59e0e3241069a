"""nnterp's vocabulary on models: numbers against transformers with hooks of torch, and what nnterp itself hasn't (any
order, prompts of different lengths, nothing computed twice). python/tests_peers compares with nnterp."""

import types

import pytest
import torch
from small_models import byte_tokenizer, published

from glassformer import InputError, OrderError, UnsupportedError
from glassformer.nnsight import LanguageModel, NNsight
from glassformer.nnterp import ModuleAccessor, StandardizedTransformer, get_rename_dict, nnsight_utils
from glassformer.nnterp.interventions import TargetPrompt, logit_lens, patchscope_generate, patchscope_lens
from glassformer.nnterp.prompt_utils import Prompt, get_first_tokens, run_prompts
from glassformer.nnterp.rename_utils import (
    AttnProbFunction,
    RenameConfig,
    RenamingError,
    check_model_renaming,
    get_ignores,
)

SIX = ["The cat sat on the mat", "The dog ran to the road", "The capital of France is"]
"""Texts of six tokens each."""
MIXED = ["The cat sat", "a", "The capital of France is", "hello said the king"]
KINDS = ["gpt2", "llama"]


class Reference:
    """The model of transformers, one text at a time."""

    def __init__(self, kind):
        self.model, self.folder = published(kind)
        self.modules = ModuleAccessor(self.model)
        # transformers computes the norms of llama in float32, whatever the dtype.
        self.tolerance = 1e-10 if kind == "gpt2" else 1e-5

    def ids(self, text):
        return torch.tensor([byte_tokenizer()(text).input_ids])

    @torch.no_grad()
    def run(self, text, change=None, layer=None, **options):
        """Its output, with `change(stream)` in place of the stream after a layer."""
        handle = None
        if change is not None:
            block = self.modules.layers[layer]
            handle = block.register_forward_hook(lambda _, __, output: change(output))
        try:
            return self.model(self.ids(text), **options)
        finally:
            if handle is not None:
                handle.remove()

    @torch.no_grad()
    def streams(self, text):
        """The stream after each block: `layer pos d_model`."""
        found = []
        handles = [
            block.register_forward_hook(lambda _, __, output: found.append(output[0])) for block in self.modules.layers
        ]
        self.model(self.ids(text))
        for handle in handles:
            handle.remove()
        return torch.stack(found)

    def close(self, found, expected):
        torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=self.tolerance, atol=self.tolerance)


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    reference = Reference(request.param)
    return reference, StandardizedTransformer(reference.folder, dtype=torch.float64)


def probs_of(output):
    return output.logits[:, -1].softmax(-1)


def test_the_lens(both):
    reference, model = both
    found = logit_lens(model, MIXED)
    for row, text in zip(found, MIXED, strict=True):
        with torch.no_grad():
            normed = reference.modules.ln_final(reference.streams(text)[:, -1])
            reference.close(row, reference.modules.lm_head(normed).softmax(-1))
        reference.close(row[-1:], probs_of(reference.run(text)))
    runs = run_prompts(model, [Prompt(text, {"a": [5, 300]}) for text in MIXED], batch_size=3)
    for probs, text in zip(runs["a"], MIXED, strict=True):
        reference.close(probs, probs_of(reference.run(text))[0, [5, 300]].sum())


@pytest.mark.parametrize("texts", [SIX, MIXED])
def test_patchscopes(both, texts):
    """Each source goes to the target of its place, at an index of that."""
    reference, model = both
    targets = [TargetPrompt(text, index) for text, index in zip(texts, (1, 0, -2, 4), strict=False)]
    sources = list(reversed(texts))
    found = patchscope_lens(model, sources, targets)
    for row, source, target in zip(found, sources, targets, strict=True):
        streams = reference.streams(source)[:, -1]
        for layer in range(3):

            def patched(stream, streams=streams, layer=layer, target=target):
                stream[:, target.index_to_patch] = streams[layer]
                return stream

            reference.close(row[layer][None], probs_of(reference.run(target.prompt, patched, layer)))


def test_patchscopes_of_latents_of_all_layers(both):
    """Each layer takes its own; nnterp takes the first ones."""
    _, model = both
    targets = [TargetPrompt(text, -1) for text in SIX]
    latents = nnsight_utils.get_token_activations(model, MIXED[:3])
    whole = patchscope_lens(model, None, targets, latents=latents)
    for layers in (2, [2, 0], [-1, 1]):
        chosen = [layers] if isinstance(layers, int) else layers
        torch.testing.assert_close(patchscope_lens(model, None, targets, layers, latents), whole[:, chosen])
        torch.testing.assert_close(patchscope_lens(model, None, targets, layers, latents[chosen]), whole[:, chosen])


def test_patchscopes_that_go_on(both):
    reference, model = both
    generated = patchscope_generate(model, MIXED[2], TargetPrompt(SIX[0], 2), 4, layers=[1])
    streams = reference.streams(MIXED[2])[:, -1]

    def first_patched(stream):
        if stream.shape[1] > 1:
            stream[:, 2] = streams[1]
        return stream

    handle = reference.modules.layers[1].register_forward_hook(lambda _, __, output: first_patched(output))
    expected = reference.model.generate(reference.ids(SIX[0]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    handle.remove()
    assert generated[1].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({}, slice(None)),
        ({"token_positions": 0}, [0]),
        ({"token_positions": -1}, [-1]),
        ({"token_positions": torch.tensor([0, -1])}, [0, -1]),
        ({"token_positions": slice(1, None)}, slice(1, None)),
        ({"token_positions": slice(-2, None)}, slice(-2, None)),
    ],
)
def test_steering_of_prompts_of_different_lengths(both, options, places):
    """Tokens count in each prompt."""
    reference, model = both
    vector = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    texts = [text for text in MIXED if text != "a"]
    with torch.no_grad(), model.trace(texts):
        model.steer(-2, vector, factor=3, **options)
        probs = model.next_token_probs
        logits = model.logits
    for row, text in enumerate(texts):

        def steered(stream):
            stream[:, places] += 3 * vector
            return stream

        output = reference.run(text, steered, 1)
        reference.close(probs[row : row + 1], probs_of(output))
        reference.close(logits[row, -output.logits.shape[1] :], output.logits[0])


def test_steering_that_comes_too_late(both):
    """What was steered belongs to the stream that it was made from."""
    _, model = both
    vector = torch.linspace(-1, 1, model.hidden_size, dtype=torch.float64)
    for options in ({}, {"token_positions": 2}, {"batch_index": 1}):
        with model.trace(SIX):
            model.steer(1, vector, **options)
            _ = model.logits
            model.steer(0, vector)
            with pytest.raises(OrderError, match=r"blocks\.1\.hook_resid_post.*blocks\.0\.hook_resid_post"):
                _ = model.logits
        with model.trace(SIX):
            model.steer([1, 0], vector, **options)
            _ = model.logits
    for options, message in [
        ({"token_positions": 6}, "token 6: prompt 0 has 6 tokens"),
        ({"token_positions": [0, -7]}, "token -7: prompt 0 has 6 tokens"),
        ({"token_positions": 1, "batch_index": 3}, "prompt 3: the trace has 3"),
        ({"batch_index": [0, -4]}, "prompt -4: the trace has 3"),
        ({"batch_index": [True, False]}, "a mask of 2: the trace has 3 prompts"),
        ({"token_positions": [True] * 5}, "a mask of 5: prompt 0 has 6 tokens"),
        ({"token_positions": 1.0}, "tokens: expected whole numbers, a mask or a slice; found 1.0"),
        ({"batch_index": "all"}, "prompts: expected whole numbers, a mask or a slice; found 'all'"),
    ]:
        with model.trace(SIX), pytest.raises(InputError, match=message):
            model.steer(1, vector, **options)
    with pytest.raises(UnsupportedError, match="no mask"), model.edit() as edited:
        edited.steer(1, vector, token_positions=[True] * 6)


def test_layers_that_are_not_there(both):
    _, model = both
    vector, last = torch.zeros(model.hidden_size, dtype=torch.float64), model.num_layers - 1
    with torch.no_grad(), model.trace(SIX):
        for missing in (last + 1, -last - 2):
            for asked in (
                lambda layer: model.layers_output[layer],
                lambda layer: model.attention_probabilities[layer],
                lambda layer: model.steer([0, layer], vector),
                lambda layer: model.skip_layers(0, layer),
            ):
                with pytest.raises(IndexError, match=f"layer {missing}: the model has {last + 1} layers"):
                    asked(missing)
        for wrong in (None, 1.0, slice(2), "1"):
            with pytest.raises(InputError, match=f"expected the number of a layer, 0 to {last}"):
                _ = model.mlps_input[wrong]
        with pytest.raises(InputError, match="the last comes before the first"):
            model.skip_layers(2, 1)
        clean = model.layers_output[last].clone()
        model.skip_layers(1, -1)
        assert torch.equal(model.layers_output[-1], model.layers_input[1])
        assert not torch.equal(model.layers_output[-1], clean)


def test_skipped_layers_take_the_stream_as_it_is(both):
    _, model = both
    with torch.no_grad(), model.trace(SIX):
        model.skip_layers(1, 2)
        before = model.layers_input[1]
        after = model.layers_output[2]
        inside = model.layers_output[1]
    assert torch.equal(before, after)
    assert torch.equal(before, inside)


def test_attention_probabilities(both):
    reference, model = both
    for text in MIXED:
        expected = reference.run(text, output_attentions=True).attentions
        with torch.no_grad(), model.trace(text):
            found = [model.attention_probabilities[layer] for layer in reversed(range(3))]
        for one, theirs in zip(reversed(found), expected, strict=True):
            reference.close(one, theirs)
    model.attention_probabilities.check_source()
    model.attention_probabilities.check_source(layer=-1, allow_dispatch=False, use_trace=False)


class Wrong(AttnProbFunction):
    """Looks somewhere else."""

    def __init__(self, name):
        self.name = name

    def get_attention_prob_source(self, attention_module, return_module_source=False):
        return attention_module.source if return_module_source else attention_module.source[self.name]


def test_attention_probabilities_from_elsewhere(both, capsys):
    _, model = both

    def at(name):
        return StandardizedTransformer(model.engine, rename_config=RenameConfig(attn_prob_source=Wrong(name)))

    right = at("hook_pattern")
    right.attention_probabilities.check_source()
    right.attention_probabilities.print_source(1)
    printed = capsys.readouterr().out
    assert "blocks.1.attn.hook_pattern" in printed
    assert "blocks.1.attn.hook_z" in printed
    with right.trace(SIX):
        assert torch.equal(right.attention_probabilities[1], right.layers[1].self_attn.source.hook_pattern.output)
    with pytest.raises(RenamingError, match="don't sum to 1"):
        at("hook_attn_scores").attention_probabilities.check_source()
    with pytest.raises(RenamingError, match=r"layer 2: shape .*; expected \(1, 4, 3, 3\)"):
        at("hook_z").attention_probabilities.check_source(2)


def test_little_is_computed(both):
    """The last positions in the last block, and what forks have in common once."""
    _, model = both
    copy = StandardizedTransformer(model.engine)
    opened, tracers = copy.trace, []

    def watched(*inputs, **options):
        tracers.append(opened(*inputs, **options))
        return tracers[-1]

    copy.trace = watched
    nnsight_utils.compute_next_token_probs(copy, SIX)
    work = tracers[-1].traces[0].work()
    assert work["blocks.0.hook_resid_post"] == 3 * 6
    assert work["blocks.2.hook_resid_post"] == work["logits"] == 3
    latents = torch.ones(3, 3, model.hidden_size, dtype=torch.float64)
    patchscope_lens(copy, None, [TargetPrompt(text, 4) for text in SIX], latents=latents)
    work = tracers[-1].traces[0].work()
    assert work["blocks.0.hook_mlp_out"] == 3 * 6
    assert work["blocks.1.hook_mlp_out"] == 3 * (6 + 2)  # Two positions of the prompts that are patched before.
    assert work["logits"] == 3 * 3


def test_next_tokens_of_a_generation(both):
    """Of the prompt at step 0, also when more is there by then; then of each step."""
    reference, model = both
    for with_grad in (False, True):
        with torch.set_grad_enabled(with_grad), model.generate(SIX[0], max_new_tokens=3, do_sample=False) as tracer:
            ids = tracer.result
            probs = model.next_token_probs
            steps = [model.next_token_probs for _ in tracer.iter[:]]
        reference.close(probs.detach(), probs_of(reference.run(SIX[0])))
        assert [int(each.argmax()) for each in steps] == ids[0, 6:].tolist()
        assert len(steps) == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_ids(both, side):
    """With a mask: tokens are those that it keeps."""
    reference, model = both
    rows = [reference.ids(text)[0] for text in ("The cat sat", SIX[2])]
    padded, mask = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.int64)
    for row, ids in enumerate(rows):
        place = slice(6 - len(ids), 6) if side == "left" else slice(0, len(ids))
        padded[row, place], mask[row, place] = ids, 1
    with torch.no_grad(), model.trace(padded, attention_mask=mask) as tracer:
        found = {idx: nnsight_utils.get_token_activations(model, idx=idx, tracer=tracer) for idx in (0, 2, -1, -3)}
        assert model.attention_mask.tolist() == mask.tolist()
        assert (model.input_ids * mask).tolist() == (padded * mask).tolist()
    for idx, values in found.items():
        for row, text in enumerate(("The cat sat", SIX[2])):
            reference.close(values[:, row], reference.streams(text)[:, idx])


def test_functions_on_models_without_standard_names(both):
    reference, model = both
    plain = LanguageModel(reference.folder, dtype=torch.float64)
    assert nnsight_utils.get_num_layers(plain) == 3
    assert nnsight_utils.get_attention(plain, 1).path == model.attentions[1].path
    for function in (logit_lens, nnsight_utils.get_token_activations, nnsight_utils.compute_next_token_probs):
        torch.testing.assert_close(function(plain, MIXED), function(model, MIXED))


def test_loading(both, demo_model):
    reference, model = both
    live = StandardizedTransformer(reference.model, tokenizer=byte_tokenizer())
    torch.testing.assert_close(logit_lens(live, SIX), logit_lens(model, SIX))
    assert live.layers[0]._module is reference.modules.layers[0]
    with pytest.raises(UnsupportedError, match="this machine"):
        StandardizedTransformer(reference.folder, remote=True)
    with pytest.raises(TypeError, match="no keyword no_such"):
        StandardizedTransformer(reference.folder, no_such=1)
    smollm = StandardizedTransformer(str(demo_model), device_map="auto", trust_remote_code=True, allow_dispatch=False)
    assert (smollm.num_layers, smollm.num_heads, smollm.hidden_size, smollm.vocab_size) == (30, 9, 576, 49152)
    closest = smollm.get_topk_closest_tokens(smollm.engine.trace("The capital of France is")["resid_post29"][0, -1], 1)
    assert list(closest) == ["ĠParis"]


def test_torch_modules(both):
    reference, model = both
    modules = ModuleAccessor(model)
    for name in ("embed_tokens", "ln_final", "lm_head"):
        parameters, expected = getattr(modules, name).state_dict(), getattr(reference.modules, name).state_dict()
        assert parameters.keys() == expected.keys()
        assert all(torch.equal(parameters[each], expected[each]) for each in expected)
    assert len(modules.layers) == 3
    assert modules.get_attention(1) is model.attentions[1]._module
    with pytest.raises(InputError, match="found Model"):
        ModuleAccessor(model.engine)


def test_names_of_ones_own(both):
    reference, _ = both
    named = StandardizedTransformer(
        reference.folder, rename={"lm_head": "unembed"}, rename_config=RenameConfig(mlp_name="no_such")
    )
    assert named.unembed is named.lm_head
    check_model_renaming(LanguageModel(reference.folder, rename=get_rename_dict()), "x", [])
    plain = LanguageModel(reference.folder)
    with pytest.raises(RenamingError, match=r"x has no module that is known as 'embed_tokens': name it in a Rename"):
        check_model_renaming(plain, "x", [])
    names = {name: new for name, new in get_rename_dict().items() if new != "self_attn"}
    other = LanguageModel(published("gpt2")[1], rename=names)
    with pytest.raises(RenamingError, match="x's blocks have no module that is known as 'self_attn'"):
        check_model_renaming(other, "x", ["mlp"])
    check_model_renaming(other, "x", ["attention"])


def test_ignored_modules():
    for kind, fields, expected in [
        ("opt", {}, ["mlp"]),
        ("gpt2", {}, []),
        ("gpt2", {"ignore_mlp": True}, ["mlp"]),
        ("opt", {"ignore_mlp": True, "ignore_attn": True}, ["mlp", "attention"]),
    ]:
        model = types.SimpleNamespace(config=types.SimpleNamespace(model_type=kind))
        assert get_ignores(model, RenameConfig(**fields)) == expected


# Tokenizers.


@pytest.mark.parametrize("given", ["own", "folder", "transformers"])
def test_a_tokenizer_without_a_space_before_texts(given):
    _, folder = published("gpt2", add_prefix_space=True)
    tokenizer = {"own": None, "folder": folder, "transformers": byte_tokenizer(True)}[given]
    model = StandardizedTransformer(folder, tokenizer=tokenizer)
    plain, reference = model.add_prefix_false_tokenizer, byte_tokenizer(False)
    for text in ("Paris", " Paris", "hello the king", "1135 "):
        assert plain(text)["input_ids"] == reference(text).input_ids
        assert model.tokenizer(text)["input_ids"] == byte_tokenizer(True)(text).input_ids
    assert plain is model.add_prefix_false_tokenizer
    assert (plain.pad_token, plain.eos_token, plain.padding_side) == ("<pad>", "</s>", model.tokenizer.padding_side)
    assert plain.chat_template == reference.chat_template
    assert get_first_tokens(["Paris", "king"], model) == get_first_tokens(["Paris", "king"], plain)


def test_keywords_of_tokenizers():
    folder = published("gpt2", add_prefix_space=True)[1]
    model = StandardizedTransformer(folder, tokenizer_kwargs={"add_prefix_space": False, "padding_side": "left"})
    assert model.tokenizer("Paris")["input_ids"] == byte_tokenizer(False)("Paris").input_ids
    with model.trace("Paris"):
        assert model.input_ids.tolist() == [byte_tokenizer(False)("Paris").input_ids]
    StandardizedTransformer(folder, tokenizer_kwargs={"add_prefix_space": True, "use_fast": True})
    plain = published("gpt2")[1]
    for options, name in [
        ({"add_prefix_space": True}, "add_prefix_space can't"),
        ({"padding_side": "right"}, "padding_side='right'; values are padded at the left"),
        ({"bos_token": "x"}, "bos_token can't be set"),
    ]:
        with pytest.raises(UnsupportedError, match=name):
            StandardizedTransformer(plain, tokenizer_kwargs=options)


def test_tokenizers_that_put_no_space_before_texts(both, demo_model):
    _, model = both
    assert model.add_prefix_false_tokenizer is model.tokenizer
    smollm = StandardizedTransformer(str(demo_model))
    assert smollm.add_prefix_false_tokenizer is smollm.tokenizer
    with pytest.raises(InputError, match="no tokenizer"):
        StandardizedTransformer(published("gpt2")[0]).add_prefix_false_tokenizer  # noqa: B018


def test_gradients_through_projections(both):
    reference, model = both
    with model.trace(SIX[0]):
        early, late = model.layers_output[0], model.layers_output[1]
        loss = model.project_on_vocab(late)[0, -1, 7]
        with loss.backward():
            found = early.grad.clone()
    streams = []

    def kept(_, __, output):
        output.retain_grad()
        streams.append(output)

    handle = reference.modules.layers[0].register_forward_hook(kept)
    ids = reference.ids(SIX[0])
    with torch.enable_grad():
        late = reference.model(ids, output_hidden_states=True).hidden_states[2]
        reference.modules.lm_head(reference.modules.ln_final(late))[0, -1, 7].backward()
    handle.remove()
    reference.close(found, streams[0].grad)
    assert isinstance(model._model, torch.nn.Module)


def test_gradients_through_steering(both):
    reference, model = both
    vector = torch.linspace(-1, 1, model.hidden_size, dtype=torch.float64, requires_grad=True)
    for options, places in [({}, slice(None)), ({"token_positions": -1}, [-1]), ({"token_positions": [0, 2]}, [0, 2])]:
        with model.trace(SIX[0]):
            model.steer(1, vector, factor=2, **options)
            loss = model.next_token_probs[0, 5].log()
        (found,) = torch.autograd.grad(loss, vector)

        def steered(_, __, output, places=places):
            output = output.clone()
            output[:, places] = output[:, places] + 2 * vector
            return output

        handle = reference.modules.layers[1].register_forward_hook(steered)
        logits = reference.model(reference.ids(SIX[0])).logits
        handle.remove()
        (expected,) = torch.autograd.grad(logits[0, -1].log_softmax(-1)[5], vector)
        reference.close(found, expected)
        assert found.abs().max() > 1e-2


@pytest.mark.parametrize("positions", [None, -1, 0, [0, -1]])
def test_steering_of_later_traces(both, positions):
    _, model = both
    vector = torch.linspace(-1, 1, model.hidden_size, dtype=torch.float64)
    texts = [text for text in MIXED if text != "a"]
    with model.edit() as edited:
        edited.steer([1, 0], vector, factor=3, token_positions=positions)
    with torch.no_grad(), edited.trace(texts):
        found = edited.next_token_probs
    with torch.no_grad(), model.trace(texts):
        model.steer([1, 0], vector, factor=3, token_positions=positions)
        expected = model.next_token_probs
    torch.testing.assert_close(found, expected)
    assert (found - nnsight_utils.compute_next_token_probs(model, texts)).abs().max() > 1e-4
    with pytest.raises(UnsupportedError, match="in a trace of a LanguageModel only"), model.edit():
        nnsight_utils.get_token_activations(model, tracer=1)


def test_values_that_are_no_engine_s(both):
    """NNsight computes with the modules of transformers; which positions are tokens it can't know."""
    reference, _ = both
    wrapped = NNsight(reference.model, rename=get_rename_dict())
    with torch.no_grad(), wrapped.trace(reference.ids(SIX[0])):
        stream = nnsight_utils.get_layer_output(wrapped, 1)
        probs = nnsight_utils.get_next_token_probs(wrapped)
        with pytest.raises(UnsupportedError, match="in a trace of a LanguageModel only"):
            nnsight_utils.get_token_activations(wrapped, tracer=1)
    reference.close(stream[0], reference.streams(SIX[0])[1])
    reference.close(probs, probs_of(reference.run(SIX[0])))


def test_edited_models(both):
    """Edits for later traces count in every function, on the model itself and on a copy."""
    reference, model = both

    def without_first(stream):
        stream[:, 0] = 0
        return stream

    with model.edit() as edited:
        edited.layers_output[0][:, 0] = 0
        assert edited.layers_output.model is edited
    expected = torch.cat([probs_of(reference.run(text, without_first, 0)) for text in SIX])
    reference.close(logit_lens(edited, SIX)[:, -1], expected)
    reference.close(nnsight_utils.compute_next_token_probs(edited, SIX), expected)
    unpatched = [TargetPrompt(text, -1) for text in SIX]
    reference.close(patchscope_lens(edited, SIX, unpatched, layers=1)[:, 0], expected)
    assert (nnsight_utils.compute_next_token_probs(model, SIX) - expected).abs().max() > 1e-3
    generated = patchscope_generate(edited, SIX[0], unpatched[0], 2, layers=[1])[1]
    assert int(generated[0, 6]) == int(expected[0].argmax())
    with edited.trace(SIX), torch.no_grad():
        stream = edited.layers_output[0]
        assert (stream[:, 0] == 0).all()
        assert edited.attention_probabilities[1].shape == (3, 4, 6, 6)
