"""Splices a small autoencoder into a model and turns its features off and up, one by one. Its features are the
directions in which the residual stream writes some words; a trained sparse autoencoder is spliced in the same way.

python splice_autoencoder.py <model> [prompt] [layer]
"""

import sys

import torch

import glassformer

WORDS = (" Paris", " Rome", " Berlin", " London", " Madrid", " Moscow", " Vienna", " Lisbon", " Athens")


def spliced(model, node):
    """The model with a feature for each word on that node."""
    ids = [model.to_ids(word)[-1] for word in WORDS]
    directions = torch.nn.functional.normalize(model.weights["unembed.weight"][ids], dim=1)  # feature d_model

    def encode(stream):
        return torch.relu(stream @ directions.T)

    def decode(acts):
        return acts @ directions

    return model.splice(node, "sae", encode, decode)


def answer(trace):
    return trace.model.tokenizer.decode(trace.logits_at(-1).argmax())


def main(path, prompt="The capital of France is", layer="28"):
    model = glassformer.load(path)
    plain = model.trace(prompt)
    print(f"{prompt}{answer(plain)}")
    trace = plain.fork(spliced(model, f"resid_post{layer}"))  # Shares what is computed.
    unchanged = torch.equal(trace.logits, plain.logits)
    print(f"spliced in after block {layer}: {'the same, bit for bit' if unchanged else 'changed'}")
    acts = trace.read("sae.acts", [-1])[0, 0]
    last = trace.length - 1
    for feature, word in enumerate(WORDS):
        off, up = trace.fork(), trace.fork()
        off.set("sae.acts", 0, region=(slice(None), last, feature))
        up.set("sae.acts", 200, region=(slice(None), last, feature))
        print(f"feature{word:<8} {acts[feature]:6.2f}   off:{answer(off)}   at 200:{answer(up)}")
    again = trace.work().get(f"blocks.{layer}.hook_mlp_out", 0)
    print(f"positions of block {layer} computed again: {again}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
