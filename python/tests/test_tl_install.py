"""TransformerLens' name for Glassformer's package: each in a process of its own, for it changes what is imported."""

import subprocess
import sys

import pytest

BEFORE = "import glassformer.transformer_lens as ours; ours.install(); "


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "import transformer_lens; assert transformer_lens is ours",
        "import transformer_lens.utils as utils; assert utils is ours.utils",
        "from transformer_lens import HookedTransformer as H; assert H is ours.HookedTransformer",
        "from transformer_lens.hook_points import HookPoint as H; assert H is ours.hook_points.HookPoint",
        "import transformer_lens.components.mlps.mlp; assert transformer_lens.components.mlps.mlp.MLP",
        "from transformer_lens.components.mlps.gpt_oss_moe import GptOssMoE",
        "from transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache as H;"
        "assert H is ours.HookedTransformerKeyValueCache",
        "ours.install(); import transformer_lens; assert transformer_lens is ours",
        "from transformer_lens.weight_processing import ProcessWeights as P;"
        "assert P is ours.weight_processing.ProcessWeights",
        "import glassformer.transformer_lens.components.mlps.mlp as m; assert m.MLP is ours.components.MLP",
        "from glassformer.transformer_lens.components.layer_norm import LayerNorm as L;"
        "assert L is ours.components.LayerNorm",
    ],
)
def test_existing_imports_mean_this_package(code):
    made = run(BEFORE + code)
    assert made.returncode == 0, made.stderr


def test_another_transformer_lens_is_only_replaced_by_force():
    other = "import sys, types; sys.modules['transformer_lens'] = types.ModuleType('transformer_lens'); "
    made = run(other + BEFORE)
    assert made.returncode == 1 and "RuntimeError: transformer_lens was imported already" in made.stderr
    forced = other + BEFORE.replace("install()", "install(force=True)")
    made = run(forced + "import transformer_lens; assert transformer_lens is ours")
    assert made.returncode == 0, made.stderr


ENCODERS = ("HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder", "BertNextSentencePrediction")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        *((f"from transformer_lens import {name}", f"has no '{name}': encoders have") for name in ENCODERS),
        ("import transformer_lens.model_bridge", "has no 'model_bridge': use HookedTransformer.from_pretrained()"),
        ("from transformer_lens.model_bridge import TransformerBridge", "'model_bridge': use HookedTransformer"),
        ("import transformer_lens.model_bridge.sources", "'model_bridge': use HookedTransformer"),
        ("from transformer_lens import TransformerBridge", "has no 'TransformerBridge': use HookedTransformer"),
        ("from glassformer.transformer_lens import TransformerBridge", "has no 'TransformerBridge': use Hooked"),
        ("from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights", "read by the core"),
        ("from transformer_lens import nonsense", "cannot import name 'nonsense'"),
        ("import transformer_lens.nonsense", "No module named 'transformer_lens.nonsense'"),
    ],
)
def test_imports_of_what_has_no_counterpart(code, says):
    last = run(BEFORE + code).stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError: ", "ModuleNotFoundError: ")) and says in last


def test_attributes_that_are_not_there():
    import glassformer.transformer_lens as ours

    assert not hasattr(ours, "HookedEncoder") and not hasattr(ours, "nonsense")
    with pytest.raises(AttributeError, match="has no 'TransformerBridge': use HookedTransformer"):
        ours.TransformerBridge  # noqa: B018
    with pytest.raises(AttributeError, match="has no 'nonsense'"):
        ours.nonsense  # noqa: B018


def test_another_transformer_lens_is_left_alone():
    other = (
        "import sys, types, glassformer.transformer_lens; m = types.ModuleType('transformer_lens'); m.__path__ = []; "
    )
    made = run(other + "sys.modules['transformer_lens'] = m; import transformer_lens.model_bridge")
    assert "No module named 'transformer_lens.model_bridge'" in made.stderr
