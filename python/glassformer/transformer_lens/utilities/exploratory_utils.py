"""A first look at what a model says."""

from __future__ import annotations

from typing import Any

import torch

from glassformer import _core


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: Any,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how likely the model makes an answer behind a prompt: for each token of it the rank, the logit and the
    probability, and the `top_k` most likely tokens at its place; last, the ranks (alone if not `print_details`).

    Several answers are compared by their first tokens. `prepend_space_to_answer` puts a space before answers without
    one; `prepend_bos` says whether the prompt gets a begin-of-text token (None: as the model does).
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    several = len(answers) > 1
    if prepend_space_to_answer:
        answers = [text if text.startswith(" ") else f" {text}" for text in answers]
    answer_tokens = model.to_tokens(answers, prepend_bos=False)
    if several:
        answer_tokens = answer_tokens[:, :1]
    prompt_tokens = model.to_tokens(prompt, prepend_bos=prepend_bos).repeat(len(answers), 1)
    prompt_texts = model.to_str_tokens(prompt, prepend_bos=prepend_bos)
    answer_texts = [model.to_str_tokens(text, prepend_bos=False) for text in answers]
    if print_details:
        print("Tokenized prompt:", prompt_texts)
        print("Tokenized answers:" if several else "Tokenized answer:", answer_texts if several else answer_texts[0])
    logits = model(torch.cat([prompt_tokens, answer_tokens], dim=1)).detach()
    ranks = []
    for place in range(1 if several else len(answer_texts[0])):
        here = logits[:, len(prompt_texts) + place - 1]
        ranking = _core.rank_tokens(here)
        tokens = answer_tokens[:, place].tolist()
        texts = [each[place] for each in answer_texts]
        ranks.append([(texts[row], ranking.ranks[row, token].item()) for row, token in enumerate(tokens)])
        if print_details:
            lines = [
                f"Rank: {ranks[-1][row][1]: <8} {_numbers(here, ranking, row, token)} Token: |{texts[row]}|"
                for row, token in enumerate(tokens)
            ]
            _print_bold(f"Performance on answer token{'s' if several else ''}:\n", "\n".join(lines))
            for index, token in enumerate(ranking.order[0, :top_k]):
                numbers = _numbers(here, ranking, 0, token.item())
                print(f"Top {index}th token. {numbers} Token: |{model.to_string(token)}|")
    _print_bold("", "Ranks of the answer tokens:", f" {ranks if several else [each[0] for each in ranks]}")


test_prompt.__test__ = False  # Its name would make it a test of every file that imports it.


def _numbers(logits: torch.Tensor, ranking: Any, row: int, token: int) -> str:
    probability = ranking.probabilities[row, token].item()
    return f"Logit: {logits[row, token].item():5.2f} Prob: {probability:6.2%}"


def _print_bold(before: str, bold: str, behind: str = "") -> None:
    """Print with the middle in bold letters, where `rich` is installed."""
    try:
        import rich
        from rich.markup import escape
    except ModuleNotFoundError:
        print(before + bold + behind)
        return
    lines = "\n".join(f"[b]{escape(line)}[/b]" for line in bold.split("\n"))
    rich.print(escape(before) + lines + escape(behind))
