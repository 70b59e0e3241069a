"""The examples of nnterp's page on its advanced features, as they stand there but for the model's place. In
python/tests_peers the same lines run on nnterp and nnsight."""

import plotly.graph_objects as go
import torch
import torch.nn as nn
from transformers import AutoModelForCausalLM

from glassformer.nnsight import LanguageModel, NNsight
from glassformer.nnterp import ModuleAccessor, StandardizedTransformer, get_rename_dict
from glassformer.nnterp.display import plot_topk_tokens, prompts_to_df
from glassformer.nnterp.interventions import logit_lens
from glassformer.nnterp.prompt_utils import Prompt, run_prompts


def attention_probabilities(place, **options):
    """Reading attention probabilities, changing them, and what the change does."""
    # Load model with attention probabilities enabled
    model = StandardizedTransformer(place, enable_attention_probs=True, **options)

    with model.trace("The cat sat on the mat"):
        # Access attention probabilities for layer 5
        attn_probs = model.attention_probabilities[5].save()
        # Shape: (batch, heads, seq_len, seq_len)
        first = attn_probs.clone().save()

        # Modify attention patterns
        attn_probs[:, :, :, 0] = 0  # Remove attention to first token
        attn_probs /= attn_probs.sum(dim=-1, keepdim=True)  # Renormalize

        modified_logits = model.logits.save()
    model.attention_probabilities.print_source()
    return first, attn_probs, modified_logits


def renaming(place, **options):
    """Standard names for a LanguageModel, of a path and of a live model, and for NNsight."""
    rename_dict = get_rename_dict()
    renamed_model = LanguageModel(place, rename=rename_dict, **options)
    found = [renamed_model]
    # or
    hf_model = AutoModelForCausalLM.from_pretrained(place, **options)
    renamed_model = LanguageModel(hf_model, rename=rename_dict)
    found.append(renamed_model)
    # or
    renamed_model = NNsight(hf_model, rename=rename_dict)  # NNsight works with any PyTorch model
    print(renamed_model.layers, renamed_model.ln_final, renamed_model.lm_head)
    found.append(renamed_model)
    return [[each.path for each in (model.layers, model.ln_final, model.lm_head)] for model in found]


def torch_modules(place):
    """The modules themselves."""
    hf_model = AutoModelForCausalLM.from_pretrained(place)
    renamed_model = NNsight(hf_model, rename=get_rename_dict())
    layers_modules = renamed_model.layers._module
    assert isinstance(layers_modules, nn.ModuleList)
    module_accessor = ModuleAccessor(hf_model)
    same = module_accessor.get_layers()
    assert same is layers_modules
    # or
    layers_modules = module_accessor.layers
    assert isinstance(layers_modules, nn.ModuleList)
    assert same is layers_modules
    return [torch.nn.utils.parameters_to_vector(layers_modules.parameters()).detach()]


def prompts(place, show, **options):
    """Probabilities of chosen tokens, at the end and at every layer, as numbers, tables and plots."""
    model = StandardizedTransformer(place, **options)
    # Create prompt with target tokens
    targets = {
        "correct_answer": "Paris",
        "traps": ["London", "Madrid"],
        "longstring": "the country of France",
    }
    prompt = Prompt.from_strings(
        "The capital of France (not England or Spain) is",
        targets,
        model.tokenizer,
    )
    # Check what tokens are tracked for each target category
    for name, tokens in prompt.target_tokens.items():
        print(f"{name}: {model.tokenizer.convert_ids_to_tokens(tokens)}")

    # Get probabilities
    results = run_prompts(model, [prompt])
    for target, probs in results.items():
        print(f"{target}: {probs.shape}")  # Shape: (batch_size,)
    plain = results

    # Use interventions with target tracking
    prompts = [prompt]
    results = run_prompts(model, prompts, get_probs_func=logit_lens)
    # Returns probabilities for each target category across all layers

    probs = logit_lens(model, "The capital of France is")

    # Interactive plot
    figure = plot_topk_tokens(
        probs[0],  # First prompt
        model.tokenizer,
        k=5,
        title="Top 5 tokens at each layer",
    )
    # Convert prompts to DataFrame
    df = prompts_to_df(prompts, model.tokenizer)
    show(df)

    fig = go.Figure()
    for category, probs in results.items():
        fig.add_trace(
            go.Scatter(
                x=list(range(len(probs[0]))),
                y=probs[0].tolist(),
                mode="lines+markers",
                name=category,
            )
        )
    fig.update_layout(title="Target Token Probabilities Across Layers", xaxis_title="Layer", yaxis_title="Probability")
    return prompt.target_tokens, plain, results, figure, df, fig
