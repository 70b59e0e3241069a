import torch
from models import demo_gguf, tokens, transformers_model


def setup():
    return demo_gguf(), tokens(1, 5)


def run(state):
    path, prompt = state
    with torch.inference_mode():
        return transformers_model(path)(prompt, logits_to_keep=1).logits[:, -1]
