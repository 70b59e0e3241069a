"""The program `glassformer`, as a user runs it."""

import json
import math
import os
import pty
import re
import select
import signal
import stat
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRANCE, ITALY = "The capital of France is", "The capital of Italy is"
COMMANDS = ["info", "tokens", "nodes", "generate", "lens", "attention", "patch", "explain"]


@pytest.fixture(scope="session")
def program():
    for path in (ROOT / ".venv/bin/glassformer", ROOT / "build/release/bin/glassformer"):
        if path.exists():
            return str(path.resolve())
    pytest.fail("the program is not built; run 'make build'")


@pytest.fixture(scope="session")
def run(program):
    """Runs the program; the same arguments once only."""

    @cache
    def once(*arguments):
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )

    return lambda *arguments: once(*(str(argument) for argument in arguments))


@pytest.fixture(scope="session")
def ask(run, demo_model):
    """What a command says about the demo's model, as JSON."""

    def ask(command, *arguments):
        result = run(command, demo_model, *arguments, "--json")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return ask


@pytest.fixture(scope="session")
def python_model(demo_model):
    glassformer = pytest.importorskip("glassformer")
    return glassformer.load(str(demo_model))


def in_terminal(program, *arguments, interrupt_after=None, env=None):
    """Runs the program with a terminal of 80 columns: exit code, standard output, standard error."""
    environment = {**os.environ, "TERM": "xterm", **(env or {})}
    main, side = pty.openpty()
    error_main, error_side = pty.openpty()
    for terminal in (side, error_side):
        subprocess.run(["stty", "cols", "80", "rows", "24"], stdin=terminal, check=True)
    process = subprocess.Popen(
        [program, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=side, stderr=error_side, env=environment
    )
    os.close(side)
    os.close(error_side)
    texts, open_ends, end = {main: b"", error_main: b""}, {main, error_main}, time.monotonic() + 60
    while open_ends and time.monotonic() < end:
        for ready in select.select(list(open_ends), [], [], 1)[0]:
            try:
                data = os.read(ready, 65536)
            except OSError:
                data = b""
            texts[ready] += data
            if not data:
                open_ends.discard(ready)
        if interrupt_after is not None and len(texts[main]) >= interrupt_after:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    code = process.wait(timeout=10)
    os.close(main)
    os.close(error_main)
    return code, texts[main].decode().replace("\r\n", "\n"), texts[error_main].decode()


# ---- Help ----


def test_help_lists_every_command(run):
    result = run("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", result.stdout, re.M)
    assert "Example:" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, command):
    result = run(command, "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert f"Example:\n  glassformer {command} " in result.stdout
    assert "--json" in result.stdout


def test_version(run):
    assert re.fullmatch(r"glassformer \d+\.\d+\.\d+\n", run("--version").stdout)


# ---- Files only ----


def test_info(ask):
    info = ask("info", "--weights")
    assert info["architecture"] == "llama" and info["format"] == "GGUF"
    assert (info["n_layers"], info["n_heads"], info["n_kv_heads"], info["d_model"]) == (30, 9, 3, 576)
    assert (info["d_head"], info["d_mlp"], info["d_vocab"], info["activation"]) == (64, 1536, 49152, "silu")
    assert info["n_parameters"] == 134515008 and info["tied_unembed"]
    assert sum(info["stored_dtypes"].values()) == len(info["weights"]) and "Q4_1" in info["stored_dtypes"]
    assert info["tokenizer"]["vocabulary"] == 49152 and info["tokenizer"]["eos"]["token"] == "<|im_end|>"
    shapes = {weight["name"]: weight["shape"] for weight in info["weights"]}
    assert shapes["token_embd.weight"] == [49152, 576]


def test_info_as_text(run, demo_model):
    text = run("info", demo_model).stdout
    for part in ("134,515,008", "Q4_1 (", "byte-level BPE", "rotary", "9 (3 for keys and values)"):
        assert part in text


def test_tokens(ask):
    tokens = ask("tokens", FRANCE)
    assert [token["text"] for token in tokens["tokens"]] == ["The", " capital", " of", " France", " is"]
    assert [token["token"] for token in tokens["tokens"]][1] == "Ġcapital"
    assert [(token["start"], token["end"]) for token in tokens["tokens"]][:2] == [(0, 3), (3, 11)]
    decoded = ask("tokens", "--ids", ",".join(map(str, tokens["ids"])))
    assert decoded["text"] == FRANCE and decoded["ids"] == tokens["ids"]


def test_tokens_of_standard_input(program, demo_model, ask):
    result = subprocess.run(
        [program, "tokens", demo_model, "-", "--json"], input=FRANCE, capture_output=True, text=True
    )
    assert json.loads(result.stdout) == ask("tokens", FRANCE)


def test_an_empty_text_has_no_tokens(ask):
    assert ask("tokens", "")["ids"] == []


@pytest.mark.parametrize("text", ["[a,b]", "{}", "%%", "--", "a\nb", "🦜 naïve"])
def test_texts_are_taken_as_they_are(ask, run, demo_model, text):
    result = run("tokens", demo_model, "--json", "--", text)
    assert json.loads(result.stdout)["text"] == text
    result = run("generate", demo_model, "-n", "0", "--json", "--", text, "b")
    assert [result["prompt"] for result in json.loads(result.stdout)["results"]] == [text, "b"]


@pytest.mark.parametrize("arguments", [["info"], ["tokens", FRANCE], ["explain", "--help"], ["nodes", "--help"]])
def test_starts_without_libtorch(program, demo_model, arguments):
    command = [program, arguments[0], str(demo_model), *arguments[1:]]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LD_DEBUG": "files"})
    assert result.returncode == 0
    assert "libglassformer_files" in result.stderr
    assert "libtorch" not in result.stderr and "libc10" not in result.stderr


# ---- Commands that run the model ----


def test_nodes(ask, python_model):
    nodes = ask("nodes")
    assert [node["name"] for node in nodes] == [node.name for node in python_model.nodes]
    by_name = {node["name"]: node for node in nodes}
    z = by_name["blocks.0.attn.hook_z"]
    assert z["axes"] == ["batch", "pos", "head", "d_head"] and z["sizes"] == [None, None, 9, 64]
    assert z["step"] and by_name["logits"]["sizes"] == [None, None, 49152]


def test_nodes_by_pattern(ask, run, demo_model):
    assert {node["name"] for node in ask("nodes", "hook_resid_mid")} == {
        f"blocks.{i}.hook_resid_mid" for i in range(30)
    }
    assert [node["name"] for node in ask("nodes", "blocks.1.attn.hook_?")] == [
        f"blocks.1.attn.hook_{name}" for name in "qkvz"
    ]
    line = run("nodes", demo_model, "blocks.0.attn.hook_z").stdout.splitlines()[1]
    assert line.split("  ")[0] == "blocks.0.attn.hook_z" and "batch pos 9 64" in line
    assert "hook_pattern" in run("nodes", demo_model, "blocks.0.attn.hook_z", "--steps").stdout


def greedy(model, prompt, count):
    trace = model.trace(prompt)
    ids = []
    for _ in range(count):
        ids.append(trace.logits_at(-1)[0].argmax().item())
        trace.append([ids[-1]])
    return ids


def test_generate(ask, python_model, run, demo_model):
    result = ask("generate", FRANCE, "-n", "8")["results"][0]
    assert result["ids"] == greedy(python_model, FRANCE, 8)
    assert result["text"] == "".join(result["tokens"]) and result["text"].startswith(" Paris")
    assert result["finish"] == "length"
    assert run("generate", demo_model, FRANCE, "-n", "8").stdout == result["text"] + "\n"


def test_generate_several(ask, run, demo_model):
    prompts = (FRANCE, "Once upon a time, there")
    together = ask("generate", *prompts, "-n", "8")["results"]
    assert [result["prompt"] for result in together] == list(prompts)
    assert together[0]["ids"] == ask("generate", FRANCE, "-n", "8")["results"][0]["ids"]
    text = run("generate", demo_model, *prompts, "-n", "8").stdout
    assert all(result["text"] in text for result in together)


def test_generate_stops(ask):
    result = ask("generate", FRANCE, "-n", "30", "--stop", "Paris")["results"][0]
    assert result["finish"] == "stop string" and result["text"] == " Paris"


def test_generate_draws(ask):
    draws = [
        ask("generate", FRANCE, "-n", "8", "--temperature", temperature, "--seed", seed)["results"][0]["ids"]
        for temperature, seed in (("1.5", "1"), ("1.50", "1"), ("1.5", "2"))
    ]
    assert draws[0] == draws[1] != draws[2]
    assert ask("generate", FRANCE, "-n", "4", "--top-k", "1")["results"][0]["text"].startswith(" Paris")


def test_lens(ask):
    lens = ask("lens", FRANCE, "--target", " Paris")
    assert lens["layers"] == ["embed", *map(str, range(30))] and lens["positions"] == [0, 1, 2, 3, 4]
    assert lens["top"][-1][-1][0]["token"] == " Paris" and lens["target"]["rank"][-1][-1] == 0
    assert lens["target"]["probability"][-1][-1] == pytest.approx(lens["top"][-1][-1][0]["probability"], abs=1e-6)
    explained = ask("explain", FRANCE, "--vs", ITALY)["lens"]
    assert [[scores[0]["id"] for scores in row] for row in lens["top"]] == [
        [score["id"] for score in row] for row in explained["top"]
    ]
    last = ask("lens", FRANCE, "--top-k", "3")
    assert last["positions"] == [4]
    assert [row[0][0]["id"] for row in last["top"]] == [row[-1][0]["id"] for row in lens["top"]]


def test_attention(ask, python_model):
    heads = ask("attention", FRANCE, "--heads", "4")["heads"]
    explained = ask("explain", FRANCE, "--vs", ITALY)["heads"][:4]
    assert [(head["layer"], head["head"]) for head in heads] == [(head["layer"], head["head"]) for head in explained]
    layer, head = heads[0]["layer"], heads[0]["head"]
    one = ask("attention", FRANCE, "--layer", str(layer), "--head", str(head))["heads"]
    assert len(one) == 1 and one[0]["pattern"] == heads[0]["pattern"]
    expected = python_model.trace(FRANCE).read(f"blocks.{layer}.attn.hook_pattern")[0, head]
    for found, row in zip(one[0]["pattern"], expected.tolist(), strict=True):
        assert found == pytest.approx(row, abs=1e-5) and sum(found) == pytest.approx(1, abs=1e-5)
    assert len(ask("attention", FRANCE, "--layer", "-1")["heads"]) == 9


def test_patch(ask):
    patch = ask("patch", FRANCE, ITALY)
    assert patch["answer"]["token"] == " Paris" and patch["versus"]["token"] == " Rome"
    assert patch["axes"] == ["layer", "pos"] and len(patch["recovered"]) == 30
    explained = ask("explain", FRANCE, "--vs", ITALY)["patching"]
    for found, expected in zip(patch["recovered"], explained["recovered"], strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert patch["recovered"][0] == pytest.approx([0, 0, 0, 1, 0], abs=1e-4)


def test_patch_of_heads(ask, python_model):
    patch = ask("patch", FRANCE, ITALY, "--activation", "z", "--by-head", "--no-position", "--layer", "20,-1")
    assert patch["axes"] == ["layer", "head"] and patch["layers"] == [20, 29]
    assert [len(row) for row in patch["recovered"]] == [9, 9]
    clean, corrupted = python_model.trace(FRANCE), python_model.trace(ITALY)
    answer, versus = patch["answer"]["id"], patch["versus"]["id"]
    fork = corrupted.fork()
    value = corrupted.read("blocks.20.attn.hook_z").clone()
    value[:, :, 3] = clean.read("blocks.20.attn.hook_z")[:, :, 3]
    fork.set("blocks.20.attn.hook_z", value)
    logits = fork.logits_at(-1)[0]
    assert patch["difference"][0][3] == pytest.approx((logits[answer] - logits[versus]).item(), abs=1e-3)
    all_heads = ask("patch", FRANCE, ITALY, "--activation", "attn_out", "--no-position")
    assert all_heads["axes"] == ["layer"] and len(all_heads["recovered"]) == 30


@pytest.mark.parametrize(
    ("prompt", "versus", "answer", "versus_answer"),
    [
        (FRANCE, ITALY, " Paris", " Rome"),
        ("The opposite of hot is", "The opposite of big is", " cold", " small"),
        ("Two plus two equals", "Two plus three equals", None, None),
    ],
)
def test_explain(ask, prompt, versus, answer, versus_answer):
    found = ask("explain", prompt, "--vs", versus)
    top, other = found["next_tokens"][0], found["versus_next_tokens"][0]
    if answer:
        assert (top["token"], other["token"]) == (answer, versus_answer)
    assert found["attribution"]["sum"] == pytest.approx(top["logit"], rel=1e-4, abs=1e-4)
    parts = sum(component["logit"] for component in found["attribution"]["components"])
    assert parts == pytest.approx(found["attribution"]["sum"], abs=1e-6)
    patching = found["patching"]
    assert len(patching["recovered"]) == 30 and len(patching["recovered"][0]) == len(found["prompt"]["ids"])
    for column, (a, b) in enumerate(zip(found["prompt"]["ids"], found["versus"]["ids"], strict=True)):
        if a == b and patching["recovered"][0][column] is not None:
            assert patching["recovered"][0][column] == pytest.approx(0, abs=1e-5)
    for head in found["heads"]:
        for row in head["pattern"]:
            assert sum(row) == pytest.approx(1, abs=1e-4)


def test_explain_without_a_second_prompt(ask):
    found = ask("explain", FRANCE, "--heads", "2", "--top-k", "3")
    assert found["versus"] is None and found["patching"] is None
    assert len(found["heads"]) == 2 and len(found["next_tokens"]) == 3
    assert sum(score["probability"] for score in found["next_tokens"]) < 1


def test_explain_as_text(run, demo_model):
    text = run("explain", demo_model, FRANCE, "--vs", ITALY).stdout
    assert "answers “ Paris”" in text and "“ Rome”" in text and "\x1b" not in text


def test_the_page_holds_the_same_numbers(program, demo_model, tmp_path, ask):
    page = tmp_path / "report.html"
    result = subprocess.run(
        [program, "explain", demo_model, FRANCE, "--vs", ITALY, "--html", page, "--json"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stderr == ""
    embedded = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.S)
    assert json.loads(embedded.group(1)) == json.loads(result.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_replaces_the_old_one_and_keeps_links_and_modes(program, demo_model, tmp_path):
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("old")
    page.chmod(0o640)
    link.symlink_to(page)
    subprocess.run([program, "explain", demo_model, "Hello", "--html", link], capture_output=True, check=True)
    assert link.is_symlink() and page.read_text().startswith("<!")
    assert stat.S_IMODE(page.stat().st_mode) == 0o640


# ---- Wrong input ----


def assert_refused(result, *parts):
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("glassformer: ") and result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


WRONG = {
    "no command": ([], "no command"),
    "unknown command": (["explan", "MODEL", FRANCE], "explain"),
    "no model": (["info"], "MODEL"),
    "missing file": (["info", "no/such/model.gguf"], "no/such/model.gguf"),
    "missing file, engine": (["generate", "no/such/model.gguf", FRANCE], "no/such/model.gguf"),
    "text file": (["info", "TEXT_FILE"], "notes.txt"),
    "text file, engine": (["explain", "TEXT_FILE", FRANCE], "notes.txt"),
    "no text": (["tokens", "MODEL"], "no text"),
    "token out of range": (["tokens", "MODEL", "--ids", "1,999999"], "999999"),
    "unknown option": (["info", "MODEL", "--jsno"], "--json"),
    "unexpected text": (["info", "MODEL", "more"], "more"),
    "no prompt": (["generate", "MODEL"], "PROMPT"),
    "empty prompt": (["explain", "MODEL", ""], ""),
    "empty prompt, generate": (["generate", "MODEL", ""], ""),
    "empty second prompt": (["explain", "MODEL", FRANCE, "--vs", ""], ""),
    "lengths, explain": (["explain", "MODEL", FRANCE, "--vs", "Hello"], "5", "1"),
    "lengths, patch": (["patch", "MODEL", FRANCE, "Hello"], "5", "1"),
    "target of several tokens": (["lens", "MODEL", FRANCE, "--target", "Paris and Rome"], "--target", "and", "Rome"),
    "answer of several tokens": (["patch", "MODEL", FRANCE, ITALY, "--answer", "Paris and Rome"], "--answer"),
    "one answer": (["patch", "MODEL", FRANCE, FRANCE], "same token", "Paris"),
    "layer": (["attention", "MODEL", FRANCE, "--layer", "30"], "layer 30", "29"),
    "layer, patch": (["patch", "MODEL", FRANCE, ITALY, "--layer", "-31"], "layer -31"),
    "head": (["attention", "MODEL", FRANCE, "--layer", "0", "--head", "9"], "head 9"),
    "head without layer": (["attention", "MODEL", FRANCE, "--head", "1"], "--layer"),
    "position": (["lens", "MODEL", FRANCE, "--position", "5"], "position 5"),
    "top-k": (["lens", "MODEL", FRANCE, "--top-k", "0"], "0"),
    "activation": (["patch", "MODEL", FRANCE, ITALY, "--activation", "resid_prre"], "resid_pre"),
    "activation without heads": (["patch", "MODEL", FRANCE, ITALY, "--by-head"], "head"),
    "node": (["nodes", "MODEL", "no_such_node_at_all"], "no_such_node_at_all"),
    "dtype": (["lens", "MODEL", FRANCE, "--dtype", "int8"], "float32"),
    "number": (["generate", "MODEL", FRANCE, "-n", "many"], "many"),
    "negative number": (["generate", "MODEL", FRANCE, "-n", "-1"], "-1"),
    "temperature": (["generate", "MODEL", FRANCE, "--temperature", "-2"], "temperature"),
    "greedy and drawn": (["generate", "MODEL", FRANCE, "--greedy", "--seed", "1"], "--seed"),
    "page in no folder": (["explain", "MODEL", FRANCE, "--html", "no/such/folder/page.html"], "folder"),
    "page over a folder": (["explain", "MODEL", FRANCE, "--html", "FOLDER"], "folder"),
    "page without a name": (["explain", "MODEL", FRANCE, "--html", ""], "file name"),
    "line breaks": (["tokens", "no\nsuch\nmodel", "text"], "such"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line(run, demo_model, tmp_path, case):
    notes = tmp_path / "notes.txt"
    notes.write_text("Just some notes.\n")
    arguments, *parts = WRONG[case]
    places = {"MODEL": demo_model, "TEXT_FILE": notes, "FOLDER": tmp_path}
    assert_refused(run(*(places.get(argument, argument) for argument in arguments)), *parts)


def test_a_damaged_file_is_one_line(run, demo_model, tmp_path):
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(demo_model.read_bytes()[: 1 << 20])
    for command in (["info", damaged], ["lens", damaged, FRANCE]):
        assert_refused(run(*command), "cut.gguf")


def test_full_disk(program, demo_model):
    with open("/dev/full", "w") as full:
        result = subprocess.run([program, "info", demo_model], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1


def test_a_closed_pipe_is_quiet(program, demo_model):
    result = subprocess.run(
        ["bash", "-c", '"$0" info "$1" --weights | head -1', program, str(demo_model)], capture_output=True, text=True
    )
    assert result.stderr == "" and result.stdout.count("\n") == 1


# ---- In a terminal ----


def test_terminal(program, demo_model):
    code, out, err = in_terminal(program, "explain", demo_model, FRANCE, "--vs", ITALY)
    assert code == 0 and "\x1b[" in out and "patching" in err and err.endswith("\r\x1b[K")
    assert max(len(re.sub("\x1b\\[[0-9;]*m", "", line)) for line in out.splitlines()) <= 80
    code, out, err = in_terminal(program, "lens", demo_model, FRANCE, env={"NO_COLOR": "1"})
    assert code == 0 and "\x1b" not in out


def test_json_has_no_colour(program, demo_model):
    code, out, _ = in_terminal(program, "info", demo_model, "--json")
    assert code == 0 and json.loads(out)["architecture"] == "llama"


def test_interrupted_generation_gives_what_it_has(program, demo_model, python_model):
    code, out, _ = in_terminal(program, "generate", demo_model, FRANCE, "-n", "4000", interrupt_after=20)
    assert code == 130
    assert out.endswith("\n") and out.startswith(" Paris") and 20 <= len(out.encode()) < 4000


def test_interrupted_json_is_whole(program, demo_model):
    process = subprocess.Popen(
        [program, "generate", demo_model, FRANCE, "-n", "4000", "--stop", "\x00", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == ""
    result = json.loads(out)["results"][0]
    assert result["finish"] == "interrupted" or result["finish"] == "stop token"


def test_interrupt_is_quiet(program, demo_model):
    process = subprocess.Popen(
        [program, "patch", demo_model, FRANCE, ITALY, "--activation", "z", "--by-head"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "" and err == ""


def test_numbers_are_finite(ask):
    found = ask("explain", FRANCE, "--vs", ITALY)
    assert all(math.isfinite(value) for row in found["patching"]["recovered"] for value in row)
