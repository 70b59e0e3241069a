from models import gpt2_small, tokens

import glassformer

# Nodes that HookedTransformer has only behind flags, or not at all.
LEFT_OUT = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in")
NORMS = ("ln1.hook_out", "ln2.hook_out", "ln_final.hook_out")
NO_HOOKS = ("hook_tokens", "positions", "attention_mask", "logits")


def setup():
    model = glassformer.load(gpt2_small())
    names = [node.name for node in model.nodes()]
    wanted = [
        name for name in names if not name.endswith(LEFT_OUT + NORMS) and name not in NO_HOOKS and "hook_" in name
    ]
    return model, tokens(1, 128), wanted


def run(state):
    model, prompt, names = state
    trace = model.trace(prompt, keep="all")
    logits = trace.logits
    return {"logits": logits, **{name: trace[name] for name in names}}
