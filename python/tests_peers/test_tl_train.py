"""Training: TransformerLens' losses and weights and ours, of its own model."""

import copy
import dataclasses
import sys
import types

import pytest
import torch
import transformer_lens.train as judge
from tl_words import WORDS, word_model

import glassformer.transformer_lens
import glassformer.transformer_lens.train as ours

SIDES = (ours, judge)


class Rows(torch.utils.data.Dataset):
    """Random tokens, the same each time."""

    def __init__(self, rows=21, length=7):
        self.tokens = torch.randint(0, len(WORDS), (rows, length), generator=torch.Generator().manual_seed(2))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index]}


def trained(side, tmp_path, capsys, **options):
    """The model, what was printed, and the states that were written."""
    folder = tmp_path / side.__name__.split(".")[0]
    folder.mkdir(exist_ok=True)
    model = word_model()
    model.eval()
    config = side.HookedTransformerTrainConfig(
        **{"num_epochs": 2, "batch_size": 4, "device": "cpu", "print_every": 1, "save_dir": str(folder)} | options
    )
    before = copy.deepcopy(config)
    returned = side.train(model, config, Rows())
    assert returned is model and model.training and config == before
    states = {path.name: torch.load(path) for path in sorted(folder.iterdir())}
    return model, capsys.readouterr().out, states


CONFIGS = [
    {},
    {"optimizer_name": "AdamW", "weight_decay": 0.1, "lr": 1e-2, "max_grad_norm": 0.5, "seed": 4},
    {"weight_decay": 0.2, "warmup_steps": 3, "save_every": 2},
    {"optimizer_name": "SGD", "momentum": 0.9, "lr": 0.05, "weight_decay": 0.01},
    {"optimizer_name": "SGD", "max_steps": 2, "save_every": 1, "print_every": 2},
    {"max_steps": 0, "print_every": None, "save_every": 1, "save_dir": None, "device": None},
    {"optimizer_name": "AdamW", "num_epochs": 1},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_training(options, tmp_path, capsys):
    (found, printed, states), (expected, judge_printed, judge_states) = (
        trained(side, tmp_path, capsys, **options) for side in SIDES
    )
    assert printed == judge_printed and ("Loss" in printed) == (options.get("print_every", 1) is not None)
    assert len(found.state_dict()) > 20
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert list(states) == list(judge_states) and bool(states) == (
        "save_every" in options and "save_dir" not in options
    )
    for step, state in judge_states.items():
        assert all(torch.equal(states[step][name], value) for name, value in state.items())


def test_training_of_our_own_model():
    """By steps that don't blow rounding up, as Adam's do where a gradient is 0."""
    options = {"optimizer_name": "SGD", "lr": 0.5, "momentum": 0.9, "max_grad_norm": 0.5, "print_every": None}
    models = [word_model(package=glassformer.transformer_lens), word_model()]
    before = {name: value.clone() for name, value in models[1].state_dict().items()}
    for side, model in zip(SIDES, models, strict=True):
        side.train(model, side.HookedTransformerTrainConfig(2, 4, device="cpu", **options), Rows())
    found, expected = (model.state_dict() for model in models)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
    assert (expected["embed.W_E"] - before["embed.W_E"]).abs().max() > 0.1


def test_configs():
    fields = [
        [(field.name, field.default) for field in dataclasses.fields(side.HookedTransformerTrainConfig)]
        for side in SIDES
    ]
    assert fields[0] == fields[1]
    for side in SIDES:
        config = side.HookedTransformerTrainConfig(1, 2, optimizer_name="Newton")
        with pytest.raises(ValueError):
            side.train(word_model(), config, Rows())


def test_wandb(monkeypatch):
    records = []
    for side in SIDES:
        told = []
        wandb = types.ModuleType("wandb")
        wandb.init = lambda told=told, **options: told.append(("init", options["project"], options["config"]["lr"]))
        wandb.log = lambda entry, told=told: told.append(entry)
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        config = side.HookedTransformerTrainConfig(1, 4, wandb=True, max_steps=2, print_every=None, device="cpu")
        side.train(word_model(), config, Rows())
        records.append(told)
    assert records[0] == records[1] and len(records[0]) == 4
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="wandb=True\\) needs the package 'wandb'"):
        ours.train(word_model(), ours.HookedTransformerTrainConfig(1, 4, wandb=True), Rows())


def test_without_tqdm(monkeypatch, capsys):
    monkeypatch.setattr("glassformer.transformer_lens.utilities.library_utils.is_library_available", lambda name: False)
    ours.train(word_model(), ours.HookedTransformerTrainConfig(1, 4, max_steps=1, device="cpu"), Rows())
    printed = capsys.readouterr()
    assert "\nEpoch 1 Samples 4 Step 0 Loss " in printed.out and printed.err == ""
