from models import demo_gguf, gpt2_small, tokens

import glassformer


def setup(model):
    return glassformer.load(demo_gguf() if model == "demo" else gpt2_small()), tokens(1, 60)


def run(state):
    model, prompt = state
    return model.generate(prompt, max_new_tokens=50, stop_tokens=[])[0].ids
