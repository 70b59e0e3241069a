"""Helpers beside TransformerLens': values, what is printed, and the classes of errors."""

import itertools
import random
import types
import warnings

import numpy as np
import pytest
import torch
import transformer_lens.utilities as judge
from datasets import Dataset, IterableDataset
from tl_words import WORDS, word_tokenizer
from torch import nn
from transformer_lens.utilities import hf_utils as judge_hub

from glassformer.transformer_lens import utilities as ours
from glassformer.transformer_lens import utils
from glassformer.transformer_lens.utilities import hf_utils as our_hub

RAISED = (AssertionError, KeyError, ValueError, RuntimeError, TypeError, IndexError, AttributeError)


def outcome(call, *args, **options):
    """What a call returns, in a form that == compares, or the built-in class of its error."""
    try:
        made = call(*args, **options)
    except RAISED as error:
        return next(each for each in type(error).__mro__ if each in RAISED)
    return plain(made)


def plain(made):
    if isinstance(made, torch.Tensor | np.ndarray):
        return (type(made).__name__, str(made.dtype), tuple(made.shape), made.tolist())
    if isinstance(made, dict):
        return {key: plain(value) for key, value in made.items()}
    return made


def same(name, *args, **options):
    """Both sides' helper on the same arguments; returns the outcome."""
    found, expected = (outcome(getattr(side, name), *args, **options) for side in (ours, judge))
    assert found == expected, (name, args, options)
    return found


def test_the_names_are_the_judges():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # It warns of itself when it is first imported.
        from transformer_lens import utils as judge_utils
    assert set(judge_utils.__all__) <= set(utils.__all__)
    assert set(ours.__all__) <= set(vars(judge))
    assert all(getattr(utils, name) is getattr(ours, name) for name in utils.__all__)


def test_activation_names():
    parts = ["k", "v", "q", "z", "rot_k", "result", "pattern", "attn", "attn_logits", "attn_scores", "key", "query"]
    parts += ["value", "pre", "post", "mid", "pre_linear", "mlp_pre", "mlp_mid", "mlp_post", "mlp_out", "resid_pre"]
    parts += ["scale", "normalized", "embed", "pos_embed", "k6", "scale4ln1", "pre5", "resid_post12", "attn3a", "3k"]
    parts += ["hook_embed", "hook_k", "blocks.2.attn.hook_q", "normalized27ln2", "K3", "mlp_pre7", "rot_q3", "", "x9.y"]
    layers = [None, 0, 6, -1, "7"]
    types_ = [None, "a", "m", "b", "block", "blocks", "attention", "attn", "mlp", "ln1", "ln2", ""]
    for name, layer, layer_type in itertools.product(parts, layers, types_):
        same("get_act_name", name, layer, layer_type)
    assert same("get_act_name", "scale4ln1") == "blocks.4.ln1.hook_scale"


SLICES = [
    None,
    0,
    -1,
    True,
    7,
    (2,),
    (1, 3),
    (0, 5, 2),
    (None, None, 2),
    (-2, None),
    slice(1, 3),
    [0, 2],
    [],
    [-1, 0, 0],
]
SLICES += [torch.tensor([1, 0]), torch.tensor([True, False, True, True, False]), np.array([3, 1])]
SLICES += [torch.tensor(2), "text", 1.5, np.int64(1), {0}, (1, 2, 3, 4), (), (0, 3, -1)]


@pytest.mark.parametrize("given", SLICES, ids=str)
def test_slices(given):
    tensor = torch.arange(5 * 5 * 5).view(5, 5, 5)
    for dim in (0, 1, -1, -3, 3):
        found = [outcome(lambda side: side.Slice(given).apply(tensor, dim=dim), side) for side in (ours, judge)]  # noqa: B023
        assert found[0] == found[1]
        found = [outcome(lambda side: side.Slice.unwrap(given).apply(tensor, dim), side) for side in (ours, judge)]  # noqa: B023
        assert found[0] == found[1]
    for call in (
        lambda side: side.Slice(given).indices(5),
        lambda side: side.Slice(given).indices(),
        lambda side: repr(side.Slice(given)),
        lambda side: side.Slice.unwrap(side.Slice(given)).mode,
        lambda side: side.Slice.unwrap(given).mode,
    ):
        assert outcome(call, ours) == outcome(call, judge)


def test_small_tensor_helpers():
    x = torch.arange(6.0).view(1, 2, 3)
    parameter = nn.Parameter(x)
    for given in (x, parameter, x.bfloat16(), x.numpy(), [1, 2], (1.5, 2), 3, 2.5, True, "a", None, {1}, np.float32(1)):
        same("to_numpy", given)
    for given in (x, x[0], torch.ones(1), torch.ones(0, 2)):
        same("remove_batch_dim", given)
        for dim, reverse in itertools.product([0, -1, 1], [False, True]):
            same("get_cumsum_along_dim", given, dim, reverse)
    same("remove_batch_dim", torch.tensor(1.0))
    for clone in (True, False):
        same("repeat_along_head_dimension", x, 4, clone)
        same("repeat_along_head_dimension", x, n_heads=1, clone_tensor=clone)
    assert outcome(ours.repeat_along_head_dimension, x[0], 4) is ValueError
    assert outcome(judge.repeat_along_head_dimension, x[0], 4) is RuntimeError
    heads = ours.repeat_along_head_dimension(x, 2)
    heads[:, :, 0] += 1
    assert torch.equal(heads[:, :, 1], x)
    assert same("repeat_along_head_dimension", x, 2, False)[3] == same("repeat_along_head_dimension", x, 2)[3]
    named = {"a.b.c": 1, "a.b": 2, "a.bc.d": 3, "a.b.": 4, "b.a.b.c": 5}
    for prefix in ("a", "a.", "a.b", "a.b.", "c", ""):
        same("filter_dict_by_prefix", named, prefix)


def test_position_ids_of_masks():
    generator = torch.Generator().manual_seed(1)
    masks = [torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])]
    masks += [torch.randint(0, 2, (3, 9), generator=generator) for _ in range(20)]
    for mask, offset in itertools.product(masks, [0, 1, 3, 20]):
        same("get_offset_position_ids", offset, mask)


def test_structure(capsys):
    generator = torch.Generator().manual_seed(2)
    pairs = [(torch.eye(3), torch.eye(3)), (torch.eye(3), torch.eye(3).flip(0)), (torch.ones(2), torch.ones(2))]
    pairs += [(torch.ones(2, 3), torch.ones(3, 2)), (torch.ones(1, 1), torch.zeros(1, 1))]
    low = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    pairs += [(low, torch.tensor([[1.0, 2.0], [4.0, 3.0]])), (low, torch.tensor([[1.0, 9.0], [3.0, 4.0]]))]
    pairs += [tuple(torch.randint(0, 3, (2, 3, 4), generator=generator)) for _ in range(20)]
    printed = set()
    for (t1, t2), verbose in itertools.product(pairs, [False, True]):
        outcomes = []
        for side in (ours, judge):
            made = outcome(side.check_structure, t1, t2, verbose=verbose)
            outcomes.append((made, capsys.readouterr().out))
        assert outcomes[0] == outcomes[1]
        printed.add(outcomes[0][1].split(":")[0])
    assert {"PASSED\n", "row mismatch", "column mismatch", ""} <= printed


def test_attributes_defaults_and_libraries():
    def holder():
        return types.SimpleNamespace(a=types.SimpleNamespace(b=types.SimpleNamespace(c=3)))

    for path in ("a", "a.b.c", "a.x", "a.b.c.real", "", "a."):
        found = [outcome(side.get_nested_attr, holder(), path) for side in (ours, judge)]
        assert str(found[0]) == str(found[1])
    for path in ("a", "a.b.c", "a.b.new", "x.y", "a.b.c.real"):
        made = []
        for side in (ours, judge):
            target = holder()
            made.append((outcome(side.set_nested_attr, target, path, 5), str(target)))
        assert made[0] == made[1]
    for default, override in itertools.product([True, False, None, "left"], repeat=2):
        same("override_or_use_default_value", default, override)
    assert ours.USE_DEFAULT_VALUE is judge.USE_DEFAULT_VALUE
    for name in ("torch", "numpy", "no_such_library_at_all", "json"):
        same("is_library_available", name)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_locally_overridden_defaults(with_tokenizer):
    cases = [{}, {"prepend_bos": True}, {"prepend_bos": None}, {"padding_side": "left"}, {"padding_side": "up"}]
    cases += [{"prepend_bos": "yes"}, {"nonsense": 1}, {"prepend_bos": False, "padding_side": "left"}]
    for case, fails in itertools.product(cases, [False, True]):
        records = []
        for side in (ours, judge):
            tokenizer = types.SimpleNamespace(padding_side="right") if with_tokenizer else None
            model = types.SimpleNamespace(cfg=types.SimpleNamespace(default_prepend_bos=True), tokenizer=tokenizer)
            record = []
            try:
                with side.LocallyOverridenDefaults(model, **case):
                    record.append(str(model))
                    if fails:
                        raise KeyError
            except (AssertionError, KeyError) as error:
                record.append(type(error))
            records.append([*record, str(model)])
        assert records[0] == records[1]
    model = types.SimpleNamespace(cfg=types.SimpleNamespace(default_prepend_bos=True), tokenizer=tokenizer)
    if with_tokenizer:
        with (
            pytest.raises(AssertionError, match="padding_side is one of"),
            ours.LocallyOverridenDefaults(model, prepend_bos=False, padding_side="up"),
        ):
            pass
        assert model.cfg.default_prepend_bos is True


def test_devices(capsys, monkeypatch):
    assert ours.get_device() == judge.get_device()
    for target, details in itertools.product([torch.float64, "cpu", torch.device("cpu"), torch.float16], [True, False]):
        records = []
        for side in (ours, judge):
            model = nn.Linear(2, 2)
            model.cfg = types.SimpleNamespace(device=None, dtype=torch.float32)
            made = side.move_to_and_update_config(model, target, details)
            records.append((made is model, model.weight.dtype, model.weight.device, model.cfg, capsys.readouterr().out))
            assert isinstance(model, side.ModelWithCfg)
        assert records[0] == records[1]
    ours.print_gpu_mem("here")
    assert capsys.readouterr().out == "here ~ 0.0 GiB allocated on GPU.\n"
    monkeypatch.setenv("TRANSFORMERLENS_ALLOW_MPS", "1")
    ours.warn_if_mps("mps")
    monkeypatch.delenv("TRANSFORMERLENS_ALLOW_MPS")
    ours.warn_if_mps("cpu")
    with pytest.warns(UserWarning, match="mps"):
        ours.warn_if_mps(torch.device("mps"))
    ours.warn_if_mps("mps")  # Once only: a second one would be an unexpected warning.


@pytest.mark.filterwarnings("error")
def test_parameters_swapped_for_a_while():
    for given in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 3).double(), nn.Parameter(torch.ones(2, 3)), [1]):
        records = []
        for side in (ours, judge):
            parameter = nn.Parameter(torch.zeros(2, 3))
            try:
                with side.temporarily_swap_parameter(parameter, given) as inside:
                    record = [inside is parameter, parameter.tolist(), parameter.requires_grad]
                    raise KeyError
            except (KeyError, ValueError, TypeError) as error:
                record = [error.__class__.__mro__[-4:], parameter.tolist()]
            records.append([record[-1], outcome(side.temporarily_swap_parameter(parameter, given).__enter__)])
        assert str(records[0]) == str(records[1])
    assert outcome(ours.temporarily_swap_parameter(torch.ones(1), torch.ones(1)).__enter__) is TypeError
    assert len(ours.TypedModuleList([nn.Linear(1, 1), nn.ReLU()])) == 2


def texts(seed, count):
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randrange(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["padding", "no padding", "shared"])
@pytest.mark.parametrize("max_length,add_bos", [(8, True), (8, False), (2, True), (500, True), (33, False)])
@pytest.mark.parametrize("count", [1, 2, 40, "3 empty"])
def test_tokenize_and_concatenate(kind, max_length, add_bos, count):
    pad = {"padding": "<pad>", "no padding": None, "shared": "</s>"}[kind]
    given = [""] * 3 if count == "3 empty" else texts(count, count)
    columns = {"text": given, "meta": list(range(len(given)))}
    options = {"max_length": max_length, "add_bos_token": add_bos, "num_proc": None}
    records = []
    for side in (ours, judge):
        tokenizer = word_tokenizer(pad=pad)
        made = side.tokenize_and_concatenate(Dataset.from_dict(columns), tokenizer, **options)
        records.append((made.column_names, [row["tokens"].tolist() for row in made], len(tokenizer)))
        assert all(row["tokens"].dtype == torch.int64 for row in made)
    assert records[0] == records[1]
    assert {len(row) for row in records[0][1]} == {max_length}


def test_tokenize_and_concatenate_of_streams_and_other_columns():
    rows = [{"words": text, "n": i} for i, text in enumerate(texts(7, 30))]
    records = []
    for side in (ours, judge):
        stream = IterableDataset.from_generator(lambda: iter(rows), features=Dataset.from_list(rows).features)
        options = {"streaming": True, "column_name": "words", "max_length": 5, "set_format": False}
        tokenizer = word_tokenizer()
        tokenizer.deprecation_warnings["of its own"] = True
        records.append(list(side.tokenize_and_concatenate(stream, tokenizer, **options)))
        assert tokenizer.deprecation_warnings == {"of its own": True}
    assert [plain(row) for row in records[0]] == [plain(row) for row in records[1]]
    assert len(records[0]) > 50
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    for side in (ours, judge):
        with pytest.raises(AssertionError):
            side.tokenize_and_concatenate(Dataset.from_dict({"text": ["a"]}), tokenizer, num_proc=None)


def test_keeping_one_column():
    made = [side.keep_single_column(Dataset.from_dict({"a": [1], "b": [2], "c": [3]}), "b") for side in (ours, judge)]
    assert made[0].to_dict() == made[1].to_dict() == {"b": [2]}


def test_tokenizers_with_bos(tmp_path):
    for index, options in enumerate(
        [{}, {"bos": None}, {"add_bos_token": True}, {"add_bos_token": False, "padding_side": "left"}, {"bos": "</s>"}]
    ):
        tokenizer = word_tokenizer(tmp_path / str(index), **options)
        made = [side.get_tokenizer_with_bos(tokenizer) for side in (ours, judge)]
        assert (made[0] is tokenizer) == (made[1] is tokenizer)
        assert type(made[0]) is type(made[1])
        assert made[0]("the cat").input_ids == made[1]("the cat").input_ids
        assert made[0].padding_side == made[1].padding_side == tokenizer.padding_side
    for bos, given in itertools.product(["<s>", None, ""], ["a b", ["a", "b"], []]):
        same("get_input_with_manually_prepended_bos", bos, given)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_masks_and_removed_bos(shared, side):
    tokenizer = word_tokenizer(pad="<s>" if shared else "<pad>", padding_side="left")
    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    assert (pad == bos) == shared
    choose = random.Random(3)
    for _ in range(60):
        length, rows = choose.randrange(2, 8), []
        for _ in range(choose.randrange(1, 4)):
            words = [choose.choice([pad, bos, 5, 6, 7]) for _ in range(choose.randrange(0, length))]
            padding = [pad] * (length - len(words) - 1)
            rows.append([bos, *words, *padding] if side == "right" else [*padding, bos, *words])
        tokens = torch.tensor(rows)
        for prepend in (True, False):
            same("get_attention_mask", tokenizer, tokens, prepend, padding_side=side)
        same("get_tokens_with_bos_removed", tokenizer, tokens, padding_side=side)
    same("get_attention_mask", None, tokens, True)
    same("get_tokens_with_bos_removed", tokenizer, torch.tensor([[5, 6, 7]]), padding_side=side)
    same("get_tokens_with_bos_removed", word_tokenizer(bos=None), tokens, padding_side=side)
    tokenizer.padding_side = "right"
    same("get_attention_mask", tokenizer, tokens, True)
    same("get_tokens_with_bos_removed", tokenizer, tokens)


class Fails(Exception):
    def __init__(self, status, after):
        super().__init__("refused")
        self.response = types.SimpleNamespace(status_code=status, headers={"Retry-After": after} if after else {})


def test_waiting_for_the_hub(monkeypatch):
    for status, after, failures in itertools.product([429, 500], [None, "3", "soon"], [0, 1, 2, 3]):
        records = []
        for hub in (our_hub, judge_hub):
            waits, calls = [], []
            monkeypatch.setattr("time.sleep", waits.append)

            def call(a, b, calls=calls, status=status, after=after, failures=failures):
                calls.append((a, b))
                if len(calls) <= failures:
                    raise Fails(status, after)
                return "made"

            random.seed(0)
            try:
                made = hub.call_hf_with_retry(call, 1, b=2)
            except Fails:
                made = "failed"
            records.append((made, calls, [round(wait / 10) if after != "3" else wait for wait in waits]))
        assert records[0] == records[1]
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert our_hub.get_hf_token() == judge_hub.get_hf_token() == "secret"
    monkeypatch.setenv("HF_TOKEN", "")
    assert our_hub.get_hf_token() is judge_hub.get_hf_token() is None


def test_files_of_the_hub(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.json").write_text('{"x": [1, 2]}')
    torch.save(torch.arange(3), tmp_path / "b.pth")
    torch.save(torch.arange(4), tmp_path / "c.bin")
    asked = []

    def download(repo_id, filename, subfolder=None, cache_dir=None, revision=None):
        asked.append((repo_id, filename, subfolder, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(judge_hub, "hf_hub_download", download)
    for args, options in (
        (("r", "a.json"), {}),
        (("r", "b.pth", "folder"), {"revision": "main", "unknown": 3}),
        (("r", "c.bin"), {}),
        (("r", "c.bin"), {"force_is_torch": True}),
    ):
        records = []
        for side in (ours, judge):
            records.append(
                (outcome(side.download_file_from_hf, *args, **options), capsys.readouterr().out, asked.pop())
            )
        assert records[0] == records[1]
    same("select_compatible_kwargs", {"revision": 1, "x": 2}, download)
    for config in (
        types.SimpleNamespace(rotary_pct=0.25),
        types.SimpleNamespace(rope_parameters={"partial_rotary_factor": 0.5}),
        types.SimpleNamespace(rope_parameters={}),
        types.SimpleNamespace(rope_parameters=None),
        None,
    ):
        same("get_rotary_pct_from_config", config)


def test_data_sets_and_the_cache_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.load_dataset", lambda name, **options: (name, options))
    monkeypatch.setattr(judge_hub, "load_dataset", lambda name, **options: (name, options))
    for name in ("openwebtext", "owt", "pile", "c4", "code", "python", "c4_code", "c4-code", "wiki", "other"):
        same("get_dataset", name, data_dir="x")
    for fails in (None, PermissionError("no"), FileNotFoundError()):
        folder = tmp_path / "hub"
        (folder / "inside").mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        if fails:
            monkeypatch.setattr("shutil.rmtree", lambda *args, fails=fails, **options: (_ for _ in ()).throw(fails))
        ours.clear_huggingface_cache()
        printed = capsys.readouterr().out
        if fails:
            monkeypatch.setattr(judge_hub, "CACHE_DIR", str(folder))
            judge.clear_huggingface_cache()
            assert printed == capsys.readouterr().out
        else:
            assert not folder.exists()
            assert printed == "Deleting Hugging Face cache directory and all its contents.\n"


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match="get_dataset\\(\\) needs the package 'datasets'"):
        ours.get_dataset("pile")


class Talker:
    """A model of words whose logits are drawn anew for each length; the little that `test_prompt` asks of one."""

    def __init__(self, dtype=torch.float64, grad=False):
        self.dtype, self.grad = dtype, grad

    def to_tokens(self, text, prepend_bos=None):
        rows = [self.ids(each) for each in ([text] if isinstance(text, str) else text)]
        bos = [] if prepend_bos is False else [0]
        longest = max(map(len, rows))
        return torch.tensor([bos + row + [0] * (longest - len(row)) for row in rows])

    def ids(self, text):
        return [1 + WORDS.index(word) for word in text.split()]

    def to_str_tokens(self, text, prepend_bos=None):
        return ([] if prepend_bos is False else ["<s>"]) + [f" {word}" for word in text.split()]

    def to_string(self, token):
        return (["<s>"] + [f" {word}" for word in WORDS])[int(token)]

    def __call__(self, tokens):
        generator = torch.Generator().manual_seed(tokens.shape[1])
        logits = torch.randn(*tokens.shape, 1 + len(WORDS), generator=generator, dtype=torch.float64) * 3
        return logits.to(self.dtype).requires_grad_(self.grad)


@pytest.mark.parametrize("with_rich", [True, False])
@pytest.mark.parametrize("model", [Talker(), Talker(torch.float32, grad=True)], ids=["float64", "float32"])
def test_prompts(model, with_rich, capsys, monkeypatch):
    cases = [
        (("the cat sat on the", "mat"), {}),
        (("the cat sat on the", " mat"), {"top_k": 3}),
        (("the cat sat on the", "mat a dog"), {"top_k": 2}),
        (("the cat", ["sat", "ran", "road"]), {"top_k": 4}),
        (("the cat", ["sat"]), {"prepend_bos": False}),
        (("the cat", ["sat a", "ran"]), {"print_details": False}),
        (("the cat", "ran road"), {"prepend_space_to_answer": False, "print_details": False, "prepend_bos": True}),
        (("the cat", "nowhere"), {}),
    ]
    for args, options in cases:
        records = []
        for side in (ours, judge):
            with monkeypatch.context() as patch:
                if side is ours and not with_rich:
                    patch.setitem(__import__("sys").modules, "rich", None)
                made = outcome(side.test_prompt, *args, model=model, **options)
            records.append((made, capsys.readouterr().out.replace("\n", " ").split()))
        assert records[0] == records[1]
    assert ours.test_prompt.__test__ is False
