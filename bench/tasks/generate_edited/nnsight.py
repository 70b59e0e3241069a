from models import demo_gguf, generated_with_edits, nnsight_model, tokens

ENVIRONMENT = "nnsight"


def setup():
    return nnsight_model(demo_gguf()), tokens(1, 60)


def run(state):
    return generated_with_edits(*state)
