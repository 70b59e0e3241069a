import torch
from models import gpt2_small, tokens

from glassformer.transformer_lens import HookedTransformer


def setup():
    torch.set_grad_enabled(False)
    return gpt2_small(), tokens(1, 5)


def run(state):
    folder, prompt = state
    return HookedTransformer.from_pretrained(folder)(prompt)
