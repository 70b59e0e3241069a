"""Reads the residual stream before each block and prints how long its vectors are.

python read_residual.py <model> [text]
"""

import sys

import glassformer


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    model = glassformer.load(sys.argv[1])
    trace = model.trace(sys.argv[2] if len(sys.argv) > 2 else "The capital of France is")
    print(f"mean length of the residual stream's vectors, {trace.length} tokens")
    for layer in range(model.config.n_layers):
        residual = trace[f"resid_pre{layer}"]  # batch pos d_model
        print(f"layer {layer:2}  {residual.norm(dim=-1).mean().item():.3f}")


if __name__ == "__main__":
    main()
