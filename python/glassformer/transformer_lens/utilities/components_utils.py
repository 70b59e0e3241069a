"""Names of activations."""

from __future__ import annotations

import re

_LAYER_TYPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_NAMES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_mid": "mid",
    "mlp_post": "post",
}
_PART_OF = {
    **dict.fromkeys(["k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"], "attn"),
    **dict.fromkeys(["pre", "post", "mid", "pre_linear"], "mlp"),
}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of an activation from a short one.

    `get_act_name("k6")` and `get_act_name("k", 6)` are "blocks.6.attn.hook_k", `get_act_name("scale4ln1")` is
    "blocks.4.ln1.hook_scale", `get_act_name("embed")` is "hook_embed". `layer_type` says which part of a block is
    meant where several have such an activation. A full name is returned as it is; whether a model has an activation of
    the name returned is not looked at.
    """
    if layer is None and layer_type is None and ("." in name or name.startswith("hook_")):
        return name
    short = re.match(r"([a-z]+)(\d+)([a-z]?.*)", name)
    if short is not None:
        name, layer, layer_type = short.groups()
    name = _NAMES.get(name, name)
    layer_type = _PART_OF.get(name, _LAYER_TYPES.get(layer_type, layer_type))
    block = "" if layer is None else f"blocks.{layer}."
    final = "ln_final." if layer is None and name in ("scale", "normalized") else ""
    part = f"{layer_type}." if layer_type else ""
    return f"{final}{block}{part}hook_{name}"
