"""nnterp's name for Glassformer's package: each in a process of its own, for it changes what is imported."""

import subprocess
import sys
from pathlib import Path

import torch
from small_models import published

BEFORE = "import glassformer.nnterp as ours; ours.install(); "


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


IMPORTS = """
import sys; assert not {'plotly', 'pandas', 'transformers', 'tqdm.auto'} & set(sys.modules)
import nnterp; assert nnterp is ours
from nnterp import StandardizedTransformer as S; assert S is ours.StandardizedTransformer
from nnterp.prompt_utils import Prompt as P; assert P is ours.prompt_utils.Prompt
import nnterp.interventions as i; assert i is ours.interventions
from nnterp.display import plot_topk_tokens, prompts_to_df
from nnterp.rename_utils import LayerAccessor, RenameConfig
from nnterp.standardized_transformer import StandardizedTransformer as S; assert S is ours.StandardizedTransformer
from nnterp.nnsight_utils import ModuleAccessor as M; assert M is ours.ModuleAccessor
ours.install(); import nnterp; assert nnterp is ours
"""


def test_existing_imports_mean_this_package():
    made = run(BEFORE + IMPORTS)
    assert made.returncode == 0, made.stderr


def test_another_nnterp_is_only_replaced_by_force():
    other = "import sys, types; sys.modules['nnterp'] = sys.modules['nnterp.tests'] = types.ModuleType('nnterp'); "
    made = run(other + BEFORE)
    assert made.returncode == 1 and "RuntimeError: nnterp was imported already" in made.stderr
    forced = other + BEFORE.replace("install()", "install(force=True)")
    made = run(forced + "import nnterp; assert nnterp is ours; assert 'nnterp.tests' not in sys.modules")
    assert made.returncode == 0, made.stderr


def test_documented_examples_as_they_stand():
    """With nnsight's and nnterp's own names, and in `exec`."""
    place = published("gpt2", torch.float32, n_layer=6)[1]
    source = Path(__file__).with_name("nnterp_snippets.py").read_text().replace("glassformer.", "")
    calls = [
        "first, changed, logits = attention_probabilities(place)",
        "assert first.shape == (1, 4, 6, 6) and logits.shape == (1, 6, 359)",
        "assert renaming(place)[0] == ['model.transformer.h', 'model.transformer.ln_f', 'model.lm_head']",
        "torch_modules(place)",
        "tokens, plain, by_layer, *_ = prompts(place, lambda table: None)",
        "assert plain['traps'].shape == (1,) and by_layer['traps'].shape == (1, 6) and len(tokens['traps']) == 4",
    ]
    code = f"import glassformer.nnsight; glassformer.nnsight.install(); place = {place!r}; exec({source!r})\n"
    made = run(BEFORE + code + "\n".join(calls))
    assert made.returncode == 0, made.stderr
