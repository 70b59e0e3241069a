import torch
from models import demo_gguf, gpt2_small, tokens, transformers_model


def setup(model):
    made = transformers_model(demo_gguf() if model == "demo" else gpt2_small())
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made, tokens(1, 60)


def run(state):
    model, prompt = state
    with torch.inference_mode():
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=50, do_sample=False)
    return found[0, prompt.shape[1] :].tolist()
