import torch
from models import gpt2_small, tokens, transformers_model


def setup(batch, length):
    return transformers_model(gpt2_small()), tokens(batch, length)


def run(state):
    model, prompt = state
    with torch.inference_mode():
        return model(prompt, use_cache=False).logits
