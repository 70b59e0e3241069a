"""Rough measures of models: TransformerLens' numbers and ours, each of its own model on the same weights."""

import random
import sys

import pytest
import torch
import transformer_lens.evals as judge
from datasets import Dataset
from tl_words import WORDS, word_model, word_tokenizer

import glassformer.transformer_lens
import glassformer.transformer_lens.evals as ours

SIDES = (ours, judge)
SENTENCES = "Then , . [ ] went to the store market and buy milk eggs bread gave handed John Mary met Ann with a ball"
SENTENCES = list(dict.fromkeys(SENTENCES.split()))


def models_of(**options):
    return {ours: word_model(package=glassformer.transformer_lens, **options), judge: word_model(**options)}


@pytest.fixture(scope="module")
def models():
    return models_of(words=SENTENCES)


def same(call, exact=False):
    """What `call` makes of each side with the same random numbers; they must agree."""
    made = []
    for side in SIDES:
        torch.manual_seed(6)
        random.seed(6)
        made.append(call(side))
    assert made[0] == (made[1] if exact else pytest.approx(made[1], rel=1e-12, abs=1e-12))
    return made[0]


def test_sentences():
    tokenizer = word_tokenizer(words=SENTENCES)
    names, templates = ["Ann", "John Mary", "Mary"], ["[A] met with [B] . [B] gave the [THING] to [A]"]
    given = {"names": names, "templates": templates, "nouns": {"THING": ["ball", "milk"]}}
    for options in (
        {},
        {"symmetric": True, "num_samples": 7},
        {"seed": 3, "num_samples": 20, "prepend_bos": False},
        {**given, "num_samples": 30, "symmetric": True},
    ):
        made = []
        for side in SIDES:
            random.seed(1)
            dataset = side.IOIDataset(tokenizer, **options)
            assert isinstance(dataset, torch.utils.data.Dataset)
            made.append([{key: value.tolist() for key, value in dataset[i].items()} for i in range(len(dataset))])
            made[-1] += dataset.samples
        assert made[0] == made[1] and len(made[0]) > 10
    for name in ("names", "templates", "nouns"):
        assert getattr(ours.IOIDataset, f"get_default_{name}")() == getattr(judge.IOIDataset, f"get_default_{name}")()


def test_indirect_objects(models):
    found = same(lambda side: side.ioi_eval(models[side], num_samples=21, batch_size=4))
    assert set(found) == {"Logit Difference", "Accuracy"} and found["Logit Difference"] != 0
    same(
        lambda side: side.ioi_eval(
            models[side], num_samples=10, symmetric=True, tokenizer=word_tokenizer(words=SENTENCES)
        )
    )
    names = ["Ann", "John Mary", "John Ann", "Mary"]  # Some differ in their second token only.

    def of_own_names(side):
        dataset = side.IOIDataset(models[side].tokenizer, names=names, num_samples=30, seed=2)
        return side.ioi_eval(models[side], dataset, batch_size=7)

    assert 0 < same(of_own_names)["Accuracy"] < 1
    model = models[ours]
    with pytest.raises(ValueError, match="don't differ; expected two names that do"):
        ours.ioi_eval(model, ours.IOIDataset(model.tokenizer, names=["Ann", "Ann"], num_samples=1))


def test_induction():
    models = models_of(d_vocab=20_000, d_model=6, d_head=2, d_mlp=4)
    for options in (
        {},
        {"prepend_bos": False},
        {"prepend_bos": True, "tokenizer": word_tokenizer(bos="</s>")},
        {"batch_size": 2, "subseq_len": 11},
    ):
        given = {"batch_size": 3, "subseq_len": 19, "device": "cpu"} | options
        loss = same(lambda side, given=given: side.induction_loss(models[side], **given).item())
        assert loss > 5
    torch.manual_seed(0)
    loss = ours.induction_loss(models[ours], subseq_len=5)
    assert loss.device == models[ours].embed.W_E.device and not loss.requires_grad


def test_losses_on_batches(models, monkeypatch):
    batches = [{"tokens": torch.randint(0, 20, (2, 9))} for _ in range(6)]
    for truncate in (100, 0, 3, 5):
        same(lambda side, cut=truncate: side.evaluate_on_dataset(models[side], batches, truncate=cut, device="cpu"))
    model = models[ours]
    assert ours.evaluate_on_dataset(model, batches) == judge.evaluate_on_dataset(model, batches, device="cpu")
    with pytest.raises(ValueError, match="makes no batch"):
        ours.evaluate_on_dataset(model, [])
    monkeypatch.setattr(model, "forward", lambda text, return_type: (text, return_type))
    assert ours.sanity_check(model) == judge.sanity_check(model)


LOADERS = ["make_wiki_data_loader", "make_owt_data_loader", "make_pile_data_loader", "make_code_data_loader"]


def texts():
    choose = random.Random(1)
    rows = [" ".join(choose.choices(WORDS, k=choose.randrange(500, 3000))) for _ in range(24)]
    return Dataset.from_dict({"text": rows, "content": [" ".join(row.split()[::-1]) for row in rows]})


@pytest.fixture
def on_the_hub(monkeypatch):
    """Data sets load as if they were there; a list of what was asked for."""
    asked = []

    def load_dataset(*path, split):
        asked.append((path, split))
        return texts()

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(judge, "load_dataset", load_dataset)
    own = ours.tokenize_and_concatenate

    def in_this_process(*args, **options):
        return own(*args, num_proc=None, **options)

    monkeypatch.setattr(ours, "tokenize_and_concatenate", in_this_process)
    monkeypatch.setattr(judge.utils, "tokenize_and_concatenate", in_this_process)
    return asked


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name, on_the_hub, capsys):
    def batches(side):
        loader = getattr(side, name)(word_tokenizer(), batch_size=3)
        return [[batch["tokens"].tolist() for batch in loader], capsys.readouterr().out]

    found = same(batches, exact=True)
    assert found[1].startswith("24\n") and len(found[0]) > 5 and len(found[0][0]) == 3
    assert len(on_the_hub) == 2 and on_the_hub[0] == on_the_hub[1]
    torch.manual_seed(6)
    handed = getattr(ours, name)(word_tokenizer(), batch_size=3, dataset=texts())
    assert [batch["tokens"].tolist() for batch in handed] == found[0]
    assert len(on_the_hub) == 2


def test_all_losses(on_the_hub, monkeypatch, capsys):
    assert ours.DATASET_NAMES == judge.DATASET_NAMES
    assert (
        [each.__name__ for each in ours.DATASET_LOADERS] == [each.__name__ for each in judge.DATASET_LOADERS] == LOADERS
    )
    models = models_of(n_ctx=1024)
    own = judge.evaluate_on_dataset
    monkeypatch.setattr(judge, "evaluate_on_dataset", lambda *args, **options: own(*args, **options, device="cpu"))
    found = same(lambda side: side.evaluate(models[side], truncate=1, batch_size=2))
    assert list(found) == ["wiki_loss", "owt_loss", "pile_loss", "code_loss"]
    same(
        lambda side: [side.evaluate(models[side], 0, 2, word_tokenizer())["code_loss"], len(capsys.readouterr().out)][0]
    )


def test_data_sets_that_cannot_be_had(monkeypatch):
    def fails(*args, **options):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr("datasets.load_dataset", fails)
    for name in LOADERS:
        with pytest.raises(OSError, match=rf"can't be loaded \(ConnectionError\).* {name}\(\) takes dataset=") as error:
            getattr(ours, name)(word_tokenizer())
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"make_pile_data_loader\(\) needs the package 'datasets'"):
        ours.make_pile_data_loader(word_tokenizer())
    with pytest.raises(ImportError, match=r"make_mmlu_data_loader\(\) needs the package 'datasets'"):
        ours.make_mmlu_data_loader("anatomy")


def questions(subject, count=4):
    choose = random.Random(subject)
    return [
        {
            "question": " ".join(choose.choices(WORDS, k=6)),
            "choices": choose.sample(WORDS, choose.choice([3, 4])),
            "answer": choose.randrange(3),
            "other": 1,
        }
        for _ in range(count)
    ]


def test_questions_with_choices(monkeypatch, capsys):
    def load_dataset(path, subject, split):
        assert (path, split) == ("cais/mmlu", "dev")
        if subject == "virology":
            raise FileNotFoundError(subject)
        return questions(subject)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(judge, "load_dataset", load_dataset)
    assert ours.MMLU_SUBJECTS == judge.MMLU_SUBJECTS and ours.MMLU_ANSWER_LETTERS == judge.MMLU_ANSWER_LETTERS
    for subjects, count in (
        (None, 1),
        ("anatomy", None),
        (["anatomy", "virology", "management"], 3),
        (["virology"], 5),
    ):
        made = same(
            lambda side, *args: [side.make_mmlu_data_loader(subjects, "dev", count), capsys.readouterr().out],  # noqa: B023
            exact=True,
        )
        assert "MMLU examples" in made[1]
    models = models_of(words=[*WORDS, "Question", "Choices", "Answer", ":", ".", *"ABCD"], n_ctx=80)
    subjects = ["anatomy", "management"]
    found = same(lambda side: list(side.mmlu_eval(models[side], None, subjects, "dev").values()), exact=True)
    assert 0 < found[0] < 1 and found[2] == 8
    handed = [question | {"subject": "own"} for question in questions("own", 30)]
    monkeypatch.setattr(judge, "make_mmlu_data_loader", lambda **options: handed)
    expected = judge.mmlu_eval(models[judge])
    monkeypatch.undo()
    assert ours.mmlu_eval(models[ours], dataset=handed) == expected and 0 < expected["accuracy"] < 1
    for side in SIDES:
        with pytest.raises(ValueError):
            side.make_mmlu_data_loader(["anatomy", "alchemy"])
    many = {"question": "the cat", "choices": WORDS[:5], "answer": 4, "subject": "own"}
    with pytest.raises(ValueError, match="a question has 5 choices; expected at most 4"):
        ours.mmlu_eval(models[ours], dataset=[many])
    with pytest.raises(ValueError, match="there are no questions"):
        ours.mmlu_eval(models[ours], dataset=[])
