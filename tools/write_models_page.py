"""Writes docs/models.md: which models Glassformer runs, and how near each tested kind is to `transformers`.

Run it with the package on the path: `.venv/bin/python tools/write_models_page.py [--check]`.
"""

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
sys.path.insert(0, str(ROOT / "python" / "tests"))

from test_parity import TIMES_THEIR_ERROR, TOLERANCE  # noqa: E402
from tiny_models import CONFIGS, NO_FLOAT64, make_model  # noqa: E402

import glassformer  # noqa: E402
from glassformer import _core  # noqa: E402

INTRO = """# Models

A model runs if its `model_type` (config.json) or its `general.architecture` (GGUF) is in the first table. This page is
written by `tools/write_models_page.py` from the library's list of architectures and from the table of test models,
`python/tests/tiny_models.py`; a test checks that it is up to date.

## Architectures

What each one is made of, over all its tested configurations:

| `model_type` | GGUF | positions | rotary scalings | attention | MLP | norm | biases | unembedding |
|---|---|---|---|---|---|---|---|---|
"""
TESTED = """
In GGUF files, the scaling of Llama 3.1 and later stands as one divisor for each frequency, and Mistral has the name of
Llama; sliding windows are read from config.json only.

The `model_type` `transformer_lens` is none of transformers': its config.json has the fields of TransformerLens'
HookedTransformerConfig (version 3.9.0), its tensors have the names and shapes of a HookedTransformer's state dict. It
may be attention-only, parallel, gated, of SoLU (with its norm) or xIELU, or a mixture of experts (Mixtral's, OLMoE's or
GPT-OSS'); with layer or RMS norms, their folded forms or none, before attention and MLP, behind them (OLMo 2 and 3) or
both, of the embedding, and of queries and keys; with learned, shortformer, rotary (also by neighbouring pairs, with
another base in local layers, linear, NTK-by-parts, YaRN and Qwen's dynamic scaling) or alibi positions; causal or
bidirectional; local windows; soft caps; clipped projections; attention sinks; log-n scaling; grouped keys; and another
number of outputs than of tokens. What TransformerLens itself can't run, and 4-bit weights, are refused by name. It is
compared with TransformerLens, every activation of 200 random configs and of one for each switch, in float64 to 1e-6.

What experts make has an axis of slots, one for each expert of a token: `mlp.hook_expert_gate`, `hook_expert_pre` and
`hook_expert_post` are `batch pos slot d_mlp`, and `mlp.hook_expert_indices` says which expert a slot is of. An expert
computes its own tokens only. A choice of experts is kept, and never made twice.
"""


def listed(found) -> str:
    """Without repeats, in the order of their first time."""
    return ", ".join(dict.fromkeys(found))


def attention(config) -> str:
    if config.n_kv_heads == config.n_heads:
        return "multi-head"
    return "multi-query" if config.n_kv_heads == 1 else "grouped-query"


def bias_words(config) -> str:
    parts = [
        part
        for part, names in (("attention", {"q", "k", "v", "o"}), ("MLP", {"mlp_in", "mlp_out"}))
        if names <= set(config.biases)
    ]
    return " and ".join(parts) or "none"


def architecture_row(model_type: str, gguf: str, configs: list) -> str:
    windows = ["sliding window" for config in configs if any(config.windows)]
    cells = [
        f"`{model_type}`",
        f"`{gguf}`" if gguf else "",
        listed(config.positions for config in configs),
        listed(config.rope.scaling for config in configs if config.positions == "rotary") or "–",
        listed([*map(attention, configs), *windows]),
        listed(f"{'gated' if config.gated_mlp else 'plain'} {config.activation}" for config in configs),
        listed({"rms": "RMS", "layer": "LayerNorm"}[config.norm] for config in configs),
        listed(map(bias_words, configs)),
        listed("tied" if config.tied_unembed else "own" for config in configs),
    ]
    return "| " + " | ".join(cells) + " |"


def special(options: dict) -> str:
    words = [f"`{key}: {json.dumps(value)}`" for key, value in options.items() if key != "rope_parameters"]
    rope = options.get("rope_parameters", {})
    return ", ".join(words + [f"`{key}: {json.dumps(value)}`" for key, value in rope.items()]) or "–"


def bound(dtype) -> str:
    return f"{TOLERANCE[dtype]:.0e}".replace("e-0", "e-")


def test_row(name: str, config) -> str:
    model_type, options = CONFIGS[name]
    exact = "–" if name in NO_FLOAT64 else bound(torch.float64)
    heads = f"{config.n_heads} ({config.n_kv_heads})"
    return f"| {name} | `{model_type}` | {special(options)} | {heads} | {exact} | {bound(torch.float32)} |"


def page() -> str:
    configs = {name: glassformer.load(make_model(name)).config for name in CONFIGS}
    rows = [
        architecture_row(kind, gguf, [config for name, config in configs.items() if CONFIGS[name][0] == kind])
        for kinds, gguf in _core.architectures()
        for kind in kinds
        if kind != "transformer_lens"
    ]
    missing = "\nWhere float64 has a dash, transformers itself has none." if NO_FLOAT64 else ""
    tested = TESTED.format(missing=missing, times=TIMES_THEIR_ERROR)
    return INTRO + "\n".join(rows) + "\n" + tested + "\n".join(test_row(*item) for item in configs.items()) + "\n"


def main() -> int:
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.relative_to(ROOT)} is not what the library says; run tools/write_models_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
