"""transformers' keywords of `generate`, read as ours."""

from __future__ import annotations

from typing import Any

from glassformer import _core
from glassformer.generation import Sampler
from glassformer.nnsight.runs import GenerationOptions

_DEFAULT_LENGTH = 20  # transformers' max_length.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1, None),
    "num_return_sequences": (1, None),
    "penalty_alpha": (None,),
    "length_penalty": (1.0, None),
    "early_stopping": (False, None),
    "no_repeat_ngram_size": (0, None),
    "encoder_repetition_penalty": (1.0, None),
    "diversity_penalty": (0.0, None),
    "num_beam_groups": (1, None),
    "typical_p": (1.0, None),
    "top_h": (None,),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "min_length": (0, None),
    "bad_words_ids": (None,),
    "force_words_ids": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
    "max_time": (None,),
    "constraints": (None,),
    "remove_invalid_values": (False, None),
    "exponential_decay_length_penalty": (None,),
    "renormalize_logits": (False, None),
    "assistant_model": (None,),
    "prompt_lookup_num_tokens": (None,),
    "dola_layers": (None,),
}
"""Keywords of transformers that we lack, and the values with which they change nothing."""

_WITHOUT_EFFECT = {
    "bos_token_id",
    "decoder_start_token_id",
    "cache_implementation",
    "cache_config",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    "return_dict_in_generate",
    "transformers_version",
    "streamer",
    "synced_gpus",
    "tokenizer",
    "use_cache",
    "disable_compile",
    "_from_model_config",
    "trust_remote_code",
    "return_legacy_cache",
    "is_assistant",
}
"""What is read by other means here, or says only how transformers computes."""


def generation_options(given: dict[str, Any], config: dict[str, Any], tokenizer: Any, n_prompt: int) -> Any:
    """The options among a call's keywords, which it takes out of `given`; what it doesn't say stands in the model's
    generation config.

    Raises `UnsupportedError` for a keyword of transformers that we lack, where its value would change something.
    """
    own = given.pop("generation_config", None)
    if own is not None:
        config = {**config, **(own if isinstance(own, dict) else own.to_diff_dict())}
    never_ends = "eos_token_id" in given and given["eos_token_id"] is None
    options = {**{name: value for name, value in config.items() if value is not None}}
    for name in list(given):
        if name in _OURS or name in _NEUTRAL or name in _WITHOUT_EFFECT:
            options[name] = given.pop(name)
    for name, value in options.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise _core.UnsupportedError(f"generate({name}={value!r}) is not supported; supported: {', '.join(_OURS)}")
    sample = bool(options.get("do_sample") or False)
    length = options.get("max_new_tokens")
    if length is None:
        length = max(int(options.get("max_length") or _DEFAULT_LENGTH) - n_prompt, 0)
    stop = options.get("eos_token_id")
    stop_tokens = (
        None if stop is None else [int(stop)] if not isinstance(stop, list | tuple) else [int(s) for s in stop]
    )
    if never_ends:
        stop_tokens = []
    pad = options.get("pad_token_id")
    if pad is None:
        pad = stop_tokens[0] if stop_tokens else getattr(tokenizer, "eos_token_id", None)
    texts = options.get("stop_strings") or []
    return GenerationOptions(
        int(length),
        _sampler(options, sample),
        options.get("seed"),
        stop_tokens,
        [texts] if isinstance(texts, str) else list(texts),
        pad,
        int(options.get("min_new_tokens") or 0),
    )


_OURS = (
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "eos_token_id",
    "pad_token_id",
    "stop_strings",
    "seed",
)


def _sampler(options: dict[str, Any], sample: bool) -> Sampler:
    penalty = float(options.get("repetition_penalty") or 1.0)
    if not sample:
        return Sampler(repetition_penalty=penalty)
    temperature, top_k = options.get("temperature"), options.get("top_k")
    top_p, min_p = options.get("top_p"), options.get("min_p")
    return Sampler(
        sample=True,
        temperature=1.0 if temperature is None else float(temperature),
        top_k=50 if top_k is None else int(top_k),  # transformers' default.
        top_p=1.0 if top_p is None else float(top_p),
        min_p=0.0 if min_p is None else float(min_p),
        repetition_penalty=penalty,
    )
