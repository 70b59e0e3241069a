"""TransformerLens' HookedTransformer on the weights of a model of `transformers`, made without a network."""

import copy
import functools
import tempfile
import types
import warnings

import torch
from tiny_models import make_model
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict

import glassformer


@functools.cache
def pair(kind, dtype=torch.float64, folded=False):
    """A tiny model, ours and the judge's."""
    reference = make_model(kind, dtype)
    return types.SimpleNamespace(
        reference=reference, model=glassformer.load(reference), judge=judge_of(reference, folded)
    )


def judge_of(reference, folded=False):
    """A HookedTransformer; the config is the judge's own reading of `reference`'s.

    The weights are as they are, or with the norms' weights `folded` into what follows them, which the judge's
    attribution needs.
    """
    written = copy.deepcopy(reference.config)
    written.architectures = [type(reference).__name__]
    if written.model_type == "gpt2":
        written.n_ctx = written.n_positions  # As the published files have it.
    with tempfile.TemporaryDirectory(prefix="judge") as folder:
        written.save_pretrained(folder)
        config = get_pretrained_model_config(folder, device="cpu", dtype=reference.dtype, fold_ln=folded)
        state = get_pretrained_state_dict(folder, config, reference, dtype=reference.dtype)
    config.tokenizer_name = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        judge = HookedTransformer(config)
    judge.load_and_process_state_dict(
        {name: tensor.detach().clone() for name, tensor in state.items()},
        fold_ln=folded,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return judge.eval()


def cache_of(judge, tokens, **options):
    """The judge's logits and all activations by name."""
    with torch.no_grad():
        return judge.run_with_cache(tokens, **options)
