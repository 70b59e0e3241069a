from models import gpt2_small, hooked_transformer, tokens

ENVIRONMENT = "tl"


def setup():
    return gpt2_small(), tokens(1, 5)


def run(state):
    folder, prompt = state
    return hooked_transformer(folder, processed=True)(prompt)
