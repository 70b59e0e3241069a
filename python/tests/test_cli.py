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
LOOP = "hi"  # The demo's model goes on after it for as long as one lets it.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # Threads that wait for each other only cost time here.
COMMANDS = ["info", "tokens", "nodes", "generate", "lens", "attention", "patch", "explain"]


def start(*command, **options):
    """Runs a command to its end."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT, "timeout": 120, **options}
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run([str(part) for part in command], text=True, **options)


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
        return start(program, *arguments)

    return lambda *arguments: once(*map(str, arguments))


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
def report(program, demo_model, tmp_path_factory):
    """The demo's explanation, with its page written through a link over an old file: JSON, the folder."""
    folder = tmp_path_factory.mktemp("report")
    page, link = folder / "page.html", folder / "link.html"
    page.write_text("old")
    page.chmod(0o640)
    link.symlink_to(page)
    result = start(program, "explain", demo_model, FRANCE, "--vs", ITALY, "--html", link, "--json")
    assert result.returncode == 0 and result.stderr == ""
    return json.loads(result.stdout), folder


@pytest.fixture(scope="session")
def explained(report):
    return report[0]


@pytest.fixture(scope="session")
def python_model(demo_model):
    glassformer = pytest.importorskip("glassformer")
    return glassformer.load(str(demo_model))


def in_terminal(program, *arguments, interrupt_after=None, interrupt_at=None, env=None):
    """Runs the program with a terminal of 80 columns: exit code, standard output, standard error. Ctrl-C comes after so
    many bytes of output, or when the progress bar says `interrupt_at`."""
    environment = {**ENVIRONMENT, "TERM": "xterm", **(env or {})}
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
        enough = interrupt_after is not None and len(texts[main]) >= interrupt_after
        if enough or (interrupt_at is not None and interrupt_at in texts[error_main]):
            process.send_signal(signal.SIGINT)
            interrupt_after = interrupt_at = None
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
    assert run("help", command).stdout == result.stdout
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
    result = start(program, "tokens", demo_model, "-", "--json", input=FRANCE)
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
    environment = {**ENVIRONMENT, "LD_DEBUG": "files"}
    result = start(program, arguments[0], demo_model, *arguments[1:], env=environment)
    assert result.returncode == 0
    assert "libglassformer_files" in result.stderr
    assert "libtorch" not in result.stderr and "libc10" not in result.stderr


# ---- Commands that run the model ----


def test_nodes(ask, python_model):
    nodes = ask("nodes")
    assert [node["name"] for node in nodes] == [node.name for node in python_model.nodes()]
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
        ask("generate", FRANCE, "-n", "6", "--temperature", temperature, "--seed", seed)["results"][0]["ids"]
        for temperature, seed in (("1.5", "1"), ("1.50", "1"), ("1.5", "2"))
    ]
    assert draws[0] == draws[1] != draws[2]
    assert ask("generate", FRANCE, "-n", "4", "--top-k", "1")["results"][0]["text"].startswith(" Paris")


def test_lens(ask, explained):
    lens = ask("lens", FRANCE, "--target", " Paris")
    assert lens["layers"] == ["embed", *map(str, range(30))] and lens["positions"] == [0, 1, 2, 3, 4]
    assert lens["top"][-1][-1][0]["token"] == " Paris" and lens["target"]["rank"][-1][-1] == 0
    assert lens["target"]["probability"][-1][-1] == pytest.approx(lens["top"][-1][-1][0]["probability"], abs=1e-6)
    assert [[scores[0]["id"] for scores in row] for row in lens["top"]] == [
        [score["id"] for score in row] for row in explained["lens"]["top"]
    ]
    last = ask("lens", FRANCE, "--top-k", "3")
    assert last["positions"] == [4]
    assert [row[0][0]["id"] for row in last["top"]] == [row[-1][0]["id"] for row in lens["top"]]


def test_attention(ask, explained, python_model):
    heads = ask("attention", FRANCE, "--heads", "4")["heads"]
    strongest = [(head["layer"], head["head"]) for head in explained["heads"]]
    assert [(head["layer"], head["head"]) for head in heads] == strongest[:4]
    layer, head = heads[0]["layer"], heads[0]["head"]
    one = ask("attention", FRANCE, "--layer", str(layer), "--head", str(head))["heads"]
    assert len(one) == 1 and one[0]["pattern"] == heads[0]["pattern"]
    expected = python_model.trace(FRANCE).read(f"blocks.{layer}.attn.hook_pattern")[0, head]
    for found, row in zip(one[0]["pattern"], expected.tolist(), strict=True):
        assert found == pytest.approx(row, abs=1e-5) and sum(found) == pytest.approx(1, abs=1e-5)
    assert len(ask("attention", FRANCE, "--layer", "-1")["heads"]) == 9


def test_patch(ask, explained):
    patch = ask("patch", FRANCE, ITALY)
    assert patch["answer"]["token"] == " Paris" and patch["versus"]["token"] == " Rome"
    assert patch["axes"] == ["layer", "pos"] and len(patch["recovered"]) == 30
    for found, expected in zip(patch["recovered"], explained["patching"]["recovered"], strict=True):
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


def check_explanation(found, answer, versus_answer):
    top = found["next_tokens"][0]
    assert (top["token"], found["versus_next_tokens"][0]["token"]) == (answer, versus_answer)
    parts = sum(component["logit"] for component in found["attribution"]["components"])
    assert parts == pytest.approx(found["attribution"]["sum"], abs=1e-6)
    assert parts == pytest.approx(top["logit"], abs=1e-4)
    recovered = found["patching"]["recovered"]
    assert len(recovered) == 30 and all(math.isfinite(value) for row in recovered for value in row)
    same = [a == b for a, b in zip(found["prompt"]["ids"], found["versus"]["ids"], strict=True)]
    assert same.count(False) == 1  # So before the first block that one position carries everything.
    assert recovered[0] == pytest.approx([0 if equal else 1 for equal in same], abs=1e-4)
    for head in found["heads"]:
        for row in head["pattern"]:
            assert sum(row) == pytest.approx(1, abs=1e-4)


def test_explain(explained):
    check_explanation(explained, " Paris", " Rome")


@pytest.mark.parametrize(
    ("prompt", "versus", "answer", "versus_answer"),
    [
        ("The opposite of up is", "The opposite of black is", " down", " white"),
        ("The capital of Japan is", "The capital of Spain is", " Tokyo", " Madrid"),
    ],
)
def test_explain_others(ask, prompt, versus, answer, versus_answer):
    check_explanation(ask("explain", prompt, "--vs", versus), answer, versus_answer)


def test_explain_without_a_second_prompt(ask):
    found = ask("explain", FRANCE, "--heads", "2", "--top-k", "3")
    assert found["versus"] is None and found["patching"] is None
    assert len(found["heads"]) == 2 and len(found["next_tokens"]) == 3
    assert sum(score["probability"] for score in found["next_tokens"]) < 1


def test_explain_another_answer(ask, run, demo_model, python_model):
    found = ask("explain", FRANCE, "--answer", "Lyon", "--vs", ITALY, "--versus", "Milan")
    assert found["attribution"]["answer"]["token"] == found["patching"]["answer"]["token"] == " Lyon"
    assert found["patching"]["versus_answer"]["token"] == " Milan"
    lyon, milan = (found["patching"][name]["id"] for name in ("answer", "versus_answer"))
    for prompt, name in ((FRANCE, "clean_difference"), (ITALY, "corrupted_difference")):
        logits = python_model.trace(prompt).logits_at(-1)[0]
        assert found["patching"][name] == pytest.approx((logits[lyon] - logits[milan]).item(), abs=1e-4)
    parts = sum(component["logit"] for component in found["attribution"]["components"])
    assert parts == pytest.approx(python_model.trace(FRANCE).logits_at(-1)[0, lyon].item(), abs=1e-4)
    probability = found["attribution"]["answer"]["probability"]
    assert found["lens"]["probability"][-1][-1] == pytest.approx(probability, abs=1e-6)
    text = " ".join(run("explain", demo_model, FRANCE, "--answer", "Paris").stdout.split())
    assert "What is explained here is “Paris”" in text and "“ Paris”, with a space before it, is another token" in text


def test_explain_two_prompts_with_one_answer(ask, run, demo_model):
    inside = "The capital in France is"
    found = ask("explain", FRANCE, "--vs", inside)
    first, second = found["versus_next_tokens"][:2]
    assert found["patching"]["answer"]["token"] == first["token"] == " Paris"
    assert found["patching"]["versus_answer"] == second
    assert found["patching"]["recovered"][0] == pytest.approx([0, 0, 1, 0, 0], abs=1e-4)
    text = " ".join(run("explain", demo_model, FRANCE, "--vs", inside).stdout.split())
    assert f"answered “ Paris” too; the comparison is with “{second['token']}”" in text


def test_the_page_holds_the_same_numbers(report):
    found, folder = report
    page = (folder / "page.html").read_text()
    embedded = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.S)
    assert json.loads(embedded.group(1)) == found


def test_the_page_replaces_the_old_one_and_keeps_links_and_modes(report):
    _, folder = report
    assert sorted(path.name for path in folder.iterdir()) == ["link.html", "page.html"]
    assert (folder / "link.html").is_symlink()
    assert stat.S_IMODE((folder / "page.html").stat().st_mode) == 0o640


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
    "one prompt twice, explain": (["explain", "MODEL", FRANCE, "--vs", FRANCE], "same tokens"),
    "answer of several tokens, explain": (["explain", "MODEL", FRANCE, "--answer", "New York"], "--answer", "“ York”"),
    "versus without a second prompt": (["explain", "MODEL", FRANCE, "--versus", " Rome"], "--vs"),
    "answer against itself": (["explain", "MODEL", FRANCE, "--vs", ITALY, "--versus", " Paris"], "Paris", "differ"),
    "empty answer": (["explain", "MODEL", FRANCE, "--answer", ""], "--answer", "0 tokens"),
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
    "unknown option at the front": (["--verbose"], "no option '--verbose'", "--help"),
    "empty folder": (["lens", "EMPTY_FOLDER", FRANCE], "neither config.json nor a GGUF file"),
    "folder without config": (["info", "EMPTY_FOLDER"], "neither config.json nor a GGUF file"),
    "empty prompt, lens": (["lens", "MODEL", ""], "no tokens"),
    "empty prompt, attention": (["attention", "MODEL", ""], "no tokens"),
    "empty prompt, patch": (["patch", "MODEL", "", ""], "no tokens"),
    "too long a prompt": (["lens", "MODEL", "a " * 9000], "9001 tokens", "8192"),
    "too long a prompt, generate": (["generate", "MODEL", "a " * 9000], "9001 tokens", "8192"),
    "node without a near name": (["nodes", "MODEL", "qqqqqqqqqqqqqqq"], "without a pattern"),
    "no whole number": (["attention", "MODEL", FRANCE, "--layer", "1.5"], "--layer", "'1.5'", "whole number"),
    "option without a value": (["generate", "MODEL", FRANCE, "-n"], "--max-new-tokens needs a value"),
    "help for an unknown command": (["help", "explan"], "explain"),
    "number": (["generate", "MODEL", FRANCE, "-n", "many"], "'many'", "whole number"),
    "temperature that is no number": (["generate", "MODEL", FRANCE, "--temperature", "hot"], "'hot'", "expected a num"),
    "number that is empty": (["attention", "MODEL", FRANCE, "--layer", ""], "--layer: found ''", "whole number"),
    "list with a gap": (["tokens", "MODEL", "--ids", "1,,2"], "--ids: found ''", "1,2,3"),
    "number that no type holds": (["lens", "MODEL", FRANCE, "--position", "9" * 20], "found '9999", "whole numbers"),
    "negative seed": (["generate", "MODEL", FRANCE, "--seed", "-1"], "--seed: found '-1'", "0 or more"),
    "no number": (["generate", "MODEL", FRANCE, "--frequency-penalty", "nan"], "'nan'", "expected a number"),
    "threads": (["lens", "MODEL", FRANCE, "--threads", "0"], "--threads: found '0'", "1 to 4096"),
    "option twice": (["attention", "MODEL", FRANCE, "--layer", "1", "--layer", "2"], "--layer is given more than once"),
    "activation of no block": (["patch", "MODEL", FRANCE, ITALY, "--activation", "logits"], "'logits'", "resid_pre"),
    "negative number": (["generate", "MODEL", FRANCE, "-n", "-1"], "'-1'", "0 or more"),
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
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"MODEL": demo_model, "TEXT_FILE": notes, "FOLDER": tmp_path, "EMPTY_FOLDER": empty}
    assert_refused(run(*(places.get(argument, argument) for argument in arguments)), *parts)


def test_a_damaged_file_is_one_line(run, demo_model, tmp_path):
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(demo_model.read_bytes()[: 1 << 20])
    for command in (["info", damaged], ["lens", damaged, FRANCE]):
        assert_refused(run(*command), "cut.gguf")


def test_full_disk(program, demo_model):
    with open("/dev/full", "w") as full:
        result = start(program, "info", demo_model, stdout=full)
    assert result.returncode == 1 and result.stderr.count("\n") == 1


def test_a_closed_pipe_is_quiet(program, demo_model):
    result = start("bash", "-c", '"$0" info "$1" --weights | head -1', program, demo_model)
    assert result.stderr == "" and result.stdout.count("\n") == 1


# ---- In a terminal ----


def test_terminal(program, demo_model):
    code, out, err = in_terminal(program, "explain", demo_model, FRANCE, "--vs", ITALY)
    assert code == 0 and "\x1b[" in out and "patching" in err and err.endswith("\r\x1b[K")
    plain = re.sub("\x1b\\[[0-9;]*m", "", out)
    assert "answers “ Paris”" in plain and "“ Rome”" in plain
    assert max(map(len, plain.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["lens"], ["opening the model", "logit lens"]),
        (["attention"], ["reading the prompt", "attention"]),
        (["patch", ITALY], ["reading the clean prompt", "patching"]),
        (["generate", "-n", "1"], ["reading the prompt"]),
        (["generate", ITALY, "-n", "2"], ["reading the prompts", "generating"]),
    ],
)
def test_progress_is_shown_and_gone_before_the_output(program, demo_model, command, parts):
    code, out, err = in_terminal(program, command[0], demo_model, FRANCE, *command[1:])
    assert code == 0 and out and err.endswith("\r\x1b[K")
    assert all(part in err for part in parts) and " %" in err
    assert max(len(line) for line in err.replace("\x1b[K", "").split("\r")) < 80


def test_no_colour(program, demo_model):
    code, out, _ = in_terminal(program, "lens", demo_model, FRANCE, env={"NO_COLOR": "1"})
    assert code == 0 and "·Paris" in out and "\x1b" not in out
    code, out, _ = in_terminal(program, "info", demo_model, "--json")
    assert code == 0 and json.loads(out)["architecture"] == "llama"


def test_interrupted_generation_gives_what_it_has(program, demo_model):
    code, out, _ = in_terminal(program, "generate", demo_model, LOOP, "-n", "4000", interrupt_after=20)
    assert code == 130 and out.endswith("\n") and 20 < len(out) < 4000


def test_interrupted_json_is_whole(program, demo_model):
    arguments = ["generate", demo_model, LOOP, "-n", "4000", "--json"]
    code, out, _ = in_terminal(program, *arguments, interrupt_at=b"generating")
    assert code == 130
    result = json.loads(out)["results"][0]
    assert result["finish"] == "interrupted" and len(result["ids"]) < 4000


def test_interrupt_is_quiet(program, demo_model):
    patch = ["patch", demo_model, FRANCE, ITALY, "--activation", "z", "--by-head"]
    code, out, err = in_terminal(program, *patch, interrupt_at=b"patching")
    assert code == 130 and out == "" and err.endswith("\r\x1b[K")
