import torch
from models import gpt2_small, tokens

from glassformer.transformer_lens import HookedTransformer, patching


def setup():
    torch.set_grad_enabled(False)
    model = HookedTransformer.from_pretrained_no_processing(gpt2_small())
    return model, tokens(1, 15, seed=1), tokens(1, 15, seed=2)


def run(state):
    model, clean, corrupted = state

    def metric(logits):
        return logits[0, -1, 100] - logits[0, -1, 200]

    _, cache = model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
    return patching.get_act_patch_attn_head_out_all_pos(model, corrupted, cache, metric)
