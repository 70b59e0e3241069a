"""The judge's whole public surface, but for TransformerBridge and encoders: every module, name, attribute and argument
is here, or stands in a list below with the reason why not."""

import ast
import enum
import importlib
import inspect
from pathlib import Path

import pytest
import transformer_lens as judge
from test_tl_hooked_transformer import KINDS, pair_of

import glassformer.transformer_lens as ours
from glassformer.transformer_lens._install import absent

BRIDGE = "for TransformerBridge"
ENCODERS = "of encoders"
MODULES_NOT_HERE = {
    "BertNextSentencePrediction": ENCODERS,
    "HookedAudioEncoder": ENCODERS,
    "HookedEncoder": ENCODERS,
    "HookedEncoderDecoder": ENCODERS,
    "benchmarks": BRIDGE,
    "components.bert_block": ENCODERS,
    "components.bert_embed": ENCODERS,
    "components.bert_mlm_head": ENCODERS,
    "components.bert_nsp_head": ENCODERS,
    "components.bert_pooler": ENCODERS,
    "components.t5_attention": ENCODERS,
    "components.t5_block": ENCODERS,
    "components.token_typed_embed": ENCODERS,
    "config.transformer_bridge_config": BRIDGE,
    "conversion_utils": BRIDGE,
    "factories.architecture_adapter_factory": BRIDGE,
    "lit": "the Language Interpretability Tool",
    "model_bridge": BRIDGE,
    "pretrained": "the core reads weights",
    "remote_module_loading": "empty modules",
    "tools": "tools beside the library",
    "utilities.aliases": BRIDGE,
    "utilities.architectures": BRIDGE,
    "utilities.bridge_components": BRIDGE,
    "utilities.heterogeneous_config": BRIDGE,
    "utilities.tracr": BRIDGE,
}

TYPES = "a type for annotations"
MESSAGES = "the text of a message"
HUB = "mends transformers for TransformerBridge's loading"
NAMES_NOT_HERE = {
    "FactoredMatrix.TensorLike": TYPES,
    "HookedTransformer.DTYPE_FROM_STRING": "a table of the loader",
    "HookedTransformer.Loss": TYPES,
    "HookedTransformer.LossPerToken": TYPES,
    "HookedTransformer.SingleLoss": TYPES,
    "HookedTransformer.T": TYPES,
    "SVDInterpreter.OUTPUT_EMBEDDING": "a key of TransformerLens' own",
    "components.mlps.gpt_oss_moe.GPT_OSS_ALPHA": "a number of the core's",
    "components.mlps.gpt_oss_moe.GPT_OSS_LIMIT": "a number of the core's",
    "components.rms_norm.RMSNormInput": TYPES,
    "head_detector.CACHE_WITH_SEQ_LIST_ERR": MESSAGES,
    "head_detector.DET_PAT_NOT_SQUARE_ERR": MESSAGES,
    "head_detector.INVALID_HEAD_NAME_ERR": MESSAGES,
    "head_detector.SEQ_LEN_ERR": MESSAGES,
    "patching.AxisNames": TYPES,
    "patching.CorruptedActivation": TYPES,
    "patching.Logits": TYPES,
    "patching.PatchedActivation": TYPES,
    "utilities.hf_utils.CACHE_DIR": "huggingface_hub's own: huggingface_hub.constants.HF_HUB_CACHE",
    "utilities.hf_utils.autoconfig_with_remote_post_init_compat": HUB,
    "utilities.hf_utils.autotokenizer_with_special_token_compat": HUB,
    "utilities.hf_utils.enable_hf_numeric_tower": HUB,
    "utilities.hf_utils.enable_hf_retry": HUB,
    "utilities.hf_utils.logger": "a logger",
    "utilities.hf_utils.make_post_init_kwarg_tolerant": HUB,
    "utilities.multi_gpu.MIXED_CPU_GPU_ERROR": MESSAGES,
    "utilities.multi_gpu.MaxMemory": TYPES,
    "utilities.multi_gpu.cast_floating_params_to_dtype": BRIDGE,
    "utilities.multi_gpu.count_unique_devices": BRIDGE,
    "utilities.multi_gpu.find_embedding_device": BRIDGE,
    "utilities.multi_gpu.find_misplaced_modules": BRIDGE,
    "utilities.multi_gpu.is_mixed_cpu_gpu": BRIDGE,
    "utilities.multi_gpu.maybe_cast_floating_params": BRIDGE,
    "utilities.multi_gpu.resolve_device_map": BRIDGE,
    "utilities.quantization.describe_quantization": "quantised models are refused whole",
    "utilities.quantization.require_readable_weight": "quantised models are refused whole",
    "utilities.quantization.unreadable_weight_reason": "quantised models are refused whole",
    "weight_processing.ProcessWeights.convert_tensor_to_hf_format": BRIDGE,
    "weight_processing.ProcessWeights.convert_tensor_to_tl_format": BRIDGE,
    "weight_processing.ProcessWeights.distribute_weights_to_components": BRIDGE,
    "weight_processing.ProcessWeights.extract_attention_tensors_for_folding": BRIDGE,
}
"""Names, and methods of classes, by the judge's module that defines them."""

ATTRIBUTES_NOT_HERE = {"backward_scale": BRIDGE}
"""Attributes of modules."""

A_DATASET = "takes the data set too where `datasets` is not installed"
WHERE_THE_MODEL_IS = "runs where the model is; the judge's default fails without CUDA"
OTHER_ARGUMENTS = {
    "ActivationCache.ActivationCache.to": "still takes move_model, as versions before",
    "HookedTransformer.HookedTransformer.run_with_cache": "names what the judge takes as **kwargs",
    "evals.evaluate_on_dataset": WHERE_THE_MODEL_IS,
    "evals.induction_loss": WHERE_THE_MODEL_IS,
    "evals.make_code_data_loader": A_DATASET,
    "evals.make_owt_data_loader": A_DATASET,
    "evals.make_pile_data_loader": A_DATASET,
    "evals.make_wiki_data_loader": A_DATASET,
    "evals.mmlu_eval": A_DATASET,
    "utilities.hf_utils.download_file_from_hf": "None is the hub's own folder",
}
"""Functions with other arguments than the judge's; all that it takes they take, too."""


def is_excepted(path):
    parts = path.split(".")
    return any(".".join(parts[:length]) in MODULES_NOT_HERE for length in range(1, len(parts) + 1))


def judges_modules():
    root = Path(judge.__path__[0])
    paths = {file.relative_to(root).with_suffix("").as_posix().removesuffix("/__init__") for file in root.rglob("*.py")}
    return sorted(path.replace("/", ".") for path in paths - {"__init__"})


PATHS = [path for path in judges_modules() if not is_excepted(path)]


def module_of(package, path):
    module = importlib.import_module(f"{package.__name__}.{path}")
    return importlib.import_module(module.__module__) if inspect.isclass(module) else module


def names_defined(module):
    """What the source of a module gives public names at its top."""
    names = []
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.col_offset == 0:
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.col_offset == 0:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return sorted({name for name in names if not name.startswith("_") and hasattr(module, name)})


def arguments_of(function):
    """Names, kinds and defaults; a default that can be no other is told by what is printed of it."""

    def default(value):
        return () if isinstance(value, list) and not value else value

    return [
        (each.name, each.kind, repr(default(each.default))) for each in inspect.signature(function).parameters.values()
    ]


def test_the_exceptions_are_of_the_judge():
    modules = judges_modules()
    assert all(path in modules or any(name.startswith(f"{path}.") for name in modules) for path in MODULES_NOT_HERE)
    for name in [*NAMES_NOT_HERE, *OTHER_ARGUMENTS]:
        path = next(path for path in sorted(PATHS, key=len, reverse=True) if name.startswith(f"{path}."))
        found = module_of(judge, path)
        for part in name.removeprefix(f"{path}.").split("."):
            found = getattr(found, part)


@pytest.mark.filterwarnings("ignore:The 'utils' module")
@pytest.mark.parametrize("path", PATHS)
def test_every_name_of_a_module(path):
    theirs, here = module_of(judge, path), module_of(ours, path)
    missing, other = [], []
    for name in names_defined(theirs):
        full = f"{path}.{name}"
        if full in NAMES_NOT_HERE:
            assert not hasattr(here, name), f"{full} is here: take it off the list"
            continue
        if not hasattr(here, name):
            missing.append(full)
            continue
        found, expected = getattr(here, name), getattr(theirs, name)
        if inspect.isclass(expected):
            missing += [f"{full}.{each}" for each in missing_attributes(full, found, expected)]
            other += other_arguments_of_class(full, found, expected)
        elif inspect.isfunction(expected):
            other += other_arguments(full, found, expected)
    assert not missing and not other


def judges_attributes(cls):
    """Public attributes that the judge's classes give, and the ways to make one."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("transformer_lens")]
    return {name: getattr(cls, name) for base in own for name in vars(base) if not name.startswith("_")}


def missing_attributes(full, found, expected):
    if issubclass(expected, enum.Enum) or getattr(expected, "_is_protocol", False):
        return []
    names = [name for name in judges_attributes(expected) if f"{full}.{name}" not in NAMES_NOT_HERE]
    return [name for name in names if not hasattr(found, name)]


def other_arguments_of_class(full, found, expected):
    other = other_arguments(full, found, expected) if expected.__init__ is not object.__init__ else []
    for name, theirs in judges_attributes(expected).items():
        if inspect.isfunction(theirs) and hasattr(found, name):
            other += other_arguments(f"{full}.{name}", getattr(found, name), theirs)
        elif inspect.ismethod(theirs) and hasattr(found, name):
            assert inspect.ismethod(getattr(found, name)), f"{full}.{name} is a class method"
            other += other_arguments(f"{full}.{name}", getattr(found, name), theirs)
    return other


def other_arguments(full, found, expected):
    try:
        same = arguments_of(found) == arguments_of(expected)
    except ValueError:  # What is written in C has no signature.
        return []
    if full in OTHER_ARGUMENTS:
        assert not same, f"{full} has the same arguments: take it off the list"
        ours_names = {each.name for each in inspect.signature(found).parameters.values()}
        lost = [each.name for each in inspect.signature(expected).parameters.values() if each.name not in ours_names]
        return [f"{full} lacks {lost}"] if lost else []
    return [] if same else [f"{full}: {arguments_of(found)}; expected {arguments_of(expected)}"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_attribute_of_a_models_modules(kind):
    theirs, here = pair_of(KINDS[kind])
    assert [path for path, _ in here.named_modules()] == [path for path, _ in theirs.named_modules()]
    for path, module in theirs.named_modules():
        found = here.get_submodule(path)
        names = [name for name in vars(module) if not name.startswith("_") and name not in ATTRIBUTES_NOT_HERE]
        lost = [name for name in names if not hasattr(found, name)]
        assert not lost, f"{path or 'the model'} lacks {lost}"


@pytest.mark.parametrize("name", ["utils", "utilities", "components", "hook_points"])
def test_everything_that_notebooks_import_from(name):
    theirs, here = module_of(judge, name), module_of(ours, name)
    names = [each for each in vars(theirs) if not each.startswith("_") and not inspect.ismodule(getattr(theirs, each))]
    own = [each for each in names if getattr(getattr(theirs, each), "__module__", "").startswith("transformer_lens")]
    listed = {full.rpartition(".")[2] for full in NAMES_NOT_HERE}
    lost = [each for each in own if not hasattr(here, each) and each not in listed]
    encoders = ("Bert", "T5", "TokenType")
    assert not [each for each in lost if not each.startswith(encoders)]


def test_every_public_name_is_here_or_says_why_not():
    names = {name for name in vars(judge) if not name.startswith("_")} - {"deprecated", "lit"}
    missing = {name for name in names if not hasattr(ours, name) and absent(name) is None}
    assert not missing - {"patching", "past_key_value_caching"}
    assert all(hasattr(ours, name) for name in ours.__all__)
    assert not [name for name in names if hasattr(ours, name) and absent(name)]
