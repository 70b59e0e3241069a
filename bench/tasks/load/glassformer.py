from models import demo_gguf, tokens

import glassformer


def setup():
    return demo_gguf(), tokens(1, 5)


def run(state):
    path, prompt = state
    return glassformer.load(path).trace(prompt).logits_at(-1)
