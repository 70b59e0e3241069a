"""Prompts with a position whose hidden state is replaced; `interventions` has them by the same names."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glassformer import _core

_WORDS = ("king", "1135", "hello")  # Those of the paper on patchscopes.


@dataclass
class TargetPrompt:
    """A prompt, and the index of the token whose hidden state is replaced: negative ones count from the end."""

    prompt: str
    index_to_patch: int


def repeat_prompt(
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    index_to_patch: int = -1,
) -> TargetPrompt:
    """Each word twice, with `rel` between, and the placeholder at the end, so that a model repeats what stands there.

    `sep` separates them; without `words` they are "king", "1135" and "hello".
    """
    pairs = [f"{word}{rel}{word}" for word in (_WORDS if words is None else words)]
    return TargetPrompt(sep.join(pairs) + sep + placeholder, index_to_patch)


def it_repeat_prompt(
    tokenizer: Any,
    words: Sequence[str] | None = None,
    rel: str = " ",
    sep: str = "\n",
    placeholder: str = "?",
    complete_prompt: bool = True,
    add_user_instr: bool = True,
    use_system_prompt: bool = True,
) -> TargetPrompt:
    """The same as a conversation, in the tokenizer's chat template, for models that follow instructions.

    With `add_user_instr` the user explains the task and the assistant agrees; without, the system prompt does, or where
    `use_system_prompt` is off the user in one message. The assistant's last message is open: it begins with the whole
    prompt, or with `complete_prompt=False` with nothing.

    Raises `ValueError` for a tokenizer without chat template; a template that knows no system prompt raises its own
    error, unless `use_system_prompt` is off.
    """
    prompt = repeat_prompt(words, rel, sep, placeholder).prompt
    task = "Guess how it goes on, and answer with the next word and nothing else."
    chat: list[tuple[str, str]] = []
    if add_user_instr:
        chat += [("system", "You help the user.")] if use_system_prompt else []
        chat += [("user", f"You will get lines of text. {task}"), ("assistant", "Yes."), ("user", prompt)]
    elif use_system_prompt:
        chat += [("system", f"The user gives you lines of text. {task}"), ("user", prompt)]
    else:
        chat += [("user", f"Here are lines of text. {task}\n{prompt}")]
    chat += [("assistant", prompt if complete_prompt else "")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in chat], tokenize=False, continue_final_message=True
    )
    return TargetPrompt(text, -1)


@dataclass
class TargetPromptBatch:
    """Several target prompts, each with an index of its own: `index_to_patch` is a tensor, `batch`."""

    prompts: list[str]
    index_to_patch: torch.Tensor

    @classmethod
    def from_target_prompts(cls, prompts_: Sequence[TargetPrompt]) -> TargetPromptBatch:
        """Of a list of target prompts."""
        return cls.from_prompts([one.prompt for one in prompts_], [int(one.index_to_patch) for one in prompts_])

    @classmethod
    def from_target_prompt(cls, prompt: TargetPrompt, batch_size: int) -> TargetPromptBatch:
        """The same target prompt `batch_size` times."""
        return cls.from_target_prompts([prompt] * batch_size)

    @classmethod
    def from_prompts(
        cls, prompts: str | list[str], index_to_patch: int | list[int] | torch.Tensor
    ) -> TargetPromptBatch:
        """Of texts, and one index for all or one for each (`InputError` for another number of them)."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not isinstance(index_to_patch, int | list | torch.Tensor):
            raise _core.InputError(
                f"index_to_patch must be an int, a list of them or a tensor; found {type(index_to_patch).__name__}"
            )
        indices = torch.as_tensor(index_to_patch, dtype=torch.int64)
        if indices.ndim > 1 or indices.numel() not in (1, len(texts)):
            raise _core.InputError(
                f"index_to_patch has shape {list(indices.shape)}; expected one index, or one for each of the "
                f"{len(texts)} prompts"
            )
        return cls(texts, indices.expand(len(texts)).clone())

    @staticmethod
    def auto(
        target_prompt: TargetPrompt | list[TargetPrompt] | TargetPromptBatch, batch_size: int
    ) -> TargetPromptBatch:
        """A batch of what is given: one target prompt is taken `batch_size` times. `InputError` for anything else, a
        text too, which has no index."""
        if isinstance(target_prompt, TargetPromptBatch):
            return target_prompt
        if isinstance(target_prompt, TargetPrompt):
            return TargetPromptBatch.from_target_prompt(target_prompt, batch_size)
        if isinstance(target_prompt, list) and all(isinstance(one, TargetPrompt) for one in target_prompt):
            return TargetPromptBatch.from_target_prompts(target_prompt)
        raise _core.InputError(
            "target prompts must be a TargetPrompt, a list of them or a TargetPromptBatch; found "
            f"{type(target_prompt).__name__}"
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, idx: int) -> TargetPrompt:
        number = operator.index(idx)
        return TargetPrompt(self.prompts[number], int(self.index_to_patch[number]))

    def __iter__(self) -> Iterator[TargetPrompt]:
        return (self[number] for number in range(len(self)))
