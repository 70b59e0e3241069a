import torch
from models import gpt2_small, tokens

from glassformer.transformer_lens import HookedTransformer


def setup():
    torch.set_grad_enabled(False)
    return HookedTransformer.from_pretrained_no_processing(gpt2_small()), tokens(1, 128)


def run(state):
    model, prompt = state
    logits, cache = model.run_with_cache(prompt, return_cache_object=False)
    return {"logits": logits, **cache}
