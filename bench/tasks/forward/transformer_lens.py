from models import gpt2_small, hooked_transformer, tokens

ENVIRONMENT = "tl"


def setup(batch, length):
    return hooked_transformer(gpt2_small()), tokens(batch, length)


def run(state):
    model, prompt = state
    return model(prompt, return_type="logits")
