from models import gpt2_small, tokens

import glassformer


def setup(batch, length):
    return glassformer.load(gpt2_small()), tokens(batch, length)


def run(state):
    model, prompt = state
    return model.trace(prompt).logits
