"""transformers' keywords of `generate`, read as ours."""

from __future__ import annotations

import operator
from typing import Any

from glassformer import _core
from glassformer.generation import Sampler
from glassformer.nnsight.runs import GenerationOptions

_DEFAULT_LENGTH = 20  # How many new tokens transformers generates where nobody says.
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
    "stopping_criteria": (None, []),
    "logits_processor": (None, []),
    "prefix_allowed_tokens_fn": (None,),
    "negative_prompt_ids": (None,),
    "return_dict_in_generate": (False, None),
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


def generation_options(given: dict[str, Any], config: dict[str, Any], tokenizer: Any, n_prompt: int | None) -> Any:
    """The options among a call's keywords, which it takes out of `given`; what it doesn't say stands in the model's
    generation config. `n_prompt`: how long the prompt is, None where it is not known yet.

    Raises `UnsupportedError` for a keyword of transformers that we lack, where its value would change something, and
    `InputError` for values of the wrong kind and a `max_length` that leaves no room or can't be counted yet.
    """
    own = given.pop("generation_config", None)
    if own is not None:
        config = {**config, **(own if isinstance(own, dict) else own.to_diff_dict())}
    never_ends = "eos_token_id" in given and given["eos_token_id"] is None
    is_asked = given.get("max_length") is not None
    options = {name: value for name, value in config.items() if value is not None}
    for name in list(given):
        if name in _OURS or name in _NEUTRAL or name in _WITHOUT_EFFECT:
            options[name] = given.pop(name)
    for name, value in options.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise _core.UnsupportedError(f"generate({name}={value!r}) is not supported; supported: {', '.join(_OURS)}")
    sample = bool(options.get("do_sample") or False)
    length = _whole(options, "max_new_tokens")
    if length is None:
        length = _rest(_whole(options, "max_length"), n_prompt, is_asked)
    stop = options.get("eos_token_id")
    stop_tokens = None if stop is None else [int(each) for each in (stop if isinstance(stop, list | tuple) else [stop])]
    if never_ends:
        stop_tokens = []
    pad = options.get("pad_token_id")
    if pad is None:
        pad = stop_tokens[0] if stop_tokens else getattr(tokenizer, "eos_token_id", None)
    texts = options.get("stop_strings") or []
    return GenerationOptions(
        length,
        _sampler(options, sample),
        options.get("seed"),
        stop_tokens,
        [texts] if isinstance(texts, str) else list(texts),
        pad,
        _whole(options, "min_new_tokens") or 0,
    )


def _whole(options: dict[str, Any], name: str) -> int | None:
    value = options.get(name)
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise _core.InputError(f"generate({name}={value!r}): expected a whole number") from None


def _real(options: dict[str, Any], name: str, otherwise: float) -> float:
    value = options.get(name)
    if value is not None and (isinstance(value, str) or not hasattr(value, "__float__")):
        raise _core.InputError(f"generate({name}={value!r}): expected a number")
    return otherwise if value is None else float(value)


def _rest(max_length: int | None, n_prompt: int | None, is_asked: bool) -> int:
    """How many tokens come after a prompt; `is_asked`: by the call, and not by the model's config."""
    if max_length is None:
        return _DEFAULT_LENGTH
    if n_prompt is None:
        if is_asked:
            raise _core.InputError(
                f"generate(max_length={max_length}) counts the prompt, which comes with an invoke: give max_new_tokens"
            )
        return max_length
    if is_asked and max_length <= n_prompt:
        raise _core.InputError(
            f"generate(max_length={max_length}): the prompt has {n_prompt} tokens itself; give max_new_tokens, or more"
        )
    return max(max_length - n_prompt, 0)


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
    penalty = _real(options, "repetition_penalty", 1.0) or 1.0
    if not sample:
        return Sampler(repetition_penalty=penalty)
    top_k = _whole(options, "top_k")
    return Sampler(
        sample=True,
        temperature=_real(options, "temperature", 1.0),
        top_k=50 if top_k is None else top_k,  # transformers' default.
        top_p=_real(options, "top_p", 1.0),
        min_p=_real(options, "min_p", 0.0),
        repetition_penalty=penalty,
    )
