"""Rough measures of how good a model is, to compare models by."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from glassformer import _core
from glassformer.transformer_lens.utilities.defaults_utils import override_or_use_default_value
from glassformer.transformer_lens.utilities.devices import warn_if_mps
from glassformer.transformer_lens.utilities.library_utils import needed, with_progress
from glassformer.transformer_lens.utilities.lm_utils import lm_cross_entropy_loss
from glassformer.transformer_lens.utilities.tokenize_utils import tokenize_and_concatenate

_PARAGRAPH = (
    "Many important transition points in the history of science have been moments when science 'zoomed in.' At these "
    "points, we develop a visualization or tool that allows us to see the world in a new level of detail, and a new "
    "field of science develops to study the world through this lens."
)


def sanity_check(model: Any) -> torch.Tensor:
    """The loss on one paragraph of English: below 5 for a language model that works, above 7 for one that doesn't."""
    return model(_PARAGRAPH, return_type="loss")


def _load(purpose: str, path: str, *config: str, split: str) -> Any:
    load_dataset = needed("datasets", purpose).load_dataset
    try:
        return load_dataset(path, *config, split=split)
    except Exception as error:
        raise _core.FileError(
            f"the data set '{path}' can't be loaded ({type(error).__name__}); without a network, hand one over: "
            f"{purpose} takes dataset=..., one of the package 'datasets' with the same columns"
        ) from error


def _data_loader(
    purpose: str, given: Any | None, path: list[str], tokenizer: Any, batch_size: int, column: str = "text"
) -> DataLoader:
    texts = _load(purpose, *path, split="train") if given is None else given
    print(len(texts))
    dataset = tokenize_and_concatenate(texts, tokenizer, column_name=column)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)


def make_wiki_data_loader(tokenizer: Any, batch_size: int = 8, dataset: Any | None = None) -> DataLoader:
    """Batches of tokens of Wikitext 2, or of the column "text" of `dataset`; prints how many texts there are.

    Every one of these loaders needs a `tokenizer` of `transformers`, and raises FileError where the data set can't be
    loaded and none is given, ImportError where the package `datasets` is missing.
    """
    return _data_loader("make_wiki_data_loader()", dataset, ["wikitext", "wikitext-2-v1"], tokenizer, batch_size)


def make_owt_data_loader(tokenizer: Any, batch_size: int = 8, dataset: Any | None = None) -> DataLoader:
    """The same of the first 10,000 texts of OpenWebText, which is much like what GPT-2 was trained on."""
    return _data_loader("make_owt_data_loader()", dataset, ["stas/openwebtext-10k"], tokenizer, batch_size)


def make_pile_data_loader(tokenizer: Any, batch_size: int = 8, dataset: Any | None = None) -> DataLoader:
    """The same of the first 10,000 texts of The Pile."""
    return _data_loader("make_pile_data_loader()", dataset, ["NeelNanda/pile-10k"], tokenizer, batch_size)


def make_code_data_loader(tokenizer: Any, batch_size: int = 8, dataset: Any | None = None) -> DataLoader:
    """The same of Python code, in a column "content"."""
    path = ["codeparrot/codeparrot-valid-v2-near-dedup"]
    return _data_loader("make_code_data_loader()", dataset, path, tokenizer, batch_size, column="content")


DATASET_NAMES = ["wiki", "owt", "pile", "code"]
DATASET_LOADERS: list[Callable[..., DataLoader]] = [
    make_wiki_data_loader,
    make_owt_data_loader,
    make_pile_data_loader,
    make_code_data_loader,
]


@torch.no_grad()
def evaluate_on_dataset(
    model: Any, data_loader: Any, truncate: int = 100, device: str | torch.device | None = None
) -> float:
    """The mean loss of a model on batches with "tokens", `batch pos`; no batches are taken behind the `truncate`-th and
    one more. `device` is where the tokens go (None: to the model). No batches are a ValueError."""
    device = model.cfg.device if device is None else device
    warn_if_mps(device)
    losses: list[float] = []
    for batch in with_progress(data_loader):
        losses.append(model(batch["tokens"].to(device), return_type="loss").mean().item())
        if len(losses) > truncate:
            break
    if not losses:
        raise _core.InputError("the data set makes no batch; expected one or more")
    return sum(losses) / len(losses)


@torch.no_grad()
def induction_loss(
    model: Any,
    tokenizer: Any | None = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """The mean loss on the second half of random tokens that stand there twice, `subseq_len` each: small where a model
    has induction heads.

    Tokens are from 100 to 19,999, drawn with torch's own generator. With `prepend_bos` (None: as the model's config
    says) the first is the begin-of-text token. `device` is where the tokens go (None: to the model).
    """
    device = model.cfg.device if device is None else device
    warn_if_mps(device)
    tokens = torch.randint(100, 20000, (batch_size, subseq_len)).repeat(1, 2).to(device)
    if override_or_use_default_value(model.cfg.default_prepend_bos, override=prepend_bos):
        tokens[:, 0] = (model.tokenizer if tokenizer is None else tokenizer).bos_token_id
    losses = lm_cross_entropy_loss(model(tokens, return_type="logits"), tokens, per_token=True)
    return losses[:, subseq_len + 1 :].mean()


@torch.no_grad()
def evaluate(model: Any, truncate: int = 100, batch_size: int = 8, tokenizer: Any | None = None) -> dict[str, float]:
    """The mean losses on all data sets of DATASET_NAMES, "wiki_loss" and so on; prints them. See `evaluate_on_dataset`
    and the loaders."""
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    losses = {}
    for name, loader in zip(DATASET_NAMES, DATASET_LOADERS, strict=True):
        loss = evaluate_on_dataset(model, loader(tokenizer=tokenizer, batch_size=batch_size), truncate=truncate)
        print(f"{name}: {loss}")
        losses[f"{name}_loss"] = loss
    return losses


class IOIDataset(Dataset):
    """Sentences with an indirect object (Wang et al. 2022): "Mary and John went to the store to buy milk. John handed
    the milk to Mary". Each entry has the tokens of the sentence ("prompt"), of " Mary" ("IO") and of " John" ("S").

    In `templates` stand [A] for the one name, [B] for the other, and the keys of `nouns` in brackets for one of their
    words. `symmetric` makes two sentences of each pair of names, both ways round. Drawn with Python's own generator,
    from `seed` if one is given.
    """

    def __init__(
        self,
        tokenizer: Any,
        templates: list[str] | None = None,
        names: list[str] | None = None,
        nouns: dict[str, list[str]] | None = None,
        num_samples: int = 1000,
        symmetric: bool = False,
        prepend_bos: bool = True,
        seed: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.prepend_bos = prepend_bos
        if seed is not None:
            random.seed(seed)
        self.templates = self.get_default_templates() if templates is None else templates
        self.names = self.get_default_names() if names is None else names
        self.nouns = self.get_default_nouns() if nouns is None else nouns
        self.samples: list[dict[str, str]] = []
        for _ in range(num_samples // 2 if symmetric else num_samples):
            self.samples += self.get_sample(symmetric=symmetric)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        sample = self.samples[idx]
        bos = [self.tokenizer.bos_token_id] if self.prepend_bos else []
        prompt = torch.tensor(bos + self.tokenizer.encode(sample["text"]))
        return {"prompt": prompt} | {name: torch.tensor(self.tokenizer.encode(sample[name])) for name in ("IO", "S")}

    def get_sample(self, symmetric: bool = False) -> list[dict[str, str]]:
        """One new sentence, or two: its "text", "IO" and "S" (names with a space before)."""
        template = random.choice(self.templates)
        for kind, words in self.nouns.items():
            template = template.replace(f"[{kind}]", random.choice(words))
        pair = random.sample(self.names, 2)
        return [
            {"text": template.replace("[A]", a).replace("[B]", b), "IO": f" {a}", "S": f" {b}"}
            for a, b in ([pair, pair[::-1]] if symmetric else [pair])
        ]

    @staticmethod
    def get_default_names() -> list[str]:
        """The names if none are given."""
        return ["John", "Mary"]

    @staticmethod
    def get_default_templates() -> list[str]:
        """The sentences if none are given."""
        return [
            "[A] and [B] went to the [LOCATION] to buy [OBJECT]. [B] handed the [OBJECT] to [A]",
            "Then, [B] and [A] went to the [LOCATION]. [B] gave the [OBJECT] to [A]",
        ]

    @staticmethod
    def get_default_nouns() -> dict[str, list[str]]:
        """The words of the default sentences."""
        return {"LOCATION": ["store", "market"], "OBJECT": ["milk", "eggs", "bread"]}


@torch.no_grad()
def ioi_eval(
    model: Any,
    dataset: Any | None = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any | None = None,
    symmetric: bool = False,
) -> dict[str, float]:
    """How well a model tells the indirect object from the subject: the mean "Logit Difference" of the two, where they
    first differ at the end of the sentence, and the "Accuracy": how often it is above 0.

    `dataset` has entries like those of `IOIDataset`, of which one with `num_samples` is made if none is given.
    """
    if dataset is None:
        tokenizer = model.tokenizer if tokenizer is None else tokenizer
        dataset = IOIDataset(tokenizer, num_samples=num_samples, symmetric=symmetric)
    differences: list[float] = []
    for batch in with_progress(DataLoader(dataset, batch_size=batch_size, shuffle=True, collate_fn=list)):
        prompts = [sample["prompt"] for sample in batch]
        padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        logits = model(padded, return_type="logits")
        for sample, row in zip(batch, logits, strict=True):
            differences.append(_logit_difference(row, sample["prompt"], sample["IO"], sample["S"]))
    correct = sum(difference > 0 for difference in differences)
    return {
        "Logit Difference": sum(differences) / len(dataset),
        "Accuracy": correct / len(dataset),
    }


def _logit_difference(logits: torch.Tensor, prompt: torch.Tensor, io: torch.Tensor, s: torch.Tensor) -> float:
    """Of the first tokens in which `io`, at the end of the prompt, and `s` differ, by logits `pos d_vocab`."""
    length = min(len(io), len(s))
    different = (io[:length] != s[:length]).nonzero()
    if len(different) == 0:
        raise _core.InputError(f"the tokens {io.tolist()} and {s.tolist()} don't differ; expected two names that do")
    place = int(different[0])
    before = logits[len(prompt) - len(io) + place - 1]
    return (before[io[place]] - before[s[place]]).item()


MMLU_SUBJECTS = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
]
MMLU_ANSWER_LETTERS = ["A", "B", "C", "D"]


def make_mmlu_data_loader(
    subjects: str | list[str] | None = None, split: str = "test", num_samples: int | None = None
) -> list[dict[str, Any]]:
    """The questions of MMLU (Hendrycks et al. 2021) on a subject, several, or all of MMLU_SUBJECTS, at most
    `num_samples` on each: "question", "choices", "answer" (the number of a choice) and "subject".

    Prints how many there are, and which subjects could not be loaded. Other subjects are a ValueError; ImportError
    where the package `datasets` is missing.
    """
    chosen = MMLU_SUBJECTS if subjects is None else [subjects] if isinstance(subjects, str) else list(subjects)
    unknown = sorted(set(chosen) - set(MMLU_SUBJECTS))
    if unknown:
        raise _core.InputError(f"MMLU has no subjects {unknown}; expected some of {', '.join(MMLU_SUBJECTS)}")
    load_dataset = needed("datasets", "make_mmlu_data_loader()").load_dataset
    questions = []
    for subject in chosen:
        try:
            dataset = load_dataset("cais/mmlu", subject, split=split)
            count = len(dataset) if num_samples is None else min(num_samples, len(dataset))
            for index in range(count):
                entry = dataset[index]
                questions.append({key: entry[key] for key in ("question", "choices", "answer")} | {"subject": subject})
        except Exception as error:
            print(f"Warning: Could not load subject '{subject}': {error}")
    print(f"Loaded {len(questions)} MMLU examples from {len(chosen)} subject(s)")
    return questions


@torch.no_grad()
def mmlu_eval(
    model: Any,
    tokenizer: Any | None = None,
    subjects: str | list[str] | None = None,
    split: str = "test",
    num_samples: int | None = None,
    dataset: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """How often a model holds the letter of the right answer for the most likely of the letters: "accuracy",
    "num_correct", "num_total", and "subject_scores" by subject.

    The questions are those of `make_mmlu_data_loader`, or a `dataset` like what it returns. No questions are a
    ValueError, and so is one with more choices than letters.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    questions = make_mmlu_data_loader(subjects, split, num_samples) if dataset is None else dataset
    if not questions:
        raise _core.InputError("there are no questions; look at what was printed, or hand over dataset=...")
    letters = [_letter_token(tokenizer, letter) for letter in MMLU_ANSWER_LETTERS]
    results: dict[str, list[bool]] = {}
    for question in with_progress(questions, desc="Evaluating MMLU"):
        tokens = tokenizer.encode(_mmlu_prompt(question), return_tensors="pt").to(model.cfg.device)
        last = model(tokens, return_type="logits")[0, -1]
        logits = last[letters[: len(question["choices"])]].tolist()
        right = logits.index(max(logits)) == question["answer"]
        results.setdefault(question["subject"], []).append(right)
    every = [right for subject in results.values() for right in subject]
    return {
        "accuracy": sum(every) / len(every),
        "num_correct": sum(every),
        "num_total": len(every),
        "subject_scores": {subject: sum(rights) / len(rights) for subject, rights in results.items()},
    }


def _letter_token(tokenizer: Any, letter: str) -> int:
    """With a space before it if that is one token."""
    spaced = tokenizer.encode(f" {letter}", add_special_tokens=False)
    return (spaced if len(spaced) == 1 else tokenizer.encode(letter, add_special_tokens=False))[0]


def _mmlu_prompt(question: dict[str, Any]) -> str:
    if len(question["choices"]) > len(MMLU_ANSWER_LETTERS):
        raise _core.InputError(f"a question has {len(question['choices'])} choices; expected at most 4")
    choices = [f"{letter}. {text}" for letter, text in zip(MMLU_ANSWER_LETTERS, question["choices"], strict=False)]
    return "\n".join([f"Question: {question['question']}", "Choices:", *choices, "Answer:"])
