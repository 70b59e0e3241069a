"""The modules of `transformers` and our nodes: what torch's hooks see of a model is what the nodes hold."""

import contextlib
import types

import pytest
import torch
import transformers
from helpers import assert_close, error, nodes_of
from tiny_models import CONFIGS, D_VOCAB, N_CTX, NO_FLOAT64, make_model, random_tokens
from torch.overrides import TorchFunctionMode

import glassformer

ALL = list(CONFIGS)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
NEVER_CALLED = {"blocks"}  # A list of modules.
NOT_FROM_A_NODE = {"model", "decoder", "embed", "pos_embed", "rotary", "blocks", "attn_dropout"}


class StaysWide(TorchFunctionMode):
    """transformers goes down to float32 in norms and softmax; here it stays in float64."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return function(*args, **kwargs)


def dtype_of(name):
    return torch.float32 if name in NO_FLOAT64 else torch.float64


def tree_of(model):
    return model.core.module_tree()


def tensors_of(output):
    """What a module returns as a list of tensors."""
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    return list(output) if isinstance(output, tuple) else [output]


def run(reference, tokens):
    with torch.no_grad(), StaysWide():
        return reference(tokens, use_cache=False).logits


def without_first(args, kwargs):
    """The first argument of a call, and a function of a new one that gives such a call's arguments."""
    if args:
        return args[0], lambda value: ((value, *args[1:]), kwargs)
    first = next(iter(kwargs))
    return kwargs[first], lambda value: (args, {**kwargs, first: value})


def calls_of(reference, tokens):
    """Each module's call during one forward pass: its first argument, what it returns, and how to call it on another
    first argument."""
    calls = {}

    def note(path):
        def hook(_module, args, kwargs, output):
            first, others = without_first(args, kwargs)
            calls[path] = types.SimpleNamespace(input=first, output=tensors_of(output), arguments=others)

        return hook

    with contextlib.ExitStack() as stack:
        for path, module in reference.named_modules():
            stack.callback(module.register_forward_hook(note(path), with_kwargs=True).remove)
        run(reference, tokens)
    return calls


def has_heads(node):
    return node.axes[2:3] in (("head",), ("kv_head",))


def shown(model, trace, names):
    """The nodes as a module has them: heads side by side in the last axis, then the nodes."""
    nodes = nodes_of(model)
    values = [trace.read(name).flatten(2) if has_heads(nodes[name]) else trace.read(name) for name in names]
    return values[0] if len(values) == 1 else torch.cat(values, dim=-1)


def as_node(model, name, value):
    """A module's tensor as a value of its one node."""
    node = nodes_of(model)[name]
    return value.unflatten(-1, node.sizes[2:]) if has_heads(node) else value


def changed(module, value):
    """Another input for a module, of the kind that it takes."""
    if module.part == "pos_embed":
        return (value + 7) % N_CTX
    return value.flip(0) * 0.7 if value.is_floating_point() else (value + 1) % D_VOCAB


# What is there, and what it is called.


@pytest.mark.parametrize("name", ALL)
def test_paths_classes_and_descriptions(name):
    check_names(make_model(name))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"embd_pdrop": 0.0, "attn_pdrop": 0.25, "resid_pdrop": 1e-5, "layer_norm_epsilon": 1e-4}),
        ("llama", {"pad_token_id": 3, "rms_norm_eps": 1e-3}),
        ("mistral", {"pad_token_id": 0, "rms_norm_eps": 2.5e-7}),
    ],
)
def test_descriptions_of_other_numbers(name, changes):
    check_names(make_model(name, **changes))


@pytest.mark.parametrize("activation", ["relu2", "gelu_new", "gelu_fast", "swish", "tanh", "quick_gelu"])
def test_classes_of_activations(activation):
    check_names(make_model("llama", hidden_act=activation))


def test_a_gguf_file_has_the_modules_that_transformers_makes_of_it(demo_model):
    config = transformers.AutoConfig.from_pretrained(demo_model.parent, gguf_file=demo_model.name)
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(config)
    assert reference.model.embed_tokens.padding_idx == 2
    check_names(reference, glassformer.load(demo_model))


def check_names(reference, model=None):
    modules = tree_of(model or glassformer.load(reference))
    theirs = list(reference.named_modules())
    assert [(m.path, m.class_name) for m in modules] == [(path, type(module).__name__) for path, module in theirs]
    for module, (path, their) in zip(modules, theirs, strict=True):
        said = repr(their).removeprefix(f"{module.class_name}(").removesuffix(")")
        assert module.description == ("" if list(their.children()) else said), path
        numbers = [part for part in path.split(".") if part.isdigit()]
        assert module.layer == (int(numbers[0]) if numbers else -1)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "mistral"])
def test_standard_paths(name):
    model = glassformer.load(make_model(name))
    standard = {module.standard: module.part for module in tree_of(model) if module.standard}
    layers = {"": "block", ".self_attn": "attention", ".mlp": "mlp"}
    expected = {f"layers.{layer}{end}": part for layer in range(3) for end, part in layers.items()}
    assert standard == {
        "embed_tokens": "embed",
        "layers": "blocks",
        **expected,
        "ln_final": "final_norm",
        "lm_head": "unembed",
    }


# What they take and return.


@pytest.mark.parametrize("name", ALL)
def test_inputs_and_outputs(name):
    reference, tokens = make_model(name, dtype_of(name)), random_tokens(2, 13)
    model = glassformer.load(reference)
    trace, calls = model.trace(tokens), calls_of(reference, tokens)
    for module in tree_of(model):
        if module.path not in calls:
            # Eager attention drops nothing by its module but where scores are upcast.
            assert module.part in NEVER_CALLED | ({"attn_dropout"} if name != "gpt2_upcast" else set()), module.path
            continue
        call, tolerance = calls.pop(module.path), TOLERANCE[dtype_of(name)]
        found = [shown(model, trace, module.input), shown(model, trace, module.output)]
        found += [shown(model, trace, [node]) for node in module.more_outputs]
        expected = [call.input, *call.output]
        assert len(found) == len(expected), module.path
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs.expand_as(ours), tolerance, module.path)
    assert not calls


# Whether an input is its module's alone.


@pytest.mark.parametrize("name", ["gpt2", "gpt2_upcast", "llama", "llama_grouped", "mistral_window"])
def test_private_inputs(name):
    """Another input for a module in transformers, and in the nodes: the same logits where these are private, and others
    where they aren't."""
    reference, tokens = make_model(name, dtype_of(name)), random_tokens(2, 9)
    model = glassformer.load(reference)
    trace, calls, tolerance = model.trace(tokens), calls_of(reference, tokens), TOLERANCE[dtype_of(name)]
    for module in tree_of(model):
        if module.path not in calls:
            continue

        def put(_module, args, kwargs, module=module):
            value, others = without_first(args, kwargs)
            return others(changed(module, value))

        handle = reference.get_submodule(module.path).register_forward_pre_hook(put, with_kwargs=True)
        expected = run(reference, tokens)
        handle.remove()
        fork = trace.fork()
        value = changed(module, calls[module.path].input).expand_as(shown(model, trace, module.input))
        [node] = module.input
        fork.set(node, as_node(model, node, value))
        assert error(fork.logits, trace.logits) > 1e-3, module.path
        if module.input_is_private:
            assert_close(fork.logits, expected, 10 * tolerance, module.path)
        else:
            assert error(fork.logits, expected) > 1e-3, module.path


# Modules on tensors of their own.


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2_upcast", "llama", "llama_grouped", "llama_attention_bias", "mistral_window"]
)
def test_calls(name):
    reference, tokens = make_model(name, dtype_of(name)), random_tokens(2, 9)
    model, calls = glassformer.load(reference), calls_of(reference, tokens)
    for number, module in enumerate(tree_of(model)):
        assert bool(module.call_begin) == (module.part not in NOT_FROM_A_NODE), module.path
        if not module.call_begin:
            continue
        call = calls[module.path]
        x = torch.randn(call.input.shape, dtype=call.input.dtype, generator=torch.Generator().manual_seed(number))
        args, kwargs = call.arguments(x)
        with torch.no_grad(), StaysWide():
            expected = tensors_of(reference.get_submodule(module.path)(*args, **kwargs))
        trace = model.trace_from(module.call_begin, as_node(model, module.call_begin, x))
        assert_close(shown(model, trace, module.output), expected[0], TOLERANCE[dtype_of(name)], module.path)


# What they hold.


def joined(model, parameter):
    """A module's parameter from the weights that lie in it, in the module's layout."""
    whole = torch.cat([model.weights[name] for name in parameter.weights])
    return whole.T if parameter.transposed else whole


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_the_memory_that_the_engine_computes_with(name):
    reference = make_model(name)
    model = glassformer.load(reference)
    for module in tree_of(model):
        theirs = dict(reference.get_submodule(module.path).named_parameters(recurse=False))
        assert [parameter.name for parameter in module.parameters] == list(theirs), module.path
        for parameter in module.parameters:
            their = theirs[parameter.name]
            assert torch.equal(joined(model, parameter), their), module.path
            places = {model.weights[name].untyped_storage().data_ptr() for name in parameter.weights}
            assert places == {their.untyped_storage().data_ptr()}, module.path


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "llama_attention_bias"])
def test_modules_of_processed_weights(name):
    """Norms lose their weights, and projections get biases."""
    plain = glassformer.load(make_model(name, torch.float64))
    model = glassformer.process_weights(plain)
    trace = model.trace(random_tokens(2, 5))
    n_linear = 0
    for module, before in zip(tree_of(model), tree_of(plain), strict=True):
        assert (module.path, module.class_name, module.input) == (before.path, before.class_name, before.input)
        if module.part.endswith("_norm"):
            assert not module.parameters
            if name == "gpt2":
                assert module.description == "(24,), eps=1e-05, elementwise_affine=False, bias=False"
        if module.class_name not in ("Linear", "Conv1D"):
            continue
        parts = {parameter.name: joined(model, parameter) for parameter in module.parameters}
        weight = parts["weight"] if module.class_name == "Conv1D" else parts["weight"].T
        made = shown(model, trace, module.input) @ weight + parts.get("bias", 0)
        assert_close(made, shown(model, trace, module.output), 1e-12, module.path)
        n_linear += 1
    assert n_linear == {"gpt2": 13, "llama_grouped": 22, "llama_attention_bias": 22}[name]


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_a_splice_stands_for_the_node_that_it_was_put_onto(name):
    model = glassformer.load(make_model(name, torch.float64))
    for node in ("resid_post1", "q1", "blocks.1.ln1.hook_out"):
        spliced = model.splice(node, "sae", encode=torch.relu, decode=lambda acts: acts)
        for plain, other in zip(tree_of(model), tree_of(spliced), strict=True):
            for field in ("path", "input", "output", "input_is_private", "call_begin"):
                assert getattr(plain, field) == getattr(other, field), (plain.path, field)


def test_models_without_modules():
    nodes = [glassformer.NewNode("logits", "hook_tokens", "batch pos d_vocab=9", lambda ids, E: E[ids], weights="E")]
    model = glassformer.define(nodes, weights={"E": torch.eye(9)}, d_vocab=9, n_ctx=8)
    with pytest.raises(glassformer.UnsupportedError, match="model 'custom' has no modules"):
        tree_of(model)
