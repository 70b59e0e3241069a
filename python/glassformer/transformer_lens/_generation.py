"""Generation, token by token."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer.transformer_lens._engine import Pass
from glassformer.transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults
from glassformer.transformer_lens.utilities.library_utils import needed, with_progress
from glassformer.transformer_lens.utilities.tokenize_utils import get_attention_mask

_RETURN_TYPES = ("input", "str", "tokens", "embeds")


class _Ends:
    """Which sequences have come to an end, and what stands behind it."""

    def __init__(self, tokenizer: Any, stop_at_eos: bool, eos_token_id: int | Sequence[int] | None, batch: int) -> None:
        self.active = stop_at_eos
        self.done = torch.zeros(batch, dtype=torch.bool)
        if not stop_at_eos:
            return
        own = None if tokenizer is None else tokenizer.eos_token_id
        if eos_token_id is None:
            assert own is not None, "stop_at_eos needs an eos_token_id: the model has no tokenizer that knows one"
            eos_token_id = own
        single = isinstance(eos_token_id, int)
        self.tokens = torch.tensor([eos_token_id] if single else list(eos_token_id))
        self.padding = eos_token_id if single else own if own is not None else eos_token_id[0]

    def put(self, sampled: torch.Tensor) -> bool:
        """Write padding behind the ends of `sampled` (batch); True where all sequences have ended."""
        if not self.active:
            return False
        self.done, self.tokens = self.done.to(sampled.device), self.tokens.to(sampled.device)
        sampled[self.done] = self.padding
        self.done |= torch.isin(sampled, self.tokens)
        return bool(self.done.all())


class GenerationMethods:
    """`generate` and `generate_stream`."""

    cfg: Any
    tokenizer: Any

    def _next_logits(self, given: torch.Tensor, mask: torch.Tensor | None, keep: bool) -> Callable[..., torch.Tensor]:
        """A function from what comes next (nothing, then tokens or embeddings of one position; which of them count, if
        not all, batch 1) to the logits of the last position, batch d_vocab, calling every hook at each step."""
        given = given.to(self._device)
        one: Pass | None = None

        def run(more: torch.Tensor | None = None, counts: torch.Tensor | None = None) -> torch.Tensor:
            nonlocal given, mask, one
            all_count = counts is None or bool(counts.all())
            if more is not None:
                given = torch.cat([given, more], dim=1)
                if mask is not None:
                    new = mask.new_ones((mask.shape[0], 1)) if counts is None else counts.to(mask)
                    mask = torch.cat([mask, new], dim=1)
            if not (self._engine.is_own() and self._has_usual_forward()):
                if given.ndim == 3:
                    raise _core.UnsupportedError(
                        "generate() goes on from embeddings only where all modules are the model's own"
                    )
                return self.forward(given, return_type="logits", attention_mask=mask)[:, -1]
            if one is not None and keep and all_count:
                one.trace.append(more)
            else:
                one = Pass(self._engine, given, mask)
                one.add_hooks(self._is_open)
            one.run("logits")
            return one.trace.logits_at(-1)

        return run

    def _sample(self, logits: torch.Tensor, do_sample: bool, **options: Any) -> torch.Tensor:
        from glassformer.transformer_lens.utilities import sample_logits

        return sample_logits(logits, **options) if do_sample else logits.argmax(-1)

    def _generation_input(
        self, input: Any, prepend_bos: bool | None, padding_side: str | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (batch pos) or embeddings (batch pos d_model), and the mask of what is padding."""
        is_batch = isinstance(input, list) and len(input) > 1
        if isinstance(input, str | list):
            assert self.tokenizer is not None, "a text as input needs a tokenizer; this model has none"
            input = self.to_tokens(input, prepend_bos=prepend_bos, padding_side="left" if is_batch else padding_side)
        if input.ndim != 2 or self.tokenizer is None:
            return input, None
        prepends = self.cfg.default_prepend_bos if prepend_bos is USE_DEFAULT_VALUE else prepend_bos
        side = "left" if is_batch else None
        return input, get_attention_mask(self.tokenizer, input, prepends, padding_side=side)

    @torch.no_grad()
    def generate(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
        return_type: str = "input",
        verbose: bool = True,
        **generation_kwargs: Any,
    ) -> Any:
        """Continue a text, texts, tokens (batch pos) or embeddings (batch pos d_model).

        A sequence ends with `eos_token_id` (the tokenizer's; one or several) if `stop_at_eos`, and is padded until all
        have ended or have `max_new_tokens` more. `do_sample` draws from the logits over `temperature`, from the `top_k`
        most likely or those that make `top_p` of the probability; `freq_penalty` is taken off for every time that a
        token occurred. Otherwise the most likely token is taken. Hooks are called at every step, on the positions that
        are new (on all of them without `use_past_kv_cache`), also those on `hook_embed` and `hook_pos_embed`, which
        TransformerLens leaves out or calls on all positions; results are tensors under `no_grad`, not of its
        `inference_mode`. The cache changes no result: every token has its own position, also where TransformerLens's
        cache without a mask (embeddings, or no tokenizer) takes positions too far on, or fails.
        `return_type`: "str", "tokens", "embeds", or "input" for
        what was given; input comes first in it, but for tokens or texts of embeddings. `output_logits=True` returns
        transformers' output with the `logits` of every step. `verbose` shows a progress bar.
        """
        _check_number(max_new_tokens)
        assert isinstance(input, str | torch.Tensor) or (
            isinstance(input, list) and all(isinstance(each, str) for each in input)
        ), f"input is a text, a list of texts or a tensor; found {type(input).__name__}"
        assert return_type in _RETURN_TYPES, f"return_type is one of {', '.join(_RETURN_TYPES)}; found {return_type!r}"
        assert return_type != "str" or self.tokenizer is not None, "return_type 'str' needs a tokenizer; there is none"
        wants_logits = _wants_logits(generation_kwargs)
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            given, mask = self._generation_input(input, prepend_bos, padding_side)
            if given.ndim not in (2, 3):
                raise _core.ShapeError(f"expected tokens, batch pos, or embeddings; found shape {list(given.shape)}")
            from_tokens = given.ndim == 2
            if return_type == "input":
                return_type = "str" if isinstance(input, str | list) else "tokens" if from_tokens else "embeds"
            given = given.to(self._device)
            ends = _Ends(self.tokenizer, stop_at_eos, eos_token_id, given.shape[0])
            self.eval()
            run = self._next_logits(given, mask, use_past_kv_cache)
            logits, sampled, more = [], [], None
            for _ in with_progress(range(max_new_tokens), disable=not verbose):
                logits.append(run(more))
                options: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "temperature": temperature}
                if from_tokens:
                    options |= {"freq_penalty": freq_penalty, "tokens": torch.cat([given, *sampled], dim=1)}
                chosen = self._sample(logits[-1], do_sample, **options)
                all_ended = ends.put(chosen)
                sampled.append(chosen.unsqueeze(1))
                more = sampled[-1] if from_tokens else self.embed(sampled[-1])
                if all_ended:
                    break
            tokens = torch.cat([given, *sampled] if from_tokens else sampled, dim=1)
            result: Any = tokens
            if return_type == "str":
                texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
                result = texts[0] if len(texts) == 1 else texts
            elif return_type == "embeds":
                embedded = [self.embed(each) for each in sampled]
                result = torch.cat([self.embed(given) if from_tokens else given, *embedded], dim=1)
            if not wants_logits:
                return result
            output = needed("transformers", "an output with logits").generation.GenerateDecoderOnlyOutput
            return output(sequences=tokens, logits=tuple(logits))

    @torch.no_grad()
    def generate_stream(
        self,
        input: str | torch.Tensor = "",
        max_new_tokens: int = 10,
        max_tokens_per_yield: int = 25,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
        return_type: str = "input",
        verbose: bool = True,
    ) -> Iterator[torch.Tensor]:
        """`generate` of a text or of tokens (batch pos), whose tokens come while they are made: batch new, whenever
        there are `max_tokens_per_yield` of them, the input's among the first. `return_type` says nothing here.

        With a tokenizer, tokens of padding that are drawn are hidden from what comes next, as TransformerLens does
        here; hooks are then called on all positions again.
        """
        _check_number(max_new_tokens)
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            if isinstance(input, str):
                assert self.tokenizer is not None, "a text as input needs a tokenizer; this model has none"
                tokens = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
            else:
                assert isinstance(input, torch.Tensor), f"input is a text or a tensor; found {type(input).__name__}"
                tokens = input
            if tokens.ndim != 2:
                raise _core.ShapeError(f"expected tokens, batch pos; found shape {list(tokens.shape)}")
            tokens = tokens.to(self._device)
            ends = _Ends(self.tokenizer, stop_at_eos, eos_token_id, tokens.shape[0])
            hides = self.tokenizer is not None and (use_past_kv_cache or self.tokenizer.padding_side == "left")

            def mask_of(tokens: torch.Tensor) -> torch.Tensor | None:
                prepends = bool(self.cfg.default_prepend_bos)
                return get_attention_mask(self.tokenizer, tokens, prepends) if hides else None

            mask, counts = mask_of(tokens), None
            self.eval()
            run = self._next_logits(tokens, mask, use_past_kv_cache)
            waiting, more = [tokens], None
            for _ in with_progress(range(max_new_tokens), disable=not verbose):
                options = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "freq_penalty": freq_penalty}
                more = self._sample(run(more, counts), do_sample, **options, tokens=tokens)
                all_ended = ends.put(more)
                more = more.unsqueeze(1)
                tokens = torch.cat([tokens, more], dim=1)
                if hides:  # What stands behind an end changes nothing any more.
                    new = mask_of(more if use_past_kv_cache else tokens)[:, -1:]
                    counts = new.bool() | ends.done.unsqueeze(1)
                waiting.append(more)
                if sum(each.shape[1] for each in waiting) >= max_tokens_per_yield:
                    yield torch.cat(waiting, dim=1)
                    waiting = []
                if all_ended:
                    break
            if waiting and more is not None:
                yield torch.cat(waiting, dim=1)


def _check_number(max_new_tokens: int) -> None:
    if max_new_tokens < 0:
        raise _core.InputError(f"max_new_tokens is {max_new_tokens}; expected 0 or more")


def _wants_logits(options: dict[str, Any]) -> bool:
    others = sorted(options.keys() - {"output_logits", "return_dict_in_generate"})
    if others:
        warnings.warn(
            f"generate() knows nothing of {', '.join(others)}, and goes on without", UserWarning, stacklevel=3
        )
    return bool(options.get("output_logits", False))
