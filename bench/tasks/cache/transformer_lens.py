from models import gpt2_small, hooked_transformer, tokens

ENVIRONMENT = "tl"


def setup():
    return hooked_transformer(gpt2_small()), tokens(1, 128)


def run(state):
    model, prompt = state
    logits, cache = model.run_with_cache(prompt, return_cache_object=False)
    return {"logits": logits, **cache}
