"""Generates while steering. The steering vector is the difference between the residual streams of two prompts before
one block, at their last positions; at every step a hook adds a multiple of it to the stream of the text that is
generated. Multiple 0 is the plain text.

python steer_generation.py <model> [prompt] [towards] [away from] [layer]
"""

import sys

import glassformer


def last_residual(model, text, node):
    return model.trace(text).at([-1])[node]  # batch 1 d_model


def continued(model, prompt, node, added):
    steer = glassformer.StepHook(node, lambda value, call: value + added)
    return model.generate(prompt, max_new_tokens=24, hooks=[steer]).text


def main(path, prompt="I think that you are", towards="I love you", away="I hate you", layer="10"):
    model = glassformer.load(path)
    node = f"resid_pre{layer}"
    vector = last_residual(model, towards, node) - last_residual(model, away, node)
    print(f"{node}: towards '{towards}', away from '{away}'; the vector's length is {vector.norm().item():.2f}")
    for multiple in (-2.0, -1.0, 0.0, 1.0, 2.0):
        text = continued(model, prompt, node, vector * multiple)
        print(f"\n{multiple:+.0f}: {prompt}{text}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
