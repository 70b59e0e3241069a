from models import gpt2_small, tokens

import glassformer


def setup():
    return glassformer.load(gpt2_small()), tokens(1, 15, seed=1), tokens(1, 15, seed=2)


def run(state):
    model, clean, corrupted = state
    metric = glassformer.logit_difference(model, 100, 200)
    return glassformer.activation_patching(model.trace(clean), model.trace(corrupted), metric).values
