"""Weights lie where the file is mapped, and a model costs no second copy of them. Values stay within a budget; what was
used last stays longest."""

import copy
import gc
import json
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from test_gguf_llama import write
from tiny_models import make_model, random_tokens

import glassformer


def maps(path):
    """The address ranges at which this process has a file mapped."""
    with open("/proc/self/maps") as table:
        lines = [line.split() for line in table if str(path) in line]
    return [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]


def in_map(tensor, path):
    begin = tensor.data_ptr()
    end = begin + tensor.numel() * tensor.element_size()
    return any(low <= begin and end <= high for low, high in maps(path))


def test_float32_weights_are_used_in_the_map(tmp_path):
    make_model("llama_grouped").save_pretrained(tmp_path)
    model = glassformer.load(tmp_path)
    assert all(in_map(model.weights[name], tmp_path / "model.safetensors") for name in model.weights)
    make_model("gpt2").save_pretrained(tmp_path / "gpt2")  # Stored the other way round: still no copy.
    model = glassformer.load(tmp_path / "gpt2")
    assert all(in_map(model.weights[name], tmp_path / "gpt2" / "model.safetensors") for name in model.weights)


def test_gguf_weights_are_used_in_the_map_but_for_turned_ones(tmp_path):
    write(tmp_path / "model.gguf", make_model("llama_grouped"))
    model = glassformer.load(tmp_path / "model.gguf")
    for name in model.weights:
        turned = name.endswith(("attn.q.weight", "attn.k.weight"))
        assert in_map(model.weights[name], tmp_path / "model.gguf") == (not turned), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_another_dtype_is_a_copy(tmp_path, dtype):
    make_model("llama").save_pretrained(tmp_path)
    model = glassformer.load(tmp_path, dtype=dtype)
    assert not any(in_map(model.weights[name], tmp_path / "model.safetensors") for name in model.weights)


def test_misaligned_tensors_are_copied_and_right(tmp_path):
    reference = make_model("llama")
    reference.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + size])).encode()
    header += b" " * (-len(header) % 4 + 1)  # The tensors then start at an odd byte.
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    model = glassformer.load(tmp_path)
    assert (8 + len(header)) % 4 != 0
    name = "blocks.1.mlp.in.weight"
    assert not in_map(model.weights[name], path)
    assert torch.equal(model.weights[name], reference.model.layers[1].mlp.up_proj.weight)


PEAK = """
import sys
import torch
import glassformer

def megabytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key + ":"))

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
before = megabytes("VmRSS")
model = glassformer.load(sys.argv[1])
loaded = megabytes("VmRSS") - before
{then}
print(loaded, megabytes("VmHWM") - before, float(logits.abs().sum()))
"""


def measured(folder, then):
    """Megabytes that loading took, those at the peak, and the sum of the logits that `then` makes."""
    code = textwrap.dedent(PEAK).replace("{then}", then)
    found = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    return map(float, found.stdout.split())


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of more than 100 MB, its folder, and its size in megabytes."""
    folder = tmp_path_factory.mktemp("large")
    reference = make_model("llama", hidden_size=1024, intermediate_size=4096, num_attention_heads=8, head_dim=128)
    reference.save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size / 2**20
    assert size > 100
    return reference, folder, size


def test_a_model_costs_its_file_once(large):
    reference, folder, size = large
    loaded, peak, total = measured(folder, "logits = model.trace([1, 2, 3]).logits")
    assert loaded < 8, f"loading took {loaded:.0f} MB"
    assert 0.9 * size < peak < 1.25 * size + 16, f"peak of {peak:.0f} MB for a file of {size:.0f} MB"
    with torch.no_grad():
        assert np.isclose(total, reference(torch.tensor([[1, 2, 3]])).logits.abs().sum().item(), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processing_the_weights_of_a_file_costs_them_once(large, tmp_path, dtype):
    reference, folder, size = large
    if dtype != torch.float32:
        folder = tmp_path
        copy.deepcopy(reference).to(dtype).save_pretrained(folder)
    then = "model = glassformer.process_weights(model, center_unembed=False)\nlogits = model.trace([1, 2, 3]).logits"
    _, peak, total = measured(folder, then)
    assert 0.9 * size < peak < 1.2 * size + 16, f"peak of {peak:.0f} MB for weights of {size:.0f} MB"
    with torch.no_grad():
        expected = copy.deepcopy(reference).to(dtype).float()(torch.tensor([[1, 2, 3]])).logits.abs().sum().item()
    assert np.isclose(total, expected, rtol=1e-3)


def test_weights_that_were_changed_are_processed_as_they_are(tmp_path):
    """Those that nobody has read yet are read from the file, past the map in which others may have been changed."""
    make_model("gpt2").save_pretrained(tmp_path)  # q, k and v lie side by side in one tensor.
    model, same = glassformer.load(tmp_path), glassformer.load(tmp_path)
    changed = "blocks.1.attn.q.weight"
    for each in (model, same):
        with torch.no_grad():
            each.weights[changed].mul_(2)
    for name in same.weights:
        assert same.weights[name].shape  # All are loaded.
    made, expected = glassformer.process_weights(model), glassformer.process_weights(same)
    assert list(made.weights) == list(expected.weights)
    assert all(torch.equal(made.weights[name], expected.weights[name]) for name in made.weights)
    assert not torch.equal(
        made.weights[changed], glassformer.process_weights(glassformer.load(tmp_path)).weights[changed]
    )
    assert torch.equal(model.to(dtype="float64").weights[changed], model.weights[changed].double())


def test_processed_weights_hold_nothing_of_the_file(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    model = glassformer.load(tmp_path)
    assert maps(tmp_path / "model.safetensors")
    made = glassformer.process_weights(model)
    del model
    gc.collect()
    assert not maps(tmp_path / "model.safetensors")
    assert made.trace([1, 2, 3]).logits.isfinite().all()


def test_a_file_that_was_cut_is_named(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    model = glassformer.load(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(4096)
    with pytest.raises(glassformer.FileError, match=r"model.safetensors: has become shorter since it was opened"):
        glassformer.process_weights(model)


# Reading many nodes one by one, counted in rows computed. In one pass each node is computed once.

N_LAYERS, LENGTH = 12, 64


@pytest.fixture(scope="module")
def deep():
    return glassformer.load(make_model("llama_grouped", num_hidden_layers=N_LAYERS, max_position_embeddings=LENGTH))


def rows_one_by_one(model, names, budget, keep="budget"):
    """The rows of all nodes together, and the values."""
    trace = model.trace(random_tokens(1, LENGTH), budget_bytes=budget, keep=keep)
    values = [trace[name] for name in names]
    return sum(trace.work().values()), values


@pytest.mark.parametrize("node", ["z", "v", "mlp_out", "resid_post", "pattern"])
def test_one_by_one_costs_about_one_pass_at_any_budget(deep, node):
    stream = LENGTH * deep.config.d_model * 4  # Bytes of one node of the residual stream; a block has about 20.
    names = [(node, layer) for layer in range(N_LAYERS)]
    one_pass, expected = rows_one_by_one(deep, names, 0)
    for budget in (stream, 4 * stream, 16 * stream):
        rows, values = rows_one_by_one(deep, names, budget)
        assert rows < 1.5 * one_pass, budget
        assert all(torch.equal(value, other) for value, other in zip(values, expected, strict=True))
    assert rows_one_by_one(deep, names, stream, keep="all")[0] == one_pass


@pytest.mark.parametrize("node", ["z", "mlp_out", "pattern"])
def test_backwards_begins_at_the_blocks_that_the_budget_holds(deep, node):
    """The last layer first: each read needs its own block only, while the budget holds what starts the blocks."""
    stream = LENGTH * deep.config.d_model * 4
    names = [(node, layer) for layer in reversed(range(N_LAYERS))]
    one_pass, _ = rows_one_by_one(deep, names, 0)
    assert rows_one_by_one(deep, names, (N_LAYERS + 1) * stream)[0] < 2 * one_pass
    assert rows_one_by_one(deep, names, N_LAYERS // 3 * stream)[0] < 3 * one_pass
    assert rows_one_by_one(deep, names, stream)[0] > 4 * one_pass  # One block's start is not enough.
    assert rows_one_by_one(deep, names, stream, keep="all")[0] == one_pass
