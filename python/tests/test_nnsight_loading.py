"""Language models in nnsight's vocabulary: where they come from, their torch modules, what they are given."""

import json
import shutil
import warnings

import pytest
import torch
from small_models import byte_tokenizer, published
from tiny_models import make_model

import glassformer
from glassformer.nnsight import LanguageModel

KINDS = ["gpt2", "llama_grouped"]
TEXT = "The capital of France is"


def test_sources():
    reference, folder = published("gpt2", torch.float32)
    ids = byte_tokenizer()(TEXT)["input_ids"]
    expected = reference(torch.tensor([ids])).logits
    engine = glassformer.load(folder)
    made = [
        LanguageModel(folder, device_map="auto", dispatch=True),
        LanguageModel(reference, tokenizer=byte_tokenizer()),
        LanguageModel(engine),
        LanguageModel(folder, torch_dtype=torch.float32, trust_remote_code=True, attn_implementation="eager"),
    ]
    for model in made:
        with model.trace(TEXT):
            logits = model.output.logits
        torch.testing.assert_close(logits.detach().as_subclass(torch.Tensor), expected.detach(), rtol=0, atol=1e-4)
        assert model.config.model_type == "gpt2" and model.device.type == "cpu" and model.dtype == torch.float32
        assert model.tokenizer.decode(ids) == TEXT
    assert LanguageModel(folder, dtype="float64").dtype == torch.float64
    assert made[2].engine is engine
    with pytest.raises(glassformer.InputError, match="needs a tokenizer"):
        LanguageModel(reference).trace(TEXT)
    with LanguageModel(reference).trace(ids):
        pass
    with pytest.raises(ValueError, match="nowhere"):
        LanguageModel("nowhere")
    for path in ("/nowhere/model", "./nowhere", "some/where/else", "nowhere.gguf"):
        with pytest.raises(glassformer.FileError, match=path):
            LanguageModel(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    for wanted in ("cuda", "cuda:0", 0, {"": "cuda"}):
        with pytest.warns(UserWarning, match="there is no GPU here; the model is on the CPU") as seen:
            assert LanguageModel(make_model("gpt2"), device_map=wanted).device.type == "cpu"
        assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LanguageModel(make_model("gpt2"), device_map="auto")
    with pytest.raises(glassformer.UnsupportedError, match="several devices"):
        LanguageModel(make_model("gpt2"), device_map={"a": "cuda:0", "b": "cuda:1"})


@pytest.mark.parametrize("kind", KINDS)
def test_torch_modules_are_over_the_same_weights(kind, tmp_path):
    reference = make_model(kind, torch.float64)
    reference.save_pretrained(tmp_path)
    model = LanguageModel(tmp_path, dtype=torch.float64)
    theirs = dict(reference.named_modules())
    ids = torch.tensor([[1, 5, 3, 7]])
    for envoy in model.modules():
        path = envoy.path.partition(".")[2]
        if path.startswith("generator"):
            continue
        module, own = envoy._module, theirs[path]
        assert isinstance(module, torch.nn.Module)
        assert {name: list(value.shape) for name, value in module.named_parameters()} == {
            name: list(value.shape) for name, value in own.named_parameters()
        }, path
        for name, value in module.named_parameters():
            assert torch.equal(value, own.get_parameter(name)), (path, name)
    assert model._module.config is model._model.config is model.config
    blocks = model.get("transformer.h" if kind == "gpt2" else "model.layers")
    assert isinstance(blocks._module, torch.nn.ModuleList) and isinstance(model.lm_head._module, torch.nn.Linear)
    for found, expected in (
        (model._module(ids).logits, reference(ids).logits),
        (model(ids).logits, reference(ids).logits),
    ):
        torch.testing.assert_close(found.detach().as_subclass(torch.Tensor), expected.detach(), rtol=0, atol=1e-5)
    x = torch.randn(2, 5, _width(model), dtype=torch.float64, requires_grad=True)
    for path in ("mlp", "ln_1" if kind == "gpt2" else "input_layernorm"):
        own = theirs[f"{blocks.path.partition('.')[2]}.1.{path}"]
        for given in (x, x[0], x[0, 0]):
            found, expected = blocks[1].get(path)(given), own(given)
            torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=0, atol=1e-5)
            (gradient,) = torch.autograd.grad(found.sum(), x, retain_graph=True)
            (theirs_gradient,) = torch.autograd.grad(expected.sum(), x, retain_graph=True)
            torch.testing.assert_close(gradient, theirs_gradient, rtol=0, atol=1e-5)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        blocks[1].mlp.get("c_proj" if kind == "gpt2" else "down_proj").weight.mul_(2)
        reference.lm_head.weight.zero_()
        theirs[f"{blocks.path.partition('.')[2]}.1.mlp.{'c_proj' if kind == 'gpt2' else 'down_proj'}"].weight.mul_(2)
    with model.trace(ids):
        last, logits = blocks[-1].output[0], model.output.logits
    expected = reference(ids, output_hidden_states=True)
    assert logits.abs().max() == 0
    with model.trace(ids):
        second = blocks[1].output[0]
    torch.testing.assert_close(
        second.detach().as_subclass(torch.Tensor), expected.hidden_states[2].detach(), rtol=0, atol=1e-5
    )
    assert last.shape == second.shape


def _width(model):
    return model.engine.config.d_model


def test_live_modules_are_the_models_own():
    reference = make_model("llama")
    model = LanguageModel(reference)
    assert model._module is reference and model.model.layers[1].mlp._module is reference.model.layers[1].mlp
    assert model.model.norm.weight is reference.model.norm.weight


def test_gradients_of_weights_are_the_engines():
    """A live model's parameters get none; the weight that the engine computes with does, where it asks."""
    reference = make_model("llama", torch.float64)
    model, ids = LanguageModel(reference), torch.arange(3, 9)[None]
    mine = model.engine.weights["blocks.1.mlp.out.weight"].requires_grad_()
    with model.trace(ids):
        loss = model.output.logits[0, -1].logsumexp(0)
    loss.backward()
    own = reference.model.layers[1].mlp.down_proj.weight
    assert own.grad is None and mine.grad is not None and mine.data_ptr() == own.data_ptr()
    reference(ids).logits[0, -1].logsumexp(0).backward()
    torch.testing.assert_close(mine.grad, own.grad, rtol=0, atol=1e-5)


PROMPTS = {
    "a list of ids": lambda ids: ids,
    "a batch of ids": lambda ids: [ids],
    "a tensor": lambda ids: torch.tensor(ids),
    "a batch in a tensor": lambda ids: torch.tensor([ids]),
    "numpy": lambda ids: torch.tensor([ids]).numpy(),
    "a dict": lambda ids: {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))},
    "an encoding": lambda ids: byte_tokenizer()(TEXT, return_tensors="pt"),
    "a text": lambda ids: TEXT,
    "texts": lambda ids: [TEXT],
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts(kind):
    reference, folder = published("gpt2", torch.float64)
    ids = byte_tokenizer()(TEXT)["input_ids"]
    model = LanguageModel(folder, dtype=torch.float64)
    expected = reference(torch.tensor([ids])).logits.detach()
    with model.trace(PROMPTS[kind](ids)):
        assert torch.equal(model.input, torch.tensor([ids]))
        logits = model.output.logits
    torch.testing.assert_close(logits.detach().as_subclass(torch.Tensor), expected, rtol=0, atol=1e-10)
    with model.trace(input_ids=[ids]):
        assert torch.equal(model.output.logits.detach(), logits.detach())


def test_padded_prompts_labels_and_positions():
    reference, folder = published("gpt2", torch.float64)
    model = LanguageModel(folder, dtype=torch.float64)
    ids = torch.tensor([[0, 0, 5, 9, 11], [4, 8, 2, 7, 1]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 2] = -100  # What padding predicts is nobody's business.
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = reference(ids, attention_mask=mask, position_ids=places, labels=labels)
    with model.trace(ids, attention_mask=mask, labels=labels):
        first, loss, logits = model.transformer.h[1].output[0].t[0], model.output.loss, model.output["logits"]
        kept = model.output
    torch.testing.assert_close(
        logits[mask.bool()].detach().as_subclass(torch.Tensor), expected.logits[mask.bool()].detach(), rtol=0, atol=1e-9
    )
    assert abs(loss.item() - expected.loss.item()) < 1e-5  # transformers computes it in float32.
    alone = reference(ids[:1, 2:], output_hidden_states=True).hidden_states[2][:, 0]
    torch.testing.assert_close(first[:1].detach().as_subclass(torch.Tensor), alone.detach(), rtol=0, atol=1e-9)
    assert kept.keys() == ["loss", "logits", "past_key_values"] and kept.shape == logits.shape
    assert torch.equal(kept[1].detach(), logits.detach()) and torch.equal(kept[0].detach(), loss.detach())
    keys, values = kept.past_key_values[1]
    past = expected.past_key_values[1] if hasattr(expected.past_key_values, "__getitem__") else None
    theirs = (past[0], past[1]) if past is not None else None
    assert keys.shape == values.shape == (2, 4, 5, 6)
    if theirs is not None:
        torch.testing.assert_close(keys[1].detach().as_subclass(torch.Tensor), theirs[0][1].detach(), rtol=0, atol=1e-9)
    for wrong, why in (
        ({"labels": ids[:, :3]}, "labels"),
        ({"attention_mask": mask[:, :3]}, "attention_mask"),
        ({"position_ids": places[:, :3]}, "positions"),
    ):
        with pytest.raises(glassformer.Error, match=why), model.trace(ids, **wrong):
            pass


WRONG = {
    "two inputs": (([1], [2]), glassformer.InputError, "one input"),
    "a number": ((5,), glassformer.InputError, "a text, a list of texts, or token ids"),
    "no token": (([],), glassformer.InputError, "prompt|tokens"),
    "an empty text": (("",), glassformer.InputError, "prompt|token"),
    "a token outside": (([99999],), glassformer.InputError, "99999"),
    "reals": (([0.5],), glassformer.InputError, "integers"),
    "a strange mapping": (({"pixel_values": 1},), glassformer.InputError, "pixel_values"),
    "too long": (([1] * 999,), glassformer.InputError, "999"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_prompts(kind):
    _, folder = published("gpt2", torch.float64)
    model = LanguageModel(folder)
    given, error, why = WRONG[kind]
    with pytest.raises(error, match=why) as raised, model.trace(*given):
        pass
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(error, match=why), model.generate(*given, max_new_tokens=2) as tracer:
        assert tracer.result is not None


def test_the_generation_config_of_a_folder(tmp_path):
    reference, folder = published("gpt2", torch.float64)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{folder}/{file}", tmp_path)
    ids = byte_tokenizer()(TEXT)["input_ids"]
    plain = reference.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False, eos_token_id=None)[0].tolist()
    stop = plain[len(ids) + 2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stop, "max_new_tokens": 6}))
    model = LanguageModel(tmp_path, dtype=torch.float64)
    with model.generate(TEXT) as tracer:
        steps = list(tracer.iter[:])
        found = tracer.result
    new = plain[len(ids) :]
    assert found[0].tolist() == ids + new[: new.index(stop) + 1]
    assert steps == list(range(new.index(stop) + 1))
    with model.generate(TEXT, eos_token_id=None, max_length=len(ids) + 3, max_new_tokens=None) as tracer:
        assert tracer.result[0].tolist() == plain[: len(ids) + 3]
    with model.generate(TEXT, min_new_tokens=new.index(stop) + 2) as tracer:
        assert tracer.result.shape[1] > len(ids) + new.index(stop) + 1
    assert model.generate(TEXT, trace=False, max_new_tokens=2)[0].tolist() == plain[: len(ids) + 2]


def test_how_long_generations_are():
    """As in transformers: 20 new tokens where nobody says, however long the prompt; `max_length` counts the prompt."""
    reference, folder = published("gpt2", torch.float64)
    model = LanguageModel(folder, dtype=torch.float64)
    short, long = torch.arange(3, 8)[None], torch.arange(3, 28)[None]
    for ids in (short, long):
        for options in ({}, {"max_length": 35}, {"max_new_tokens": 2, "max_length": 3}):
            expected = reference.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=None, **options
            )
            found = model.generate(ids, trace=False, eos_token_id=None, **options)
            assert found.tolist() == expected.tolist()
    with model.generate(eos_token_id=None) as tracer, tracer.invoke(long):
        assert tracer.result.shape == (1, 45)
    for ids, options, why in (
        (long, {"max_length": 25}, r"generate\(max_length=25\): the prompt has 25 tokens itself"),
        (None, {"max_length": 25}, "counts the prompt, which comes with an invoke: give max_new_tokens"),
        (short, {"max_new_tokens": 1.5}, r"generate\(max_new_tokens=1\.5\): expected a whole number"),
        (short, {"max_new_tokens": "3"}, r"generate\(max_new_tokens='3'\): expected a whole number"),
        (short, {"do_sample": True, "top_k": 1.5}, r"generate\(top_k=1\.5\): expected a whole number"),
        (short, {"do_sample": True, "temperature": "hot"}, r"generate\(temperature='hot'\): expected a number"),
    ):
        with pytest.raises(glassformer.InputError, match=why):
            model.generate(*[] if ids is None else [ids], **options)
    with pytest.raises(glassformer.UnsupportedError, match="return_dict_in_generate=True"):
        model.generate(short, return_dict_in_generate=True)
    assert (
        model.generate(short, trace=False, max_new_tokens=1, logits_processor=None, stopping_criteria=[]).shape[1] == 6
    )


def test_steps_that_are_none():
    model = LanguageModel(published("gpt2", torch.float64)[1], dtype=torch.float64)
    with model.generate(TEXT, max_new_tokens=5, eos_token_id=None) as tracer:
        for wrong, why in (
            (slice(0, 3, 0), r"tracer\.iter\[0:3:0\]: steps count from 0 on, forward"),
            (slice(-2, None), r"tracer\.iter\[-2:\]: steps count from 0 on, forward"),
            ([1, -1], r"tracer\.iter\[\[1, -1\]\]: steps count from 0 on"),
            ("first", r"tracer\.iter\['first'\]: expected a slice, a number or a list of steps; found 'first'"),
            (slice(None, 2.5), r"tracer\.iter\[:2\.5\]: expected .*; found 2\.5"),
        ):
            with pytest.raises(glassformer.InputError, match=why):
                list(tracer.iter[wrong])
        assert [list(tracer.iter[chosen]) for chosen in (slice(1, None, 2), (0, 2), range(3))] == [
            [1, 3],
            [0, 2],
            [0, 1, 2],
        ]


def test_a_loop_around_invokes():
    """Each step goes through the same invokes; what is read is each one's own."""
    reference, folder = published("gpt2", torch.float64)
    model = LanguageModel(folder, dtype=torch.float64)
    texts, found = [TEXT, "The cat"], []
    with model.generate(max_new_tokens=3, eos_token_id=None) as tracer:
        for step in tracer.iter[:]:
            for text in texts:
                with tracer.invoke(text):
                    if step == 1:
                        model.transformer.h[1].output[0][:] = 0
                    found.append((step, model.lm_head.output[0, -1].argmax().item()))
        whole = tracer.result
        with tracer.invoke("A third one"):
            third = tracer.result
    assert [step for step, _ in found] == [0, 0, 1, 1, 2, 2]
    for number, text in enumerate(texts):
        with model.generate(text, max_new_tokens=3, eos_token_id=None) as tracer:
            for step in tracer.iter[:]:
                if step == 1:
                    model.transformer.h[1].output[0][:] = 0
            alone = tracer.result[0].tolist()
        assert whole[number].tolist()[-3:] == alone[-3:] == [token for _, token in found[number::2]]
    ids = byte_tokenizer()("A third one")["input_ids"]
    expected = reference.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert third.tolist() == expected.tolist()
    with (
        pytest.raises(glassformer.InputError, match="goes through the same ones"),
        model.generate(max_new_tokens=3, eos_token_id=None) as tracer,
    ):
        for step in tracer.iter[:]:
            with tracer.invoke(texts[step % 2]):
                pass


def test_other_dtypes():
    reference = make_model("gpt2")
    model = LanguageModel(reference)
    assert model.to("cpu") is model and model._module is reference and model.eval() is model
    assert model.to(torch.float64).dtype == torch.float64 and model.cpu().device.type == "cpu"
    with model.trace([1, 5, 3]):
        logits = model.output.logits
    expected = make_model("gpt2", torch.float64)(torch.tensor([[1, 5, 3]])).logits
    torch.testing.assert_close(logits.detach().as_subclass(torch.Tensor), expected.detach(), rtol=0, atol=1e-9)
    assert model._module is not reference and model.lm_head.weight.dtype == torch.float64
    assert reference.lm_head.weight.dtype == torch.float32
    with pytest.raises(glassformer.UnsupportedError, match="no training mode"):
        model.train()
    copied = LanguageModel(reference, dtype=torch.float64)
    assert copied._module is not reference and copied.lm_head.weight.dtype == torch.float64
    assert copied.config is reference.config


def test_values_of_older_versions():
    import glassformer.nnsight as nnsight

    _, folder = published("gpt2", torch.float64)
    model = LanguageModel(folder)
    with model.trace(TEXT):
        found, named = nnsight.list().save(), nnsight.dict().save()
        found.append(model.transformer.h[0].output[0])
        named["logits"] = model.lm_head.output
        number = nnsight.int(3).save()
    assert found.value is found and named.value["logits"].value.shape[-1] == 359 and number == 3
    with pytest.raises(AttributeError, match="write `if`"):
        nnsight.cond(True)


def test_names_on_the_hub(monkeypatch):
    _, folder = published("gpt2", torch.float32)
    asked = []

    def snapshot_download(name, revision, local_files_only, token=None, **options):
        asked.append((name, revision, local_files_only, token))
        if local_files_only:
            raise OSError("not there")
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = LanguageModel("gpt2-small", revision="main", token="?")
    assert asked == [("gpt2", "main", True, "?"), ("gpt2", "main", False, "?")]
    assert torch.equal(model.lm_head.weight, LanguageModel(folder).lm_head.weight)
    with pytest.raises(glassformer.FileError, match=r"owner/model: .* could not be fetched \(not there\): give a"):
        LanguageModel("owner/model", local_files_only=True)
    assert asked[2:] == [("owner/model", None, True, None)]
