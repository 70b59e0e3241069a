"""Prompts with the tokens whose probabilities are of interest, and runs of many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glassformer import _core
from glassformer.nnterp._tokenizers import PEAR, ids_of, puts_space_before
from glassformer.nnterp.nnsight_utils import at_least_one, compute_next_token_probs


class TokenizationError(_core.InputError):
    """A word whose first token can't be told."""


def get_first_tokens(
    words: str | list[str], llm_or_tokenizer: Any, use_hacky_implementation: bool = False
) -> list[int]:
    """The ids of the first tokens of each word, without and with a space before it; each id once.

    `llm_or_tokenizer` is a tokenizer, or a model that has one. Where the tokenizer puts a space before every text, the
    token without space is found behind a character that no word begins with; `use_hacky_implementation` finds all so,
    and then leaves the tokens with a space out.

    Raises `TokenizationError` for a word without tokens, or where that character and the word make common tokens.
    """
    tokenizer = _tokenizer_of(llm_or_tokenizer)
    behind_something = puts_space_before(tokenizer)
    found: list[int] = []
    for word in [words] if isinstance(words, str) else words:
        if use_hacky_implementation:
            found += _behind_pear(word, tokenizer)
            continue
        plain, spaced = (ids_of(tokenizer, text)[:1] for text in (word, f" {word}"))
        if not plain:
            raise TokenizationError(f"{word!r} has no tokens; give a word with at least one")
        if behind_something:
            plain, spaced = _behind_pear(word, tokenizer) or plain, _behind_pear(f" {word}", tokenizer) or spaced
        found += plain
        if spaced != ids_of(tokenizer, " ")[:1]:
            found += spaced
    return list(dict.fromkeys(found))


def _tokenizer_of(llm_or_tokenizer: Any) -> Any:
    tokenizer = getattr(llm_or_tokenizer, "tokenizer", llm_or_tokenizer)
    if tokenizer is None:
        raise _core.InputError("the model has no tokenizer; pass a tokenizer in its place")
    return tokenizer


def _behind_pear(word: str, tokenizer: Any) -> list[int]:
    """The first token of a word that nothing stands before, not even a space; none where the word makes no token."""
    pear, whole = ids_of(tokenizer, PEAR), ids_of(tokenizer, PEAR + word)
    if whole[: len(pear)] != pear:
        raise TokenizationError(
            f"the first token of {word!r} can't be told: this tokenizer puts a space before every text, and the word "
            f"has tokens in common with {PEAR!r} before it; use a tokenizer with add_prefix_space=False"
        )
    return whole[len(pear) : len(pear) + 1]


@dataclass
class Prompt:
    """A prompt, and for each target by name the tokens whose probabilities are summed."""

    prompt: str
    target_tokens: dict[str, list[int]]
    target_strings: dict[str, str | list[str]] | None = None

    @classmethod
    def from_strings(
        cls, prompt: str, target_strings: dict[str, str | list[str]] | list[str] | str, tokenizer: Any
    ) -> Prompt:
        """A prompt whose targets are the first tokens of words, see `get_first_tokens`. A word or a list of words makes
        one target, "target". `InputError` for other kinds of targets."""
        if isinstance(target_strings, str | list):
            target_strings = {"target": target_strings}
        if not isinstance(target_strings, Mapping):
            raise _core.InputError(
                f"targets are a word, a list of words, or either by the target's name; found {target_strings!r}"
            )
        tokens = {name: get_first_tokens(words, tokenizer) for name, words in target_strings.items()}
        return cls(prompt, tokens, target_strings)

    def has_no_collisions(self, ignore_targets: str | list[str] | None = None) -> bool:
        """Whether no token belongs to two targets; `ignore_targets` are left out."""
        ignored = [ignore_targets] if isinstance(ignore_targets, str) else ignore_targets or []
        tokens = [token for name, ids in self.target_tokens.items() if name not in ignored for token in ids]
        return len(tokens) == len(set(tokens))

    def get_target_probs(self, probs: torch.Tensor, layer: int | None = None) -> dict[str, torch.Tensor]:
        """The probability of each target: `batch layer` of probabilities `batch layer d_vocab`, or `batch` of one
        `layer`; on the CPU."""
        sums = {name: probs[..., ids].sum(-1).cpu() for name, ids in self.target_tokens.items()}
        return sums if layer is None else {name: sum_[:, layer] for name, sum_ in sums.items()}

    @torch.no_grad()
    def run(self, nn_model: Any, get_probs: Callable[[Any, str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The probability of each target where `get_probs(model, prompt)` gives those of all tokens; `logit_lens` gives
        one for every layer."""
        return self.get_target_probs(get_probs(nn_model, self.prompt))


def next_token_probs_unsqueeze(nn_model: Any, prompt: str | list[str], remote: bool = False, **_: Any) -> torch.Tensor:
    """The probabilities of the next token with an axis for one layer: `batch 1 d_vocab`."""
    return compute_next_token_probs(nn_model, prompt, remote=remote).unsqueeze(1)


@torch.no_grad()
def run_prompts(
    nn_model: Any,
    prompts: Sequence[Prompt],
    batch_size: int = 32,
    get_probs_func: Callable[..., torch.Tensor] | None = None,
    func_kwargs: dict[str, Any] | None = None,
    remote: bool = False,
    tqdm: Callable[..., Iterable[int]] | None = None,
) -> dict[str, torch.Tensor]:
    """The probability of each target as the next token of each prompt: `batch`, on the CPU, by the target's name.

    `get_probs_func(model, texts, remote=remote, **func_kwargs)` gives the probabilities instead: `batch … d_vocab`, and
    what stands between stays: with `logit_lens` there is one for every layer, `batch layer`. It is called with
    `batch_size` prompts at a time; `tqdm` (`tqdm.auto.tqdm`, say) shows how far it is.

    Raises `InputError` where the prompts have different targets, and for what is no list of `Prompt`s.
    """
    if isinstance(prompts, Prompt) or not all(hasattr(prompt, "target_tokens") for prompt in prompts):
        raise _core.InputError(f"run_prompts takes a list of Prompts; found {prompts!r}")
    if not prompts:
        return {}
    names = list(prompts[0].target_tokens)
    for prompt in prompts:
        if set(prompt.target_tokens) != set(names):
            raise _core.InputError(
                f"all prompts must have the same targets; the first has {', '.join(names)}, and {prompt.prompt!r} has "
                f"{', '.join(prompt.target_tokens)}"
            )
    get_probs, options = get_probs_func or compute_next_token_probs, func_kwargs or {}
    starts: Iterable[int] = range(0, len(prompts), at_least_one(batch_size))
    if tqdm is not None:
        starts = tqdm(starts, desc="Running prompts")
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for start in starts:
        batch = prompts[start : start + batch_size]
        probs = get_probs(nn_model, [prompt.prompt for prompt in batch], remote=remote, **options)
        for prompt, row in zip(batch, probs, strict=True):
            for name, ids in prompt.target_tokens.items():
                sums[name].append(row[..., ids].sum(-1).cpu())
    return {name: torch.stack(rows) for name, rows in sums.items()}
