"""The rules of the source tree: who may include whom, what public headers may show, how long a file may be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "glassformer"

# Each folder of the library, and the folders that it may include besides itself.
MAY_INCLUDE = {
    "base": [],
    "io": ["base"],
    "text": ["base"],
    "arch": ["base", "io", "text"],
    "graph": ["base", "io", "text", "arch"],
    "trace": ["base", "io", "text", "arch", "graph"],
    "analysis": ["base", "io", "text", "arch", "graph", "trace"],
    "view": ["base", "io", "text", "arch", "graph", "trace", "analysis"],
}
EXCEPTIONS = {("text", "glassformer/io/gguf.h")}  # Tokenizers inside GGUF files.
WITHOUT_TORCH = ["base", "io", "text", "arch"]
TORCH = ("ATen/", "torch/", "c10/", "caffe2/")
MOST_LINES = 600


def sources(*folders, suffixes=(".h", ".cpp")):
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]
    return [path for path in files if "__pycache__" not in path.parts]


def includes(path):
    return re.findall(r'^\s*#\s*include\s*([<"][^>"]+)[>"]', path.read_text(), re.M)


def name(path):
    return path.relative_to(ROOT).as_posix()


def lists():
    """The header lists of cmake/headers.cmake: public, internal."""
    text = (ROOT / "cmake" / "headers.cmake").read_text()
    found = dict(re.findall(r"^set\((\w+)\s+([^)]*)\)", text, re.M))
    return found["public_headers"].split(), found["internal_headers"].split()


def is_internal(header, internal):
    """Whether a header, named from the library's folder, is listed or says so itself."""
    if any(Path(header).match(pattern) for pattern in internal):
        return True
    comment = [line for line in (LIBRARY / header).read_text().splitlines()[:6] if line.startswith("//")]
    return f"Internal to {header.split('/')[0]}/" in " ".join(comment)


def order_errors(path, folder, found):
    """Includes of a file in `folder` that break the order."""
    errors = []
    for include in found:
        target = include[1:]
        if include.startswith('"') and not target.startswith("glassformer/"):
            errors.append(f'{path}: "{target}"; write it from the root: "glassformer/{folder}/{target}"')
        if not target.startswith("glassformer/") or (folder, target) in EXCEPTIONS:
            continue
        other = target.split("/")[1]
        if other != folder and other not in MAY_INCLUDE[folder]:
            errors.append(
                f"{path}: includes {target}; {folder}/ may include {', '.join(MAY_INCLUDE[folder]) or 'none'}"
            )
    return errors


def test_includes_follow_the_order():
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir()} == set(MAY_INCLUDE)
    errors = []
    for folder in MAY_INCLUDE:
        for path in sources(f"glassformer/{folder}"):
            errors += order_errors(name(path), folder, includes(path))
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(
    ("folder", "include", "good"),
    [
        ("io", '"glassformer/base/errors.h', True),
        ("io", '"glassformer/text/tokenizer.h', False),
        ("text", '"glassformer/io/gguf.h', True),
        ("text", '"glassformer/io/model_files.h', False),
        ("graph", '"glassformer/trace/trace.h', False),
        ("trace", '"trace.h', False),
        ("base", "<string", True),
    ],
)
def test_the_order_is_noticed(folder, include, good):
    assert (order_errors("some.cpp", folder, [include]) == []) == good


def test_file_readers_use_no_torch():
    """What only looks at files starts without libtorch."""
    errors = [
        f"{name(path)}: includes {include[1:]}"
        for folder in WITHOUT_TORCH
        for path in sources(f"glassformer/{folder}")
        for include in includes(path)
        if include[1:].startswith(TORCH)
    ]
    assert not errors, "\n".join(errors)


def test_every_header_is_public_or_internal():
    public, internal = lists()
    headers = {path.relative_to(LIBRARY).as_posix() for path in sources("glassformer", suffixes=(".h",))}
    missing = sorted(set(public) - headers)
    assert not missing, f"cmake/headers.cmake lists headers that don't exist: {missing}"
    unknown = sorted(header for header in headers - set(public) if not is_internal(header, internal))
    assert not unknown, (
        f"{unknown}: put each into public_headers of cmake/headers.cmake, or let its first comment say "
        "'Internal to <folder>/: …'"
    )
    both = [header for header in public if header != "text/tokenizer.h" and is_internal(header, internal)]
    assert not both, f"both public and internal: {both}"


def test_public_headers_show_little():
    """The standard library, each other, and of torch only the tensor."""
    public, _ = lists()
    errors = []
    for header in public:
        for include in includes(LIBRARY / header):
            target = include[1:]
            standard = include.startswith("<") and re.fullmatch(r"[a-z_0-9]+", target)
            ours = target.removeprefix("glassformer/") in public
            if not (standard or ours or include == "<ATen/core/Tensor.h"):
                errors.append(f"glassformer/{header}: includes {target}")
    assert not errors, "\n".join(errors)


def test_no_file_is_long():
    folders = ["glassformer", "cli", "python", "tests", "bench", "examples", "tools", "cmake"]
    suffixes = (".h", ".cpp", ".py", ".pyi", ".js", ".css", ".html", ".cmake", ".sh")
    counts = {name(path): len(path.read_text().splitlines()) for path in sources(*folders, suffixes=suffixes)}
    long = [f"{path}: {count} lines" for path, count in counts.items() if count > MOST_LINES]
    assert not long, f"at most {MOST_LINES} lines a file:\n" + "\n".join(long)


@pytest.mark.parametrize("page", ["nodes", "models"])
def test_written_pages_are_up_to_date(page):
    command = [sys.executable, ROOT / "tools" / f"write_{page}_page.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_in_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    errors = []
    for document in documents:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if "://" not in target and not target.startswith("mailto:") and not (document.parent / target).exists():
                errors.append(f"{name(document)}: {target}")
    assert not errors, "links to files that don't exist:\n" + "\n".join(errors)
