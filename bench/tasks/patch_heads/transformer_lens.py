from models import gpt2_small, hooked_transformer, tokens
from transformer_lens import patching

ENVIRONMENT = "tl"


def setup():
    return hooked_transformer(gpt2_small()), tokens(1, 15, seed=1), tokens(1, 15, seed=2)


def run(state):
    model, clean, corrupted = state

    def metric(logits):
        return logits[0, -1, 100] - logits[0, -1, 200]

    _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
    return patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
