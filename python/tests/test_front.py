"""The Python front: names, loading, printing, text."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from helpers import assert_close, subject
from tiny_models import make_model

import glassformer

CORPUS = ["the cat sat on the mat", "a dog ran to the cat", "the mat and the dog are here", "to be or not to be"]


@pytest.fixture(scope="module")
def backend():
    """A small byte-level BPE tokenizer."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory, backend):
    """A saved model with its tokenizer."""
    path = tmp_path_factory.mktemp("tiny")
    make_model("gpt2", vocab_size=300).save_pretrained(path)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return glassformer.load(folder)


@pytest.fixture
def word_folder(tmp_path):
    """A saved model whose tokenizer is of a kind that we have not."""
    make_model("gpt2", vocab_size=300).save_pretrained(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_tokenizer_of_another_kind_leaves_the_model_without_one(word_folder, backend):
    model = glassformer.load(word_folder)
    assert model.tokenizer is None
    assert model.trace([0, 1]).logits.shape == (1, 2, 300)
    uses = (
        lambda: model.trace("the cat"),
        lambda: model.trace([0, 1]).append(" the"),
        lambda: model.to(dtype="float64").trace("the cat"),
        lambda: model.generate("the cat"),
        lambda: glassformer.explain(model, "the cat"),
    )
    for use in uses:
        with pytest.raises(glassformer.UnsupportedError, match=r"tokenizer.json: .*WordLevel"):
            use()


def test_a_tokenizer_given_is_used_everywhere(word_folder, folder, backend):
    given = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    for place in (word_folder, folder):
        model = glassformer.load(place, tokenizer=given)
        ids = backend.encode("the cat").ids
        assert model.trace("the cat").tokens.tolist() == [ids]
        assert str(glassformer.explain(model, "the cat")).startswith(f"{model.name} answers")


# Names.


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z"),
        ("blocks.1.attn.z", "blocks.1.attn.hook_z"),
        ("z1", "blocks.1.attn.hook_z"),
        (("z", 1), "blocks.1.attn.hook_z"),
        (("z", np.int64(1)), "blocks.1.attn.hook_z"),
        (("z", -1), "blocks.2.attn.hook_z"),
        ("resid_pre-1", "blocks.2.hook_resid_pre"),
        (("resid_pre", 0), "blocks.0.hook_resid_pre"),
        (("pattern", 2, "attn"), "blocks.2.attn.hook_pattern"),
        (("pre", 2, "mlp"), "blocks.2.mlp.hook_pre"),
        (("post", 0), "blocks.0.mlp.hook_post"),
        (("scale", 1, "ln1"), "blocks.1.ln1.hook_scale"),
        (("normalized", 2, "ln2"), "blocks.2.ln2.hook_normalized"),
        (("scale", None, "ln_final"), "ln_final.hook_scale"),
        ("ln_final.scale", "ln_final.hook_scale"),
        (("embed",), "hook_embed"),
        ("embed", "hook_embed"),
        ("tokens", "hook_tokens"),
        ("logits", "logits"),
    ],
)
def test_forms_of_a_name(name, full):
    tiny = subject("gpt2").model
    assert tiny.node_name(name) == full
    trace = tiny.trace([1, 2, 3])
    assert torch.equal(trace[name], trace[full])


def test_two_indices_in_brackets_are_a_name():
    trace = subject("gpt2").model.trace([1, 2, 3])
    trace["z", 1] = 0.0
    assert not trace["z", 1].any() and trace.edited == ["blocks.1.attn.hook_z"]
    for wrong in (3, (3, "z"), ("z", "1"), ("z", 1, "attn", 2), None):
        with pytest.raises(TypeError):
            trace[wrong]


def test_nodes():
    nodes = subject("llama_grouped").model.nodes()
    z = next(node for node in nodes if node.name == "blocks.0.attn.hook_z")
    assert z.axes == ("batch", "pos", "head", "d_head") and z.sizes == (None, None, 4, 8)
    assert z.shape == "batch pos head=4 d_head=8" and str(z) == "blocks.0.attn.hook_z  batch pos head=4 d_head=8"
    lines = repr(nodes).splitlines()
    assert len(lines) == len(nodes) and lines[0].split() == ["hook_tokens", "batch", "pos"]
    assert nodes[-1].name == "logits"


# Loading.


def test_a_folder_with_everything(model, folder):
    assert model.name == folder.name and model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert model.config.d_vocab == 300 and model.config.norm == "layer" and model.config.positions == "learned"
    assert model.tokenizer.eos_token == "<|end|>" and "messages" in model.tokenizer.chat_template
    assert "gpt2" in repr(model) and "3 layers" in repr(model) and f"{model.n_parameters:,}" in repr(model)


def test_weights_are_a_mapping(model):
    assert len(model.weights) == len(list(model.weights)) == len(dict(model.weights))
    assert "blocks.0.attn.q.weight" in model.weights and "blocks.0.attn.q" not in model.weights
    assert model.weights["blocks.0.attn.q.weight"].shape == (24, 24)
    assert model.weights["embed.weight"].data_ptr() == model.weights["unembed.weight"].data_ptr()
    with pytest.raises(glassformer.NameError, match=r"blocks\.0\.attn\.q\.weight"):
        model.weights["blocks.0.attn.q.wieght"]
    assert model.weights.get("nothing") is None


def test_dtype_by_name_and_by_type(folder):
    for dtype in (torch.float64, "float64"):
        model = glassformer.load(folder, dtype=dtype)
        assert model.dtype == torch.float64 and model.trace([1]).logits.dtype == torch.float64


@pytest.mark.parametrize("given", ["ours", "theirs", "path"])
def test_live_model_with_a_tokenizer(folder, model, given):
    reference = make_model("gpt2", vocab_size=300)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = {"ours": model.tokenizer, "theirs": theirs, "path": folder}[given]
    live = glassformer.load(reference, tokenizer=tokenizer)
    text = "the cat sat on a mat"
    assert live.to_ids(text) == theirs(text)["input_ids"]
    assert live.trace(text).str_tokens == model.trace(text).str_tokens
    assert_close(live.trace(text).logits, model.trace(text).logits, 1e-6)
    assert live.tokenizer.eos_token == "<|end|>"


def test_model_without_a_tokenizer():
    tiny = subject("gpt2").model
    assert tiny.tokenizer is None
    for attempt in (
        lambda: tiny.trace("text"),
        lambda: tiny.trace(["a", "b"]),
        lambda: tiny.trace([1]).append("text"),
        lambda: tiny.trace([1]).str_tokens,
    ):
        with pytest.raises(glassformer.InputError, match="tokenizer"):
            attempt()


# Prompts.


def test_one_text(model, backend):
    text = "the cat sat"
    trace = model.trace(text)
    assert isinstance(trace, glassformer.Trace) and trace.batch == 1
    assert trace.tokens.tolist() == [backend.encode(text).ids]
    assert "".join(trace.str_tokens) == text and len(trace.str_tokens) == trace.length
    trace.append(" on the mat")
    assert "".join(trace.str_tokens) == "the cat sat on the mat"


def test_several_texts(model):
    alike = model.trace(["the cat", "the dog"])
    assert isinstance(alike, glassformer.Trace) and alike.batch == 2
    assert ["".join(row) for row in alike.str_tokens] == ["the cat", "the dog"]
    alike.append([" sat", " ran"])
    assert ["".join(row) for row in alike.str_tokens] == ["the cat sat", "the dog ran"]
    different = model.trace(["the cat", "to be or not to be"])
    assert isinstance(different, glassformer.Batch)
    different.append([" sat", "!"])
    assert ["".join(row) for row in different.str_tokens] == ["the cat sat", "to be or not to be!"]
    with pytest.raises(glassformer.InputError, match="equal length"):
        model.trace(["the cat", "to be or not to be"], attention_mask=[[1], [1]])


@pytest.mark.parametrize(
    "ids",
    [
        [3, 1, 4],
        (3, 1, 4),
        range(3),
        torch.tensor([3, 1, 4]),
        torch.tensor([[3, 1, 4]], dtype=torch.int32),
        np.array([3, 1, 4]),
        np.array([[3, 1, 4]], dtype=np.uint16),
        [torch.tensor(3), torch.tensor(1), torch.tensor(4)],
        [np.int64(3), 1, 4],
    ],
)
def test_ids_of_one_prompt(model, ids):
    trace = model.trace(ids)
    assert trace.batch == 1 and trace.tokens.tolist() == [[int(number) for number in np.asarray(ids).reshape(-1)]]


def test_ids_of_several_prompts(model):
    for ids in ([[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]]), [torch.tensor([1, 2]), np.array([3, 4])]):
        trace = model.trace(ids)
        assert trace.batch == 2 and trace.tokens.tolist() == [[1, 2], [3, 4]]
    batch = model.trace([[1, 2, 3], torch.tensor([4])])
    assert batch.mask.tolist() == [[True] * 3, [False, False, True]]
    for wrong in (torch.zeros(1, 1, 1, dtype=torch.int64), [[[1]]]):
        with pytest.raises(glassformer.ShapeError):
            model.trace(wrong)


def test_explain_names_its_answers(model):
    first, second = model.trace("the cat sat"), model.trace("the mat sat")
    by_id = glassformer.explain(model, "the cat sat", "the mat sat", answer=7, versus_answer=9).to_dict()
    assert by_id["patching"]["clean_difference"] == pytest.approx(
        (first.logits_at(-1)[0, 7] - first.logits_at(-1)[0, 9]).item(), abs=1e-5
    )
    assert by_id["patching"]["corrupted_difference"] == pytest.approx(
        (second.logits_at(-1)[0, 7] - second.logits_at(-1)[0, 9]).item(), abs=1e-5
    )
    text = model.tokenizer.decode([7])
    assert glassformer.explain(model, "the cat sat", answer=text).to_dict()["attribution"]["answer"]["id"] == 7
    alone = glassformer.explain(model, "the cat sat", "the mat sat").to_dict()
    answer, best = alone["attribution"]["answer"], alone["versus_next_tokens"]
    assert answer == alone["next_tokens"][0]
    assert alone["patching"]["versus_answer"] == next(score for score in best if score["id"] != answer["id"])
    for wrong, message in (
        ({"answer": 300}, "300"),
        ({"answer": 7, "versus_answer": 7}, "expected two tokens"),
        ({"versus_answer": answer["id"]}, "own answer"),
        ({"answer": "cat cat"}, "expected one"),
    ):
        with pytest.raises(glassformer.InputError, match=message):
            glassformer.explain(model, "the cat sat", "the mat sat", **wrong)
    with pytest.raises(glassformer.InputError, match="second prompt"):
        glassformer.explain(model, "the cat sat", versus_answer=7)


def test_printing(model):
    trace = model.trace("the cat")
    assert "length" in repr(trace) and "edited" not in repr(trace)
    trace["z1"] = 0
    assert "blocks.1.attn.hook_z" in repr(trace) and "positions [0]" in repr(trace.at(0))
    text = trace.explain("attn_out1")
    assert "blocks.1.hook_attn_out" in text and "blocks.1.attn.hook_z" in text and "batch pos d_model" in text
    assert "lengths" in repr(model.trace([[1], [2, 3]])) and "tensors" in repr(model.weights)


def test_help_has_a_text_for_everything_public():
    for name in glassformer.__all__:
        thing = getattr(glassformer, name)
        assert getattr(thing, "__doc__", None), name
        if not isinstance(thing, type) or issubclass(thing, Exception) or name in ("Tokenizer", "ModelConfig", "Rope"):
            continue
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{attribute}"


def test_errors_also_are_what_python_programmers_catch():
    for error, builtin in {
        "FileError": OSError,
        "NameError": KeyError,
        "ShapeError": ValueError,
        "InputError": ValueError,
        "OrderError": RuntimeError,
        "StaleEditError": RuntimeError,
        "UnavailableError": RuntimeError,
        "UnsupportedError": NotImplementedError,
    }.items():
        found = getattr(glassformer, error)
        assert issubclass(found, builtin) and issubclass(found, glassformer.Error) and found.__module__ == "glassformer"


def test_damaged_and_unknown_models(tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt9"}))
    with pytest.raises(glassformer.UnsupportedError, match=r"gpt9.*gpt2"):
        glassformer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_embd": 32}))
    with pytest.raises(glassformer.FileError, match=r"\[61, 24\].*\[61, 32\]"):
        glassformer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 4}))
    with pytest.raises(glassformer.FileError, match=r"h\.3"):
        glassformer.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(glassformer.FileError, match="incomplete"):
        glassformer.load(tmp_path)


def test_nothing_is_printed(model, capfd):
    trace = model.trace("the cat sat")
    trace["z1"] = 0
    trace.logits.sum()
    trace.explain("logits")
    assert capfd.readouterr() == ("", "")


def test_the_chat_template_of_a_model_folder(tmp_path, backend):
    make_model("llama").save_pretrained(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "of the config"}')
    assert glassformer.load(tmp_path).tokenizer.core.chat_template == "of the config"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = glassformer.load(tmp_path).tokenizer
    assert tokenizer.core.chat_template == tokenizer.chat_template == "{{ messages[0].content }}!"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello!"
