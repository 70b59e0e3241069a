"""Writes docs/nodes.md: every node of a model of each architecture, with its shape and how it comes about.

Run it with the package on the path: `.venv/bin/python tools/write_nodes_page.py [--check]`.
"""

import sys
from pathlib import Path

import torch

from glassformer import _core

PAGE = Path(__file__).parent.parent / "docs" / "nodes.md"
CONFIGS = {
    "gpt2": '{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 11, "n_positions": 16}',
    "llama": '{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, '
    '"num_key_value_heads": 1, "intermediate_size": 12, "vocab_size": 11, "max_position_embeddings": 16}',
}
INTRO = """# Nodes

Every activation of a model by name. `l` stands for the layer. A name may be written whole (`blocks.3.attn.hook_z`),
without `hook_` (`blocks.3.attn.z`), short with its layer (`z3`, `resid_pre3`, `resid_pre-1`; from Python also
`("z", 3)`).

A node's *step* computes it from the nodes and weights in brackets. Where a second step is given, it is the one used
as long as none of the nodes that it passes over is edited. This page is written by `tools/write_nodes_page.py`.
"""


def rows(architecture: str) -> list[str]:
    lines = [f"\n## {architecture}\n", "| node | shape | step |", "|---|---|---|"]
    for name, words, steps in _core.node_steps(CONFIGS[architecture]):
        texts = "<br>or ".join(f"`{step}`" for step in steps).replace("blocks.0.", "blocks.l.")
        lines.append(f"| `{name.replace('blocks.0.', 'blocks.l.')}` | {words} | {texts or 'given'} |")
    return lines


def main() -> int:
    torch.manual_seed(0)
    text = INTRO + "\n".join(line for architecture in CONFIGS for line in rows(architecture)) + "\n"
    if "--check" in sys.argv:
        if PAGE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/nodes.md is not what the library says; run tools/write_nodes_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
